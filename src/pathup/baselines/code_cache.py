"""The codes of training tiles, computed once by the finished autoencoder and kept in files.

Which tile stands at a position of the transformer's training stream, and in which of its 8 orientations, is a function
of (seed, position). What is kept are the different ones among those that the run comes to, in the order in which it
comes to them, at most all 8 of every tile; a longer run adds to them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import VQModel

from pathup import draws, storage
from pathup.baselines.codebook import codes_of
from pathup.errors import PathUpError
from pathup.tiles.dataset import TileFolder
from pathup.training.crops import oriented
from pathup.training.latents import READERS
from pathup.training.schedules import TileOrder

__all__ = ["CodeCache"]

CHUNK = 1024  # rows a file
ENCODE_BATCH = 32  # images a forward; divides CHUNK
NOTE = "codes.json"


class CodeCache:
    """Codes of the training stream, by position.

    Parameters
    ----------
    folder
        Where the files lie; made when missing.
    tiles
        What is encoded; every class of every level comes equally often.
    autoencoder
        By what.
    autoencoder_sha256
        A hash of its weights.
    seed
        Of order and orientations.
    """

    def __init__(
        self, folder: Path, tiles: TileFolder, autoencoder: VQModel, *, autoencoder_sha256: str, seed: int
    ) -> None:
        self.folder, self.tiles, self.autoencoder, self._seed = folder, tiles, autoencoder, seed
        self._sha256 = autoencoder_sha256
        self._order = TileOrder([(record.label, record.level) for record in tiles.records], seed=seed, balanced=True)
        self._rows: dict[tuple[int, int], int] = {}
        self._positions = 0
        self._codes = np.empty((0, 0), np.uint16)
        self.seconds = 0.0
        """That encoding took, over all parts of an interrupted run."""

    def place(self, position: int) -> tuple[int, int]:
        """The tile and the orientation (0 to 7, as `oriented` counts them) at a position of the stream."""
        return self._order[position], draws.seed_of(self._seed, "orientation", position) % 8

    def __getitem__(self, position: int) -> torch.Tensor:
        """The codes (L,), int64, at a position that `fill` was asked for."""
        return torch.from_numpy(self._codes[self._rows[self.place(position)]].astype(np.int64))

    def fill(self, positions: int, device: torch.device, progress: Callable[[int, int], None]) -> None:
        """Encode what the first positions of the stream need and is not yet there.

        Parameters
        ----------
        positions
            How many.
        device
            Where the autoencoder is.
        progress
            Called with images done and images in all.

        Raises
        ------
        PathUpError
            The disk is full, or the files are of another autoencoder, other tiles or another seed.
        """
        made_from = {"tiles": self.tiles.fingerprint(), "autoencoder": self._sha256, "seed": self._seed}
        self._claim(made_from)
        for position in range(self._positions, positions):
            self._rows.setdefault(self.place(position), len(self._rows))
        self._positions = max(positions, self._positions)
        places = list(self._rows)
        chunks = []
        for first in range(0, len(places), CHUNK):
            wanted, path = places[first : first + CHUNK], self.folder / f"{first // CHUNK:06d}.npy"
            found = _read(path)
            if found is None or len(found) < len(wanted):
                started = time.perf_counter()
                found = self._encoded(wanted, device)
                with storage.atomic_path(path) as temporary:
                    np.save(temporary, found)
                self.seconds += time.perf_counter() - started
                storage.write_json(self.folder / NOTE, {"made_from": made_from, "seconds": round(self.seconds, 2)})
            chunks.append(found[: len(wanted)])
            progress(first + len(wanted), len(places))
        self._codes = np.concatenate(chunks)

    def _claim(self, made_from: dict[str, Any]) -> None:
        note = self.folder / NOTE
        if not note.exists():
            storage.write_json(note, {"made_from": made_from, "seconds": 0.0})  # before the files that it speaks of
        known = storage.read_json(note)
        if known["made_from"] != made_from:
            raise PathUpError(
                f"the codes in {self.folder} were made by another autoencoder, of other tiles or in another order, and "
                f"the transformer beside them was trained on them; remove {self.folder.parent} to train it anew"
            )
        self.seconds = float(known["seconds"])

    def _encoded(self, places: list[tuple[int, int]], device: torch.device) -> np.ndarray:
        """The codes (N, L) of tiles in their orientations.

        Every forward is of as many images, the last one filled up with blank ones: a code does then not hang on how
        many are wanted, not even by rounding.
        """
        parts = []
        with ThreadPoolExecutor(READERS) as readers:
            for first in range(0, len(places), ENCODE_BATCH):
                wanted = places[first : first + ENCODE_BATCH]
                images = list(readers.map(lambda place: oriented(self.tiles.pixels(place[0]), place[1]), wanted))
                images += [torch.zeros_like(images[0])] * (ENCODE_BATCH - len(wanted))
                pixels = torch.stack(images).to(device).float() / 127.5 - 1
                parts.append(codes_of(self.autoencoder, pixels)[: len(wanted)].cpu().numpy().astype(np.uint16))
        return np.concatenate(parts)


def _read(path: Path) -> np.ndarray | None:
    """A file of codes, or None where there is none that can be read."""
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
