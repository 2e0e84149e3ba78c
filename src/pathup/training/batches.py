"""What a training step of the diffusion model sees: micro-batches, the target, and the weights of errors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import SchedulerMixin
from torch.utils.data import Dataset

from pathup import draws
from pathup.recipes import DiffusionRecipe
from pathup.training.latents import LatentCache
from pathup.training.schedules import TileOrder


class Batch(NamedTuple):
    """One micro-batch of one process."""

    latents_BCHW: torch.Tensor
    noise_BCHW: torch.Tensor
    timestep_B: torch.Tensor
    prompt_B: torch.Tensor
    dropped_B: torch.Tensor
    mpp_B: torch.Tensor


class Batches(Dataset[Batch]):
    """Micro-batches by number: every draw a function of (seed, position in training)."""

    def __init__(
        self,
        cache: LatentCache,
        spec: DiffusionRecipe,
        prompts: list[tuple[str, str]],
        timesteps: int,
        rank: int,
        world: int,
    ) -> None:
        self._cache, self._spec, self._timesteps = cache, spec, timesteps
        self._rank, self._world = rank, world
        groups = [(record.label, record.level) for record in cache.tiles.records]
        self._prompt = [prompts.index(group) for group in groups]
        self._mpp = [record.mpp for record in cache.tiles.records]
        self._order = TileOrder(groups, seed=spec.seed, balanced=spec.balance_levels)

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, number: int) -> Batch:
        """The micro-batch `number` (counted from 0 over the whole run) of this process."""
        size = self._spec.batch_size
        first = (number * self._world + self._rank) * size
        samples = [self._sample(position) for position in range(first, first + size)]
        return Batch(*(torch.stack(column) for column in zip(*samples, strict=True)))

    def _sample(self, position: int) -> tuple[torch.Tensor, ...]:
        tile = self._order[position]
        generator = draws.torch_generator(self._spec.seed, "sample", position)
        slot = int(torch.randint(self._cache.orientations, (1,), generator=generator))
        timestep = torch.randint(self._timesteps, (1,), generator=generator)[0]
        dropped = torch.rand(1, generator=generator)[0] < self._spec.prompt_dropout
        latents = self._cache[tile, slot]
        noise = torch.randn(latents.shape, generator=generator)
        return latents, noise, timestep, torch.tensor(self._prompt[tile]), dropped, torch.tensor(self._mpp[tile])


def loss_weights(
    scheduler: SchedulerMixin, timestep_B: torch.Tensor, gamma: float | None, offset: float = 0.0
) -> torch.Tensor:
    """The weight of each sample's error, (B,): 1, or ``min(SNR + offset, gamma)`` on the error of x0.

    Offset 0 is min-SNR (Hang et al. 2023). Errors of noise and of v are SNR and SNR + 1 times those of x0, so with
    offset 1 errors of v count whole at high noise, and less where SNR + 1 is beyond gamma.
    """
    if gamma is None:
        return torch.ones(len(timestep_B), device=timestep_B.device)
    alpha_bar = scheduler.alphas_cumprod.to(timestep_B.device)[timestep_B]
    snr = (alpha_bar / (1 - alpha_bar)).clamp_min(1e-8)
    capped = (snr + offset).clamp_max(gamma)
    kind = scheduler.config.prediction_type
    return capped / {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[kind]


def training_target(scheduler: SchedulerMixin, batch: Batch) -> torch.Tensor:
    """What the model is to predict, by the scheduler's `prediction_type`."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return batch.noise_BCHW
    if kind == "v_prediction":
        return scheduler.get_velocity(batch.latents_BCHW, batch.noise_BCHW, batch.timestep_B)
    return batch.latents_BCHW
