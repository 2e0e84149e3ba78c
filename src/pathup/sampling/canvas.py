"""The canvas: the latent of the whole large image, float32 (C, H, W) on the CPU, in memory or in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from pathup import draws, storage

__all__ = ["NOISE_BLOCK", "Canvas", "FileCanvas", "canvas_noise", "row_slices"]

NOISE_BLOCK = 64
"""Side of the blocks in which canvas noise is drawn. Part of what a seed means: changing it changes every image."""


class Canvas(Protocol):
    """What sampling and decoding need of a canvas: a `torch.Tensor` has it, and so has a `FileCanvas`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        ...

    def __getitem__(self, at: tuple[slice, slice, slice], /) -> torch.Tensor:
        """Channels, rows and columns, float32."""
        ...

    def __setitem__(self, at: tuple[slice, slice, slice], values: torch.Tensor, /) -> None:
        """Replace channels, rows and columns."""
        ...


class FileCanvas:
    """A canvas in a file of its own, mapped into memory only where and while it is read or written.

    The process never holds it as a whole, whatever its size. The file is plain float32 in the machine's order.

    Parameters
    ----------
    path
        The file.
    shape_CHW
        Its shape.
    create
        Make the file anew, all of its room taken from the disk at once: a mapped file that the disk has no room for
        ends the process without a word.

    Raises
    ------
    PathUpError
        The disk is full, the file cannot be written, or is not of this shape's size.
    """

    def __init__(self, path: Path, shape_CHW: tuple[int, int, int], *, create: bool = False) -> None:
        self.path, self._shape = path, shape_CHW
        size = 4 * int(np.prod(shape_CHW))
        with storage.clear_disk_errors(path):
            if create:
                _reserve(path, size)
            elif (found := path.stat().st_size) != size:
                raise OSError(f"it has {found} bytes, but {size} were needed; begin anew with --overwrite")

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self._shape

    def __getitem__(self, at: tuple[slice, slice, slice]) -> torch.Tensor:
        return torch.from_numpy(np.array(self._mapped("r")[at]))

    def __setitem__(self, at: tuple[slice, slice, slice], values: torch.Tensor) -> None:
        mapped = self._mapped("r+")
        mapped[at] = values.numpy()

    def _mapped(self, mode: Literal["r", "r+"]) -> np.memmap:
        return np.memmap(self.path, np.float32, mode, shape=self._shape)


def canvas_noise(
    shape_CHW: tuple[int, int, int],
    seed: int,
    *keys: int | str,
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> torch.Tensor:
    """Standard normal noise whose value at a position depends on (seed, keys, channel, row, column) alone.

    Drawn block by block, so a larger canvas of the same seed continues a smaller one and no order matters.

    Parameters
    ----------
    shape_CHW
        The canvas.
    seed, keys
        The draw.
    rows, columns
        The part that is wanted; the whole canvas when unset.

    Returns
    -------
    torch.Tensor
        noise of that part, (C, rows, columns), float32 on the CPU.
    """
    channels = shape_CHW[0]
    top, bottom, _ = rows.indices(shape_CHW[1])
    left, right, _ = columns.indices(shape_CHW[2])
    noise = torch.empty(channels, bottom - top, right - left)
    for down in range(top // NOISE_BLOCK, -(-bottom // NOISE_BLOCK)):
        for across in range(left // NOISE_BLOCK, -(-right // NOISE_BLOCK)):
            block = draws.normal((channels, NOISE_BLOCK, NOISE_BLOCK), seed, *keys, "canvas", down, across)
            y, x = down * NOISE_BLOCK, across * NOISE_BLOCK
            y0, y1, x0, x1 = max(y, top), min(y + NOISE_BLOCK, bottom), max(x, left), min(x + NOISE_BLOCK, right)
            noise[:, y0 - top : y1 - top, x0 - left : x1 - left] = block[:, y0 - y : y1 - y, x0 - x : x1 - x]
    return noise


def row_slices(height: int) -> Iterator[slice]:
    """Rows from the top down, a block of noise at a time."""
    return (slice(top, min(top + NOISE_BLOCK, height)) for top in range(0, height, NOISE_BLOCK))


def _reserve(path: Path, size: int) -> None:
    with path.open("wb") as handle:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), 0, size)
            return
        zeros = bytes(2**24)
        for start in range(0, size, len(zeros)):
            handle.write(zeros[: size - start])
