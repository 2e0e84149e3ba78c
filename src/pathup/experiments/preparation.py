"""What every experiment needs first: tiles, and an autoencoder; and how a plan is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathup import storage
from pathup.evaluation.tile_sets import is_tiles_folder
from pathup.recipes import Recipe
from pathup.tiles.dataset import TileFolder
from pathup.tiles.making import make_tiles
from pathup.training.runs import train_autoencoder

__all__ = ["Ground", "Step", "carry_out"]

Progress = Callable[[str, int, int], None]

WAIT = 1.0
"""Seconds between looks at whether other processes are done."""


@dataclass(frozen=True)
class Step:
    """One thing to be done.

    Attributes
    ----------
    what
        In words.
    done, do
        Whether it is, and how.
    cost
        What is known of it, in words.
    lock
        Steps of one name are not done by two processes at once.
    needs
        Whether what it starts from is there.
    """

    what: str
    done: Callable[[], bool]
    do: Callable[[], None]
    cost: str = ""
    lock: str = ""
    needs: Callable[[], bool] = lambda: True


def carry_out(steps: Sequence[Step], locks: Path, tell: Progress) -> None:
    """Do all steps that are not done, in their order as far as other processes leave them.

    Several processes may be at the same steps, each with this function: what one is at, the others leave, and wait for
    in the end. What a process that was killed has begun, another takes up.

    Parameters
    ----------
    steps
        In an order in which they can be done.
    locks
        Folder of the locks.
    tell
        Called with a step, its number and how many there are.
    """
    while left := [(number, step) for number, step in enumerate(steps) if not step.done()]:
        idle = True
        for number, step in left:
            if step.done() or not step.needs():
                continue
            with storage.held(locks / f"{step.lock or 'ground'}.lock", wait=False) as own:
                if own and not step.done():
                    tell(step.what, number, len(steps))
                    step.do()
                idle = idle and not own
        if idle:
            time.sleep(WAIT)


@dataclass(frozen=True)
class Ground:
    """The tiles and the autoencoder of an experiment.

    Attributes
    ----------
    data
        What ``pathup tiles`` wrote, or what it is to cut.
    output
        The experiment's folder.
    recipe
        What tiles are cut and the autoencoder is trained by.
    given
        An autoencoder; None: one is trained.
    cpu
        Train it on the CPU even where there is a GPU.
    """

    data: Path
    output: Path
    recipe: Recipe
    given: str | None
    cpu: bool = False

    @property
    def tiles(self) -> Path:
        """Where the tiles are, or will be."""
        return self.data if is_tiles_folder(self.data) else self.output / "data"

    @property
    def autoencoder(self) -> str:
        """Where the autoencoder is, or will be."""
        return self.given or str(self._run / "autoencoder")

    @property
    def _run(self) -> Path:
        return self.output / "autoencoder"

    def fingerprint(self) -> str | None:
        """The hash of the training tiles that are given; None where they are still to be cut."""
        return TileFolder.load(self.data, "train", self.recipe).fingerprint() if self.tiles == self.data else None

    def steps(self) -> list[Step]:
        """What has to be done for them, done or not."""
        steps, spec = [], self.recipe.autoencoder
        if self.tiles != self.data:
            steps.append(Step("cut tiles", (self.tiles / "summary.json").is_file, self._cut, f"of {self.data}"))
        if self.given is None:
            cost = f"{spec.steps:,} steps of {spec.batch_size} crops"
            steps.append(Step("train the autoencoder", self._is_trained, self._train, cost))
        return steps

    def prepare(self, locks: Path) -> None:
        """Do what is not done; the experiment's folder holds its recipe already.

        Parameters
        ----------
        locks
            As of `carry_out`.

        Raises
        ------
        PathUpError
            Cutting or training fails.
        """
        carry_out(self.steps(), locks, lambda stage, done, total: None)

    def _cut(self) -> None:
        make_tiles(self.data, self.tiles, self.recipe, resume=True)

    def _is_trained(self) -> bool:
        note = self._run / "autoencoder" / "training.json"
        return note.is_file() and int(storage.read_json(note)["steps"]) >= self.recipe.autoencoder.steps

    def _train(self) -> None:
        train_autoencoder(
            self.tiles, self._run, str(self.output / "recipe.yaml"), pretrained=None, resume=True, changes={},
            cpu=self.cpu, workers=0, wandb_project=None,
        )  # fmt: skip
