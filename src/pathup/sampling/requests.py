"""What ``pathup generate`` is asked for, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pathup import __version__, storage
from pathup.errors import PathUpError
from pathup.model.pipeline import PathUpPipeline
from pathup.processes import Processes
from pathup.recipes import SamplingRecipe
from pathup.sampling.layouts import Layout, plain_layout
from pathup.sampling.plan import Plan

__all__ = ["ALL", "GenerateReport", "GenerateRequest", "Run"]

ALL = "all"
"""The label that stands for every class."""


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """The verb's arguments; ``None`` means the model's own value.

    `count` is a class's; `size` is ``'WxH'`` or one number; `level` asks for single tiles of that level
    instead of large images, and `mpp` for a scale of theirs that is not the level's own; `format` is that of large
    images in a folder; `index` asks for that one image of a class, of the `count` that were asked for together (a
    count that does not reach it stands for any longer run); `shard_size` asks for single tiles in WebDataset shards of
    at most about so many; `compiled` has the U-Net compiled first. With a `layout`, `label` is the class of what it
    leaves out, or ``glass``.
    """

    model: Path
    out: Path
    label: str
    size: str | None = None
    seed: int = 0
    count: int = 1
    index: int | None = None
    steps: int | None = None
    step_power: float | None = None
    guidance: float | None = None
    strength: float | None = None
    scheduler: str | None = None
    reference: Path | None = None
    layout: Path | None = None
    layout_unit: str = "px"
    level: str | None = None
    mpp: float | None = None
    windows: str | None = None
    window_weight: str | None = None
    overlap: int | None = None
    window_batch: int | None = None
    shard_size: int | None = None
    format: str = "png"
    preview: Path | None = None
    precision: str = "fp32"
    compiled: bool = False
    device: str = "auto"
    threads: int | None = None
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise PathUpError(f"count is {self.count}, but at least 1 was needed")
        if self.index is not None and (self.index < 0 or self.label == ALL):
            raise PathUpError(
                f"index {self.index} of label '{self.label}' was asked for, but the number of one image of one class, "
                "from 0, was needed"
            )
        if self.shard_size is not None and self.shard_size < 1:
            raise PathUpError(f"shard size is {self.shard_size}, but at least 1 tile a shard was needed")
        if self.shard_size is not None and self.level is None:
            raise PathUpError("--shard-size packs single tiles: --level was needed too")
        if self.compiled and self.level is None:
            raise PathUpError("--compile is for single tiles, whose batches have one shape: --level was needed too")
        if self.threads is not None and self.threads < 1:
            raise PathUpError(f"threads is {self.threads}, but at least 1 was needed")
        if self.level is not None:
            for name in ("size", "reference", "layout", "strength", "windows", "window_weight", "overlap", "preview"):
                if getattr(self, name) is not None:
                    option = name.replace("_", "-")
                    raise PathUpError(f"--{option} is for large images, not for the single tiles that --level asks for")
        elif self.mpp is not None:
            raise PathUpError(
                "--mpp is for single tiles: --level was needed too; a large image has the scale of the patch level"
            )
        if self.layout_unit not in ("px", "um"):
            raise PathUpError(f"layout unit '{self.layout_unit}' was asked for, but px or um (micrometres) was needed")
        if self.layout is not None and self.label == ALL:
            raise PathUpError(
                "--label all draws every class, but with --layout the label is that of what the layout leaves out"
            )


@dataclass
class GenerateReport:
    """What a run made and what it cost.

    `forwards` counts U-Net forwards (one window once through the U-Net; guidance takes two), `coverage` how often the
    U-Net saw
    a position of a large image's canvas, `seconds` holds wall time by stage, `kept` the images that a resumed run
    found complete, `images` how many there are now.
    """

    files: list[Path] = field(default_factory=list)
    images: int = 0
    kept: int = 0
    size_px: tuple[int, int] = (0, 0)
    mpp: float = 0.0
    forwards: int = 0
    coverage: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    device: str = "cpu"
    is_main: bool = True

    def add_seconds(self, stages: dict[str, float]) -> None:
        """Add a stage's wall time to what it took before."""
        for stage, seconds in stages.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass(frozen=True)
class Run:
    """A request after everything that can be wrong with it was checked."""

    request: GenerateRequest
    pipeline: PathUpPipeline
    labels: list[str]
    settings: SamplingRecipe
    size_px: tuple[int, int]
    reference: np.ndarray | None
    layout: Layout | None
    model_sha256: str
    processes: Processes

    def made_by(self) -> dict[str, Any]:
        """First entries of the provenance."""
        made = {"made_by": "pathup generate", "version": __version__, "model_sha256": self.model_sha256}
        return {**made, "precision": self.request.precision}

    def plan(self, label: str, index: int) -> Plan:
        """What a large image takes."""
        layout = self.layout or plain_layout(label, self.size_px)
        drawn = self.reference is None
        return Plan(self.pipeline, self.settings, layout, self.size_px, self.request.seed, label, index, drawn)

    @cached_property
    def reference_sha256(self) -> str | None:
        """Hash of the reference image's file; None where there is none."""
        return storage.sha256_file(self.request.reference) if self.request.reference else None
