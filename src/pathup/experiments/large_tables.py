"""Tables 3 and 4: large images that grow from PathUp's overviews, beside upscalers, and with each window weight.

In every generation the same overviews are enlarged by all rows of table 3 and grown by PathUp, as are those of table
4; random crops of all these are tiles at the finest level, to be held against real ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from pathup import storage
from pathup.evaluation.crops import cut_crops
from pathup.evaluation.tile_sets import TileSet, load_tile_set
from pathup.experiments.comparison import Bench, Entry
from pathup.experiments.contenders import CONTENDERS, Pace, drawn, enlarged, precision_of
from pathup.sampling.outputs import write_metadata
from pathup.sampling.runs import GenerateRequest, generate, loaded
from pathup.slides.images import read_image
from pathup.tiles.making import METADATA_FILE

__all__ = ["UpscalingTable", "WeightTable"]

PACE_FILE = "pace.json"

WEIGHTS = {
    "hard": "w/o w: windows cut hard",
    "equation_6": "w w: the paper's weights (eq. 6)",
    "hann": "Hann weights (PathUp's default)",
}

PIXELS: dict[str, tuple[str, Callable[[Image.Image, int], Image.Image]]] = {
    "bicubic": ("bicubic", lambda image, factor: _resized(image, factor, Image.Resampling.BICUBIC)),
    "nearest": (
        "nearest neighbour, blurred",
        lambda image, factor: _resized(image, factor, Image.Resampling.NEAREST).filter(
            ImageFilter.GaussianBlur(factor / 2)
        ),
    ),
}
"""Enlargements that learn nothing: title, and how."""


def _resized(image: Image.Image, factor: int, how: Image.Resampling) -> Image.Image:
    return image.resize((factor * image.width, factor * image.height), how)


class _LargeTable(Bench):
    """What both tables have: overviews, large images of them, crops."""

    def levels(self) -> list[str]:
        """The finest."""
        return [min(self.recipe.tiles.levels, key=self.recipe.tiles.level_mpp).name]

    @property
    def coarsest(self) -> str:
        """The level of the overviews."""
        return max(self.recipe.tiles.levels, key=self.recipe.tiles.level_mpp).name

    @property
    def factor(self) -> int:
        """How many times larger the large images are than overviews."""
        scales = [self.recipe.tiles.level_mpp(level) for level in self.recipe.tiles.levels]
        return round(max(scales) / min(scales))

    @property
    def drawings(self) -> Path:
        """Where overviews are, and what becomes of them."""
        return self.output / "drawn"

    def lock_of(self, entry: Entry, generation: int) -> str:
        """See `Bench.lock_of`: tables 3 and 4 grow the same overviews."""
        return f"large_{generation}"

    def cost_of(self, entry: Entry) -> str:
        """Large images, and crops of them."""
        side = self.recipe.tiles.tile_px * self.factor
        images = self.request.images * len(self.recipe.labels)
        return f"{images} images of {side} x {side} px, {self.crops} crops"

    @property
    def crops(self) -> int:
        """Crops of a row and generation."""
        return self.request.count * len(self.recipe.labels)

    def overviews(self, generation: int) -> Path:
        """The overviews of a generation, drawn where they are not there."""
        folder = self.drawings / "overviews" / str(generation)
        if not (folder / METADATA_FILE).is_file():
            drawn(
                CONTENDERS["pathup"], self.overview_model, folder, level=self.coarsest, count=self.request.images,
                seed=generation, device=self.request.device,
            )  # fmt: skip
        return folder

    @property
    def overview_model(self) -> Path:
        """The model that draws overviews: the given one, else the one that is trained here."""
        return self.request.model or self.model_of(Entry("pathup", "PathUp", CONTENDERS["pathup"]))

    def cropped(self, entry: Entry, generation: int, images: Path, pace: Pace) -> tuple[TileSet, float | None]:
        """Crops of large images as tiles of the finest level, and the seconds of an image's share of one of them."""
        target = self.output / "crops" / self.name / entry.name / str(generation)
        side = self.recipe.tiles.tile_px
        if not target.is_dir():
            with storage.atomic_folder(target) as partial:
                cut_crops(images, partial / "crops", side_px=side, count=self.crops, seed=generation)
        found = load_tile_set(target / "crops", f"{entry.title}, generation {generation}")
        tiles = replace(found, levels=(self.levels()[0],) * len(found))
        return tiles, self.seconds_a_tile(pace)

    def seconds_a_tile(self, pace: Pace) -> float | None:
        """A tile's share of the seconds that a large image took; None where none had to be made."""
        an_image = pace.seconds_an_image()
        return None if an_image is None else an_image / self.factor**2

    def grown(self, entry: Entry, generation: int, weight: str) -> tuple[Path, Pace]:
        """Large images that a row's PathUp grows from a generation's overviews; at what pace, whenever that was."""
        source, started, made = self.overviews(generation), time.perf_counter(), 0
        model = self.model_of(entry)
        whose = "elsewhere" if model == self.request.model else "here"
        folder = self.drawings / f"grown_{weight}_{whose}" / str(generation)
        if (folder / METADATA_FILE).is_file():
            return folder, Pace(**storage.read_json(folder / PACE_FILE))
        folder.mkdir(parents=True, exist_ok=True)
        rows, pipeline = [], None
        for path in sorted(source.glob("*.png")):
            label = path.stem.rpartition("_")[0]
            if not (folder / path.name).is_file():
                asked = GenerateRequest(
                    model=model, out=folder / path.name, label=label, reference=path, seed=generation,
                    window_weight=weight, device=self.request.device, resume=True,
                    precision=precision_of(model, self.request.device),
                )  # fmt: skip
                pipeline = pipeline or loaded(asked)
                generate(asked, pipeline=pipeline)
                made += 1
            rows.append({"file_name": path.name, "label": label})
        pace = Pace(made, time.perf_counter() - started)
        storage.write_json(folder / PACE_FILE, asdict(pace))
        write_metadata(folder, rows)
        return folder, pace


class UpscalingTable(_LargeTable):
    """Table 3, with two enlargements that learn nothing beside."""

    name = "table3"
    title = "Table 3: large images from overviews"
    contenders = ("ldm-sr", "bsrgan", "pathup")
    given_is_a_row = True
    paper: tuple[Sequence[str], Sequence[Sequence[str]]] | None = (
        ("system", "IP", "IR", "FID", "KID"),
        (
            ("LDM (super-resolution)", "0.837 ± 0.085", "0.376 ± 0.083", "108.4 ± 4.3", "17.6 ± 1.0"),
            ("BSRGAN", "0.645 ± 0.102", "0.382 ± 0.097", "154.0 ± 5.8", "42.9 ± 3.6"),
            ("PathUp", "0.971 ± 0.023", "0.633 ± 0.035", "57.6 ± 1.2", "9.8 ± 0.7"),
        ),
    )

    def entries(self) -> list[Entry]:
        """The paper's systems, the given model, two plain enlargements, and upscalers before training."""
        rows = self.trained_entries()
        rows += [Entry(name, title) for name, (title, _) in PIXELS.items()]
        for name in self.contenders[:2]:
            title = f"{CONTENDERS[name].title} before training"
            rows.append(Entry(f"untrained_{name}", title, CONTENDERS[name], once=True))
        return rows

    def draw(self, entry: Entry, generation: int) -> tuple[TileSet, float | None]:
        """See `Bench.draw`."""
        if entry.contender is CONTENDERS["pathup"]:
            return self.cropped(entry, generation, *self.grown(entry, generation, "hann"))
        source, folder = self.overviews(generation), self.drawings / entry.name / str(generation)
        if entry.contender is None:
            pace = _enlarge(source, folder, self.factor, PIXELS[entry.name][1])
        else:
            model = self.model_of(entry)
            pace = enlarged(entry.contender, model, source, folder, seed=generation, device=self.request.device)
        return self.cropped(entry, generation, folder, pace)


class WeightTable(_LargeTable):
    """Table 4: what the window weights do."""

    name = "table4"
    title = "Table 4: window weights of large images"
    contenders = ("pathup",)
    given_is_a_row = False
    paper = (
        ("weights", "IP", "IR", "FID", "KID"),
        (
            ("w/o w", "0.939 ± 0.034", "0.587 ± 0.039", "76.3 ± 3.7", "9.8 ± 1.0"),
            ("w w", "0.964 ± 0.012", "0.592 ± 0.026", "45.4 ± 3.7", "8.1 ± 0.4"),
        ),
    )

    def entries(self) -> list[Entry]:
        """One row a window weight."""
        return [Entry(weight, title, CONTENDERS["pathup"]) for weight, title in WEIGHTS.items()]

    def draw(self, entry: Entry, generation: int) -> tuple[TileSet, float | None]:
        """See `Bench.draw`."""
        return self.cropped(entry, generation, *self.grown(entry, generation, entry.name))


def _enlarge(source: Path, folder: Path, factor: int, how: Callable[[Image.Image, int], Image.Image]) -> Pace:
    folder.mkdir(parents=True, exist_ok=True)
    rows, started = [], time.perf_counter()
    for path in sorted(source.glob("*.png")):
        made = how(Image.fromarray(np.ascontiguousarray(read_image(path))), factor)
        with storage.atomic_path(folder / path.name) as partial:
            made.save(partial, compress_level=1)
        rows.append({"file_name": path.name, "label": path.stem.rpartition("_")[0]})
    write_metadata(folder, rows)
    return Pace(len(rows), time.perf_counter() - started)
