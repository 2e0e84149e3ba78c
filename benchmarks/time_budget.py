"""How good a model gets in a given time on this device: tiles, training, sampling and figures, all within the budget.

    python benchmarks/time_budget.py REGIONS --output DIR --minutes 9 --autoencoder MODEL --batch-size 256

REGIONS is a region table (or what ``pathup tiles`` takes, or a folder that it wrote). Tiles are cut and encoded, the
speed of training is measured over its first steps, and as many more are taken as leave time for sampling and measuring;
the learning rate falls over their last share. A run whose loss jumps up and stays there goes back to a checkpoint, and
on at half the rate. Without ``--autoencoder`` one is trained first, for `--autoencoder-share` of what time is left.
DIR then holds ``model`` (as PathUp loads it), the curves of its losses and
a sheet of its tiles, ``time_budget.json`` (seconds of each stage, steps, tiles a second), and with ``--count`` above 0
``tiles`` drawn from it, ``sheet.png`` of them and ``fidelity.json`` (kernel distance x 1000, recall, grey tiles named
right, beside the test split, which must be among the tiles, and a floor of real training tiles); everything else lies
in ``--work``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathup import PathUpError, storage
from pathup.evaluation.encoders import load_features
from pathup.evaluation.tile_sets import load_tile_set
from pathup.experiments.yardstick import Yardstick
from pathup.recipes import load_recipe
from pathup.sampling.device import choose_device
from pathup.sampling.runs import GenerateRequest, generate
from pathup.slides.images import read_image
from pathup.tiles.making import make_tiles
from pathup.training.checkpoints import newest_checkpoint, remove_after
from pathup.training.journal import GoneOffError
from pathup.training.patho_align import PathoAlignTrainer
from pathup.training.runs import diffusion_trainer, train_autoencoder
from pathup.training.sheets import image_sheet

PROBE = 240
"""Steps of the diffusion model after which the speed of the last ones is looked at; they count."""

LINE = 20
"""Steps between two lines of the log, from which that speed comes."""

AUTOENCODER_PROBE = 20, 80
"""Steps of two short runs: what the longer one takes more is the time of its further steps, without setting up."""

KEEP_EVERY = 500
"""Steps between two checkpoints, to which a run that has gone off can go back."""

FAR = 1_000_000
"""Steps between two sheets: none but the last."""

SHEET = 6
"""Tiles of each class and level on the sheet."""


class Clock:
    """Seconds of each stage, and what is left of the budget."""

    def __init__(self, minutes: float) -> None:
        self.stages: dict[str, float] = {}
        self._start = self._last = time.perf_counter()
        self._end = self._start + 60 * minutes

    def done(self, stage: str) -> float:
        """Note that a stage ended now; returns its seconds."""
        now = time.perf_counter()
        self.stages[stage], self._last = now - self._last, now
        print(f"{stage}: {self.stages[stage]:.0f} s, {self.left():.0f} s left", file=sys.stderr, flush=True)
        return self.stages[stage]

    def left(self) -> float:
        """Seconds until the budget is spent; may be below 0."""
        return self._end - time.perf_counter()


def seconds_a_step(run: Callable[[int], object]) -> float:
    """Of training, from two short runs of `AUTOENCODER_PROBE` steps."""
    spent = []
    for steps in AUTOENCODER_PROBE:
        start = time.perf_counter()
        run(steps)
        spent.append(time.perf_counter() - start)
    return max(spent[1] - spent[0], 1e-3) / (AUTOENCODER_PROBE[1] - AUTOENCODER_PROBE[0])


def affordable(seconds: float, a_step: float) -> int:
    """How many steps fit, at least one."""
    return max(1, int(seconds / a_step))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="where tiles, latents and runs lie [OUTPUT/work]")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--reserve", type=float, default=0.2, help="share kept for sampling and measuring [0.2]")
    parser.add_argument("--recipe", default="atlas")
    parser.add_argument("--autoencoder", help="a folder; unset: one is trained first")
    parser.add_argument("--autoencoder-share", type=float, default=0.25)
    parser.add_argument("--pretrained", help="go on with this model instead of starting from random weights")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--orientations", type=int)
    parser.add_argument("--decay-share", type=float, default=0.25, help="of the steps, with a falling rate [0.25]")
    parser.add_argument("--compile", action="store_true", help="fuse the U-Net's blocks")
    parser.add_argument("--record", action="store_true", help="record a step's passes on the GPU and replay them")
    parser.add_argument("--count", type=int, default=40, help="tiles drawn of each class and level [40]; 0: none")
    parser.add_argument("--features", nargs="+", default=["atlas"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    try:
        within(parser.parse_args())
    except PathUpError as error:
        print(f"pathup: {error}", file=sys.stderr)
        return 1
    return 0


def within(asked: argparse.Namespace) -> dict[str, Any]:
    """Do it all; returns what ``time_budget.json`` holds."""
    clock, work = Clock(asked.minutes), asked.work or asked.output / "work"
    device = choose_device(asked.device)
    tiles = asked.source
    if not (tiles / "recipe.yaml").is_file():
        tiles = work / "tiles"
        make_tiles(asked.source, tiles, load_recipe(asked.recipe), workers=max(1, asked.workers))
    clock.done("tiles")
    autoencoder = asked.autoencoder or asked.pretrained
    if autoencoder is None:
        autoencoder = str(trained_autoencoder(asked, clock, tiles, work, cpu=device.type == "cpu"))
    trainer = diffusion_trainer(
        tiles, work / "run", asked.recipe, pretrained=asked.pretrained,
        autoencoder=None if asked.pretrained else autoencoder, level=None, latents=work / "latents",
        gradient_checkpointing=False, compiled=asked.compile, recorded=asked.record, resume=False,
        cpu=device.type == "cpu", wandb_project=None, changes={
            "batch_size": asked.batch_size, "learning_rate": asked.learning_rate, "orientations": asked.orientations,
            "steps": PROBE, "decay_steps": 0, "log_every": LINE, "checkpoint_every": KEEP_EVERY,
            "keep_checkpoints": 3, "sample_every": FAR,
        },
    )  # fmt: skip
    torch.backends.cudnn.benchmark = True  # one shape: the first steps look for the fastest kernels
    trainer.run(workers=asked.workers)
    clock.done("latents, setting up and probe")
    a_step = trainer.seconds_a_step or 0.0
    reserve = 60 * asked.minutes * asked.reserve
    model, steps, slowed = to_the_end(trainer, lambda: affordable(clock.left() - reserve, a_step), asked)
    spent = clock.done("training")
    shutil.rmtree(asked.output / "model", ignore_errors=True)
    shutil.copytree(model, asked.output / "model")
    for picture in (work / "run" / "losses.png", *sorted((work / "run" / "sheets").glob("*.png"))[-1:]):
        shutil.copy(picture, asked.output)
    figures = measured(asked, device, tiles, clock) if asked.count else []
    seen = trainer.spec.batch_size * (steps - PROBE)  # what was done twice, after a run had gone off, counts once
    told = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type, "minutes": asked.minutes,
        "stages": clock.stages, "steps": steps, "batch_size": trainer.spec.batch_size,
        "slowed_down_at": slowed, "tiles_a_second": seen / spent, "figures": figures,
    }  # fmt: skip
    storage.write_json(asked.output / "time_budget.json", told)
    return told


def to_the_end(
    trainer: PathoAlignTrainer, more: Callable[[], int], asked: argparse.Namespace
) -> tuple[Path, int, list[int]]:
    """Train as many more steps as fit; a run that goes off goes on from before that, half as fast.

    Returns the model, its steps, and where it was slowed down.
    """
    slowed: list[int] = []
    while True:
        steps = trainer.step + more()
        try:
            model = trainer.go_on(steps, decay_steps=max(1, int(steps * asked.decay_share)), workers=asked.workers)
            return model, steps, slowed
        except GoneOffError as error:
            print(f"{error}; going on from there at half the rate", file=sys.stderr, flush=True)
            remove_after(trainer.folder / "checkpoints", error.lowest_at)
            trainer.slow_down(0.5)
            found = newest_checkpoint(trainer.folder / "checkpoints")
            trainer.step = found.step if found else 0
            slowed.append(trainer.step)


def trained_autoencoder(asked: argparse.Namespace, clock: Clock, tiles: Path, work: Path, *, cpu: bool) -> Path:
    """An autoencoder made in its share of the time that is left."""
    share = clock.left() * asked.autoencoder_share

    def trained(name: str, steps: int) -> Path:
        values = {"steps": steps, "sample_every": steps, "checkpoint_every": steps}
        frozen = {"freeze_encoder_at": max(1, steps * 4 // 5)}
        changes = {**values, **frozen}
        return train_autoencoder(
            tiles, work / name, asked.recipe, pretrained=None, resume=False, changes=changes, cpu=cpu,
            workers=asked.workers, wandb_project=None,
        )  # fmt: skip

    a_step = seconds_a_step(lambda steps: trained(f"autoencoder_probe_{steps}", steps))
    spent = clock.done("autoencoder's probe")
    made = trained("autoencoder", affordable(share - spent, a_step))
    clock.done("autoencoder")
    return made


def measured(asked: argparse.Namespace, device: torch.device, tiles: Path, clock: Clock) -> list[dict[str, Any]]:
    """Draw tiles of every class and level, lay out some of them, and hold all against real ones."""
    encoders = [load_features(name, device) for name in asked.features]
    yardstick = Yardstick(tiles, encoders, asked.count, asked.output / "features")
    shown, rows = [], []
    for level in yardstick.levels:
        out = asked.output / "tiles" / level
        generate(GenerateRequest(
            model=asked.output / "model", out=out, label="all", level=level, count=asked.count, device=asked.device,
        ))  # fmt: skip
        own = load_tile_set(out, "drawn")
        shown += [own.files[place] for members in own.cells().values() for place in members[:SHEET]]
        for encoder in encoders:
            for name, given in (("drawn", own), ("floor", yardstick.floor())):
                told = {"set": name, "level": level, "features": encoder.name}
                rows.append({**told, **yardstick.figures(given, encoder, level)})
    pixels = np.stack([read_image(path) for path in shown])
    image_sheet(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1, asked.output / "sheet.png", columns=2 * SHEET)
    storage.write_json(asked.output / "fidelity.json", {"count": asked.count, "rows": rows})
    clock.done("sampling and figures")
    return rows


if __name__ == "__main__":
    sys.exit(main())
