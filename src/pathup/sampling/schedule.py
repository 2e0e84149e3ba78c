"""Which windows each step of a canvas takes: the paper's overlapping ones, or ones that are shifted from step to step.

Overlapping windows see most of a canvas several times a step: at half a window's overlap nearly four times. Their lines
needn't be hidden by that, though, if they are elsewhere at each step: then one coverage a step does, and only
the last steps, which nothing comes after to mend, overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pathup import draws
from pathup.errors import PathUpError
from pathup.recipes import SamplingRecipe
from pathup.sampling.windows import WindowGrid, WindowPartition, Windows

__all__ = ["WINDOW_KINDS", "WindowKind", "WindowSchedule", "window_schedule"]

WindowKind = Literal["overlapped", "shifted"]
WINDOW_KINDS: tuple[WindowKind, ...] = ("overlapped", "shifted")

STRIDES = ((5**0.5 - 1) / 2, 2**0.5 - 1)
"""From step to step, the share of a window by which rows and columns move: the golden and the silver ratio, whose
multiples stay farthest from whole numbers."""


@dataclass(frozen=True)
class WindowSchedule:
    """The windows of every step of one canvas; a function of its fields alone.

    Parameters
    ----------
    height, width
        The canvas, in latent positions; at least one window each way.
    size, overlap
        Side of a window, and by how much neighbours overlap where they do.
    steps
        Timesteps that the canvas is taken through, at least 1.
    kind
        ``overlapped``: every step takes the same `WindowGrid`. ``shifted``: a step takes a `WindowPartition` whose
        offset is drawn from (seed, step), uniform over all positions of a window, and the last `overlapped_steps` the
        grid.
    overlapped_steps
        Last steps of a ``shifted`` schedule that overlap, 0 to `steps`.
    seed
        Of the offsets.

    Raises
    ------
    PathUpError
        The canvas is smaller than a window, or the overlap leaves no stride.
    ValueError
        `steps` or `overlapped_steps` is out of its range.
    """

    height: int
    width: int
    size: int
    overlap: int
    steps: int
    kind: WindowKind = "overlapped"
    overlapped_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.overlapped_steps <= self.steps:
            raise ValueError(f"{self.overlapped_steps} of {self.steps} steps cannot overlap")
        if self.kind not in WINDOW_KINDS:
            raise PathUpError(f"windows '{self.kind}' were asked for, but {' or '.join(WINDOW_KINDS)} was needed")
        _ = self.grid  # wrong lengths are found here, not at the first step

    @cached_property
    def grid(self) -> WindowGrid:
        """The overlapping windows."""
        return WindowGrid(self.height, self.width, self.size, self.overlap)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Windows:
        """The windows of step `step`, counted from 0."""
        if not 0 <= step < self.steps:
            raise IndexError(step)
        if self.kind == "overlapped" or step >= self.steps - self.overlapped_steps:
            return self.grid
        return WindowPartition(self.height, self.width, self.size, self.offset(step))

    def offset(self, step: int) -> tuple[int, int]:
        """Row and column of the first line of a shifted step, each uniform over 0 to ``size - 1``.

        ``floor(size * frac(u + step * a))`` with u drawn from the seed (a shifted Kronecker sequence: Cranley and
        Patterson 1976). Over seeds each step's offset is uniform, as if drawn by itself, but the steps of one canvas
        keep clear of each other: no line is drawn again before the rest of a window has had its lines.
        """
        row, column = (
            int(self.size * ((start + step * stride) % 1.0)) for start, stride in zip(self._start, STRIDES, strict=True)
        )
        return row, column

    @cached_property
    def _start(self) -> tuple[float, float]:
        row, column = draws.numpy_generator(self.seed, "window offset").random(2)
        return float(row), float(column)

    @property
    def windows(self) -> int:
        """Windows of all steps together."""
        return sum(len(self[step]) for step in range(self.steps))

    @property
    def coverage(self) -> float:
        """How often the U-Net sees a position, all steps together: ``steps`` where each covers the canvas once."""
        return sum(self[step].positions for step in range(self.steps)) / (self.height * self.width)


def window_schedule(settings: SamplingRecipe, height: int, width: int, steps: int, seed: int) -> WindowSchedule:
    """The schedule that sampling values mean for a canvas.

    Of shifted windows' steps at least the last one overlaps, by half of ``overlap_latent``: several steps of a little
    overlap leave less of a seam than fewer with much, and cost less.
    """
    shifted = settings.windows == "shifted"
    last = min(max(round(settings.overlapped_share * steps), 1), steps)
    return WindowSchedule(
        height,
        width,
        settings.window_latent,
        settings.overlap_latent // 2 if shifted else settings.overlap_latent,
        steps,
        kind=settings.windows,
        overlapped_steps=last if shifted else 0,
        seed=seed,
    )
