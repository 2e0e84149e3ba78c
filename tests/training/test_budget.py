"""Training for a time."""

from __future__ import annotations

import json

import pytest

from pathup.errors import PathUpError
from pathup.training.budget import FIRST_STEPS, within


class Clocked:
    """A run of 30 seconds' setting up and half a second a step."""

    def __init__(self) -> None:
        self.step, self.called = 0, []

    def train_to(self, step: int, last: bool) -> tuple[int, float]:
        self.called.append((step, last))
        self.step = max(self.step, step)
        return self.step, 30 + 0.5 * self.step


def test_as_many_steps_are_taken_as_the_time_holds_after_setting_up(tmp_path):
    run = Clocked()
    assert within(10, tmp_path, run.train_to) == 1140  # (600 - 30) / 0.5
    looks = [(339, False), (539, False)]  # a quarter of the way from 72, and from there
    assert run.called == [(FIRST_STEPS[0], False), (FIRST_STEPS[1], False), *looks, (1140, True)]


def test_a_resumed_run_keeps_to_its_plan_however_fast_it_is_now(tmp_path):
    within(10, tmp_path, Clocked().train_to)
    slow = Clocked()
    slow.train_to = lambda step, last: (slow.called.append((step, last)), (step, 100.0 * step))[1]
    assert within(10, tmp_path, slow.train_to) == 1140
    assert slow.called == [(1140, True)]


@pytest.mark.parametrize("begun", [10, 50, FIRST_STEPS[1]])
def test_a_run_that_was_stopped_before_its_plan_was_made_makes_it_by_the_speed_it_has(tmp_path, begun):
    run = Clocked()
    run.step = begun
    # stopped at the very end of the first steps, setting up counts into their speed, until it is looked at again
    assert within(10, tmp_path, run.train_to) == 1140


class Dearer(Clocked):
    """A run whose steps take two seconds instead of half a one from step 400 on."""

    def train_to(self, step: int, last: bool) -> tuple[int, float]:
        step, seconds = super().train_to(step, last)
        return step, seconds + 1.5 * max(0, step - 400)


def test_steps_that_become_dearer_are_planned_by_what_they_cost_then(tmp_path):
    run = Dearer()
    assert within(10, tmp_path / "long", run.train_to, dearer_from=400) == 585  # 30 + 400 / 2 + 2 x 185 = 600
    assert [step for step, _ in run.called] == [24, 72, 424, 472, 500, 521, 585]  # looks
    stopped = Dearer()
    stopped.step = 450
    assert within(10, tmp_path / "stopped", stopped.train_to, dearer_from=400) == 585
    short = Dearer()  # it ends before
    assert within(3, tmp_path / "short", short.train_to, dearer_from=400) == 300
    assert [step for step, _ in short.called] == [24, 72, 129, 172, 300]


class Slowed(Clocked):
    """A run whose steps take four times as long from step 100 on: others have begun to use the machine."""

    def train_to(self, step: int, last: bool) -> tuple[int, float]:
        step, seconds = super().train_to(step, last)
        return step, seconds + 1.5 * max(0, step - 100)


def test_a_machine_that_slows_down_ends_about_in_time_all_the_same(tmp_path):
    run = Slowed()
    steps = within(10, tmp_path, run.train_to)
    assert run.train_to(steps, True)[1] < 1.1 * 600  # 1140 steps, as first planned, are 2,160 seconds
    assert json.loads((tmp_path / "budget.json").read_text())["steps"] == steps


def test_a_run_that_was_stopped_before_the_look_settles_its_steps_then(tmp_path):
    class Stopped(Clocked):
        def train_to(self, step: int, last: bool) -> tuple[int, float]:
            if step > FIRST_STEPS[1]:
                raise KeyboardInterrupt
            return super().train_to(step, last)

    with pytest.raises(KeyboardInterrupt):
        within(10, tmp_path, Stopped().train_to)
    again = Clocked()
    again.step = 300
    assert within(10, tmp_path, again.train_to) == 1140
    assert [step for step, _ in again.called] == [339, 539, 1140]


def test_too_short_a_time_is_the_first_steps_and_one_more(tmp_path):
    assert within(0.1, tmp_path, Clocked().train_to) == FIRST_STEPS[1] + 1


def test_another_time_for_the_same_run_is_refused(tmp_path):
    within(10, tmp_path, Clocked().train_to)
    with pytest.raises(PathUpError, match="a run of 10 minutes, but 20 were asked for"):
        within(20, tmp_path, Clocked().train_to)
    assert json.loads((tmp_path / "budget.json").read_text())["minutes"] == 10
    for minutes in (0, -1, float("nan")):
        with pytest.raises(PathUpError, match="more than 0 were needed"):
            within(minutes, tmp_path / "new", Clocked().train_to)
