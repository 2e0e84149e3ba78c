"""What a large image takes, known before any of it is drawn: the windows of every step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from pathup import draws
from pathup.recipes import SamplingRecipe
from pathup.sampling.conditions import Conditions
from pathup.sampling.glass import Glass
from pathup.sampling.layouts import Layout
from pathup.sampling.overview import Levels, overview_conditions, overview_schedule, sampling_levels
from pathup.sampling.schedule import WindowSchedule, window_schedule
from pathup.sampling.tissue import TissuePlaces
from pathup.sampling.tracking import forwards_of, last_timesteps

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """A large image as it is going to be drawn.

    Attributes
    ----------
    pipeline, settings
        The model and the sampling values, resolved.
    layout
        Which class lies where.
    size_px
        Height and width of the large image, multiples of the model's factor.
    seed, label, index
        The draw.
    draws_overview
        False where a reference image takes the overview's place.
    """

    pipeline: PathUpPipeline
    settings: SamplingRecipe
    layout: Layout
    size_px: tuple[int, int]
    seed: int
    label: str
    index: int
    draws_overview: bool

    @cached_property
    def levels(self) -> Levels:
        """The overview's and the canvas's."""
        return sampling_levels(self.pipeline)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the canvas."""
        height, width = (side // self.pipeline.factor for side in self.size_px)
        return self.pipeline.latent_channels, height, width

    @property
    def keys(self) -> tuple[str, str, int]:
        """What the canvas's draws depend on beside the seed."""
        return self.label, self.levels.patch, self.index

    @property
    def overview_px(self) -> tuple[int, int]:
        """Height and width of the overview: whole latent positions of its own, which may reach beyond the image."""
        coarse = self.pipeline.factor * self.levels.shrink
        height, width = (-(-side // coarse) * self.pipeline.factor for side in self.size_px)
        return height, width

    @property
    def enlarged_px(self) -> tuple[int, int]:
        """Height and width of the overview, enlarged."""
        if not self.draws_overview:
            return self.size_px
        height, width = (side * self.levels.shrink for side in self.overview_px)
        return height, width

    @cached_property
    def places(self) -> TissuePlaces:
        """Where each class lies on the canvas."""
        return TissuePlaces(self.layout, self.shape[1:], self.pipeline.factor)

    @cached_property
    def overview(self) -> WindowSchedule | None:
        """The overview's windows; None where none is drawn."""
        if not self.draws_overview:
            return None
        return overview_schedule(
            self.pipeline, self.overview_px, self.settings, self.layout, self.seed, (self.label, self.index)
        )

    def canvas_steps(self) -> tuple[Any, torch.Tensor]:
        """A fresh scheduler, and the timesteps that the canvas takes."""
        scheduler = self.pipeline.make_scheduler(self.settings.scheduler)
        return scheduler, last_timesteps(scheduler, self.settings.steps, self.settings.strength)

    @cached_property
    def canvas(self) -> WindowSchedule:
        """The canvas's windows."""
        _, height, width = self.shape
        steps = len(self.canvas_steps()[1])
        return window_schedule(self.settings, height, width, steps, draws.seed_of(self.seed, *self.keys))

    def window_lines(self) -> dict[str, list[list[int]]]:
        """Where seams could be: for each kind of windows its columns and rows, in pixels, before which windows change.

        ``last`` are the last step's; ``shifted``, where steps were shifted, those of the last shifted step.
        """
        factor, schedule = self.pipeline.factor, self.canvas
        steps = {"last": len(schedule) - 1}
        if schedule.kind == "shifted" and 0 < schedule.overlapped_steps < len(schedule):
            steps["shifted"] = len(schedule) - 1 - schedule.overlapped_steps
        weighting = self.settings.window_weight
        return {
            name: [[factor * at for at in axis] for axis in schedule[step].lines(weighting)]
            for name, step in steps.items()
        }

    def conditions(self, glass: Glass | None) -> Conditions:
        """What the canvas's windows are told."""
        return Conditions(self.pipeline, self.layout, self.levels.patch, self.pipeline.factor, glass=glass)

    @cached_property
    def forwards(self) -> dict[str, int]:
        """U-Net forwards by stage; windows that see only glass take none."""
        found = {}
        if self.overview is not None:
            told = overview_conditions(self.pipeline, self.layout, self.overview, self.overview_px, self.levels.shrink)
            found["overview"] = forwards_of(told.windows_of(self.overview), self.settings.guidance)
        found["canvas"] = forwards_of(self.conditions(None).windows_of(self.canvas), self.settings.guidance)
        return found

    @property
    def forwards_all(self) -> int:
        """U-Net forwards of all stages."""
        return sum(self.forwards.values())

    @property
    def coverage(self) -> float:
        """How often the U-Net sees a position of the canvas, all steps together; glass alone is not seen."""
        return self.canvas.coverage * self.conditions(None).windows_of(self.canvas) / self.canvas.windows
