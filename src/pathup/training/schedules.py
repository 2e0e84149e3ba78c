"""The learning rate and the EMA as functions of the step alone, and the order in which tiles are seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from pathup.draws import seed_of, shuffled_index


def learning_rate(step: int, *, peak: float, warmup: int, total: int, decay: int) -> float:
    """Linear warm-up to `peak`, constant, then linear fall to 0 over the last `decay` of `total` steps.

    `step` counts from 0; the value is that of the step about to be taken.
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    fall = min(1.0, (total - step) / decay) if decay else 1.0
    return peak * rise * fall


def ema_decay(step: int, decay: float) -> float:
    """The decay of an exponential moving average with warm-up, ``min(decay, (1 + step) / (10 + step))``."""
    return min(decay, (1 + step) / (10 + step))


class TileOrder:
    """Which tile stands at a position of the endless training stream: a function of (seed, position).

    Parameters
    ----------
    groups
        The group (class and level) of each tile.
    seed
        The recipe's seed.
    balanced
        Draw every group equally often (each group's tiles in shuffled epochs of their own) instead of every tile.
    """

    def __init__(self, groups: Sequence[Hashable], *, seed: int, balanced: bool) -> None:
        self._seed = seed
        self._count = len(groups)
        members: dict[Hashable, list[int]] = defaultdict(list)
        for index, group in enumerate(groups):
            members[group].append(index)
        self._members = [members[group] for group in sorted(members, key=str)] if balanced else []

    def __getitem__(self, position: int) -> int:
        """The tile at `position` (counted from 0, without end)."""
        if not self._members:
            return shuffled_index(self._seed, position, self._count)
        round_, _ = divmod(position, len(self._members))
        chosen = shuffled_index(seed_of(self._seed, "groups"), position, len(self._members))
        group = self._members[chosen]
        return group[shuffled_index(seed_of(self._seed, "group", chosen), round_, len(group))]
