"""Patch-wise timestep tracking (section 3.3, Algorithm 1): every window at the same timestep, on one canvas."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from pathup.errors import PathUpError
from pathup.model.components import check_finite, set_steps
from pathup.sampling.canvas import CanvasFusion
from pathup.sampling.windows import WindowGrid

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline

__all__ = ["Progress", "denoise", "forwards_of", "last_timesteps", "noised"]

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; the unit of done and total is the stage's own."""


@torch.inference_mode()
def denoise(
    pipeline: PathUpPipeline,
    canvas_CHW: torch.Tensor,
    grid: WindowGrid,
    scheduler: Any,
    timesteps: torch.Tensor,
    *,
    prompt: str,
    guidance: float = 1.0,
    window_batch: int = 16,
    weighted: bool = True,
    progress: Progress | None = None,
    stage: str = "canvas",
) -> torch.Tensor:
    """Take a noised canvas through the given timesteps.

    At each timestep the U-Net sees every window once, in batches; the windows' predictions are fused on the
    canvas by their weights, and one scheduler steps the whole canvas. For samplers that are linear in
    (x_t, prediction), and for their histories, this is Algorithm 1 with its scheduler for each window
    (``tests/sampling/reference.py``), without its copies.

    Parameters
    ----------
    pipeline
        The model; only ``predict``, ``encode_prompts``, ``compute_device`` and the U-Net's precision are used.
    canvas_CHW
        x_T of the whole image: scaled by the scheduler's noise at ``timesteps[0]``. It is not changed.
    grid
        The windows.
    scheduler
        A fresh diffusers scheduler with its timesteps set. It must be deterministic: a random one would need
        noise that is a function of the position.
    timesteps
        The timesteps to take, a tail of ``scheduler.timesteps``.
    prompt
        The text for every window.
    guidance
        Classifier-free guidance; 1 is none.
    window_batch
        Windows that the U-Net sees at once. The image does not depend on it (to rounding).
    weighted
        Equation 6's weights, or hard tiles ("w/o w").
    progress, stage
        Called with windows done of all windows in all timesteps.

    Returns
    -------
    torch.Tensor
        x_0, (C, H, W) float32 on the CPU.

    Raises
    ------
    PathUpError
        `window_batch` is less than 1, or the result is not finite.
    """
    if window_batch < 1:
        raise PathUpError(f"the window batch is {window_batch}, but at least 1 was needed")
    canvas_1CHW = canvas_CHW.float()[None]
    fusion = CanvasFusion(grid, canvas_CHW.shape[0], weighted=weighted)
    del canvas_CHW  # large: not to be held through all steps
    device = pipeline.compute_device
    embeddings = pipeline.encode_prompts([prompt, ""]).to(device)
    total = len(grid) * len(timesteps)
    for step, timestep in enumerate(timesteps):
        scaled_CHW = scheduler.scale_model_input(canvas_1CHW, timestep)[0]
        fusion.clear()
        for batch in grid.batches(window_batch):
            windows = torch.stack([scaled_CHW[:, rows, columns] for rows, columns in (grid[i] for i in batch)])
            prompted = embeddings[:1].expand(len(batch), -1, -1)
            empty = embeddings[1:].expand(len(batch), -1, -1)
            prediction = pipeline.predict(windows.to(device), timestep.to(device), prompted, empty, guidance).float()
            for index, values_CHW in zip(batch, prediction.cpu(), strict=True):
                fusion.add(index, values_CHW)
            if progress is not None:
                progress(stage, step * len(grid) + batch[-1] + 1, total)
        canvas_1CHW = scheduler.step(fusion.result()[None], timestep, canvas_1CHW, return_dict=False)[0]
    check_finite(canvas_1CHW, pipeline.unet.dtype)
    return canvas_1CHW[0]


def forwards_of(windows: int, steps: int, guidance: float) -> int:
    """U-Net forwards: one window once through the U-Net; guidance other than 1 takes two."""
    return windows * steps * (1 if guidance == 1 else 2)


def last_timesteps(scheduler: Any, steps: int, strength: float) -> torch.Tensor:
    """Set a scheduler to `steps` timesteps and return the last ``strength`` share of them, at least one.

    A multistep scheduler is told where its run begins.
    """
    set_steps(scheduler, steps)
    timesteps: torch.Tensor = scheduler.timesteps
    kept = min(max(round(len(timesteps) * strength), 1), len(timesteps))
    begin = (len(timesteps) - kept) // scheduler.order * scheduler.order  # Heun's come in pairs
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return timesteps[begin:]


def noised(scheduler: Any, latents_CHW: torch.Tensor, noise_CHW: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """x_t of clean latents at a timestep (equation 1, the standard forward process), (C, H, W)."""
    return scheduler.add_noise(latents_CHW[None], noise_CHW[None], timestep.reshape(1))[0]
