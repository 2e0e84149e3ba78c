"""Time ``pathup tiles`` beside what decoding its regions and encoding its tiles cost with nothing around them.

    python benchmarks/cutting.py [REGIONS] --recipe atlas --output cutting.json --table cutting.md

REGIONS is a source of images, as ``pathup tiles`` takes it; without it regions of noise are made. ``pathup tiles``
cuts all of it, from its own start to its metadata; then the bare arm, with as many processes, decodes each region
once, cuts out and resizes the very tiles that were kept, and encodes them as the same PNGs into files: no look for
tissue, no hashes, no second pass, no metadata. They take turns (A B A B); the median of the turns' ratios counts.
Speed is in megapixels of the regions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks import each other

from PIL import Image

from benchmarks.figures import add_targets, measured
from benchmarks.made import make_regions
from pathup import __version__
from pathup.recipes import Recipe, load_recipe
from pathup.tiles.making import make_tiles
from pathup.tiles.sources import find_source

Cuts = dict[str, list[tuple[int, int, int]]]
"""By the file of a region: left, top and side of each field."""


def cuts_of(source: Path, tiles: Path, recipe: Recipe) -> Cuts:
    """What the tiles of a folder were cut from."""
    files = {region.name: str(region.file) for region in find_source(source, recipe).regions}
    sides = {level.name: level.field_px for level in recipe.tiles.levels}
    cuts: Cuts = defaultdict(list)
    for listed in sorted(tiles.glob("*/metadata.jsonl")):
        for row in map(json.loads, listed.read_text(encoding="utf-8").splitlines()):
            cuts[files[row["region"]]].append((row["x"], row["y"], sides[row["level"]]))
    return dict(cuts)


def bare_region(file: str, cuts: list[tuple[int, int, int]], side_px: int, out: str) -> None:
    """Decode a region, and encode its tiles."""
    folder = Path(out)
    folder.mkdir()
    with Image.open(file) as image:
        pixels = image.convert("RGB")
    for number, (x, y, side) in enumerate(cuts):
        tile = pixels.crop((x, y, x + side, y + side))
        if side != side_px:
            tile = tile.resize((side_px, side_px), Image.Resampling.LANCZOS)
        tile.save(folder / f"{number}.png", compress_level=2)


def bare(cuts: Cuts, side_px: int, out: Path, workers: int) -> None:
    """All regions, in as many processes, which have imported what they need before the clock starts."""
    out.mkdir()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        jobs = [(file, fields, side_px, str(out / str(number))) for number, (file, fields) in enumerate(cuts.items())]
        for future in [pool.submit(bare_region, *job) for job in jobs]:
            future.result()


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Have the two take turns."""
    recipe = load_recipe(asked.recipe)
    ours: list[float] = []
    least: list[float] = []
    for turn in range(asked.turns):
        with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch:
            begun = time.perf_counter()
            make_tiles(asked.regions, Path(scratch) / "tiles", recipe, workers=asked.workers)
            ours.append(time.perf_counter() - begun)
            cuts = cuts_of(asked.regions, Path(scratch) / "tiles", recipe)
            begun = time.perf_counter()
            bare(cuts, recipe.tiles.tile_px, Path(scratch) / "bare", asked.workers)
            least.append(time.perf_counter() - begun)
        told = f"{ours[-1]:.1f} s, bare {least[-1]:.1f} s"
        print(f"turn {turn + 1} of {asked.turns}: {told}", file=sys.stderr, flush=True)
    pixels = 0
    for file in cuts:
        with Image.open(file) as image:
            pixels += image.width * image.height
    ratios = [a / b for a, b in zip(ours, least, strict=True)]
    return {
        "version": __version__, "workers": asked.workers, "regions": len(cuts),
        "tiles": sum(map(len, cuts.values())), "megapixels": pixels / 1e6, "seconds": ours, "bare_seconds": least,
        "megapixels_a_second": pixels / 1e6 / statistics.median(ours),
        "bare_megapixels_a_second": pixels / 1e6 / statistics.median(least),
        "over_bare": [statistics.median(ratios), min(ratios), max(ratios)],
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    middle, low, high = found["over_bare"]
    return "\n".join([
        f"| {found['regions']} regions, {found['tiles']} tiles, {found['workers']} processes | megapixels a second |",
        "|---|---|",
        f"| pathup tiles | {found['megapixels_a_second']:.2f} |",
        f"| decoding and encoding alone | {found['bare_megapixels_a_second']:.2f} |",
        "",
        f"Time over that of decoding and encoding alone: {middle:.2f} ({low:.2f} to {high:.2f}); wanted: at most 1.25.",
        "",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("regions", type=Path, nargs="?")
    parser.add_argument("--recipe", default="atlas", help="name or file [atlas]")
    parser.add_argument("--workers", type=int, default=2, help="processes of both [2]")
    parser.add_argument("--turns", type=int, default=3, help="turns of each [3]")
    parser.add_argument("--scratch", type=Path, help="folder for what is cut; removed afterwards [the system's]")
    add_targets(parser)
    asked = parser.parse_args()

    def measure_in(work: Path) -> dict[str, Any]:
        if asked.regions is None:
            asked.regions = work / "regions"
            make_regions(asked.regions, load_recipe(asked.recipe), side=1536, train=1)
        return measure(asked)

    return measured(asked, measure_in, table)


if __name__ == "__main__":
    sys.exit(main())
