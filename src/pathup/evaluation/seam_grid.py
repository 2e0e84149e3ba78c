"""The lines along which the windows of a large image meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pathup.errors import PathUpError

__all__ = ["SeamGrid"]


@dataclass(frozen=True)
class SeamGrid:
    """Where windows meet, in pixels: a line at x lies between columns x - 1 and x.

    Parameters
    ----------
    width, height
        The image.
    xs, ys
        Vertical and horizontal lines, ascending; either may be empty, but not both.

    Raises
    ------
    PathUpError
        A line is not inside the image, or they are not ascending and different, or there is none.
    """

    width: int
    height: int
    xs: tuple[int, ...]
    ys: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, lines, length in (("x", self.xs, self.width), ("y", self.ys, self.height)):
            outside = [line for line in lines if not 0 < line < length]
            if outside:
                raise PathUpError(
                    f"a grid line at {name} = {outside[0]} is not inside an image of {self.width} x {self.height} px; "
                    f"give lines from 1 to {length - 1}"
                )
            if any(later <= line for line, later in pairwise(lines)):
                raise PathUpError(
                    f"the grid lines {name} = {', '.join(map(str, lines))} are not ascending; give each once, sorted"
                )
        if not self.xs and not self.ys:
            raise PathUpError(
                f"the grid has no line inside the image of {self.width} x {self.height} px, so there is nothing to "
                "measure; give an image of several windows"
            )

    @classmethod
    def regular(cls, width: int, height: int, pitch: int, offset: tuple[int, int] = (0, 0)) -> SeamGrid:
        """Lines at ``offset + k * pitch`` for all whole k that fall inside.

        Parameters
        ----------
        width, height
            The image, in pixels.
        pitch
            Distance of neighbouring lines, at least 2 px.
        offset
            (x, y) of any one line.

        Raises
        ------
        PathUpError
            The pitch is below 2, or neither side of the image holds two periods.
        """
        if pitch < 2:
            raise PathUpError(f"a grid of {pitch} px was asked for; at least 2 px was needed")
        if max(width, height) < 2 * pitch:
            raise PathUpError(
                f"the image of {width} x {height} px is smaller than two periods of {pitch} px; "
                "give a larger image or a finer grid"
            )
        xs, ys = (
            tuple(line for line in range(start % pitch, length, pitch) if line > 0)
            for start, length in zip(offset, (width, height), strict=True)
        )
        return cls(width, height, xs, ys)

    @classmethod
    def from_windows(cls, width: int, height: int, windows: Iterable[Sequence[int]]) -> SeamGrid:
        """All edges of windows, those at the image's rim left out.

        Parameters
        ----------
        width, height
            The image, in pixels.
        windows
            (top, left, height, width) of each.

        Raises
        ------
        PathUpError
            A window is not four whole numbers or lies partly outside, or all edges are at the rim.
        """
        xs, ys = set(), set()
        for window in windows:
            try:
                top, left, tall, wide = (int(value) for value in window)
            except (TypeError, ValueError) as error:
                raise PathUpError(
                    f"the window {window!r} is not (top, left, height, width); give four numbers"
                ) from error
            if min(top, left) < 0 or min(tall, wide) < 1 or top + tall > height or left + wide > width:
                raise PathUpError(
                    f"the window (top {top}, left {left}, {wide} x {tall} px) is not inside the image of {width} x "
                    f"{height} px; give windows in the image's own pixels"
                )
            xs |= {left, left + wide}
            ys |= {top, top + tall}
        return cls(width, height, tuple(sorted(xs - {0, width})), tuple(sorted(ys - {0, height})))

    def as_json(self) -> dict[str, Any]:
        """The lines as plain lists."""
        return {"width": self.width, "height": self.height, "xs": list(self.xs), "ys": list(self.ys)}
