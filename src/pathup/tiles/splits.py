"""Splits: keep those that a source has, else deal its patients, slides or regions out; never both sides."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from shapely import STRtree, box

from pathup.draws import seed_of
from pathup.errors import PathUpError
from pathup.recipes import Recipe
from pathup.tiles.regions import SPLITS, Region


def check_disjoint(members: Iterable[tuple[str, str]], kind: str) -> None:
    """Check that no group is in two splits.

    Parameters
    ----------
    members
        (group, split) pairs.
    kind
        What a group is ('patient', 'slide', 'region'), for the message.

    Raises
    ------
    PathUpError
        A group is in two splits; the first such group is named.
    """
    seen: dict[str, set[str]] = defaultdict(set)
    for group, split in members:
        seen[group].add(split)
    both = sorted(group for group, splits in seen.items() if len(splits) > 1)
    if both:
        sides = " and ".join(s for s in SPLITS if s in seen[both[0]])
        more = f" (and {len(both) - 1} more {kind}s)" if len(both) > 1 else ""
        raise PathUpError(
            f"{kind} '{both[0]}' is in both {sides}{more}, but the splits must not share a {kind}; "
            f"move it to one of them, or set tiles.split_by in the recipe"
        )


@dataclass(frozen=True)
class Area:
    """The tissue of a region: a rectangle (level-0 pixels) of a file of this content, and the split it is in."""

    place: str
    split: str
    sha256: str
    left: int
    top: int
    right: int
    bottom: int

    def __str__(self) -> str:
        size = f"{self.right - self.left} x {self.bottom - self.top} px at ({self.left}, {self.top})"
        return f"{self.place} (split '{self.split}', {size})"


def check_tissue(areas: Iterable[Area]) -> None:
    """Check that no tissue is in two splits, whatever its files and regions are called.

    Raises
    ------
    PathUpError
        Areas of one content (a file, or copies of it) overlap and are in different splits; both are named.
    """
    of_file: dict[str, list[Area]] = defaultdict(list)
    for area in areas:
        of_file[area.sha256].append(area)
    for found in of_file.values():
        if len({area.split for area in found}) > 1:
            boxes = [box(a.left, a.top, a.right, a.bottom) for a in found]
            for i, k in STRtree(boxes).query(boxes, predicate="intersects").T.tolist():
                _check_apart(found[i], found[k])


def _check_apart(one: Area, other: Area) -> None:
    wide = min(one.right, other.right) - max(one.left, other.left)
    high = min(one.bottom, other.bottom) - max(one.top, other.top)
    # boxes around outlines are rounded outwards, so those of neighbours may share one pixel
    if one.split != other.split and wide > 1 and high > 1:
        raise PathUpError(
            f"{one} and {other} hold the same tissue, but the splits must not share any; "
            "keep one of them, or move both to one split"
        )


def split_regions(
    regions: Sequence[Region], recipe: Recipe, joined: Mapping[str, str] | None = None
) -> tuple[list[Region], list[str]]:
    """Give every region its split.

    A source's own splits are kept (and checked). Otherwise groups, by the recipe's `split_by`, are dealt out
    class by class in an order drawn from the seed. Of a class with n groups, every split with a share gets
    n times its share, rounded so that they add up, and at least one when there are as many groups as
    splits; with two groups train and test get one each, and a single group goes to train. A group with several classes
    counts as its rarest.

    Parameters
    ----------
    regions
        All with a split or all without.
    joined
        For regions whose tissue overlaps: region name to the name of its cluster, which is split as one.

    Returns
    -------
    tuple
        The regions with splits, and warnings (one sentence each) about splits that a class is missing from.

    Raises
    ------
    PathUpError
        A group is on both sides of the source's own splits, or only some regions have one.
    """
    split_by = recipe.tiles.split_by
    missing = [r for r in regions if r.split is None]
    if missing and len(missing) < len(regions):
        raise PathUpError(f"{missing[0].place} has no split though others have; state it for all regions or for none")
    if missing:
        clusters = (joined or {}) if split_by == "region" else {}
        keys = {r.name: clusters.get(r.name, r.group(split_by)) for r in regions}
        shares = {split: recipe.tiles.splits.get(split, 0.0) for split in SPLITS}  # type: ignore[call-overload]
        dealt = _deal(regions, keys, shares, recipe.tiles.seed)
        regions = [replace(r, split=dealt[keys[r.name]]) for r in regions]
    else:
        _check_clusters(regions, joined or {})
    check_disjoint(((r.group(split_by), str(r.split)) for r in regions), split_by)
    return list(regions), _gaps(regions, recipe, own=not missing)


def _check_clusters(regions: Sequence[Region], joined: Mapping[str, str]) -> None:
    first: dict[str, Region] = {}
    for region in regions:
        other = first.setdefault(joined.get(region.name, region.name), region)
        if other.split != region.split:
            raise PathUpError(
                f"{other.place} ({other.split}) and {region.place} ({region.split}) overlap on slide '{region.slide}', "
                "or are joined by regions that do, but the splits must not share tissue; move them to one split"
            )


def _deal(regions: Sequence[Region], keys: Mapping[str, str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    labels: dict[str, set[str]] = defaultdict(set)
    for region in regions:
        labels[keys[region.name]].add(region.label)
    groups_of = Counter(label for found in labels.values() for label in found)
    by_class: dict[str, list[str]] = defaultdict(list)
    for key, found in labels.items():
        by_class[min(found, key=lambda label: (groups_of[label], label))].append(key)
    dealt: dict[str, str] = {}
    for label, members in sorted(by_class.items()):
        order = iter(sorted(members, key=lambda key: (seed_of(seed, "split", label, key), key)))
        for split, count in quotas(len(members), shares).items():
            for _ in range(count):
                dealt[next(order)] = split
    return dealt


def quotas(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """How many of `count` groups each split gets; they add up to `count`.

    Every split with a share gets one first, in the order train, test, val, as far as the groups go; each
    further group goes to the split that is furthest below its share.
    """
    wanted = [split for split in ("train", "test", "val") if shares.get(split, 0) > 0]
    wanted += [split for split in shares if shares[split] > 0 and split not in wanted]
    given = dict.fromkeys(wanted, 0)
    for turn in range(count):
        if turn < len(wanted):
            given[wanted[turn]] += 1
        else:
            given[max(wanted, key=lambda split: shares[split] * count - given[split])] += 1
    return given


def _gaps(regions: Sequence[Region], recipe: Recipe, *, own: bool) -> list[str]:
    """Sentences on what is missing; `own`: the splits are the source's."""
    found: dict[str, set[str]] = defaultdict(set)
    for region in regions:
        found[region.label].add(str(region.split))
    warnings = []
    absent = [label for label in recipe.labels if label not in found]
    if absent:
        warnings.append(f"the source has no regions of class {', '.join(absent)}")
    for split in SPLITS:
        lacking = [label for label in recipe.labels if label in found and split not in found[label]]
        if lacking and (split == "train" or recipe.tiles.splits.get(split, 0) > 0):  # type: ignore[call-overload]
            kind = recipe.tiles.split_by
            what = "is empty" if len(lacking) == len(found) else f"has no regions of class {', '.join(lacking)}"
            why = " in the source" if own else f": too few {kind}s to divide, for a {kind} goes to one split only"
            warnings.append(f"split '{split}' {what}{why}")
    return warnings
