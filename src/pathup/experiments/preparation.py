"""What every experiment needs first: tiles, and an autoencoder; and how a plan is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pathup import storage
from pathup.errors import PathUpError
from pathup.evaluation.tile_sets import is_tiles_folder
from pathup.recipes import Recipe
from pathup.tiles.dataset import TileFolder
from pathup.tiles.making import make_tiles
from pathup.training.runs import train_autoencoder

__all__ = ["Ground", "Step", "share_of"]


@dataclass(frozen=True)
class Step:
    """One thing to be done: whether it is, how, and what is known of its cost."""

    what: str
    done: Callable[[], bool]
    do: Callable[[], None]
    cost: str = ""


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

    def prepare(self) -> None:
        """Do what is not done; the experiment's folder holds its recipe already.

        Raises
        ------
        PathUpError
            Cutting or training fails.
        """
        for step in self.steps():
            if not step.done():
                step.do()

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


def share_of(text: str) -> tuple[int, int]:
    """Which part of the jobs a process does, and of how many parts, of ``I/N``.

    Raises
    ------
    PathUpError
        I is not from 0 to N - 1.
    """
    own, _, parts = text.partition("/")
    if not (own.isdecimal() and parts.isdecimal() and int(own) < int(parts)):
        raise PathUpError(f"--share is '{text}', but I/N with I from 0 to N - 1 was needed (0/2 and 1/2)")
    return int(own), int(parts)
