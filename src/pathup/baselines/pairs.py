"""Overviews and patches of the same tissue, pair by pair: what super-resolution is trained on.

A tile's record has the place of its corner, in level-0 pixels of its file, and the tile's own scale, but not the
file's. Tiles of a level lie on a grid whose stride the recipe states in micrometres (`LevelSpec.field_px` less
`overlap_px`, at `tiles.mpp`), so the file's scale follows from how far apart neighbours are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from pathup import draws
from pathup.errors import PathUpError
from pathup.recipes import LevelSpec, Recipe
from pathup.tiles.dataset import TileFolder, TileRecord

__all__ = ["FACTOR", "Pairs", "Place", "find_pairs", "level0_mpp", "likeness", "paired_levels"]

FACTOR = 4
"""How many times finer a patch is than its overview."""

TOLERANCE = 0.25
"""How far a patch's edge may lie from a whole pixel of the overview, in overview pixels."""

CHECKED = 64
"""Pairs that are looked at before any is trained on."""

LEAST_LIKENESS = 0.5
"""Of those pairs together. Pairs of the same tissue have more than 0.9, others about 0."""


@dataclass(frozen=True)
class Place:
    """Where an overview shows a patch: the overview's number in its folder, and the crop's corner in its pixels."""

    overview: int
    top: int
    left: int


class Pairs:
    """Patches, each with the crops of overviews that show the same tissue.

    Attributes
    ----------
    tiles
        The folder that overviews are numbered in.
    patches
        The patches that some overview shows whole.
    low_px
        Side of a crop.
    left_out
        How many patches were left out: no overview of their region shows them, or none within `TOLERANCE` of whole
        pixels, or their file's scale cannot be told.
    """

    def __init__(self, tiles: TileFolder, patches: TileFolder, places: Sequence[list[Place]], left_out: int) -> None:
        self.tiles, self._places = tiles, places
        self.patches, self.left_out = patches, left_out
        self.low_px = tiles.recipe.tiles.tile_px // FACTOR

    def __len__(self) -> int:
        """The number of patches."""
        return len(self.patches)

    def places(self, patch: int) -> list[Place]:
        """The crops of a patch, at least one."""
        return self._places[patch]

    def low(self, patch: int, choice: int = 0) -> torch.Tensor:
        """The low-resolution image of a patch: uint8 RGB (3, `low_px`, `low_px`).

        `choice` counts `places`.

        Raises
        ------
        PathUpError
            The overview's file is damaged or missing.
        """
        at = self._places[patch][choice]
        return self.tiles.pixels(at.overview)[:, at.top : at.top + self.low_px, at.left : at.left + self.low_px]


def find_pairs(tiles: TileFolder) -> Pairs:
    """The pairs of a folder of tiles.

    An overview shows a patch when both were cut from the same region of the same file and the patch's field lies in
    the overview's. The crop is where that field is, to a whole pixel: pairs whose edges are further than `TOLERANCE`
    from one are left out.

    Raises
    ------
    PathUpError
        The coarsest and the finest level are not `FACTOR` apart in scale; no pair is left; or the pairs do not show the
        same tissue.
    """
    fine, coarse = paired_levels(tiles.recipe)
    scales = level0_mpp(tiles)
    regions: dict[tuple[str, str], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for index, record in enumerate(tiles.records):
        if record.source_sha256 in scales and record.level in (fine.name, coarse.name):
            regions[record.source_sha256, record.region][record.level == coarse.name].append(index)
    places: dict[int, list[Place]] = {}
    for (source, _), (patches, overviews) in regions.items():
        if patches and overviews:
            places |= _shown(tiles, patches, overviews, scales[source])
    kept = sorted(places)
    asked = sum(record.level == fine.name for record in tiles.records)
    if not kept:
        raise PathUpError(
            f"{tiles.folder} holds {asked} tiles of level '{fine.name}', but none that lies whole in one of level "
            f"'{coarse.name}' of the same region, at whole pixels of it; such pairs were needed: cut both levels from "
            "the same regions with 'pathup tiles'"
        )
    folder = TileFolder(tiles.folder, tiles.split, tiles.recipe, [tiles.records[index] for index in kept])
    found = Pairs(tiles, folder, [places[index] for index in kept], asked - len(kept))
    _check_tissue(found)
    return found


def paired_levels(recipe: Recipe) -> tuple[LevelSpec, LevelSpec]:
    """The finest level, of the patches, and the coarsest, of the overviews.

    Raises
    ------
    PathUpError
        The scales of the two are not `FACTOR` apart, or that does not divide the tile.
    """
    levels = sorted(recipe.tiles.levels, key=recipe.tiles.level_mpp)
    fine, coarse = levels[0], levels[-1]
    ratio = recipe.tiles.level_mpp(coarse) / recipe.tiles.level_mpp(fine)
    if abs(ratio / FACTOR - 1) > 1e-6 or recipe.tiles.tile_px % FACTOR:
        raise PathUpError(
            f"tiles of level '{coarse.name}' are {ratio:g} times coarser than those of level '{fine.name}' in recipe "
            f"'{recipe.name}', and {recipe.tiles.tile_px} px wide, but super-resolution is by {FACTOR}: levels that "
            f"are {FACTOR} apart, and a tile_px that {FACTOR} divides, were needed"
        )
    return fine, coarse


def level0_mpp(tiles: TileFolder) -> dict[str, float]:
    """Micrometres a level-0 pixel of each source file, by its SHA-256, told from the grid that its tiles lie on.

    The nearest two columns or rows of a level within a region are one stride apart, ``stride_px * tiles.mpp``
    micrometres. With that scale the strides from the first to the last column are counted, so that rounding to whole
    pixels is spread over all of them. Files of which no level has two columns or rows are not in the result.
    """
    strides = {level.name: (level.field_px - level.overlap_px) * tiles.recipe.tiles.mpp for level in
               tiles.recipe.tiles.levels}  # fmt: skip
    grids: dict[str, dict[tuple[str, str], list[TileRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in tiles.records:
        grids[record.source_sha256][record.region, record.level].append(record)
    found = {}
    for source, grid in grids.items():
        gaps = [  # micrometres of one stride, level-0 pixels of one or more
            (strides[level], after - before)
            for (_, level), records in grid.items()
            for along in ({record.x for record in records}, {record.y for record in records})
            for before, after in pairwise(sorted(along))
        ]
        if gaps:
            rough = max(stride / pixels for stride, pixels in gaps)
            lengths = [(max(1, round(pixels * rough / stride)) * stride, pixels) for stride, pixels in gaps]
            found[source] = sum(length for length, _ in lengths) / sum(pixels for _, pixels in lengths)
    return found


def _shown(tiles: TileFolder, patches: list[int], overviews: list[int], mpp: float) -> dict[int, list[Place]]:
    """Where the overviews of a region show its patches; patches that none shows are left out."""
    side, low = tiles.recipe.tiles.tile_px, tiles.recipe.tiles.tile_px // FACTOR
    corner_P2, pixel_P1 = _corners(tiles, patches, mpp)
    corner_O2, pixel_O1 = _corners(tiles, overviews, mpp)
    first_PO2 = (corner_P2[:, None] - corner_O2) / pixel_O1  # in pixels of each overview
    last_PO2 = first_PO2 + side * pixel_P1[:, None] / pixel_O1
    start_PO2 = np.rint(first_PO2)
    off_PO2 = np.maximum(np.abs(first_PO2 - start_PO2), np.abs(last_PO2 - start_PO2 - low))
    fits_PO = ((off_PO2 <= TOLERANCE) & (start_PO2 >= 0) & (start_PO2 + low <= side)).all(-1)
    found: dict[int, list[Place]] = defaultdict(list)
    for patch, overview in np.argwhere(fits_PO):
        left, top = (int(value) for value in start_PO2[patch, overview])
        found[patches[patch]].append(Place(overviews[overview], top, left))
    return dict(found)


def _corners(tiles: TileFolder, chosen: list[int], mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners (x, y) of tiles, (N, 2), and the side of their pixels, (N, 1), in level-0 pixels."""
    records = [tiles.records[index] for index in chosen]
    corners = np.array([(record.x, record.y) for record in records], np.float64)
    return corners, np.array([[record.mpp / mpp] for record in records], np.float64)


def likeness(patch_CHW: torch.Tensor, low_CHW: torch.Tensor) -> tuple[float, float]:
    """How far a patch and a low-resolution image vary together, and how far each by itself.

    The patch is shrunk by `FACTOR` (means of squares), and each channel's mean is taken from both.

    Returns
    -------
    tuple of float
        Their covariance and the geometric mean of their variances, both in squared grey levels: the one over the other
        is their correlation.
    """
    shrunk = avg_pool2d(patch_CHW.double()[None], FACTOR)[0]
    one, other = (image - image.mean((1, 2), keepdim=True) for image in (shrunk, low_CHW.double()))
    variances = one.square().mean() * other.square().mean()
    return float((one * other).mean()), float(variances.sqrt())


def _check_tissue(pairs: Pairs) -> None:
    """Refuse pairs that do not look alike: metadata that do not say where tiles are."""
    order = draws.numpy_generator(0, "looked at").permutation(len(pairs))[:CHECKED]
    moments = [likeness(pairs.patches.pixels(int(patch)), pairs.low(int(patch))) for patch in order]
    together, apart = (sum(column) for column in zip(*moments, strict=True))
    if together < LEAST_LIKENESS * apart:
        raise PathUpError(
            f"patches of {pairs.patches.folder} and the places of overviews that they should be at have a correlation "
            f"of {together / apart:.2f}, but one near 1 was needed: x, y or mpp of its metadata.jsonl do not fit the "
            "images; cut the tiles again with 'pathup tiles'"
        )
