"""Which regions tiles are of, and what each looks like, so that the same tissue is known again under another name.

When tiles are cut, a perceptual hash and landmarks of every region are kept beside them (``sources.jsonl``); a model
that is trained on the tiles takes the list along, and images drawn by the model, too. Whoever holds regions back can so
see, without the slides, whether a model has seen them or a part of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.fft import dctn

from pathup import storage
from pathup.errors import PathUpError
from pathup.slides.reader import SlideReader
from pathup.tiles.landmarks import AGREEING, agreeing, check_landmarks, region_landmarks
from pathup.tiles.regions import SPLITS

__all__ = [
    "ALIKE",
    "SOURCES_FILE",
    "THUMBNAIL_PX",
    "Looks",
    "SourceRegion",
    "alike",
    "carry_sources",
    "check_apart",
    "looks_of",
    "perceptual_hash",
    "read_sources",
    "resemblance",
    "shared_tissue",
    "write_sources",
]

SOURCES_FILE = "sources.jsonl"

THUMBNAIL_PX = 32
"""Side of what is hashed."""

FREQUENCIES = 16
"""Of the cosine transform in each direction, the lowest ones."""

ALIKE = 0.7
"""Resemblance from which on two hashes are of the same tissue. Of 155 fields of 1 mm from seven slides no two were
above 0.28; the same field, resized and saved as JPEG at quality 40 to 85, stayed above 0.95."""

LEAST_CONTRAST = 2.0
"""Deviation in grey levels below which a region is blank, and like nothing."""


@dataclass(frozen=True)
class Looks:
    """What a region is known again by.

    Attributes
    ----------
    perceptual_hash
        See there; empty for a blank region.
    landmarks, mirrored
        See `landmarks.region_landmarks`.
    """

    perceptual_hash: str
    landmarks: str = ""
    mirrored: str = ""


@dataclass(frozen=True)
class SourceRegion:
    """A region that tiles were cut from.

    Attributes
    ----------
    region, label, slide, patient
        As in the tiles' ``metadata.jsonl``.
    sha256
        Of the file.
    area
        Left, top, right, bottom in it, in level-0 pixels.
    perceptual_hash
        See there; empty for a blank region.
    landmarks
        See `landmarks.region_landmarks`; empty in older lists.
    mirrored
        Those of the mirror image; only where the pixels are at hand, not in files.
    """

    region: str
    label: str
    slide: str
    patient: str
    sha256: str
    area: tuple[int, int, int, int]
    perceptual_hash: str
    landmarks: str = ""
    mirrored: str = ""

    def overlaps(self, other: SourceRegion) -> bool:
        """Whether both are of files of one content and share more than one pixel's width there."""
        left, top, right, bottom = self.area
        wide = min(right, other.area[2]) - max(left, other.area[0])
        high = min(bottom, other.area[3]) - max(top, other.area[1])
        return self.sha256 == other.sha256 and wide > 1 and high > 1


def looks_of(reader: SlideReader, box: tuple[int, int, int, int], mpp: tuple[float, float]) -> Looks:
    """What a rectangle of a slide is known again by.

    Parameters
    ----------
    reader
        Of the file.
    box
        x, y, width, height in level-0 pixels.
    mpp
        Micrometres a level-0 pixel in x and y.
    """
    thumbnail = reader.glance(*box[:2], box[2:], (THUMBNAIL_PX, THUMBNAIL_PX))
    return Looks(perceptual_hash(thumbnail), *region_landmarks(reader, box, mpp))


def perceptual_hash(pixels_HWC: np.ndarray) -> str:
    """The signs of the lowest frequencies of an image, in hexadecimal digits (Zauner 2010); empty when it is blank.

    Of grey levels (ITU-R BT.601), by the discrete cosine transform of type II.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB, `THUMBNAIL_PX` a side.
    """
    grey = pixels_HWC.astype(np.float64) @ (0.299, 0.587, 0.114)
    if grey.std() < LEAST_CONTRAST:
        return ""
    signs = dctn(grey, type=2, norm="ortho")[:FREQUENCIES, :FREQUENCIES] > 0
    return np.packbits(signs).tobytes().hex()


def resemblance(ones: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """How alike hashes are, (len(ones), len(others)): 1 where all signs agree, about 0 where as many do as by chance.

    Of the second ones all 8 flips and turns are tried, and the highest value is taken: a flip changes the signs of odd
    frequencies, a turn also swaps the two directions. 0 where one is blank.
    """
    one_NFF, other_MFF = _signs(ones), _signs(others)
    flipping = np.where(np.arange(FREQUENCIES) % 2, -1.0, 1.0)
    found = np.zeros((len(ones), len(others)))
    for turned in (other_MFF, other_MFF.transpose(0, 2, 1)):
        for across in (np.ones(FREQUENCIES), flipping):
            for down in (np.ones(FREQUENCIES), flipping):
                agreement = _flat(one_NFF) @ _flat(turned * across * down[:, None]).T
                found = np.maximum(found, agreement / (FREQUENCIES**2 - 1))
    return found


def alike(ones: Sequence[Looks | SourceRegion], others: Sequence[Looks | SourceRegion]) -> np.ndarray:
    """Whether each one and each other look like the same tissue, or part of it, bool (len(ones), len(others)).

    Flipped ones are only known again where one of the two has its mirrored landmarks.
    """
    hashes = [[side.perceptual_hash for side in sides] for sides in (ones, others)]
    marks = [[side.landmarks for side in sides] for sides in (ones, others)]
    mirrored = [[side.mirrored for side in sides] for sides in (ones, others)]
    found = np.maximum(
        agreeing(marks[0], marks[1]),
        agreeing(mirrored[0], marks[1]) if any(mirrored[0]) else agreeing(marks[0], mirrored[1]),
    )
    return (resemblance(*hashes) >= ALIKE) | (found >= AGREEING)


def shared_tissue(
    ones: Sequence[SourceRegion], others: Sequence[SourceRegion]
) -> list[tuple[SourceRegion, SourceRegion]]:
    """The pairs of regions, one of each list, that hold the same tissue: of one file and place, or alike."""
    if not ones or not others:
        return []
    same = np.array([[one.overlaps(other) for other in others] for one in ones])
    return [(ones[row], others[column]) for row, column in np.argwhere(alike(ones, others) | same)]


def check_apart(regions: Iterable[tuple[str, SourceRegion]]) -> None:
    """Check that no two regions of different splits hold the same tissue.

    Raises
    ------
    PathUpError
        Two do; both are named.
    """
    of_split: dict[str, list[SourceRegion]] = {}
    for split, region in regions:
        of_split.setdefault(split, []).append(region)
    splits = [split for split in SPLITS if split in of_split]
    for place, split in enumerate(splits):
        for other in splits[place + 1 :]:
            for one, two in shared_tissue(of_split[split], of_split[other])[:1]:
                raise PathUpError(
                    f"region '{one.region}' (split '{split}') and region '{two.region}' (split '{other}') hold the "
                    "same tissue, but the splits must not share any; keep one of them, or move both to one split"
                )


def write_sources(folder: Path, regions: Sequence[SourceRegion]) -> None:
    """Write ``sources.jsonl``, a region a line."""
    told = [asdict(region) for region in regions]
    rows = (json.dumps({k: v for k, v in row.items() if k != "mirrored"}, ensure_ascii=False) for row in told)
    storage.write_text(folder / SOURCES_FILE, "".join(f"{row}\n" for row in rows))


def read_sources(folder: Path) -> list[SourceRegion] | None:
    """The regions that a folder of tiles, a model or generated images is of; None where it does not say.

    Raises
    ------
    PathUpError
        The file is damaged.
    """
    path = folder / SOURCES_FILE
    if not path.is_file():
        return None
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [SourceRegion(**row | {"area": tuple(row["area"])}) for row in rows]
        _signs([region.perceptual_hash for region in found])
        check_landmarks([region.landmarks for region in found])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PathUpError(f"{path} is damaged ({error}); cut the tiles again, or copy it anew") from error
    return found


def carry_sources(origin: Path, target: Path) -> None:
    """Have `target` say of which regions it is, as `origin` does; nothing where that does not."""
    sources = read_sources(origin)
    if sources is not None:
        write_sources(target, sources)


def _signs(hashes: Sequence[str]) -> np.ndarray:
    """Signs of frequencies, (N, F, F): -1 or 1; 0 for a blank region."""
    found = np.zeros((len(hashes), FREQUENCIES**2))
    for row, digits in zip(found, hashes, strict=True):
        if digits:
            row[:] = 2.0 * np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8)) - 1
    return found.reshape(len(hashes), FREQUENCIES, FREQUENCIES)


def _flat(signs_NFF: np.ndarray) -> np.ndarray:
    """Without the mean, which is no frequency."""
    return signs_NFF.reshape(len(signs_NFF), -1)[:, 1:]
