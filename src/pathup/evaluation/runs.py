"""``pathup evaluate``: the request, the sets, the parts of the report, and the folder that holds it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathup import __version__, storage
from pathup.errors import PathUpError, unknown
from pathup.evaluation import large_images as seam_parts
from pathup.evaluation import parts, tissue_parts
from pathup.evaluation.comparisons import Comparison, comparisons
from pathup.evaluation.crops import CROPS_FOLDER, MIN_TISSUE, are_crops, are_tiles, cut_crops, large_images, needs_crops
from pathup.evaluation.encoders import Encoder, load_features
from pathup.evaluation.features import default_cache, kept_features
from pathup.evaluation.page import page
from pathup.evaluation.sharing import SharedExtraction
from pathup.evaluation.tables import markdown, title
from pathup.evaluation.tile_sets import (
    TileSet,
    check_comparable,
    is_tiles_folder,
    load_tile_set,
    metadata_folders,
    recipe_of,
)
from pathup.memory import keep_freed_memory
from pathup.processes import launched_processes
from pathup.sampling.device import choose_device
from pathup.slides.images import image_size
from pathup.tiles.regions import SPLITS

__all__ = ["PARTS", "EvaluateReport", "EvaluateRequest", "evaluate"]

PARTS = ("fidelity", "consistency", "morphology", "copying", "seams")

CROP_PX = 256
"""Side of crops where slides are compared with slides and ``--crop`` says nothing."""

LARGEST_TILE_PX = 512
"""The paper's patches; larger images are cropped when they are compared with slides."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What ``pathup evaluate`` was asked for; the fields are its arguments and options (docs/commands.md)."""

    real: Path
    fake: Path
    output: Path
    features: tuple[str, ...] = ("atlas",)
    runs: tuple[Path, ...] = ()
    large: tuple[Path, ...] = ()
    large_real: tuple[Path, ...] = ()
    train: Path | None = None
    split: str = "test"
    level: str | None = None
    only: tuple[str, ...] = ()
    count: int = 10_000
    crop: int | None = None
    crops: int = 1000
    mpp: float | None = None
    grid: str | None = None
    seed: int = 0
    replicates: int = 1000
    subset_size: int = 1000
    subsets: int = 100
    cache: Path | None = None
    keep: bool = True
    device: str = "auto"
    threads: int | None = None
    overwrite: bool = False


@dataclass
class EvaluateReport:
    """What was measured: the content of ``results.json``, and lines for the terminal; nothing in processes that helped.

    Those are all but the first of a run that ``torchrun`` or ``accelerate launch`` started.
    """

    results: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    is_main: bool = True


@dataclass
class Sets:
    """The tiles of a run of ``pathup evaluate``, checked against each other, and the rows that compare them."""

    real: TileSet
    train: TileSet | None
    runs: list[TileSet]
    rows: list[list[Comparison]]
    split_by: str | None


def evaluate(request: EvaluateRequest, progress: Progress | None = None) -> EvaluateReport:
    """Measure, and write ``results.json``, ``results.md``, ``index.html`` and the pictures into ``request.output``.

    Of several processes the first measures, and the others take their share of the features. The folder appears when
    all is done; features that were taken by then are kept, so that a killed run is quick to repeat.

    Parameters
    ----------
    progress
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    PathUpError
        The folder exists, an option is out of range, tiles are missing, damaged, too few or not to be compared, or a
        network cannot be loaded.
    """
    wanted = _wanted(request)
    _check_output(request)
    tell: Progress = progress or (lambda stage, done, total: None)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    processes, own_device = launched_processes(request.device)
    device = choose_device(own_device)
    if device.type == "cpu":
        keep_freed_memory()
    encoders = [load_features(name, device) for name in request.features]
    shared = SharedExtraction(encoders, processes)
    if not processes.is_main:
        shared.serve()
        return EvaluateReport({}, is_main=False)
    with shared, storage.atomic_folder(request.output) as folder:
        sets = _sets(request, folder, tell)
        results = _head(request, sets)
        pictures: dict[str, list[tuple[Path, str]]] = {}
        work = parts.Work(request, sets, folder, results["notes"], tell)
        features = [_features_of(request, encoder, shared, tell) for encoder in encoders]
        if "fidelity" in wanted:
            results["fidelity"] = parts.fidelity(work, encoders, features, pictures)
        if "consistency" in wanted:
            results["consistency"] = parts.consistency(work, encoders, features, pictures)
        if "morphology" in wanted:
            results["morphology"] = tissue_parts.morphology(work, pictures)
        if "copying" in wanted:
            results["copying"] = tissue_parts.copying(work, pictures)
        if "seams" in wanted:
            results["seams"] = seam_parts.seams(work)
            results["seams_real"] = seam_parts.real_lines(work, results["seams"])
        text = markdown(results)
        storage.write_json(folder / "results.json", results)
        storage.write_text(folder / "results.md", text)
        storage.write_text(folder / "index.html", page(title(results), text, pictures))
    return EvaluateReport(results, parts.summary(results))


def _wanted(request: EvaluateRequest) -> tuple[str, ...]:
    for name in request.only:
        if name not in PARTS:
            raise unknown("part", name, PARTS)
    if request.split not in SPLITS:
        raise unknown("split", request.split, SPLITS)
    if request.grid is not None:
        seam_parts.parsed_grid(request.grid)
    for given in (*request.large, *request.large_real):
        large_images(given)  # a folder without any is told now, not after the rest was measured
    return request.only or PARTS


def _check_output(request: EvaluateRequest) -> None:
    folder = request.output
    if folder.exists() and not folder.is_dir():
        raise PathUpError(f"{folder} is a file, but a folder is needed for the report; name another")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not request.overwrite:
        raise PathUpError(f"{folder} exists and is not empty; add --overwrite to replace it, or name another folder")
    if not (folder / "results.json").is_file():
        raise PathUpError(f"{folder} holds something other than a report of 'pathup evaluate'; name another folder")


# -- the sets ---------------------------------------------------------------------------------------------------


def _sets(request: EvaluateRequest, folder: Path, tell: Progress) -> Sets:
    recipe = recipe_of(request.real) if is_tiles_folder(request.real) else None
    real = _loaded(request, request.real, "real", folder, request.split, tell)
    train = _train(request, folder, tell)
    runs = []
    for number, path in enumerate((request.fake, *request.runs)):
        name = "synthetic" if number == 0 else f"synthetic, run {number + 1}"
        runs.append(_loaded(request, path, name, folder, None, tell))
    own = {level for run in runs for level in run.levels}
    if None not in own:
        real = _of_levels(real, own)
        train = None if train is None else _of_levels(train, own)
    for other in (*runs, *([train] if train is not None else [])):
        check_comparable(real, other)
    rows = [comparisons(real, run, train, limit=request.count, seed=request.seed) for run in runs]
    return Sets(real, train, runs, rows, recipe.tiles.split_by if recipe else None)


def _of_levels(tiles: TileSet, levels: set[str | None]) -> TileSet:
    """The tiles of these levels; all of them where levels are not known."""
    if None in tiles.levels:
        return tiles
    return tiles.at(place for place, level in enumerate(tiles.levels) if level in levels)


def _train(request: EvaluateRequest, folder: Path, tell: Progress) -> TileSet | None:
    if request.train is not None:
        return _loaded(request, request.train, "real training", folder, "train", tell)
    if is_tiles_folder(request.real) and (request.real / "train").is_dir() and request.split != "train":
        return _loaded(request, request.real, "real training", folder, "train", tell)
    return None


def _loaded(
    request: EvaluateRequest, path: Path, name: str, folder: Path, split: str | None, tell: Progress
) -> TileSet:
    """One set: loaded, cropped where it is of large images, and cut down to the level asked for."""
    side = _crop_side(request)
    if needs_crops(path) or (side is not None and not is_tiles_folder(path) and not are_tiles(path, side)):
        side = side or CROP_PX
        target = folder / CROPS_FOLDER / name.replace(",", "").replace(" ", "_")
        cut_crops(
            path, target, side_px=side, count=request.crops, seed=request.seed, mpp=request.mpp,
            assume_mpp=request.mpp, progress=lambda done, total: tell(f"crops, {name}", done, total),
        )  # fmt: skip
        tiles = replace(load_tile_set(target, name, mpp=request.mpp), source=f"crops of {path.name}")
    else:
        tiles = load_tile_set(path, name, split=split, mpp=request.mpp)
    if request.level is None:
        return tiles
    if set(tiles.levels) == {None}:
        return replace(tiles, levels=(request.level,) * len(tiles))
    chosen = tiles.of(level=request.level)
    if not len(chosen):
        known = sorted({str(level) for level in tiles.levels})
        raise unknown(f"level of the {name} tiles", request.level, known)
    return chosen


def _crop_side(request: EvaluateRequest) -> int | None:
    """Side of crops: as asked; else, where slides are compared, that of the tiles on the other side.

    None where nothing is to be cropped. Images above `LARGEST_TILE_PX` are no tiles beside a slide.
    """
    paths = [path for path in (request.real, request.fake, *request.runs) if path.exists()]
    if request.crop is not None or not any(needs_crops(path) for path in paths):
        return request.crop
    sides = [_image_side(path) for path in paths if not needs_crops(path)]
    tiles = [side for side in sides if side <= LARGEST_TILE_PX]
    return min(tiles, default=CROP_PX)


def _image_side(path: Path) -> int:
    """The shorter side of a set's first image."""
    if is_tiles_folder(path):
        return recipe_of(path).tiles.tile_px
    folders = metadata_folders(path) or [path]
    return min(image_size(large_images(folders[0])[0][0]))


def _features_of(
    request: EvaluateRequest, encoder: Encoder, shared: SharedExtraction, tell: Progress
) -> parts.FeaturesOf:
    """Features of a set in a view; those of a tile are taken once, whatever sets it is in."""
    cache = None if not request.keep else request.cache or default_cache()
    known: dict[tuple[parts.View, Path], np.ndarray] = {}

    def features(tiles: TileSet, view: parts.View = "colour") -> np.ndarray:
        stage = f"features, {tiles.name}" if view == "colour" else f"features, {tiles.name}, {view}"
        missing = [file for file in dict.fromkeys(tiles.files) if (view, file) not in known]
        if missing:
            rows = kept_features(
                encoder, missing, view, cache=cache, progress=lambda done, total: tell(stage, done, total),
                extract=shared.extract,
            )  # fmt: skip
            known.update(((view, file), row) for file, row in zip(missing, rows, strict=True))
        return np.stack([known[view, file] for file in tiles.files])

    return features


def _head(request: EvaluateRequest, sets: Sets) -> dict[str, Any]:
    def told(tiles: TileSet | None) -> dict[str, Any] | None:
        if tiles is None:
            return None
        cells = {", ".join(filter(None, cell)) or "all": len(places) for cell, places in tiles.cells().items()}
        return {"source": tiles.source, "count": len(tiles), "size_px": tiles.size_px, "cells": cells}

    libraries = ("torch", "torch-fidelity", "timm", "numpy", "scipy", "scikit-learn", "scikit-image", "pillow")
    notes = []
    cropped = [tiles.name for tiles in (sets.real, *sets.runs) if are_crops(tiles)]
    if cropped:
        notes.append(
            f"large images ({', '.join(cropped)}) were compared by random crops of {sets.real.size_px} px with at "
            "least "
            f"{MIN_TISSUE:.0%} of tissue, up to {request.crops} a set, drawn by the seed"
        )
    if not sets.rows[0][0].matched:
        notes.append(
            "class or level of the tiles is not known on both sides, so a difference in the mixture of classes counts "
            "as a "
            "difference of the images"
        )
    return {
        "tool": "pathup evaluate",
        "pathup": __version__,
        "libraries": {name: version(name) for name in libraries},
        "python": platform.python_version(),
        "seed": request.seed,
        "limit": request.count,
        "split": request.split,
        "split_by": sets.split_by,
        "sets": {
            "real": told(sets.real),
            "train": told(sets.train),
            "synthetic": [told(run) for run in sets.runs],
        },
        "notes": notes,
    }
