"""What an autoencoder needs to know of a whole canvas, from windows that are a small part of it.

A canvas is sampled by small windows, spread evenly. Two things make few of them do. The network sees zeros beyond a
window where the canvas goes on, and those bend the statistics of every layer: a margin of each window is computed
and left out. And each window counts by a weight, chosen so that the windows together have the latents' own means
and mean squares over the whole canvas, which cost next to nothing to know (calibration: Deville and Sarndal 1992).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pathup.sampling.mid_attention import KeyTile, measured_attention
from pathup.sampling.norms import NormStatistics, measure_norms
from pathup.sampling.receptive import attention_halo

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline

__all__ = ["POPULATION", "Canvas", "PixelSource", "measure_decoder", "measure_encoder", "whole_batches"]

POPULATION = 16_384
"""Latent positions whose joint statistics stand for the canvas; a canvas of no more is taken whole.
At a factor of 8 that is one megapixel, which Stable Diffusion's decoder takes in some 4 GB in float32."""

WINDOW, MARGIN = 16, 4
"""Side of a measured window, and how much of each rim is left out, in latent positions. Without the margin, decoded
tissue was off by 1.2 of 255 on average, and with it by 0.1 more than rounding; a wider one changes nothing."""

EXACT_KEYS = 65_536
"""A canvas of at most so many latent positions (2048 px at a factor of 8) is attended to in every position."""

SAMPLED_KEYS = 16_384
"""Positions that are attended to of a larger canvas, so that a pixel's cost doesn't grow with the canvas."""

KEY_TILE = 64
"""Side of the tiles in which the keys of every position are computed."""

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

    A canvas of at most `population` latent positions is measured in one piece, and the statistics are those of
    decoding it whole; from a larger one, windows spread evenly over it are measured jointly.

    Parameters
    ----------
    pipeline
        The model.
    latents_CHW
        The canvas.
    population
        Latent positions that are measured.
    keys
        A canvas of at most so many positions is attended to in every one; of a larger one, `SAMPLED_KEYS` are.
    """
    _, height, width = latents_CHW.shape
    halo = attention_halo(pipeline.vae, encoder=False)

    def piece(top: int, left: int, rows: int, columns: int) -> torch.Tensor:
        return latents_CHW[:, top : top + rows, left : left + columns]

    areas, margin = _sampled(height, width, population)
    weights = _calibrated(latents_CHW, areas, margin) if len(areas) > 1 else None
    return _measure(pipeline.vae, pipeline.decode_latents, piece, (height, width), areas, margin, weights, halo, keys)


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
    halo, factor = attention_halo(pipeline.vae, encoder=True), pipeline.factor

    def piece(*area: int) -> torch.Tensor:
        return source(*(value * factor for value in area))

    areas, margin = _sampled(*shape_HW, population)
    return _measure(pipeline.vae, pipeline.encode_pixels, piece, shape_HW, areas, margin, None, halo, keys)


def _measure(
    vae: Any,
    run: Callable[[torch.Tensor], torch.Tensor],
    piece: Callable[[int, int, int, int], torch.Tensor],
    shape_HW: tuple[int, int],
    areas: list[Area],
    margin: int,
    weights: torch.Tensor | None,
    halo: int,
    keys: int,
) -> NormStatistics:
    statistics = NormStatistics()

    def tiles() -> Iterator[KeyTile]:
        for top, left, bottom, right, around in _key_areas(*shape_HW, halo, keys):
            y, x = max(0, top - around), max(0, left - around)
            y_end, x_end = min(bottom + around, shape_HW[0]), min(right + around, shape_HW[1])
            yield piece(y, x, y_end - y, x_end - x)[None], top - y, left - x, bottom - y, right - x

    pieces = torch.stack([piece(*area) for area in areas])
    with whole_batches(vae), measured_attention(vae, statistics, run, tiles if len(areas) > 1 else None):
        return measure_norms(
            vae, lambda: run(pieces), margin=margin / areas[0][2], weights_B=weights, statistics=statistics
        )


def _sampled(height: int, width: int, population: int) -> tuple[list[Area], int]:
    """The areas to measure, of one size, and the margin within each; the whole when it is small enough."""
    if height * width <= population:
        return [(0, 0, height, width)], 0
    side = min(WINDOW, height, width)
    # the margin shrinks with the window on a canvas narrower than one
    return _spread(height, width, side, max(2, population // side**2)), side * MARGIN // WINDOW


def _spread(height: int, width: int, side: int, count: int) -> list[Area]:
    """Square areas spread evenly over a canvas of any shape, by the plastic number's sequence (Roberts 2018).

    Its n-th point is ``(1/2 + n / g, 1/2 + n / g^2) mod 1``, where ``g^3 = g + 1``; any first few of its points are
    spread evenly, on no grid that a regular tissue could beat with.
    """
    plastic = 1.324717957244746
    places = [((0.5 + n / plastic) % 1, (0.5 + n / plastic**2) % 1) for n in range(count)]
    found = [(round(y * (height - side)), round(x * (width - side)), side, side) for y, x in places]
    return list(dict.fromkeys(found))


def _key_areas(height: int, width: int, halo: int, keys: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(top, left, bottom, right, halo) of the tiles that keys are taken from: all positions, or an even sample."""
    if height * width <= keys:
        for top in range(0, height, KEY_TILE):
            for left in range(0, width, KEY_TILE):
                yield top, left, min(top + KEY_TILE, height), min(left + KEY_TILE, width), halo
        return
    side = min(WINDOW, height, width)
    for top, left, *_ in _spread(height, width, side, max(1, min(SAMPLED_KEYS, keys) // side**2)):
        yield top, left, top + side, left + side, min(halo, MARGIN)


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
