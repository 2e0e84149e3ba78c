"""No tissue that is held back comes into training: whatever would bring it there is refused, with the pair named.

It can come with the generator of synthetic images, with weights to start from, among the images themselves, or by
judging a classifier by regions that it was trained on. Regions are compared by file and place, and by their looks,
which know the same tissue again under another name, saved anew, resized, flipped, turned, or a part of it cut out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pathup import storage
from pathup.downstream.fields import Field, LabelledRegion
from pathup.errors import PathUpError
from pathup.slides.reader import open_slide
from pathup.tiles.provenance import SOURCES_FILE, alike, looks_of, read_sources, shared_tissue

__all__ = ["check_judged", "check_start", "check_synthetic"]


def check_synthetic(
    held: Sequence[LabelledRegion], folder: Path, fields: Sequence[Field], cache: Path | None = None
) -> None:
    """Check that neither a folder's generator nor its images hold tissue that is held back.

    Parameters
    ----------
    held
        The regions of 'val' and 'test'.
    folder
        Of synthetic images.
    fields
        Its images.
    cache
        A file where it is kept what was found to be well, of what content.

    Raises
    ------
    PathUpError
        The generator was trained on a held-back region, an image is one or a part of one, or the folder does not say
        what its generator was trained on. The pair is named.
    """
    if not read_sources(folder):  # an empty list is none: every generator has seen something
        raise PathUpError(
            f"{folder} does not say which regions its generator was trained on, so nobody knows whether it has seen "
            f"the tissue that is held back; {SOURCES_FILE} was needed, which 'pathup generate' writes for models that "
            "'pathup train' made of tiles of 'pathup tiles'"
        )
    _check_seen(held, folder, f"the generator of {folder} was trained on", cache)
    images = [[field.name, field.sha256, field.box, field.mpp] for field in fields]
    _once(cache, ["images", _told(held), images], lambda: _check_images(held, fields))


def _check_images(held: Sequence[LabelledRegion], fields: Sequence[Field]) -> None:
    looks = []
    for field in fields:
        with open_slide(field.file, field.mpp[0]) as reader:
            looks.append(looks_of(reader, field.box, field.mpp))
    found = alike([region.source for region in held], looks)
    for number, field in enumerate(fields):
        for place, region in enumerate(held):
            if found[place, number] or field.sha256 == region.source.sha256:
                raise PathUpError(
                    f"synthetic image '{field.name}' is region '{region.region.name}' of split '{region.split}', or a "
                    "part of it; take it out of the folder"
                )


def check_start(held: Sequence[LabelledRegion], weights: Path, cache: Path | None = None) -> None:
    """Check that weights to start from were not taught on tissue that is held back, where their folder says on which.

    Parameters
    ----------
    held
        The regions of 'val' and 'test'.
    weights
        A file; those of ``pathup classify pretrain`` lie beside a list of their regions.
    cache
        As of `check_synthetic`.

    Raises
    ------
    PathUpError
        They were. The pair is named.
    """
    _check_seen(held, weights.parent, f"{weights} was trained on", cache)


def check_judged(judged: Sequence[LabelledRegion], model: Path, cache: Path | None = None) -> None:
    """Check that a classifier has not been trained, or stopped, by what it is to be judged by.

    Parameters
    ----------
    judged
        The regions.
    model
        The classifier's folder.
    cache
        As of `check_synthetic`.

    Raises
    ------
    PathUpError
        It has. The pair is named.
    """
    _check_seen(judged, model, f"the classifier {model} was trained on", cache)


def _check_seen(held: Sequence[LabelledRegion], folder: Path, told: str, cache: Path | None) -> None:
    seen = read_sources(folder) or []

    def check() -> None:
        for own, other in shared_tissue([region.source for region in held], seen)[:1]:
            split = next(region.split for region in held if region.source == own)
            raise PathUpError(
                f"{told} region '{other.region}', which holds tissue of region '{own.region}' of split '{split}'; "
                "train it on the regions of split 'train' alone"
            )

    _once(cache, ["seen", _told(held), [asdict(region) for region in seen]], check)


def _told(held: Sequence[LabelledRegion]) -> list[Any]:
    return [[region.split, asdict(region.source)] for region in held]


def _once(cache: Path | None, told: list[Any], check: Callable[[], None]) -> None:
    """Check what was not yet found to be well; a check that fails is made again."""
    known = storage.read_json(cache) if cache is not None and cache.is_file() else {}
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    if key in known:
        return
    check()
    if cache is not None:
        storage.write_json(cache, {**known, key: True})
