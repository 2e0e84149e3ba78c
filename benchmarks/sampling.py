"""Time PathUp's sampler beside the paper's Algorithm 1 taken literally and diffusers' panorama pipeline.

All with the same U-Net, canvas, noise, steps and prompt; then ``pathup generate`` beside what its forwards and its
decoding cost with nothing around them. Methods take turns (A B A B), each turn in a process of its own, since the
most memory a process held never falls; the least time counts.

``make bench``, or ``python benchmarks/sampling.py --model models/atlas --output bench.json --table bench.md``.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks import each other

import numpy as np

from benchmarks.figures import machine
from benchmarks.sampling_report import TITLES, add_ratios, summary, table, verdicts
from pathup import PathUpError, __version__, storage
from pathup.memory import ask_for_huge_pages

SHIPPED = Path("models/atlas")


def turn(asked: argparse.Namespace, name: str, **more: Any) -> dict[str, Any]:
    """One turn in a process of its own."""
    ask_for_huge_pages()  # the turn's process inherits it, as `pathup` itself has it
    command = [sys.executable, __file__, *arguments_of(asked, name, **more)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise PathUpError(f"the turn of '{name}' ended with status {done.returncode}; what it said is above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def arguments_of(asked: argparse.Namespace, name: str, **more: Any) -> list[str]:
    """What one turn's process is told: the same command line, and whose turn it is."""
    named = {**vars(asked), **more, "turn": name}
    arguments: list[str] = []
    for key, value in named.items():
        if value is not None and key not in ("methods", "output", "table"):
            arguments += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return arguments


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """All turns, and what they say."""
    swept = turn(asked, "sweep")
    facts, least = swept.pop("facts"), swept["seconds_a_forward"]
    batch = min(least, key=least.__getitem__)
    decoding = swept["seconds_a_position_decoded"]
    tile = min(decoding, key=decoding.__getitem__)
    shown = ", ".join(f"{name}: {1000 * value:.2f}" for name, value in least.items())
    print(f"ms a forward by batch: {shown}; plain tiles of {tile} decode fastest", flush=True)
    names = [name for method in asked.methods for name in _with_bare(method)]
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    apart = None
    with tempfile.TemporaryDirectory() as scratch:
        kept = {name: Path(scratch) / f"{name}.npy" for name in ("literal", "equation_6")}
        for repeat in range(asked.repeats):
            for name in names:
                found = turn(asked, name, batch=batch, tile=tile, keep=kept.get(name))
                turns[name].append(found)
                print(f"  {repeat + 1}/{asked.repeats} {TITLES[name]}: {found['seconds']['total']:.2f} s, "
                      f"{found['forwards']} forwards", flush=True)  # fmt: skip
        if all(path.exists() for path in kept.values()):
            expected, result = (np.load(path, allow_pickle=False) for path in kept.values())
            apart = float(np.abs(result - expected).max() / np.abs(expected).max())
    rows = {name: summary(TITLES[name], found) for name, found in turns.items()}
    add_ratios(rows)
    own_guidance = facts["own_settings"]["guidance"]
    return {
        "model": f"recipe '{asked.recipe}', random weights" if asked.model is None else asked.model.as_posix(),
        "model_sha256": facts.pop("model_sha256"),
        "size_px": asked.size,
        "repeats": asked.repeats,
        "batch": int(batch),
        "tile_latent": int(tile),
        "facts": {
            **facts,
            "batches": asked.batches,
            "whole_guidance": own_guidance if asked.guidance is None else asked.guidance,
        },
        "sweep": swept,
        "methods": rows,
        "equation_6_from_literal": apart,
        "verdicts": verdicts(rows, apart),
        **machine(),
        "versions": {
            "pathup": __version__, "torch": version("torch"), "diffusers": version("diffusers"),
            "python": platform.python_version(),
        },
    }  # fmt: skip


def _with_bare(method: str) -> list[str]:
    """A whole slide's turn is followed by that of its bare cost."""
    return [method, method.replace("whole_", "bare_")] if method.startswith("whole_") else [method]


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; without --model and --recipe it is the shipped model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help=f"model folder [{SHIPPED}]")
    parser.add_argument("--recipe", help="a model of this recipe with random weights instead")
    parser.add_argument("--size", type=int, default=2048, help="side of the canvas in pixels [2048]")
    parser.add_argument("--steps", type=int, help="[8; of pathup generate, the model's own]")
    parser.add_argument("--guidance", type=float, help="[1, which is none; of pathup generate, the model's own]")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16, 32, 48, 64], help="batches to try")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each, the fastest counts [3]")
    parser.add_argument("--threads", type=int, help="CPU threads [all]")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda [auto]")
    choices = [name for name in TITLES if not name.startswith("bare_")]
    parser.add_argument("--methods", nargs="+", choices=choices, default=choices, help="[all]")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--table", type=Path, help="write them as a page of markdown")
    for name, kind in (("turn", str), ("batch", int), ("tile", int), ("keep", Path)):  # of one turn's process
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.model is None and asked.recipe is None:
        asked.model = SHIPPED
    return asked


def main() -> int:
    asked = parsed()
    try:
        if asked.turn is not None:
            from benchmarks.sampling_methods import turn_of  # torch comes with it, and a parent's memory would count

            print(json.dumps(turn_of(asked)))
            return 0
        result = measure(asked)
        if asked.output is not None:
            storage.write_json(asked.output, result)
        if asked.table is not None:
            storage.write_text(asked.table, table(result))
    except PathUpError as error:
        print(f"pathup: {error}", file=sys.stderr)
        return 1
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
