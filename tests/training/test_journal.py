"""A loss that jumps up and stays there stops a run; noise does not."""

from __future__ import annotations

import numpy as np
import pytest

from pathup.errors import PathUpError
from pathup.training.journal import Journal, Watch


def test_the_noise_of_small_batches_is_no_jump():
    # as batches of 4 vary; 2,000 lines are a run of 40,000 steps
    values = np.random.default_rng(0).gamma(4, 0.015, 2000)  # a deviation of half the mean for each
    watch = Watch()
    assert not any(watch.add(step, float(value)) for step, value in enumerate(values))


def test_a_loss_that_falls_and_stays_low_is_none_either():
    watch = Watch()
    assert not any(watch.add(step, 1 / (1 + step)) for step in range(500))


def test_a_jump_to_four_times_the_loss_is_told_within_fifteen_lines():
    watch = Watch()
    assert not any(watch.add(step, 0.056) for step in range(60))
    told = [watch.add(step, 0.23) for step in range(60, 75)]
    assert any(told) and not told[0]
    assert watch.lowest == pytest.approx(0.056) and watch.at < 60


def test_a_run_stops_there_and_says_what_to_do(tmp_path):
    with Journal(tmp_path, steps=100, first_step=0, title="test") as journal:
        for step in range(1, 61):
            journal.record(step, {"L_r": 0.05})
        with pytest.raises(PathUpError, match=r"after step 20 .*resume with a lower --learning-rate"):
            for step in range(61, 80):
                journal.record(step, {"L_r": 0.2})


def test_a_resumed_run_remembers_what_its_loss_was(tmp_path):
    with Journal(tmp_path, steps=100, first_step=0, title="test") as journal:
        for step in range(1, 61):
            journal.record(step, {"L_r": 0.05})
    with Journal(tmp_path, steps=100, first_step=60, title="test") as journal, pytest.raises(PathUpError):
        for step in range(61, 80):
            journal.record(step, {"L_r": 0.2})
