"""Labelled areas: their moments, their holes, and the choice among nested ones of those most like ellipses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

__all__ = ["Moments", "fill_holes", "moments", "most_elliptic"]

_LARGEST_HOLE_PX = 60
_GAIN = 0.03
"""How much more elliptic inner components must be to replace the outer one."""


@dataclass(frozen=True)
class Moments:
    """Area, centre and central second moments of each label from 1, in pixels; labels without pixels have area 0."""

    area: np.ndarray
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray

    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Standard deviations along the short and the long axis; an ellipse is 4 of them across."""
        half = (self.xx + self.yy) / 2
        spread = np.hypot((self.xx - self.yy) / 2, self.xy)
        return np.sqrt(np.maximum(half - spread, 1e-12)), np.sqrt(half + spread)

    def ellipticity(self) -> np.ndarray:
        """Area over that of the ellipse with the same second moments, ``A / (4 pi sqrt(det C))``: 1 for an ellipse.

        Notches, tails and holes lower it.
        """
        determinant = np.maximum(self.xx * self.yy - self.xy**2, 1e-6)
        return self.area / (4 * np.pi * np.sqrt(determinant))

    def each(self) -> list[Moments]:
        """One label each; its members are plain numbers."""
        rows = zip(*(values.tolist() for values in (self.area, self.x, self.y, self.xx, self.yy, self.xy)), strict=True)
        return [Moments(*row) for row in rows]

    def joined(self, other: Moments) -> Moments:
        """Moments of two areas together."""
        area = self.area + other.area
        p, q = self.area / area, other.area / area
        dx, dy = other.x - self.x, other.y - self.y
        return Moments(
            area,
            self.x + q * dx,
            self.y + q * dy,
            p * self.xx + q * other.xx + p * q * dx * dx,
            p * self.yy + q * other.yy + p * q * dy * dy,
            p * self.xy + q * other.xy + p * q * dx * dy,
        )


def moments(labels_HW: np.ndarray, count: int) -> Moments:
    """Moments of the labels 1 to `count`; a pixel counts as a square (1/12 along each axis)."""
    rows, columns = np.nonzero(labels_HW)
    own = labels_HW[rows, columns]

    def mean(values: np.ndarray | None) -> np.ndarray:
        total = np.bincount(own, values, count + 1)
        return total if values is None else total / np.maximum(area, 1)

    area = mean(None)
    x, y = mean(columns), mean(rows)
    dx, dy = columns - x[own], rows - y[own]
    return Moments(*(v[1:] for v in (area, x, y, mean(dx * dx) + 1 / 12, mean(dy * dy) + 1 / 12, mean(dx * dy))))


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """The mask with its small holes (at most 60 pixels) closed; what touches the border is no hole."""
    labels, count = ndimage.label(~mask)
    hole = np.bincount(labels.ravel(), minlength=count + 1) <= _LARGEST_HOLE_PX
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        hole[side] = False
    hole[0] = False
    return mask | hole[labels]


def most_elliptic(values: np.ndarray, outline: np.ndarray, levels: Sequence[float], least: float) -> np.ndarray:
    """Of the components of `outline` and of ``values > level``, those that look most like ellipses.

    Components at rising levels are nested. From the highest level down, a component is replaced by the ones within it
    where these are more elliptic (mean weighted by area, by `_GAIN`); what is kept in the end does not overlap.

    Parameters
    ----------
    values
        (H, W).
    outline
        bool (H, W); the lowest level.
    levels
        Rising.
    least
        Smallest area of a component, pixels.

    Returns
    -------
    numpy.ndarray
        (H, W) integers: 0 outside, 1 to n the kept components; numbers may be missing.
    """
    maps, shapes = [], []
    for mask in (outline, *(fill_holes(values > level) & outline for level in levels)):
        labels, count = ndimage.label(mask)
        maps.append(labels)
        shapes.append(moments(labels, count))
    inner: list[np.ndarray] = [np.zeros(len(shape.area) + 1, bool) for shape in shapes]
    best = shapes[-1].ellipticity()
    for k in range(len(maps) - 2, -1, -1):
        parent = np.zeros(len(best) + 1, int)
        inside = maps[k + 1] > 0
        parent[maps[k + 1][inside]] = maps[k][inside]
        area = shapes[k + 1].area
        valid = area >= least
        own = shapes[k].ellipticity()
        total = np.bincount(parent[1:][valid], area[valid], len(own) + 1)[1:]
        mean = np.bincount(parent[1:][valid], (area * best)[valid], len(own) + 1)[1:] / np.maximum(total, 1)
        inner[k][1:] = mean > own + _GAIN
        best = np.where(inner[k][1:], mean, own)
    kept, first = np.zeros(values.shape, int), 0
    free = outline
    for labels, shape, passes_on in zip(maps, shapes, inner, strict=True):
        chosen = np.concatenate([[False], shape.area >= least]) & ~passes_on
        at = chosen[labels] & free
        kept[at] = labels[at] + first
        free = free & passes_on[labels]
        first += len(shape.area)
    return kept
