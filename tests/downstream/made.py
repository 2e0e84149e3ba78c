"""Made regions of two classes that a classifier can tell apart by form, and made synthetic images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pathup.downstream.fields import labelled_regions
from pathup.recipes import Recipe
from pathup.tiles.provenance import write_sources
from tests.tiles.made import save, structured

COUNTS = {"train": 3, "val": 2, "test": 2}


def region(label: str, seed: int, side: int = 128) -> np.ndarray:
    """Pink tissue; class B has dark nuclei, four in every 16 px."""
    pixels = np.asarray(structured(seed, side)).copy()
    pixels[pixels.mean(-1) < 150] += 40
    if label == "B":
        for row in range(2, side - 4, 8):
            pixels[row : row + 4, 2::8] = pixels[row : row + 4, 3::8] = (70, 30, 110)
    return pixels


def regions(root: Path, counts: dict[str, int] = COUNTS, side: int = 128) -> Path:
    """Class folders in split folders."""
    seed = 0
    for split, count in counts.items():
        for number, label in enumerate("AB"):
            for index in range(count):
                seed += 1
                save(root / split / f"{number}_{label}" / f"{split}_{label}_{index}.png", region(label, seed, side))
    return root


def synthetic(root: Path, source: Path, recipe: Recipe, count: int = 2, side: int = 64) -> Path:
    """A folder as ``pathup generate`` makes it, by a generator that was trained on the source's split 'train'."""
    rows = []
    for label in "AB":
        for index in range(count):
            name = f"{label}_{index:04d}.png"
            save(root / name, region(label, 1000 + 10 * ord(label) + index, side))
            rows.append({"file_name": name, "label": label, "level": "patch", "mpp": 0.5, "seed": 0, "index": index})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_sources(root, [own.source for own in labelled_regions(source, recipe) if own.split == "train"])
    return root


def replant(file: Path, target: Path, side: int | None = None) -> None:
    """The same tissue under another name and encoding."""
    image = Image.open(file).convert("RGB")
    target.parent.mkdir(parents=True, exist_ok=True)
    (image.resize((side, side)) if side else image).save(target, quality=85)
