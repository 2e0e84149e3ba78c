"""What tables 1, 3 and 4 have in common: systems trained on the same tiles for as long, measured by one yardstick.

The data flow: tiles are cut and an autoencoder trained where none are given; each contender is trained; each generation
(a seed) draws its images, which become tiles beside real test tiles and are measured; all of it becomes a page in the
paper's layout. Every step leaves files behind and is not done again where they are, so a killed experiment goes on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pathup import storage
from pathup.baselines.model_folder import ModelFolder, read_model
from pathup.baselines.systems import BASELINES, check_baseline
from pathup.errors import PathUpError
from pathup.evaluation.encoders import load_features
from pathup.evaluation.tile_sets import TileSet, is_tiles_folder
from pathup.experiments.contenders import CONTENDERS, Contender, Setting, Trained, of_model, trained, untrained
from pathup.experiments.preparation import Ground, Step
from pathup.experiments.yardstick import Yardstick
from pathup.recipes import load_recipe, save_recipe
from pathup.sampling.device import choose_device
from pathup.sampling.runs import model_sha256
from pathup.tiles.dataset import TileFolder

__all__ = ["Bench", "ComparisonRequest", "Entry"]


@dataclass(frozen=True)
class Entry:
    """A row of a table: what it is called, and what draws its tiles.

    Attributes
    ----------
    name, title
        In file names, and in tables.
    contender
        Whose model draws; None for what needs no model.
    once
        Drawn in the first generation alone: what a system is to be better than.
    """

    name: str
    title: str
    contender: Contender | None = None
    once: bool = False


@dataclass(frozen=True, kw_only=True)
class ComparisonRequest:
    """``pathup experiment table1``, ``table3`` or ``table4``; the fields are its options (docs/commands.md)."""

    name: str
    data: Path
    output: Path
    recipe: str = "atlas"
    autoencoder: str | None = None
    pretrained: str | None = None
    model: Path | None = None
    baselines: tuple[Path, ...] = ()
    minutes: float | None = None
    workers: int = 0
    features: tuple[str, ...] = ("atlas",)
    generations: int = 5
    count: int = 50
    images: int = 4
    device: str = "auto"
    threads: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for name, least in (("generations", 2), ("count", 10), ("images", 1)):
            if getattr(self, name) < least:
                raise PathUpError(f"{name} is {getattr(self, name)}, but at least {least} were needed")
        if self.minutes is not None and not self.minutes > 0:
            raise PathUpError(f"{self.minutes:g} minutes of training were asked for, but more than 0 were needed")


class Bench(ABC):
    """A comparison's folder and what is in it.

    Parameters
    ----------
    request
        What is asked for.

    Attributes
    ----------
    name, title
        Of the table, on the command line and of the page.
    contenders
        What is trained for it; ``pathup`` is not, where a model is given and `given_is_a_row` is off.
    given_is_a_row
        Whether a model given with ``--model`` has a row beside the one that is trained.
    paper
        The paper's own figures: head and body of a table; None where it has none.
    """

    name: str
    title: str
    contenders: tuple[str, ...]
    given_is_a_row: bool
    paper: tuple[Sequence[str], Sequence[Sequence[str]]] | None

    def __init__(self, request: ComparisonRequest) -> None:
        self.request, self.recipe = request, load_recipe(request.recipe)
        if request.threads is not None:
            torch.set_num_threads(request.threads)

    # -- what a table says ----------------------------------------------------------------------------------

    @abstractmethod
    def entries(self) -> list[Entry]:
        """The rows, in their order."""

    def trained_entries(self) -> list[Entry]:
        """One row for each contender, and for each model that was trained elsewhere."""
        rows = [Entry(name, CONTENDERS[name].title, CONTENDERS[name]) for name in self.contenders]
        if self.request.model is not None and self.given_is_a_row:
            rows.append(Entry("given", "PathUp, trained elsewhere", CONTENDERS["pathup"]))
        return rows + [entry for entry, _ in self.given_baselines.values()]

    @cached_property
    def given_baselines(self) -> dict[str, tuple[Entry, Path]]:
        """Rows of baselines that were trained or imported elsewhere, and their models; those of other tables left out.

        Raises
        ------
        PathUpError
            A folder holds no baseline, or one that was trained on other tiles.
        """
        found = {}
        for folder in self.request.baselines:
            model = read_model(folder)
            self._check_tiles(model)
            if model.name in self.contenders:
                name = f"{model.name}_{model.sha256()[:8]}"
                how = "published weights" if "published" in model.notes else f"{model.notes['steps']:,} steps"
                contender = CONTENDERS[model.name]
                found[name] = Entry(name, f"{contender.title}, {how}", contender), model.folder
        return found

    def _check_tiles(self, model: ModelFolder) -> None:
        seen = model.notes.get("tiles")
        if seen is None or not is_tiles_folder(self.ground.tiles):
            return
        tiles = TileFolder.load(self.ground.tiles, "train", self.recipe)
        if seen not in {tiles.fingerprint(), *(tiles.only(level).fingerprint() for level in self.recipe.level_names)}:
            raise PathUpError(
                f"{model.folder} was trained on other tiles than those in {self.ground.tiles}, so it may have seen "
                "what it is measured by; a model of the same training tiles was needed"
            )

    @abstractmethod
    def levels(self) -> list[str]:
        """The spatial levels that are compared."""

    @abstractmethod
    def draw(self, entry: Entry, generation: int) -> tuple[TileSet, float | None]:
        """The tiles of a row's generation, from where their drawing stands, and the seconds that one took.

        None where none had to be drawn.
        """

    @abstractmethod
    def cost_of(self, entry: Entry) -> str:
        """What a generation of a row is, in numbers of images."""

    def more_figures(self, tiles: TileSet) -> dict[str, float]:
        """What is measured of a row's tiles besides what is of all tables."""
        return {}

    # -- where things are -----------------------------------------------------------------------------------

    @property
    def output(self) -> Path:
        """The experiment's folder."""
        return self.request.output

    @cached_property
    def ground(self) -> Ground:
        """The tiles and the autoencoder."""
        request = self.request
        model = None if request.model is None else str(request.model)
        given = request.autoencoder or request.pretrained or model
        cpu = choose_device(request.device).type == "cpu"
        return Ground(request.data, request.output, self.recipe, given, cpu)

    @property
    def setting(self) -> Setting:
        """What contenders share."""
        ground, request = self.ground, self.request
        return Setting(
            ground.tiles, self.output, self.recipe, ground.autoencoder, request.pretrained, request.minutes,
            request.device, request.workers,
        )  # fmt: skip

    @cached_property
    def yardstick(self) -> Yardstick:
        """Real tiles, and what measures beside them."""
        device = choose_device(self.request.device)
        encoders = [load_features(name, device) for name in self.request.features]
        return Yardstick(self.ground.tiles, encoders, self.request.count, self.output / "features")

    @property
    def locks(self) -> Path:
        """Where processes that share the folder hold what they are at."""
        return self.output / "locks"

    def lock_of(self, entry: Entry, generation: int) -> str:
        """What is held while a row's generation is drawn: rows that start from the same images are drawn in turn."""
        return f"{self.name}_{entry.name}_{generation}"

    def figures_of(self, entry: Entry, generation: int) -> Path:
        """Where a row's figures of one generation are kept."""
        return self.output / "figures" / self.name / f"{entry.name}_{generation}.json"

    def note_of(self, contender: str) -> Path:
        """Where it is noted what the training of a contender took."""
        return self.output / "trained" / f"{contender}.json"

    def model_of(self, entry: Entry) -> Path:
        """The model that draws a row.

        Raises
        ------
        PathUpError
            The row needs none.
        """
        if entry.contender is None:
            raise PathUpError(f"row '{entry.title}' is drawn without a model")
        if entry.once:
            return untrained(entry.contender, self.setting)
        takes_given = entry.contender.name == "pathup" and not self.given_is_a_row
        if self.request.model is not None and (entry.name == "given" or takes_given):
            return self.request.model
        if entry.name in self.given_baselines:
            return self.given_baselines[entry.name][1]
        return self.output / "runs" / entry.contender.name / "model"

    def training_of(self, entry: Entry) -> Trained | None:
        """What the training of a row's model took; None where it needs no model, or one without training."""
        return None if entry.contender is None or entry.once else of_model(self.model_of(entry))

    def generations_of(self, entry: Entry) -> range:
        """The seeds that a row is drawn from."""
        return range(1 if entry.once else self.request.generations)

    def claim(self) -> None:
        """The folder belongs to one recipe, one budget, one set of networks and one number of tiles.

        Raises
        ------
        PathUpError
            The recipe does not fit a system, or the folder holds another experiment, or was begun and is not to be
            resumed.
        """
        request = self.request
        for name in self.contenders:
            if name in BASELINES:
                check_baseline(name, self.recipe)
        identity = {
            "tiles": self.ground.fingerprint(),
            "recipe": self.recipe.model_dump(mode="json"), "minutes": request.minutes, "count": request.count,
            "features": list(request.features), "autoencoder": request.autoencoder, "images": request.images,
            "pretrained": request.pretrained,
            "model": None if request.model is None else model_sha256(request.model),
        }  # fmt: skip
        storage.claim_folder(self.output, "experiment", identity, resume=request.resume)
        save_recipe(self.recipe, self.output / "recipe.yaml")

    # -- what there is to do --------------------------------------------------------------------------------

    def steps(self) -> list[Step]:
        """All that leads to the figures, in its order."""
        ground, training = self.ground.steps(), self._training()
        first = [*ground, *training]
        training = [replace(step, needs=lambda: all(one.done() for one in ground)) for step in training]
        drawing = [replace(step, needs=lambda: all(one.done() for one in first)) for step in self._generations()]
        return [*ground, *training, *drawing]

    def trained_contenders(self) -> tuple[str, ...]:
        """Those that are trained here."""
        if self.request.model is None or self.given_is_a_row:
            return self.contenders
        return tuple(name for name in self.contenders if name != "pathup")

    def _training(self) -> list[Step]:
        minutes, steps = self.request.minutes, []
        for name in self.trained_contenders():
            contender = CONTENDERS[name]
            cost = contender.budget(self.recipe) if minutes is None else f"{minutes:g} minutes of training"
            steps.append(Step(
                f"train {contender.title}", self.note_of(name).is_file, self._train(name), cost, f"train_{name}"
            ))  # fmt: skip
        return steps

    def _generations(self) -> list[Step]:
        return [
            Step(
                f"draw and measure {entry.title}, generation {generation}",
                self.figures_of(entry, generation).is_file, self._measure(entry, generation), self._known_cost(entry),
                self.lock_of(entry, generation),
            )
            for generation in range(self.request.generations)
            for entry in self.entries()
            if generation in self.generations_of(entry)
        ]  # fmt: skip

    def _known_cost(self, entry: Entry) -> str:
        """What a generation of a row is, and how long it will take, once the first was drawn here."""
        done, images = self.figures_of(entry, 0), self.cost_of(entry)
        if not done.is_file():
            return images
        figures = storage.read_json(done)
        if figures["seconds_a_tile"] is None:
            return images
        tiles = sum(row["tiles"] for row in figures["rows"]) / len({row["features"] for row in figures["rows"]})
        return f"{images}, about {figures['seconds_a_tile'] * tiles / 60:.1f} minutes to draw"

    # -- how it is done -------------------------------------------------------------------------------------

    def _train(self, name: str) -> Callable[[], None]:
        def do() -> None:
            found = trained(CONTENDERS[name], self.setting)
            self.note_of(name).parent.mkdir(parents=True, exist_ok=True)
            storage.write_json(self.note_of(name), found.notes())

        return do

    def _measure(self, entry: Entry, generation: int) -> Callable[[], None]:
        def do() -> None:
            tiles, a_tile = self.draw(entry, generation)
            more = self.more_figures(tiles)
            rows: list[dict[str, Any]] = []
            for encoder in self.yardstick.encoders:
                for level in self.levels():
                    told = {"entry": entry.name, "generation": generation, "level": level, "features": encoder.name}
                    row = {**told, **self.yardstick.figures(tiles, encoder, level), **more}
                    if generation == 0:
                        row["kid_interval"] = self.yardstick.kid_interval(tiles, encoder, level)
                    rows.append(row)
            target = self.figures_of(entry, generation)
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.write_json(target, {"seconds_a_tile": a_tile, "rows": rows})

        return do
