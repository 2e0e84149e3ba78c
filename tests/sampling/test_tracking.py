from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pathup.errors import PathUpError
from pathup.model.pipeline import PathUpPipeline
from pathup.sampling.canvas import canvas_noise
from pathup.sampling.conditions import Conditions
from pathup.sampling.fusion import window_bands
from pathup.sampling.layouts import plain_layout
from pathup.sampling.schedule import WindowSchedule
from pathup.sampling.states import FileStates, MemoryStates
from pathup.sampling.tracking import all_timesteps, denoise, denoise_states, forwards_of, last_timesteps, noised
from tests.sampling.reference import algorithm_1

SCHEDULERS = ["ddim", "dpmpp_2m", "unipc", "euler"]
PROMPT = "histopathology of alpha tissue, patch"


def _conditions(pipeline: Any) -> Conditions:
    return Conditions(pipeline, plain_layout("A", (1, 1)), "patch", 4)


def _relative(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max() / two.abs().max())


def _begin(pipeline: PathUpPipeline, name: str, shape: tuple[int, int, int], steps: int, strength: float) -> Any:
    scheduler = pipeline.make_scheduler(name)
    timesteps = last_timesteps(scheduler, steps, strength)
    clean = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return scheduler, timesteps, noised(scheduler, clean, canvas_noise(shape, 3), timesteps[0])


@pytest.mark.parametrize("shape", [(4, 32, 32), (4, 33, 38)], ids=["49 windows", "no stride divides"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_agrees_with_the_literal_algorithm_1(pipeline: PathUpPipeline, name: str, shape: tuple[int, int, int]) -> None:
    scheduler, timesteps, start = _begin(pipeline, name, shape, 4, 0.8)
    schedule = WindowSchedule(*shape[1:], 8, 4, len(timesteps))
    assert len(schedule.grid) >= 49
    literal = algorithm_1(pipeline, start, scheduler, timesteps, prompt=PROMPT, guidance=2.0, size=8, overlap=4)
    ours = denoise(
        pipeline, start, schedule, scheduler, timesteps, conditions=_conditions(pipeline), guidance=2.0,
        window_batch=16, weighting="equation_6",
    )  # fmt: skip
    assert not ours.allclose(start, atol=0.1)  # something happened
    assert _relative(ours, literal) < 1e-5  # the design's bound; DDIM measured 2e-7 there


@pytest.mark.parametrize("kind", ["overlapped", "shifted"])
def test_the_image_does_not_depend_on_the_window_batch(pipeline: PathUpPipeline, kind: Any) -> None:
    results = []
    for batch in (1, 7, 64):
        scheduler, timesteps, start = _begin(pipeline, "ddim", (4, 22, 19), 4, 1.0)
        schedule = WindowSchedule(22, 19, 8, 4, 4, kind=kind, overlapped_steps=1)
        results.append(
            denoise(
                pipeline, start, schedule, scheduler, timesteps, conditions=_conditions(pipeline), guidance=1.5,
                window_batch=batch,
            )
        )  # fmt: skip
    assert _relative(results[1], results[0]) < 1e-5
    assert _relative(results[2], results[0]) < 1e-5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_bands_files_and_a_break_do_not_change_a_bit(
    pipeline: PathUpPipeline, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(states: Any, begun: bool, stop: int | None = None) -> None:
        scheduler, timesteps, start = _begin(pipeline, name, (4, 30, 19), 5, 1.0)
        schedule = WindowSchedule(30, 19, 8, 4, len(timesteps), kind="shifted", overlapped_steps=2, seed=3)
        if not begun:
            states.begin(0, 4)[:, :, :] = start
            states.commit(0)

        def on_step(step: int) -> None:
            if step == stop:
                raise KeyboardInterrupt

        denoise_states(
            pipeline,
            states,
            schedule,
            scheduler,
            timesteps,
            conditions=_conditions(pipeline),
            window_batch=4,
            on_step=on_step,
        )

    whole = MemoryStates((30, 19))
    run(whole, begun=False)
    for stop in (1, 3):
        states = FileStates(tmp_path / str(stop), (30, 19))
        with pytest.raises(KeyboardInterrupt):
            run(states, begun=False, stop=stop)
        assert states.latest == stop
        run(FileStates(tmp_path / str(stop), (30, 19)), begun=True)
        assert states.read().shape == (4, 30, 19)
        assert states.read()[:, 0:30, :].equal(whole.read())
    # a canvas of many bands: one row of windows each, whose batches are others
    monkeypatch.setattr("pathup.sampling.tracking.window_bands", partial(window_bands, positions=1))
    banded = MemoryStates((30, 19))
    run(banded, begun=False)
    assert _relative(banded.read(), whole.read()) < 1e-5


class _Oracle:
    """Knows that every clean latent is `value`, and predicts the v that leads there."""

    def __init__(self, pipeline: PathUpPipeline, value: float) -> None:
        self.unet = SimpleNamespace(dtype=torch.float32)
        self.latent_channels = 4
        self.prompt, self.scale_of = pipeline.prompt, pipeline.scale_of
        self.compute_device = torch.device("cpu")
        self._alphas = pipeline.scheduler.alphas_cumprod
        self._value = value
        self.seen = 0
        self.largest = 0

    def encode_prompts(self, texts: list[str], mpp: float) -> torch.Tensor:
        return torch.zeros(len(texts), 2, 2)

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor, prompted: Any, empty: Any, guidance: float) -> Any:
        assert len(latents) == len(prompted) == len(empty)
        self.seen += len(latents)
        self.largest = max(self.largest, len(latents))
        alpha = self._alphas[int(timestep)]
        noise = (latents - alpha.sqrt() * self._value) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * self._value


@pytest.mark.parametrize("kind", ["overlapped", "shifted"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_perfect_prediction_arrives_at_the_clean_canvas(
    pipeline: PathUpPipeline, name: str, strength: float, kind: Any
) -> None:
    # begin index, noise level and scaling of the model's input must all agree for this to come out
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    oracle = _Oracle(pipeline, 0.7)
    scheduler = pipeline.make_scheduler(name)
    timesteps = last_timesteps(scheduler, 10, strength)
    clean = torch.full((4, 20, 20), 0.7)
    start = noised(scheduler, clean, canvas_noise((4, 20, 20), 0), timesteps[0])
    steps = len(timesteps)
    schedule = WindowSchedule(20, 20, 8, 4, steps, kind=kind, overlapped_steps=0 if kind == "overlapped" else 1)
    result = denoise(
        oracle,
        start,
        schedule,
        scheduler,
        timesteps,
        conditions=_conditions(oracle),
        window_batch=5,  # type: ignore[arg-type]
    )
    # 0.01: at the full schedule the noise is some 10^4 times the latent (Euler), of which float32 keeps 1e-7
    torch.testing.assert_close(result, clean, rtol=0, atol=0.01)
    assert oracle.seen == schedule.windows == forwards_of(schedule.windows, 1.0)
    assert schedule.windows == (16 * steps if kind == "overlapped" else oracle.seen)
    assert oracle.largest == 4  # 16 windows, at most 5 at once: four batches, as alike as can be


def test_pure_noise_start(pipeline: PathUpPipeline) -> None:
    for name in SCHEDULERS:
        scheduler = pipeline.make_scheduler(name)
        timesteps = last_timesteps(scheduler, 8, 1.0)
        start = canvas_noise((4, 12, 12), 0) * scheduler.init_noise_sigma
        oracle = _Oracle(pipeline, -0.4)
        schedule = WindowSchedule(12, 12, 8, 4, len(timesteps))
        result = denoise(oracle, start, schedule, scheduler, timesteps, conditions=_conditions(oracle))  # type: ignore[arg-type]
        torch.testing.assert_close(result, torch.full_like(result, -0.4), rtol=0, atol=0.01)


@pytest.mark.parametrize("name", ["unipc", "dpmpp_2m"])
def test_steps_at_high_noise_still_end_at_the_clean_image(pipeline: PathUpPipeline, name: str) -> None:
    scheduler = pipeline.make_scheduler(name)
    timesteps = all_timesteps(scheduler, pipeline.sampling.model_copy(update={"steps": 8, "step_power": 1.5}))
    oracle = _Oracle(pipeline, -0.4)
    schedule = WindowSchedule(12, 12, 8, 4, len(timesteps))
    start = canvas_noise((4, 12, 12), 0) * scheduler.init_noise_sigma
    result = denoise(oracle, start, schedule, scheduler, timesteps, conditions=_conditions(oracle))  # type: ignore[arg-type]
    torch.testing.assert_close(result, torch.full_like(result, -0.4), rtol=0, atol=0.01)


def test_strength_is_a_share_of_the_schedule(pipeline: PathUpPipeline) -> None:
    scheduler = pipeline.make_scheduler("ddim")
    assert len(last_timesteps(scheduler, 30, 0.6)) == 18
    assert len(last_timesteps(scheduler, 30, 0.001)) == 1  # at least one
    assert len(last_timesteps(scheduler, 30, 1.0)) == 30
    tail = last_timesteps(scheduler, 30, 0.2)
    assert tail.equal(scheduler.timesteps[-6:])


def test_every_weighting_differs_and_so_do_shifted_windows(pipeline: PathUpPipeline) -> None:
    results = []
    for kind, weighting in (
        ("overlapped", "hann"),
        ("overlapped", "equation_6"),
        ("overlapped", "hard"),
        ("shifted", "hann"),
    ):
        scheduler, timesteps, start = _begin(pipeline, "ddim", (4, 16, 16), 3, 1.0)
        schedule = WindowSchedule(16, 16, 8, 4, 3, kind=kind, overlapped_steps=1)  # type: ignore[arg-type]
        results.append(
            denoise(
                pipeline,
                start,
                schedule,
                scheduler,
                timesteps,
                conditions=_conditions(pipeline),
                weighting=weighting,  # type: ignore[arg-type]
            )
        )
    for place, one in enumerate(results):
        assert not any(one.allclose(other, atol=1e-3) for other in results[:place])


def test_progress_counts_windows(pipeline: PathUpPipeline) -> None:
    calls: list[tuple[str, int, int]] = []
    scheduler, timesteps, start = _begin(pipeline, "ddim", (4, 16, 16), 2, 1.0)
    denoise(
        pipeline, start, WindowSchedule(16, 16, 8, 4, 2), scheduler, timesteps, conditions=_conditions(pipeline),
        window_batch=4, progress=lambda *call: calls.append(call), stage="canvas",
    )  # fmt: skip
    assert [done for _, done, _ in calls] == [3, 6, 9, 12, 15, 18]  # 9 windows, at most 4 at once, twice
    assert {(stage, total) for stage, _, total in calls} == {("canvas", 18)}


def test_guidance_counts_twice_and_one_is_none() -> None:
    assert forwards_of(49 * 30, 1.0) == 49 * 30
    assert forwards_of(49 * 30, 1.5) == 2 * 49 * 30


def test_the_start_is_not_changed(pipeline: PathUpPipeline) -> None:
    scheduler, timesteps, start = _begin(pipeline, "unipc", (4, 8, 8), 2, 1.0)
    before = start.clone()
    denoise(pipeline, start, WindowSchedule(8, 8, 8, 4, 2), scheduler, timesteps, conditions=_conditions(pipeline))
    assert start.equal(before)


def test_overflow_and_a_senseless_batch_are_sentences(pipeline: PathUpPipeline) -> None:
    scheduler, timesteps, start = _begin(pipeline, "ddim", (4, 8, 8), 2, 1.0)
    schedule = WindowSchedule(8, 8, 8, 4, 2)
    oracle: Any = _Oracle(pipeline, float("inf"))
    with pytest.raises(PathUpError, match="overflowed in float32"):
        denoise(oracle, start, schedule, scheduler, timesteps, conditions=_conditions(oracle))
    with pytest.raises(PathUpError, match="at least 1"):
        denoise(pipeline, start, schedule, scheduler, timesteps, conditions=_conditions(pipeline), window_batch=0)
    with pytest.raises(ValueError, match="as many steps as timesteps"):
        denoise(pipeline, start, WindowSchedule(8, 8, 8, 4, 3), scheduler, timesteps, conditions=_conditions(pipeline))
