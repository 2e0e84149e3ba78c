"""Latent super-resolution by 4 (Rombach et al. 2022, section 4.4), trained on pairs of overview and patch.

The data flow: a patch's cached latent is noised; the crop of its overview that shows the same tissue, with a little
noise and enlarged to the latent's resolution, is concatenated to it; the U-Net predicts the noise, v or the clean
latent, and its weighed squared error is descended. What is drawn, of every sample, is a function of (seed, position in
training).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DModel
from torch.utils.data import Dataset

from pathup import draws
from pathup.baselines.latent_enlarging import LatentUpscaler, beside_latents, latent_factor
from pathup.baselines.model_folder import ModelFolder, save_weights, writing_model
from pathup.baselines.pairs import FACTOR, Pairs, find_pairs, paired_levels
from pathup.baselines.systems import TrainRequest
from pathup.baselines.trainer import BaselineTrainer, claim_run
from pathup.errors import PathUpError
from pathup.model.components import load_autoencoder
from pathup.model.export import forget_origin
from pathup.model.schedulers import build_scheduler
from pathup.recipes import LDMSRRecipe, Recipe
from pathup.tiles.dataset import TileFolder
from pathup.training.batches import Batch, loss_weights, training_target
from pathup.training.crops import oriented
from pathup.training.latents import LatentCache, encoder_sha256, orientations_of
from pathup.training.schedules import TileOrder

__all__ = ["LDMSRTrainer", "PairBatches", "build_unet", "check", "load", "train"]

CLIP_NORM = 1.0
"""Gradients are scaled down to this norm."""

MOST_SAMPLES = 8
"""Images a row of a sample sheet."""


class PairBatches(Dataset[tuple[torch.Tensor, ...]]):
    """Training batches by step: every draw a function of (seed, position in training).

    Every class is drawn equally often; of several overviews that show a patch, each is.

    Parameters
    ----------
    pairs
        What is trained on.
    cache
        The latents of its patches.
    spec
        The recipe's section.
    timesteps
        Of the noise schedule.
    """

    def __init__(self, pairs: Pairs, cache: LatentCache, spec: LDMSRRecipe, timesteps: int) -> None:
        self._pairs, self._cache, self._spec, self._timesteps = pairs, cache, spec, timesteps
        labels = [record.label for record in pairs.patches.records]
        self._order = TileOrder(labels, seed=spec.seed, balanced=True)

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, step: int) -> tuple[torch.Tensor, ...]:
        """Latents and their noise (B, C, h, w), low-resolution images in [-1, 1] with noise, and timesteps (B,)."""
        size = self._spec.batch_size
        samples = [self._sample(position) for position in range(step * size, (step + 1) * size)]
        return tuple(torch.stack(column) for column in zip(*samples, strict=True))

    def _sample(self, position: int) -> tuple[torch.Tensor, ...]:
        patch, spec = self._order[position], self._spec
        generator = draws.torch_generator(spec.seed, "pair", position)
        slot = int(torch.randint(self._cache.orientations, (1,), generator=generator))
        choice = int(torch.randint(len(self._pairs.places(patch)), (1,), generator=generator))
        timestep = torch.randint(self._timesteps, (1,), generator=generator)[0]
        deviation = spec.condition_noise * torch.rand(1, generator=generator)
        latents = self._cache[patch, slot]
        noise = torch.randn(latents.shape, generator=generator)
        turn = orientations_of(patch, self._cache.orientations, self._cache.seed)[slot]
        low = oriented(self._pairs.low(patch, choice), turn).float() / 127.5 - 1
        return latents, noise, low + deviation * torch.randn(low.shape, generator=generator), timestep


class LDMSRTrainer(BaselineTrainer):
    """One run of ``pathup baseline train ldm-sr``.

    Parameters
    ----------
    request, tiles
        As for `BaselineTrainer`.
    pairs
        Of those tiles.
    vae
        The autoencoder; it stays as it is.

    Raises
    ------
    PathUpError
        The recipe's sampler or blocks do not fit its noise schedule or these latents.
    """

    spec: LDMSRRecipe

    def __init__(self, request: TrainRequest, tiles: TileFolder, pairs: Pairs, vae: AutoencoderKL) -> None:
        spec = request.recipe.baselines.ldm_sr
        super().__init__(request, spec, tiles, request.output, title="ldm-sr")
        self.pairs, self.vae = pairs, vae.to(self.device).eval().requires_grad_(False)
        self.unet = build_unet(self.recipe, vae).to(self.device)
        LatentUpscaler(self.unet, vae, self.recipe, self.device)  # tells what does not fit, before anything is trained
        optimizer = torch.optim.AdamW(self.unet.parameters(), lr=spec.learning_rate, weight_decay=0.01, fused=True)
        self.register("unet", self.unet, optimizer=optimizer, averaged=True)
        self.scheduler = build_scheduler(self.recipe)
        self.cache = LatentCache(
            self.folder / "latents", pairs.patches, vae, orientations=spec.orientations, seed=spec.seed,
            bfloat16=spec.precision == "bf16",
        )  # fmt: skip

    def prepare(self, steps: int) -> None:
        """Encode the patches that are not yet."""
        self.cache.fill_shown(self.recipe.diffusion.encode_batch, self.device)

    def batches(self) -> PairBatches:
        """Batches by step."""
        return PairBatches(self.pairs, self.cache, self.spec, int(self.scheduler.config.num_train_timesteps))

    def train_step(self, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        """Descend the squared error of the prediction, weighed by the timestep's SNR (`loss_weights`)."""
        latents, noise, low, timestep = batch
        noisy = self.scheduler.add_noise(latents, noise, timestep)
        condition = beside_latents(low, (latents.shape[2], latents.shape[3]))
        with self.accelerator.autocast():
            prediction = self.unet(torch.cat([noisy, condition], 1), timestep, return_dict=False)[0]
        none = torch.zeros_like(timestep)  # no prompts, and one scale
        target = training_target(self.scheduler, Batch(latents, noise, timestep, none, none, none))
        error_B = (prediction.float() - target).square().mean((1, 2, 3))
        loss = (loss_weights(self.scheduler, timestep, self.spec.min_snr_gamma) * error_B).mean()
        self.descend("unet", loss, clip_norm=CLIP_NORM)
        return {"L_r": loss.detach(), "error": error_B.detach().mean()}

    def samples(self) -> tuple[torch.Tensor, list[str], int]:
        """A row of low-resolution images, one of each class; a row of what is made of them; the patches."""
        chosen = {record.label: index for index, record in reversed(list(enumerate(self.pairs.patches.records)))}
        patches = sorted(chosen.values())[:MOST_SAMPLES]
        upscaler = LatentUpscaler(self.averaged(), self.vae, self.recipe, self.device)
        low = [self.pairs.low(patch) for patch in patches]
        made = [upscaler.enlarge(image.permute(1, 2, 0).numpy(), self.spec.seed, patch) for image, patch in
                zip(low, patches, strict=True)]  # fmt: skip
        rows = (
            [image.repeat_interleave(FACTOR, 1).repeat_interleave(FACTOR, 2) for image in low],
            [torch.from_numpy(image).permute(2, 0, 1) for image in made],
            [self.pairs.patches.pixels(patch) for patch in patches],
        )
        labels = [self.pairs.patches.records[patch].label for patch in patches]
        titles = [f"{label} {what}" for what in ("overview", "enlarged", "patch") for label in labels]
        pixels = torch.stack([image for row in rows for image in row]).float() / 127.5 - 1
        return pixels, titles, len(patches)

    def averaged(self) -> UNet2DModel:
        """The U-Net with its averaged weights."""
        twin = copy.deepcopy(self.unet)
        twin.load_state_dict(self.averages["unet"].tensors)
        return twin.eval()

    def notes(self) -> dict[str, Any]:
        """As every baseline's, and how many pairs there were."""
        return {**super().notes(), "pairs": len(self.pairs), "patches_left_out": self.pairs.left_out}

    def export(self) -> Path:
        """Write the averaged U-Net, and a copy of the autoencoder."""
        target = self.folder / "model"
        with writing_model(target, "ldm-sr", self.recipe, self.notes()) as partial:
            save_weights(partial, "unet", self.averages["unet"].tensors)
            self.vae.save_pretrained(partial / "autoencoder", safe_serialization=True)
            forget_origin(partial / "autoencoder")
        return target


def build_unet(recipe: Recipe, vae: AutoencoderKL) -> UNet2DModel:
    """The U-Net with random weights (drawn from the section's seed): latents and 3 channels in, latents out."""
    spec, channels = recipe.baselines.ldm_sr, int(vae.config.latent_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.seed_of(spec.seed, "weights", "ldm-sr"))
        return UNet2DModel(
            sample_size=recipe.tiles.tile_px // latent_factor(vae),
            in_channels=channels + 3,
            out_channels=channels,
            down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in spec.attention),
            up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(spec.attention)),
            block_out_channels=tuple(spec.block_channels),
            layers_per_block=spec.layers_per_block,
            attention_head_dim=spec.head_channels,
            norm_num_groups=spec.norm_groups,
        )


def check(recipe: Recipe) -> None:
    """Check that the recipe's levels make pairs.

    Raises
    ------
    PathUpError
        As `paired_levels`.
    """
    paired_levels(recipe)


def train(request: TrainRequest) -> Path:
    """Train on the pairs of a folder of tiles; returns the model's folder.

    Raises
    ------
    PathUpError
        The recipe's levels are not 4 apart, there are no pairs, the autoencoder does not load or fit, or the folder
        holds another run.
    """
    recipe = request.recipe
    tiles = TileFolder.load(request.tiles, "train", recipe)
    pairs = find_pairs(tiles)
    vae = load_autoencoder(str(request.autoencoder))
    trainer = LDMSRTrainer(request, tiles, pairs, vae)
    noise = recipe.model.noise.model_dump(mode="json")
    claim_run(request, "ldm-sr", recipe.baselines.ldm_sr, tiles, noise=noise, encoder=encoder_sha256(vae))
    return trainer.run()


def load(model: ModelFolder, device: torch.device) -> LatentUpscaler:
    """A trained model, ready to enlarge.

    Raises
    ------
    PathUpError
        Its files are missing or damaged.
    """
    vae = load_autoencoder(model.folder / "autoencoder").to(device).eval().requires_grad_(False)
    unet = build_unet(model.recipe, vae)
    try:
        unet.load_state_dict(model.tensors("unet"))
    except RuntimeError as error:
        raise PathUpError(
            f"the weights in {model.folder} are not of the U-Net that its recipe.yaml says; copy or train the model "
            "again"
        ) from error
    unet.to(device).eval().requires_grad_(False)
    return LatentUpscaler(unet, vae, model.recipe, device)
