"""How surely tissue is known again by its landmarks, and how often other tissue is taken for it.

    python benchmarks/landmarks.py REGIONS --mpp 0.5 --output landmarks.json --table landmarks.md

REGIONS is a folder of region images (any depth). Every region is compared with every other one, as it is and
mirrored; then a square is cut out of each, turned by quarters, flipped or not, shrunk to 50 to 100 % of its pixels,
saved as JPEG of quality 60, and looked for among all of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks import each other

import numpy as np
from PIL import Image

from benchmarks.figures import add_targets, measured
from pathup import PathUpError, __version__
from pathup.slides.reader import open_slide
from pathup.tiles.landmarks import AGREEING, agreeing, region_landmarks

SHARES = (0.5, 0.375)
"""Sides of cut-outs, as shares of the region's: a quarter and a seventh of its area."""


def marks_of(file: Path, mpp: float) -> tuple[str, str]:
    """A whole image's landmarks, plain and mirrored."""
    with open_slide(file, mpp) as reader:
        return region_landmarks(reader, (0, 0, *reader.size), (mpp, mpp))


def cut_out(file: Path, share: float, rng: np.random.Generator, target: Path) -> float:
    """Save a cut-out of a region; returns how many of the region's pixels one of its pixels is wide."""
    with Image.open(file) as image:
        whole = image.convert("RGB")
    side = round(share * min(whole.size))
    left, top = (int(rng.integers(edge - side + 1)) for edge in whole.size)
    part = whole.crop((left, top, left + side, top + side)).rotate(90 * int(rng.integers(4)))
    if rng.integers(2):
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    small = round(rng.uniform(0.5, 1) * side)
    part.resize((small, small), Image.Resampling.BILINEAR).save(target, quality=60)
    return side / small


def measure(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Landmarks of all regions and of a cut-out of each, compared with all regions."""
    files = sorted(path for path in asked.regions.rglob("*") if path.suffix.lower() in (".jpg", ".png", ".tif"))
    if len(files) < 2:
        raise PathUpError(f"{asked.regions} holds {len(files)} region images, but at least two were needed")
    begun = time.process_time()
    known = [marks_of(file, asked.mpp) for file in files]
    seconds = (time.process_time() - begun) / len(files)
    plain, apart = [own for own, _ in known], ~np.eye(len(files), dtype=bool)
    begun = time.process_time()
    as_they_are = agreeing(plain, plain)
    comparing = (time.process_time() - begun) / len(files)
    others = [as_they_are[apart], agreeing([mirrored for _, mirrored in known], plain)[apart]]
    rng, parts = np.random.default_rng(asked.seed), []
    for share in SHARES:
        marks = []
        for number, file in enumerate(files):
            wide = cut_out(file, share, rng, work / f"{number}.jpg")
            marks.append(marks_of(work / f"{number}.jpg", asked.mpp * wide))
        both = np.maximum(agreeing([own for own, _ in marks], plain), agreeing([own for _, own in marks], plain))
        found = np.diag(both)
        others.append(both[apart])
        parts.append({
            "side": share, "known": int((found >= AGREEING).sum()), "median": float(np.median(found)),
        })  # fmt: skip
    return {
        "version": __version__, "regions": len(files), "wanted": AGREEING,
        "bytes": float(np.mean([len(own) for own in plain])),
        "seconds": seconds, "seconds_comparing": comparing, "most_of_others": int(max(map(np.max, others))),
        "cut_outs": parts,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    count = found["regions"]
    return "\n".join([
        "| cut-out, share of the side | known again | landmarks that agree, median |",
        "| --- | ---: | ---: |",
        *(f"| {one['side']:g} | {one['known']} of {count} | {one['median']:g} |" for one in found["cut_outs"]),
        "",
        f"Of other regions and cut-outs of them, as they are or mirrored, at most {found['most_of_others']} agree; "
        f"wanted: fewer than {found['wanted']}. A region takes {found['seconds']:.2f} s (with decoding) and "
        f"{found['bytes'] / 1000:.1f} kB, comparing it with all others {found['seconds_comparing']:.2f} s.",
        "",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("regions", type=Path)
    parser.add_argument("--mpp", type=float, default=0.5, help="micrometres a pixel of the regions [0.5]")
    parser.add_argument("--seed", type=int, default=1, help="of places and sizes of cut-outs [1]")
    add_targets(parser)
    asked = parser.parse_args()
    return measured(asked, lambda work: measure(asked, work), table)


if __name__ == "__main__":
    sys.exit(main())
