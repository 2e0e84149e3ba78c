"""Latents and prompt embeddings, computed once: the autoencoder and the text encoder are frozen.

Latents lie in one memory-mapped file, (tiles, orientations, C, h, w) in half precision, beside a note of what they
were made from. Blocks of images are shared by the processes of a run; an interrupted encoding goes on where it stopped,
with any number of processes.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.console import Console
from rich.progress import Progress

from pathup import draws, storage
from pathup.errors import PathUpError
from pathup.processes import ONE_PROCESS, Processes
from pathup.tiles.dataset import TileFolder
from pathup.training.crops import oriented

BLOCK = 2048  # images that one process encodes before it notes that they are done
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

    def fill(
        self,
        batch_size: int,
        device: torch.device,
        progress: Callable[[int, int], None],
        processes: Processes = ONE_PROCESS,
    ) -> None:
        """Encode what is not yet there; of several runs that ask for the same, one does, and the others wait.

        Parameters
        ----------
        batch_size
            Images a forward.
        device
            Where to encode.
        progress
            Called with images done and images in all.
        processes
            Those of one run, which share the work: each calls this.

        Raises
        ------
        PathUpError
            The disk is full, or the cache was made from other tiles, another encoder or other orientations.
        """
        with storage.held(self.folder / "latents.lock") if processes.is_main else nullcontext():
            if processes.is_main:
                self._begin()
            processes.wait()
            whole = self._is_whole()
            processes.wait()  # until all have looked
            if whole:
                progress(self._total, self._total)
                return
            with storage.clear_disk_errors(self._path):
                self._encode_missing(batch_size, device, progress, processes)
            processes.wait()
            if processes.is_main:
                os.replace(self._partial, self._path)
                shutil.rmtree(self._marks, ignore_errors=True)
            processes.wait()

    def fill_shown(self, batch_size: int, device: torch.device, processes: Processes = ONE_PROCESS) -> None:
        """`fill`, with a bar of progress in the first process."""
        with Progress(console=Console(stderr=True), disable=not processes.is_main) as bar:
            task = bar.add_task("encoding tiles", total=None)
            self.fill(
                batch_size,
                device,
                lambda done, total: bar.update(task, completed=done, total=total),
                processes,
            )

    @property
    def _path(self) -> Path:
        return self.folder / "latents.npy"

    @property
    def _partial(self) -> Path:
        return self.folder / "latents.partial.npy"

    @property
    def _marks(self) -> Path:
        """A file for each block of images that is encoded and on the disk."""
        return self.folder / "latents.done"

    @property
    def _total(self) -> int:
        return len(self.tiles) * self.orientations

    @property
    def _shape(self) -> tuple[int, ...]:
        side = self.tiles.pixels(0).shape[-1] // int(2 ** (len(self.vae.config.block_out_channels) - 1))
        return len(self.tiles), self.orientations, int(self.vae.config.latent_channels), side, side

    def _is_whole(self) -> bool:
        try:
            array = np.load(self._path, mmap_mode="r")  # a file that was cut short cannot be mapped
        except (OSError, ValueError):
            return False
        return array.shape == self._shape and array.dtype == np.float16

    def _begin(self) -> None:
        """Check whose the cache is, and make its file where it is not there."""
        made_from, note = self._made_from, self.folder / "latents.json"
        known = storage.read_json(note) if note.exists() else None
        if known is not None and known["made_from"] != made_from:
            raise PathUpError(
                f"the latents in {self.folder} were made from other tiles, another encoder or other orientations; "
                "remove that folder, or name another with --latents"
            )
        if known is not None and self._is_whole():
            return
        if known is None or not self._partial.exists() or not self._marks.is_dir():
            shutil.rmtree(self._marks, ignore_errors=True)
            with storage.clear_disk_errors(self._path):
                self.folder.mkdir(parents=True, exist_ok=True)
                storage.write_json(note, {"made_from": made_from})  # before the file that it speaks of
                _reserve(self._partial, self._shape)
                self._marks.mkdir()

    def _encode_missing(
        self, batch_size: int, device: torch.device, progress: Callable[[int, int], None], processes: Processes
    ) -> None:
        """Encode this process's blocks, and write each where it belongs."""
        self.vae.to(memory_format=torch.channels_last)  # twice as fast at full resolution on a CPU
        total, one = self._total, 2 * math.prod(self._shape[2:])
        blocks = [range(first, min(first + BLOCK, total)) for first in range(0, total, BLOCK)]
        missing = [block for block in blocks if not self._mark(block).exists()]
        processes.wait()  # until all know what is missing
        done = total - sum(map(len, missing))
        mine = missing[processes.rank :: processes.count]
        batches = (block[first : first + batch_size] for block in mine for first in range(0, len(block), batch_size))
        header = np.lib.format.open_memmap(self._partial, mode="r").offset
        with self._partial.open("r+b") as file:  # not mapped: of a page that two machines map, one's half is lost
            for items, pixels in self._loaded(batches):
                file.seek(header + items.start * one)
                file.write(self._encode(pixels, device).tobytes())
                done = min(total, done + len(items) * processes.count)
                block = blocks[items.start // BLOCK]
                if items.stop == block.stop:
                    file.flush()
                    os.fsync(file.fileno())
                    self._mark(block).touch()
                progress(done, total)

    def _mark(self, block: range) -> Path:
        return self._marks / str(block.start)

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
