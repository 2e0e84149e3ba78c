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
    """A canvas in a file of its own, of which the process holds only what is read or written, while it is.

    The file is plain float32 in the machine's order. Whole rows are read and written as such; of other parts the file
    is mapped into memory, which costs a page fault for every 4 KiB.

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
        whole = self._whole_rows(at)
        if whole is None:
            return torch.from_numpy(np.array(self._mapped("r")[at]))
        channels, rows = whole
        values = np.empty((len(channels), len(rows), self._shape[2]), np.float32)
        with storage.clear_disk_errors(self.path), self.path.open("rb") as handle:
            for channel, plane in zip(channels, values, strict=True):
                handle.seek(self._offset(channel, rows))
                if handle.readinto(plane.view(np.uint8).data) != plane.nbytes:
                    raise OSError("it has become shorter while it was read; begin anew with --overwrite")
        return torch.from_numpy(values)

    def __setitem__(self, at: tuple[slice, slice, slice], values: torch.Tensor) -> None:
        whole = self._whole_rows(at)
        if whole is None:
            self._mapped("r+")[at] = values.numpy()
            return
        channels, rows = whole
        planes = np.ascontiguousarray(values.numpy())
        if planes.shape != (len(channels), len(rows), self._shape[2]):
            raise ValueError(f"values of shape {planes.shape} do not fill {len(channels)} channels of {len(rows)} rows")
        with storage.clear_disk_errors(self.path), self.path.open("r+b") as handle:
            for channel, plane in zip(channels, planes, strict=True):
                handle.seek(self._offset(channel, rows))
                handle.write(plane.view(np.uint8).data)

    def _whole_rows(self, at: tuple[slice, slice, slice]) -> tuple[range, range] | None:
        """Channels and rows, where all columns of neighbouring rows are asked for; None for another part."""
        channels, rows, columns = (range(*part.indices(length)) for part, length in zip(at, self._shape, strict=True))
        if columns != range(self._shape[2]) or rows.step != 1 or not rows or not channels:
            return None
        return channels, rows

    def _offset(self, channel: int, rows: range) -> int:
        return 4 * self._shape[2] * (channel * self._shape[1] + rows.start)

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
