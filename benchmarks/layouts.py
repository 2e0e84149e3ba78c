"""How often a classifier of real tiles names each side of a two-class image, beside whole images of each class.

    python benchmarks/layouts.py models/atlas TILES --output DIR --pairs IC:ONC POL:KEL HEM:MLS

Draws, for each pair, an image whose left half is the first class and whose right half the second (`--layout`), and one
image of each class alone, of the half's size; cuts them into tiles, and has a classifier that was trained on real
training tiles name the class of each, in colour and grey (`pathup.evaluation.consistency`). The share of the right
class on a side over that on the whole image is the figure. Images that are there already are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathup import PathUpError, storage
from pathup.evaluation.consistency import capped, trained_classifier
from pathup.evaluation.encoders import Encoder, load_features
from pathup.evaluation.features import VIEWS, extract, seen
from pathup.evaluation.tile_sets import load_tile_set
from pathup.model.pipeline import load_pipeline
from pathup.sampling.layouts import read_layout
from pathup.sampling.overview import sampling_levels
from pathup.sampling.synthesis import synthesise
from pathup.slides.images import read_image
from pathup.slides.writer import write_png


def right_half(label: str, size: int) -> dict[str, Any]:
    ring = [[size, 0], [2 * size, 0], [2 * size, size], [size, size], [size, 0]]
    return {
        "type": "Feature",
        "properties": {"objectType": "annotation", "classification": {"name": label}},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }


def drawn(pipeline: Any, target: Path, label: str, size: int, beside: str | None = None) -> np.ndarray:
    if not target.is_file():
        layout = None
        if beside is not None:
            areas = target.with_suffix(".geojson")
            storage.write_json(areas, {"type": "FeatureCollection", "features": [right_half(beside, size)]})
            classes = [dict(spec) for spec in pipeline.config.classes]
            mpp = sampling_levels(pipeline).mpp
            layout = read_layout(areas, classes, size_px=(size, 2 * size), mpp=mpp, background=label)
        result = synthesise(pipeline, label, size_px=(size, size if beside is None else 2 * size), layout=layout)
        write_png(target, result.bands(pipeline), shape=result.size_px, mpp=result.mpp, provenance=result.provenance())
        print(f"  {target}", file=sys.stderr, flush=True)
    return read_image(target)


def shares(
    pixels: np.ndarray, label: str, side: int, encoder: Encoder, classifiers: dict[str, Any]
) -> dict[str, float]:
    """How often the tiles of an image are named `label`, by view."""
    tiles = [
        pixels[y : y + side, x : x + side]
        for y in range(0, pixels.shape[0] - side + 1, side)
        for x in range(0, pixels.shape[1] - side + 1, side)
    ]
    found = {}
    for view, classifier in classifiers.items():
        batch = torch.stack([encoder.prepared(seen(tile, view)) for tile in tiles])  # type: ignore[arg-type]
        found[view] = float(np.mean(classifier.predict(encoder.features(batch).astype(np.float64)) == label))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pairs", nargs="+", default=["IC:ONC", "POL:KEL", "HEM:MLS"])
    parser.add_argument("--size", type=int, default=1024, help="side of a half [1024]")
    parser.add_argument("--features", default="atlas")
    parser.add_argument("--level", default="patch")
    parser.add_argument("--precision", default="fp32", help="of the U-Net: fp32 or bf16 [fp32]")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    asked.output.mkdir(parents=True, exist_ok=True)
    try:
        pipeline = load_pipeline(asked.model, precision=asked.precision)
        encoder = load_features(asked.features)
        train = capped(load_tile_set(asked.tiles, "train", split="train").of(level=asked.level), 400, 0, "layouts")
        classifiers = {
            view: trained_classifier(extract(encoder, train.files, view), [str(label) for label in train.labels])
            for view in VIEWS
        }
        side, rows = int(pipeline.config.tile_px), []
        for pair in asked.pairs:
            left, right = pair.split(":")
            both = drawn(pipeline, asked.output / f"{left}_{right}.png", left, asked.size, right)
            for label, half in ((left, both[:, : asked.size]), (right, both[:, asked.size :])):
                whole = drawn(pipeline, asked.output / f"{label}.png", label, asked.size)
                beside, alone = (shares(pixels, label, side, encoder, classifiers) for pixels in (half, whole))
                rows.append({"pair": pair, "class": label, "beside": beside, "alone": alone})
                print(rows[-1], file=sys.stderr, flush=True)
        sums = {
            view: [sum(row[kind][view] for row in rows) / len(rows) for kind in ("beside", "alone")] for view in VIEWS
        }
        result = {
            "features": asked.features,
            "rows": rows,
            "mean": sums,
            "ratio": {v: b / a for v, (b, a) in sums.items()},
        }
        storage.write_json(asked.output / "layouts.json", result)
    except PathUpError as error:
        print(f"pathup: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"mean": sums, "ratio": result["ratio"]}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
