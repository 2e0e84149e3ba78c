"""Making a folder of tiles from a source: in several processes, resumable, the same bytes every time.

Two passes. The first looks through every region and writes nothing but its notes, so bad input is found before a
split has a tile and a class's allowance is drawn from all of its tiles. With the notes are the tiles that are wanted
whatever other regions hold, those of levels without an allowance: each region is then decoded once. The second pass
puts the tiles in their places, and cuts those with an allowance. The
``sources.jsonl`` and ``metadata.jsonl`` of the splits come last, and ``summary.json`` last of all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pathup import storage
from pathup.draws import seed_of
from pathup.errors import OutputError, PathUpError
from pathup.recipes import Recipe, TilesRecipe, recipe_text, save_recipe
from pathup.slides.images import image_size
from pathup.slides.reader import SLIDE_SUFFIXES
from pathup.tiles.cutting import Field, Scan, cut_region, scan_region, signature
from pathup.tiles.provenance import Looks, SourceRegion, check_apart, write_sources
from pathup.tiles.regions import SPLITS, Region
from pathup.tiles.sources import Source, find_source
from pathup.tiles.splits import Area, check_tissue, split_regions
from pathup.tiles.taxonomy import prompt_text
from pathup.tiles.workers import run_all

METADATA_FILE = "metadata.jsonl"
SUMMARY_FILE = "summary.json"
RECIPE_FILE = "recipe.yaml"
_NOTES = ".work"
_FORMAT = 4
"""Counts up when the same source and recipe would give other files, so that no run is resumed across it."""


def make_tiles(
    source: Path,
    out: Path,
    recipe: Recipe,
    *,
    annotations: Path | None = None,
    patients: Path | None = None,
    mpp: float | None = None,
    workers: int = 1,
    resume: bool = False,
) -> dict[str, Any]:
    """Cut a source into a folder of tiles.

    Parameters
    ----------
    source, annotations, patients, mpp
        As for `sources.find_source`.
    out
        Folder to make: a folder of PNGs, a ``metadata.jsonl`` and a ``sources.jsonl`` for each split, ``recipe.yaml``,
        ``summary.json``.
    workers
        Number of processes; the result does not depend on it.
    resume
        Go on with a run that was stopped, or find it finished.

    Returns
    -------
    dict
        What ``summary.json`` holds: counts of tiles by split, level and class, what was left out and why, and
        warnings.

    Raises
    ------
    PathUpError
        Anything wrong with the source (nothing is left behind then), an output folder of another run, a full disk.
    """
    if workers < 1:
        raise PathUpError(f"--workers is {workers}, but at least 1 process is needed")
    found = find_source(source, recipe, annotations=annotations, patients=patients, mpp=mpp)
    regions, gaps = split_regions(found.regions, recipe, found.joined)
    warnings = [*found.warnings, *gaps]
    _check_headers(regions)
    existed = out.exists()
    begun = storage.claim_folder(out, "tiles", _identity(regions, recipe), resume=resume)
    if begun and (out / SUMMARY_FILE).is_file():
        _tidy(out)
        return dict(storage.read_json(out / SUMMARY_FILE))
    try:
        scans = _scan(out / _NOTES, regions, recipe.tiles, workers)
        check_tissue(Area(r.place, str(r.split), str(scans[r.name].sha256), *scans[r.name].area) for r in regions)
        sources = [(str(r.split), _source(r, scans[r.name])) for r in regions]
        check_apart(sources)
        chosen, left_out = _choose(regions, scans, recipe.tiles)
        if not any(chosen.values()):
            raise PathUpError(_nothing(source, left_out))
    except OutputError:
        raise
    except Exception:
        if not begun:  # nothing was cut yet, so a corrected source can be tried again at once
            _forget(out, existed)
        raise
    _cut(out, regions, scans, chosen, recipe.tiles, workers)
    for split in SPLITS:
        own = [source for of, source in sources if of == split and chosen[source.region]]
        if own:
            write_sources(out / split, own)
    return _finish(out, found, regions, scans, chosen, left_out, warnings, recipe)


def tile_name(region: Region, field: Field) -> str:
    """A tile's path within its split's folder."""
    return f"{field.level}/{region.label}/{region.name}_{field.x}_{field.y}.png"


def _check_headers(regions: Sequence[Region]) -> None:
    """Find most of what can be wrong with region images before anything else is done."""
    for file in dict.fromkeys(region.file for region in regions):
        if file.suffix.lower() not in SLIDE_SUFFIXES:
            image_size(file)


def _identity(regions: Sequence[Region], recipe: Recipe) -> dict[str, Any]:
    listed = [{k: v for k, v in asdict(r).items() if k != "file"} | {"bytes": r.file.stat().st_size} for r in regions]
    text = json.dumps(listed, sort_keys=True, default=lambda value: value.hex())
    return {
        "format": _FORMAT,
        "source": hashlib.sha256(text.encode()).hexdigest(),
        "recipe": hashlib.sha256(recipe_text(recipe).encode()).hexdigest(),
    }


def _forget(out: Path, existed: bool) -> None:
    (out / storage.IDENTITY_FILE).unlink(missing_ok=True)
    shutil.rmtree(out / _NOTES, ignore_errors=True)
    if not existed and out.is_dir() and not any(out.iterdir()):
        out.rmdir()


def _scan(notes: Path, regions: Sequence[Region], recipe: TilesRecipe, workers: int) -> dict[str, Scan]:
    """Scan every region that has no note yet; return all scans by region name.

    The first region of a file hashes it, for all of them.
    """
    first: dict[Path, str] = {}
    for region in regions:
        first.setdefault(region.file, region.name)
    waiting = [
        (r, recipe, notes / f"{r.name}.scan.json", first[r.file] == r.name) for r in regions if not _scanned(notes, r)
    ]
    done = len(regions) - len(waiting)
    run_all(_scan_one, waiting, workers, "looking through the regions and cutting them", done=done)
    scans = {r.name: _read_scan(notes / f"{r.name}.scan.json") for r in regions}
    for region in regions:
        own, hashed = scans[region.name], scans[first[region.file]]
        if own.signature != hashed.signature:
            raise _changed(region.file)
        scans[region.name] = replace(own, sha256=hashed.sha256)
    return scans


def _scan_one(region: Region, recipe: TilesRecipe, note: Path, hashed: bool) -> None:
    scan = scan_region(region, recipe, hashed=hashed, tiles=note.parent / f"{region.name}.tiles")
    storage.write_json(note, asdict(scan))


def _scanned(notes: Path, region: Region) -> bool:
    note = notes / f"{region.name}.scan.json"
    if not note.is_file():
        return False
    if _read_scan(note).signature != signature(region.file):
        raise _changed(region.file)
    return True


def _changed(file: Path) -> PathUpError:
    return PathUpError(
        f"{file} has changed since this run was begun; start again with another output folder, or remove this one"
    )


def _read_scan(note: Path) -> Scan:
    values = storage.read_json(note)
    fields = [Field(**field) for field in values["fields"]]
    return Scan(**values | {"fields": fields, "looks": Looks(**values["looks"])})


def _choose(
    regions: Sequence[Region], scans: dict[str, Scan], recipe: TilesRecipe
) -> tuple[dict[str, list[Field]], dict[str, Counter[str]]]:
    """Draw each class's allowance of tiles, a level and split; count what is left out, by level and reason."""
    limits = {level.name: level.max_per_class for level in recipe.levels}
    left_out: dict[str, Counter[str]] = {name: Counter() for name in limits}
    pools: dict[tuple[str, str, str], list[tuple[int, str, Field]]] = defaultdict(list)
    for region in regions:
        for level, reasons in scans[region.name].left_out.items():
            left_out[level].update(reasons)
        for field in scans[region.name].fields:
            draw = seed_of(recipe.seed, "max_per_class", region.name, field.level, field.x, field.y)
            pools[str(region.split), field.level, region.label].append((draw, region.name, field))
    chosen: dict[str, list[Field]] = {region.name: [] for region in regions}
    for (_, level, _), pool in sorted(pools.items()):
        limit = limits[level]
        if limit is not None and len(pool) > limit:
            left_out[level]["more than max_per_class"] += len(pool) - limit
            pool = sorted(pool, key=lambda item: item[:2])[:limit]
        for _, name, field in pool:
            chosen[name].append(field)
    return {name: sorted(fields, key=lambda f: (f.level, f.y, f.x)) for name, fields in chosen.items()}, left_out


def _source(region: Region, scan: Scan) -> SourceRegion:
    left, top, right, bottom = scan.area
    return SourceRegion(
        region.name, region.label, region.slide, region.patient, str(scan.sha256), (left, top, right, bottom),
        **asdict(scan.looks),
    )  # fmt: skip


def _nothing(source: Path, left_out: dict[str, Counter[str]]) -> str:
    reasons = "; ".join(
        f"{level}: {', '.join(f'{count} {reason}' for reason, count in counts.items())}"
        for level, counts in left_out.items()
        if counts
    )
    return (
        f"source {source} gives no tiles ({reasons or 'no fields'}); "
        "larger regions, smaller fields or a smaller tiles.min_tissue or tiles.min_inside are needed"
    )


def _cut(
    out: Path,
    regions: Sequence[Region],
    scans: dict[str, Scan],
    chosen: dict[str, list[Field]],
    recipe: TilesRecipe,
    workers: int,
) -> None:
    waiting = []
    for region in regions:
        note = out / _NOTES / f"{region.name}.cut"
        names = [out / str(region.split) / tile_name(region, field) for field in chosen[region.name]]
        if names and not note.exists():
            waiting.append((region, chosen[region.name], recipe, names, note, scans[region.name].signature))
    if all(level.max_per_class is None for level in recipe.levels):
        workers = 1  # they are only moved, which is done before other processes have begun
    run_all(_cut_one, waiting, workers, "putting tiles in place", done=len(regions) - len(waiting))


def _cut_one(
    region: Region, fields: list[Field], recipe: TilesRecipe, names: list[Path], note: Path, seen: list[list[int]]
) -> None:
    cut_region(region, fields, recipe, names, tiles=note.parent / f"{region.name}.tiles")
    if signature(region.file) != seen:
        raise PathUpError(f"{region.file} was changed while it was cut; start again with another output folder")
    storage.write_text(note, "")


def _finish(
    out: Path,
    found: Source,
    regions: Sequence[Region],
    scans: dict[str, Scan],
    chosen: dict[str, list[Field]],
    left_out: dict[str, Counter[str]],
    warnings: list[str],
    recipe: Recipe,
) -> dict[str, Any]:
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for region in regions:
        records[str(region.split)] += [
            {
                "file_name": tile_name(region, field),
                "text": prompt_text(recipe, region.label, field.level),
                "label": region.label,
                "level": field.level,
                "patient": region.patient,
                "slide": region.slide,
                "region": region.name,
                "x": field.x,
                "y": field.y,
                "mpp": field.mpp,
                "source_sha256": scans[region.name].sha256,
            }
            for field in chosen[region.name]
        ]
    save_recipe(recipe, out / RECIPE_FILE)
    for split, rows in records.items():
        if rows:
            rows.sort(key=lambda row: str(row["file_name"]))
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            storage.write_text(out / split / METADATA_FILE, "".join(lines))
    counts = {
        split: {
            level: {label: sum(r["level"] == level and r["label"] == label for r in rows) for label in recipe.labels}
            for level in recipe.level_names
        }
        for split, rows in records.items()
    }
    summary = {
        "source": found.kind,
        "regions": dict(Counter(str(region.split) for region in regions)),
        "tiles": counts,
        "left_out": {level: dict(sorted(reasons.items())) for level, reasons in left_out.items()},
        "split_by": recipe.tiles.split_by,
        "warnings": warnings,
    }
    storage.write_json(out / SUMMARY_FILE, summary)
    _tidy(out)
    return summary


def _tidy(out: Path) -> None:
    """Remove the notes, and what a killed process left unfinished."""
    shutil.rmtree(out / _NOTES, ignore_errors=True)
    for folder in (out, *(out / split for split in SPLITS)):
        for partial in folder.glob(".*.partial.*"):
            partial.unlink(missing_ok=True)
