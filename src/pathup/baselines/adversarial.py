"""What baselines have in common whose images are compared with originals: perceptual and adversarial terms.

The data flow: a small classifier of the tiles is trained first and frozen. The network first learns by the error of its
pixels; from `adversarial_start` on, features of the classifier tell its images from their originals place by place, and
a patch discriminator is trained beside it and judges them.
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
from pathup.training.discriminator import PatchDiscriminator, discriminator_loss
from pathup.training.tissue_features import TissueFeatures, kept_tissue_features, perceptual_loss

__all__ = ["TISSUE_BATCH", "AdversarialTrainer"]

TISSUE_BATCH = 16
"""Crops a step of the perceptual term's classifier."""


class AdversarialTrainer(BaselineTrainer):
    """A `BaselineTrainer` with a discriminator and, where the recipe weighs it, a perceptual term.

    Losses are added to the step's `values` by name, unweighted; what is returned is weighted by the recipe.
    """

    spec: AdversarialTraining

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
    def has_joined(self) -> bool:
        """Whether perceptual and adversarial terms take part in this step."""
        return self.step >= self.spec.adversarial_start

    @property
    def is_adversarial(self) -> bool:
        """Whether the discriminator takes part in this step."""
        return self.has_joined and self.spec.adversarial_weight > 0

    def dearer_from(self) -> int:
        """The step at which the other terms join."""
        return self.spec.adversarial_start

    def prepare(self, steps: int) -> None:
        """Have the classifier of the perceptual term, where a step may have one; learning it counts as training."""
        joins = self.request.minutes is not None or self.spec.steps > self.spec.adversarial_start
        if self.spec.perceptual_weight > 0 and joins:
            self.tissue_features, seconds = kept_tissue_features(
                self.folder / "tissue_features.safetensors",
                self.feature_crops(),
                steps=self.spec.perceptual_steps,
                seed=self.spec.seed,
                device=self.device,
            )
            self.seconds += seconds if self.step == 0 else 0.0  # checkpoints have it

    def realism_loss(
        self, fake_BCHW: torch.Tensor, real_BCHW: torch.Tensor, values: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """The perceptual term, and ``-mean D(x')``, which leaves the discriminator as it is; 0 before they join.

        Features are compared place by place: averaged over windows, as the autoencoder's are, they were matched by
        stripes.
        """
        loss = fake_BCHW.new_zeros(())
        if self.has_joined and self.tissue_features is not None:
            values["perceptual"] = perceptual_loss(self.tissue_features, fake_BCHW, real_BCHW, 1)
            loss = loss + self.spec.perceptual_weight * values["perceptual"]
        if self.is_adversarial:
            self.discriminator.requires_grad_(False)
            with self.accelerator.autocast():
                verdict, _ = self.discriminator(fake_BCHW)
            values["adversarial"] = -verdict.float().mean()
            loss = loss + self.spec.adversarial_weight * values["adversarial"]
        return loss

    def discriminate(self, fake_BCHW: torch.Tensor, real_BCHW: torch.Tensor, values: dict[str, torch.Tensor]) -> None:
        """One step of the discriminator, if it takes part (hinge loss)."""
        if not self.is_adversarial:
            return
        self.discriminator.requires_grad_(True)
        with self.accelerator.autocast():
            verdicts, _ = self.discriminator(torch.cat([real_BCHW, fake_BCHW.detach()]))
        values["discriminator"] = discriminator_loss(*verdicts.float().chunk(2))
        self.descend("discriminator", values["discriminator"], clip_norm=1.0)
