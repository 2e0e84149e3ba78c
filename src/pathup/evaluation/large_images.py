"""The part of a report that looks for seams in large images: which fields are read, and where their windows meet."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pathup.errors import PathUpError
from pathup.evaluation.crops import large_images
from pathup.evaluation.parts import Work
from pathup.evaluation.seam_reference import PLACEMENTS, ratios_at_random_lines
from pathup.evaluation.seam_search import search_grid
from pathup.evaluation.seams import LEAST_SIDE, SeamGrid, measure_seams
from pathup.slides.provenance import provenance_of
from pathup.slides.reader import open_slide

__all__ = ["FIELD_PX", "parsed_grid", "recorded_lines", "seams"]

FIELD_PX = 4096
"""Side of the largest field that is read at once; of a larger image, several are, spread over it."""

MOST_FIELDS = 4
"""Of one image."""

_GRID = re.compile(r"(\d+)(?:\+(\d+)(?:,(\d+))?)?")


@dataclass(frozen=True)
class _Field:
    left: int
    top: int
    pixels_HWC: np.ndarray


def seams(work: Work) -> list[dict[str, Any]]:
    """Seams of each large image: those named with ``--large``, or the synthetic images where they are large."""
    request = work.request
    paths = [path for given in request.large for path, _ in large_images(given)]
    if not paths:
        paths = [path for given in work.cropped() for path, _ in large_images(given)]
    if not paths:
        work.notes.append("seams were not looked for: they are in large images, which --large names")
        return []
    found: list[dict[str, Any]] = []
    for done, path in enumerate(paths, start=1):
        found += _of_image(path, request.grid, request.seed)
        work.tell("seams", done, len(paths))
    return found


def real_lines(work: Work, found: list[dict[str, Any]]) -> dict[str, Any]:
    """For each kind of grid that was looked at, the 95 % interval of each ratio at random lines of real images."""
    paths = [path for given in work.request.large_real for path, _ in large_images(given)]
    if not paths or not found:
        return {}
    grids: dict[str, SeamGrid] = {}
    for row in found:
        lines = row["grid"]
        grid = SeamGrid(lines["width"], lines["height"], tuple(lines["xs"]), tuple(lines["ys"]))
        grids.setdefault(row["grid_from"], grid)
    result: dict[str, Any] = {"images": len(paths), "placements": PLACEMENTS, "grids": {}}
    for done, (kind, grid) in enumerate(grids.items(), start=1):
        ratios = ratios_at_random_lines(
            ((path.name, partial(_middle, path)) for path in paths), grid, seed=work.request.seed
        )
        result["grids"][kind] = {
            channel: [float(end) for end in np.percentile(values, [2.5, 97.5])] for channel, values in ratios.items()
        }
        work.tell("seams", done, len(grids))
    return result


def _middle(path: Path) -> np.ndarray:
    """The middle of an image, or of a slide's scanned part, as large a field as seams are looked for in."""
    with open_slide(path) as reader:
        left, top, width, height = reader.bounds
        wide, tall = min(width, FIELD_PX), min(height, FIELD_PX)
        return reader.read_field(left + (width - wide) // 2, top + (height - tall) // 2, wide, tall)


def recorded_lines(path: Path) -> dict[str, tuple[list[int], list[int]]]:
    """Columns and rows, in pixels, before which windows change, as ``pathup generate`` recorded them; empty where not.

    ``last`` are the windows of the last step; with shifted windows, ``shifted`` are those of the last shifted step.
    """
    told = provenance_of(path) or {}
    try:
        found = {str(name): (_lines(xs), _lines(ys)) for name, (xs, ys) in told["window_lines"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return found


def _lines(found: Any) -> list[int]:
    return [operator.index(at) for at in found]


def _of_image(path: Path, asked: str | None, seed: int) -> Iterator[dict[str, Any]]:
    recorded = recorded_lines(path) if asked is None else {}
    pitch, offset = parsed_grid(asked) if asked is not None else (0, (0, 0))
    for field in _fields(path):
        height, width = field.pixels_HWC.shape[:2]
        told: dict[str, Any] = {"image": path.name, "size": f"{width} x {height}", "left": field.left, "top": field.top}
        if asked is not None:
            grids = {
                f"given, {pitch} px": SeamGrid.regular(
                    width, height, pitch, (offset[0] - field.left, offset[1] - field.top)
                )
            }
        elif recorded:
            grids = {
                "recorded" if name == "last" else f"recorded, {name}": grid
                for name, lines in recorded.items()
                if (grid := _cut(lines, field)) is not None
            }
        else:
            search = search_grid(field.pixels_HWC, seed=seed)
            grids = {f"searched, {search.pitch} px": search.grid}
        for grid_from, grid in grids.items():
            report = measure_seams(field.pixels_HWC, grid, seed=seed).as_json()
            if asked is None and not recorded:
                # the grid was chosen for its steps: only this p-value counts
                report |= {"p_value": search.p_value, "search_p_value": search.p_value}
            yield {**told, "grid_from": grid_from, **report}


def _cut(lines: tuple[list[int], list[int]], field: _Field) -> SeamGrid | None:
    """The lines within a field; None where there are none."""
    height, width = field.pixels_HWC.shape[:2]
    xs, ys = (
        tuple(line - start for line in along if 0 < line - start < length)
        for along, start, length in zip(lines, (field.left, field.top), (width, height), strict=True)
    )
    return SeamGrid(width, height, xs, ys) if xs or ys else None


def parsed_grid(text: str) -> tuple[int, tuple[int, int]]:
    """PITCH, PITCH+OFFSET or PITCH+X,Y in pixels."""
    match = _GRID.fullmatch(text.strip())
    if match is None or int(match[1]) < 2:
        raise PathUpError(f"grid '{text}' is not understood; PITCH or PITCH+OFFSET in pixels was needed, as in 256+128")
    x = int(match[2] or 0)
    return int(match[1]), (x, int(match[3] or x))


def _fields(path: Path) -> Iterator[_Field]:
    """The image, or some square fields of it spread from corner to corner, one at a time."""
    with open_slide(path) as reader:
        left, top, width, height = reader.bounds
        if min(width, height) < LEAST_SIDE:
            raise PathUpError(
                f"{path} is {width} x {height} px, but seams need at least {LEAST_SIDE} px a side to be compared with "
                "other "
                "lines; name larger images"
            )
        side = min(width, height, FIELD_PX)
        across, down = max(1, width // side), max(1, height // side)
        places = [
            (left + (width - side) * i // max(1, across - 1), top + (height - side) * j // max(1, down - 1))
            for j in range(down)
            for i in range(across)
        ]
        for x, y in places[:: max(1, len(places) // MOST_FIELDS)][:MOST_FIELDS]:
            yield _Field(x - left, y - top, reader.read_field(x, y, side, side))
