"""Random crops of slides and large images, written as lossless PNG so that they are tiles like any others."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pathup import draws, storage
from pathup.errors import PathUpError
from pathup.evaluation.tile_sets import TileSet, metadata_folders
from pathup.slides.images import REGION_SUFFIXES, image_size
from pathup.slides.reader import SLIDE_SUFFIXES, SlideReader, is_slide, open_slide
from pathup.tiles.cutting import tissue_fraction
from pathup.tiles.making import METADATA_FILE

__all__ = ["CROPS_FOLDER", "MIN_TISSUE", "are_crops", "are_tiles", "cut_crops", "large_images", "needs_crops"]

CROPS_FOLDER = "crops"
"""Of a report: holds a folder of crops a set."""

MIN_TISSUE = 0.25
"""Least stained fraction of a crop (`pathup.tiles.cutting.tissue_fraction`), of real and of synthetic ones alike."""

_TRIES = 50
"""Positions drawn for a crop before an image counts as empty of tissue."""


def needs_crops(path: Path) -> bool:
    """Whether `path` is a slide, or a folder that holds slides: too large to be tiles."""
    if path.is_file():
        return is_slide(path)
    return path.is_dir() and any(is_slide(p) for p in path.iterdir() if p.suffix.lower() in SLIDE_SUFFIXES)


def are_crops(tiles: TileSet) -> bool:
    """Whether a set consists of what `cut_crops` wrote for a report."""
    return tiles.files[0].parent.parent.name == CROPS_FOLDER


def are_tiles(path: Path, side_px: int) -> bool:
    """Whether the first image of a folder is a tile of that side already, so that nothing is to be cropped."""
    if not path.is_dir():
        return False
    folder = next(iter(metadata_folders(path)), path)  # those of several levels lie under one
    file = next((file for file, _ in large_images(folder)), None)
    return file is not None and not is_slide(file) and image_size(file) == (side_px, side_px)


def large_images(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Image files to crop, with what ``metadata.jsonl`` says of each (nothing where there is none).

    Raises
    ------
    PathUpError
        There are none.
    """
    if path.is_file():
        return [(path, {})]
    if not path.is_dir():
        raise PathUpError(f"{path} does not exist; a slide or a folder of large images was needed")
    listed = path / METADATA_FILE
    if listed.is_file():
        rows = [json.loads(line) for line in listed.read_text(encoding="utf-8").split("\n") if line.strip()]
        found = [(path / row["file_name"], row) for row in rows]
    else:
        endings = {*REGION_SUFFIXES, *SLIDE_SUFFIXES}
        found = [(p, {}) for p in sorted(path.iterdir()) if p.suffix.lower() in endings and p.is_file()]
    if not found:
        raise PathUpError(f"{path} holds no images; a slide or a folder of large images was needed")
    return found


def cut_crops(
    path: Path,
    target: Path,
    *,
    side_px: int,
    count: int,
    seed: int,
    mpp: float | None = None,
    assume_mpp: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Cut `count` random square crops, spread evenly over the images, and describe them in ``metadata.jsonl``.

    Positions are a function of (seed, image name, number). A position with less tissue than `MIN_TISSUE` is drawn anew;
    each image gives its share only as far as tissue is found.

    Parameters
    ----------
    path
        A slide, an image, or a folder of either.
    target
        A new folder for the crops.
    side_px
        Side of a crop.
    mpp
        Micrometres a pixel that crops are to have; None takes the image's own pixels.
    assume_mpp
        The scale of images that record none.

    Raises
    ------
    PathUpError
        There are no images, one is damaged or smaller than a crop, its scale is not known but needed, or no tissue is
        found.
    """
    images = large_images(path)
    target.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for place, (file, row) in enumerate(images):
        share = count // len(images) + (place < count % len(images))
        with open_slide(file, assume_mpp) as reader:
            rows += _crops_of(reader, row, target, place, share, side_px=side_px, mpp=mpp, seed=seed)
        if progress is not None:
            progress(len(rows), count)
    if not rows:
        raise PathUpError(
            f"no tissue was found in {path} ({len(images)} images, at least {MIN_TISSUE:.0%} of a crop was needed)"
        )
    storage.write_text(target / METADATA_FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return target


def _crops_of(
    reader: SlideReader,
    row: dict[str, Any],
    target: Path,
    place: int,
    share: int,
    *,
    side_px: int,
    mpp: float | None,
    seed: int,
) -> Sequence[dict[str, Any]]:
    own = reader.mpp if mpp is not None or reader.recorded_mpp is not None else None
    field = (side_px, side_px) if mpp is None or own is None else tuple(round(side_px * mpp / scale) for scale in own)
    left, top, width, height = reader.bounds
    if width < field[0] or height < field[1]:
        raise PathUpError(
            f"{reader.path} is {width} x {height} px, smaller than a crop of {field[0]} x {field[1]} px; ask for "
            "smaller "
            "crops with --crop"
        )
    rows: list[dict[str, Any]] = []
    for number in range(share):
        draw = draws.numpy_generator(seed, "crop", reader.path.name, number)
        for _ in range(_TRIES):
            x = left + int(draw.integers(width - field[0] + 1))
            y = top + int(draw.integers(height - field[1] + 1))
            pixels = reader.read_field(x, y, (field[0], field[1]), side_px)
            if tissue_fraction(pixels) >= MIN_TISSUE:
                name = f"{place:04d}_{number:05d}.png"
                with storage.clear_disk_errors(target / name):
                    Image.fromarray(pixels).save(target / name, compress_level=1)
                scale = mpp if mpp is not None else (own[0] if own is not None else row.get("mpp"))
                level = row.get("level")
                rows.append(
                    {"file_name": name, "label": row.get("label"), "level": level, "mpp": scale,
                     "slide": reader.path.name, "x": x, "y": y}
                )  # fmt: skip
                break
    return rows
