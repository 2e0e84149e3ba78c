from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pathup.errors import PathUpError
from pathup.recipes import load_recipe
from pathup.sampling.schedule import WindowSchedule, window_schedule
from pathup.sampling.windows import WindowGrid, WindowPartition


@st.composite
def schedules(draw: st.DrawFn) -> WindowSchedule:
    size = draw(st.integers(2, 12))
    steps = draw(st.integers(1, 9))
    return WindowSchedule(
        draw(st.integers(size, 70)),
        draw(st.integers(size, 70)),
        size,
        draw(st.integers(0, size - 1)),
        steps,
        kind="shifted",
        overlapped_steps=draw(st.integers(0, steps)),
        seed=draw(st.integers(0, 2**32)),
    )


@given(schedules())
@settings(max_examples=100, deadline=None)
def test_each_shifted_step_costs_exactly_one_coverage_and_the_last_ones_overlap(schedule: WindowSchedule) -> None:
    shifted = len(schedule) - schedule.overlapped_steps
    area = schedule.height * schedule.width
    for step in range(len(schedule)):
        windows = schedule[step]
        assert isinstance(windows, WindowPartition if step < shifted else WindowGrid)
        assert windows.positions == area if step < shifted else windows is schedule.grid
    overlapped = schedule.overlapped_steps * schedule.grid.positions
    assert schedule.coverage == pytest.approx(shifted + overlapped / area)
    assert schedule.windows == sum(len(schedule[step]) for step in range(len(schedule)))


@given(schedules())
@settings(max_examples=30, deadline=None)
def test_a_schedule_is_a_function_of_its_fields(schedule: WindowSchedule) -> None:
    again = WindowSchedule(**vars_of(schedule))
    for step in reversed(range(len(schedule))):  # in any order
        assert again[step] == schedule[step]


def vars_of(schedule: WindowSchedule) -> dict[str, object]:
    return {name: getattr(schedule, name) for name in schedule.__dataclass_fields__}


def test_offsets_have_no_bias_and_the_axes_do_not_go_together() -> None:
    size, count = 16, 4000
    drawn = np.array([
        WindowSchedule(64, 64, size, 8, 4, kind="shifted", seed=seed).offset(step)
        for seed in range(count // 4) for step in range(4)
    ])  # fmt: skip
    # p below 1e-4 would come by chance once in ten thousand drawings; this one is the same every time
    for axis in (0, 1):
        assert chisquare(np.bincount(drawn[:, axis], minlength=size)).pvalue > 1e-4
    assert chisquare(np.bincount(drawn[:, 0] * size + drawn[:, 1], minlength=size**2)).pvalue > 1e-4
    for step in range(4):  # nor has any step by itself
        assert chisquare(np.bincount(drawn[step::4, 0] * size + drawn[step::4, 1], minlength=size**2)).pvalue > 1e-4


@given(st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_no_two_of_eight_steps_draw_lines_beside_each_other(seed: int) -> None:
    schedule = WindowSchedule(128, 128, 32, 8, 8, kind="shifted", seed=seed)
    for axis in (0, 1):
        offsets = np.asarray([schedule.offset(step)[axis] for step in range(8)])
        apart = np.abs(offsets[:, None] - offsets)
        around = np.minimum(apart, 32 - apart)[~np.eye(8, dtype=bool)]
        # five steps on, a multiple of the silver ratio is 0.071 of a window from a whole number: 2.3 positions
        assert around.min() >= 2


def test_lines_of_shifted_steps_lie_evenly_over_the_canvas() -> None:
    length, size = 128, 16
    count = np.zeros(length)
    for seed in range(1600):
        xs, _ = WindowSchedule(length, length, size, 8, 1, kind="shifted", seed=seed)[0].lines("hann")
        count[xs] += 1
    inside = count[size:-size]  # nearer the rim than half a window there are none
    assert chisquare(inside).pvalue > 1e-4
    assert count[: size // 2].sum() == 0 and count[-size // 2 + 1 :].sum() == 0


def test_overlapped_schedules_take_the_same_windows_at_each_step() -> None:
    schedule = WindowSchedule(32, 48, 8, 4, 5)
    assert all(schedule[step] is schedule.grid for step in range(5))
    assert schedule.windows == 5 * 7 * 11
    with pytest.raises(IndexError):
        schedule[5]


def test_sampling_values_make_a_schedule() -> None:
    values = {"windows": "shifted", "overlapped_share": 0.3, "window_latent": 32, "overlap_latent": 16}
    settings_ = load_recipe("atlas").sampling.model_copy(update=values)
    made = window_schedule(settings_, 512, 512, 12, 0)
    assert made.overlapped_steps == 4 and made.overlap == settings_.overlap_latent // 2
    # 8 steps of one coverage and 4 of 21 x 21 windows of 32 x 32
    assert made.coverage == 8 + 4 * 21**2 * 32**2 / 512**2
    assert made.coverage < 0.34 * 12 * 31**2 * 32**2 / 512**2  # of what overlapped windows cost
    assert window_schedule(settings_, 512, 512, 2, 0).overlapped_steps == 1  # at least one
    plain = settings_.model_copy(update={"windows": "overlapped"})
    assert window_schedule(plain, 512, 512, 12, 0).kind == "overlapped"


def test_what_cannot_be_a_schedule_is_one_sentence() -> None:
    with pytest.raises(PathUpError, match="smaller than a window of 8"):
        WindowSchedule(7, 48, 8, 4, 5, kind="shifted")
    with pytest.raises(PathUpError, match="windows 'shift' were asked for"):
        WindowSchedule(16, 48, 8, 4, 5, kind="shift")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot overlap"):
        WindowSchedule(16, 48, 8, 4, 5, kind="shifted", overlapped_steps=6)
