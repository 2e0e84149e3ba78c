"""Encoding and decoding where classes lie side by side, or on glass: each by the statistics of its own tissue.

The statistics of group normalisation that are right for a whole canvas of one class (`pathup.sampling.measuring`) are
wrong for one that shares its canvas with another stain, or with glass: it comes out softer or in another tone. So they
are measured for each class where it lies, and near a border both results are blended by the areas around each position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pathup.sampling.canvas import Canvas
from pathup.sampling.decoding import band_count, decode_band, decode_bands, measure_decoder
from pathup.sampling.device import reduced_precision
from pathup.sampling.encoding import encode_canvas
from pathup.sampling.footprint import tile_side
from pathup.sampling.layouts import Layout
from pathup.sampling.measuring import PixelSource, measure_encoder
from pathup.sampling.norms import NormStatistics

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline
    from pathup.sampling.tracking import Progress

__all__ = ["GLASS_RGB", "TissueDecoder", "TissueEncoder", "TissuePlaces"]

GLASS_RGB = (242, 242, 242)
"""Colour of empty glass: bright and without hue, as a white-balanced scanner shows it."""

REACH = 8
"""Latent positions: how far from a border both classes' results are blended, and glass is decoded."""

_NODE = 4
"""Latent positions between the places at which the areas around are asked for; between them they are interpolated."""

_PIECE, _PIECES, _CANDIDATES = 48, 16, 400
"""Side of the areas in which a class is measured, in latent positions; how many at most, and of how many."""


class TissuePlaces:
    """Where each class of a layout lies on a canvas.

    Parameters
    ----------
    layout
        Which class lies where, in pixels of the large image.
    shape_HW
        The canvas, in latent positions.
    px
        Pixels of the large image that a position spans.
    origin
        Row and column of the canvas's corner, in pixels of the large image.
    """

    def __init__(self, layout: Layout, shape_HW: tuple[int, int], px: float, origin: tuple[int, int] = (0, 0)) -> None:
        self.layout, self.shape_HW, self.px = layout, shape_HW, px
        self._origin = np.asarray(2 * origin, np.float64)

    @property
    def is_plain(self) -> bool:
        """Whether one class lies everywhere."""
        return len(self.layout.labels) == 1 and not self.layout.has_glass

    def boxes(self, areas: Any) -> np.ndarray:
        """Areas in latent positions (N, 4: top, left, bottom, right) as boxes of the layout."""
        return np.asarray(areas, np.float64).reshape(-1, 4) * self.px + self._origin

    def pieces(self, label: str) -> list[tuple[int, int, int, int]]:
        """Areas of one size (top, left, bottom, right) that hold as much of a class as there are, spread over it."""
        height, width = self.shape_HW
        side = min(_PIECE, height, width)
        starts = [(y, x) for y in _spread(height - side, side) for x in _spread(width - side, side)]
        areas = np.asarray([(y, x, y + side, x + side) for y, x in starts])
        boxes = self.boxes(areas)
        share = self._inside(boxes)[:, self.layout.labels.index(label)]
        likely = np.flatnonzero(share >= min(0.95, share.max()) - 1e-6)
        areas = areas[likely[np.unique(np.linspace(0, len(likely) - 1, min(_CANDIDATES, len(likely))).astype(int))]]
        share = self._inside(self.boxes(areas))[:, self.layout.labels.index(label)]
        held = share * (1 - self._bare_shares(areas))
        best = np.flatnonzero(held >= min(0.95, held.max()) - 1e-6)
        chosen = best[np.unique(np.linspace(0, len(best) - 1, min(_PIECES, len(best))).round().astype(int))]
        return [(int(top), int(left), int(bottom), int(right)) for top, left, bottom, right in areas[chosen]]

    def weights(self, rows: slice, columns: slice, scale: int) -> np.ndarray:
        """How much each class counts at each pixel of a part of the canvas, float32 (K, h, w).

        They sum to 1, or to 0 where only glass is near.

        Parameters
        ----------
        rows, columns
            The part, in latent positions.
        scale
            Pixels a position, each way: 1 for the latent itself.
        """
        first = (rows.start // _NODE, columns.start // _NODE)
        last = (-(-rows.stop // _NODE), -(-columns.stop // _NODE))
        ys, xs = (np.arange(a, b + 1) * _NODE for a, b in zip(first, last, strict=True))
        areas = [(y - REACH, x - REACH, y + REACH, x + REACH) for y in ys for x in xs]
        shares = self._inside(self.boxes(areas)).reshape(len(ys), len(xs), -1)
        nodes = torch.from_numpy(shares).permute(2, 0, 1)[None]
        size = ((len(ys) - 1) * _NODE * scale + 1, (len(xs) - 1) * _NODE * scale + 1)
        fine = torch.nn.functional.interpolate(nodes, size, mode="bilinear", align_corners=True)[0].numpy()
        y, x = (rows.start - first[0] * _NODE) * scale, (columns.start - first[1] * _NODE) * scale
        part = fine[:, y : y + (rows.stop - rows.start) * scale, x : x + (columns.stop - columns.start) * scale]
        total = part.sum(0)
        return np.divide(part, total, out=np.zeros_like(part), where=total > 0)

    def elsewhere(self, label: str) -> _Elsewhere:
        """Where a class has no weight at all."""
        return _Elsewhere(self, self.layout.labels.index(label))

    def _bare_shares(self, areas: np.ndarray) -> np.ndarray:
        """The share of glass of each area, to a sixty-fourth."""
        if not self.layout.has_glass:
            return np.zeros(len(areas))
        found = []
        for top, left, bottom, _ in areas:
            cell = (bottom - top) / 8
            cells = [
                (top + i * cell, left + j * cell, top + (i + 1) * cell, left + (j + 1) * cell)
                for i in range(8)
                for j in range(8)
            ]
            found.append(self.layout.glass(self.boxes(cells)).mean())
        return np.asarray(found)

    def _inside(self, boxes: np.ndarray) -> np.ndarray:
        """Shares of boxes, cut to the large image; those beyond it are asked for at its rim."""
        height, width = self.layout.size_px
        cut = boxes.copy()
        for low, high, limit in ((0, 2, height), (1, 3, width)):
            cut[:, low] = np.clip(cut[:, low], 0, limit - self.px)
            cut[:, high] = np.clip(cut[:, high], cut[:, low] + self.px, limit)
        return self.layout.shares(cut)


class _Elsewhere:
    """Tells decoding and encoding which tiles hold nothing of one class."""

    rgb = GLASS_RGB

    def __init__(self, places: TissuePlaces, column: int, latent_C: torch.Tensor | None = None) -> None:
        self._places, self._column = places, column
        self.latent_C = torch.zeros(1) if latent_C is None else latent_C

    def covers(self, top: int, left: int, bottom: int, right: int) -> bool:
        """Whether an area in latent positions, and what is blended with it, holds nothing of the class."""
        reach = REACH + _NODE
        area = [(top - reach, left - reach, bottom + reach, right + reach)]
        return not self._places._inside(self._places.boxes(area))[0, self._column] > 0


class TissueDecoder:
    """Decodes a canvas in bands, each class by its own statistics.

    Parameters
    ----------
    pipeline
        The model.
    latents_CHW
        The canvas, x_0.
    places
        Where each class lies on it.
    statistics
        By label; from `measured`, or as they were kept.
    """

    def __init__(
        self,
        pipeline: PathUpPipeline,
        latents_CHW: Canvas,
        places: TissuePlaces,
        statistics: dict[str, NormStatistics] | None = None,
    ) -> None:
        self._pipeline, self._latents, self._places = pipeline, latents_CHW, places
        self._statistics = statistics or {}
        self.tile = tile_side(pipeline)

    def __len__(self) -> int:
        return band_count(self._latents.shape[1], self.tile)

    def measure(self) -> None:
        """Measure the statistics of each class."""
        for label in self._places.layout.labels:
            canvas = self._latents if self._places.is_plain else _mosaic(self._latents, self._places.pieces(label))
            self._statistics[label] = measure_decoder(self._pipeline, canvas)

    def keep(self, folder: Path) -> None:
        """Write the statistics into a folder, where `find` finds them."""
        for label, statistics in self._statistics.items():
            statistics.save(folder / f"decoder_{label}.safetensors")

    def find(self, folder: Path) -> bool:
        """Read the statistics that were kept in a folder; False where they are not all there."""
        paths = {label: folder / f"decoder_{label}.safetensors" for label in self._places.layout.labels}
        if not all(path.is_file() for path in paths.values()):
            return False
        self._statistics = {label: NormStatistics.load(path) for label, path in paths.items()}
        return True

    def band(self, index: int) -> np.ndarray:
        """One band, uint8 RGB (rows, W, 3), from the statistics measured or found."""
        labels, places, latents = self._places.layout.labels, self._places, self._latents
        if places.is_plain:
            only = self._statistics[labels[0]]
            return decode_band(self._pipeline, latents, index, statistics=only, tile_latent=self.tile)
        top, bottom = index * self.tile, min((index + 1) * self.tile, latents.shape[1])
        scale = self._pipeline.factor
        weights = places.weights(slice(top, bottom), slice(0, latents.shape[2]), scale)
        # glass is not what the autoencoder makes of it: at the image's rim, zero padding shows on a plain background
        mixed = (1 - weights.sum(0))[..., None] * np.asarray(GLASS_RGB, np.float32)
        for label, weight_HW in zip(labels, weights, strict=True):
            if not weight_HW.any():
                continue
            own = decode_band(
                self._pipeline,
                latents,
                index,
                statistics=self._statistics[label],
                tile_latent=self.tile,
                blank=places.elsewhere(label),
            )
            mixed += own * weight_HW[..., None]
        return np.asarray(mixed.round().clip(0, 255).astype(np.uint8))

    def bands(self, progress: Progress | None = None) -> Iterator[np.ndarray]:
        """All bands from the top, measured first where that was not done."""
        if self._places.is_plain and not self._statistics:
            yield from decode_bands(self._pipeline, self._latents, progress=progress)
            return
        if not self._statistics:
            self.measure()
        for index in range(len(self)):
            yield self.band(index)
            if progress is not None:
                progress("decode", index + 1, len(self))


class TissueEncoder:
    """Encodes an image that is asked for area by area, each class by its own statistics.

    What it makes is noised before anything else: where the processor has bfloat16, encoding is done in it, in half the
    time, for an error of some thousandths of a latent's spread (in the image, a twentieth of a grey level).

    Parameters
    ----------
    pipeline
        The model.
    source
        Gives the pixels of an area.
    places
        Where each class lies.
    """

    def __init__(self, pipeline: PathUpPipeline, source: PixelSource, places: TissuePlaces) -> None:
        self._pipeline, self._source, self._places = pipeline, source, places

    def statistics(self, label: str) -> NormStatistics:
        """The encoder's statistics where a class lies."""
        if self._places.is_plain:
            with reduced_precision(self._pipeline.vae):
                return measure_encoder(self._pipeline, self._source, self._places.shape_HW)
        factor = self._pipeline.factor
        pieces = self._places.pieces(label)
        pixels = [self._source(*(factor * v for v in (t, x, b - t, r - x))) for t, x, b, r in pieces]
        image = _tiled(pixels)
        shape = (image.shape[1] // factor, image.shape[2] // factor)
        with reduced_precision(self._pipeline.vae):
            return measure_encoder(self._pipeline, lambda t, x, h, w: image[:, t : t + h, x : x + w], shape)

    def encode(self, take: Callable[[slice, slice, torch.Tensor], None], progress: Progress | None = None) -> None:
        """Encode all of it; `take` is given rows, columns and latents (C, rows, columns) of part after part.

        Where several classes meet, a part comes several times, each weighted by its class's share: `take` adds them up.
        """
        for place, label in enumerate(self._places.layout.labels):
            blank = None if self._places.is_plain else self._places.elsewhere(label)
            sink: Any = _Sink(take, None if self._places.is_plain else self._places, place)
            statistics = self.statistics(label)
            with reduced_precision(self._pipeline.vae):
                encode_canvas(
                    self._pipeline,
                    self._source,
                    self._places.shape_HW,
                    statistics=statistics,
                    out=sink,
                    blank=blank,
                    progress=progress,
                )


class _Sink:
    """Hands on what is written to it, weighted."""

    def __init__(
        self, take: Callable[[slice, slice, torch.Tensor], None], places: TissuePlaces | None, place: int
    ) -> None:
        self._take, self._places, self._place = take, places, place

    def __setitem__(self, at: tuple[slice, slice, slice], values: torch.Tensor) -> None:
        rows, columns = at[1], at[2]
        if self._places is not None:
            weight_HW = self._places.weights(rows, columns, 1)[self._place]
            if not weight_HW.any():
                return
            values = values * torch.from_numpy(weight_HW)
        self._take(rows, columns, values)


def _spread(room: int, side: int) -> list[int]:
    """Starts from 0 to `room`, half a side apart or less."""
    return sorted({round(at) for at in np.linspace(0, room, 1 + -(-2 * room // side))})


def _mosaic(canvas: Canvas, pieces: list[tuple[int, int, int, int]]) -> torch.Tensor:
    """Pieces of a canvas side by side, as a canvas of their own."""
    return _tiled([canvas[:, top:bottom, left:right] for top, left, bottom, right in pieces])


def _tiled(pieces: list[torch.Tensor]) -> torch.Tensor:
    """Pieces of one size as near to a square as they fill without a gap."""
    count = len(pieces)
    across = next(n for n in range(int(count**0.5), 0, -1) if count % n == 0)
    rows = [torch.cat(pieces[first : first + across], dim=-1) for first in range(0, count, across)]
    return torch.cat(rows, dim=-2)
