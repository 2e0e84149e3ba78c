"""How many planted copies are found, and how many held-out tiles are called copies.

    python benchmarks/copying.py TILES REGIONS [--count 350] [--level patch]

TILES is what ``pathup tiles`` cut from the images in REGIONS. Training tiles are planted as synthetic ones: exact,
turned, JPEG-compressed at quality 75, shifted by 8 px (read again from the region) and all of these at once; every
training tile is searched. Prints JSON: the share of each kind that is found with its own tile, and of the split test
that is called copied.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pathup import draws
from pathup.evaluation.copying import copying
from pathup.evaluation.lookalikes import describe, nearest
from pathup.evaluation.tile_sets import load_tile_set, recipe_of
from pathup.tiles.dataset import TileFolder

SHIFT_PX = 8


def jpeg(pixels: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=75)
    return np.asarray(Image.open(stream))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("regions", type=Path)
    parser.add_argument("--count", type=int, default=350)
    parser.add_argument("--level", default="patch")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    recipe = recipe_of(asked.tiles)
    side, level = recipe.tiles.tile_px, next(found for found in recipe.tiles.levels if found.name == asked.level)
    shrink = level.field_px // side
    folder = TileFolder.load(asked.tiles, "train", recipe).only(asked.level)
    test = load_tile_set(asked.tiles, "held-out", split="test").of(level=asked.level)
    files = {path.stem: path for path in asked.regions.rglob("*") if path.suffix.lower() in (".jpg", ".png")}
    training, held_out = describe([folder.path(i) for i in range(len(folder))]), describe(test.files)
    order = draws.numpy_generator(asked.seed, "copying benchmark").permutation(len(folder))

    def shifted(index: int) -> np.ndarray | None:
        """The tile's field again, 8 px to the right and down; None where it would leave the region."""
        record = folder.records[index]
        with Image.open(files[Path(record.region).stem]) as image:
            left, top = record.x + SHIFT_PX * shrink, record.y + SHIFT_PX * shrink
            if max(left + level.field_px - image.width, top + level.field_px - image.height) > 0:
                return None
            field = image.convert("RGB").crop((left, top, left + level.field_px, top + level.field_px))
        return np.asarray(field.resize((side, side), Image.Resampling.LANCZOS))

    def whole(index: int) -> np.ndarray:
        return folder.pixels(index).permute(1, 2, 0).numpy()

    def turned(pixels: np.ndarray, index: int) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if index % 2 else pixels, 1 + index % 3))

    def everything(index: int) -> np.ndarray | None:
        pixels = shifted(index)
        return None if pixels is None else jpeg(turned(pixels, index))

    plants: dict[str, Callable[[int], np.ndarray | None]] = {
        "exact": whole,
        "turned": lambda index: turned(whole(index), index),
        "jpeg 75": lambda index: jpeg(whole(index)),
        "shifted": shifted,
        "shifted, turned, jpeg 75": everything,
    }
    originals: dict[str, list[int]] = {name: [] for name in plants}
    files_of: dict[str, list[Path]] = {name: [] for name in plants}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, plant) in enumerate(plants.items()):
            for index in map(int, order):
                pixels = plant(index)
                if pixels is None:
                    continue
                files_of[name].append(Path(scratch) / f"{number}_{index}.png")
                Image.fromarray(pixels).save(files_of[name][-1])
                originals[name].append(index)
                if len(originals[name]) == asked.count:
                    break
        near = {name: nearest(describe(paths), training) for name, paths in files_of.items()}
        regions = [record.region for record in folder.records]
        report = copying(describe(files_of["exact"]), training, held_out, training_groups=regions, seed=asked.seed)
    threshold = report["threshold"]["value"]
    found = {
        name: float(((own.index == np.array(originals[name])) & (own.similarity > threshold)).mean())
        for name, own in near.items()
    }
    told = {
        "level": asked.level,
        "training": len(folder),
        "planted_of_each_kind": asked.count,
        "found": found,
        "threshold": threshold,
        "held_out_called_copies": f"{report['held_out']['copies']} of {report['held_out']['judged']}",
    }
    print(json.dumps(told, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
