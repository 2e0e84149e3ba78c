"""Times ``pathup evaluate`` of N tiles against N beside bare feature extraction of the same tiles, in one run.

    python benchmarks/evaluation.py --count 10000 --side 128 --output evaluation.json --table evaluation.md

Without folders (``--real DIR --fake DIR``), tiles are made: blurred noise in two stains, as PNG. Nothing is kept
between runs, so both sides read every file and run every tile through the network. Tells seconds of each, their ratio,
the seconds beyond 1.15 times the extraction, and the peak of resident memory.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks import each other

import torch

from benchmarks.figures import add_targets, measured
from benchmarks.made import make_tiles
from pathup import __version__
from pathup.evaluation.encoders import load_features
from pathup.evaluation.features import extract
from pathup.evaluation.runs import EvaluateRequest, evaluate
from pathup.evaluation.tile_sets import load_tile_set
from pathup.memory import keep_freed_memory


def measure(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Features of both folders alone, then the whole of ``pathup evaluate``."""
    keep_freed_memory()
    folders = asked.real or work / "real", asked.fake or work / "fake"
    for number, folder in enumerate(folders):
        if not folder.exists():
            make_tiles(folder, asked.count, asked.side, number)
    encoder = load_features(asked.features)
    files = [load_tile_set(folder, "timed").files[: asked.count] for folder in folders]
    extract(encoder, files[0][:128])  # warm
    started = time.perf_counter()
    for own in files:
        extract(encoder, own)
    bare = time.perf_counter() - started
    started = time.perf_counter()
    evaluate(
        EvaluateRequest(
            real=folders[0], fake=folders[1], train=folders[0], output=work / "report", keep=False,
            features=(asked.features,), count=asked.count, mpp=asked.mpp,
        )
    )  # fmt: skip
    whole = time.perf_counter() - started
    return {
        "pathup": __version__,
        "features": encoder.name,
        "tiles": [len(own) for own in files],
        "threads": torch.get_num_threads(),
        "extraction_s": round(bare, 1),
        "evaluate_s": round(whole, 1),
        "ratio": round(whole / bare, 3),
        "beyond_1.15_s": round(whole - 1.15 * bare, 1),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def table(found: dict[str, Any]) -> str:
    """A page of Markdown."""
    real, fake = found["tiles"]
    return (
        f"`pathup evaluate` of {fake:,} tiles against {real:,}, features `{found['features']}`, "
        f"{found['threads']} threads.\n\n"
        "| | seconds |\n|---|---:|\n"
        f"| features of both alone | {found['extraction_s']:.1f} |\n"
        f"| `pathup evaluate` | {found['evaluate_s']:.1f} |\n\n"
        f"Beyond 1.15 times the features: {found['beyond_1.15_s']:.0f} s; wanted: at most 120. (Nuclei are measured in "
        f"at most 700 tiles of each set.) Most memory {found['peak_rss_mib']:,} MiB.\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="tiles in each folder [10000]")
    parser.add_argument("--side", type=int, default=128, help="of tiles that are made, in pixels [128]")
    parser.add_argument("--features", default="atlas", help="as of pathup evaluate [atlas]")
    parser.add_argument("--real", type=Path, help="a folder of real tiles [made]")
    parser.add_argument("--fake", type=Path, help="a folder of synthetic tiles [made]")
    parser.add_argument("--mpp", type=float, default=0.5, help="micrometres a pixel [0.5]")
    add_targets(parser)
    asked = parser.parse_args()
    return measured(asked, lambda work: measure(asked, work), table)


if __name__ == "__main__":
    sys.exit(main())
