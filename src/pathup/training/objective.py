"""What a diffusion run descends: L = L_r + beta L_e (eq. 4) of a micro-batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from diffusers import SchedulerMixin

from pathup.model.feature_entropy import FeatureEntropyLoss
from pathup.recipes import DiffusionRecipe
from pathup.training.batches import Batch, loss_weights, multiscale_error, training_target


class Losses(NamedTuple):
    """Of one micro-batch: weighed errors (B,), the sum of L_e's terms, detached features (B, D) and their prompts.

    A prompt is -1 where the feature does not count.
    """

    error_B: torch.Tensor
    entropy: torch.Tensor
    z_BD: torch.Tensor
    prompt_B: torch.Tensor


class Objective:
    """The losses of micro-batches on any model that predicts and tells its feature z (`UNetWithFeatures`).

    Parameters
    ----------
    spec
        The recipe's section.
    scheduler
        Of the training noise.
    entropy
        The feature entropy loss with its memory.
    prompts_KLD, empty_1LD
        Embeddings of all prompts and of the empty one.
    """

    def __init__(
        self,
        spec: DiffusionRecipe,
        scheduler: SchedulerMixin,
        entropy: FeatureEntropyLoss,
        prompts_KLD: torch.Tensor,
        empty_1LD: torch.Tensor,
    ) -> None:
        self._spec, self._scheduler, self._entropy = spec, scheduler, entropy
        self._prompts_KLD, self._empty_1LD = prompts_KLD, empty_1LD

    @property
    def with_entropy(self) -> bool:
        """Whether L_e is part of it."""
        return self._spec.feature_entropy.enabled and self._spec.patho_align

    def counted(self, batch: Batch) -> torch.Tensor:
        """Which samples have a term in L_e, (B,).

        One whose prompt was dropped has no prompt to be near to, unless z never sees prompts at all.
        """
        unprompted = self._spec.feature_entropy.source == "unprompted"
        return torch.ones_like(batch.dropped_B) if unprompted else ~batch.dropped_B

    def losses(self, model: Any, batch: Batch) -> Losses:
        """Errors and L_e's terms of a micro-batch; both are for a backward pass."""
        error_B, z = self.errors(model, batch)
        counted = self.counted(batch)
        entropy = error_B.new_zeros(())
        if self.with_entropy:
            entropy = (self._entropy.terms(z, batch.prompt_B) * counted).sum()
        return Losses(error_B, entropy, z.detach(), torch.where(counted, batch.prompt_B, -1))

    def errors(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Each sample's weighed squared error, (B,), and its feature z, (B, D)."""
        scheduler, spec = self._scheduler, self._spec
        noisy = scheduler.add_noise(batch.latents_BCHW, batch.noise_BCHW, batch.timestep_B)
        dropped = batch.dropped_B[:, None, None]
        prompts = torch.where(dropped, self._empty_1LD, self._prompts_KLD[batch.prompt_B])
        unprompted = self.with_entropy and spec.feature_entropy.source == "unprompted"
        empty = self._empty_1LD.expand_as(prompts) if unprompted else None
        prediction, z = model(noisy, batch.timestep_B, prompts, empty, batch.mpp_B)
        error_B = multiscale_error(prediction.float() - training_target(scheduler, batch), spec.multiscale_weight)
        return loss_weights(scheduler, batch.timestep_B, spec.min_snr_gamma, spec.min_snr_offset) * error_B, z

    def entropy_share(self, batches: list[Batch], accelerator: Accelerator) -> float | torch.Tensor:
        """What each process multiplies its sums of eq. 3's terms by, so that L_e is the mean over the joint batch.

        Prompt dropout leaves each process and micro-batch another number of terms, and gradients are averaged over
        processes: without this, two processes would descend another loss than one on their joint batch. `batches` are
        as they were loaded: asking a GPU for their numbers would wait for it.
        """
        if not self.with_entropy:
            return 0.0
        own = sum(int(self.counted(batch).sum()) for batch in batches)
        if accelerator.num_processes == 1:
            return 1 / own if own else 0.0
        joint = accelerator.reduce(torch.tensor(own, device=accelerator.device), reduction="sum")
        return accelerator.num_processes / joint.clamp_min(1)

    def prompt_gap(self, model: Any, batch: Batch, own_B: torch.Tensor, accelerator: Accelerator) -> float | None:
        """How much larger than its `own_B` the error is with a neighbour's prompt: 0 where prompts have no say.

        Over the samples that have a prompt, and another than their neighbour; None where there are none.
        """
        neighbours = batch.prompt_B.roll(1)
        counted = (neighbours != batch.prompt_B) & ~batch.dropped_B
        other_B, _ = self.errors(model, batch._replace(prompt_B=neighbours))
        sums = torch.stack([(error_B.detach() * counted).sum() for error_B in (own_B, other_B)])
        own, other = accelerator.reduce(sums, reduction="sum")
        return float(other / own - 1) if own > 0 else None
