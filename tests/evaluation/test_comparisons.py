from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathup.errors import PathUpError
from pathup.evaluation.comparisons import comparisons
from pathup.evaluation.tile_sets import TileSet
from tests.evaluation.test_tile_sets import of_kind

counts = st.dictionaries(
    st.tuples(st.sampled_from(["overview", "patch"]), st.sampled_from("ABC")), st.integers(1, 30), min_size=1
)


def mixture(tiles: TileSet, places: np.ndarray) -> Counter[tuple[str | None, str | None]]:
    return Counter(zip(tiles.at(places).levels, tiles.at(places).labels, strict=True))


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(1, 4), st.integers(1, 3), st.integers(12, 500))
def test_rows_have_one_mixture_and_the_floor_the_same_counts(
    cells: dict[tuple[str, str], int], more: int, train_more: int, limit: int
) -> None:
    synthetic = of_kind(cells, "synthetic")
    real = of_kind({cell: 40 * more + i for i, cell in enumerate(cells)})
    train = of_kind(dict.fromkeys(cells, 30 * train_more), "training")
    rows = comparisons(real, synthetic, train, limit=limit)
    assert rows[0].name == "overall"
    for row in rows:
        assert len(row.synthetic) <= max(limit, len(cells)) and len(row.real) <= max(limit, len(cells))
        own = mixture(synthetic, row.synthetic)
        assert mixture(train, row.train) == own  # as many, class by class
        share = len(row.real) / len(row.synthetic)
        for cell, count in mixture(real, row.real).items():
            assert abs(count - share * own[cell]) <= max(2, len(own))  # rounding down, cell by cell
        first, second = row.halves
        assert not set(first) & set(second) and set(first) | set(second) <= set(row.real)
        assert abs(len(second) - len(row.synthetic_half)) <= len(own) and len(row.synthetic_half) <= len(first) + 1
        assert set(row.synthetic_half) <= set(row.synthetic)
        for places in (row.real, row.synthetic, row.train, first, second):
            assert (np.diff(places) > 0).all()


def test_there_is_a_row_for_all_for_each_level_and_for_each_class() -> None:
    cells = {(level, label): 10 for level in ("overview", "patch") for label in "AB"}
    rows = comparisons(of_kind(cells), of_kind(cells, "synthetic"), None)
    assert [row.name for row in rows] == [
        "overall", "overview", "patch", "overview, A", "overview, B", "patch, A", "patch, B",
    ]  # fmt: skip
    assert all(row.train is None and row.matched for row in rows)
    one = {("patch", "A"): 10}
    assert [row.name for row in comparisons(of_kind(one), of_kind(one, "synthetic"), None)] == ["overall"]


def test_tiles_of_unknown_class_are_compared_as_they_are_and_said_not_to_match() -> None:
    real, synthetic = of_kind({("patch", "A"): 10, ("patch", "B"): 30}), of_kind({(None, None): 20}, "synthetic")
    (row,) = comparisons(real, synthetic, of_kind({("patch", "A"): 50}, "training"))
    assert not row.matched and len(row.real) == 40 and len(row.train) == 20
    levels = of_kind({("patch", "A"): 10, ("overview", "A"): 10})
    with pytest.raises(PathUpError, match=r"levels overview, patch, but the synthetic .* of which; .*--level"):
        comparisons(levels, synthetic, None)


def test_draws_are_of_the_seed() -> None:
    real, synthetic = of_kind({("patch", "A"): 100}), of_kind({("patch", "A"): 80}, "synthetic")
    rows = [comparisons(real, synthetic, None, limit=50, seed=seed)[0] for seed in (0, 0, 1)]
    assert np.array_equal(rows[0].real, rows[1].real) and not np.array_equal(rows[0].real, rows[2].real)
    assert len(rows[0].real) == len(rows[0].synthetic) == 50
