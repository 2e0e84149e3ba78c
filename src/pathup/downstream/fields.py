"""What a classifier is shown: the fields of labelled regions, and synthetic images in the place of fields.

The data flow: a source's regions keep their splits, each with the hash of its file and its perceptual hash; the splits
must not share tissue. Each region becomes fields of `downstream.field_px` (or is one as it is), which classifiers read
by physical scale.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pathup import storage
from pathup.errors import PathUpError
from pathup.recipes import Recipe
from pathup.slides.reader import open_slide
from pathup.tiles.cutting import positions, region_box, region_mpp, signature, source_sha256, tissue_fraction
from pathup.tiles.provenance import SourceRegion, check_apart, looks_of
from pathup.tiles.regions import SPLITS, Region
from pathup.tiles.sources import find_source
from pathup.tiles.splits import Area, check_tissue, split_regions

__all__ = ["Field", "LabelledRegion", "labelled_regions", "read_field", "read_patches", "region_fields"]

GLANCE_PX = 256
"""Side at which a field is looked at for tissue."""


@dataclass(frozen=True)
class Field:
    """A rectangle of a file that is classified as one image.

    Attributes
    ----------
    name
        Of the field, unique in its set.
    region
        The region that it is of; a synthetic image is a region by itself.
    label
        Its class.
    file
        The image or slide.
    sha256
        Of the file.
    box
        x, y, width, height in level-0 pixels.
    mpp
        Micrometres a level-0 pixel in x and y.
    synthetic
        Whether it is no real tissue.
    """

    name: str
    region: str
    label: str
    file: Path
    sha256: str
    box: tuple[int, int, int, int]
    mpp: tuple[float, float]
    synthetic: bool = False

    def identity(self) -> str:
        """A hash of what its pixels are."""
        return hashlib.sha256(repr((self.sha256, self.box, self.mpp)).encode()).hexdigest()


@dataclass(frozen=True)
class LabelledRegion:
    """A region of a source, its split, and what it holds.

    Attributes
    ----------
    region
        As the source names it.
    source
        Its place, hash and look.
    mpp
        Micrometres a level-0 pixel in x and y.
    """

    region: Region
    source: SourceRegion
    mpp: tuple[float, float]

    @property
    def split(self) -> str:
        """train, val or test."""
        return str(self.region.split)


def labelled_regions(source: Path, recipe: Recipe, cache: Path | None = None) -> list[LabelledRegion]:
    """The regions of a source with their splits: those that ``pathup tiles`` gives them by the same recipe.

    Parameters
    ----------
    source
        What ``pathup tiles`` takes: class folders, a region table, annotated slides.
    recipe
        Its classes and splits.
    cache
        A file where hashes are kept between calls, by the files' sizes and times.

    Raises
    ------
    PathUpError
        The source is missing or damaged; a class of the recipe is not in its split 'train'; or two splits share tissue.
    """
    found = find_source(source, recipe)
    regions, _ = split_regions(found.regions, recipe, found.joined)
    known = _kept(cache)
    read = [_looked_at(region, known) for region in regions]
    check_tissue(Area(r.region.place, r.split, r.source.sha256, *r.source.area) for r in read)
    _check_apart(read, known)
    if cache is not None:
        storage.write_json(cache, known)
    counts = Counter((r.split, r.region.label) for r in read)
    for split in SPLITS:
        lacking = [label for label in recipe.labels if not counts[split, label]]
        if lacking:
            raise PathUpError(
                f"split '{split}' of {source} holds no regions of class {', '.join(lacking)}, but classifiers need "
                f"every class of recipe '{recipe.name}' in every split; add regions, or take the class out of the "
                "recipe"
            )
    return read


def region_fields(regions: Sequence[LabelledRegion], recipe: Recipe, cache: Path | None = None) -> list[Field]:
    """The fields of regions: squares of `downstream.field_px` side by side, or the regions as they are.

    Squares with less tissue than `downstream.min_tissue` are left out, unless a region would be left with none: then
    the one with most is taken. A region that no square fits into is taken as it is. How much tissue squares hold is
    kept in the file `cache`.
    """
    side, fields, known = recipe.downstream.field_px, [], _kept(cache)
    before = len(known)
    for own in regions:
        left, top, right, bottom = own.source.area
        whole = (left, top, right - left, bottom - top)
        squares = _squares(own, side * recipe.tiles.mpp, recipe.downstream.min_tissue, known) if side else []
        for box in squares or [whole]:
            name = own.region.name if box == whole else f"{own.region.name}_{box[0]}_{box[1]}"
            fields.append(
                Field(name, own.region.name, own.region.label, own.region.file, own.source.sha256, box, own.mpp)
            )
    if cache is not None and len(known) > before:
        storage.write_json(cache, known)
    return fields


def read_field(field: Field, side_px: int) -> np.ndarray:
    """A field resized to a square: uint8 RGB, (side_px, side_px, 3).

    Raises
    ------
    PathUpError
        The file is missing or damaged.
    """
    x, y, width, height = field.box
    with open_slide(field.file, field.mpp[0]) as reader:
        return reader.read_field(x, y, (width, height), side_px)


def read_patches(
    field: Field, patch_px: int, mpp: float, min_tissue: float
) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """The patches of a field, side by side from its top left corner, background left out.

    Parameters
    ----------
    field
        Of tissue.
    patch_px, mpp
        Side of a patch in pixels of that many micrometres.
    min_tissue
        Least stained fraction of a patch.

    Returns
    -------
    patches_NHWC
        uint8 RGB.
    boxes
        Of each: x, y, width, height in level-0 pixels.

    Raises
    ------
    PathUpError
        The field is smaller than a patch, holds no tissue, or its file is damaged.
    """
    x, y, width, height = field.box
    wide, high = (max(1, round(patch_px * mpp / scale)) for scale in field.mpp)
    if wide > width or high > height:
        raise PathUpError(
            f"'{field.name}' is {width} x {height} px, which is smaller than a patch of {patch_px} px at {mpp:g} "
            f"micrometres ({wide} x {high} px of it); larger regions, or a smaller downstream.abmil.patch_px, were "
            "needed"
        )
    patches, boxes = [], []
    with open_slide(field.file, field.mpp[0]) as reader:
        for down in positions(height, high, high):
            for across in positions(width, wide, wide):
                box = (x + across, y + down, wide, high)
                pixels = reader.read_field(box[0], box[1], (wide, high), patch_px)
                if tissue_fraction(pixels) >= min_tissue:
                    patches.append(pixels)
                    boxes.append(box)
    if not patches:
        raise PathUpError(
            f"none of the patches of '{field.name}' holds tissue (a stained fraction of {min_tissue:g}), so there is "
            "nothing to classify; take the region out, or lower downstream.min_tissue"
        )
    return np.stack(patches), boxes


def _squares(
    own: LabelledRegion, side_um: float, min_tissue: float, known: dict[str, Any]
) -> list[tuple[int, int, int, int]]:
    x, y, right, bottom = own.source.area
    width, height = right - x, bottom - y
    wide, high = (max(1, round(side_um / scale)) for scale in own.mpp)
    boxes = [
        (x + across, y + down, wide, high)
        for down in positions(height, high, high)
        for across in positions(width, wide, wide)
    ]
    if len(boxes) < 2:
        return boxes
    key = json.dumps([own.source.sha256, own.source.area, own.mpp, side_um])
    if key not in known:
        with open_slide(own.region.file, own.mpp[0]) as reader:
            known[key] = [tissue_fraction(reader.read_field(box[0], box[1], box[2:], GLANCE_PX)) for box in boxes]
    tissue = known[key]
    kept = [box for box, fraction in zip(boxes, tissue, strict=True) if fraction >= min_tissue]
    return kept or [boxes[int(np.argmax(tissue))]]


def _check_apart(read: Sequence[LabelledRegion], known: dict[str, Any]) -> None:
    """Check that splits share no tissue, once for the same regions in the same splits."""
    told = json.dumps([[own.split, asdict(own.source)] for own in read])
    key = f"apart {hashlib.sha256(told.encode()).hexdigest()}"
    if key not in known:
        check_apart((own.split, own.source) for own in read)
        known[key] = True


def _looked_at(region: Region, known: dict[str, Any]) -> LabelledRegion:
    outline = None if region.outline is None else region.outline.hex()
    key = json.dumps(["looks", region.place, region.box, signature(region.file), outline])
    if key not in known:
        with open_slide(region.file, region.assume_mpp) as reader:
            x, y, width, height = region_box(region, reader)
            mpp = region_mpp(region, reader)
            looks = looks_of(reader, (x, y, width, height), mpp)
        known[key] = {
            "sha256": source_sha256(region.file), "area": [x, y, x + width, y + height], "mpp": list(mpp),
            "looks": asdict(looks),
        }  # fmt: skip
    found = known[key]
    (left, top, right, bottom), (across, down) = found["area"], found["mpp"]
    source = SourceRegion(
        region.name, region.label, region.slide, region.patient, found["sha256"], (left, top, right, bottom),
        **found["looks"],
    )  # fmt: skip
    return LabelledRegion(region, source, (across, down))


def _kept(cache: Path | None) -> dict[str, Any]:
    return dict(storage.read_json(cache)) if cache is not None and cache.is_file() else {}
