"""What an autoencoder needs to know of a whole canvas, from windows that are a small part of it.

A canvas is sampled by small windows, spread evenly. Two things make few of them do. The network sees zeros beyond a
window where the canvas goes on, and those bend the statistics of every layer: a margin of each window is computed
and left out. And each window counts by a weight, chosen so that the windows together have the latents' own means
and mean squares over the whole canvas, which cost next to nothing to know (calibration: Deville and Sarndal 1992).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention

from pathup import draws
from pathup.sampling.canvas import Canvas
from pathup.sampling.device import reduced_precision
from pathup.sampling.footprint import Autoencoding, LatentDecoder, bytes_a_position
from pathup.sampling.mid_attention import KeyTile, measured_attention
from pathup.sampling.norms import NormStatistics, measure_norms
from pathup.sampling.receptive import attention_halo, changed_block_inputs

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline

__all__ = ["POPULATION", "PixelSource", "measure_decoder", "measure_encoder", "whole_batches"]

POPULATION = 16_384
"""A canvas of at most so many latent positions is taken whole.
At a factor of 8 that is one megapixel, which Stable Diffusion's decoder takes in some 4 GB in float32."""

WHOLE_BYTES = 5 * 2**30
"""A canvas whose decoding at once takes no more memory is measured whole, up to `EXACT_KEYS` positions, where the
decoder has attention: its pixels have a wider range than those of convolutions alone, so sampling shows more."""

WINDOWS, ENCODER_WINDOWS = 128, 64
"""How many windows stand for a larger canvas: some 4 % of the work of decoding 2048 px at a factor of 4. The encoder
makes latents that noise is put on; it needs less."""

CORE, ENCODER_CORE = 6, 8
"""Side of the part of a window that counts, in latent positions."""

MARGINS, ENCODER_MARGIN = (3, 2, 1), 4
"""What is computed around it and left out, in latent positions: at the latent's own resolution, at twice that and at
all higher, since the layers with the most pixels see the least beside them. The encoder's largest layers come first."""

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


@torch.inference_mode()
def measure_decoder(
    pipeline: LatentDecoder, latents_CHW: Canvas, *, population: int | None = None, keys: int = EXACT_KEYS
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
        it whole; from a larger one, `WINDOWS` windows spread evenly over it are measured jointly. Unset: `POPULATION`,
        or as many as fit `WHOLE_BYTES` where the decoder has attention.
    keys
        A canvas of at most so many positions is attended to in every one; of a larger one, `SAMPLED_KEYS` are.
    """
    _, height, width = latents_CHW.shape
    population = _affordable(pipeline) if population is None else population

    def piece(top: int, left: int, rows: int, columns: int) -> torch.Tensor:
        return latents_CHW[:, top : top + rows, left : left + columns]

    halo = attention_halo(pipeline.vae, encoder=False)
    run = _Run(pipeline.vae, pipeline.decode_latents, piece, (height, width), halo, keys)
    if height * width <= population:
        return _measure(run, None)
    windows = _Windows(height, width, CORE, MARGINS, WINDOWS)
    coarse = nullcontext() if _attends(pipeline) else reduced_precision(pipeline.vae)
    with coarse, changed_block_inputs(pipeline.vae, windows.narrow):
        return _measure(run, windows, _calibrated(latents_CHW, windows.cores, windows.core))


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

    halo = attention_halo(pipeline.vae, encoder=True)
    run = _Run(pipeline.vae, pipeline.encode_pixels, piece, shape_HW, halo, keys)
    whole = shape_HW[0] * shape_HW[1] <= population
    return _measure(run, None if whole else _Windows(*shape_HW, ENCODER_CORE, (ENCODER_MARGIN,), ENCODER_WINDOWS))


def _affordable(pipeline: Autoencoding) -> int:
    """Positions up to which a canvas is measured whole."""
    if not _attends(pipeline):
        return POPULATION
    return max(POPULATION, min(EXACT_KEYS, WHOLE_BYTES // bytes_a_position(pipeline)))


def _attends(pipeline: Autoencoding) -> bool:
    """Whether the decoder has attention."""
    return any(isinstance(part, Attention) for part in pipeline.vae.decoder.modules())


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
            starts = _spread(height, width, side, max(1, min(SAMPLED_KEYS, self.keys) // side**2))
        for top, left in starts:
            bottom, right = min(top + side, height), min(left + side, width)
            y, x = max(0, top - halo), max(0, left - halo)
            tile = self.piece(y, x, min(bottom + halo, height) - y, min(right + halo, width) - x)
            yield tile[None], top - y, left - x, bottom - y, right - x


def _measure(run: _Run, windows: _Windows | None, weights: torch.Tensor | None = None) -> NormStatistics:
    statistics = NormStatistics()
    areas: Iterable[Area] = [(0, 0, *run.shape_HW)] if windows is None else windows.areas()
    pieces = torch.stack([run.piece(*area) for area in areas])
    with (
        whole_batches(run.vae),
        measured_attention(run.vae, statistics, run.forward, run.key_tiles if windows else None),
    ):
        return measure_norms(
            run.vae,
            lambda: run.forward(pieces),
            counted=windows.counted if windows else None,
            weights_B=weights,
            statistics=statistics,
        )


class _Windows:
    """Windows of a canvas, one batch, of which a core counts; their rim becomes narrower from block to block.

    At the canvas's rim a window ends there, its core too: the zeros beyond are what the whole canvas sees.

    Parameters
    ----------
    height, width
        The canvas.
    core
        Side of a core.
    margins
        Width of the rim by block; the last holds for all further blocks.
    count
        About how many windows.
    """

    def __init__(self, height: int, width: int, core: int, margins: tuple[int, ...], count: int) -> None:
        self.core = min(core, height, width)
        self.cores = _spread(height, width, self.core, count)
        self._limits, self._margins = (height, width), margins
        self._side, self._starts = self._rims(0)

    def _rims(self, block: int) -> tuple[int, list[tuple[int, int]]]:
        margin = self._margins[min(block, len(self._margins) - 1)]
        side = min(self.core + 2 * margin, *self._limits)
        most = [limit - side for limit in self._limits]
        return side, [
            (min(max(0, top - margin), most[0]), min(max(0, left - margin), most[1])) for top, left in self.cores
        ]

    def areas(self) -> Iterator[Area]:
        """The windows as the network is given them."""
        return ((top, left, self._side, self._side) for top, left in self._starts)

    def counted(self, x: torch.Tensor) -> torch.Tensor:
        """The cores' part of a layer's input (B, C, H, W)."""
        return self._cut(x, self.cores, self.core)

    def narrow(self, block: int, x: torch.Tensor) -> torch.Tensor:
        """A block's input, less what no longer counts nor is needed around it."""
        side, starts = self._rims(block)
        x = self._cut(x, starts, side)
        self._side, self._starts = side, starts
        return x

    def _cut(self, x: torch.Tensor, starts: list[tuple[int, int]], side: int) -> torch.Tensor:
        scale = x.shape[-1] // self._side
        offsets = [
            ((top - y) * scale, (left - x0) * scale) for (top, left), (y, x0) in zip(starts, self._starts, strict=True)
        ]
        size = side * scale
        return torch.stack([one[:, y : y + size, x0 : x0 + size] for one, (y, x0) in zip(x, offsets, strict=True)])


def _spread(height: int, width: int, side: int, count: int) -> list[tuple[int, int]]:
    """Top and left of at most `count` square cells of a canvas, one drawn from each part of an even grid.

    The cells are those of a partition, so that the canvas's rim is met as often as the rest. Drawn, since a tissue
    can be as regular as a grid; the same on every machine.
    """
    rows = min(max(1, round(math.sqrt(count * height / width))), count)
    columns = count // rows
    places = draws.numpy_generator(0, "measured windows").random((rows, columns, 2))
    tops = (np.arange(rows)[:, None] + places[..., 0]) / rows * -(-height // side)
    lefts = (np.arange(columns)[None] + places[..., 1]) / columns * -(-width // side)
    cells = dict.fromkeys(zip(tops.astype(int).flat, lefts.astype(int).flat, strict=True))
    return [(min(int(top) * side, height - side), min(int(left) * side, width - side)) for top, left in cells]


def _calibrated(latents_CHW: Canvas, cores: list[tuple[int, int]], side: int) -> torch.Tensor:
    """Weights of the windows by their cores, (B,), with which their moments come to those of the whole canvas.

    Of all weights whose sum is 1 and which match (but for `RIDGE`), those nearest to equal ones in squares:
    ``w = w_0 + A (A^T A + ridge)^-1 (t - A^T w_0)``, rows of A being the windows' moments and t the canvas's.
    """
    whole = _canvas_moments(latents_CHW)
    inner = [latents_CHW[:, top : top + side, left : left + side].cpu().double() for top, left in cores]
    found = torch.stack([_moments(part) / side**2 for part in inner])
    count = len(cores)
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
