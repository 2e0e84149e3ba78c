"""Latents and prompt embeddings, computed once: the autoencoder and the text encoder are frozen.

Latents lie in one memory-mapped file, (tiles, orientations, C, h, w) in half precision, beside a note of what they
were made from. An interrupted encoding goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from pathup import draws, storage
from pathup.errors import PathUpError
from pathup.tiles.dataset import TileFolder
from pathup.training.crops import oriented

NOTE_EVERY = 32  # batches between two notes of progress
READERS = 8  # threads that read tiles
AHEAD = 3  # batches read ahead


def encoder_sha256(vae: AutoencoderKL) -> str:
    """A hash of what makes latents: the encoder's weights and the scaling factor. The decoder may go on learning."""
    digest = hashlib.sha256(repr(float(vae.config.scaling_factor)).encode())
    for name, value in sorted(vae.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def orientations_of(index: int, count: int, seed: int) -> list[int]:
    """Which of the 8 flips and turns of tile `index` are cached: itself first, the others drawn."""
    others = 1 + draws.numpy_generator(seed, "orientations", index).permutation(7)
    return [0, *(int(o) for o in others[: count - 1])]


class LatentCache:
    """The latents of a tile folder, as a training run reads them.

    Parameters
    ----------
    folder
        Where the cache lies; made when missing.
    tiles, vae
        What is encoded, and with what.
    orientations
        Flips and turns a tile, 1 to 8.
    seed
        For the choice of orientations.
    bfloat16
        Encode under bf16 autocast: where there are bf16 kernels it takes half the time, and moves a latent of deviation
        1 by about 0.01, a tenth of the noise that a decoder is trained to bear.
    """

    def __init__(
        self,
        folder: Path,
        tiles: TileFolder,
        vae: AutoencoderKL,
        *,
        orientations: int,
        seed: int,
        bfloat16: bool = False,
    ) -> None:
        self.folder, self.tiles, self.vae = folder, tiles, vae
        self.orientations, self.seed, self.bfloat16 = orientations, seed, bfloat16
        self._array: np.ndarray | None = None

    @property
    def _made_from(self) -> dict[str, Any]:
        return {
            "tiles": self.tiles.fingerprint(),
            "encoder": encoder_sha256(self.vae),
            "orientations": self.orientations,
            "seed": self.seed if self.orientations > 1 else None,  # alone, a tile is cached as it is
            **({"precision": "bf16"} if self.bfloat16 else {}),
        }

    def fill(self, batch_size: int, device: torch.device, progress: Callable[[int, int], None]) -> None:
        """Encode what is not yet there; of several processes that ask for the same, one does, and the others wait.

        Parameters
        ----------
        batch_size
            Images a forward.
        device
            Where to encode.
        progress
            Called with images done and images in all.

        Raises
        ------
        PathUpError
            The disk is full, or the cache was made from other tiles, another encoder or other orientations.
        """
        with storage.held(self.folder / "latents.lock"):
            self._fill(batch_size, device, progress)

    def _fill(self, batch_size: int, device: torch.device, progress: Callable[[int, int], None]) -> None:
        made_from, note = self._made_from, self.folder / "latents.json"
        path, partial = self.folder / "latents.npy", self.folder / "latents.partial.npy"
        known = storage.read_json(note) if note.exists() else None
        if known is not None and known["made_from"] != made_from:
            raise PathUpError(
                f"the latents in {self.folder} were made from other tiles, another encoder or other orientations; "
                "remove that folder, or name another with --latents"
            )
        total = len(self.tiles) * self.orientations
        side = self.tiles.pixels(0).shape[-1] // int(2 ** (len(self.vae.config.block_out_channels) - 1))
        shape = (len(self.tiles), self.orientations, self.vae.config.latent_channels, side, side)
        if known is not None and _is_whole(path, shape):
            progress(total, total)
            return
        done = int(known["done"]) if known is not None and partial.exists() else 0
        self.vae.to(memory_format=torch.channels_last)  # twice as fast at full resolution on a CPU
        with storage.clear_disk_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not done:
                storage.write_json(note, {"made_from": made_from, "done": 0})  # before the file that it speaks of
                _reserve(partial, shape)
            array = np.lib.format.open_memmap(partial, mode="r+")
            flat = array.reshape(total, *shape[2:])
            starts = range(done, total, batch_size)
            waiting = (range(first, min(first + batch_size, total)) for first in starts)
            for batch, (items, pixels) in enumerate(self._loaded(waiting)):
                flat[items.start : items.stop] = self._encode(pixels, device)
                if batch % NOTE_EVERY == NOTE_EVERY - 1:
                    array.flush()
                    storage.write_json(note, {"made_from": made_from, "done": items.stop})
                progress(items.stop, total)
            array.flush()
            del array, flat
            os.replace(partial, path)
            storage.write_json(note, {"made_from": made_from, "done": total})

    def __getitem__(self, place: tuple[int, int]) -> torch.Tensor:
        """The latent (C, h, w), float32, of (tile, orientation slot)."""
        if self._array is None:
            self._array = np.load(self.folder / "latents.npy", mmap_mode="r")
        return torch.from_numpy(self._array[place].astype(np.float32))

    def _loaded(self, batches: Iterator[range]) -> Iterator[tuple[range, torch.Tensor]]:
        """Pixels of each batch of items, uint8; while one is encoded, the next are read by some threads."""
        with ThreadPoolExecutor(READERS) as readers:
            ahead: deque[tuple[range, list[Future[list[torch.Tensor]]]]] = deque()
            for items in batches:
                tiles = range(items.start // self.orientations, (items.stop - 1) // self.orientations + 1)
                ahead.append((items, [readers.submit(self._turned, tile, items) for tile in tiles]))
                if len(ahead) > AHEAD:
                    yield _gathered(*ahead.popleft())
            while ahead:
                yield _gathered(*ahead.popleft())

    def _turned(self, tile: int, items: range) -> list[torch.Tensor]:
        """A tile in those of its orientations that are among the items."""
        pixels, first = self.tiles.pixels(tile), tile * self.orientations
        turns = orientations_of(tile, self.orientations, self.seed)
        return [oriented(pixels, turn) for slot, turn in enumerate(turns) if first + slot in items]

    @torch.no_grad()
    def _encode(self, pixels_BCHW: torch.Tensor, device: torch.device) -> np.ndarray:
        pixels = pixels_BCHW.to(device).to(self.vae.dtype, memory_format=torch.channels_last) / 127.5 - 1
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            latents = self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor
        return latents.to(torch.float16).cpu().numpy()


def _gathered(items: range, parts: list[Future[list[torch.Tensor]]]) -> tuple[range, torch.Tensor]:
    return items, torch.stack([image for part in parts for image in part.result()])


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        array = np.load(path, mmap_mode="r")  # a file that was cut short cannot be mapped
    except (OSError, ValueError):
        return False
    return array.shape == shape and array.dtype == np.float16


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Make the file at its full size now, so that a full disk shows before the work and not in the middle."""
    needed = 2 * math.prod(shape)
    try:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape).flush()
        with path.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
        if path.stat().st_size < needed:
            raise OSError(28, "No space left on device")
    except OSError:
        path.unlink(missing_ok=True)
        raise
