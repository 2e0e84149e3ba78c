"""What the U-Net is told of each window: the classes it sees, mixed by area, and where there is only glass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pathup.sampling.glass import Glass
from pathup.sampling.layouts import Layout
from pathup.sampling.schedule import WindowSchedule
from pathup.sampling.windows import Windows

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline
    from pathup.sampling.stepping import BandStepper

__all__ = ["Conditions"]

_AT_ONCE = 100_000
"""Windows whose place in the layout is looked up at once."""


class Conditions:
    """The prompt of each window of a canvas, by what the layout has there.

    A window that sees one class is told its prompt; one that sees several, the mean of their prompts' embeddings
    weighted by their areas in it. Glass counts for nothing; a window that sees only glass is not needed.

    Parameters
    ----------
    pipeline
        The model.
    layout
        Which class lies where, in pixels of the large image.
    level
        The level whose prompts are told.
    px
        Pixels of the large image that a latent position of this canvas spans.
    origin
        Row and column of this canvas's corner, in pixels of the large image.
    glass
        Put where the layout has glass, at every step; else windows draw freely beyond the tissue's border.
    """

    def __init__(
        self,
        pipeline: PathUpPipeline,
        layout: Layout,
        level: str,
        px: float,
        *,
        origin: tuple[int, int] = (0, 0),
        glass: Glass | None = None,
    ) -> None:
        self.layout, self.px, self.glass = layout, px, glass
        self._origin = np.asarray(2 * origin, np.float64)
        self._seen: dict[Windows, int] = {}
        texts = [pipeline.prompt(label, level) for label in layout.labels]
        embeddings = pipeline.encode_prompts([*texts, ""], pipeline.scale_of(level)).to(pipeline.compute_device)
        self._prompted_KLD, self._empty_1LD = embeddings[:-1], embeddings[-1:]

    def embeddings(self, windows: Sequence[tuple[slice, slice]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the prompts and of the empty prompt for some windows, (B, L, D) each on the device."""
        count = len(windows)
        if len(self._prompted_KLD) == 1:
            prompted = self._prompted_KLD.expand(count, -1, -1)
        else:
            shares = torch.from_numpy(self.layout.shares(self._boxes(windows))).to(self._prompted_KLD)
            prompted = torch.einsum("bk,kld->bld", shares, self._prompted_KLD)
        return prompted, self._empty_1LD.expand(count, -1, -1)

    def needed(self, windows: Windows, indices: Iterable[int]) -> list[int]:
        """The windows among `indices` that see more than glass."""
        indices = list(indices)
        if not self.layout.has_glass:
            return indices
        found: list[int] = []
        for first in range(0, len(indices), _AT_ONCE):
            part = indices[first : first + _AT_ONCE]
            bare = self.layout.glass(self._boxes([windows[index] for index in part]))
            found += [index for index, is_bare in zip(part, bare, strict=True) if not is_bare]
        return found

    def seen(self, windows: Windows) -> int:
        """How many of a step's windows are needed."""
        if not self.layout.has_glass:
            return len(windows)
        if windows not in self._seen:
            self._seen = {windows: len(self.needed(windows, range(len(windows))))}  # the grid, again and again
        return self._seen[windows]

    def windows_of(self, schedule: WindowSchedule) -> int:
        """How many windows of all steps are needed."""
        return sum(self.seen(schedule[step]) for step in range(len(schedule)))

    def mask(self, rows: slice, width: int) -> torch.Tensor:
        """Which positions of some rows are glass, bool (rows, W)."""
        return torch.from_numpy(self.layout.glass_mask(rows.start, 0, rows.stop - rows.start, width, self.px))

    def keep_glass(self, sample_CHW: torch.Tensor, rows: slice, stepper: BandStepper) -> None:
        """Put glass, as noisy as the step's end wants it, where the layout has it; in place.

        Windows across the border then see glass at their own noise level, and draw tissue that ends there.
        """
        if self.glass is None or not self.layout.has_glass:
            return
        mask_HW = self.mask(rows, sample_CHW.shape[2])
        if mask_HW.any():
            clean = self.glass.latent_C[:, None, None].expand_as(sample_CHW)
            sample_CHW[:, mask_HW] = stepper.renoised(clean, self.glass.noise(rows))[:, mask_HW]

    def _boxes(self, windows: Sequence[tuple[slice, slice]]) -> np.ndarray:
        edges = [(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in windows]
        return np.asarray(edges, np.float64) * self.px + self._origin
