"""Made tissue for tests: stained blobs on glass, in folders, tables, slides and annotations."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

from pathup.recipes import Recipe, load_recipe, recipe_from_dict

SHARED = Path(os.environ.get("PATHUP_SHARED", Path(__file__).resolve().parents[3] / "shared"))
needs_slides = pytest.mark.skipif(
    not (SHARED / "data" / "slides").is_dir(), reason=f"real slides are not at hand ({SHARED}/data/slides)"
)


def tiny(**tiles: Any) -> Recipe:
    """The recipe for tests, with some of its `tiles` values replaced."""
    values = load_recipe("tiny").model_dump()
    values["tiles"] |= tiles
    return recipe_from_dict(values)


def tissue(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Pink and purple noise, all of it stained: uint8 RGB, (height, width, 3)."""
    draws = np.random.default_rng(seed)
    base = np.array([200, 120, 170]) - draws.integers(0, 3, 3) * 20
    return np.clip(base + draws.normal(0, 15, (height, width, 3)), 0, 255).astype(np.uint8)


def save(path: Path, pixels_HWC: np.ndarray, **how: Any) -> Path:
    """Write an image, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_HWC).save(path, **how)
    return path


def save_slide(path: Path, pixels_HWC: np.ndarray, mpp: float | None, levels: int = 1) -> Path:
    """Write a tiled, pyramidal TIFF that OpenSlide opens (generic-tiff)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    resolution: dict[str, Any] = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": 3}
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            reduced = np.asarray(Image.fromarray(pixels_HWC).reduce(2**level))
            scale = {k: tuple(v / 2**level for v in r) if k == "resolution" else r for k, r in resolution.items()}
            writer.write(
                reduced, tile=(128, 128), photometric="rgb", compression="zlib", subfiletype=1 if level else 0, **scale
            )
    return path


def rectangle(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    """A closed ring."""
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(name: str | None, *rings: list[list[float]], kind: str = "annotation") -> dict[str, Any]:
    """A QuPath feature: a polygon, its first ring the outline, the others holes."""
    properties: dict[str, Any] = {"objectType": kind}
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "id": "an-id",
        "geometry": {"type": "Polygon", "coordinates": list(rings)},
        "properties": properties,
    }


def save_geojson(path: Path, *features: dict[str, Any]) -> Path:
    """Write a FeatureCollection."""
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def save_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a CSV."""
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def class_tree(root: Path, count: int = 3, side: int = 160) -> Path:
    """Class folders 0_A and 1_B with `count` regions each."""
    for number, label in enumerate("AB"):
        for i in range(count):
            save(root / f"{number}_{label}" / f"case{i}_{label}.png", tissue(side, side, seed=10 * number + i))
    return root


def rows_of(out: Path, split: str) -> list[dict[str, Any]]:
    """The metadata of a split."""
    path = out / split / "metadata.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n") if line] if path.exists() else []


def all_rows(out: Path) -> list[dict[str, Any]]:
    """The metadata of all splits, each row with its split."""
    return [row | {"split": split} for split in ("train", "val", "test") for row in rows_of(out, split)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def structured(seed: int, side: int = 512) -> Image.Image:
    """Smooth structures of many sizes in pink and violet, as tissue has them from afar."""
    rng = np.random.default_rng(seed)
    total = np.zeros((side, side))
    for size in (4, 8, 16, 32, 64):
        noise = Image.fromarray(rng.normal(size=(size, size)).astype(np.float32))
        total += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC)) / size**0.5
    share = 1 / (1 + np.exp(-2 * total))[..., None]
    return Image.fromarray(np.rint(share * (232, 180, 210) + (1 - share) * (110, 60, 140)).astype(np.uint8))


def nuclei(seed: int, side: int) -> Image.Image:
    """Dark ellipses of many sizes and directions on pink: corners, as tissue has them at a middle magnification."""
    rng = np.random.default_rng(seed)
    drawing = Image.fromarray(np.asarray(structured(seed, side)))
    pen = ImageDraw.Draw(drawing)
    for _ in range(side * side // 900):
        x, y, radius = *rng.uniform(0, side, 2), rng.uniform(4, 14)
        turns = np.linspace(0, 2 * np.pi, 9)[:-1] + rng.uniform(0, 1)
        reach = radius * rng.uniform(0.5, 1, 8)
        tint = int(rng.integers(30, 120))
        pen.polygon(
            list(zip(x + reach * np.cos(turns), y + reach * np.sin(turns), strict=True)), (tint + 20, tint, 130)
        )
    return drawing
