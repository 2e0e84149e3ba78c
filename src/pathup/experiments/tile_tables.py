"""Table 1: systems that draw tiles of a class and level, beside PathUp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from pathup import storage
from pathup.evaluation.tile_sets import TileSet, load_tile_set
from pathup.experiments.comparison import Bench, Entry
from pathup.experiments.contenders import CONTENDERS, Pace, drawn
from pathup.sampling.outputs import write_metadata
from pathup.slides.images import read_image

__all__ = ["TileTable", "coarse"]

STRIDE = 8
"""Of the pixels that a coarse tile keeps, in each direction."""


class TileTable(Bench):
    """Table 1. Beside the paper's rows: a PathUp model trained elsewhere, and what every system has to be better than.

    These are real training tiles of which only colour and layout are left (`coarse`), and each system before training.
    """

    name = "table1"
    title = "Table 1: systems that draw tiles"
    contenders = ("stylegan2", "vqgan", "ldm", "pathup")
    given_is_a_row = True
    paper = (
        ("level", "system", "IP", "IR", "FID", "KID"),
        (
            ("overview", "StyleGAN2", "0.656 ± 0.087", "0.417 ± 0.044", "69.4 ± 3.9", "24.5 ± 2.5"),
            ("overview", "VQ-GAN", "0.710 ± 0.092", "0.402 ± 0.041", "78.6 ± 3.7", "25.3 ± 1.2"),
            ("overview", "LDM", "0.891 ± 0.037", "0.343 ± 0.036", "98.1 ± 4.2", "20.8 ± 2.8"),
            ("overview", "PathUp", "0.964 ± 0.012", "0.592 ± 0.026", "45.4 ± 3.7", "8.1 ± 0.4"),
            ("patch", "StyleGAN2", "0.405 ± 0.105", "0.337 ± 0.089", "125.5 ± 5.1", "43.7 ± 4.0"),
            ("patch", "VQ-GAN", "0.828 ± 0.078", "0.391 ± 0.063", "103.7 ± 5.9", "28.1 ± 2.4"),
            ("patch", "LDM", "0.883 ± 0.090", "0.310 ± 0.072", "95.4 ± 4.2", "19.6 ± 1.3"),
            ("patch", "PathUp", "0.955 ± 0.021", "0.608 ± 0.033", "66.7 ± 2.2", "11.7 ± 0.9"),
        ),
    )

    def entries(self) -> list[Entry]:
        """The paper's systems, the given model, and what they are to be better than."""
        rows = self.trained_entries()
        rows.append(Entry("coarse", "training tiles, only coarse colour left", once=True))
        for name in self.contenders:
            title = f"{CONTENDERS[name].title} before training"
            rows.append(Entry(f"untrained_{name}", title, CONTENDERS[name], once=True))
        return rows

    def levels(self) -> list[str]:
        """All of the recipe."""
        return self.recipe.level_names

    def cost_of(self, entry: Entry) -> str:
        """Tiles of every class and level."""
        return f"{self.request.count * len(self.recipe.labels) * len(self.levels())} tiles"

    def draw(self, entry: Entry, generation: int) -> tuple[TileSet, float | None]:
        """See `Bench.draw`."""
        folder = self.output / "drawn" / entry.name / str(generation)
        if entry.contender is None:
            return coarse(self.yardstick.floor(), folder), None
        model, pace = self.model_of(entry), Pace()
        for level in self.levels():
            pace += drawn(
                entry.contender, model, folder / level, level=level, count=self.request.count, seed=generation,
                device=self.request.device,
            )  # fmt: skip
        tiles = load_tile_set(folder, f"{entry.title}, generation {generation}")
        return tiles, pace.seconds_an_image()


def coarse(tiles: TileSet, folder: Path) -> TileSet:
    """Tiles of which every `STRIDE`-th pixel is left, enlarged by nearest neighbour and blurred over as much."""
    for level in sorted({str(level) for level in tiles.levels}):
        own, rows = tiles.of(level=level), []
        (folder / level).mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(own.files):
            name = f"{own.labels[number]}_{number:04d}.png"
            with storage.atomic_path(folder / level / name) as partial:
                Image.fromarray(coarse_pixels(read_image(file))).save(partial, compress_level=1)
            rows.append({"file_name": name, "label": own.labels[number], "level": level, "mpp": own.mpp[number]})
        write_metadata(folder / level, rows)
    return load_tile_set(folder, "coarse tiles")


def coarse_pixels(pixels_HWC: np.ndarray, factor: int = STRIDE) -> np.ndarray:
    """Every `factor`-th pixel, enlarged by nearest neighbour and blurred with a deviation of half of that."""
    height, width = pixels_HWC.shape[:2]
    few = Image.fromarray(np.ascontiguousarray(pixels_HWC[factor // 2 :: factor, factor // 2 :: factor]))
    large = few.resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(large.filter(ImageFilter.GaussianBlur(factor / 2)))
