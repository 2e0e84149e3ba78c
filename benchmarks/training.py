"""Time PathUp's training beside a loop that does what diffusers' text-to-image example does, and what L_e costs.

    python benchmarks/training.py [TILES] --model models/atlas --output training.json --table training.md

TILES is what ``pathup tiles`` wrote for the model's recipe; without it tiles of noise are made. All train the model's
U-Net from its weights, on the same tiles, in batches of the same size: PathUp with and without the feature entropy
loss, by the example's optimiser (AdamW) and by the recipe's own where it is another (Muon), and the loop, in fp32 (the
example's default) and in bf16 (its ``--mixed_precision bf16``); it is `benchmarks.example_loop`. Each has a process of
its own, as in use: PathUp's have its settings of the allocator, as ``pathup train`` has, the loop has PyTorch's. All
are set up first; then they take turns of some steps each (A B C D A B C D), and the median of the turns counts. Tells
steps a second, their ratios, the share of a step in which PathUp waits for its data, and the most memory of each
process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks import each other

import torch

from benchmarks.example_loop import LoopTurns
from benchmarks.figures import add_targets, measured
from benchmarks.made import made_tiles
from pathup import PathUpError, __version__
from pathup.memory import HUGE_PAGES, ask_for_huge_pages, keep_freed_memory
from pathup.model.attention import fast_attention
from pathup.model.pointwise import pointwise_products
from pathup.recipes import load_recipe, save_recipe
from pathup.sampling.device import choose_device, peak_memory_bytes
from pathup.training.batches import Batch
from pathup.training.runs import diffusion_trainer


class PathUpTurns:
    """PathUp's trainer, some steps at a time; it notes what part of them it waits for its data."""

    def __init__(self, asked: argparse.Namespace, work: Path, name: str, *, entropy: bool, muon: bool = False) -> None:
        recipe = load_recipe(asked.recipe)
        if not muon:
            spec = recipe.diffusion.model_copy(update={"muon_learning_rate": None})
            recipe = recipe.model_copy(update={"diffusion": spec})
        save_recipe(recipe, work / f"{name}.yaml")
        self.trainer = diffusion_trainer(
            asked.tiles, work / name, str(work / f"{name}.yaml"), pretrained=str(asked.model),
            autoencoder=None, level=None, latents=work / "latents", resume=False, cpu=asked.device == "cpu",
            changes={
                "batch_size": asked.batch_size, "steps": 1, "decay_steps": 0, "warmup_steps": 0, "orientations": 1,
                "feature_entropy.enabled": entropy, "precision": asked.precision,
            },
            wandb_project=None, gradient_checkpointing=False, compiled=asked.compile,
        )  # fmt: skip
        self.trainer.run()  # fills the cache, takes a step, saves it and draws its sheet, none of it timed
        self.trainer.spec = self.trainer.spec.model_copy(update={"steps": 1_000_000})
        self._stream, self.waited = self.trainer._stream(0), 0.0
        self.turn(asked.warm_up)

    def turn(self, steps: int) -> float:
        """Seconds a step over so many steps, as `PathoAlignTrainer.run` takes them between two checkpoints."""
        trainer, waited = self.trainer, 0.0

        def watched() -> Iterator[Batch]:
            nonlocal waited
            while True:
                begun = time.perf_counter()
                batch = next(self._stream)
                waited += time.perf_counter() - begun
                yield batch

        stream, begun = watched(), time.perf_counter()
        unet, device = trainer.trained.unet, trainer.accelerator.device
        with fast_attention(unet, device), pointwise_products(unet, device):
            for _ in range(steps):
                told = (trainer.step + 1) % trainer.spec.log_every == 0
                values = trainer._train_step(stream, told)
                trainer.step += 1
                if told:
                    values()
        if trainer.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - begun
        self.waited = waited / spent
        return spent / steps


class PathUpArm(NamedTuple):
    """How PathUp trains: its name, and by what."""

    name: str
    entropy: bool = True
    muon: bool = False


class LoopArm(NamedTuple):
    """How the example's loop trains."""

    name: str
    precision: str


def arms_of(asked: argparse.Namespace) -> list[PathUpArm | LoopArm]:
    """All that is timed."""
    own = load_recipe(asked.recipe).diffusion.muon_learning_rate is not None
    pathup = [PathUpArm("pathup"), PathUpArm("pathup_without_entropy", entropy=False)]
    muon = [PathUpArm("pathup_muon", muon=True)] if own else []
    return [*pathup, *muon, LoopArm("example_fp32", "fp32"), LoopArm("example_bf16", "bf16")]


class Turns:
    """An arm in a process of its own, set up and warm once this is made.

    Parameters
    ----------
    arm
        What it trains by.
    asked
        As of `main`.
    work
        Where latents and runs lie; of all arms.
    """

    def __init__(self, arm: PathUpArm | LoopArm, asked: argparse.Namespace, work: Path) -> None:
        self.name, self.is_pathup = arm.name, isinstance(arm, PathUpArm)
        self._pipe, theirs = multiprocessing.Pipe()
        target = _pathup_turns if self.is_pathup else _loop_turns
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs, target, arm, asked, work), daemon=True
        )
        with _environment(self.is_pathup):
            self._process.start()
        theirs.close()
        self.told()

    def turn(self, steps: int) -> dict[str, float]:
        """Take so many steps: ``seconds`` a step, ``memory`` in bytes and, of PathUp, the share ``waited``."""
        self._pipe.send(steps)
        return self.told()

    def told(self) -> dict[str, float]:
        """What the process says next.

        Raises
        ------
        PathUpError
            It has failed.
        """
        try:
            said = self._pipe.recv()
        except EOFError:
            raise PathUpError(f"{self.name} has ended before its turns were over; its message is above") from None
        if isinstance(said, PathUpError):
            raise said
        return dict(said)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


@contextmanager
def _environment(is_pathup: bool) -> Iterator[None]:
    """What a process that is started within finds: huge pages are asked for before torch is imported, or not at all."""
    before = os.environ.pop(HUGE_PAGES, None)
    if is_pathup:
        ask_for_huge_pages()
    try:
        yield
    finally:
        os.environ.pop(HUGE_PAGES, None)
        if before is not None:
            os.environ[HUGE_PAGES] = before


def _pathup_turns(arm: PathUpArm, asked: argparse.Namespace, work: Path) -> PathUpTurns:
    keep_freed_memory()
    return PathUpTurns(asked, work, arm.name, entropy=arm.entropy, muon=arm.muon)


def _loop_turns(arm: LoopArm, asked: argparse.Namespace, work: Path) -> LoopTurns:
    return LoopTurns(asked, arm.precision)


def _serve(
    pipe: Connection, make: Callable[..., PathUpTurns | LoopTurns], arm: PathUpArm | LoopArm,
    asked: argparse.Namespace, work: Path,
) -> None:  # fmt: skip
    """Make an arm, and take turns until the other end is closed."""
    if asked.threads:
        torch.set_num_threads(asked.threads)
    try:
        own = make(arm, asked, work)
        pipe.send({})
        while True:
            seconds, memory = own.turn(pipe.recv()), peak_memory_bytes(choose_device(asked.device))
            pipe.send({"seconds": seconds, "waited": getattr(own, "waited", 0.0), "memory": memory})
    except PathUpError as error:
        pipe.send(error)
    except EOFError:
        return


def measure(asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Have the arms take turns, and say what came of it."""
    with ExitStack() as started:
        arms = []
        for arm in arms_of(asked):
            arms.append(Turns(arm, asked, work))
            started.callback(arms[-1].close)
        seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
        waited, memory = [], {}
        for turn in range(asked.turns):
            for arm in arms:
                took = arm.turn(asked.steps)
                seconds[arm.name].append(took["seconds"])
                memory[arm.name] = took["memory"]
                if arm.is_pathup:
                    waited.append(took["waited"])
            told = ", ".join(f"{name} {spent[-1]:.3f}" for name, spent in seconds.items())
            print(f"turn {turn + 1} of {asked.turns}, seconds a step: {told}", file=sys.stderr, flush=True)
    return {
        "version": __version__, "torch": torch.__version__, "threads": asked.threads or torch.get_num_threads(),
        "batch_size": asked.batch_size, "precision": asked.precision, "seconds_a_step": seconds,
        "waited_share": waited, "peak_memory_bytes": memory, **ratios(seconds, waited),
    }  # fmt: skip


def ratios(seconds: dict[str, list[float]], waited: list[float]) -> dict[str, Any]:
    """What the turns say: each ratio is the median over turns, with the least and the most beside."""

    def over(one: str, other: str) -> list[float]:
        found = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
        return [statistics.median(found), min(found), max(found)]

    return {
        "steps_a_second": {name: 1 / statistics.median(spent) for name, spent in seconds.items()},
        "times_the_example_fp32": over("example_fp32", "pathup"),
        "times_the_example_bf16": over("example_bf16", "pathup"),
        "cost_of_entropy": over("pathup", "pathup_without_entropy"),
        "waiting_for_data": [statistics.median(waited), min(waited), max(waited)],
    }


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    names = {
        "pathup": "PathUp, with the feature entropy loss", "pathup_without_entropy": "PathUp, without",
        "pathup_muon": "PathUp, with the recipe's Muon",
        "example_fp32": "the example's loop, fp32", "example_bf16": "the example's loop, bf16",
    }  # fmt: skip
    rates, memory = found["steps_a_second"], found["peak_memory_bytes"]
    rows = [
        f"| {title} | {rates[name]:.2f} | {memory[name] / 2**20:,.0f} |"
        for name, title in names.items()
        if name in rates
    ]
    said = [
        ("PathUp's steps a second over the loop's in fp32", "times_the_example_fp32", "at least 2"),
        ("over the loop's in bf16", "times_the_example_bf16", ""),
        ("a step with the feature entropy loss over one without", "cost_of_entropy", "at most 1.03"),
        ("share of a step spent waiting for data", "waiting_for_data", "at most 0.05"),
    ]
    more = [
        f"| {title} | {found[key][0]:.3f} | {found[key][1]:.3f} to {found[key][2]:.3f} | {wanted} |"
        for title, key, wanted in said
    ]
    head = [f"| training, batch {found['batch_size']} | steps a second | most memory, MiB |", "|---|---|---|"]
    second = ["", "| ratio | median of the turns | least to most | wanted |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, *second, *more]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path, nargs="?")
    parser.add_argument("--model", type=Path, default=Path("models/atlas"))
    parser.add_argument("--recipe", default="atlas", help="of the model and the tiles [atlas]")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", default="bf16", help="of PathUp's training [bf16]")
    parser.add_argument("--compile", action="store_true", help="have PathUp's blocks fused")
    parser.add_argument("--warm-up", type=int, default=2, help="steps of each before any is timed [2]")
    parser.add_argument("--steps", type=int, default=4, help="steps a turn [4]")
    parser.add_argument("--turns", type=int, default=5, help="turns of each [5]")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    parser.add_argument("--threads", type=int)
    add_targets(parser)
    asked = parser.parse_args()

    def measure_in(work: Path) -> dict[str, Any]:
        asked.tiles = asked.tiles or made_tiles(work, load_recipe(asked.recipe))
        return measure(asked, work)

    return measured(asked, measure_in, table)


if __name__ == "__main__":
    sys.exit(main())
