"""What baselines have in common whose images are compared with originals: perceptual and adversarial terms.

The data flow: a small classifier of the tiles is trained first and frozen, and features of it tell an image from its
original; from `adversarial_start` on a patch discriminator is trained beside the network and judges its images.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import torch
from torch import nn

from pathup import draws
from pathup.baselines.systems import TrainRequest
from pathup.baselines.trainer import BaselineTrainer
from pathup.recipes import AdversarialTraining
from pathup.tiles.dataset import TileFolder
from pathup.training.crops import Crops
from pathup.training.discriminator import TEXTURE_WINDOW, PatchDiscriminator, discriminator_loss
from pathup.training.tissue_features import TissueFeatures, kept_tissue_features, perceptual_loss

__all__ = ["TISSUE_BATCH", "AdversarialTrainer"]

TISSUE_BATCH = 16
"""Crops a step of the perceptual term's classifier."""


class AdversarialTrainer(BaselineTrainer):
    """A `BaselineTrainer` with a discriminator and, where the recipe weighs it, a perceptual term.

    Losses are added to the step's `values` by name, unweighted; what is returned is weighted by the recipe.
    """

    spec: AdversarialTraining
    perceptual_window_px = TEXTURE_WINDOW
    """Side of the windows over which features are averaged before they are compared."""

    def __init__(
        self, request: TrainRequest, spec: AdversarialTraining, tiles: TileFolder, folder: Path, *, title: str
    ) -> None:
        super().__init__(request, spec, tiles, folder, title=title)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.seed_of(spec.seed, "weights", "discriminator"))
            self.discriminator = PatchDiscriminator(spec.discriminator_channels).to(self.device)
        judging = self.adam(self.discriminator, 0.5)  # with 0.9, verdicts swing
        self.register("discriminator", self.discriminator, optimizer=judging)
        self.tissue_features: TissueFeatures | None = None

    @abstractmethod
    def feature_crops(self) -> Crops:
        """What the classifier of the perceptual term learns from."""

    def adam(self, network: nn.Module, momentum: float) -> torch.optim.Optimizer:
        """Adam by the recipe's learning rate."""
        rate, betas = self.spec.learning_rate, (momentum, 0.99)
        return torch.optim.Adam(network.parameters(), lr=rate, betas=betas, fused=True)

    @property
    def is_adversarial(self) -> bool:
        """Whether the discriminator takes part in this step."""
        return self.step >= self.spec.adversarial_start and self.spec.adversarial_weight > 0

    def dearer_from(self) -> int:
        """The step at which the discriminator joins."""
        return self.spec.adversarial_start if self.spec.adversarial_weight > 0 else 0

    def prepare(self, steps: int) -> None:
        """Have the classifier of the perceptual term; learning it counts as training."""
        if self.spec.perceptual_weight > 0:
            self.tissue_features, seconds = kept_tissue_features(
                self.folder / "tissue_features.safetensors",
                self.feature_crops(),
                steps=self.spec.perceptual_steps,
                seed=self.spec.seed,
                device=self.device,
            )
            self.seconds += seconds if self.step == 0 else 0.0  # checkpoints have it

    def perceptual(
        self, fake_BCHW: torch.Tensor, real_BCHW: torch.Tensor, values: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """How far the classifier's features of images are from those of their originals; 0 before it is there."""
        if self.tissue_features is None:
            return fake_BCHW.new_zeros(())
        values["perceptual"] = perceptual_loss(
            self.tissue_features, fake_BCHW, real_BCHW, self.perceptual_window_px
        )
        return self.spec.perceptual_weight * values["perceptual"]

    def adversarial(self, fake_BCHW: torch.Tensor, values: dict[str, torch.Tensor]) -> torch.Tensor:
        """``-mean D(x')``, which leaves the discriminator as it is; 0 before it takes part."""
        if not self.is_adversarial:
            return fake_BCHW.new_zeros(())
        self.discriminator.requires_grad_(False)
        with self.accelerator.autocast():
            verdict, _ = self.discriminator(fake_BCHW)
        values["adversarial"] = -verdict.float().mean()
        return self.spec.adversarial_weight * values["adversarial"]

    def discriminate(self, fake_BCHW: torch.Tensor, real_BCHW: torch.Tensor, values: dict[str, torch.Tensor]) -> None:
        """One step of the discriminator, if it takes part (hinge loss)."""
        if not self.is_adversarial:
            return
        self.discriminator.requires_grad_(True)
        with self.accelerator.autocast():
            verdicts, _ = self.discriminator(torch.cat([real_BCHW, fake_BCHW.detach()]))
        values["discriminator"] = discriminator_loss(*verdicts.float().chunk(2))
        self.descend("discriminator", values["discriminator"], clip_norm=1.0)
