"""Real overviews of test regions enlarged: what table 3 cannot tell, since nobody knows what a drawn overview shows.

In every generation the same overviews are enlarged by all rows of table 3; what they make of each place of which there
is a real patch is a tile, held against real patches as ever, and against its own original by PSNR.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from pathup import draws, storage
from pathup.baselines.pairs import FACTOR, Pairs, find_pairs
from pathup.evaluation.crops import CROPS_FOLDER
from pathup.evaluation.tile_sets import TileSet, load_tile_set
from pathup.experiments.comparison import Entry
from pathup.experiments.contenders import Pace
from pathup.experiments.large_tables import UpscalingTable
from pathup.sampling.outputs import write_metadata
from pathup.slides.images import read_image
from pathup.tiles.dataset import TileFolder
from pathup.tiles.making import METADATA_FILE

__all__ = ["PairTable"]

ORIGINALS = "originals"


class PairTable(UpscalingTable):
    """Table 3's rows on overviews whose finer truth is known."""

    name = "pairs"
    title = "Real overviews of test regions, enlarged"
    paper = None

    @property
    def drawings(self) -> Path:
        """See `UpscalingTable`."""
        return self.output / "drawn" / self.name

    def lock_of(self, entry: Entry, generation: int) -> str:
        """See `Bench.lock_of`."""
        return f"pairs_{generation}"

    @cached_property
    def pairs(self) -> Pairs:
        """Patches of the test split, each with the overviews that show it."""
        return find_pairs(TileFolder.load(self.ground.tiles, "test", self.recipe))

    @cached_property
    def shown(self) -> dict[int, list[tuple[int, int, int]]]:
        """By overview: the patches that it shows, and where in it they begin (patch, top, left)."""
        found: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for patch in range(len(self.pairs)):
            for place in self.pairs.places(patch):
                found[place.overview].append((patch, place.top, place.left))
        return dict(found)

    def chosen(self, generation: int) -> dict[str, int]:
        """The overviews of a generation: those of each class that show most patches come first, drawn by its seed."""
        records, found = self.pairs.tiles.records, dict[str, int]()
        for label in self.recipe.labels:
            own = [number for number in sorted(self.shown) if records[number].label == label]
            order = draws.numpy_generator(generation, "pairs", label).permutation(len(own))
            most = sorted((own[place] for place in order), key=lambda number: -len(self.shown[number]))
            taken = most[: self.request.images]
            found |= {f"{label}_{place:04d}.png": number for place, number in enumerate(taken)}
        return found

    def overviews(self, generation: int) -> Path:
        """The real overviews of a generation, copied."""
        folder = self.drawings / "overviews" / str(generation)
        if not (folder / METADATA_FILE).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            rows = []
            for name, number in self.chosen(generation).items():
                record = self.pairs.tiles.records[number]
                with storage.atomic_path(folder / name) as partial:
                    shutil.copyfile(self.pairs.tiles.path(number), partial)
                rows.append({"file_name": name, "label": record.label, "level": record.level, "mpp": record.mpp})
            write_metadata(folder, rows)
        return folder

    def cropped(self, entry: Entry, generation: int, images: Path, pace: Pace) -> tuple[TileSet, float | None]:
        """What became of the places that there are real patches of; these lie beside, under the same names."""
        target = self.output / "crops" / self.name / entry.name / str(generation)
        if not target.is_dir():
            with storage.atomic_folder(target) as partial:
                self._cut(generation, images, partial)
        tiles = load_tile_set(target / "crops", f"{entry.title}, generation {generation}")
        return tiles, self.seconds_a_tile(pace)

    def more_figures(self, tiles: TileSet) -> dict[str, float]:
        """PSNR to the originals (scikit-image's, in dB), the mean over tiles."""
        originals = [file.parent.parent / ORIGINALS / file.name for file in tiles.files]
        pairs = zip(tiles.files, originals, strict=True)
        ratios = [peak_signal_noise_ratio(read_image(real), read_image(own)) for own, real in pairs]
        return {"psnr": float(np.mean(ratios))}

    def _cut(self, generation: int, images: Path, folder: Path) -> None:
        """Tiles of every class, `count` or all that there are, drawn by the generation; and their originals."""
        for name in (CROPS_FOLDER, ORIGINALS):
            (folder / name).mkdir()
        side, rows = self.recipe.tiles.tile_px, []
        places: defaultdict[str, list[tuple[str, int, int, int]]] = defaultdict(list)
        for name, number in self.chosen(generation).items():
            for patch, top, left in self.shown[number]:
                places[self.pairs.tiles.records[number].label].append((name, patch, FACTOR * top, FACTOR * left))
        for label, own in places.items():
            order = draws.numpy_generator(generation, "places", label).permutation(len(own))[: self.request.count]
            for place in np.sort(order):
                name, patch, top, left = own[place]
                crop = f"{label}_{place:04d}.png"
                large = read_image(images / name)
                Image.fromarray(large[top : top + side, left : left + side]).save(folder / CROPS_FOLDER / crop)
                shutil.copyfile(self.pairs.patches.path(patch), folder / ORIGINALS / crop)
                record = self.pairs.patches.records[patch]
                rows.append({"file_name": crop, "label": label, "level": record.level, "mpp": record.mpp})
        write_metadata(folder / CROPS_FOLDER, rows)
