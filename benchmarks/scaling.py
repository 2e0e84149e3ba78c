"""Time training and bulk generation by one process and by two, each with as many threads, as a user starts them.

    python benchmarks/scaling.py [TILES] --model models/atlas --output scaling.json --table scaling.md

TILES is what ``pathup tiles`` wrote for the model's recipe; without it tiles of noise are made. One process is
``python -m pathup ...``, several are ``torchrun --nproc-per-node N -m pathup ...`` on this machine; they take turns (1
2 1 2). Training's joint batch grows with the processes; what counts is tiles a second over the training itself, as the
run's own ``training.json`` has it, and over the drawing, as ``pathup generate`` tells it, both without the start. Also
the most memory that a process held.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks import each other

from benchmarks.figures import add_targets, measured
from benchmarks.made import made_tiles
from pathup import PathUpError, __version__, storage
from pathup.recipes import load_recipe


def launched(processes: int, threads: int, arguments: list[str]) -> str:
    """Run ``pathup`` in so many processes; what they said on stdout."""
    several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [sys.executable, "-m", *(several if processes > 1 else []), "pathup", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("pathup: ")] or [done.stderr[-1000:]]
        raise PathUpError(f"{' '.join(arguments[:2])} ended with status {done.returncode}: {said[0]}")
    return done.stdout


def training(asked: argparse.Namespace, processes: int, work: Path) -> float:
    """Tiles a second of a short run; the latents are cached before the first."""
    run = work / f"train_{len(list(work.iterdir()))}"
    launched(processes, asked.threads, [
        "train", "diffusion", "--tiles", str(asked.tiles), "--recipe", asked.recipe, "--pretrained", str(asked.model),
        "--output", str(run), "--latents", str(asked.latents or work / "latents"), "--steps", str(asked.steps),
        "--batch-size", str(asked.batch_size), *(["--cpu"] if asked.device == "cpu" else []),
    ])  # fmt: skip
    told = storage.read_json(run / "model/training.json")
    return float(told["tiles_seen"]) / float(told["seconds"])


def drawing(asked: argparse.Namespace, processes: int, work: Path) -> float:
    """Tiles a second of a folder of every class."""
    said = launched(processes, asked.threads, [
        "generate", str(asked.model), str(work / f"draw_{len(list(work.iterdir()))}"), "--label", "all", "--level",
        "patch", "--count", str(asked.count), "--window-batch", str(asked.window_batch), "--threads",
        str(asked.threads), "--device", asked.device,
    ])  # fmt: skip
    return told_rate(said)


def told_rate(said: str) -> float:
    """Tiles a second of what ``pathup generate`` says."""
    images, seconds = re.search(r"^(\d+) images", said, re.MULTILINE), re.search(r"tiles ([\d.]+) s", said)
    if images is None or seconds is None:
        raise PathUpError(f"'pathup generate' told neither images nor seconds: {said[:300]}")
    return int(images[1]) / float(seconds[1])


def measure(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Have the numbers of processes take turns."""
    rates: dict[str, dict[str, list[float]]] = {"training": {}, "drawing": {}}
    for turn in range(asked.turns):
        for name, timed in (("training", training), ("drawing", drawing)):
            for processes in (1, asked.processes):
                rates[name].setdefault(str(processes), []).append(timed(asked, processes, work))
            told = ", ".join(f"{count}: {found[-1]:.2f}" for count, found in rates[name].items())
            print(f"turn {turn + 1} of {asked.turns}, {name}, tiles a second by processes: {told}", file=sys.stderr)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "version": __version__, "threads_a_process": asked.threads,
        "processes": asked.processes, "batch_size": asked.batch_size, "window_batch": asked.window_batch,
        "tiles_a_second": rates, "peak_memory_bytes": peak if sys.platform == "darwin" else peak * 1024,
        "times_one_process": {name: ratio(found, asked.processes) for name, found in rates.items()},
    }  # fmt: skip


def ratio(found: dict[str, list[float]], processes: int) -> list[float]:
    """Several processes' rate over one's: the median of the turns, the least and the most."""
    ratios = [many / one for one, many in zip(found["1"], found[str(processes)], strict=True)]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    count = found["processes"]
    rows = [
        f"| {name} | {statistics.median(rates['1']):.2f} | {statistics.median(rates[str(count)]):.2f} | "
        "{:.2f} ({:.2f} to {:.2f}) |".format(*found["times_one_process"][name])
        for name, rates in found["tiles_a_second"].items()
    ]
    head = f"| tiles a second, {found['threads_a_process']} threads each | 1 process | {count} processes | times |"
    peak = f"Most memory of a process: {found['peak_memory_bytes'] / 2**20:.0f} MiB."
    return "\n".join([head, "|---|---|---|---|", *rows, "", peak, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path, nargs="?")
    parser.add_argument("--model", type=Path, default=Path("models/atlas"))
    parser.add_argument("--recipe", default="atlas", help="of the model and the tiles [atlas]")
    parser.add_argument("--latents", type=Path, help="a latent cache to share [made anew]")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each process [1]")
    parser.add_argument("--batch-size", type=int, default=8, help="tiles a process and step [8]")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--count", type=int, default=8, help="tiles of each class [8]")
    parser.add_argument("--window-batch", type=int, default=4, help="tiles at once [4]")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    add_targets(parser)
    asked = parser.parse_args()

    def measure_in(work: Path) -> dict[str, Any]:
        asked.tiles = asked.tiles or made_tiles(work / "made", load_recipe(asked.recipe))
        return measure(asked, work)

    return measured(asked, measure_in, table)


if __name__ == "__main__":
    sys.exit(main())
