"""Which class lies where on a large image: areas drawn in QuPath, on a background class or on empty glass."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely

from pathup.errors import PathUpError, unknown
from pathup.recipes.schema import folded
from pathup.tiles.annotations import RIM_PX, Annotation, polygons_of, read_areas

__all__ = ["GLASS", "Layout", "LayoutUnit", "plain_layout", "read_layout"]

GLASS = "glass"
"""Stands for a class where there is no tissue."""

LayoutUnit = Literal["px", "um"]

_AT_ONCE = 50_000
"""Boxes that are geometries at one time: some 300 bytes each."""

_VERTICES = 64
"""Areas of more vertices are cut up: a box then meets a short outline, wherever it lies."""


class Layout:
    """Which class lies where.

    All coordinates are pixels of the large image (the canvas), x to the right and y down, whatever the level that asks.

    Parameters
    ----------
    size_px
        Height and width.
    classes
        Labels of the model's classes, in its order.
    background
        What lies where there is no area: a label, or `GLASS`.
    areas
        Label (or `GLASS`) and outline of each area, valid and within the canvas; later ones lie on top of earlier ones.

    Attributes
    ----------
    labels : list of str
        The K classes that can be seen, in the model's order.
    has_glass : bool
        Whether any of the canvas is glass.
    fraction_glass : float
        Share of the canvas that is glass, 0 to 1.
    digest : str
        SHA-256 of what is laid out: size, background, and each area's label and outline.
    """

    def __init__(
        self, size_px: tuple[int, int], classes: Sequence[str], background: str, areas: Sequence[tuple[str, Any]] = ()
    ) -> None:
        self.size_px, self.background = size_px, background
        self.digest = _digest(size_px, background, areas)
        seen = [(label, area) for label, area in _visible(areas) if not label == background == GLASS]
        canvas = float(size_px[0] * size_px[1])
        sums: dict[str, float] = {}
        for label, area in seen:
            sums[label] = sums.get(label, 0.0) + area.area
        rest = canvas - sum(sums.values())
        sums[background] = sums.get(background, 0.0) + (rest if rest > _negligible(canvas) else 0.0)
        self.labels = [label for label in classes if sums.get(label, 0.0) > 0]
        self._class_areas = {label: sums[label] / canvas for label in self.labels}
        self.fraction_glass = sums.get(GLASS, 0.0) / canvas if GLASS not in classes else 0.0
        self.has_glass = self.fraction_glass > 0
        self._rest = self.labels.index(background) if background in self.labels and rest > _negligible(canvas) else None
        column = {label: index for index, label in enumerate(self.labels)}
        self._parts = _Parts([(column.get(label, len(column)), area) for label, area in seen])
        # tissue where the background is glass, glass where it is tissue
        self._on_glass = background not in classes
        self._border = _Border([area for label, area in seen if (label in column) == self._on_glass])

    def shares(self, boxes: np.ndarray) -> np.ndarray:
        """The share of each class in the tissue of each box, by the exact areas.

        Parameters
        ----------
        boxes
            (N, 4): top, left, bottom, right of each, canvas pixels. What reaches beyond the canvas counts for nothing.

        Returns
        -------
        numpy.ndarray
            (N, K) float32, in the order of `labels`. Rows sum to 1; a box in glass has zeros alone.

        Raises
        ------
        ValueError
            A box has no area on the canvas (nor is there one class everywhere).
        """
        if len(self.labels) == 1 and not self.has_glass:
            return np.ones((len(boxes), 1), np.float32)
        areas = self._areas(boxes)
        total = areas.sum(axis=1, keepdims=True)
        return np.divide(areas, total, out=np.zeros_like(areas), where=total > 0).astype(np.float32)

    def glass(self, boxes: np.ndarray) -> np.ndarray:
        """Whether each box, as `shares` takes them, lies wholly in glass: bool (N,)."""
        if not self.has_glass:
            return np.zeros(len(boxes), bool)
        return np.asarray(~self._areas(boxes).any(axis=1))

    def glass_mask(self, top: int, left: int, height: int, width: int, px: float) -> np.ndarray:
        """Which cells of a grid have their centre in glass.

        Parameters
        ----------
        top, left
            Row and column of the first cell, whose corner lies at ``(top px, left px)``.
        height, width
            Cells.
        px
            Canvas pixels of a cell's side.

        Returns
        -------
        numpy.ndarray
            bool (height, width). A cell has the same value in whatever grid it is asked for. A centre on an outline
            counts to what lies on its right or below.
        """
        if not self.has_glass:
            return np.zeros((height, width), bool)
        return self._border.inside(top, left, height, width, px) != self._on_glass

    def class_areas(self) -> dict[str, float]:
        """The share of the canvas that each class of `labels` has, 0 to 1; with `fraction_glass` they sum to 1."""
        return dict(self._class_areas)

    def _areas(self, boxes: np.ndarray) -> np.ndarray:
        """Square pixels of each class in each box, (N, K) float64; 0 where negligible."""
        boxes = np.clip(np.asarray(boxes, np.float64).reshape(-1, 4), 0, [*self.size_px, *self.size_px])
        whole = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        if not (whole > 0).all():
            raise ValueError(f"box {int(np.argmin(whole > 0))} has no area on a canvas of {self.size_px}")
        areas = np.empty((len(boxes), len(self.labels)))
        for first in range(0, len(boxes), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            found = self._parts.areas(boxes[some], len(self.labels) + 1)
            areas[some] = found[:, :-1]
            if self._rest is not None:
                areas[some, self._rest] += np.maximum(whole[some] - found.sum(axis=1), 0)
        areas[areas <= _negligible(whole)[:, None]] = 0
        return areas


def plain_layout(label: str, size_px: tuple[int, int]) -> Layout:
    """One class everywhere, within the canvas and beyond."""
    return Layout(size_px, [label], label)


def read_layout(
    path: Path,
    classes: Sequence[Mapping[str, str]],
    *,
    size_px: tuple[int, int],
    mpp: float,
    background: str,
    unit: LayoutUnit = "px",
) -> Layout:
    """Read a layout: a GeoJSON as QuPath exports it, each area with a class.

    Later areas lie on top of earlier ones. An area of the class `GLASS` (unless the model has a class of that name) is
    a hole in the tissue.

    Parameters
    ----------
    path
        The GeoJSON.
    classes
        The model's classes, ``label`` and ``name`` of each.
    size_px
        Height and width of the large image.
    mpp
        Its micrometres a pixel.
    background
        Label of the class of what the areas leave out, or `GLASS`.
    unit
        What the coordinates count: pixels of the large image, or micrometres.

    Raises
    ------
    PathUpError
        No GeoJSON, nothing in it, an area without a class or with one that the model lacks, one that is no area or that
        reaches beyond the canvas, an unknown background, or nothing but glass.
    """
    labels = [spec["label"] for spec in classes]
    known = [*classes]
    if folded(GLASS) not in {folded(name) for spec in classes for name in (spec["label"], spec["name"])}:
        known.append({"label": GLASS, "name": GLASS})
        background = GLASS if folded(background) == GLASS else background
    if background not in (names := [spec["label"] for spec in known]):
        raise unknown("label", background, names)
    read = read_areas(path, known, scale=1 / mpp if unit == "um" else 1.0)
    layout = Layout(size_px, labels, background, _fitted(read, path, size_px, mpp, unit))
    if not layout.labels:
        raise PathUpError(
            f"{path} leaves nothing but glass on the image of {size_px[1]} x {size_px[0]} px; give an area a class of "
            f"the model ({', '.join(labels)}), or name one for the background"
        )
    return layout


def _fitted(
    read: Sequence[Annotation], path: Path, size_px: tuple[int, int], mpp: float, unit: LayoutUnit
) -> list[tuple[str, Any]]:
    """Label and outline of each area, cut to the canvas by no more than a rim of `RIM_PX`."""
    height, width = size_px
    extent = shapely.total_bounds([area.outline for area in read])
    if not _fits(extent, size_px):
        left, top, right, bottom = extent
        if min(left, top) < -RIM_PX:
            mend = "move its outlines to begin at (0, 0)"
        else:
            mend = f"ask for a --size of {math.ceil(max(right, width))}x{math.ceil(max(bottom, height))} or more"
        if _fits(extent / mpp if unit == "px" else extent * mpp, size_px):
            mend += f", or read it with --layout-unit {'um' if unit == 'px' else 'px'}, which would fit"
        raise PathUpError(
            f"{path} spans ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f}) px, which does not fit on the image "
            f"of {width} x {height} px; {mend}"
        )
    fitted: list[tuple[str, Any]] = []
    for area in read:
        inside = polygons_of(area.outline.intersection(shapely.box(0, 0, width, height)))
        if not inside.area > 0:
            raise PathUpError(
                f"annotation {area.number} in {path} encloses no area of the image of {width} x {height} px; "
                "draw it again or remove it"
            )
        fitted.append((area.label, inside))
    return fitted


def _fits(extent: np.ndarray, size_px: tuple[int, int]) -> bool:
    return bool((extent[:2] >= -RIM_PX).all() and (extent[2:] <= np.asarray(size_px)[::-1] + RIM_PX).all())


def _digest(size_px: tuple[int, int], background: str, areas: Sequence[tuple[str, Any]]) -> str:
    header = {"size_px": list(size_px), "background": background, "labels": [label for label, _ in areas]}
    digest = hashlib.sha256(json.dumps(header).encode())
    for _, area in areas:
        # normalised: the same area counts the same, at whichever corner its outline begins
        digest.update(shapely.to_wkb(shapely.normalize(area), output_dimension=2, byte_order=1))
    return digest.hexdigest()


def _negligible(whole: Any) -> Any:
    """Square pixels that may be a rounding, where areas of together `whole` are compared."""
    return 1e-6 + 1e-12 * whole


def _visible(areas: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """What is seen of each area from above: disjoint, and without those that are covered."""
    outlines = np.asarray([area for _, area in areas], object)
    below, above = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    order = np.lexsort((above, below))
    covering = np.split(above[order], np.searchsorted(below[order], np.arange(1, len(areas))))
    seen = []
    for index, (label, area) in enumerate(areas):
        over = outlines[covering[index][covering[index] > index]]
        rest = polygons_of(area.difference(shapely.union_all(over))) if len(over) else area
        if rest.area > _negligible(0.0):
            seen.append((label, rest))
    return seen


class _Parts:
    """Disjoint areas, cut into small parts so that a box meets few vertices."""

    def __init__(self, areas: Sequence[tuple[int, Any]]) -> None:
        parts = [(column, part) for column, area in areas for part in _cut_up(area)]
        self._columns = np.asarray([column for column, _ in parts], np.intp)
        self._parts = np.asarray([part for _, part in parts], object)
        shapely.prepare(self._parts)
        self._tree = shapely.STRtree(self._parts)
        self._areas = shapely.area(self._parts)
        self._bounds = shapely.bounds(self._parts)

    def areas(self, boxes: np.ndarray, columns: int) -> np.ndarray:
        """Square pixels of each column's areas in each box (top, left, bottom, right), (N, columns) float64."""
        rectangles = shapely.box(boxes[:, 1], boxes[:, 0], boxes[:, 3], boxes[:, 2])
        box, part = self._tree.query(rectangles)
        bounds, (top, left, bottom, right) = self._bounds[part], boxes[box].T
        within = (bounds[:, 0] >= left) & (bounds[:, 1] >= top) & (bounds[:, 2] <= right) & (bounds[:, 3] <= bottom)
        shared = np.where(within, self._areas[part], 0.0)
        around = np.flatnonzero(~within)
        covered = shapely.covers(self._parts[part[around]], rectangles[box[around]])
        inner, crossed = around[covered], around[~covered]
        shared[inner] = ((bottom - top) * (right - left))[inner]
        shared[crossed] = shapely.area(shapely.intersection(self._parts[part[crossed]], rectangles[box[crossed]]))
        where = box * columns + self._columns[part]
        return np.bincount(where, shared, len(boxes) * columns).reshape(len(boxes), columns)


def _cut_up(area: Any) -> Iterator[Any]:
    """Halve an area across its longer side until its parts have few vertices."""
    waiting = [area]
    while waiting:
        part = waiting.pop()
        if part.area == 0:
            continue
        left, top, right, bottom = part.bounds
        if shapely.get_num_coordinates(part) <= _VERTICES or max(right - left, bottom - top) < 1:
            yield part
            continue
        x, y = (left + right) / 2, (top + bottom) / 2
        if right - left > bottom - top:
            waiting += _halves(part, (left, top, x, bottom), (x, top, right, bottom))
        else:
            waiting += _halves(part, (left, top, right, y), (left, y, right, bottom))


def _halves(part: Any, *sides: tuple[float, float, float, float]) -> list[Any]:
    """The part on either side; cut the quick way where that comes out right, which it isn't bound to."""
    halves = [shapely.clip_by_rect(part, *side) for side in sides]
    lost = abs(part.area - sum(half.area for half in halves))
    if lost > _negligible(part.area) or not all(half.is_valid for half in halves):
        halves = [part.intersection(shapely.box(*side)) for side in sides]
    return halves


class _Border:
    """The edges of disjoint areas, from top to bottom, to tell which points of a grid they enclose.

    A point is inside when an odd number of edges lie to its left on its row.
    """

    def __init__(self, areas: Sequence[Any]) -> None:
        points, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts(areas)), return_index=True)
        joined = ring[1:] == ring[:-1]
        starts, ends = points[:-1][joined], points[1:][joined]
        down = (starts[:, 1] < ends[:, 1])[:, None]
        upper, lower = np.where(down, starts, ends), np.where(down, ends, starts)
        order = np.argsort(upper[:, 1], kind="stable")
        order = order[upper[order, 1] < lower[order, 1]]
        self._upper, self._lower = upper[order], lower[order]
        self._lowest = np.maximum.accumulate(self._lower[:, 1])

    def inside(self, top: int, left: int, height: int, width: int, px: float) -> np.ndarray:
        """Whether the centre of each cell is in an area: bool (height, width)."""
        near = slice(
            int(np.searchsorted(self._lowest, top * px)), int(np.searchsorted(self._upper[:, 1], (top + height) * px))
        )
        (x, y), (x_end, y_end) = self._upper[near].T, self._lower[near].T
        first = np.maximum(_first_centre(y, px), top)
        count = np.maximum(np.minimum(_first_centre(y_end, px), top + height) - first, 0)
        edge = np.repeat(np.arange(len(count)), count)
        row = first[edge] + np.arange(len(edge)) - (np.cumsum(count) - count)[edge]
        slope = (x_end - x) / (y_end - y)
        crossing = x[edge] + ((row + 0.5) * px - y[edge]) * slope[edge]
        column = np.clip(_first_centre(crossing, px) - left, 0, width)
        crossings = np.bincount((row - top) * (width + 1) + column, minlength=height * (width + 1))
        # bytes, as parity is all that counts
        turns = crossings.astype(np.uint8).reshape(height, width + 1)[:, :width]
        return (np.cumsum(turns, axis=1, dtype=np.uint8) & 1).astype(bool)


def _first_centre(at: np.ndarray, px: float) -> np.ndarray:
    """The first cell of a row whose centre is not before `at`."""
    return np.ceil(at / px - 0.5).astype(np.int64)
