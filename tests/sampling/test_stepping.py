from __future__ import annotations

import copy

import pytest
import torch

from pathup.model.pipeline import PathUpPipeline
from pathup.model.schedulers import SCHEDULER_CLASSES, SCHEDULERS
from pathup.sampling.stepping import BandStepper
from pathup.sampling.tracking import last_timesteps, noised

NAMES = sorted({*SCHEDULERS, *SCHEDULER_CLASSES[len(SCHEDULERS) :]})
SHAPE = (4, 12, 7)


def _prediction(sample_CHW: torch.Tensor, step: int) -> torch.Tensor:
    """Some prediction that depends on the sample, position by position."""
    return torch.tanh(sample_CHW + step) * 0.8


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_bands_step_as_the_whole_canvas_does(pipeline: PathUpPipeline, name: str, strength: float) -> None:
    scheduler = pipeline.make_scheduler(name)
    timesteps = last_timesteps(scheduler, 8, strength)
    generator = torch.Generator().manual_seed(0)
    start = noised(
        scheduler, torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator), timesteps[0]
    )

    whole, expected = copy.deepcopy(scheduler), start[None]
    stepper, state = BandStepper(scheduler, timesteps, 4), start
    for step, timestep in enumerate(timesteps):
        scaled = whole.scale_model_input(expected, timestep)
        assert stepper.scaled(state[None, :4]).equal(scaled)
        prediction = _prediction(scaled[0], step)
        expected = whole.step(prediction[None], timestep, expected, return_dict=False)[0]
        assert stepper.memories == state.shape[0] // 4 - 1
        bands = [
            stepper.next_band(prediction[:, top:bottom], state[:, top:bottom])
            for top, bottom in ((0, 5), (5, 6), (6, 12))
        ]
        state = torch.cat(bands, dim=1)
        stepper.advance()
        assert state[:4].equal(expected[0]), f"step {step}"
    assert stepper.step == len(timesteps) and not state[:4].allclose(start)


@pytest.mark.parametrize("name", NAMES)
def test_a_stepper_that_was_advanced_goes_on_from_a_state(pipeline: PathUpPipeline, name: str) -> None:
    scheduler = pipeline.make_scheduler(name)
    timesteps = last_timesteps(scheduler, 6, 1.0)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * float(scheduler.init_noise_sigma)
    states, stepper = [start], BandStepper(scheduler, timesteps, 4)
    for step in range(len(timesteps)):
        prediction = _prediction(stepper.scaled(states[-1][None, :4])[0], step)
        states.append(stepper.next_band(prediction, states[-1]))
        stepper.advance()
    resumed = BandStepper(pipeline.make_scheduler(name), timesteps, 4)
    resumed._scheduler = copy.deepcopy(BandStepper(scheduler, timesteps, 4)._scheduler)
    for _ in range(3):
        resumed.advance()
    state = states[3]
    for step in range(3, len(timesteps)):
        prediction = _prediction(resumed.scaled(state[None, :4])[0], step)
        state = resumed.next_band(prediction, state)
        resumed.advance()
        assert state.equal(states[step + 1])


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_known_latents_are_noised_as_the_canvas_is(pipeline: PathUpPipeline, name: str) -> None:
    # a perfect prediction keeps x_t on the line from noise to the clean canvas: `renoised` must lie on it at each step
    scheduler = pipeline.make_scheduler(name)
    timesteps = last_timesteps(scheduler, 10, 0.6)
    clean, noise = torch.full(SHAPE, 0.4), torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    state, stepper = noised(scheduler, clean, noise, timesteps[0]), BandStepper(scheduler, timesteps, 4)
    alphas = pipeline.scheduler.alphas_cumprod
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    for timestep in timesteps:
        alpha = alphas[int(timestep)]
        scaled = stepper.scaled(state[None, :4])[0]
        found = (scaled - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        state = stepper.next_band(alpha.sqrt() * found - (1 - alpha).sqrt() * clean, state)
        stepper.advance()
        # 0.02: UniPC and DPM-Solver++ take the deterministic path to second order, and lambda is interpolated between
        # steps
        torch.testing.assert_close(state[:4], stepper.renoised(clean, noise), rtol=0, atol=0.02)
    assert stepper.renoised(clean, noise).equal(clean)
