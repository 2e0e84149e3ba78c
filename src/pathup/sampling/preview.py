"""A small picture of a large image while it grows."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pathup import storage
from pathup.sampling.canvas import Canvas, row_slices

__all__ = ["PREVIEW_PX", "PreviewFile"]

PREVIEW_PX = 1024
"""Longest side of a preview, at most."""

FITTED = 8192
"""About how many pixels the colours of the canvas are fitted to."""

_SHARE = 0.01
"""Share of the time that previews may take."""


class PreviewFile:
    """Writes ``preview.png`` anew from time to time: the overview, then the canvas, then decoded bands over it.

    The canvas is shown by the linear map from latents to colours that fits the overview best, so its noise shows, and
    clears from step to step. It costs at most a hundredth of the time.

    Parameters
    ----------
    path
        The PNG.
    size_px
        Height and width of the large image.
    factor
        Pixels a latent position, each way.
    """

    def __init__(self, path: Path, size_px: tuple[int, int], factor: int) -> None:
        self._path, self._factor = path, factor
        positions = [side // factor for side in size_px]
        self._pool = -(-max(positions) // PREVIEW_PX)
        self._shape = (max(1, positions[0] // self._pool), max(1, positions[1] // self._pool))
        self._shown = np.full((*self._shape, 3), 255, np.uint8)
        self._overview = self._shown
        self._written, self._cost = -float("inf"), 0.0

    def overview(self, image: np.ndarray) -> None:
        """Show the overview, uint8 RGB (h, w, 3)."""
        coarse = max(1, min(image.shape[0] // self._shape[0], image.shape[1] // self._shape[1]))
        small = Image.fromarray(np.ascontiguousarray(image[::coarse, ::coarse]))
        self._overview = np.asarray(small.resize(self._shape[::-1], Image.Resampling.BOX))
        self._shown = self._overview.copy()
        self._write(time.perf_counter())

    def canvas(self, latents: Canvas) -> None:
        """Show the canvas after a step."""
        if not self._due():
            return
        started = time.perf_counter()
        pooled_CHW = _pooled(latents, self._shape, self._pool)
        known = np.concatenate([pooled_CHW, np.ones((1, *self._shape), np.float32)]).reshape(len(pooled_CHW) + 1, -1).T
        some = slice(None, None, max(1, len(known) // FITTED))
        mapping, *_ = np.linalg.lstsq(known[some], self._overview.reshape(-1, 3)[some].astype(np.float32), rcond=None)
        self._shown = (known @ mapping).reshape(*self._shape, 3).round().clip(0, 255).astype(np.uint8)
        self._write(started)

    def band(self, top_px: int, pixels: np.ndarray) -> None:
        """Show a decoded band, uint8 RGB (rows, W, 3), whose first row is row `top_px` of the image."""
        scale = self._pool * self._factor
        first = top_px // scale
        rows = min(max(1, len(pixels) // scale), self._shape[0] - first)
        if rows > 0:
            band = Image.fromarray(pixels).resize((self._shape[1], rows), Image.Resampling.BOX)
            self._shown[first : first + rows] = np.asarray(band)
        if self._due():
            self._write(time.perf_counter())

    def _due(self) -> bool:
        return (time.perf_counter() - self._written) * _SHARE >= self._cost

    def _write(self, started: float) -> None:
        with storage.atomic_path(self._path) as temporary:
            Image.fromarray(self._shown).save(temporary, format="PNG", compress_level=1)
        self._written = time.perf_counter()
        self._cost = self._written - started


def _pooled(latents: Canvas, shape_HW: tuple[int, int], pool: int) -> np.ndarray:
    """Mean over squares of `pool` positions of a state's sample and what it remembers, (channels, h, w)."""
    channels = latents.shape[0]
    pooled = np.empty((channels, *shape_HW), np.float32)
    at = 0
    waiting = torch.empty(channels, 0, latents.shape[2])
    for rows in row_slices(latents.shape[1]):
        waiting = torch.cat([waiting, latents[:, rows, :]], dim=1)
        count = min(waiting.shape[1] // pool, shape_HW[0] - at)
        if count > 0:
            part = waiting[:, : count * pool, : shape_HW[1] * pool]
            pooled[:, at : at + count] = part.reshape(channels, count, pool, shape_HW[1], pool).mean(dim=(2, 4)).numpy()
            waiting, at = waiting[:, count * pool :], at + count
    return pooled
