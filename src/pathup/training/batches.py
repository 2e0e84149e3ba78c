"""What a training step of the diffusion model sees: micro-batches, the target, and the weights of errors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import SchedulerMixin
from torch.nn.functional import avg_pool2d
from torch.utils.data import Dataset

from pathup import draws
from pathup.recipes import DiffusionRecipe
from pathup.training.latents import LatentCache
from pathup.training.schedules import TileOrder

_COARSEST = 4
"""Positions a side of the coarsest averages of `multiscale_error`."""


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
        scheduler: SchedulerMixin,
        rank: int,
        world: int,
    ) -> None:
        self._cache, self._spec = cache, spec
        self._timesteps = shifted_timesteps(scheduler, spec.timestep_shift)
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
        timestep = self._timesteps[torch.randint(len(self._timesteps), (1,), generator=generator)[0]]
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


def shifted_timesteps(scheduler: SchedulerMixin, shift: float) -> torch.Tensor:
    """Which timestep is trained where an even draw falls on t, (T,): the one whose noise is `shift` times t's.

    Noise is ``sigma = sqrt((1 - alpha_bar) / alpha_bar)``, beside a clean latent of weight 1. A shift of s has the
    model trained as on a schedule whose logarithm of the SNR is less by 2 ln s (Hoogeboom et al. 2023, equation 4), by
    the timesteps of its own schedule. 1 leaves every timestep where it is.
    """
    alpha_bar = scheduler.alphas_cumprod.double().cpu()
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    return torch.searchsorted(sigma, shift * sigma).clamp_max(len(sigma) - 1)


def multiscale_error(error_BCHW: torch.Tensor, weight: float) -> torch.Tensor:
    """The mean squared error of each sample, (B,), with more say for what is coarse.

    ``mean |e|^2 + weight * sum_k 2^k mean |e averaged over 2^k x 2^k|^2``, k = 1, 2, ... down to 4 x 4 averages: the
    multiscale loss of Hoogeboom et al. (2023). What an image is made of at large (where the tissue ends, its colour)
    is a vanishing share of a plain squared error, and is decided at high noise alone. Any such sum is least at the
    same prediction, the mean of all that is possible. Averages over still more would add little but noise: most of
    their error cannot be known.
    """
    total_B = error_BCHW.square().mean((1, 2, 3))
    scale = 1
    while weight and all(side % 2 == 0 and side >= 2 * _COARSEST for side in error_BCHW.shape[2:]):
        error_BCHW, scale = avg_pool2d(error_BCHW, 2), 2 * scale
        total_B = total_B + weight * scale * error_BCHW.square().mean((1, 2, 3))
    return total_B


def training_target(scheduler: SchedulerMixin, batch: Batch) -> torch.Tensor:
    """What the model is to predict, by the scheduler's `prediction_type`."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return batch.noise_BCHW
    if kind == "v_prediction":
        return scheduler.get_velocity(batch.latents_BCHW, batch.noise_BCHW, batch.timestep_B)
    return batch.latents_BCHW
