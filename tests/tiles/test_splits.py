from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathup.errors import PathUpError
from pathup.tiles.regions import Region
from pathup.tiles.splits import Area, check_disjoint, check_tissue, quotas, split_regions
from tests.tiles.made import tiny

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def _region(name: str, label: str = "A", *, slide: str = "s", patient: str = "p", split: str | None = None) -> Region:
    return Region(name=name, file=Path(name), place=name, label=label, slide=slide, patient=patient, split=split)


@given(
    st.integers(0, 400),
    st.sampled_from([SHARES, {"train": 0.5, "test": 0.5}, {"train": 1.0}, {"train": 0.7, "val": 0.3}]),
)
def test_quotas_add_up_and_are_near_the_shares(count: int, shares: dict[str, float]) -> None:
    given_out = quotas(count, shares)
    assert sum(given_out.values()) == count
    if count >= len(given_out):
        assert min(given_out.values()) >= 1
    for split, number in given_out.items():
        assert abs(number - shares[split] * count) <= 2, "one for rounding, one for the least that each split gets"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (5, (3, 1, 1)), (10, (8, 1, 1)), (100, (80, 10, 10))],
)
def test_quotas_by_hand(count: int, expected: tuple[int, int, int]) -> None:
    assert tuple(quotas(count, SHARES)[s] for s in ("train", "val", "test")) == expected


@given(
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from("AB")), min_size=1, max_size=40),
    st.sampled_from(["patient", "slide", "region"]),
)
def test_no_group_is_ever_on_both_sides(drawn: list[tuple[int, str]], split_by: str) -> None:
    regions = [_region(f"r{i}", label, slide=f"s{i % 17}-{p}", patient=f"p{p}") for i, (p, label) in enumerate(drawn)]
    split, _ = split_regions(regions, tiny(split_by=split_by))
    again, _ = split_regions(regions[::-1], tiny(split_by=split_by))
    assert {r.name: r.split for r in split} == {r.name: r.split for r in again}, "order does not matter"
    sides = {}
    for region in split:
        assert sides.setdefault(region.group(split_by), region.split) == region.split
        assert region.split in ("train", "val", "test")


def test_classes_are_dealt_evenly_and_the_seed_decides() -> None:
    regions = [_region(f"{label}{i}", label) for label, n in (("A", 20), ("B", 10)) for i in range(n)]
    split, warnings = split_regions(regions, tiny())
    assert Counter((r.label, r.split) for r in split) == {
        ("A", "train"): 16, ("A", "val"): 2, ("A", "test"): 2, ("B", "train"): 8, ("B", "val"): 1, ("B", "test"): 1,
    }  # fmt: skip
    assert warnings == []
    other, _ = split_regions(regions, tiny(seed=1))
    assert [r.split for r in other] != [r.split for r in split]


def test_one_group_goes_to_train_with_a_warning() -> None:
    split, warnings = split_regions([_region("r1", "A"), _region("r2", "B")], tiny(split_by="slide"))
    assert {r.split for r in split} == {"train"}
    assert [w.split(":")[0] for w in warnings] == ["split 'val' is empty", "split 'test' is empty"]


def test_a_class_that_is_missing_is_told() -> None:
    _, warnings = split_regions([_region(f"r{i}") for i in range(10)], tiny())
    assert warnings == ["the source has no regions of class B"]


def test_clusters_stay_together_when_splitting_by_region() -> None:
    regions = [_region(f"r{i}") for i in range(12)]
    joined = {f"r{i}": f"r{i // 4 * 4}" for i in range(12)}
    split, _ = split_regions(regions, tiny(), joined)
    for first in (0, 4, 8):
        assert len({r.split for r in split[first : first + 4]}) == 1
    assert len({r.split for r in split}) == 3


def test_own_splits_are_kept_and_checked() -> None:
    regions = [_region("r1", slide="x", split="train"), _region("r2", slide="x", split="test")]
    split, _ = split_regions(regions, tiny(split_by="region"))
    assert [r.split for r in split] == ["train", "test"]
    with pytest.raises(PathUpError, match="slide 'x' is in both train and test"):
        split_regions(regions, tiny(split_by="slide"))
    with pytest.raises(PathUpError, match="patient 'p' is in both train and test"):
        split_regions(regions, tiny(split_by="patient"))
    with pytest.raises(PathUpError, match="r3 has no split though others have"):
        split_regions([*regions, _region("r3")], tiny())


def test_gaps_of_a_sources_own_splits_are_the_sources() -> None:
    regions = [_region("r1", "A", split="train"), _region("r2", "B", split="train"), _region("r3", "A", split="test")]
    _, warnings = split_regions(regions, tiny(split_by="region"))
    assert warnings == ["split 'val' is empty in the source", "split 'test' has no regions of class B in the source"]


def _area(split: str, left: int, sha256: str = "s", top: int = 0) -> Area:
    return Area(f"{split}.tif", split, sha256, left, top, left + 100, top + 100)


@pytest.mark.parametrize(("left", "top", "shared"), [(0, 0, True), (98, 98, True), (99, 0, False), (0, 100, False)])
def test_tissue_in_two_splits(left: int, top: int, shared: bool) -> None:
    # 99: boxes around outlines are rounded to whole pixels, so neighbours may share one
    areas = [_area("train", 500), _area("train", 0), _area("test", left, top=top), _area("val", 0, "another file")]
    if not shared:
        check_tissue(areas)
        return
    with pytest.raises(PathUpError, match=r"hold the same tissue") as raised:
        check_tissue(areas)
    for named in ("train.tif (split 'train', 100 x 100 px at (0, 0))", "test.tif (split 'test'"):
        assert named in str(raised.value)


def test_tissue_twice_in_one_split_is_no_matter() -> None:
    check_tissue([_area("train", 0), _area("train", 50), _area("test", 0, "another file")])


def test_check_disjoint_counts_the_others() -> None:
    with pytest.raises(PathUpError, match=r"'a' is in both train and val \(and 1 more slides\)"):
        check_disjoint([("a", "train"), ("a", "val"), ("b", "val"), ("b", "test"), ("c", "val")], "slide")
