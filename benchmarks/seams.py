"""How well planted seams are found on real tissue, and whether p-values are uniform where there are none.

    python benchmarks/seams.py REGIONS [--size 1024] [--pitch 256] [--count 40] [--plant random]

REGIONS is a folder of large images of real tissue. Each field is measured as it is and with a step of 2/255 in the
optical density of one stain (haematoxylin and eosin in turns) planted on a grid: on tiles in turns (``checkerboard``),
on tiles at random (``random``) or beyond one line of it (``line``). Prints JSON: the area under the ROC curve by score
and by p-value, and the Kolmogorov-Smirnov test of the unplanted fields' p-values.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from pathup import draws
from pathup.evaluation.seams import SeamGrid, measure_seams
from pathup.evaluation.stains import RUIFROK_JOHNSTON

STAINS = RUIFROK_JOHNSTON[:2] / np.linalg.norm(RUIFROK_JOHNSTON[:2], axis=1, keepdims=True)
STEP = 2 / 255


def planted(pixels: np.ndarray, grid: SeamGrid, how: str, stain: int, draw: np.random.Generator) -> np.ndarray:
    """The field with the step, in 8 bits again."""
    height, width = pixels.shape[:2]
    columns, rows = (
        np.searchsorted(lines, np.arange(length), "right") for lines, length in ((grid.xs, width), (grid.ys, height))
    )
    if how == "checkerboard":
        mask = (rows[:, None] + columns) % 2
    elif how == "random":
        mask = draw.integers(0, 2, (len(grid.ys) + 1, len(grid.xs) + 1))[rows][:, columns]
    else:
        mask = np.broadcast_to(columns > int(draw.integers(len(grid.xs))), (height, width))
    density = -np.log((pixels + 1.0) / 256) + STEP * mask[..., None] * STAINS[stain]
    return (256 * np.exp(-density) - 1).round().clip(0, 255).astype(np.uint8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("regions", type=Path)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--pitch", type=int, default=256)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--plant", choices=["checkerboard", "random", "line"], default="random")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    files = sorted(path for path in asked.regions.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    if not files:
        print(f"{asked.regions} holds no images", file=sys.stderr)
        return 1
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for number in range(asked.count):
        draw = draws.numpy_generator(asked.seed, "seams benchmark", number)
        pixels = np.asarray(Image.open(files[int(draw.integers(len(files)))]).convert("RGB"))
        top, left = (int(draw.integers(side - asked.size + 1)) for side in pixels.shape[:2])
        field = pixels[top : top + asked.size, left : left + asked.size]
        offset = tuple(int(value) for value in draw.integers(asked.pitch, size=2))
        grid = SeamGrid.regular(asked.size, asked.size, asked.pitch, (offset[0], offset[1]))
        for with_seam in (False, True):
            image = planted(field, grid, asked.plant, number % 2, draw) if with_seam else field
            report = measure_seams(image, grid, seed=number)
            found[with_seam].append((report.score, report.p_value))
    truth = [0] * asked.count + [1] * asked.count
    scores, p_values = (np.array([row[i] for row in (*found[False], *found[True])]) for i in (0, 1))
    told = {
        "size": asked.size, "pitch": asked.pitch, "fields": asked.count, "plant": asked.plant,
        "auc_by_score": round(float(roc_auc_score(truth, scores)), 3),
        "auc_by_p": round(float(roc_auc_score(truth, -p_values)), 3),
        "uniform_ks_p": round(float(kstest(p_values[: asked.count], "uniform").pvalue), 3),
        "share_below_0.05": round(float((p_values[: asked.count] <= 0.05).mean()), 3),
    }  # fmt: skip
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
