"""From the canvas to pixels, in row bands and tile by tile, without a change of tone from tile to tile.

Each tile is taken with a halo as wide as the network sees, and only its core is kept; the statistics of group
normalisation, and the keys of self-attention where the autoencoder has it in its middle (Stable Diffusion's does), are
fixed for the whole canvas first (`pathup.sampling.measuring`). Bands are then those of one piece, whoever
decodes them and in whatever order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from pathup.sampling.canvas import Canvas
from pathup.sampling.encoding import encode_canvas
from pathup.sampling.footprint import LatentDecoder, tile_side
from pathup.sampling.measuring import POPULATION, PixelSource, measure_decoder, measure_encoder, whole_batches
from pathup.sampling.mid_attention import fixed_statistics
from pathup.sampling.norms import NormStatistics
from pathup.sampling.receptive import decoder_halo, encoder_halo, trimmed_decoder

if TYPE_CHECKING:
    from pathup.sampling.tracking import Progress

__all__ = [
    "BlankPixels",
    "NormStatistics",
    "PixelSource",
    "band_count",
    "decode_band",
    "decode_bands",
    "decode_image",
    "decoder_halo",
    "encode_canvas",
    "encoder_halo",
    "measure_decoder",
    "measure_encoder",
]


class BlankPixels(Protocol):
    """Where a canvas is plain background, and its colour there, 0 to 255 each."""

    rgb: tuple[int, int, int]

    def covers(self, top: int, left: int, bottom: int, right: int) -> bool:
        """Whether all latent positions of rows top to bottom and columns left to right are background."""


def band_count(height: int, tile_latent: int) -> int:
    """How many bands a canvas of `height` latent rows is decoded in."""
    return -(-height // tile_latent)


@torch.inference_mode()
def decode_band(
    pipeline: LatentDecoder,
    latents_CHW: Canvas,
    index: int,
    *,
    statistics: NormStatistics,
    tile_latent: int | None = None,
    halo: int | None = None,
    blank: BlankPixels | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Decode one row band of a canvas; bands may be decoded in any order and by any process.

    Memory: one tile's activations and one band of pixels, whatever the canvas.

    Parameters
    ----------
    pipeline
        The model.
    latents_CHW
        The canvas, x_0.
    index
        The band's number from the top, below `band_count`.
    statistics
        From `measure_decoder`, of this canvas.
    tile_latent, halo
        Side of a tile's core and width of its halo, in latent positions; unset: `tile_side`, `decoder_halo`.
    blank
        Tiles that lie in it wholly, halo and all, are not decoded but filled with its colour.
    progress
        Called as ``progress('decode', tiles done, tiles)``, where the bands above count as done.

    Returns
    -------
    numpy.ndarray
        uint8 RGB, (rows, W, 3); ``tile_latent * factor`` rows, fewer in the last band.
    """
    _, height, width = latents_CHW.shape
    factor, halo = pipeline.factor, decoder_halo(pipeline.vae) if halo is None else halo
    tile_latent = tile_side(pipeline) if tile_latent is None else tile_latent
    bands, lefts = band_count(height, tile_latent), range(0, width, tile_latent)
    if not 0 <= index < bands:
        raise IndexError(f"band {index} of {bands}")
    top, bottom = index * tile_latent, min((index + 1) * tile_latent, height)
    band = np.empty(((bottom - top) * factor, width * factor, 3), np.uint8)
    with whole_batches(pipeline.vae), fixed_statistics(pipeline.vae, statistics):
        for column, left in enumerate(lefts):
            right = min(left + tile_latent, width)
            part = band[:, left * factor : right * factor]
            y, x = max(0, top - halo), max(0, left - halo)
            y_end, x_end = min(bottom + halo, height), min(right + halo, width)
            if blank is not None and blank.covers(y, x, y_end, x_end):
                part[:] = blank.rgb
            else:
                margins = [top - y, y_end - bottom, left - x, x_end - right]
                with trimmed_decoder(pipeline.vae, margins):
                    pixels = pipeline.decode_latents(latents_CHW[:, y:y_end, x:x_end][None])[0]
                first, start = margins[0] * factor, margins[2] * factor
                part[:] = _as_uint8(pixels[:, first : first + part.shape[0], start : start + part.shape[1]])
            if progress is not None:
                progress("decode", index * len(lefts) + column + 1, bands * len(lefts))
    return band


def decode_bands(
    pipeline: LatentDecoder,
    latents_CHW: Canvas,
    *,
    statistics: NormStatistics | None = None,
    tile_latent: int | None = None,
    blank: BlankPixels | None = None,
    **settings: Any,
) -> Iterator[np.ndarray]:
    """Decode a canvas as row bands, from the top down: `decode_band` of each, with its settings.

    Without `statistics` they are measured first; a canvas that would be measured whole is decoded so, at once, since
    its statistics are then its own.
    """
    _, height, width = latents_CHW.shape
    tile_latent = tile_side(pipeline) if tile_latent is None else tile_latent
    if statistics is None and blank is None and height * width <= POPULATION:
        one = decode_band(
            pipeline, latents_CHW, 0, statistics=NormStatistics(), tile_latent=max(height, width), **settings
        )
        rows = tile_latent * pipeline.factor
        yield from (one[top : top + rows] for top in range(0, len(one), rows))
        return
    if statistics is None:
        statistics = measure_decoder(pipeline, latents_CHW)
    for index in range(band_count(height, tile_latent)):
        yield decode_band(
            pipeline, latents_CHW, index, statistics=statistics, tile_latent=tile_latent, blank=blank, **settings
        )


def decode_image(pipeline: LatentDecoder, latents_CHW: Canvas, **settings: Any) -> np.ndarray:
    """Decode a canvas to one uint8 RGB array (H, W, 3); settings as in `decode_bands`."""
    return np.concatenate(list(decode_bands(pipeline, latents_CHW, **settings)))


def _as_uint8(pixels_CHW: torch.Tensor) -> np.ndarray:
    scaled = (pixels_CHW.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.permute(1, 2, 0).cpu().numpy()
