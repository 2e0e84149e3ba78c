"""Landmarks of tissue, by which a part of a region is known again: a field that was cut out of it and saved anew.

Corners of the grey image at 2 micrometres a pixel, each with the 256 comparisons of grey levels around it that ORB
makes along the corner's own direction (Rublee et al. 2011). Two images hold the same tissue where enough landmarks of
the one have their like in the other, and all of these agree on one shift, turn and scale. They are no picture: from
signs of differences at a few hundred points nobody sees tissue.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

from pathup.slides.reader import SlideReader

__all__ = ["AGREEING", "agreeing", "check_landmarks", "region_landmarks"]

LANDMARK_MPP = 2.0
"""Micrometres a pixel. ORB looks at up to 2.5 times as much, in six octaves of 1.2."""

BLOCK_PX = 1024
"""Regions larger than this are read in blocks."""

CELL_PX, PER_CELL = 128, 16
"""The strongest corners are kept of every square of that side, so that every part of a region has some."""

CANDIDATES = 4000
"""Corners of a block, from which the strongest are chosen."""

LEAST_CONTRAST = 20.0
"""Grey levels between the 2nd and the 98th percentile; noise of less contrast gives no corners."""

MOST_DIFFERING, RATIO = 64, 0.9
"""Of 256 comparisons, how many may differ; and the share of what differs to the second nearest that is left to the
nearest (Lowe 2004)."""

AT_ONCE = 512
"""Landmarks that are compared with an image's at once: what that takes stays in the caches."""

TOLERANCE_PX = 4.0
"""How far a landmark may lie from where the others say."""

AGREEING = 6
"""Landmarks that must agree. Of 155 fields of 1 mm from seven slides no two had more than 4; of a quarter of each,
turned, flipped or not, shrunk to as little as half its pixels and saved as JPEG at quality 60, 153 had as many, and of
a seventh of each 143 (`benchmarks/landmarks.py`)."""

_ROW = np.dtype([("x", "<u2"), ("y", "<u2"), ("descriptor", "u1", 32)])


def region_landmarks(reader: SlideReader, box: tuple[int, int, int, int], mpp: tuple[float, float]) -> tuple[str, str]:
    """The landmarks of a rectangle of a slide, and those of its mirror image, in base64.

    Parameters
    ----------
    reader
        Of the file.
    box
        x, y, width, height in level-0 pixels.
    mpp
        Micrometres a level-0 pixel in x and y.

    Returns
    -------
    tuple of str
        Empty where the rectangle is blank or too small for a landmark (about 80 micrometres).

    Raises
    ------
    PathUpError
        The rectangle lies outside the image, or the file is damaged.
    """
    x, y, width, height = box
    wide, high = (max(1, round(side * scale / LANDMARK_MPP)) for side, scale in zip((width, height), mpp, strict=True))
    across, down = math.ceil(wide / BLOCK_PX), math.ceil(high / BLOCK_PX)
    columns, rows = np.linspace(0, width, across + 1).astype(int), np.linspace(0, height, down + 1).astype(int)
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for left, right in pairwise(columns):
        for top, bottom in pairwise(rows):
            size = (max(1, round((right - left) * wide / width)), max(1, round((bottom - top) * high / height)))
            field = (int(right - left), int(bottom - top))
            grey = _stretched(reader.glance(x + int(left), y + int(top), field, size))
            corner = (round(left * wide / width), round(top * high / height))
            found[0].append(_landmarks(grey, corner))
            found[1].append(_landmarks(grey[:, ::-1], (wide - corner[0] - size[0], corner[1])))
    plain, mirrored = (base64.b64encode(np.concatenate(parts).tobytes()).decode() for parts in found)
    return plain, mirrored


def agreeing(ones: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """How many landmarks of each other agree on where it lies in each one, (len(ones), len(others)); at most one place.

    Parameters
    ----------
    ones, others
        Landmarks as `region_landmarks` gives them.
    """
    found = np.zeros((len(ones), len(others)), int)
    rows = [_rows(other) for other in others]
    owners = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    if not len(owners):
        return found
    stacked = np.concatenate(rows)
    for place, one in enumerate(map(_rows, ones)):
        if len(one) < AGREEING:
            continue
        there, here = _likes(stacked, one)
        for owner, count in Counter(owners[there].tolist()).items():
            if count >= AGREEING:
                own = owners[there] == owner
                found[place, owner] = _on_one_place(stacked[there[own]], one[here[own]])
    return found


def _likes(rows: np.ndarray, one: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of landmarks, those that have their like in an image, and the places there."""
    theirs = np.ascontiguousarray(one["descriptor"]).view(np.uint64)
    found, likes = [], []
    for first in range(0, len(rows), AT_ONCE):
        words = np.ascontiguousarray(rows["descriptor"][first : first + AT_ONCE]).view(np.uint64)
        differing = np.zeros((len(words), len(theirs)), np.uint16)
        for word in range(words.shape[1]):
            differing += np.bitwise_count(words[:, None, word] ^ theirs[None, :, word])
        near = np.flatnonzero((differing <= MOST_DIFFERING).any(1))  # few: the rest need not be ordered
        order = np.argpartition(differing[near], 1, axis=1)[:, :2]
        two = np.take_along_axis(differing[near], order, 1)
        nearest, second = order[np.arange(len(near)), two.argmin(1)], two.max(1)
        kept = two.min(1) < RATIO * second
        found.append(first + near[kept])
        likes.append(nearest[kept])
    return np.concatenate(found), np.concatenate(likes)


def check_landmarks(texts: Sequence[str]) -> None:
    """Check that texts are landmarks.

    Raises
    ------
    ValueError
        One is none.
    """
    for text in texts:
        _rows(text)


def _on_one_place(ones: np.ndarray, others: np.ndarray) -> int:
    """Of pairs of landmarks, how many agree on one shift, turn and scale; those at one spot count once."""
    here, there = (np.stack([side["x"], side["y"]], 1).astype(np.float32) for side in (ones, others))
    matrix, agree = cv2.estimateAffinePartial2D(here, there, method=cv2.RANSAC, ransacReprojThreshold=TOLERANCE_PX)
    if matrix is None:
        return 0
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    if not 1 / 3 < scale < 3:
        return 0
    inside = agree[:, 0] == 1
    spots = [{tuple(spot) for spot in np.rint(side[inside] / TOLERANCE_PX).astype(int)} for side in (here, there)]
    return min(map(len, spots))


def _stretched(pixels_HWC: np.ndarray) -> np.ndarray:
    """Grey levels (ITU-R BT.601) stretched to the whole range, uint8 (H, W)."""
    grey = cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2GRAY)
    low, high = np.percentile(grey[::2, ::2], [2, 98])
    levels = np.clip((np.arange(256) - low) / max(high - low, LEAST_CONTRAST), 0, 1)
    return np.asarray(cv2.LUT(grey, np.rint(255 * levels).astype(np.uint8)))


def _landmarks(grey_HW: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
    """The landmarks of a block whose upper left corner lies there."""
    detector = cv2.ORB.create(nfeatures=CANDIDATES, scaleFactor=1.2, nlevels=6, edgeThreshold=19, fastThreshold=15)
    points, descriptors = detector.detectAndCompute(np.ascontiguousarray(grey_HW), None)
    if not points:
        return np.zeros(0, _ROW)
    order = sorted(range(len(points)), key=lambda place: (-points[place].response, points[place].pt))
    taken: Counter[tuple[int, int]] = Counter()
    kept = []
    for place in order:
        x, y = points[place].pt
        cell = (int(x // CELL_PX), int(y // CELL_PX))
        if taken[cell] < PER_CELL:
            taken[cell] += 1
            kept.append(place)
    found = np.zeros(len(kept), _ROW)
    found["x"] = [min(65535, round(points[place].pt[0]) + corner[0]) for place in kept]
    found["y"] = [min(65535, round(points[place].pt[1]) + corner[1]) for place in kept]
    found["descriptor"] = descriptors[kept]
    return found


def _rows(text: str) -> np.ndarray:
    """Landmarks of their text.

    Raises
    ------
    ValueError
        It is none.
    """
    return np.frombuffer(base64.b64decode(text, validate=True), _ROW)
