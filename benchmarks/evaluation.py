"""Times ``pathup evaluate`` of N tiles against N beside bare feature extraction of the same tiles, in one run.

    python benchmarks/evaluation.py [--count 10000] [--side 128] [--features atlas] [--real DIR --fake DIR]

Without folders, tiles are made: blurred noise in two stains, as PNG. Nothing is kept between runs, so both sides read
every file and run every tile through the network. Prints JSON: seconds of each, their ratio, the seconds beyond 1.15
times the extraction, and the peak of resident memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks import each other

import torch

from benchmarks.made import make_tiles
from pathup.evaluation.encoders import load_features
from pathup.evaluation.features import extract
from pathup.evaluation.runs import EvaluateRequest, evaluate
from pathup.evaluation.tile_sets import load_tile_set
from pathup.memory import keep_freed_memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--features", default="atlas")
    parser.add_argument("--real", type=Path)
    parser.add_argument("--fake", type=Path)
    parser.add_argument("--mpp", type=float, default=0.5)
    asked = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        folders = asked.real or Path(scratch) / "real", asked.fake or Path(scratch) / "fake"
        for number, folder in enumerate(folders):
            if not folder.exists():
                make_tiles(folder, asked.count, asked.side, number)
        encoder = load_features(asked.features)
        sets = [load_tile_set(folder, "timed") for folder in folders]
        files = [tiles.files[: asked.count] for tiles in sets]
        extract(encoder, files[0][:128])  # warm
        started = time.perf_counter()
        for own in files:
            extract(encoder, own)
        bare = time.perf_counter() - started
        started = time.perf_counter()
        evaluate(
            EvaluateRequest(
                real=folders[0], fake=folders[1], train=folders[0], output=Path(scratch) / "report", keep=False,
                features=(asked.features,), count=asked.count, mpp=asked.mpp,
            )
        )  # fmt: skip
        whole = time.perf_counter() - started
    told = {
        "features": encoder.name,
        "tiles": [len(own) for own in files],
        "threads": torch.get_num_threads(),
        "extraction_s": round(bare, 1),
        "evaluate_s": round(whole, 1),
        "ratio": round(whole / bare, 3),
        "beyond_1.15_s": round(whole - 1.15 * bare, 1),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    json.dump(told, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
