"""Training for a time instead of a number of steps, so that systems of different cost can be given the same.

The speed of the first steps tells how many there will be; where steps become dearer later on, that of the first of
those. The number is kept in the run's folder before any further step is taken: a run that is resumed goes to the same
last step, with the same learning rates.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pathup import storage
from pathup.errors import PathUpError

__all__ = ["FIRST_STEPS", "PLAN_FILE", "within"]

FIRST_STEPS = 24, 72
"""Up to which steps a run goes before its speed is known, which is that between the two; a multiple of what is done
only every 4 or 8 steps lies between them."""

PLAN_FILE = "budget.json"


def within(
    minutes: float, folder: Path, train_to: Callable[[int, bool], tuple[int, float]], *, dearer_from: int = 0
) -> int:
    """Train for about so many minutes, all that was trained before included.

    Parameters
    ----------
    minutes
        Of training; encoding, saving and sample sheets come on top.
    folder
        Of the run.
    train_to
        Called with a step, and whether it is the last: goes on up to it from where the run stands (the learning rate
        falling towards a last one), and returns the steps done and the seconds of training so far.
    dearer_from
        The step from which on each costs more.

    Returns
    -------
    int
        The last step.

    Raises
    ------
    PathUpError
        `minutes` is not above 0, or the run was planned for another time.
    """
    if not minutes > 0:
        raise PathUpError(f"{minutes:g} minutes of training were asked for, but more than 0 were needed")
    plan = folder / PLAN_FILE
    if plan.is_file():
        known = storage.read_json(plan)
        if known["minutes"] != minutes:
            raise PathUpError(
                f"{folder} holds a run of {known['minutes']:g} minutes, but {minutes:g} were asked for; "
                "ask for as many, or name another output folder"
            )
        steps = int(known["steps"])
    else:
        steps, a_step = _planned(minutes, train_to, 0)
        if steps > dearer_from + FIRST_STEPS[1] > FIRST_STEPS[1]:
            steps, a_step = _planned(minutes, train_to, dearer_from)
        storage.write_json(plan, {"minutes": minutes, "seconds_a_step": round(a_step, 5), "steps": steps})
    train_to(steps, True)
    return steps


def _planned(minutes: float, train_to: Callable[[int, bool], tuple[int, float]], since: int) -> tuple[int, float]:
    """The last step and the seconds of each, by the speed of the first steps after step `since`."""
    (early, before), (done, spent) = (train_to(since + step, False) for step in FIRST_STEPS)
    a_step = (spent - before) / (done - early) if done > early else spent / done  # stopped just before the plan
    return done + max(1, round((60 * minutes - spent) / max(a_step, 1e-6))), a_step
