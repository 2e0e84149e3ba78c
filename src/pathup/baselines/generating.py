"""``pathup baseline generate``: tiles of a class and level, or images enlarged, into a folder.

The folder is as ``pathup generate`` makes one: PNGs, and ``metadata.jsonl`` once all are there, so that
``pathup evaluate`` reads it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from pathup import __version__, storage
from pathup.baselines.model_folder import ModelFolder
from pathup.baselines.systems import TileMaker, Upscaler, baseline, load_baseline
from pathup.errors import PathUpError, unknown
from pathup.memory import keep_freed_memory
from pathup.recipes import Recipe
from pathup.sampling.device import choose_device, clear_memory_errors
from pathup.sampling.outputs import ImageFile, is_complete, write_image, write_metadata
from pathup.sampling.requests import ALL
from pathup.slides.images import read_image
from pathup.tiles.taxonomy import level_of, prompt_text

__all__ = ["DrawReport", "DrawRequest", "draw_from_baseline"]

Progress = Callable[[str, int, int], None]

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
"""Of the images in a folder that is to be enlarged."""


@dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """``pathup baseline generate``: the fields are its arguments and options (docs/commands.md)."""

    model: Path
    out: Path
    label: str | None = None
    level: str | None = None
    count: int = 1
    images: Path | None = None
    seed: int = 0
    batch: int = 16
    device: str = "auto"
    threads: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("count", "batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PathUpError(f"{name} is {value}, but at least 1 was needed")


@dataclass
class DrawReport:
    """What was made: all `files`, how many were `kept` from before, and the seconds that drawing took."""

    files: list[Path] = field(default_factory=list)
    kept: int = 0
    seconds: float = 0.0


def draw_from_baseline(request: DrawRequest, progress: Progress | None = None) -> DrawReport:
    """Carry out a request.

    Raises
    ------
    PathUpError
        No such model; a class, a level or images are missing, unknown, or not wanted of this baseline; the output
        folder holds something else.
    """
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    device = choose_device(request.device)
    if device.type == "cpu":
        keep_freed_memory()
    with clear_memory_errors():
        found, system = load_baseline(request.model, device)
        known, tell, started = baseline(found.name), progress or (lambda stage, done, total: None), time.perf_counter()
        if known.kind == "tiles":
            report = _draw_tiles(request, found, cast(TileMaker, system), tell)
        else:
            report = _enlarge(request, found, cast(Upscaler, system), tell)
    report.seconds = time.perf_counter() - started
    return report


def _draw_tiles(request: DrawRequest, found: ModelFolder, system: TileMaker, tell: Progress) -> DrawReport:
    if request.images is not None:
        raise PathUpError(f"{found.name} draws tiles and enlarges nothing; leave --images out")
    if request.label is None or request.level is None:
        raise PathUpError(f"{found.name} draws tiles of a class and level: --label and --level were needed")
    recipe = found.recipe
    level = level_of(recipe, request.level)
    if request.label != ALL and request.label not in recipe.labels:
        raise unknown("label", request.label, recipe.labels)
    labels = recipe.labels if request.label == ALL else [request.label]
    digest, mpp, side = found.sha256(), recipe.tiles.level_mpp(level), recipe.tiles.tile_px
    _claim(request, digest, {"labels": labels, "level": level.name})
    report, rows = DrawReport(), []
    for label in labels:
        for span in _spans(_indices(request, label), request.batch):
            targets = [ImageFile(request.out / _name(label, index), "png", (side, side), mpp) for index in span]
            missing = [not is_complete(target) for target in targets]
            if any(missing):
                for index, target, image, lacks in zip(
                    span, targets, system.draw(label, level.name, span, request.seed), missing, strict=True
                ):
                    if lacks:
                        write_image(target, [image], _provenance(request, found, digest, label, level.name, index),
                                    overwrite=True)  # fmt: skip
            report.kept += len(span) - sum(missing)
            report.files += [target.path for target in targets]
            rows += [_tile_row(recipe, request, digest, label, level.name, mpp, index) for index in span]
            tell("images", len(report.files), len(labels) * len(_indices(request, label)))
    write_metadata(request.out, rows)
    return report


def _enlarge(request: DrawRequest, found: ModelFolder, system: Upscaler, tell: Progress) -> DrawReport:
    if request.images is None:
        raise PathUpError(f"{found.name} enlarges images: --images was needed, a folder of them or one image")
    if request.label is not None or request.level is not None:
        raise PathUpError(f"{found.name} enlarges images and takes neither --label nor --level")
    sources = image_files(request.images)
    known = _known_rows(request.images)
    digest = found.sha256()
    _claim(request, digest, {"images": {name: storage.sha256_file(path) for name, path in sources.items()}})
    report, rows = DrawReport(), []
    for index, (name, path) in enumerate(sources.items()):
        pixels = read_image(path)
        row = known.get(name, {})
        size = (system.factor * pixels.shape[0], system.factor * pixels.shape[1])
        mpp = float(row["mpp"]) / system.factor if row.get("mpp") else found.recipe.tiles.mpp
        target = ImageFile(request.out / f"{Path(name).stem}.png", "png", size, mpp)
        if is_complete(target):
            report.kept += 1
        else:
            made = {**_made_by(found, digest), "seed": request.seed, "index": index, "enlarged": name, "mpp": mpp}
            write_image(target, [system.enlarge(pixels, request.seed, index)], made, overwrite=True)
        report.files.append(target.path)
        rows.append({**row, "file_name": target.path.name, "mpp": mpp, "size": [size[1], size[0]],
                     "enlarged_by": found.name, "seed": request.seed, "index": index})  # fmt: skip
        tell("images", index + 1, len(sources))
    write_metadata(request.out, rows)
    return report


def image_files(folder: Path) -> dict[str, Path]:
    """The images of a folder by name, or one image.

    Raises
    ------
    PathUpError
        There is none, or two would have one name when enlarged.
    """
    if folder.is_file():
        return {folder.name: folder}
    if not folder.is_dir():
        raise PathUpError(f"{folder} does not exist; a folder of images, or one image, was needed")
    found = {path.name: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    if not found:
        raise PathUpError(f"{folder} holds no images ({', '.join(SUFFIXES)}), which are to be enlarged")
    stems: dict[str, str] = {}
    for name in found:
        other = stems.setdefault(Path(name).stem, name)
        if other != name:
            raise PathUpError(f"{folder} holds {other} and {name}, which would both become one PNG; rename one")
    return found


def _known_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """What the metadata beside the images says of each."""
    path = folder / "metadata.jsonl" if folder.is_dir() else folder.with_name("metadata.jsonl")
    if not path.is_file():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        return {str(row["file_name"]): row for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PathUpError(f"{path} is damaged ({error}); make the images again, or remove it") from error


def _claim(request: DrawRequest, digest: str, asked: dict[str, Any]) -> None:
    identity = {"model_sha256": digest, "seed": request.seed, **asked}
    storage.claim_folder(request.out, "baseline generate", identity, resume=request.resume)


def _indices(request: DrawRequest, label: str) -> range:
    """Those asked for, and any that a longer run has made, so that the metadata names every file."""
    last = request.count
    while (request.out / _name(label, last)).exists():
        last += 1
    return range(last)


def _spans(indices: range, size: int) -> Iterator[range]:
    for first in range(0, len(indices), size):
        yield indices[first : first + size]


def _name(label: str, index: int) -> str:
    return f"{label}_{index:04d}.png"


def _tile_row(
    recipe: Recipe, request: DrawRequest, digest: str, label: str, level: str, mpp: float, index: int
) -> dict[str, Any]:
    """The columns of real tiles' metadata, empty where a synthetic tile has no such thing, then its own."""
    told = {"file_name": _name(label, index), "text": prompt_text(recipe, label, level), "label": label, "level": level}
    real = {"patient": None, "slide": None, "region": None, "x": None, "y": None, "source_sha256": digest}
    return {**told, "mpp": mpp, "seed": request.seed, "index": index, **real}


def _made_by(found: ModelFolder, digest: str) -> dict[str, Any]:
    return {
        "made_by": "pathup baseline generate",
        "version": __version__,
        "baseline": found.name,
        "model_sha256": digest,
    }


def _provenance(
    request: DrawRequest, found: ModelFolder, digest: str, label: str, level: str, index: int
) -> dict[str, Any]:
    asked = {"label": label, "level": level, "seed": request.seed, "index": index}
    return {**_made_by(found, digest), **asked}
