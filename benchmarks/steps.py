"""Fidelity and seams of large images against schedulers, steps, strength and windows.

    python benchmarks/steps.py models/atlas TILES --output DIR --real-large REGIONS

Draws one large image of each class for each setting, all from the same seed, and measures: kernel distance of
its tiles to the real test tiles' (on any features), the gradient ratio and p-value at the lines of its windows
(`pathup.evaluation.seams`), coverages of the canvas and seconds. Images that are there already, and figures of the
same model, are kept. Writes
``steps.json`` and ``steps.md`` into DIR. TILES is what ``pathup tiles`` wrote. One image a class is little: compare
settings with each other, not with other reports.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathup import PathUpError, __version__, draws, storage
from pathup.evaluation.encoders import load_features
from pathup.evaluation.features import extract
from pathup.evaluation.kernel import kernel_distance
from pathup.evaluation.large_images import recorded_lines
from pathup.evaluation.seam_reference import ratios_at_random_lines
from pathup.evaluation.seams import SeamGrid, measure_seams
from pathup.evaluation.tile_sets import TileSet, load_tile_set
from pathup.model.pipeline import load_pipeline
from pathup.sampling.runs import model_sha256
from pathup.sampling.synthesis import plan_image, synthesise
from pathup.slides.images import read_image
from pathup.slides.writer import write_png

SETTINGS = (
    "dpmpp_2m:6 dpmpp_2m:10 dpmpp_2m:20 dpmpp_2m:30 unipc:6 unipc:10 unipc:20 ddim:6 ddim:10 ddim:20 ddim:50 "
    "euler:6 euler:10 euler:20 dpmpp_2m:20:0.4 dpmpp_2m:20:0.8 dpmpp_2m:20:0.6:overlapped"
)
HALVES = 100


def parsed(text: str) -> dict[str, Any]:
    """``SCHEDULER:STEPS[:STRENGTH[:WINDOWS]]``."""
    scheduler, steps, *rest = text.split(":")
    strength = float(rest[0]) if rest else 0.6
    return {"scheduler": scheduler, "steps": int(steps), "strength": strength,
            "windows": rest[1] if len(rest) > 1 else "shifted"}  # fmt: skip


def draw(pipeline: Any, setting: dict[str, Any], folder: Path, size: int) -> dict[str, float]:
    """One image a class; returns coverages and the mean seconds of those drawn now."""
    spent = []
    for label in pipeline.labels:
        target = folder / f"{label}_0000.png"
        if target.is_file():
            continue
        started = time.perf_counter()
        result = synthesise(pipeline, label, size_px=(size, size), **setting)
        bands = list(result.bands(pipeline))
        spent.append(time.perf_counter() - started)
        write_png(target, bands, shape=(size, size), mpp=result.mpp, provenance=result.provenance())
        print(f"  {target}: {spent[-1]:.1f} s", file=sys.stderr, flush=True)
    plan = plan_image(pipeline, pipeline.labels[0], size_px=(size, size), **setting)
    return {
        "coverage": plan.canvas.coverage,
        "canvas_steps": len(plan.canvas),
        "seconds": float(np.mean(spent or [np.nan])),
    }


def balanced(tiles: TileSet, count: int) -> TileSet:
    """As many tiles of each class, at most `count`."""
    cells = tiles.cells()
    least = min(count, *(len(places) for places in cells.values()))
    chosen = []
    for cell, places in cells.items():
        order = draws.numpy_generator(0, "steps", *map(str, cell)).permutation(len(places))
        chosen += [places[place] for place in order[:least]]
    return tiles.at(chosen)


def features_of(encoder: Any, tiles: list[np.ndarray]) -> np.ndarray:
    found = []
    for first in range(0, len(tiles), 64):
        batch = torch.stack([encoder.prepared(tile) for tile in tiles[first : first + 64]])
        found.append(encoder.features(batch))
    return np.concatenate(found)


def distance(real_ND: np.ndarray, synthetic_MD: np.ndarray) -> tuple[float, float]:
    """Kernel distance x 1000, and its standard deviation by random halves of the synthetic tiles."""
    whole = kernel_distance(real_ND, synthetic_MD)
    half, some_ND = len(synthetic_MD) // 2, real_ND[::5]  # they are in order of class: every fifth is of all classes
    halves = [
        kernel_distance(some_ND, synthetic_MD[draws.numpy_generator(0, "half", n).permutation(2 * half)[:half]])
        for n in range(HALVES)
    ]
    return 1000 * whole, 1000 * float(np.std(halves)) / np.sqrt(2)


def seams(paths: list[Path]) -> list[dict[str, Any]]:
    found = []
    for path in paths:
        pixels = read_image(path)
        for kind, (xs, ys) in recorded_lines(path).items():
            report = measure_seams(pixels, SeamGrid(pixels.shape[1], pixels.shape[0], tuple(xs), tuple(ys)))
            ratio = report.channels["intensity"].ratio
            found.append({"image": path.name, "lines": kind, "p": report.p_value, "ratio": ratio})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=SETTINGS.split(), help="SCHEDULER:STEPS[:STRENGTH[:WINDOWS]]")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--features", nargs="+", default=["atlas"])
    parser.add_argument("--level", default="patch")
    parser.add_argument("--real-large", type=Path, help="folder of real large images, for the ratio at random lines")
    parser.add_argument("--precision", default="fp32", help="of the U-Net: fp32 or bf16 [fp32]")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    try:
        measure(asked)
    except PathUpError as error:
        print(f"pathup: {error}", file=sys.stderr)
        return 1
    return 0


def measure(asked: argparse.Namespace) -> None:
    pipeline = load_pipeline(asked.model, precision=asked.precision)
    rows = []
    for text in asked.settings:
        setting = parsed(text)
        folder = asked.output / text.replace(":", "_")
        folder.mkdir(parents=True, exist_ok=True)
        rows.append({"setting": text, **setting, **draw(pipeline, setting, folder, asked.size), "folder": folder})
    side = int(pipeline.config.tile_px)
    encoders = [load_features(name) for name in asked.features]
    test, train = (
        balanced(load_tile_set(asked.tiles, split, split=split).of(level=asked.level), count)
        for split, count in (("test", 400), ("train", (asked.size // side) ** 2))
    )
    real = {encoder.name: (extract(encoder, test.files), extract(encoder, train.files)) for encoder in encoders}
    floor = {name: distance(a, b) for name, (a, b) in real.items()}
    known = {}
    if (asked.output / "steps.json").is_file():
        before = storage.read_json(asked.output / "steps.json")
        if before["floor"].keys() == floor.keys() and before["model_sha256"] == model_sha256(asked.model):
            known = {row["setting"]: row for row in before["rows"]}
    for place, row in enumerate(rows):
        if row["setting"] in known:
            rows[place] = known[row["setting"]]
            continue
        paths = sorted(row.pop("folder").glob("*.png"))
        tiles = [
            image[y : y + side, x : x + side]
            for image in map(read_image, paths)
            for y in range(0, asked.size - side + 1, side)
            for x in range(0, asked.size - side + 1, side)
        ]
        row["kernel_distance"] = {e.name: distance(real[e.name][0], features_of(e, tiles)) for e in encoders}
        row["seams"] = seams(paths)
        print(row["setting"], row["kernel_distance"], file=sys.stderr, flush=True)
    interval = {}
    if asked.real_large:
        images = [(p.name, lambda p=p: read_image(p)) for p in sorted(asked.real_large.rglob("*")) if p.is_file()]
        lines = recorded_lines(next((asked.output / asked.settings[0].replace(":", "_")).glob("*.png")))
        for kind, (xs, ys) in lines.items():
            ratios = ratios_at_random_lines(images, SeamGrid(asked.size, asked.size, tuple(xs), tuple(ys)))
            interval[kind] = np.percentile(ratios["intensity"], [2.5, 97.5]).tolist()
    content = {
        "model": asked.model.as_posix(),
        "model_sha256": model_sha256(asked.model),
        "version": __version__,
        "size_px": asked.size,
        "tiles_a_setting": len(pipeline.labels) * (asked.size // side) ** 2,
        "floor": floor,
        "real_interval": interval,
        "rows": rows,
    }
    storage.write_json(asked.output / "steps.json", content)
    storage.write_text(asked.output / "steps.md", table(content))
    print(json.dumps({"floor": floor, "real_interval": interval}))


def table(content: dict[str, Any]) -> str:
    names = list(content["floor"])
    head = ["scheduler", "steps", "strength", "windows", "steps on the canvas", "coverages"]
    head += [f"kernel distance x 1000, {name}" for name in names] + ["ratio at lines (least to most)", "p < 0.05"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in content["rows"]:
        ratios = [found["ratio"] for found in row["seams"]]
        small = sum(found["p"] < 0.05 for found in row["seams"])
        told = [row[name] for name in ("scheduler", "steps", "strength", "windows", "canvas_steps")]
        cells = [*told, f"{row['coverage']:.1f}",
                 *("{:.1f} ± {:.1f}".format(*row["kernel_distance"][name]) for name in names),
                 f"{min(ratios):.3f} to {max(ratios):.3f}", f"{small} of {len(ratios)}"]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    floor = [
        "real training tiles",
        "",
        "",
        "",
        "",
        "",
        *("{:.1f} ± {:.1f}".format(*content["floor"][name]) for name in names),
    ]
    real = "; ".join(f"{kind}: {low:.3f} to {high:.3f}" for kind, (low, high) in content["real_interval"].items())
    lines.append("| " + " | ".join([*floor, f"real, 95 %: {real}" if real else "", ""]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
