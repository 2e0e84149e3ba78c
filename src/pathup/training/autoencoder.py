"""Training a KL autoencoder for those without a pretrained one.

The data flow: crops of tiles (a function of the seed and the position in training) are encoded to a posterior,
sampled, decoded, and compared with the crop by pixels, gradients and, from `adversarial_start` on, texture, features
of a small classifier of the tiles and a patch discriminator. At `freeze_encoder_at` the averaged weights take over,
latents are turned to their principal components and normalised (`normalise_latents`), and only the decoder goes on
learning, on latents with a little noise (`decoder_noise`) such as sampled ones have: latents made from then on stay
valid. A pretrained autoencoder whose encoder is frozen at step 0 keeps the latents that it came with, so a U-Net
trained on them still fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch.nn.functional import avg_pool2d, l1_loss, mse_loss
from torch.utils.data import DataLoader

from pathup import __version__, draws, storage
from pathup.errors import PathUpError
from pathup.model.components import build_autoencoder, load_autoencoder
from pathup.model.export import forget_origin
from pathup.processes import computes_on_cpu
from pathup.recipes import Recipe, save_recipe
from pathup.tiles.dataset import TileFolder
from pathup.training.averages import Average
from pathup.training.checkpoints import newest_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from pathup.training.crops import Crops
from pathup.training.discriminator import (
    PatchDiscriminator,
    discriminator_loss,
    feature_matching_loss,
    gradient_loss,
    texture_loss,
)
from pathup.training.journal import Journal
from pathup.training.schedules import learning_rate
from pathup.training.sheets import image_sheet
from pathup.training.tissue_features import TissueFeatures, kept_tissue_features, perceptual_loss

TISSUE_BATCH = 16  # crops a step of the perceptual term's classifier
STATISTICS_CROPS = 512  # crops from which the latents' mean and deviation a channel are taken


class AutoencoderTrainer:
    """One run of `pathup train autoencoder`.

    Parameters
    ----------
    recipe
        The whole recipe; `recipe.autoencoder` is what counts.
    tiles
        The training tiles.
    folder
        The run's folder.
    start
        An autoencoder to start from instead of random weights (a folder or hub id).

    Raises
    ------
    PathUpError
        The recipe's precision is fp16, or `start` does not load.
    """

    def __init__(
        self,
        recipe: Recipe,
        tiles: TileFolder,
        folder: Path,
        *,
        start: str | None = None,
        cpu: bool = False,
        wandb_project: str | None = None,
    ) -> None:
        self.recipe, self.spec, self.tiles, self.folder = recipe, recipe.autoencoder, tiles, folder
        if self.spec.precision == "fp16":
            raise PathUpError(
                "the autoencoder's adversarial losses overflow in fp16; train it with --precision bf16 or fp32"
            )
        self.accelerator = Accelerator(mixed_precision=_mixed(self.spec.precision), cpu=computes_on_cpu(cpu))
        device = self.accelerator.device
        self.vae = (load_autoencoder(start) if start else build_autoencoder(self.spec)).to(device)
        self.average = Average(self.vae, self.spec.ema_decay)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.seed_of(self.spec.seed, "weights", "discriminator"))
            self.discriminator = PatchDiscriminator(self.spec.discriminator_channels).to(device)
        self.generator_optimizer = torch.optim.AdamW(
            self.vae.parameters(), lr=self.spec.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
        )
        self.discriminator_optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=self.spec.learning_rate, betas=(0.5, 0.99), weight_decay=0.0, fused=True
        )
        self.step = 0
        self._keeps_latents = bool(start) and self.spec.freeze_encoder_at == 0
        self._wandb = wandb_project
        self.crops = self._crops(self.spec.batch_size)
        self.tissue_features: TissueFeatures | None = None

    # -- the run --------------------------------------------------------------------------------------------

    def run(self, *, workers: int = 0) -> Path:
        """Train to the recipe's last step, from the newest checkpoint where there is one.

        Returns
        -------
        Path
            The autoencoder's folder (averaged weights), which plain diffusers loads.
        """
        save_recipe(self.recipe, self.folder / "recipe.yaml")
        self._resume()
        if self.spec.perceptual_weight > 0:
            self.tissue_features, _ = kept_tissue_features(
                self.folder / "tissue_features.safetensors",
                self._crops(TISSUE_BATCH),
                steps=self.spec.perceptual_steps,
                seed=self.spec.seed,
                device=self.accelerator.device,
            )
        with Journal(
            self.folder, steps=self.spec.steps, first_step=self.step, title="autoencoder", wandb_project=self._wandb
        ) as journal:
            for pixels in self._batches(workers):
                if self.step == self.spec.freeze_encoder_at and not self._keeps_latents:
                    self._freeze_encoder()
                values = self._train_step(pixels.to(self.accelerator.device))
                self.step += 1
                journal.advance()
                last = self.step == self.spec.steps
                if self.step % self.spec.log_every == 0 or last:
                    journal.record(self.step, {name: float(value) for name, value in values.items()})
                if self.step % self.spec.checkpoint_every == 0 or last:
                    self._save()
                if self.step % self.spec.sample_every == 0 or last:
                    self._sample(journal)
                    self.export()
        return self.export()

    def _crops(self, batch_size: int) -> Crops:
        return Crops(self.tiles, seed=self.spec.seed, batch_size=batch_size, crop_px=self.spec.crop_px)

    def _batches(self, workers: int) -> Iterator[torch.Tensor]:
        loader = DataLoader(self.crops, batch_size=None, sampler=range(self.step, self.spec.steps), num_workers=workers)
        yield from loader

    def _train_step(self, real: torch.Tensor) -> dict[str, torch.Tensor]:
        spec, step = self.spec, self.step
        frozen = spec.freeze_encoder_at is not None and step >= spec.freeze_encoder_at
        adversarial = step >= spec.adversarial_start and spec.adversarial_weight > 0
        peak = spec.decoder_learning_rate if frozen and spec.decoder_learning_rate else spec.learning_rate
        rate = learning_rate(step, peak=peak, warmup=spec.warmup_steps, total=spec.steps, decay=spec.steps // 5)
        with self.accelerator.autocast():
            with torch.set_grad_enabled(not frozen):
                posterior = self.vae.encode(real).latent_dist
            noise = draws.normal(tuple(posterior.mean.shape), spec.seed, "posterior", step).to(real.device)
            extra = spec.decoder_noise / self.vae.config.scaling_factor  # times that factor, the strongest has 1
            spread = (posterior.var + extra**2).sqrt() if frozen else posterior.std
            fake = self.vae.decode(posterior.mean + spread * noise).sample.float()
        values = {"pixel": l1_loss(fake, real), "gradient": gradient_loss(fake, real)}
        if step < spec.adversarial_start or not (adversarial or spec.texture_weight or spec.perceptual_weight):
            loss = values["pixel"] + spec.gradient_weight * values["gradient"]
        else:  # the finest octave is left to texture and discriminator: pixel by pixel, no grain is the least error
            loss = l1_loss(avg_pool2d(fake, 2), avg_pool2d(real, 2))
        if not frozen:
            values["kl"] = posterior.kl().mean() / posterior.mean[0].numel()
            loss = loss + spec.kl_weight * values["kl"]
        if adversarial:
            self.discriminator.requires_grad_(False)
            with self.accelerator.autocast():
                verdict, fake_features = self.discriminator(fake)
                with torch.no_grad():
                    _, real_features = self.discriminator(real)
            values["adversarial"] = -verdict.float().mean()
            values["matching"] = feature_matching_loss(real_features, fake_features)
            ramp = min(1.0, (step - spec.adversarial_start + 1) / 200)  # a cold discriminator has nothing to teach
            loss = loss + ramp * spec.adversarial_weight * values["adversarial"]
            loss = loss + ramp * spec.feature_matching_weight * values["matching"]
        if self.tissue_features is not None and step >= spec.adversarial_start:
            values["perceptual"] = perceptual_loss(self.tissue_features, fake, real)
            loss = loss + spec.perceptual_weight * values["perceptual"]
        if step >= spec.adversarial_start and spec.texture_weight > 0:
            values["texture"] = texture_loss(fake, real)
            loss = loss + spec.texture_weight * values["texture"]
        self._descend(self.generator_optimizer, loss, rate)
        if adversarial:
            self.discriminator.requires_grad_(True)
            with self.accelerator.autocast():
                verdicts, _ = self.discriminator(torch.cat([real, fake.detach()]))
            values["discriminator"] = discriminator_loss(*verdicts.float().chunk(2))
            self._descend(self.discriminator_optimizer, values["discriminator"], rate)
        self.average.update(step)
        values["psnr"] = -10 * torch.log10(mse_loss(fake.detach(), real) / 4)
        return {name: value.detach() for name, value in values.items()}

    def _descend(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    @torch.no_grad()
    def _freeze_encoder(self) -> None:
        self.vae.load_state_dict(self.average.tensors)
        count = max(1, STATISTICS_CROPS // self.spec.batch_size)
        batches = (self.crops[2**40 + number].to(self.accelerator.device) for number in range(count))
        posteriors = [self.vae.encode(pixels).latent_dist for pixels in batches]
        means = torch.cat([posterior.mean for posterior in posteriors])
        variances = torch.cat([posterior.var for posterior in posteriors])
        normalise_latents(self.vae, means, variances, self.spec.whitening)
        self._scale_is_one()
        self.average = Average(self.vae, self.spec.ema_decay)

    def _scale_is_one(self) -> None:
        """Normalised latents need no factor; an autoencoder that training started from may have brought one."""
        self.vae.register_to_config(scaling_factor=1.0)

    # -- keeping --------------------------------------------------------------------------------------------

    def _save(self) -> None:
        save_checkpoint(
            self.folder / "checkpoints",
            self.step,
            {
                "autoencoder": self.vae.state_dict(),
                "average": self.average.tensors,
                "discriminator": self.discriminator.state_dict(),
                "generator_optimizer": optimizer_tensors(self.generator_optimizer),
                "discriminator_optimizer": optimizer_tensors(self.discriminator_optimizer),
            },
            {"step": self.step},
            keep=2,
        )

    def _resume(self) -> None:
        checkpoint = newest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        self.step = checkpoint.step
        self.vae.load_state_dict(checkpoint.tensors("autoencoder"))
        frozen = self.spec.freeze_encoder_at is not None and self.step > self.spec.freeze_encoder_at
        if frozen and not self._keeps_latents:
            self._scale_is_one()
        self.average.load(checkpoint.tensors("average"))
        self.discriminator.load_state_dict(checkpoint.tensors("discriminator"))
        restore_optimizer(self.generator_optimizer, checkpoint.tensors("generator_optimizer"))
        restore_optimizer(self.discriminator_optimizer, checkpoint.tensors("discriminator_optimizer"))

    def export(self) -> Path:
        """Write the averaged autoencoder as a diffusers folder, with how it was made beside it."""
        target = self.folder / "autoencoder"
        vae = averaged(self.vae, self.average.tensors)
        with storage.atomic_folder(target) as partial:
            vae.save_pretrained(partial, safe_serialization=True)
            forget_origin(partial)
            made = {"steps": self.step, "recipe": self.recipe.name, "tiles": self.tiles.fingerprint()}
            storage.write_json(partial / "training.json", {"pathup": __version__, **made})
        return target

    @torch.no_grad()
    def _sample(self, journal: Journal) -> None:
        vae = averaged(self.vae, self.average.tensors)
        real = self.crops[2**41][:8].to(self.accelerator.device)
        fake = vae.decode(vae.encode(real).latent_dist.mode()).sample
        image_sheet(
            torch.stack([real, fake], 1).flatten(0, 1), self.folder / "sheets" / f"{self.step:08d}.png", columns=8
        )
        journal.draw_curves()


def averaged(vae: AutoencoderKL, average: dict[str, torch.Tensor]) -> AutoencoderKL:
    """A copy of `vae` with the averaged weights."""
    copy: Any = AutoencoderKL.from_config(vae.config)
    copy.load_state_dict(average)
    return copy.to(vae.device).eval()


@torch.no_grad()
def normalise_latents(
    vae: AutoencoderKL, means_NCHW: torch.Tensor, variances_NCHW: torch.Tensor, whitening: float = 1.0
) -> None:
    """Turn latents to their principal components, of mean 0, the strongest of deviation 1, in the convolutions around.

    ``z' = D^-1 R^T (z - m)`` with the eigenvectors R and deviations s of the latents' covariance over positions, and
    ``D = s_1 diag((s / s_1)^w)``: with whitening w = 1 every channel has deviation 1; with w = 0 the axes are only
    turned, so that white noise on latents drowns the faint channels first, as it does in pixels. Reconstructions stay
    what they are; the scaling factor can be 1 and no shift is needed (which Stable Diffusion's own pipelines could not
    apply).

    Parameters
    ----------
    vae
        Changed in place: its 1 x 1 convolutions on both sides of the latent. The posterior's variance becomes one
        number a channel, the mean of what it was.
    means_NCHW, variances_NCHW
        Of the posteriors of some images.
    whitening
        w, between 0 and 1.
    """
    channels = means_NCHW.shape[1]
    flat = means_NCHW.permute(0, 2, 3, 1).reshape(-1, channels).double()
    mean = flat.mean(0)
    variance, turn = torch.linalg.eigh(torch.cov((flat - mean).T).reshape(channels, channels))
    deviation, turn = variance.clamp(min=1e-12).sqrt().flip(0), turn.flip(1)  # the strongest first
    deviation = deviation[0] * (deviation / deviation[0]) ** whitening
    into, back = (turn / deviation).T, turn * deviation
    quant, post = vae.quant_conv, vae.post_quant_conv
    weight, bias = quant.weight[:, :, 0, 0].double(), quant.bias.double()
    quant.weight[:channels, :, 0, 0] = (into @ weight[:channels]).to(quant.weight)
    quant.bias[:channels] = (into @ (bias[:channels] - mean)).to(quant.bias)
    quant.weight[channels:] = 0  # the second half is the log-variance
    quant.bias[channels:] = (into.square() @ variances_NCHW.double().mean((0, 2, 3))).log().to(quant.bias)
    weight = post.weight[:, :, 0, 0].double()
    post.bias += (weight @ mean).to(post.bias)
    post.weight[:, :, 0, 0] = (weight @ back).to(post.weight)


def _mixed(precision: str) -> str:
    return {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
