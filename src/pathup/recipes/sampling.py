"""The sampling values of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pathup.recipes.section import Fraction, Positive, Section

__all__ = ["SamplingRecipe"]


class SamplingRecipe(Section):
    """How images are drawn; saved with the model as its defaults."""

    scheduler: str = Field(
        "ddim", description="`ddim`, `dpmpp_2m`, `unipc`, `euler`, or the class of another diffusers scheduler"
    )
    steps: Positive = Field(50, description="timesteps of the scheduler, from pure noise")
    step_power: float = Field(
        1.0,
        ge=1,
        le=3,
        description="of what is drawn from pure noise (tiles, overviews): the n-th of N timesteps of T is `T (1 - (n / "
        "N)^step_power)`; above 1, more steps at high noise, where the layout is decided. Of `unipc` and `dpmpp_2m`; "
        "others spread their steps evenly",
    )
    guidance: float = Field(1.0, ge=0, description="classifier-free guidance; 1 is none")
    strength: float = Field(
        0.6,
        gt=0,
        le=1,
        description="share of the noise that the enlarged overview gets before the canvas is denoised",
    )
    window_latent: Positive = Field(description="side of a window")
    overlap_latent: int = Field(ge=0, description="overlap of neighbouring windows")
    window_batch: Positive = Field(16, description="windows, or tiles, at once: memory and speed only")
    windows: Literal["overlapped", "shifted"] = Field(
        "overlapped",
        description="`overlapped`: the same overlapping windows at each step, as the paper has it; `shifted`: each "
        "step covers the canvas once with windows that lie elsewhere, and only the last steps overlap",
    )
    overlapped_share: Fraction = Field(
        0.3,
        description="share of the steps, the last ones and at least one, in which shifted windows overlap, by half of "
        "`overlap_latent`",
    )
    window_weight: Literal["hann", "equation_6", "hard"] = Field(
        "hann",
        description="how overlapping windows blend: `hann` falls to 0 at a window's rim, `equation_6` to a half, "
        "`hard` gives each position one window (table 4's 'w/o w')",
    )
    size_px: Positive = Field(2048, description="side of a large image")

    @model_validator(mode="before")
    @classmethod
    def _read_weighted(cls, given: Any) -> Any:
        """Earlier recipes and models say ``weighted`` in place of ``window_weight``."""
        if not isinstance(given, dict) or "weighted" not in given:
            return given
        rest = {name: value for name, value in given.items() if name != "weighted"}
        return rest if given["weighted"] else {"window_weight": "hard", **rest}

    @model_validator(mode="after")
    def _check(self) -> SamplingRecipe:
        if self.overlap_latent >= self.window_latent:
            raise ValueError(
                f"overlap_latent {self.overlap_latent} is not less than window_latent {self.window_latent}"
            )
        return self
