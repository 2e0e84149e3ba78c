"""Algorithm 1 taken literally: slow, plain, and independent of `pathup.sampling`.

One scheduler object a window, each stepped on its own; the windows' stepped latents are recombined by weight
before the next timestep. `pathup.sampling.tracking` is compared with this.
"""

from __future__ import annotations

import copy
from typing import Any

import torch


def window_origins(length: int, size: int, stride: int) -> list[int]:
    origins = []
    at = 0
    while at + size < length:
        origins.append(at)
        at += stride
    origins.append(length - size)
    return origins


def equation_6(size: int) -> torch.Tensor:
    weights = torch.zeros(size, size, dtype=torch.float64)
    centre = (size - 1) / 2
    for p in range(size):
        for q in range(size):
            weights[p, q] = 1 - max(abs(p - centre), abs(q - centre)) / size
    return weights


@torch.no_grad()
def algorithm_1(
    pipeline: Any,
    canvas_CHW: torch.Tensor,
    scheduler: Any,
    timesteps: torch.Tensor,
    *,
    prompt: str,
    guidance: float,
    size: int,
    overlap: int,
) -> torch.Tensor:
    _, height, width = canvas_CHW.shape
    origins = [
        (top, left)
        for top in window_origins(height, size, size - overlap)
        for left in window_origins(width, size, size - overlap)
    ]
    schedulers = [copy.deepcopy(scheduler) for _ in origins]  # independent, not aliased
    weights = equation_6(size)
    prompted, empty = pipeline.encode_prompts([prompt]), pipeline.encode_prompts([""])
    canvas = canvas_CHW.clone()
    for timestep in timesteps:
        total = torch.zeros(canvas.shape, dtype=torch.float64)
        weight_sum = torch.zeros(height, width, dtype=torch.float64)
        for own, (top, left) in zip(schedulers, origins, strict=True):
            window = canvas[None, :, top : top + size, left : left + size].clone()
            scaled = own.scale_model_input(window, timestep)
            prediction = pipeline.predict(scaled, timestep, prompted, empty, guidance)
            stepped = own.step(prediction, timestep, window, return_dict=False)[0][0]
            total[:, top : top + size, left : left + size] += stepped.double() * weights
            weight_sum[top : top + size, left : left + size] += weights
        canvas = (total / weight_sum).float()
    return canvas
