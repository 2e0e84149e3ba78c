"""Training for a time instead of a number of steps, so that systems of different cost can be given the same.

The speed of the first steps tells how many there will be; where steps become dearer later on, that of the first of
those. Twice on the way the number is planned anew by the speed since then, as a machine that others use does not keep
the speed of its first minute. It is kept in the run's folder before any further step is taken: a run that is
resumed goes to the same last step, with the same learning rates.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pathup import storage
from pathup.errors import PathUpError

__all__ = ["FIRST_STEPS", "LOOK", "LOOKS", "PLAN_FILE", "within"]

FIRST_STEPS = 24, 72
"""Up to which steps a run goes before its speed is known, which is that between the two; a multiple of what is done
only every 4 or 8 steps lies between them."""

LOOK, LOOKS = 0.25, 2
"""After this share of the steps that are left their number is planned anew, so many times: before learning rates fall,
where they do so over half of the steps."""

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
    else:
        known = _planned(minutes, train_to, 0)
        if known["steps"] > dearer_from + FIRST_STEPS[1] > FIRST_STEPS[1]:
            known = _planned(minutes, train_to, dearer_from)
        storage.write_json(plan, known)
    while "look" in known:
        done, spent = train_to(int(known["look"]), False)
        since, before = known["since"]
        known = _plan(minutes, done, spent, (spent - before) / (done - since), int(known["looks"]) - 1)
        storage.write_json(plan, known)
    steps = int(known["steps"])
    train_to(steps, True)
    return steps


def _planned(minutes: float, train_to: Callable[[int, bool], tuple[int, float]], since: int) -> dict[str, Any]:
    """The plan by the speed of the first steps after step `since`."""
    (early, before), (done, spent) = (train_to(since + step, False) for step in FIRST_STEPS)
    a_step = (spent - before) / (done - early) if done > early else spent / done  # stopped just before the plan
    return _plan(minutes, done, spent, a_step, LOOKS)


def _plan(minutes: float, done: int, spent: float, a_step: float, looks: int) -> dict[str, Any]:
    steps = done + max(1, round((60 * minutes - spent) / max(a_step, 1e-6)))
    plan = {"minutes": minutes, "seconds_a_step": round(a_step, 5), "steps": steps}
    look = done + round(LOOK * (steps - done))
    return {**plan, "look": look, "looks": looks, "since": [done, spent]} if looks and done < look < steps else plan
