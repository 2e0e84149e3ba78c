"""What an autoencoder needs to know of a whole canvas, from windows that are a small part of it.

A canvas is sampled by small windows, spread evenly. Two things make few of them do. The network sees zeros beyond a
window where the canvas goes on, and those bend the statistics of every layer: a margin of each window is computed
and left out. And each window counts by a weight, chosen so that the windows together have the latents' own means
and mean squares over the whole canvas, which cost next to nothing to know (calibration: Deville and Sarndal 1992).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from pathup import draws
from pathup.sampling.mid_attention import KeyTile, measured_attention
from pathup.sampling.norms import NormStatistics, measure_norms
from pathup.sampling.receptive import attention_halo, changed_block_inputs

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline

__all__ = ["POPULATION", "Canvas", "PixelSource", "measure_decoder", "measure_encoder", "whole_batches"]

POPULATION = 16_384
"""A canvas of at most so many latent positions is taken whole.
At a factor of 8 that is one megapixel, which Stable Diffusion's decoder takes in some 4 GB in float32."""

WINDOWS = 256
"""How many windows stand for a larger canvas: 5 % of the work of decoding 2048 px at a factor of 4."""

SIDES, MARGINS = (12, 8, 6), (3, 2, 1)
"""Side of a measured window and how much of each rim is left out of the statistics, in latent positions, at the
latent's own resolution, at twice that and at all higher: the layers with the most pixels see the least beside them."""

ENCODER_SIDE, ENCODER_MARGIN, ENCODER_WINDOWS = 16, 4, 64
"""The same of the encoder, whose layers with the most pixels come first."""

EXACT_KEYS = 65_536
"""A canvas of at most so many latent positions (2048 px at a factor of 8) is attended to in every position."""

SAMPLED_KEYS = 16_384
"""Positions that are attended to of a larger canvas, so that a pixel's cost doesn't grow with the canvas."""

KEY_TILE, KEY_WINDOW = 64, 16
"""Side of the tiles in which the keys of every position are computed, and of the windows when they are sampled."""

MOMENT_ROWS = 256
"""Rows of a canvas that are read at once for its moments."""

RIDGE = 0.03
"""Keeps the windows' weights near each other, at a small rest of the difference."""

LEAST_WEIGHT = 0.2
"""No window counts less than this share of an equal one: a negative weight could make a variance negative."""

PixelSource = Callable[[int, int, int, int], torch.Tensor]
"""``source(top, left, height, width)`` gives pixels (3, height, width) in [-1, 1]."""

Area = tuple[int, int, int, int]
"""Top, left, height and width in latent positions."""


class Canvas(Protocol):
    """Latents (C, H, W): a tensor, or anything that gives float32 CPU tensors of parts and takes them."""

    @property
    def shape(self) -> Any:
        """(C, H, W)."""

    def __getitem__(self, at: Any, /) -> torch.Tensor: ...

    def __setitem__(self, at: Any, value: Any, /) -> None: ...


@torch.inference_mode()
def measure_decoder(
    pipeline: PathUpPipeline, latents_CHW: Canvas, *, population: int = POPULATION, keys: int = EXACT_KEYS
) -> NormStatistics:
    """The decoder's normalisation statistics, and the keys of its attention, for a whole canvas.

    Parameters
    ----------
    pipeline
        The model.
    latents_CHW
        The canvas.
    population
        A canvas of at most so many latent positions is measured in one piece, and the statistics are those of decoding
        it whole; from a larger one, `WINDOWS` windows spread evenly over it are measured jointly.
    keys
        A canvas of at most so many positions is attended to in every one; of a larger one, `SAMPLED_KEYS` are.
    """
    _, height, width = latents_CHW.shape

    def piece(top: int, left: int, rows: int, columns: int) -> torch.Tensor:
        return latents_CHW[:, top : top + rows, left : left + columns]

    areas = _sampled(height, width, SIDES[0], WINDOWS, population)
    halo = attention_halo(pipeline.vae, encoder=False)
    run = _Run(pipeline.vae, pipeline.decode_latents, piece, (height, width), halo, keys)
    if len(areas) == 1:
        return _measure(run, areas)
    windows = _NarrowingWindows(areas[0][2])
    weights = _calibrated(latents_CHW, areas, windows.first)
    with changed_block_inputs(pipeline.vae, windows.narrow):
        return _measure(run, areas, windows, weights)


@torch.inference_mode()
def measure_encoder(
    pipeline: PathUpPipeline,
    source: PixelSource,
    shape_HW: tuple[int, int],
    *,
    population: int = POPULATION,
    keys: int = EXACT_KEYS,
) -> NormStatistics:
    """The encoder's statistics for a whole image of ``shape_HW`` latent positions; as `measure_decoder`.

    All windows count the same: to know the whole image's moments, all its pixels would have to be made.
    """
    factor = pipeline.factor

    def piece(*area: int) -> torch.Tensor:
        return source(*(value * factor for value in area))

    areas = _sampled(*shape_HW, ENCODER_SIDE, ENCODER_WINDOWS, population)
    halo = attention_halo(pipeline.vae, encoder=True)
    run = _Run(pipeline.vae, pipeline.encode_pixels, piece, shape_HW, halo, keys)
    if len(areas) == 1:
        return _measure(run, areas)
    share = ENCODER_MARGIN / ENCODER_SIDE
    return _measure(run, areas, lambda x: int(share * x.shape[-1]))


@dataclass(frozen=True)
class _Run:
    """One direction of an autoencoder over one canvas: how it is run, and what it is run on."""

    vae: Any
    forward: Callable[[torch.Tensor], torch.Tensor]
    piece: Callable[[int, int, int, int], torch.Tensor]
    shape_HW: tuple[int, int]
    halo: int
    keys: int

    def key_tiles(self) -> Iterator[KeyTile]:
        """The tiles that keys are taken from: all positions, or an even sample."""
        height, width = self.shape_HW
        if height * width <= self.keys:
            side, halo = KEY_TILE, self.halo
            starts = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
        else:
            side, halo = min(KEY_WINDOW, height, width), min(self.halo, ENCODER_MARGIN)
            sampled = _spread(height, width, side, max(1, min(SAMPLED_KEYS, self.keys) // side**2))
            starts = [(top, left) for top, left, *_ in sampled]
        for top, left in starts:
            bottom, right = min(top + side, height), min(left + side, width)
            y, x = max(0, top - halo), max(0, left - halo)
            tile = self.piece(y, x, min(bottom + halo, height) - y, min(right + halo, width) - x)
            yield tile[None], top - y, left - x, bottom - y, right - x


def _measure(
    run: _Run,
    areas: list[Area],
    margin: Callable[[torch.Tensor], int] | None = None,
    weights: torch.Tensor | None = None,
) -> NormStatistics:
    statistics = NormStatistics()
    pieces = torch.stack([run.piece(*area) for area in areas])
    tiles = None if len(areas) == 1 else run.key_tiles
    with whole_batches(run.vae), measured_attention(run.vae, statistics, run.forward, tiles):
        return measure_norms(
            run.vae, lambda: run.forward(pieces), margin=margin, weights_B=weights, statistics=statistics
        )


class _NarrowingWindows:
    """Windows that lose their rim from block to block of the decoder, and what margin of them a layer leaves out."""

    def __init__(self, side: int) -> None:
        self._full = side == SIDES[0]  # on a canvas narrower than a window, windows are as wide as it: no rim to lose
        self.first = self._now = MARGINS[0] if self._full else 0

    def __call__(self, x: torch.Tensor) -> int:
        """Rows and columns at each rim of a layer's input that are left out."""
        return self._now

    def narrow(self, block: int, x: torch.Tensor) -> torch.Tensor:
        """The input of a block, with its rim cut."""
        if not self._full:
            return x
        at, scale = min(block, len(SIDES) - 1), 2**block
        cut = (x.shape[-1] - SIDES[at] * scale) // 2
        self._now = MARGINS[at] * scale
        return x[..., cut : x.shape[-2] - cut, cut : x.shape[-1] - cut]


def _sampled(height: int, width: int, side: int, count: int, population: int) -> list[Area]:
    """The areas to measure, all of one size; the whole when it is small enough."""
    if height * width <= population:
        return [(0, 0, height, width)]
    return _spread(height, width, min(side, height, width), count)


def _spread(height: int, width: int, side: int, count: int) -> list[Area]:
    """At most `count` square areas, one at a drawn place of each cell of an even grid, on a canvas of any shape.

    Drawn, since a tissue can be as regular as a grid; the same on every machine.
    """
    rows = min(max(1, round(math.sqrt(count * height / width))), count)
    columns = count // rows
    places = draws.numpy_generator(0, "measured windows").random((rows, columns, 2))
    tops = (np.arange(rows)[:, None] + places[..., 0]) / rows * (height - side)
    lefts = (np.arange(columns)[None] + places[..., 1]) / columns * (width - side)
    found = zip(tops.round().astype(int).flat, lefts.round().astype(int).flat, strict=True)
    return list(dict.fromkeys((int(top), int(left), side, side) for top, left in found))


def _calibrated(latents_CHW: Canvas, areas: list[Area], margin: int) -> torch.Tensor:
    """Weights of the windows, (B,), with which their moments come to those of the whole canvas.

    Of all weights whose sum is 1 and which match (but for `RIDGE`), those nearest to equal ones in squares:
    ``w = w_0 + A (A^T A + ridge)^-1 (t - A^T w_0)``, rows of A being the windows' moments and t the canvas's.
    """
    whole = _canvas_moments(latents_CHW)
    inner = [
        latents_CHW[:, top + margin : top + height - margin, left + margin : left + width - margin].cpu().double()
        for top, left, height, width in areas
    ]
    found = torch.stack([_moments(part) / part[0].numel() for part in inner])
    count = len(areas)
    spread = found.std(0).clamp_min(1e-6 + 1e-6 * found.abs().amax(0))  # a constant channel tells nothing
    A = torch.cat([(found - whole) / spread, torch.ones(count, 1, dtype=torch.float64)], 1)
    equal = torch.full((count,), 1 / count, dtype=torch.float64)
    rest = torch.zeros(A.shape[1], dtype=torch.float64)
    rest[-1] = 1
    rest -= A.T @ equal
    weights = equal + A @ torch.linalg.solve(A.T @ A / count + RIDGE * torch.eye(len(rest)), rest) / count
    weights = weights.clamp_min(LEAST_WEIGHT / count)
    return (weights / weights.sum()).float()


def _canvas_moments(latents_CHW: Canvas) -> torch.Tensor:
    channels, height, width = latents_CHW.shape
    total = torch.zeros(2 * channels, dtype=torch.float64)
    for top in range(0, height, MOMENT_ROWS):
        total += _moments(latents_CHW[:, top : top + MOMENT_ROWS, 0:width].cpu().double())
    return total / (height * width)


def _moments(part_CHW: torch.Tensor) -> torch.Tensor:
    return torch.cat([part_CHW.sum((1, 2)), part_CHW.square().sum((1, 2))])


class whole_batches:  # noqa: N801  a context manager
    """Diffusers' own slicing would take the pieces one by one, and its tiling would cut them; off within."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def __enter__(self) -> None:
        self._before = {name: getattr(self._vae, name, None) for name in ("use_slicing", "use_tiling")}
        for name, value in self._before.items():
            if value is not None:
                setattr(self._vae, name, False)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is not None:
                setattr(self._vae, name, value)
