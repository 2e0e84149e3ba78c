"""Noise schedules and samplers: diffusers' schedulers that can be chosen, and the timesteps that they take."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from pathup.errors import PathUpError, unknown
from pathup.recipes import Recipe

SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}
"""Short names; the others of `SCHEDULER_CLASSES` go by the name of their class."""

SCHEDULER_CLASSES = (
    *(kind.__name__ for kind in SCHEDULERS.values()),
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
)
"""diffusers' schedulers that draw no noise of their own (else a seed would not give one image), keep to the trained
noise schedule, and can begin in the middle of it, as a canvas does."""


RESPACED = (UniPCMultistepScheduler, DPMSolverMultistepScheduler)
"""Schedulers that step from any timestep to any other."""


def build_scheduler(recipe: Recipe) -> DDIMScheduler:
    """The training noise schedule as a DDIM scheduler (the paper's)."""
    noise = recipe.model.noise
    return DDIMScheduler(
        num_train_timesteps=noise.steps,
        beta_start=noise.beta_start,
        beta_end=noise.beta_end,
        beta_schedule=noise.schedule,
        prediction_type=noise.prediction,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def make_scheduler(name: str, config: Any) -> Any:
    """A fresh scheduler for a trained schedule.

    Parameters
    ----------
    name
        One of `SCHEDULERS` or of `SCHEDULER_CLASSES`.
    config
        Any diffusers scheduler's.

    Raises
    ------
    PathUpError
        It is none of them (random ones and those for other kinds of model among them), or does not fit this schedule.
    """
    if name not in SCHEDULERS and name not in SCHEDULER_CLASSES:
        if isinstance(getattr(diffusers, name if name.endswith("Scheduler") else "", None), type):
            raise PathUpError(
                f"scheduler {name} draws noise of its own, or cannot begin in the middle of such a noise schedule; "
                f"choose one of {', '.join([*SCHEDULERS, *SCHEDULER_CLASSES])}"
            )
        raise unknown("scheduler", name, [*SCHEDULERS, *SCHEDULER_CLASSES])
    kind: Any = SCHEDULERS.get(name) or getattr(diffusers, name)
    settings = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    for own in ("skip_prk_steps", "algorithm_type"):  # PNDM's; DPM-Solver's, maybe a random one
        settings.pop(own, None)
    if name == "ddim":
        settings["clip_sample"] = False
    try:
        made = kind.from_config(settings)
        made.set_timesteps(2)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise PathUpError(f"scheduler {name} does not fit this model's noise schedule ({error})") from error
    return kind.from_config(settings)


def set_steps(scheduler: Any, steps: int, power: float = 1.0) -> None:
    """Set a scheduler to `steps` timesteps, the n-th of N (from 0) being ``T (1 - (n / N) ** power) - 1``.

    A power of 1 is the scheduler's own even spread. Above 1 more of the steps are at high noise. Only `RESPACED`
    schedulers can do that; the steps of others are evenly spread whatever the power.

    Raises
    ------
    PathUpError
        The noise schedule has fewer, or diffusers' rounding would leave it, or not begin at pure noise, with that many,
        or `power` would take a timestep twice.
    """
    trained = int(scheduler.config.num_train_timesteps)
    if not 1 <= steps <= trained:
        raise PathUpError(f"{steps} steps were asked for, but this model's noise schedule has 1 to {trained}")
    scheduler.set_timesteps(steps)
    if not _within_schedule(scheduler, trained):
        fitting = steps
        while fitting > 1 and not _within_schedule(scheduler, trained):
            fitting -= 1
            scheduler.set_timesteps(fitting)
        raise PathUpError(
            f"{steps} steps cannot be spread over this model's noise schedule of {trained} timesteps with "
            f"{type(scheduler).__name__}; {fitting} can"
        )
    if power != 1 and isinstance(scheduler, RESPACED):
        _respace(scheduler, steps, power)


def _respace(scheduler: Any, steps: int, power: float) -> None:
    """Replace what these schedulers keep of their steps: timesteps, and sigmas that end in 0."""
    trained = int(scheduler.config.num_train_timesteps)
    spread = trained * (1 - (torch.arange(steps, dtype=torch.float64) / steps) ** power)
    taken = (spread.round().long() - 1).clamp_min(0)
    if len(taken.unique()) < steps:
        raise PathUpError(
            f"{steps} steps are too many for this model's noise schedule of {trained} timesteps with step_power "
            f"{power:g}, by which the first ones would be one timestep; take fewer, or step_power 1"
        )
    alpha_bar = scheduler.alphas_cumprod.double()[taken]
    sigmas = torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), torch.zeros(1)]).float()
    scheduler.timesteps, scheduler.sigmas = taken, sigmas


def _within_schedule(scheduler: Any, trained: int) -> bool:
    taken = scheduler.timesteps
    steps, low, high = len(taken.unique()), float(taken.min()), float(taken.max())
    # 'leading' counts up from 0 by a whole stride; a stride rounded down from 1.9 to 1 would end half-way
    end = trained * (steps - 1) / steps if scheduler.config.get("timestep_spacing") == "leading" else 0
    return low >= 0 and 0.75 * end <= high <= trained - 1
