"""What is compared with what: the rows of the tables, each with its floor and the same counts on both sides.

Synthetic tiles are held against real tiles of the split test. How small a figure can get is told by real tiles in
their place: as many of the split train (the floor), and one half of the test tiles against the other (the halves, with
as many synthetic tiles against the first half beside it, since figures depend on counts). Where classes are known,
real tiles are drawn in the synthetic tiles' mixture of classes and levels, so that a mixture is never what differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pathup import draws
from pathup.errors import PathUpError
from pathup.evaluation.tile_sets import Cell, TileSet, drawn

__all__ = ["Comparison", "comparisons", "one_mixture"]


@dataclass(frozen=True)
class Comparison:
    """One row: places (sorted) in the sets of real test, synthetic and real training tiles.

    Attributes
    ----------
    level, label
        None: all of them.
    real, synthetic
        The two sides.
    train
        As many as `synthetic`, of the same mixture (or fewer, where there are not enough); None without training tiles.
    halves
        Two halves of `real`, the second (and `synthetic_half`) being what stands in the synthetic tiles' place.
    synthetic_half
        As many of `synthetic` as the second half has, or fewer.
    matched
        Whether `real` has the mixture of `synthetic`.
    """

    level: str | None
    label: str | None
    real: np.ndarray
    synthetic: np.ndarray
    train: np.ndarray | None
    halves: tuple[np.ndarray, np.ndarray]
    synthetic_half: np.ndarray
    matched: bool

    @property
    def name(self) -> str:
        """What the tables call it."""
        return ", ".join(filter(None, (self.level, self.label))) or "overall"

    def counts(self) -> dict[str, int | None]:
        """Tiles on each side."""
        return {
            "real": len(self.real),
            "synthetic": len(self.synthetic),
            "train": None if self.train is None else len(self.train),
            "half": len(self.halves[0]),
            "other_half": len(self.halves[1]),
            "synthetic_half": len(self.synthetic_half),
        }


def one_mixture(cells: dict[Cell, np.ndarray], like: dict[Cell, int], limit: int) -> dict[Cell, int]:
    """How many tiles of each cell give the mixture `like`, as many as there are and at most `limit` in all."""
    ratio = min(len(cells[cell]) / count for cell, count in like.items() if count)
    ratio = min(ratio, limit / sum(like.values()))
    return {cell: min(len(cells[cell]), max(1, int(ratio * count + 1e-9))) for cell, count in like.items() if count}


def comparisons(
    real: TileSet, synthetic: TileSet, train: TileSet | None, *, limit: int = 10_000, seed: int = 0
) -> list[Comparison]:
    """The rows: all tiles, each level (where there are several), and each class of each level (where known).

    Parameters
    ----------
    real, synthetic, train
        Tiles that `check_comparable` has passed.
    limit
        Most tiles on a side.
    seed
        Of the draws.

    Raises
    ------
    PathUpError
        The real tiles are of several levels, and the synthetic ones do not say of which.
    """
    levels = {level for level, _ in real.cells()}
    if None not in levels and len(levels) > 1 and None in synthetic.levels:
        raise PathUpError(
            f"the real tiles are of levels {', '.join(sorted(map(str, levels)))}, but the {synthetic.name} ones do "
            "not say "
            "of which; name it with --level"
        )
    cells = synthetic.cells()
    matched = all(cell in real.cells() for cell in cells)
    rows = [_row(real, synthetic, train, None, None, cells, matched, limit, seed)]
    own_levels = sorted({level for level, _ in cells if level is not None})
    for level in own_levels:
        of_level = {cell: places for cell, places in cells.items() if cell[0] == level}
        if len(own_levels) > 1:
            rows.append(_row(real, synthetic, train, level, None, of_level, matched, limit, seed))
    for cell, places in cells.items():
        if matched and cell[1] is not None and len(cells) > 1:
            rows.append(_row(real, synthetic, train, cell[0], cell[1], {cell: places}, True, limit, seed))
    return rows


def _row(
    real: TileSet,
    synthetic: TileSet,
    train: TileSet | None,
    level: str | None,
    label: str | None,
    cells: dict[Cell, np.ndarray],
    matched: bool,
    limit: int,
    seed: int,
) -> Comparison:
    total = sum(map(len, cells.values()))
    wanted = {cell: max(1, len(places) * min(total, limit) // total) for cell, places in cells.items()}
    mine = _taken(cells, wanted, seed, "synthetic")
    real_cells, train_cells = real.cells(), None if train is None else train.cells()
    if not matched:  # of unknown mixture
        real_cells = {(None, None): np.arange(len(real))}
        train_cells = None if train is None else {(None, None): np.arange(len(train))}
        wanted = {(None, None): sum(wanted.values())}
    theirs = _taken(real_cells, one_mixture(real_cells, wanted, limit), seed, "real")
    floor = None
    if train_cells is not None:
        floor = _taken(train_cells, {c: n for c, n in wanted.items() if c in train_cells}, seed, "train")
    first, second = _halves(real, theirs, seed)
    few = min(len(second), len(mine))
    halved = {cell: len(np.intersect1d(places, mine)) * few // len(mine) for cell, places in cells.items()}
    half = _taken({c: np.intersect1d(p, mine) for c, p in cells.items()}, halved, seed, "synthetic half")
    second = drawn(second, len(half), seed, "real half") if len(half) < len(second) else second
    return Comparison(level, label, theirs, mine, floor, (first, second), half, matched)


def _taken(cells: dict[Cell, np.ndarray], counts: dict[Cell, int], seed: int, purpose: str) -> np.ndarray:
    parts: list[Any] = [drawn(cells[cell], count, seed, purpose, *map(str, cell)) for cell, count in counts.items()]
    return np.sort(np.concatenate(parts)).astype(np.int64) if parts else np.zeros(0, np.int64)


def _halves(real: TileSet, places: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of the places, of the same mixture; drawn tile by tile."""
    first: list[int] = []
    second: list[int] = []
    chosen = real.at(places)
    for cell, own in chosen.cells().items():
        order = places[own][draws.numpy_generator(seed, "halves", *map(str, cell)).permutation(len(own))]
        middle = (len(order) + (len(first) <= len(second))) // 2  # odd ones go to the smaller half
        first += order[:middle].tolist()
        second += order[middle:].tolist()
    return np.sort(first).astype(np.int64), np.sort(second).astype(np.int64)
