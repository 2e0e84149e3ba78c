"""The baseline VQ-GAN (Esser et al. 2021): a discrete autoencoder, then a transformer over its codes.

The data flow: whole tiles are encoded, each latent is replaced by the nearest entry of a codebook, and these are
decoded and compared with the tile by pixels, gradients and, from `adversarial_start` on, features of a small classifier
of the tiles and a patch discriminator. The averaged autoencoder then turns tiles to codes, which the transformer
is trained on (`codes`). A tile is drawn by drawing its codes one after another and decoding them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from torch.nn.functional import l1_loss, mse_loss
from torch.utils.data import Dataset

from pathup import storage
from pathup.baselines.adversarial import TISSUE_BATCH, AdversarialTrainer
from pathup.baselines.codebook import (
    build_autoencoder,
    check_sizes,
    codes_of,
    dead_codes,
    images_of,
    perplexity,
    quantise,
    reseeds,
)
from pathup.baselines.codes import (
    AUTOENCODER,
    NAME,
    TRANSFORMER,
    CodesTrainer,
    CodeTransformer,
    build_transformer,
    draw_codes,
    start_of,
    uniforms,
    weights_sha256,
)
from pathup.baselines.model_folder import NOTE, ModelFolder, read_model, save_weights, writing_model
from pathup.baselines.systems import TrainRequest
from pathup.baselines.trainer import claim_run
from pathup.errors import PathUpError
from pathup.recipes import Recipe, VQGANRecipe
from pathup.tiles.dataset import TileFolder
from pathup.training.budget import PLAN_FILE
from pathup.training.crops import Crops
from pathup.training.discriminator import gradient_loss
from pathup.training.runs import FREE_TO_CHANGE
from pathup.training.sheets import to_pixels

__all__ = ["AutoencoderStage", "VQGANTiles", "check", "load", "train"]

AUTOENCODER_SHARE = 0.5  # of the time, where a run is given one
RESEED_EVERY = 10  # steps between searches for codes that none of them chose
STATISTICS_TILES = 512  # from which the perplexity of the finished codebook is taken
SHEET_TILES = 8
CODEBOOK = "quantize.embedding.weight"  # its name among the autoencoder's weights


class WholeTiles(Dataset[tuple[torch.Tensor, ...]]):
    """Batches of whole tiles by step, flipped and turned, each in a tuple."""

    def __init__(self, crops: Crops) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, ...]:
        """Pixels (B, 3, H, W) in [-1, 1]."""
        return (self.crops[step],)


class AutoencoderStage(AdversarialTrainer):
    """The first stage: the discrete autoencoder and the discriminator.

    ``w |x' - x| + w_g gradient + (|sg(z) - e|^2 + beta |z - sg(e)|^2) + w_p perceptual + w_a (-D(x'))``; perceptual and
    adversarial terms join at `adversarial_start`, until when w is 1. The adversarial weight is the recipe's, where the
    paper computes one at each step from gradients at the last layer.
    """

    spec: VQGANRecipe

    def __init__(self, request: TrainRequest, tiles: TileFolder) -> None:
        spec = request.recipe.baselines.vqgan
        super().__init__(request, spec, tiles, request.output / AUTOENCODER, title="VQ-GAN, autoencoder")
        self.autoencoder = build_autoencoder(self.recipe).to(self.device)
        self.register(AUTOENCODER, self.autoencoder, optimizer=self.adam(self.autoencoder, 0.5), averaged=True)
        self.state["chosen"] = torch.zeros(spec.codes, dtype=torch.int64, device=self.device)
        self.crops = self._crops(spec.batch_size)

    def batches(self) -> WholeTiles:
        """Whole tiles; every class of every level comes equally often."""
        return WholeTiles(self.crops)

    def feature_crops(self) -> Crops:
        """See `AdversarialTrainer`."""
        return self._crops(TISSUE_BATCH)

    def train_step(self, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        """One step of the autoencoder and, from `adversarial_start` on, one of the discriminator."""
        spec, (real,) = self.spec, batch
        with self.accelerator.autocast():
            latents = self.autoencoder.encode(real).latents
        if self.step % RESEED_EVERY == 0:
            self._reseed(latents)
        found = quantise(self.autoencoder, latents)
        with self.accelerator.autocast():
            fake = self.autoencoder.decode(found.latents_BCHW, force_not_quantize=True).sample.float()
        values = {"pixel": l1_loss(fake, real), "gradient": gradient_loss(fake, real), "quantiser": found.loss}
        loss = (spec.pixel_weight if self.has_joined else 1.0) * values["pixel"]
        loss = loss + spec.gradient_weight * values["gradient"] + values["quantiser"]
        loss = loss + self.realism_loss(fake, real, values)
        self.descend(AUTOENCODER, loss, clip_norm=1.0)
        self.discriminate(fake, real, values)
        counts = torch.bincount(found.codes_BL.flatten(), minlength=spec.codes)
        self.state["chosen"] += counts
        values["perplexity"] = perplexity(counts)
        values["psnr"] = -10 * torch.log10(mse_loss(fake.detach(), real) / 4)
        return {name: value.detach() for name, value in values.items()}

    @torch.no_grad()
    def _reseed(self, latents_BCHW: torch.Tensor) -> None:
        """Put codes that no step since the last time chose (at step 0: all) where latents of this batch are.

        Their averages go there too, and what the optimiser remembers of them is forgotten.
        """
        dead = dead_codes(self.state["chosen"])
        weight = self.autoencoder.quantize.embedding.weight
        weight[dead] = reseeds(latents_BCHW, len(dead), self.spec.seed, self.step)
        self.averages[AUTOENCODER].tensors[CODEBOOK][dead] = weight[dead]
        for value in self.optimizers[AUTOENCODER].state.get(weight, {}).values():
            if value.shape == weight.shape:
                value[dead] = 0
        self.state["chosen"].zero_()

    def samples(self) -> tuple[torch.Tensor, list[str], int]:
        """Tiles, and below each what comes back of it."""
        real = self.crops[2**41][:SHEET_TILES].to(self.device)  # no step comes there
        autoencoder = self._averaged()
        fake = images_of(autoencoder, codes_of(autoencoder, real))
        titles = ["tile", *[""] * (len(real) - 1), "from its codes", *[""] * (len(real) - 1)]
        return torch.cat([real, fake]), titles, len(real)

    def export(self) -> Path:
        """Write the averaged autoencoder."""
        autoencoder = self._averaged()
        crops, counts = self._crops(TISSUE_BATCH), torch.zeros(self.spec.codes, dtype=torch.int64)
        for number in range(STATISTICS_TILES // TISSUE_BATCH):
            codes = codes_of(autoencoder, crops[2**40 + number].to(self.device))  # no step comes there
            counts += torch.bincount(codes.flatten().cpu(), minlength=self.spec.codes)
        used = {"perplexity": round(float(perplexity(counts)), 1), "codes_used": int((counts > 0).sum())}
        target = self.folder / "model"
        with writing_model(target, "vqgan-autoencoder", self.recipe, {**self.notes(), **used}) as folder:
            save_weights(folder, AUTOENCODER, self.averages[AUTOENCODER].tensors)
        return target

    def _averaged(self) -> VQModel:
        return _filled(build_autoencoder(self.recipe), self.averages[AUTOENCODER].tensors).to(self.device)

    def _crops(self, batch_size: int) -> Crops:
        side = self.recipe.tiles.tile_px
        return Crops(self.tiles, seed=self.spec.seed, batch_size=batch_size, crop_px=side)


class VQGANTiles:
    """A trained VQ-GAN, ready to draw tiles.

    Parameters
    ----------
    model
        Its folder.
    device
        Where it is put.

    Raises
    ------
    PathUpError
        The weights cannot be read or are not those of the folder's recipe.
    """

    def __init__(self, model: ModelFolder, device: torch.device) -> None:
        self.recipe, self.device = model.recipe, device
        check_sizes(self.recipe)
        self.autoencoder = _read_into(build_autoencoder(self.recipe), model, AUTOENCODER).to(device)
        self.transformer: CodeTransformer = _read_into(build_transformer(self.recipe), model, TRANSFORMER).to(device)
        self._groups = {tuple(group) for group in model.notes.get("groups", [])}

    def codes(self, label: str, level: str, indices: range, seed: int) -> torch.Tensor:
        """The codes (B, L) of tiles, in raster order.

        Raises
        ------
        PathUpError
            The recipe has no such class or level, or no tile of it was trained on.
        """
        start = start_of(self.recipe, label, level)
        if self._groups and (label, level) not in self._groups:
            raise PathUpError(
                f"this model was trained on no tiles of label '{label}' at level '{level}', so it cannot draw them; "
                f"train it on tiles of that kind, or ask for one of: {', '.join(map(' '.join, sorted(self._groups)))}"
            )
        starts = torch.full((len(indices),), start, device=self.device)
        numbers = uniforms(label, level, indices, seed, self.transformer.length)
        return draw_codes(self.transformer, starts, numbers, self.recipe.baselines.vqgan.transformer)

    def draw(self, label: str, level: str, indices: range, seed: int) -> np.ndarray:
        """Tiles of a class and level, uint8 RGB (N, H, W, 3).

        A tile is a function of (seed, label, level, index). Rounding differs from batch to batch in the last place of
        float32, so one draw in some millions falls on another code, from which that tile goes on differently.

        Raises
        ------
        PathUpError
            As `codes`.
        """
        if len(indices) == 0:
            side = self.recipe.tiles.tile_px
            return np.empty((0, side, side, 3), np.uint8)
        return to_pixels(images_of(self.autoencoder, self.codes(label, level, indices, seed)))


def check(recipe: Recipe) -> None:
    """Check that a VQ-GAN can be built by the recipe, and both of its stages trained by one process.

    Raises
    ------
    PathUpError
        As `check_sizes`, or the two stages are of different precision.
    """
    check_sizes(recipe)
    spec = recipe.baselines.vqgan
    if spec.precision != spec.transformer.precision:
        raise PathUpError(
            f"baselines.vqgan.precision is {spec.precision} and baselines.vqgan.transformer.precision "
            f"{spec.transformer.precision}, but one process trains both: set them to the same"
        )


def train(request: TrainRequest) -> Path:
    """Train both stages from where they stand; returns the model's folder. A finished stage is not done again.

    Raises
    ------
    PathUpError
        The recipe or the tiles do not fit, the folder holds another run, or training diverges or finds the disk full.
    """
    spec = request.recipe.baselines.vqgan
    tiles = TileFolder.load(request.tiles, "train", request.recipe)
    claim_run(request, NAME, _identity(spec), tiles)
    shares = {AUTOENCODER: AUTOENCODER_SHARE, TRANSFORMER: 1 - AUTOENCODER_SHARE}
    first = _written(request.output / AUTOENCODER / "model")
    asked = _last_step(request, AUTOENCODER, shares, spec.steps)
    if first is None or asked is None or first.notes["steps"] < asked:
        first = read_model(AutoencoderStage(request, tiles).run(share=shares[AUTOENCODER]))
    last = _written(request.output / "model")
    asked = _last_step(request, TRANSFORMER, shares, spec.transformer.steps)
    same = last is not None and last.notes["autoencoder_sha256"] == weights_sha256(first)
    if last is not None and same and asked is not None and last.notes[TRANSFORMER]["steps"] >= asked:
        return last.folder
    autoencoder = _read_into(build_autoencoder(request.recipe), first, AUTOENCODER)
    return CodesTrainer(request, tiles, autoencoder, first).run(share=shares[TRANSFORMER])


def load(model: ModelFolder, device: torch.device) -> VQGANTiles:
    """A trained VQ-GAN, ready to draw.

    Raises
    ------
    PathUpError
        Its weights cannot be read or do not fit its recipe.
    """
    return VQGANTiles(model, device)


def _identity(spec: VQGANRecipe) -> VQGANRecipe:
    """The recipe with the transformer's own `FREE_TO_CHANGE` at their defaults, as they make no other run."""
    fields = type(spec.transformer).model_fields
    still = {name: fields[name].default for name in sorted(FREE_TO_CHANGE & fields.keys())}
    return spec.model_copy(update={"transformer": spec.transformer.model_copy(update=still)})


def _last_step(request: TrainRequest, stage: str, shares: dict[str, float], steps: int) -> int | None:
    """Up to which step a stage goes: the recipe's, or that planned for its share of the minutes, once it is known."""
    if request.minutes is None:
        return steps
    plan = request.output / stage / PLAN_FILE
    known = storage.read_json(plan) if plan.is_file() else {}
    return int(known["steps"]) if known.get("minutes") == shares[stage] * request.minutes else None


def _written(folder: Path) -> ModelFolder | None:
    return read_model(folder) if (folder / NOTE).is_file() else None


def _read_into(network: Any, model: ModelFolder, name: str) -> Any:
    tensors = model.tensors(name)
    try:
        return _filled(network, tensors)
    except RuntimeError as error:
        raise PathUpError(
            f"{model.folder / name}.safetensors does not fit the recipe beside it ({str(error).splitlines()[0]}); "
            "train or copy the baseline again"
        ) from error


def _filled(network: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The network with these weights, for use: no dropout, no gradients."""
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)
