"""Tables 1, 3 and 4, and that of pairs, by name: carried out, or only planned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pathup.errors import unknown
from pathup.experiments.comparison import Bench, ComparisonRequest
from pathup.experiments.comparison_pages import write_comparison
from pathup.experiments.large_tables import UpscalingTable, WeightTable
from pathup.experiments.pair_table import PairTable
from pathup.experiments.preparation import Step, carry_out
from pathup.experiments.tile_tables import TileTable

__all__ = ["TABLES", "compare", "plan"]

Progress = Callable[[str, int, int], None]

TABLES: dict[str, type[Bench]] = {table.name: table for table in (TileTable, UpscalingTable, PairTable, WeightTable)}


def bench_of(request: ComparisonRequest) -> Bench:
    """The table that is asked for.

    Raises
    ------
    PathUpError
        There is none of that name, or its recipe cannot be loaded.
    """
    if request.name not in TABLES:
        raise unknown("experiment", request.name, TABLES)
    return TABLES[request.name](request)


def plan(request: ComparisonRequest) -> list[Step]:
    """What a comparison consists of, in its order; nothing is done or written."""
    return bench_of(request).steps()


def compare(request: ComparisonRequest, progress: Progress | None = None) -> dict[str, Any]:
    """Carry out a comparison, from where it stands; returns what ``NAME.json`` holds.

    Several processes may carry out the same one, or several in one folder: they share what there is to do.

    Raises
    ------
    PathUpError
        An option is out of range, the recipe does not fit a contender, the folder holds another experiment, or
        cutting, training, drawing or measuring fails.
    """
    bench, tell = bench_of(request), progress or (lambda stage, done, total: None)
    bench.claim()
    steps = bench.steps()
    carry_out(steps, bench.locks, tell)
    tell("table", len(steps), len(steps))
    return write_comparison(bench)
