"""Features of tiles, on colour or on grey pixels, kept by what they were made of.

A kept file is named by a SHA-256 over the encoder's weights and input, the view, and the content of every image in
order: a file that changed, another network or another order never meets features of something else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pathup import storage
from pathup.errors import PathUpError
from pathup.evaluation.encoders import Encoder
from pathup.slides.images import read_image

__all__ = ["GREY_DEVIATION", "GREY_RULE", "VIEWS", "View", "default_cache", "extract", "kept_features", "seen"]

View = Literal["colour", "grey"]
VIEWS: tuple[View, ...] = get_args(View)

GREY_DEVIATION = 0.45
"""Standard deviation of a grey tile after normalising, of a range of [-1, 1]: about that of natural photographs. Values
beyond 2.2 deviations are clipped."""

GREY_RULE = f"BT.601 luminance, each tile to mean 0 and deviation {GREY_DEVIATION} of [-1, 1], clipped, before resizing"

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, which JPEG uses as well

Progress = Callable[[int, int], None]


def seen(pixels_HWC: np.ndarray, view: View) -> np.ndarray:
    """A tile in a view: uint8 RGB, of the same size.

    ``colour`` is the tile itself. ``grey``: luminance (0.299 R + 0.587 G + 0.114 B); then, tile by tile, the mean is
    taken off, the standard deviation set to `GREY_DEVIATION` of [-1, 1], values clipped, brought to 0..255 and repeated
    in three channels. Stain, brightness and contrast are then the same in all tiles; a tile without any contrast is
    mid-grey everywhere.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB.
    """
    if view == "colour":
        return pixels_HWC
    grey = pixels_HWC.astype(np.float32) @ _LUMINANCE
    grey -= grey.mean()
    deviation = float(grey.std())
    scale = GREY_DEVIATION / deviation if deviation >= 1e-3 else 0.0  # of 255: rounding, not tissue
    scaled = np.clip(grey * scale, -1, 1)
    return np.repeat(((scaled + 1) * 127.5).round().astype(np.uint8)[..., None], 3, axis=2)


def extract(
    encoder: Encoder,
    files: Sequence[Path],
    view: View = "colour",
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> np.ndarray:
    """Features of image files, float32 (N, D), in their order. Files are read ahead, a few batches at most.

    Raises
    ------
    PathUpError
        A file is missing, damaged or not 8-bit RGB; sizes differ where the network resizes by itself; there are no
        files; or a feature is not a finite number.
    """
    if not files:
        raise PathUpError("there are no tiles to take features of")
    rows: list[np.ndarray] = []
    done = 0
    for batch in _read_ahead(files, batch_size, lambda file: encoder.prepared(seen(read_image(file), view))):
        if any(tile.shape != batch[0].shape for tile in batch):
            sizes = sorted({f"{tile.shape[2]} x {tile.shape[1]}" for tile in batch})
            raise PathUpError(f"tiles of mixed sizes ({', '.join(sizes)} px) cannot be compared; cut them to one size")
        rows.append(encoder.features(torch.stack(batch)))
        done += len(batch)
        if progress is not None:
            progress(done, len(files))
    features = np.concatenate(rows)
    wrong = np.flatnonzero(~np.isfinite(features).all(1))
    if wrong.size:
        raise PathUpError(
            f"{encoder.name} gave features that are no finite numbers for {wrong.size} of {len(files)} tiles (the "
            "first: "
            f"{files[wrong[0]]}); check its weights"
        )
    return features


def _read_ahead(
    files: Sequence[Path], batch_size: int, read: Callable[[Path], torch.Tensor]
) -> Iterator[list[torch.Tensor]]:
    waiting = iter(files)
    with ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(read, file) for file in islice(waiting, 3 * batch_size)]
        try:
            while ahead:
                batch = [future.result() for future in ahead[:batch_size]]
                ahead = ahead[batch_size:] + [pool.submit(read, file) for file in islice(waiting, batch_size)]
                yield batch
        finally:
            for future in ahead:
                future.cancel()


def default_cache() -> Path:
    """Where features are kept: ``PATHUP_CACHE``, or ``pathup`` in the user's cache folder."""
    base = os.environ.get("PATHUP_CACHE")
    if base:
        return Path(base) / "features"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pathup" / "features"


def content_hashes(files: Sequence[Path]) -> list[str]:
    """The SHA-256 of each file.

    Raises
    ------
    PathUpError
        A file cannot be read.
    """
    with ThreadPoolExecutor(8) as pool:
        try:
            return list(pool.map(storage.sha256_file, files))
        except OSError as error:
            raise PathUpError(
                f"{error.filename} cannot be read ({error.strerror}); it is listed but not there"
            ) from None


def kept_features(
    encoder: Encoder,
    files: Sequence[Path],
    view: View = "colour",
    *,
    cache: Path | None,
    progress: Progress | None = None,
    extract: Callable[..., np.ndarray] = extract,
) -> np.ndarray:
    """`extract`, or what it gave before for the same encoder, view and file contents in this order.

    Parameters
    ----------
    cache
        The folder of kept features; None keeps and looks for nothing. A damaged file in it is made anew; a full disk
        only means that nothing is kept. Of several runs that want the same, one extracts, and the others wait.
    extract
        What extracts; it is called as `extract` is.
    """
    if cache is None:
        return extract(encoder, files, view, progress=progress)
    rule = GREY_RULE if view == "grey" else ""
    told = json.dumps([encoder.described(), view, rule, content_hashes(files)], sort_keys=True)
    path = cache / f"{hashlib.sha256(told.encode()).hexdigest()}.safetensors"
    features = _whole(path, len(files))
    if features is None:
        with ExitStack() as lock:
            with suppress(PathUpError, OSError):  # the disk is full
                lock.enter_context(storage.held(cache / "locks" / f"{path.stem}.lock"))
            features = _whole(path, len(files))
            if features is None:
                features = extract(encoder, files, view, progress=progress)
                with suppress(PathUpError), storage.atomic_path(path) as temporary:
                    save_file({"features": features}, temporary)
                return features
    if progress is not None:
        progress(len(files), len(files))
    return features


def _whole(path: Path, count: int) -> np.ndarray | None:
    """Kept features of so many files; None where they are not there, or not whole."""
    try:
        features: np.ndarray = load_file(path)["features"]
    except (SafetensorError, OSError, KeyError):
        return None
    return features if len(features) == count else None
