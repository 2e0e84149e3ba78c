"""StyleGAN2 as a baseline: conditional on class and level, with adaptive discriminator augmentation.

The data flow: at a step, real tiles and their groups are a function of (seed, step), as are the generator's noise,
which styles are mixed and how images are augmented; the generator descends the non-saturating logistic loss, every few
steps its path length penalty, then the discriminator its logistic loss, every few steps its R1 penalty (lazy
regularisation: Karras et al. 2020, appendix B). The average of the generator's weights is what is written.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import softplus
from torch.utils.data import Dataset

from pathup import draws
from pathup.baselines.augmentation import AugmentationControl, augmented
from pathup.baselines.model_folder import ModelFolder, save_weights, writing_model
from pathup.baselines.stylegan2_networks import Discriminator, Generator, build_discriminator, build_generator
from pathup.baselines.systems import TrainRequest
from pathup.baselines.trainer import BaselineTrainer, claim_run
from pathup.errors import PathUpError
from pathup.recipes import Recipe, StyleGAN2Recipe
from pathup.tiles.dataset import TileFolder
from pathup.training.crops import Crops
from pathup.training.sheets import to_pixels

__all__ = [
    "StyleGAN2Maker",
    "StyleGAN2Trainer",
    "check",
    "discriminator_loss",
    "generator_loss",
    "load",
    "path_lengths",
    "r1_penalty",
    "train",
]

BETAS = (0.0, 0.99)


def generator_loss(fake_B: torch.Tensor) -> torch.Tensor:
    """The non-saturating logistic loss, ``mean softplus(-D(G(z)))`` (Goodfellow et al. 2014)."""
    return softplus(-fake_B).mean()


def discriminator_loss(real_B: torch.Tensor, fake_B: torch.Tensor) -> torch.Tensor:
    """``mean softplus(-D(x)) + mean softplus(D(G(z)))``."""
    return softplus(-real_B).mean() + softplus(fake_B).mean()


def r1_penalty(judge: Discriminator, images_BCHW: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """``mean_b |grad_x D(x_b)|^2`` on real images as the discriminator sees them (Mescheder et al. 2018)."""
    seen = images_BCHW.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(judge(seen, group_B).sum(), seen, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def path_lengths(images_BCHW: torch.Tensor, w_BLD: torch.Tensor, noise_BCHW: torch.Tensor) -> torch.Tensor:
    """How much images move when styles do, (B,): ``|J_w^T y|`` for images of noise y (Karras et al. 2020, section 3.2).

    y is divided by the root of the pixels a channel; the square is averaged over the layers that w goes into.
    """
    height, width = images_BCHW.shape[-2:]
    product = (images_BCHW * noise_BCHW).sum() / (height * width) ** 0.5
    (gradient,) = torch.autograd.grad(product, w_BLD, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


class GroupedTiles(Dataset[tuple[torch.Tensor, ...]]):
    """Whole tiles and their groups by step."""

    def __init__(self, crops: Crops) -> None:
        self._crops = crops

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, ...]:
        """Pixels (B, 3, H, W) in [-1, 1] and groups (B,)."""
        return self._crops[step], self._crops.group(step)


def groups_of(recipe: Recipe) -> list[tuple[str, str]]:
    """Label and level of each group, in the order that networks know them by."""
    return sorted((label, level) for label in recipe.labels for level in recipe.level_names)


class StyleGAN2Trainer(BaselineTrainer):
    """One run of ``pathup baseline train stylegan2``; see `BaselineTrainer`."""

    spec: StyleGAN2Recipe

    def __init__(self, request: TrainRequest, tiles: TileFolder) -> None:
        spec = request.recipe.baselines.stylegan2
        super().__init__(request, spec, tiles, request.output, title="StyleGAN2")
        self.groups = groups_of(request.recipe)
        self.crops = Crops(
            tiles, seed=spec.seed, batch_size=spec.batch_size, crop_px=request.recipe.tiles.tile_px
        )  # fmt: skip
        self._known = torch.tensor([self.groups.index(group) for group in self.crops.groups])
        self.generator = build_generator(spec, len(self.groups)).to(self.device)
        self.discriminator = build_discriminator(spec, len(self.groups)).to(self.device)
        if self.device.type == "cpu":  # a seventh faster there
            for network in (self.generator, self.discriminator):
                network.to(memory_format=torch.channels_last)
        for name, network in (("generator", self.generator), ("discriminator", self.discriminator)):
            every = self._every(name)
            betas = (BETAS[0], BETAS[1] ** self._share(every))
            optimizer = torch.optim.Adam(network.parameters(), lr=spec.learning_rate, betas=betas, eps=1e-8, fused=True)
            self.register(name, network, optimizer=optimizer, averaged=name == "generator")
        self.control = AugmentationControl(spec.augmentation_target, spec.augmentation_tiles)
        self.state = {
            "augmentation": AugmentationControl.begin(),
            "path_length": torch.zeros((), dtype=torch.float64),
        }

    @property
    def probability(self) -> float:
        """Of each augmentation."""
        return float(self.state["augmentation"][0]) if self.spec.augmentation == "adaptive" else 0.0

    def prepare(self, steps: int) -> None:
        """Nothing: tiles are read as they come."""

    def batches(self) -> Dataset[tuple[torch.Tensor, ...]]:
        """Real tiles."""
        return GroupedTiles(self.crops)

    def train_step(self, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        """Generator, path length, discriminator, R1."""
        spec, (real, counted) = self.spec, batch
        group = self._known.to(self.device)[counted]
        values = {"generator": self._generator_step(group)}
        if spec.path_length_weight and self.step % spec.path_length_every == 0:
            values["path_length"] = self._path_length_step(group[: spec.path_length_batch])
        values |= self._discriminator_step(real, group)
        if spec.r1_gamma and self.step % spec.r1_every == 0:
            values["r1"] = self._r1_step(real, group)
        values["augmentation"] = self.state["augmentation"][0]
        return values

    def _generator_step(self, group_B: torch.Tensor) -> torch.Tensor:
        self.discriminator.requires_grad_(False)
        with self.accelerator.autocast():
            fake = self._drawn(group_B, "generator")
            verdict = self.discriminator(self._seen(fake, "generator"), group_B).float()
        loss = generator_loss(verdict)
        self._descend("generator", loss)
        self.discriminator.requires_grad_(True)
        return loss.detach()

    def _path_length_step(self, group_B: torch.Tensor) -> torch.Tensor:
        spec, count = self.spec, len(group_B)
        with self.accelerator.autocast():
            w = self._styles(group_B, "path length")
            images = self.generator(w, self._noise(count, "path length"))
        noise = self._normal(tuple(images.shape), "path length direction")
        lengths = path_lengths(images, w, noise)
        mean = self.state["path_length"]
        mean = mean + spec.path_length_decay * (lengths.detach().double().mean().cpu() - mean.cpu())
        self.state["path_length"] = mean
        penalty = (lengths - mean.to(lengths)).square().mean()
        self._descend("generator", spec.path_length_weight * spec.path_length_every * penalty)
        return penalty.detach()

    def _discriminator_step(self, real: torch.Tensor, group_B: torch.Tensor) -> dict[str, torch.Tensor]:
        with self.accelerator.autocast():
            with torch.no_grad():
                fake = self._drawn(group_B, "discriminator")
            on_fake = self.discriminator(self._seen(fake, "fake"), group_B).float()
            on_real = self.discriminator(self._seen(real, "real"), group_B).float()
        loss = discriminator_loss(on_real, on_fake)
        self._descend("discriminator", loss)
        self.state["augmentation"] = self.control.after(self.state["augmentation"], self.step, on_real)
        return {"discriminator": loss.detach(), "real_sign": on_real.detach().sign().mean()}

    def _r1_step(self, real: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        with self.accelerator.autocast():
            penalty = r1_penalty(self.discriminator, self._seen(real, "r1"), group_B)
        self._descend("discriminator", 0.5 * spec.r1_gamma * spec.r1_every * penalty)
        return penalty.detach()

    # -- draws ----------------------------------------------------------------------------------------------

    def _styles(self, group_B: torch.Tensor, purpose: str) -> torch.Tensor:
        """Styles of every layer, (B, L, D), two mixed in some images."""
        spec, count, layers = self.spec, len(group_B), self.generator.layers
        shape = (2, count, spec.latent_size)
        z = draws.normal(shape, spec.seed, "z", purpose, self.step).to(self.device)
        first, second = (self.generator.mapping(own, group_B) for own in z)
        if purpose == "generator":
            self.generator.mapping.follow(first)
        generator = draws.torch_generator(spec.seed, "mixing", purpose, self.step)
        cut = torch.randint(1, layers, (count,), generator=generator)
        mixed = torch.rand(count, generator=generator) < spec.style_mixing
        cut = torch.where(mixed, cut, layers)
        takes_first = (torch.arange(layers)[None] < cut[:, None]).to(self.device)
        return torch.where(takes_first[:, :, None], first[:, None], second[:, None])

    def _noise(self, count: int, purpose: str) -> torch.Tensor:
        return self._normal((count, self.generator.noise_values), "noise", purpose)

    def _normal(self, shape: tuple[int, ...], *purpose: str) -> torch.Tensor:
        """Standard normal values for (seed, purpose, step), drawn on the device: a CPU would be long about so many."""
        generator = torch.Generator(self.device).manual_seed(draws.seed_of(self.spec.seed, *purpose, self.step))
        return torch.randn(shape, generator=generator, device=self.device)

    def _drawn(self, group_B: torch.Tensor, purpose: str) -> torch.Tensor:
        return self.generator(self._styles(group_B, purpose), self._noise(len(group_B), purpose))

    def _seen(self, images: torch.Tensor, purpose: str) -> torch.Tensor:
        """Images as the discriminator sees them."""
        if self.spec.augmentation == "none":
            return images
        generator = draws.torch_generator(self.spec.seed, "augmentation", purpose, self.step)
        return augmented(images, self.probability, generator)

    # -- optimisers -----------------------------------------------------------------------------------------

    def _every(self, name: str) -> int | None:
        """Steps between a network's penalties; None where it has none."""
        spec = self.spec
        if name == "generator":
            return spec.path_length_every if spec.path_length_weight else None
        return spec.r1_every if spec.r1_gamma else None

    @staticmethod
    def _share(every: int | None) -> float:
        """Lazy regularisation adds a step to every k: rates and the memory of Adam shrink by k / (k + 1)."""
        return 1.0 if every is None else every / (every + 1)

    def _descend(self, name: str, loss: torch.Tensor) -> None:
        self.descend(name, loss, share=self._share(self._every(name)))

    # -- what is written ------------------------------------------------------------------------------------

    def maker(self) -> StyleGAN2Maker:
        """What draws tiles by the averaged weights."""
        generator = build_generator(self.spec, len(self.groups))
        generator.load_state_dict(self.averages["generator"].tensors)
        return StyleGAN2Maker(generator.to(self.device).eval(), self.groups, self.spec.truncation)

    def samples(self) -> tuple[torch.Tensor, list[str], int]:
        """One tile of each class and level."""
        maker, labels = self.maker(), self.recipe.labels
        cells = [(label, level) for level in self.recipe.level_names for label in labels]
        images = [maker.images(*cell, range(1), self.spec.seed) for cell in cells]
        return torch.cat(images), [" ".join(cell) for cell in cells], len(labels)

    def export(self) -> Path:
        """The averaged generator."""
        target = self.folder / "model"
        notes = {**self.notes(), "augmentation_probability": self.probability}
        with writing_model(target, "stylegan2", self.recipe, notes) as partial:
            save_weights(partial, "generator", self.averages["generator"].tensors)
        return target


class StyleGAN2Maker:
    """Draws tiles from a trained generator.

    Parameters
    ----------
    generator
        With its weights, on its device.
    groups
        Label and level of each group.
    truncation
        How far styles are from their mean.
    """

    def __init__(self, generator: Generator, groups: list[tuple[str, str]], truncation: float) -> None:
        self._generator, self._groups, self._truncation = generator, groups, truncation

    @torch.no_grad()
    def images(self, label: str, level: str, indices: range, seed: int) -> torch.Tensor:
        """Images in [-1, 1], not clipped, (N, 3, H, W)."""
        own = self._generator
        device = own.constant.device
        z, noise = (
            torch.stack([draws.normal((size,), seed, label, level, purpose, index) for index in indices]).to(device)
            for purpose, size in (("z", own.latent_size), ("noise", own.noise_values))
        )
        group = torch.full((len(indices),), self._groups.index((label, level)), device=device)
        return own(own.styles(z, group, truncation=self._truncation), noise)

    def draw(self, label: str, level: str, indices: range, seed: int) -> np.ndarray:
        """Tiles, uint8 RGB (N, H, W, 3); see `TileMaker`."""
        return to_pixels(self.images(label, level, indices, seed))


def check(recipe: Recipe) -> None:
    """Raise a PathUpError when the channels are not those of the tile's resolutions."""
    side, channels = recipe.tiles.tile_px, recipe.baselines.stylegan2.channels
    made = 4 * 2 ** (len(channels) - 1)
    if made != side:
        raise PathUpError(
            f"baselines.stylegan2.channels has {len(channels)} entries, which makes images of {made} px, but tiles are "
            f"{side} px; one entry for each of 4, 8, 16, ... {side} was needed"
        )


def train(request: TrainRequest) -> Path:
    """Train StyleGAN2; see `train_baseline`."""
    tiles = TileFolder.load(request.tiles, "train", request.recipe)
    trainer = StyleGAN2Trainer(request, tiles)
    claim_run(request, "stylegan2", trainer.spec, tiles)
    return trainer.run()


def load(model: ModelFolder, device: torch.device) -> StyleGAN2Maker:
    """What draws tiles from a trained StyleGAN2."""
    spec, groups = model.recipe.baselines.stylegan2, groups_of(model.recipe)
    generator = build_generator(spec, len(groups))
    generator.load_state_dict(model.tensors("generator"))
    return StyleGAN2Maker(generator.to(device).eval(), groups, spec.truncation)
