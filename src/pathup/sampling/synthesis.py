"""One large image: overview, canvas, denoised windows."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from pathup.errors import PathUpError
from pathup.processes import ONE_PROCESS, Processes
from pathup.recipes import SamplingRecipe
from pathup.sampling.canvas import Canvas, canvas_noise, row_slices
from pathup.sampling.glass import Glass, glass_latent
from pathup.sampling.layouts import Layout, plain_layout
from pathup.sampling.overview import (
    ENLARGE_FILTER,
    EnlargedOverview,
    check_reference_level,
    draw_overview,
    overview_bands,
    sampling_levels,
)
from pathup.sampling.plan import Plan
from pathup.sampling.settings import check_size, resolve_settings, resolve_size
from pathup.sampling.states import MemoryStates, States
from pathup.sampling.tissue import TissueDecoder, TissueEncoder
from pathup.sampling.tracking import Progress, denoise_states, noised
from pathup.sampling.workspace import Workspace

if TYPE_CHECKING:
    from pathup.model.pipeline import PathUpPipeline

__all__ = ["Preview", "Synthesis", "plan_image", "synthesise"]


class Preview(Protocol):
    """Is shown an image as it grows."""

    def overview(self, image: np.ndarray) -> None:
        """The overview, uint8 RGB (h, w, 3)."""
        ...

    def canvas(self, latents: Canvas) -> None:
        """The canvas after a step; its first C channels are the sample."""
        ...


@dataclass(frozen=True)
class Synthesis:
    """A large image before it is decoded, and how it came about.

    Attributes
    ----------
    plan
        What was drawn.
    latents_CHW
        The canvas, x_0: float32, a tensor on the CPU or a file of the workspace.
    overview
        The reference overview, uint8 RGB (h, w, 3): drawn, or the one given. A drawn one may reach beyond the image
        at the bottom and the right, to a whole number of latent positions of its own.
    glass
        The latent of glass; None where the layout has none.
    seconds
        Wall time by stage: ``overview``, ``encode``, ``canvas``.
    """

    plan: Plan
    latents_CHW: Canvas
    overview: np.ndarray
    glass: Glass | None
    seconds: dict[str, float]

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.plan.size_px

    @property
    def mpp(self) -> float:
        """Micrometres per pixel."""
        return self.plan.levels.mpp

    @property
    def settings(self) -> SamplingRecipe:
        """The sampling values, resolved."""
        return self.plan.settings

    @property
    def windows(self) -> int:
        """Windows of the canvas's last step."""
        return len(self.plan.canvas[len(self.plan.canvas) - 1])

    @property
    def forwards(self) -> int:
        """U-Net forwards: one window once through the U-Net; guidance takes two."""
        return self.plan.forwards_all

    @property
    def overview_is_drawn(self) -> bool:
        """False when a reference image was given."""
        return self.plan.draws_overview

    def decoder(self, pipeline: PathUpPipeline) -> TissueDecoder:
        """What decodes the canvas in bands."""
        return TissueDecoder(pipeline, self.latents_CHW, self.plan.places)

    def bands(self, pipeline: PathUpPipeline, *, progress: Progress | None = None) -> Iterator[np.ndarray]:
        """The decoded image as uint8 RGB row bands, (rows, W, 3)."""
        return self.decoder(pipeline).bands(progress)

    def pixels(self, pipeline: PathUpPipeline) -> np.ndarray:
        """The decoded image, uint8 RGB (H, W, 3)."""
        return np.concatenate(list(self.bands(pipeline)))

    def provenance(self) -> dict[str, Any]:
        """What is needed to draw this image again with the same model, reference and layout, as JSON values."""
        plan = self.plan
        given = {} if plan.draws_overview else {"overview_sha256": hashlib.sha256(self.overview.tobytes()).hexdigest()}
        prompts = {label: plan.pipeline.prompt(label, plan.levels.patch) for label in plan.layout.labels}
        laid_out = {} if len(prompts) == 1 and not plan.layout.has_glass else {
            "layout_sha256": plan.layout.digest,
            "layout_shares": {label: round(share, 4) for label, share in plan.layout.class_areas().items()},
        }  # fmt: skip
        return {
            "label": plan.label,
            "prompt": prompts[plan.label] if plan.label in prompts else " | ".join(prompts.values()),
            "seed": plan.seed,
            "index": plan.index,
            "width_px": self.size_px[1],
            "height_px": self.size_px[0],
            "mpp": self.mpp,
            "pixels_per_latent": plan.pipeline.factor,
            "overview": "drawn" if plan.draws_overview else "given",
            **given,
            **laid_out,
            "enlarge_filter": ENLARGE_FILTER,
            "sampling": self.settings.model_dump(mode="json", exclude={"size_px"}),
            "window_lines": plan.window_lines(),
            "unet_forwards": self.forwards,
        }


def plan_image(
    pipeline: PathUpPipeline,
    label: str,
    *,
    size_px: tuple[int, int] | None = None,
    seed: int = 0,
    index: int = 0,
    reference: np.ndarray | None = None,
    layout: Layout | None = None,
    **overrides: Any,
) -> Plan:
    """What `synthesise` would draw with the same arguments, everything checked.

    Raises
    ------
    PathUpError
        Unknown label, a size or value that cannot be sampled, a reference of another shape.
    """
    settings = resolve_settings(pipeline, **overrides)
    levels = sampling_levels(pipeline)
    check_reference_level(levels, has_reference=reference is not None)
    size_px = resolve_size(size_px, settings, reference, levels)
    check_size(pipeline, size_px, settings)
    if layout is None:
        pipeline.prompt(label, levels.patch)  # an unknown label is named here
        layout = plain_layout(label, size_px)
    if layout.size_px != size_px:
        raise PathUpError(
            f"the layout is of {layout.size_px[1]} x {layout.size_px[0]} px, but the image of {size_px[1]} x "
            f"{size_px[0]}; "
            "ask for an image of its size"
        )
    return Plan(pipeline, settings, layout, size_px, seed, label, index, draws_overview=reference is None)


def synthesise(
    pipeline: PathUpPipeline,
    label: str,
    *,
    size_px: tuple[int, int] | None = None,
    seed: int = 0,
    index: int = 0,
    reference: np.ndarray | None = None,
    layout: Layout | None = None,
    workspace: Workspace | None = None,
    processes: Processes = ONE_PROCESS,
    progress: Progress | None = None,
    preview: Preview | None = None,
    **overrides: Any,
) -> Synthesis:
    """Draw one large image (Algorithm 1), up to decoding.

    The overview is drawn from noise at the coarsest level (or given as `reference`), enlarged, encoded tile by
    tile, noised up to `strength`, and denoised window by window at the finest level.

    Parameters
    ----------
    pipeline
        The model.
    label
        The class; with a layout, that of everything it leaves out.
    size_px
        Height and width; the model's own ``size_px`` when unset (with a reference: its size, enlarged).
    seed, index
        Image `index` of a label is a function of (seed, label, index), of the layout and of the settings alone.
    reference
        A uint8 RGB image (h, w, 3) of the size's aspect ratio that takes the place of the drawn overview.
    layout
        Which class lies where, of this size; `label` everywhere when unset.
    workspace
        The folder that keeps what is done, from which a killed run goes on; all is in memory when unset.
    processes
        Those that share the windows; several need a workspace.
    progress
        Called as ``progress(stage, done, total)`` with the stages ``overview``, ``encode`` and ``canvas``.
    preview
        Shown the overview, and the canvas after each step.
    overrides
        Values of `SamplingRecipe` in place of the model's own: steps, guidance, strength, scheduler, windows,
        window_weight, overlap_latent, window_batch, ... `strength` is the share of the schedule that the enlarged
        overview is taken back.

    Raises
    ------
    PathUpError
        Unknown label, a size or value that cannot be sampled, a reference of another shape, a full disk.
    """
    plan = plan_image(
        pipeline, label, size_px=size_px, seed=seed, index=index, reference=reference, layout=layout, **overrides
    )
    seconds: dict[str, float] = {}
    overview = reference
    if overview is None:
        with _timed(seconds, "overview"):
            overview = _overview(plan, workspace, processes, progress)
    if preview is not None and processes.is_main:
        preview.overview(overview)
    with _timed(seconds, "encode"):
        states, glass = _begun(plan, EnlargedOverview(overview, plan.enlarged_px), workspace, processes, progress)
    with _timed(seconds, "canvas"):
        scheduler, timesteps = plan.canvas_steps()
        denoise_states(
            pipeline,
            states,
            plan.canvas,
            scheduler,
            timesteps,
            conditions=plan.conditions(glass),
            guidance=plan.settings.guidance,
            window_batch=plan.settings.window_batch,
            weighting=plan.settings.window_weight,
            processes=processes,
            progress=progress,
            on_step=None if preview is None else lambda _: preview.canvas(states.read()),
        )
    return Synthesis(plan, states.read(), overview, glass, seconds)


def _overview(plan: Plan, workspace: Workspace | None, processes: Processes, progress: Progress | None) -> np.ndarray:
    """The overview: as it lies in the workspace, or drawn."""
    image = None if workspace is None else workspace.overview()
    if image is not None:
        return image
    schedule = plan.overview
    if schedule is None:
        raise ValueError("this plan draws no overview")
    states = None if workspace is None else workspace.states("overview", (schedule.height, schedule.width))
    latents = draw_overview(
        plan.pipeline,
        plan.layout,
        size_px=plan.overview_px,
        shrink=plan.levels.shrink,
        seed=plan.seed,
        keys=(plan.label, plan.index),
        settings=plan.settings,
        states=states,
        processes=processes,
        progress=progress,
    )
    if workspace is None:
        bands = overview_bands(plan.pipeline, latents, plan.overview_px, plan.layout, plan.levels.shrink)
        return np.concatenate(list(bands))
    if processes.is_main:
        bands = overview_bands(plan.pipeline, latents, plan.overview_px, plan.layout, plan.levels.shrink)
        workspace.keep_overview(bands, plan.overview_px)
    processes.wait()
    image = workspace.overview()
    if image is None:
        raise PathUpError(f"the overview is not in {workspace.folder}; run the same command with --resume")
    return image


def _begun(
    plan: Plan,
    enlarged: EnlargedOverview,
    workspace: Workspace | None,
    processes: Processes,
    progress: Progress | None,
) -> tuple[States, Glass | None]:
    """The noised canvas that denoising begins with, or what it has come to; and the latent of glass."""
    channels, height, width = plan.shape
    states: States
    states = MemoryStates((height, width)) if workspace is None else workspace.states("canvas", (height, width))
    encoder, glass = TissueEncoder(plan.pipeline, enlarged, plan.places), None
    if plan.layout.has_glass:
        areas = plan.layout.class_areas()
        latent_C = glass_latent(plan.pipeline, encoder.statistics(max(areas, key=lambda label: areas[label])))
        glass = Glass(latent_C, plan.shape, plan.seed, *plan.keys)
    if states.latest is None and processes.is_main:
        _encode(plan, encoder, states.begin(0, channels), glass, progress)
        states.commit(0)
    processes.wait()
    return states, glass


def _encode(plan: Plan, encoder: TissueEncoder, start: Canvas, glass: Glass | None, progress: Progress | None) -> None:
    """Fill the canvas with the encoded overview and the noise that denoising begins with (equation 1)."""
    channels, height, width = plan.shape
    every = slice(0, channels)
    if not plan.places.is_plain:
        for rows in row_slices(height):
            start[every, rows, slice(0, width)] = torch.zeros(channels, rows.stop - rows.start, width)

    def take(rows: slice, columns: slice, latents: torch.Tensor) -> None:
        start[every, rows, columns] = latents if plan.places.is_plain else start[every, rows, columns] + latents

    encoder.encode(take, progress)
    scheduler, timesteps = plan.canvas_steps()
    conditions = None if glass is None else plan.conditions(glass)
    for rows in row_slices(height):
        clean = start[every, rows, slice(0, width)]
        if conditions is not None and glass is not None:
            mask_HW = conditions.mask(rows, width)
            clean = torch.where(mask_HW, glass.latent_C[:, None, None], clean)
        noise = canvas_noise(plan.shape, plan.seed, *plan.keys, rows=rows)
        start[every, rows, slice(0, width)] = noised(scheduler, clean, noise, timesteps[0])


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
