"""Training images by step: whole tiles or crops of them, flipped and turned."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from pathup import draws
from pathup.tiles.dataset import TileFolder
from pathup.training.schedules import TileOrder

__all__ = ["Crops", "oriented"]


class Crops(Dataset[torch.Tensor]):
    """Training batches by step: crops of tiles, flipped and turned, a function of (seed, step, index) alone.

    Every class of every level is drawn equally often.

    Parameters
    ----------
    tiles
        The training tiles.
    seed
        Of order, places and orientations.
    batch_size
        Crops a step.
    crop_px
        Side of a crop; the tile's side for whole tiles.
    """

    def __init__(self, tiles: TileFolder, *, seed: int, batch_size: int, crop_px: int) -> None:
        self._tiles, self._crop, self._seed, self._batch = tiles, crop_px, seed, batch_size
        names = [(record.label, record.level) for record in tiles.records]
        self._order = TileOrder(names, seed=seed, balanced=True)
        self.groups = sorted(set(names))
        """The classes and levels there are, as `group` counts them."""
        self._groups = [self.groups.index(name) for name in names]

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, step: int) -> torch.Tensor:
        """Pixels (B, 3, crop, crop) in [-1, 1]."""
        return torch.stack([self._crop_at(position) for position in self._positions(step)])

    def group(self, step: int) -> torch.Tensor:
        """Which class and level each crop of that batch is of, (B,); counted in `groups`."""
        return torch.tensor([self._groups[self._order[position]] for position in self._positions(step)])

    def _positions(self, step: int) -> range:
        return range(step * self._batch, (step + 1) * self._batch)

    def _crop_at(self, position: int) -> torch.Tensor:
        pixels = self._tiles.pixels(self._order[position])
        draw = draws.numpy_generator(self._seed, "crop", position)
        top, left = (int(draw.integers(side - self._crop + 1)) for side in pixels.shape[-2:])
        crop = pixels[:, top : top + self._crop, left : left + self._crop]
        return oriented(crop, int(draw.integers(8))).float() / 127.5 - 1


def oriented(pixels_CHW: torch.Tensor, orientation: int) -> torch.Tensor:
    """One of the 8 flips and quarter turns of a square image; 0 is the image itself."""
    turned = torch.rot90(pixels_CHW, orientation % 4, dims=(-2, -1))
    return turned.flip(-1) if orientation >= 4 else turned
