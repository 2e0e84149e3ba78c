"""A region: what is cut, from which file, as which class, and whose tissue it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pathup.draws import seed_of

SPLITS = ("train", "val", "test")
"""The splits, in the order in which they are told."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A labelled part of a slide, or a region image.

    Attributes
    ----------
    name : str
        Unique in its source and fit for a file name.
    file : pathlib.Path
        The image or slide that holds the pixels.
    place : str
        `file` as the source names it, for messages and for telling runs apart.
    label, slide, patient : str
        Class label; the slide it was cut from and the patient (the slide, where no patient is known).
    split : str or None
        The split that the source gives it.
    box : tuple of int, or None
        x, y, width, height in level-0 pixels of `file`; None: the whole file.
    outline : bytes or None
        The annotation (well-known binary, level-0 pixels); None: the whole box.
    stated_mpp : float or None
        Micrometres per pixel that a region table states.
    assume_mpp : float or None
        Micrometres per pixel to take when neither table nor file says.
    """

    name: str
    file: Path
    place: str
    label: str
    slide: str
    patient: str
    split: str | None = None
    box: tuple[int, int, int, int] | None = None
    outline: bytes | None = None
    stated_mpp: float | None = None
    assume_mpp: float | None = None

    def group(self, split_by: str) -> str:
        """The name of what must not be on both sides of a split: the patient, the slide or the region."""
        return {"patient": self.patient, "slide": self.slide, "region": self.name}[split_by]


def named_apart(regions: Sequence[Region]) -> list[Region]:
    """Give regions of one name different ones: first by their folders, then by a short code of their place."""
    named = list(regions)
    for better in (_name_by_place, _name_by_code):
        counts = Counter(region.name for region in named)
        named = [replace(r, name=better(r)) if counts[r.name] > 1 else r for r in named]
    return named


def _name_by_place(region: Region) -> str:
    return safe_name(str(Path(region.place).with_suffix("")).replace("/", "__"))


def _name_by_code(region: Region) -> str:
    return f"{region.name}-{seed_of(0, region.place, repr(region.box)):016x}"


def safe_name(text: str) -> str:
    """`text` with everything replaced that a file name had better not hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "region"
