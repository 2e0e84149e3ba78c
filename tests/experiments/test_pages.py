"""What the pages of an experiment say, on made figures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pathup.experiments.arms import experiment
from pathup.experiments.pages import METRICS, by_cell, differences, page, ratios

SEEDS, ARMS = 5, ("none", "patho_align", "beta_0.1", "unprompted_0.1")


def made(factor: dict[str, float], noise: float) -> list[dict]:
    """Figures of two networks of different scale, two levels; an arm's kernel distance is so many times as large."""
    draw, rows = np.random.default_rng(0), []
    for seed in range(SEEDS):
        luck = draw.normal(size=2)
        for features, scale in (("near", 80.0), ("far", 700.0)):
            for place, level in enumerate(("overview", "patch")):
                for arm in ARMS:
                    value = scale * factor.get(arm, 1.0) * np.exp(0.1 * luck[place] + noise * draw.normal())
                    rows.append({"features": features, "level": level, "arm": arm, "seed": seed, "tiles": 280,
                                 **dict.fromkeys(METRICS, 0.5), "kid": value, "recall": 0.0})  # fmt: skip
    return rows


def test_what_is_small_and_the_same_everywhere_is_found_over_all_networks_and_levels():
    """A twentieth less, with noise of as much: seldom found in one table, and found in all of them together."""
    cells, asked = by_cell(made({"beta_0.1": 0.95}, 0.03)), experiment("table2")
    found = {(row["arm"], row["metric"]): row for row in ratios(asked, cells)}
    told = found["beta_0.1", "kid"]
    assert told["low"] < 0.95 < told["high"] < 1 and told["p"] < 0.05
    other = found["unprompted_0.1", "kid"]
    assert other["low"] < 1 < other["high"]
    assert ("beta_0.1", "recall") not in found  # 0 has no ratio
    alone = [gap["p"] for gap in differences(asked, cells) if (gap["arm"], gap["metric"]) == ("beta_0.1", "kid")]
    assert max(alone) > 0.05


def test_a_ratio_is_the_t_test_of_logarithms_by_hand():
    rows, asked = made({"patho_align": 0.7}, 0.2), experiment("table2")
    told = next(row for row in ratios(asked, by_cell(rows)) if (row["arm"], row["metric"]) == ("patho_align", "kid"))
    logs = [
        np.mean([np.log(row["kid"]) * (1 if row["arm"] == "patho_align" else -1)
                 for row in rows if row["seed"] == seed and row["arm"] in ("patho_align", "none")]) * 2
        for seed in range(SEEDS)
    ]  # fmt: skip
    wanted = stats.ttest_1samp(logs, 0)
    interval = wanted.confidence_interval()
    assert told["ratio"] == pytest.approx(np.exp(np.mean(logs)))
    assert (told["low"], told["high"]) == pytest.approx((np.exp(interval.low), np.exp(interval.high)))
    assert told["p"] == pytest.approx(wanted.pvalue)


def test_the_page_tells_them_and_leaves_out_what_has_none():
    cells, asked = by_cell(made({}, 0.1)), experiment("table2")
    text = page(asked, cells, [], [], differences(asked, cells), ratios(asked, cells), SEEDS)
    head = text.split("## Over all networks and levels")[1].splitlines()[4]
    assert "kernel distance" in head and "recall" not in head
