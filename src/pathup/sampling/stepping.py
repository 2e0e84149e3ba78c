"""One scheduler for a whole canvas, stepped band by band.

diffusers' samplers treat every position alike and keep what they remember (earlier predictions, an earlier sample) in
tensors of the sample's shape. So a canvas may be stepped in bands of rows, as long as each band brings along its own
memories. What a sampler counts does not depend on the sample: a sample of a few positions, stepped beside the
canvas, always knows it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["BandStepper"]

_STAND_IN = (1, 1, 3, 5)
"""Shape of the sample that is stepped beside the canvas; no tensor of a scheduler's own has it."""


class BandStepper:
    """Steps a canvas with any deterministic diffusers scheduler whose steps treat each position by itself.

    A band's state is x_t and, below it along the channels, what the scheduler remembers of this band.

    Parameters
    ----------
    scheduler
        With its timesteps set, and its begin index where it begins in the middle. It is not changed.
    timesteps
        The timesteps to take.
    channels
        C, of the latent.
    """

    def __init__(self, scheduler: Any, timesteps: torch.Tensor, channels: int) -> None:
        self.timesteps, self.channels = timesteps, channels
        self._scheduler = copy.deepcopy(scheduler)
        self._stand_in = torch.zeros(_STAND_IN)
        self._step = 0

    @property
    def step(self) -> int:
        """Steps done."""
        return self._step

    @property
    def memories(self) -> int:
        """Tensors that the scheduler remembers at this point; a band's state has ``(1 + memories) C`` channels."""
        return sum(1 for _ in _memories(self._scheduler))

    @property
    def timestep(self) -> torch.Tensor:
        """The timestep of the next step."""
        return self.timesteps[self._step]

    def scaled(self, sample_BCHW: torch.Tensor) -> torch.Tensor:
        """What the U-Net is given for x_t."""
        return copy.copy(self._scheduler).scale_model_input(sample_BCHW, self.timestep)

    def next_band(self, prediction_CHW: torch.Tensor, state_CHW: torch.Tensor) -> torch.Tensor:
        """A band's next state, of its next sample and memories, from the U-Net's fused prediction for it."""
        scheduler = copy.deepcopy(self._scheduler)
        parts = state_CHW.split(self.channels)
        for (holder, key), memory in zip(list(_memories(scheduler)), parts[1:], strict=True):
            holder[key] = memory[None]
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.is_scale_input_called = True  # it was, by `scaled`, on another copy
        sample = scheduler.step(prediction_CHW[None], self.timestep, parts[0][None], return_dict=False)[0]
        kept = [holder[key] for holder, key in _memories(scheduler, tuple(sample.shape))]
        return torch.cat([sample[0], *(memory[0] for memory in kept)])

    def after(self) -> BandStepper:
        """A copy that has taken the step to come."""
        ahead = copy.deepcopy(self)
        ahead.advance()
        return ahead

    def renoised(self, clean_CHW: torch.Tensor, noise_CHW: torch.Tensor) -> torch.Tensor:
        """x_t of clean latents as it is *after* the last step taken (equation 1); clean ones after all steps."""
        if self._step == len(self.timesteps):
            return clean_CHW
        at = self.timestep.reshape(1)
        return copy.copy(self._scheduler).add_noise(clean_CHW[None], noise_CHW[None], at)[0]

    def advance(self) -> None:
        """The whole canvas has taken this step: go on to the next."""
        self._scheduler.scale_model_input(self._stand_in, self.timestep)
        prediction = torch.zeros_like(self._stand_in)
        self._stand_in = self._scheduler.step(prediction, self.timestep, self._stand_in, return_dict=False)[0]
        self._step += 1


def _memories(scheduler: Any, shape: tuple[int, ...] = _STAND_IN) -> Iterator[tuple[Any, Any]]:
    """Where a scheduler holds tensors of the sample's shape: (holder, key), in an order that is always the same."""
    attributes = vars(scheduler)
    for name in sorted(attributes):
        value = attributes[name]
        if _is_memory(value, shape):
            yield attributes, name
        elif isinstance(value, list):
            yield from ((value, place) for place, item in enumerate(value) if _is_memory(item, shape))


def _is_memory(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, torch.Tensor) and tuple(value.shape) == shape
