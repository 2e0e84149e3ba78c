"""What ``pathup generate`` does: one large image, a folder of them, or a folder of single tiles."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from pathup import __version__, storage
from pathup.errors import PathUpError
from pathup.memory import keep_freed_memory
from pathup.model.pipeline import PathUpPipeline, load_pipeline
from pathup.recipes import SamplingRecipe
from pathup.sampling.device import choose_device, clear_memory_errors, peak_memory_bytes
from pathup.sampling.outputs import (
    Format,
    ImageFile,
    as_band,
    check_format,
    check_pixels,
    format_of,
    is_complete,
    parse_size,
    write_image,
    write_metadata,
)
from pathup.sampling.overview import sampling_levels
from pathup.sampling.synthesis import check_size, resolve_settings, resolve_size, synthesise
from pathup.sampling.tracking import Progress, forwards_of, last_timesteps
from pathup.slides.images import read_image
from pathup.slides.writer import check_target

__all__ = ["GenerateReport", "GenerateRequest", "generate", "model_sha256"]

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """The verb's arguments; ``None`` means the model's own value.

    `count` is a class's; `size` is ``'WxH'`` or one number; `level` asks for single tiles of that level
    instead of large images; `format` is that of large images in a folder.
    """

    model: Path
    out: Path
    label: str
    size: str | None = None
    seed: int = 0
    count: int = 1
    steps: int | None = None
    guidance: float | None = None
    strength: float | None = None
    scheduler: str | None = None
    reference: Path | None = None
    level: str | None = None
    window_batch: int | None = None
    weighted: bool | None = None
    format: str = "png"
    device: str = "auto"
    threads: int | None = None
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise PathUpError(f"count is {self.count}, but at least 1 was needed")
        if self.threads is not None and self.threads < 1:
            raise PathUpError(f"threads is {self.threads}, but at least 1 was needed")
        if self.level is not None:
            for name in ("size", "reference", "strength"):
                if getattr(self, name) is not None:
                    raise PathUpError(f"--{name} is for large images, not for the single tiles that --level asks for")


@dataclass
class GenerateReport:
    """What a run made and what it cost.

    `forwards` counts U-Net forwards (one window once through the U-Net; guidance takes two), `seconds` holds
    wall time by stage, `kept` the images that a resumed run found complete.
    """

    files: list[Path] = field(default_factory=list)
    kept: int = 0
    size_px: tuple[int, int] = (0, 0)
    mpp: float = 0.0
    forwards: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    device: str = "cpu"

    def add_seconds(self, stages: dict[str, float]) -> None:
        """Add a stage's wall time to what it took before."""
        for stage, seconds in stages.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass(frozen=True)
class _Run:
    """A request after everything that can be wrong with it was checked."""

    request: GenerateRequest
    pipeline: PathUpPipeline
    labels: list[str]
    settings: SamplingRecipe
    size_px: tuple[int, int]
    reference: np.ndarray | None
    model_sha256: str

    @property
    def overrides(self) -> dict[str, Any]:
        names = ("scheduler", "steps", "guidance", "strength", "window_batch", "weighted")
        return {name: getattr(self.settings, name) for name in names}

    def made_by(self) -> dict[str, Any]:
        return {"made_by": "pathup generate", "version": __version__, "model_sha256": self.model_sha256}


def generate(request: GenerateRequest, *, progress: Progress | None = None) -> GenerateReport:
    """Carry out a request.

    Parameters
    ----------
    request
        What to make.
    progress
        Called as ``progress(stage, done, total)``; stages are ``images`` and those of `synthesise` and
        `decode_bands`.

    Raises
    ------
    PathUpError
        Anything wrong with the request, the model or the output; nothing half-written is left.
    """
    started = time.perf_counter()
    kind = format_of(request.out)
    if kind is not None:
        if request.level is not None or request.count > 1 or request.label == ALL:
            raise PathUpError(
                f"'{request.out.name}' is one file, but several images were asked for; "
                "name a folder (without an ending), or ask for one label and --count 1"
            )
        check_target(request.out, overwrite=request.overwrite)
    with clear_memory_errors():
        run = _prepared(request, kind)
        report = GenerateReport(size_px=run.size_px, device=str(run.pipeline.unet.device))
        if request.level is not None:
            _make_tiles(run, request.level, report, progress)
        elif kind is not None:
            report.mpp = sampling_levels(run.pipeline).mpp
            target = ImageFile(request.out, kind, run.size_px, report.mpp)
            _make_large(run, request.label, 0, target, report, progress)
        else:
            _make_folder(run, check_format(request.format), report, progress)
    report.seconds["total"] = time.perf_counter() - started
    report.peak_memory_bytes = peak_memory_bytes(run.pipeline.unet.device)
    return report


def model_sha256(folder: Path) -> str:
    """One hash of a model: of the names and contents of its index and its components' files."""
    index = storage.read_json(folder / "model_index.json")
    parts = [folder / name for name in sorted(index) if (folder / name).is_dir()]
    files = [folder / "model_index.json"]
    files += [path for part in parts for path in sorted(part.iterdir()) if path.is_file()]
    lines = [f"{storage.sha256_file(path)} {path.relative_to(folder).as_posix()}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _prepared(request: GenerateRequest, kind: Format | None) -> _Run:
    """Load the model and check everything, so that nothing is written before a mistake is found."""
    size = parse_size(request.size) if request.size else None
    reference = read_image(request.reference) if request.reference else None
    if kind is None:
        check_format(request.format)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    device = choose_device(request.device)
    if device.type == "cpu":
        keep_freed_memory()
    diffusers.utils.logging.disable_progress_bar()  # our own bars are about images
    transformers.utils.logging.disable_progress_bar()
    pipeline = load_pipeline(request.model, device=device)
    labels = list(pipeline.labels) if request.label == ALL else [request.label]
    settings = resolve_settings(
        pipeline,
        steps=request.steps,
        guidance=request.guidance,
        strength=request.strength,
        scheduler=request.scheduler,
        window_batch=request.window_batch,
        weighted=request.weighted,
    )
    levels = sampling_levels(pipeline)
    pipeline.prompt(labels[0], request.level or levels.patch)
    if request.level is not None:
        size_px = (int(pipeline.config.tile_px),) * 2
    else:
        size_px = resolve_size(size, settings, reference, levels)
        check_size(pipeline, size_px)
        check_pixels(kind or check_format(request.format), size_px)
    return _Run(request, pipeline, labels, settings, size_px, reference, model_sha256(request.model))


def _make_large(
    run: _Run, label: str, index: int, target: ImageFile, report: GenerateReport, progress: Progress | None
) -> dict[str, Any]:
    """Draw one large image into `target`; returns its row of metadata."""
    result = synthesise(
        run.pipeline,
        label,
        size_px=run.size_px,
        seed=run.request.seed,
        index=index,
        reference=run.reference,
        progress=progress,
        **run.overrides,
    )
    decoding = time.perf_counter()
    provenance = {**run.made_by(), **result.provenance()}
    bands = result.bands(run.pipeline, progress=progress)
    write_image(target, bands, provenance, overwrite=run.request.overwrite)
    report.add_seconds({**result.seconds, "decode and write": time.perf_counter() - decoding})
    report.forwards += result.forwards
    report.files.append(target.path)
    return provenance


def _make_folder(run: _Run, kind: Format, report: GenerateReport, progress: Progress | None) -> None:
    levels = sampling_levels(run.pipeline)
    report.mpp = levels.mpp
    _claim(run, level=None, kind=kind)
    rows = []
    wanted = [(label, index) for label in run.labels for index in _indices(run, label, kind)]
    for done, (label, index) in enumerate(wanted):
        target = ImageFile(_name(run, label, index, kind), kind, run.size_px, levels.mpp)
        if is_complete(target):
            report.kept += 1
            report.files.append(target.path)
        else:
            target.path.unlink(missing_ok=True)
            _make_large(run, label, index, target, report, progress)
        rows.append(
            {
                **_row(run, target, label, levels.patch, index),
                "size": [run.size_px[1], run.size_px[0]],
            }
        )
        if progress is not None:
            progress("images", done + 1, len(wanted))
    report.files.append(write_metadata(run.request.out, rows))


def _make_tiles(run: _Run, level: str, report: GenerateReport, progress: Progress | None) -> None:
    """Single tiles in batches; each is a function of its own index, so a batch may be drawn again in part."""
    mpp = float(run.pipeline.level(level)["mpp"])
    report.mpp = mpp
    _claim(run, level=level, kind="png")
    rows = []
    started = time.perf_counter()
    indices = {label: _indices(run, label, "png") for label in run.labels}
    total, done = sum(len(span) for span in indices.values()), 0
    for label, span in indices.items():
        for first in range(0, len(span), run.settings.window_batch):
            batch = span[first : first + run.settings.window_batch]
            targets = [ImageFile(_name(run, label, i, "png"), "png", run.size_px, mpp) for i in batch]
            missing = [not is_complete(target) for target in targets]
            if any(missing):
                images = _draw_tiles(run, label, level, batch, report)
                for index, target, image, lacks in zip(batch, targets, images, missing, strict=True):
                    if lacks:
                        provenance = {**run.made_by(), **_tile_provenance(run, label, level, index)}
                        write_image(target, [as_band(image)], provenance, overwrite=True)
            report.kept += len(batch) - sum(missing)
            report.files.extend(target.path for target in targets)
            rows += [_tile_row(run, target, label, level, i) for i, target in zip(batch, targets, strict=True)]
            done += len(batch)
            if progress is not None:
                progress("images", done, total)
    report.seconds["tiles"] = time.perf_counter() - started
    report.files.append(write_metadata(run.request.out, rows))


def _draw_tiles(run: _Run, label: str, level: str, batch: range, report: GenerateReport) -> np.ndarray:
    settings = run.settings
    timesteps = last_timesteps(run.pipeline.make_scheduler(settings.scheduler), settings.steps, 1.0)
    report.forwards += forwards_of(len(batch), len(timesteps), settings.guidance)
    images = run.pipeline(
        label,
        level,
        len(batch),
        seed=run.request.seed,
        first_index=batch.start,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        scheduler=settings.scheduler,
        output_type="np",
    )
    return np.asarray(images)


def _claim(run: _Run, *, level: str | None, kind: Format) -> None:
    """The folder belongs to one model, one seed and one set of values; the count may grow when it is resumed."""
    request = run.request
    if request.overwrite:
        raise PathUpError("--overwrite is for an output that is one file; for a folder use --resume, or name another")
    identity = {
        "model_sha256": run.model_sha256,
        "labels": run.labels,
        "level": level,
        "size_px": list(run.size_px),
        "seed": request.seed,
        "format": kind,
        "reference_sha256": storage.sha256_file(request.reference) if request.reference else None,
        "sampling": run.settings.model_dump(mode="json", exclude={"window_batch", "size_px"}),
    }
    storage.claim_folder(request.out, "generate", identity, resume=request.resume)


def _indices(run: _Run, label: str, kind: Format) -> range:
    """All indices asked for, and any made before by a longer run, so that the metadata names every file."""
    last = run.request.count
    while _name(run, label, last, kind).exists():
        last += 1
    return range(last)


def _name(run: _Run, label: str, index: int, kind: Format) -> Path:
    return run.request.out / f"{label}_{index:04d}.{kind}"


def _row(run: _Run, target: ImageFile, label: str, level: str, index: int) -> dict[str, Any]:
    return {
        "file_name": target.path.name,
        "text": run.pipeline.prompt(label, level),
        "label": label,
        "level": level,
        "mpp": target.mpp,
        "seed": run.request.seed,
        "index": index,
    }


def _tile_row(run: _Run, target: ImageFile, label: str, level: str, index: int) -> dict[str, Any]:
    """The columns of real tiles' metadata, empty where a synthetic tile has no such thing, then its own."""
    row = _row(run, target, label, level, index)
    real = {"patient": None, "slide": None, "region": None, "x": None, "y": None, "source_sha256": run.model_sha256}
    return {**row, **real}


def _tile_provenance(run: _Run, label: str, level: str, index: int) -> dict[str, Any]:
    sampling = run.settings.model_dump(mode="json", include={"scheduler", "steps", "guidance"})
    return {
        "label": label,
        "level": level,
        "prompt": run.pipeline.prompt(label, level),
        "seed": run.request.seed,
        "index": index,
        "sampling": sampling,
    }
