"""From pixels to the canvas, tile by tile, as `pathup.sampling.decoding` is the other way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from pathup.sampling.canvas import Canvas
from pathup.sampling.footprint import tile_side
from pathup.sampling.measuring import POPULATION, PixelSource, measure_encoder, whole_batches
from pathup.sampling.mid_attention import fixed_statistics
from pathup.sampling.norms import NormStatistics
from pathup.sampling.receptive import encoder_halo, trimmed_encoder

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline
    from pathup.sampling.tracking import Progress

__all__ = ["BlankLatents", "encode_canvas"]


class BlankLatents(Protocol):
    """Where a canvas is plain background, and what its latent is there."""

    latent_C: torch.Tensor

    def covers(self, top: int, left: int, bottom: int, right: int) -> bool:
        """Whether all latent positions of rows top to bottom and columns left to right are background."""


@torch.inference_mode()
def encode_canvas(
    pipeline: PathUpPipeline,
    source: PixelSource,
    shape_HW: tuple[int, int],
    *,
    statistics: NormStatistics | None = None,
    tile_latent: int | None = None,
    halo: int | None = None,
    out: Canvas | None = None,
    blank: BlankLatents | None = None,
    progress: Progress | None = None,
) -> Canvas:
    """Encode an image tile by tile; its pixels are asked of `source` as they are needed.

    Parameters
    ----------
    pipeline
        The model.
    source
        Gives the pixels of an area.
    shape_HW
        The canvas, in latent positions; the image has ``factor`` times as many pixels.
    statistics
        From `measure_encoder`; measured when not given.
    tile_latent, halo
        Side of a tile's core and width of its halo, in latent positions; unset: `tile_side`, `encoder_halo`.
    out
        Where the latents go, ``out[:, rows, columns] = tensor`` (C, rows, columns) float32; a new tensor when unset.
    blank
        Tiles that lie in it wholly, halo and all, are not encoded but filled with its latent.
    progress
        Called as ``progress('encode', tiles done, tiles)``.

    Returns
    -------
    Canvas
        `out`, or latents_CHW, a float32 tensor on the CPU.
    """
    height, width = shape_HW
    factor, halo = pipeline.factor, encoder_halo(pipeline.vae) if halo is None else halo
    whole = statistics is None and blank is None and height * width <= POPULATION
    if whole:  # it would be measured whole: that already is its encoding
        tile_latent, statistics = max(height, width), NormStatistics()
    elif statistics is None:
        statistics = measure_encoder(pipeline, source, shape_HW)
    tile_latent = tile_side(pipeline) if tile_latent is None else tile_latent
    canvas: Canvas = torch.empty(pipeline.latent_channels, height, width) if out is None else out
    tops, lefts = range(0, height, tile_latent), range(0, width, tile_latent)
    done = 0
    with whole_batches(pipeline.vae), fixed_statistics(pipeline.vae, statistics):
        for top in tops:
            for left in lefts:
                bottom, right = min(top + tile_latent, height), min(left + tile_latent, width)
                y, x = max(0, top - halo), max(0, left - halo)
                y_end, x_end = min(bottom + halo, height), min(right + halo, width)
                if blank is not None and blank.covers(y, x, y_end, x_end):
                    latents = blank.latent_C.float().cpu()[:, None, None].expand(-1, bottom - top, right - left)
                else:
                    pixels = source(y * factor, x * factor, (y_end - y) * factor, (x_end - x) * factor)
                    margins = [top - y, y_end - bottom, left - x, x_end - right]
                    with trimmed_encoder(pipeline.vae, margins):
                        encoded = pipeline.encode_pixels(pixels[None])[0].float().cpu()
                    first, start = margins[0], margins[2]
                    latents = encoded[:, first : first + bottom - top, start : start + right - left]
                canvas[:, top:bottom, left:right] = latents
                done += 1
                if progress is not None:
                    progress("encode", done, len(tops) * len(lefts))
    return canvas
