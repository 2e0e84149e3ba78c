"""The images of a study: found by class in a folder, drawn by seed, and written so that nothing but tissue is left.

The data flow: each arm's folder says of its images which class they are and at what scale; of every class as many are
drawn from each arm; all are read over fields of one physical size, at one scale, and written by one encoder, without
metadata, as files of exactly as many bytes.
"""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pathup import draws, storage
from pathup.errors import PathUpError
from pathup.slides.images import image_size
from pathup.slides.reader import open_slide
from pathup.tiles.making import METADATA_FILE
from pathup.tiles.regions import SPLITS

__all__ = ["QUALITY", "Candidate", "Drawn", "Look", "candidates", "common_look", "drawn_images", "write_images"]

QUALITY = 95
"""Of the JPEG files, whose colours are not subsampled (4:4:4)."""

BLOCK_BYTES = 65_536
"""Files are as long as the longest, rounded up to these."""

LARGEST_PX = 8192
"""Side of an image that browsers still show as one."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_NUMBERED = re.compile(r"\d+_(?=.)")  # BRACS numbers its class folders: 0_N, 1_PB, ...


@dataclass(frozen=True)
class Candidate:
    """An image that may be shown.

    Attributes
    ----------
    file
        The image.
    label
        Its class.
    mpp
        Micrometres a pixel, as its folder or it itself says.
    size
        Width and height in pixels.
    """

    file: Path
    label: str
    mpp: float
    size: tuple[int, int]

    @property
    def side_um(self) -> float:
        """Its shorter side."""
        return min(self.size) * self.mpp


@dataclass(frozen=True)
class Drawn:
    """An image that was drawn for a study, and from which arm."""

    image: Candidate
    synthetic: bool


@dataclass(frozen=True)
class Look:
    """What all images of a study have in common.

    Attributes
    ----------
    side_px
        Side of the squares that are shown.
    mpp
        Micrometres a pixel of them.
    """

    side_px: int
    mpp: float

    @property
    def side_um(self) -> float:
        """Side of the field that is shown, in micrometres."""
        return self.side_px * self.mpp


def candidates(folder: Path, *, split: str | None = None, mpp: float | None = None) -> list[Candidate]:
    """The images of a folder, in the order of their names.

    Parameters
    ----------
    folder
        What ``pathup generate`` wrote (its ``metadata.jsonl`` names the classes), or class folders with images, which
        may lie in train, val and test.
    split
        Which of these; without it, ``test``, where there are any.
    mpp
        Of images that neither the folder nor they themselves record one of.

    Raises
    ------
    PathUpError
        There are no images, no such split, an image cannot be read, or its scale is not known.
    """
    if not folder.is_dir():
        raise PathUpError(
            f"{folder} is no folder; one with class folders of images, or what 'pathup generate' wrote, was needed"
        )
    if (folder / METADATA_FILE).is_file():
        return [_candidate(folder / name, label, known or mpp) for name, label, known in _listed(folder)]
    splits = [one for one in SPLITS if (folder / one).is_dir()]
    if split is not None and split not in splits:
        raise PathUpError(f"{folder} holds no folder '{split}'; it holds {', '.join(splits) or 'no splits'}")
    root = folder / (split or "test") if splits else folder
    if not root.is_dir():
        raise PathUpError(f"{folder} holds {', '.join(splits)} and no test; name one with --split")
    if (root / METADATA_FILE).is_file():
        return [_candidate(root / name, label, known or mpp) for name, label, known in _listed(root)]
    found = [
        _candidate(file, _NUMBERED.sub("", place.name, count=1), mpp)
        for place in sorted(root.iterdir())
        if place.is_dir()
        for file in sorted(place.iterdir())
        if file.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise PathUpError(
            f"{root} holds no images of classes; folders of images, named as the classes, or the metadata.jsonl that "
            "'pathup generate' writes, were needed"
        )
    return found


def _listed(folder: Path) -> list[tuple[str, str, float | None]]:
    path = folder / METADATA_FILE
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        found = sorted((str(row["file_name"]), str(row["label"]), row.get("mpp")) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PathUpError(f"{path} is damaged ({error}); make the images again") from error
    if not found:
        raise PathUpError(f"{path} lists no images")
    return found


def _candidate(file: Path, label: str, mpp: float | None) -> Candidate:
    if not file.is_file():
        raise PathUpError(f"{file} is listed but not there; make the images again")
    with open_slide(file, mpp) as reader:
        recorded = reader.recorded_mpp
        if recorded is None and mpp is None:
            raise PathUpError(f"{file} records no micrometres per pixel (mpp); state it with --mpp")
        scale = float(mpp) if mpp is not None else float(np.mean(recorded or ()))
        size = reader.size if file.suffix.lower() not in (".png", ".jpg", ".jpeg") else image_size(file)
    return Candidate(file, label, scale, size)


def drawn_images(real: Sequence[Candidate], synthetic: Sequence[Candidate], count: int, seed: int) -> list[Drawn]:
    """As many images of every class and arm, drawn by seed; those of the study, class by class.

    Raises
    ------
    PathUpError
        The arms are not of the same classes, or one has too few of a class.
    """
    arms = {"real": _by_label(real), "synthetic": _by_label(synthetic)}
    if set(arms["real"]) != set(arms["synthetic"]):
        pairs = (("real", "synthetic"), ("synthetic", "real"))
        only = {name: sorted(set(arms[name]) - set(arms[other])) for name, other in pairs}
        told = "; ".join(f"only {name} images are of {', '.join(labels)}" for name, labels in only.items() if labels)
        raise PathUpError(f"the arms differ in their classes ({told}); images of the same classes were needed")
    chosen = []
    for label in sorted(arms["real"]):
        for name, own in arms.items():
            images = own[label]
            if len(images) < count:
                raise PathUpError(
                    f"class {label} has {len(images)} {name} images, but {count} were needed; lower --per-class"
                )
            order = draws.numpy_generator(seed, "study", name, label).permutation(len(images))
            chosen += [Drawn(images[place], name == "synthetic") for place in np.sort(order[:count])]
    return chosen


def _by_label(images: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    found: defaultdict[str, list[Candidate]] = defaultdict(list)
    for image in images:
        found[image.label].append(image)
    return dict(found)


def common_look(images: Sequence[Candidate], *, side_px: int | None = None, mpp: float | None = None) -> Look:
    """The largest field that every image holds, at the coarsest of their scales, unless told otherwise.

    Raises
    ------
    PathUpError
        An image would have to be enlarged, or is smaller than the field, or images would be too large for a browser.
    """
    coarsest = max(images, key=lambda image: image.mpp)
    smallest = min(images, key=lambda image: image.side_um)
    scale = coarsest.mpp if mpp is None else mpp
    if scale < 0.999 * coarsest.mpp:
        raise PathUpError(
            f"{coarsest.file} has {coarsest.mpp:g} um a pixel, but {scale:g} were asked for; enlarged images would be "
            "told by their blur: a coarser --mpp was needed"
        )
    most = int(smallest.side_um / scale + 0.001)
    side = min(most, LARGEST_PX) if side_px is None else side_px
    if side > most:
        raise PathUpError(
            f"{smallest.file} is {smallest.size[0]} x {smallest.size[1]} px ({smallest.side_um:.0f} um), but fields of "
            f"{side * scale:.0f} um were asked for; at most --size {most} was needed, or leave that image out"
        )
    if not 64 <= side <= LARGEST_PX:
        raise PathUpError(f"images of {side} px were asked for, but 64 to {LARGEST_PX} px can be read in a browser")
    return Look(side, scale)


def write_images(
    images: Sequence[Candidate], files: Sequence[Path], look: Look, *, seed: int, progress: Callable[[int, int], None]
) -> int:
    """Write every image as its file of the study; returns how many bytes each has.

    An image that is larger than the field is shown in a part of it that the seed draws. Nothing of the source is left
    in the file but pixels, all of which have gone the same way: read over the field, brought to the same scale, one
    encoder. A smooth image is a short file, so zeros after the end of the image make all as long as the longest.

    Raises
    ------
    PathUpError
        An image cannot be read, or the disk is full.
    """
    for number, (image, file) in enumerate(zip(images, files, strict=True)):
        with storage.atomic_path(file) as partial:
            partial.write_bytes(_encoded(_field(image, look, seed)))
        progress(number + 1, 2 * len(files))
    longest = max(file.stat().st_size for file in files)
    length = -(-longest // BLOCK_BYTES) * BLOCK_BYTES
    for number, file in enumerate(files):
        with storage.atomic_path(file) as partial:
            partial.write_bytes(file.read_bytes().ljust(length, b"\0"))
        progress(len(files) + number + 1, 2 * len(files))
    return length


def _field(image: Candidate, look: Look, seed: int) -> np.ndarray:
    side = min(round(look.side_um / image.mpp), *image.size)
    draw = draws.numpy_generator(seed, "field", image.file.name, image.label)
    left, top = (int(draw.integers(0, length - side + 1)) for length in image.size)
    with open_slide(image.file, image.mpp) as reader:
        return reader.read_field(left, top, side, look.side_px)


def _encoded(pixels_HWC: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC).save(stream, "JPEG", quality=QUALITY, subsampling=0)
    return stream.getvalue()
