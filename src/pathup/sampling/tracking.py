"""Patch-wise timestep tracking (section 3.3, Algorithm 1): every window at the same timestep, on one canvas."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from pathup.errors import PathUpError
from pathup.model.components import check_finite
from pathup.model.schedulers import set_steps
from pathup.processes import ONE_PROCESS, Processes
from pathup.recipes import SamplingRecipe
from pathup.sampling.canvas import Canvas
from pathup.sampling.conditions import Conditions
from pathup.sampling.device import Returning, returned, sent
from pathup.sampling.fusion import BandFusion, window_bands
from pathup.sampling.schedule import WindowSchedule
from pathup.sampling.states import MemoryStates, States
from pathup.sampling.stepping import BandStepper
from pathup.sampling.windows import Weighting, Windows

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline

__all__ = [
    "Progress",
    "all_timesteps",
    "denoise",
    "denoise_states",
    "forwards_of",
    "last_timesteps",
    "noised",
    "window_batches",
]

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; the unit of done and total is the stage's own."""


def denoise(
    pipeline: PathUpPipeline,
    canvas_CHW: torch.Tensor,
    schedule: WindowSchedule,
    scheduler: Any,
    timesteps: torch.Tensor,
    *,
    conditions: Conditions,
    **settings: Any,
) -> torch.Tensor:
    """Take a noised canvas in memory through the given timesteps.

    Parameters
    ----------
    canvas_CHW
        x_T of the whole image: scaled by the scheduler's noise at ``timesteps[0]``. It is not changed.
    pipeline, schedule, scheduler, timesteps, conditions, settings
        As in `denoise_states`.

    Returns
    -------
    torch.Tensor
        x_0, (C, H, W) float32 on the CPU.
    """
    states = MemoryStates((schedule.height, schedule.width))
    states.begin(0, canvas_CHW.shape[0])[:] = canvas_CHW
    states.commit(0)
    del canvas_CHW  # large: not to be held through all steps
    denoise_states(pipeline, states, schedule, scheduler, timesteps, conditions=conditions, **settings)
    return states.read()


@torch.inference_mode()
def denoise_states(
    pipeline: PathUpPipeline,
    states: States,
    schedule: WindowSchedule,
    scheduler: Any,
    timesteps: torch.Tensor,
    *,
    conditions: Conditions,
    guidance: float = 1.0,
    window_batch: int = 16,
    weighting: Weighting = "hann",
    processes: Processes = ONE_PROCESS,
    progress: Progress | None = None,
    stage: str = "canvas",
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Take a noised canvas through the given timesteps, from the latest state there is.

    At each timestep the U-Net sees the windows that the schedule gives, in batches; their predictions are fused on the
    canvas by their weights, and one scheduler steps it, band by band from the top. For samplers that are
    linear in (x_t, prediction), and for their histories, this is Algorithm 1 with its scheduler for each window
    (``tests/sampling/reference.py``), without its copies.

    Parameters
    ----------
    pipeline
        The model; only ``predict``, ``compute_device`` and the U-Net's precision are used.
    states
        The canvas; its latest state is where to begin.
    schedule
        The windows of each step.
    scheduler
        A fresh diffusers scheduler with its timesteps set. It must be deterministic: a random one would need
        noise that is a function of the position.
    timesteps
        The timesteps to take, a tail of ``scheduler.timesteps``; as many as the schedule has steps.
    conditions
        What each window is told, and which positions are glass.
    guidance
        Classifier-free guidance; 1 is none.
    window_batch
        Windows that the U-Net sees at once, in each process. The image does not depend on it (to rounding).
    weighting
        How overlapping windows blend.
    processes
        Those that share the windows; the main one writes states that all can read.
    progress, stage
        Called with windows done of all windows in all timesteps.
    on_step
        Called with the steps done, after each, in the main process.

    Raises
    ------
    PathUpError
        `window_batch` is less than 1, a prediction is not finite, the disk is full.
    """
    if window_batch < 1:
        raise PathUpError(f"the window batch is {window_batch}, but at least 1 was needed")
    begun = states.latest
    if begun is None or len(schedule) != len(timesteps):
        raise ValueError("a noised canvas and a schedule of as many steps as timesteps are needed")
    stepper = BandStepper(scheduler, timesteps, pipeline.latent_channels)
    device, precision = pipeline.compute_device, pipeline.unet.dtype  # once: diffusers looks through all parts for them
    counts = [conditions.seen(schedule[step]) for step in range(len(timesteps))]
    for _ in range(begun):
        stepper.advance()
    done, total = sum(counts[:begun]), sum(counts)
    for step in range(begun, len(timesteps)):
        windows, state = schedule[step], states.read()
        after = _Successor(states, stepper, conditions) if processes.is_main else None
        fusion = BandFusion(windows, stepper.channels, weighting)
        for band in window_bands(windows):
            batches = window_batches(windows, conditions.needed(windows, band.indices), window_batch * processes.count)
            read = _Rows(state[: stepper.channels, band.rows, :], band.rows.start)
            for batch, values in _predicted(
                pipeline, device, read, windows, batches, stepper, conditions, guidance, processes
            ):
                for index, values_CHW in zip(batch, values, strict=False):  # repeated ones, at the end, are left out
                    if after is not None:
                        fusion.add(index, values_CHW)
                done += len(batch)
                if progress is not None:
                    progress(stage, done, total)
            if after is not None:
                after.write(fusion.take(band.done), state, precision)
        if after is not None:
            states.commit(step + 1)
        processes.wait()
        stepper.advance()
        if on_step is not None and processes.is_main:
            on_step(step + 1)


class _Successor:
    """The state after the one that is read: written band by band, in the main process."""

    def __init__(self, states: States, stepper: BandStepper, conditions: Conditions) -> None:
        self._stepper, self._conditions = stepper, conditions
        self._ahead = ahead = stepper.after()
        self._last = ahead.step == len(ahead.timesteps)
        channels = stepper.channels * (1 if self._last else 1 + ahead.memories)
        self._canvas: Canvas = states.begin(ahead.step, channels)
        self._top = 0

    def write(self, fused_CHW: torch.Tensor, state: Canvas, dtype: torch.dtype) -> None:
        rows = slice(self._top, self._top + fused_CHW.shape[1])
        self._top = rows.stop
        check_finite(fused_CHW, dtype)
        following = self._stepper.next_band(fused_CHW, state[:, rows, :])
        self._conditions.keep_glass(following[: self._stepper.channels], rows, self._ahead)
        self._canvas[:, rows, :] = following[: self._canvas.shape[0]]


@dataclass(frozen=True)
class _Rows:
    """Some rows of a canvas, read at once: a file is opened once for a row of windows, not for each."""

    values_CHW: torch.Tensor
    top: int

    def of(self, rows: slice, columns: slice) -> torch.Tensor:
        return self.values_CHW[:, rows.start - self.top : rows.stop - self.top, columns]


def window_batches(windows: Windows, indices: Iterable[int], size: int) -> Iterator[list[int]]:
    """Windows of one shape together, at most `size`: in as few batches as do, and those as alike as they can be."""
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in indices:
        rows, columns = windows[index]
        by_shape[rows.stop - rows.start, columns.stop - columns.start].append(index)
    for same in by_shape.values():
        count = -(-len(same) // size)
        edges = [part * len(same) // count for part in range(count + 1)]
        yield from (same[first:last] for first, last in pairwise(edges))


def _predicted(
    pipeline: PathUpPipeline,
    device: torch.device,
    read: _Rows,
    windows: Windows,
    batches: Iterable[list[int]],
    stepper: BandStepper,
    conditions: Conditions,
    guidance: float,
    processes: Processes,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Each batch and its windows' predictions, on the CPU; the device computes one batch while the last one returns."""
    timestep = stepper.timestep.to(device)
    waiting: tuple[list[int], Returning] | None = None
    for batch in batches:
        mine = [windows[index] for index in processes.share(batch)]
        samples = stepper.scaled(torch.stack([read.of(*window) for window in mine]))
        prompted, empty = conditions.embeddings(mine)
        prediction = pipeline.predict(sent(samples, device), timestep, prompted, empty, guidance)
        started = returned(processes.gathered(prediction.float()))
        if waiting is not None:
            yield waiting[0], waiting[1].wait()
        waiting = batch, started
    if waiting is not None:
        yield waiting[0], waiting[1].wait()


def forwards_of(windows: int, guidance: float) -> int:
    """U-Net forwards: one window once through the U-Net; guidance other than 1 takes two."""
    return windows * (1 if guidance == 1 else 2)


def all_timesteps(scheduler: Any, settings: SamplingRecipe) -> torch.Tensor:
    """Set a scheduler to what an image that is drawn from pure noise takes, and return its timesteps."""
    set_steps(scheduler, settings.steps, settings.step_power)
    timesteps: torch.Tensor = scheduler.timesteps
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return timesteps


def last_timesteps(scheduler: Any, steps: int, strength: float) -> torch.Tensor:
    """Set a scheduler to `steps` evenly spread timesteps; return the last ``strength`` share of them, at least one.

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
