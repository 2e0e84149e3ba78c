from __future__ import annotations

import pytest
import torch

from pathup.errors import PathUpError
from pathup.model.pipeline import build_pipeline
from pathup.model.schedulers import SCHEDULER_CLASSES, SCHEDULERS, make_scheduler, set_steps


@pytest.mark.parametrize("name", [*SCHEDULERS, *SCHEDULER_CLASSES])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_every_admitted_number_of_steps_stays_within_the_schedule(recipe, name, spacing):
    config = {**build_pipeline(recipe).scheduler.config, "timestep_spacing": spacing}
    taken, numbers = 0, range(1, 130, 5 if "KDPM2" in name else 1)  # theirs takes half a second to set any
    for steps in numbers:
        scheduler = make_scheduler(name, config)
        try:
            set_steps(scheduler, steps)
        except PathUpError:
            continue
        taken += 1
        assert float(scheduler.timesteps.min()) >= 0
        assert float(scheduler.timesteps.max()) <= 999
    assert taken >= 0.89 * len(numbers)  # diffusers' rounding spoils a few (61, 103, 121, ...), not many
    with pytest.raises(PathUpError, match="501 steps cannot be spread"):  # a stride of 1 would begin half-way
        set_steps(make_scheduler("ddim", {**config, "timestep_spacing": "leading"}), 501)


@pytest.mark.parametrize("name", ["unipc", "dpmpp_2m"])
def test_a_step_power_puts_more_steps_at_high_noise(recipe, name):
    config = build_pipeline(recipe).scheduler.config
    spread, even, own = (make_scheduler(name, config) for _ in range(3))
    set_steps(spread, 12, 1.5)
    set_steps(even, 12)
    formula = [round(1000 * (1 - (n / 12) ** 1.5)) - 1 for n in range(12)]
    assert spread.timesteps.tolist() == formula
    assert (spread.timesteps[1:] > even.timesteps[1:]).all()
    assert spread.timesteps[0] == even.timesteps[0] == 999
    if name == "dpmpp_2m":  # diffusers' own way to take any timesteps; its other schedulers have none
        own.set_timesteps(timesteps=formula)
        torch.testing.assert_close(spread.sigmas, own.sigmas)
        assert spread.timesteps.equal(own.timesteps)
    set_steps(spread, 12, 1.0)
    assert spread.timesteps.equal(even.timesteps)
    torch.testing.assert_close(spread.sigmas, even.sigmas)


def test_a_step_power_of_a_scheduler_that_cannot_leaves_its_steps_as_they_are(recipe):
    config = build_pipeline(recipe).scheduler.config
    spread, even = make_scheduler("ddim", config), make_scheduler("ddim", config)
    set_steps(spread, 12, 1.5)
    set_steps(even, 12)
    assert spread.timesteps.equal(even.timesteps)


def test_more_steps_than_a_step_power_has_timesteps_for_is_one_sentence(recipe):
    scheduler = make_scheduler("unipc", build_pipeline(recipe).scheduler.config)
    with pytest.raises(PathUpError, match=r"150 steps are too many .* step_power 2"):
        set_steps(scheduler, 150, 2.0)
