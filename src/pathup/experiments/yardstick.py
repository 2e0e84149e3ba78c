"""How near sets of tiles are to real ones: the few figures that experiments compare, each beside its floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pathup import draws
from pathup.errors import PathUpError
from pathup.evaluation.consistency import capped, trained_classifier
from pathup.evaluation.encoders import Encoder
from pathup.evaluation.features import View, kept_features
from pathup.evaluation.fidelity import fidelity
from pathup.evaluation.frechet import frechet_distance
from pathup.evaluation.kernel import kernel_distance, paired_kernel_distance
from pathup.evaluation.neighbours import manifold
from pathup.evaluation.tile_sets import TileSet, load_tile_set

__all__ = ["Yardstick", "balanced"]

TRAINING = 400
"""Real training tiles a class from which the classifier of grey tiles learns."""

REAL = 10
"""Real test tiles a class beside which a set is measured, at most, for each tile of the set."""


class Yardstick:
    """Real test tiles of each level, and what measures a set beside them.

    Parameters
    ----------
    tiles
        What ``pathup tiles`` wrote.
    encoders
        The networks by whose features tiles are compared.
    count
        Tiles a class and level of the sets to be measured.
    cache
        Where features are kept.
    split
        The split that sets are held against.
    """

    def __init__(
        self, tiles: Path, encoders: Sequence[Encoder], count: int, cache: Path, *, split: str = "test"
    ) -> None:
        self.encoders, self.count, self._cache = list(encoders), count, cache
        self._real = balanced(load_tile_set(tiles, split, split=split), REAL * count, "real")
        self._train = load_tile_set(tiles, "train", split="train")
        self._learnt = capped(self._train, TRAINING, 0, "yardstick")
        self._classifiers: dict[tuple[str, str], Any] = {}

    @property
    def levels(self) -> list[str]:
        """The levels of the real tiles."""
        return sorted({str(level) for level in self._real.levels})

    def real(self, level: str) -> TileSet:
        """Real test tiles of a level, as many of each class."""
        return self._real.of(level=level)

    def floor(self) -> TileSet:
        """As many real training tiles as a set has, in its place."""
        return balanced(self._train, self.count, "floor")

    def figures(self, own: TileSet, encoder: Encoder, level: str, beside: TileSet | None = None) -> dict[str, float]:
        """The figures of a set of tiles of one level.

        Parameters
        ----------
        own
            The set; other levels in it are left out.
        beside
            What it is held against; unset: the real test tiles of the level.

        Returns
        -------
        dict
            ``tiles``; ``kid`` (kernel distance x 1000), ``fid`` (Frechet distance, which rises as tiles get fewer: to
            be compared with a floor of as many), ``precision``, ``recall``, ``density``, ``coverage``, and ``grey``,
            how often a classifier of real grey tiles names the class that a tile claims.
        """
        own = own.of(level=level)
        if not len(own):
            raise PathUpError(f"{own.name} holds no tiles of level '{level}', which is to be measured")
        real = self.real(level) if beside is None else beside.of(level=level)
        theirs, found = (self._features(encoder, tiles) for tiles in (real, own))
        distances = {"kid": 1000 * kernel_distance(theirs, found), "fid": frechet_distance(theirs, found)}
        within = manifold(theirs, found).figures
        return {"tiles": float(len(own)), **distances, **within, "grey": self.named(own, encoder, level)}

    def kid_interval(self, own: TileSet, encoder: Encoder, level: str) -> tuple[float, float]:
        """The 95 % interval of the kernel distance x 1000 of a set to the real test tiles.

        By the bootstrap of single tiles of the set, and of whole regions of real ones.
        """
        real = self.real(level)
        sets = [self._features(encoder, tiles) for tiles in (real, own.of(level=level))]
        found = fidelity(sets[0], sets[1], real_groups=real.regions, subsets=1)["kid"]
        return 1000 * found["low"], 1000 * found["high"]

    def paired_distance(self, originals: TileSet, own: TileSet, encoder: Encoder, level: str) -> float:
        """`paired_kernel_distance` x 1000 of tiles and what became of each, in the same order."""
        features = [self._features(encoder, tiles.of(level=level)) for tiles in (originals, own)]
        return 1000 * paired_kernel_distance(*features)

    def named(self, own: TileSet, encoder: Encoder, level: str) -> float:
        """How often a classifier of real grey training tiles names a tile's class."""
        key = encoder.name, level
        if key not in self._classifiers:
            learnt = self._learnt.of(level=level)
            self._classifiers[key] = trained_classifier(self._features(encoder, learnt, "grey"), learnt.labels)
        given = self._features(encoder, own, "grey").astype(np.float64)
        return float(np.mean(self._classifiers[key].predict(given) == np.asarray(own.labels)))

    def _features(self, encoder: Encoder, tiles: TileSet, view: View = "colour") -> np.ndarray:
        return kept_features(encoder, tiles.files, view, cache=self._cache)


def balanced(tiles: TileSet, count: int, purpose: str) -> TileSet:
    """As many tiles of each class of a level: `count`, or all that its rarest has; drawn by (purpose, level, class)."""
    cells = tiles.cells()
    least = {level: min(len(own) for (of, _), own in cells.items() if of == level) for level, _ in cells}
    chosen = []
    for (level, label), own in cells.items():
        order = draws.numpy_generator(0, purpose, str(level), str(label)).permutation(own)
        chosen.append(np.sort(order[: min(count, least[level])]))
    return tiles.at(np.concatenate(chosen))
