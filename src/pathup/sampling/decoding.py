"""Between pixels and the canvas, tile by tile, without a change of tone from tile to tile.

Each tile is taken with a halo as wide as the network sees, and only its core is kept; the statistics of group
normalisation are fixed for the whole canvas first (`pathup.sampling.norms`). For an autoencoder of
convolutions alone the result is that of one piece. Self-attention in the middle of the autoencoder (Stable
Diffusion's has it) sees one tile with its halo instead of the whole canvas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pathup.sampling.norms import NormStatistics, fixed_norms, measure_norms

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline
    from pathup.sampling.tracking import Progress

__all__ = [
    "decode_bands",
    "decode_image",
    "decoder_halo",
    "encode_canvas",
    "encoder_halo",
    "measure_decoder",
    "measure_encoder",
]

TILE_LATENT = 64
"""Side of a tile's core, in latent positions: with a usual halo a tile is about twice that area."""

POPULATION = 16_384
"""Latent positions whose joint statistics stand for the canvas; a canvas of no more is measured whole.
At a factor of 8 that is one megapixel, which Stable Diffusion's decoder takes in some 4 GB in float32."""

POPULATION_WINDOW = 32
"""Side of the pieces that are measured of a larger canvas: many small ones see more of it than a few large."""

FALLBACK_HALO = 16
"""Halo in latent positions for an autoencoder whose layout is not `AutoencoderKL`'s."""

PixelSource = Callable[[int, int, int, int], torch.Tensor]
"""``source(top, left, height, width)`` gives pixels (3, height, width) in [-1, 1]."""


def decoder_halo(vae: Any) -> int:
    """How far, in latent positions, a decoded pixel depends on the latent: the radius of the convolutions.

    Each 3 x 3 convolution reaches one position further at its own resolution; the sum is rounded up, with one
    position to spare for the nearest-neighbour upsampling.
    """
    layers, blocks = _layout(vae)
    if not blocks:
        return FALLBACK_HALO
    radius = 1.0 + 4.0  # conv_in, and two residual blocks of two convolutions in the middle
    for block in range(blocks):
        scale = 2**block
        radius += 2 * (layers + 1) / scale
        radius += 1 / (2 * scale) if block < blocks - 1 else 1 / scale  # upsampling's convolution, or conv_out
    return math.ceil(radius) + 1


def encoder_halo(vae: Any) -> int:
    """How far, in latent positions, a latent depends on the pixels; counted as in `decoder_halo`."""
    layers, blocks = _layout(vae)
    if not blocks:
        return FALLBACK_HALO
    factor = 2 ** (blocks - 1)
    radius_px = 1.0
    for block in range(blocks):
        step = 2**block
        radius_px += 2 * layers * step + (2 * step if block < blocks - 1 else 0)
    return math.ceil(radius_px / factor + 4 + 1) + 1


@torch.inference_mode()
def measure_decoder(
    pipeline: PathUpPipeline, latents_CHW: torch.Tensor, *, population: int = POPULATION
) -> NormStatistics:
    """The decoder's normalisation statistics for a whole canvas.

    A canvas of at most `population` latent positions is measured in one piece, and the statistics are those of
    decoding it whole; from a larger one, windows spread evenly over it are measured jointly.
    """
    areas = _spread(latents_CHW.shape[1], latents_CHW.shape[2], _window(pipeline), population)
    pieces = [latents_CHW[:, top : top + height, left : left + width] for top, left, height, width in areas]
    with _whole_batches(pipeline.vae):
        return measure_norms(pipeline.vae, lambda: pipeline.decode_latents(torch.stack(pieces)))


@torch.inference_mode()
def decode_bands(
    pipeline: PathUpPipeline,
    latents_CHW: torch.Tensor,
    *,
    statistics: NormStatistics | None = None,
    tile_latent: int = TILE_LATENT,
    halo: int | None = None,
    progress: Progress | None = None,
) -> Iterator[np.ndarray]:
    """Decode a canvas as row bands, from the top down.

    Memory: one tile's activations and one band of pixels, whatever the canvas.

    Parameters
    ----------
    pipeline
        The model.
    latents_CHW
        The canvas, x_0.
    statistics
        From `measure_decoder`; measured when not given.
    tile_latent, halo
        Side of a tile's core and width of its halo, in latent positions; the halo is `decoder_halo` when unset.
    progress
        Called as ``progress('decode', tiles done, tiles)``.

    Yields
    ------
    numpy.ndarray
        uint8 RGB, (rows, W, 3); ``tile_latent * factor`` rows, fewer in the last band.
    """
    _, height, width = latents_CHW.shape
    factor, halo = pipeline.factor, decoder_halo(pipeline.vae) if halo is None else halo
    if statistics is None:
        statistics = measure_decoder(pipeline, latents_CHW)
    tops, lefts = range(0, height, tile_latent), range(0, width, tile_latent)
    done = 0
    for top in tops:
        rows = min(tile_latent, height - top)
        band = np.empty((rows * factor, width * factor, 3), np.uint8)
        for left in lefts:
            columns = min(tile_latent, width - left)
            y, x = max(0, top - halo), max(0, left - halo)
            tile = latents_CHW[None, :, y : top + rows + halo, x : left + columns + halo]
            with fixed_norms(pipeline.vae, statistics):
                pixels = pipeline.decode_latents(tile)[0]
            core = pixels[
                :,
                (top - y) * factor : (top - y + rows) * factor,
                (left - x) * factor : (left - x + columns) * factor,
            ]
            band[:, left * factor : (left + columns) * factor] = _as_uint8(core)
            done += 1
            if progress is not None:
                progress("decode", done, len(tops) * len(lefts))
        yield band


def decode_image(pipeline: PathUpPipeline, latents_CHW: torch.Tensor, **settings: Any) -> np.ndarray:
    """Decode a canvas to one uint8 RGB array (H, W, 3); settings as in `decode_bands`."""
    return np.concatenate(list(decode_bands(pipeline, latents_CHW, **settings)))


@torch.inference_mode()
def measure_encoder(
    pipeline: PathUpPipeline, source: PixelSource, shape_HW: tuple[int, int], *, population: int = POPULATION
) -> NormStatistics:
    """The encoder's normalisation statistics for a whole image of ``shape_HW`` latent positions."""
    factor = pipeline.factor
    pieces = [source(*(value * factor for value in area)) for area in _spread(*shape_HW, _window(pipeline), population)]
    with _whole_batches(pipeline.vae):
        return measure_norms(pipeline.vae, lambda: pipeline.encode_pixels(torch.stack(pieces)))


@torch.inference_mode()
def encode_canvas(
    pipeline: PathUpPipeline,
    source: PixelSource,
    shape_HW: tuple[int, int],
    *,
    statistics: NormStatistics | None = None,
    tile_latent: int = TILE_LATENT,
    halo: int | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Encode an image tile by tile; its pixels are asked of `source` as they are needed.

    Parameters
    ----------
    pipeline
        The model.
    source
        Gives the pixels of an area.
    shape_HW
        The canvas, in latent positions; the image has ``factor`` times as many pixels.
    statistics, tile_latent, halo, progress
        As in `decode_bands`; progress is called as ``progress('encode', tiles done, tiles)``.

    Returns
    -------
    torch.Tensor
        latents_CHW, float32 on the CPU.
    """
    height, width = shape_HW
    factor, halo = pipeline.factor, encoder_halo(pipeline.vae) if halo is None else halo
    if statistics is None:
        statistics = measure_encoder(pipeline, source, shape_HW)
    canvas = torch.empty(pipeline.latent_channels, height, width)
    tops, lefts = range(0, height, tile_latent), range(0, width, tile_latent)
    done = 0
    for top in tops:
        for left in lefts:
            bottom, right = min(top + tile_latent, height), min(left + tile_latent, width)
            y, x = max(0, top - halo), max(0, left - halo)
            y_end, x_end = min(bottom + halo, height), min(right + halo, width)
            pixels = source(y * factor, x * factor, (y_end - y) * factor, (x_end - x) * factor)
            with fixed_norms(pipeline.vae, statistics):
                latents = pipeline.encode_pixels(pixels[None])[0].float().cpu()
            canvas[:, top:bottom, left:right] = latents[:, top - y : bottom - y, left - x : right - x]
            done += 1
            if progress is not None:
                progress("encode", done, len(tops) * len(lefts))
    return canvas


def _as_uint8(pixels_CHW: torch.Tensor) -> np.ndarray:
    scaled = (pixels_CHW.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.permute(1, 2, 0).cpu().numpy()


def _layout(vae: Any) -> tuple[int, int]:
    """Layers a block and number of blocks; (0, 0) when its layout is not `AutoencoderKL`'s."""
    known = all(name.endswith("Block2D") for name in vae.config.get("up_block_types", ["?"]))
    return (int(vae.config.layers_per_block), len(vae.config.block_out_channels)) if known else (0, 0)


def _window(pipeline: PathUpPipeline) -> int:
    return min(int(pipeline.config.tile_px) // pipeline.factor, POPULATION_WINDOW)


def _spread(height: int, width: int, window: int, population: int) -> list[tuple[int, int, int, int]]:
    """Areas (top, left, height, width) of equal size, spread evenly; the whole when it is small enough."""
    if height * width <= population:
        return [(0, 0, height, width)]
    window = min(window, height, width)
    count = max(1, population // window**2)
    rows = min(max(1, round(math.sqrt(count * height / width))), count)
    columns = max(1, count // rows)
    tops = np.linspace(0, height - window, rows).round().astype(int)
    lefts = np.linspace(0, width - window, columns).round().astype(int)
    return [(int(top), int(left), window, window) for top in tops for left in lefts]


class _whole_batches:  # noqa: N801  a context manager
    """Diffusers' own slicing would take the pieces one by one, and its tiling would cut them; off while measuring."""

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
