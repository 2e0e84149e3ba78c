"""The baseline BSRGAN (Zhang et al. 2021): an RRDB network that enlarges by 4, trained on shuffled degradations.

The data flow: crops of the tiles of the highest resolution are degraded to a fourth of their side, by a draw of (seed,
position). The network enlarges them again and is first trained by the mean absolute error alone; from
`adversarial_start` on, features of a small classifier of the tiles and a patch discriminator join. Its averaged weights
are written by the names of BSRGAN's published ones, which `import_published` brings into the same kind of folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.func import functional_call
from torch.nn.functional import interpolate, l1_loss, mse_loss
from torch.utils.data import Dataset

from pathup import draws, storage
from pathup.baselines.adversarial import TISSUE_BATCH, AdversarialTrainer
from pathup.baselines.model_folder import ModelFolder, save_weights, writing_model
from pathup.baselines.rrdb import FACTOR, RRDBNet, load_published
from pathup.baselines.shuffled_degradations import degraded
from pathup.baselines.systems import TrainRequest
from pathup.baselines.tiled import in_tiles
from pathup.baselines.trainer import claim_run
from pathup.errors import PathUpError
from pathup.recipes import BSRGANRecipe, Recipe
from pathup.tiles.dataset import TileFolder
from pathup.training.crops import Crops
from pathup.training.sheets import to_pixels

__all__ = ["BSRGANTrainer", "BSRGANUpscaler", "DegradedCrops", "check", "import_published", "load", "train"]

NAME = "bsrgan"
SHEET_CROPS = 8
CROP_MULTIPLE_PX = 8  # the discriminator halves three times
RIM_PX = 16
"""Of a crop, at every side, that perceptual and adversarial terms leave out: a multiple of 8."""
LEAST_PX = 8
"""Side of the smallest image that is enlarged: less is little but border."""
TILE_PX, MARGIN_PX = 192, 32
"""Of larger images, before they are enlarged; see `BSRGANUpscaler`."""


class DegradedCrops(Dataset[tuple[torch.Tensor, ...]]):
    """Pairs of a degraded crop and its original by step, a function of (seed, step, index) alone."""

    def __init__(self, tiles: TileFolder, *, seed: int, batch_size: int, crop_px: int) -> None:
        self._crops = Crops(tiles, seed=seed, batch_size=batch_size, crop_px=crop_px)
        self._seed, self._batch = seed, batch_size

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, ...]:
        """Low resolution (B, 3, crop / 4, crop / 4) and high (B, 3, crop, crop), both in [-1, 1]."""
        high = self._crops[step]
        low = []
        for index, pixels_HWC in enumerate(to_pixels(high)):
            draw = draws.numpy_generator(self._seed, "degraded", step * self._batch + index)
            low.append(torch.from_numpy(degraded(pixels_HWC, draw, factor=FACTOR)))
        return torch.stack(low).permute(0, 3, 1, 2).float() / 127.5 - 1, high


class BSRGANTrainer(AdversarialTrainer):
    """One run of ``pathup baseline train bsrgan``; the network and a discriminator, which joins later."""

    spec: BSRGANRecipe

    def __init__(self, request: TrainRequest, tiles: TileFolder) -> None:
        super().__init__(request, request.recipe.baselines.bsrgan, tiles, request.output, title="BSRGAN")
        spec = self.spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.seed_of(spec.seed, "weights", "generator"))
            self.generator = RRDBNet(spec.channels, spec.growth, spec.blocks).to(self.device)
        self.register("generator", self.generator, optimizer=self.adam(self.generator, 0.9), averaged=True)

    def batches(self) -> DegradedCrops:
        """Pairs of degraded and original crops."""
        spec = self.spec
        return DegradedCrops(self.tiles, seed=spec.seed, batch_size=spec.batch_size, crop_px=spec.crop_px)

    def feature_crops(self) -> Crops:
        """See `AdversarialTrainer`."""
        return Crops(self.tiles, seed=self.spec.seed, batch_size=TISSUE_BATCH, crop_px=self.spec.crop_px)

    def train_step(self, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        """One step of the network and, from `adversarial_start` on, one of the discriminator."""
        spec, (low, high) = self.spec, batch
        with self.accelerator.autocast():
            enlarged = self.generator((low + 1) / 2)
        fake = enlarged.float() * 2 - 1
        values = {"pixel": l1_loss(fake, high)}
        loss = (spec.pixel_weight if self.has_joined else 1.0) * values["pixel"]
        loss = loss + self.realism_loss(middle(fake), middle(high), values)
        self.descend("generator", loss, clip_norm=1.0)
        self.discriminate(middle(fake), middle(high), values)
        values["psnr"] = -10 * torch.log10(mse_loss(fake.detach(), high) / 4)
        return {name: value.detach() for name, value in values.items()}

    def samples(self) -> tuple[torch.Tensor, list[str], int]:
        """Rows: the low resolution, enlarged bicubically, by the network, and the original."""
        low, high = (part[:SHEET_CROPS].to(self.device) for part in self.batches()[2**41])  # no step comes there
        enlarged = functional_call(self.generator, self.averages["generator"].tensors, ((low + 1) / 2,))
        size = high.shape[-2:]
        rows = {
            "low resolution": interpolate(low, size, mode="nearest"),
            "bicubic": interpolate(low, size, mode="bicubic"),
            "BSRGAN": enlarged.float() * 2 - 1,
            "original": high,
        }
        titles = [title if column == 0 else "" for title in rows for column in range(len(high))]
        return torch.cat(list(rows.values())), titles, len(high)

    def export(self) -> Path:
        """Write the averaged network."""
        target = self.folder / "model"
        _write(target, self.recipe, self.generator.sizes, self.averages["generator"].tensors, self.notes())
        return target


def middle(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Crops without `RIM_PX` at every side, where there is more than that twice over.

    The network sees zeros beyond a crop, and so do the discriminator and the classifier; with terms of theirs up to the
    border it drew frames along it.
    """
    side = images_BCHW.shape[-1]
    rim = RIM_PX if side >= 4 * RIM_PX else 0
    return images_BCHW[:, :, rim : side - rim, rim : side - rim]


class BSRGANUpscaler:
    """Enlarges images by 4; nothing about it is random.

    Images of more than `TILE_PX` a side are enlarged in tiles, of which a margin of `MARGIN_PX` is cut off. A network
    of one block reaches no further. One of 6 blocks, trained for a short while, reaches 94 px, but beyond 32 px nothing
    of it was seen in 8 bits; with a margin of 16 px, 6 values in a million were off by one.

    Parameters
    ----------
    network
        On the device where it is to run.
    """

    factor = FACTOR

    def __init__(self, network: RRDBNet) -> None:
        self.network = network.eval().requires_grad_(False)

    def enlarge(self, pixels_HWC: np.ndarray, seed: int, index: int) -> np.ndarray:
        """An image, uint8 RGB (H, W, 3), enlarged to (4 H, 4 W, 3); `seed` and `index` change nothing.

        Raises
        ------
        PathUpError
            A side is shorter than `LEAST_PX`.
        """
        height, width = pixels_HWC.shape[:2]
        if min(height, width) < LEAST_PX:
            raise PathUpError(
                f"an image of {width} x {height} px is to be enlarged, but at least {LEAST_PX} px a side were needed"
            )
        return in_tiles(pixels_HWC, self._enlarged, FACTOR, TILE_PX, MARGIN_PX)

    @torch.no_grad()
    def _enlarged(self, pixels_HWC: np.ndarray) -> np.ndarray:
        device = self.network.conv_first.weight.device
        pixels = torch.from_numpy(np.array(pixels_HWC)).to(device).permute(2, 0, 1)[None].float() / 255
        return to_pixels(self.network(pixels) * 2 - 1)[0]


def check(recipe: Recipe) -> None:
    """Check that crops fit the tiles and the discriminator.

    Raises
    ------
    PathUpError
        A crop is larger than a tile, or no multiple of 8.
    """
    spec = recipe.baselines.bsrgan
    if spec.crop_px > recipe.tiles.tile_px or spec.crop_px % CROP_MULTIPLE_PX:
        raise PathUpError(
            f"baselines.bsrgan.crop_px is {spec.crop_px}, but a multiple of {CROP_MULTIPLE_PX} that is not above the "
            f"tiles' {recipe.tiles.tile_px} px was needed"
        )


def train(request: TrainRequest) -> Path:
    """Train BSRGAN on the tiles of the highest resolution, from where its run stands.

    Returns
    -------
    Path
        The model's folder.

    Raises
    ------
    PathUpError
        The tiles do not fit the recipe, a crop is larger than a tile or no multiple of 8, or the folder holds another
        run.
    """
    recipe, spec = request.recipe, request.recipe.baselines.bsrgan
    level = min(recipe.tiles.levels, key=recipe.tiles.level_mpp)
    tiles = TileFolder.load(request.tiles, "train", recipe).only(level.name)
    claim_run(request, NAME, spec, tiles)
    return BSRGANTrainer(request, tiles).run()


def load(model: ModelFolder, device: torch.device) -> BSRGANUpscaler:
    """A trained or imported BSRGAN, ready to enlarge.

    Raises
    ------
    PathUpError
        The weights cannot be read, or are not of the network that ``baseline.json`` tells.
    """
    tensors = model.tensors("network")
    try:
        network = RRDBNet(**model.notes["network"])
        network.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise PathUpError(
            f"the weights in {model.folder} are not of the network that its baseline.json tells; train or import "
            "BSRGAN again"
        ) from error
    return BSRGANUpscaler(network.to(device))


def import_published(weights: Path, target: Path, recipe: Recipe) -> Path:
    """Bring published weights into a model's folder, which `load` reads as it reads a trained one.

    Parameters
    ----------
    weights
        BSRGAN's ``.pth``, or another file that `load_published` reads.
    target
        Folder to be made.
    recipe
        Whose tiles it is to be compared on; kept in the folder.

    Returns
    -------
    Path
        `target`. Its ``baseline.json`` says ``published``: the name and SHA-256 of `weights`; there are no steps,
        seconds or tiles.

    Raises
    ------
    PathUpError
        The file does not hold such weights, or `target` is there already.
    """
    network = load_published(weights)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PathUpError(f"{target} is there already, but a new or empty folder was needed; name another")
    published = {"file": weights.name, "sha256": storage.sha256_file(weights)}
    _write(target, recipe, network.sizes, network.state_dict(), {"published": published})
    return target


def _write(
    target: Path, recipe: Recipe, sizes: dict[str, int], tensors: dict[str, torch.Tensor], notes: dict[str, Any]
) -> None:
    with writing_model(target, NAME, recipe, {**notes, "network": sizes}) as folder:
        save_weights(folder, "network", tensors)
