"""What ``pathup generate`` does: one large image, a folder of them, or a folder of single tiles."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import cast

import torch

from pathup import storage
from pathup.errors import PathUpError
from pathup.memory import keep_freed_memory
from pathup.model.compiling import compile_blocks
from pathup.model.pipeline import PathUpPipeline, load_pipeline
from pathup.processes import launched_processes
from pathup.sampling.batching import TilesEstimate, estimate_tiles
from pathup.sampling.device import choose_device, clear_memory_errors, peak_memory_bytes
from pathup.sampling.estimate import Estimate, estimate_plan
from pathup.sampling.image_folder import claim, indices_of, name_of, row_of, write_rows
from pathup.sampling.large import identity_of, is_finished, make_large
from pathup.sampling.layouts import LayoutUnit, read_layout
from pathup.sampling.outputs import (
    Format,
    ImageFile,
    check_format,
    check_pixels,
    format_of,
    is_complete,
    parse_size,
    remove_output,
)
from pathup.sampling.overview import check_reference_level, sampling_levels
from pathup.sampling.requests import ALL, GenerateReport, GenerateRequest, Run
from pathup.sampling.settings import check_size, resolve_settings, resolve_size
from pathup.sampling.single_tiles import make_tile, make_tiles
from pathup.sampling.tracking import Progress
from pathup.slides.images import read_image
from pathup.slides.writer import check_target

__all__ = ["GenerateReport", "GenerateRequest", "estimate", "generate", "loaded", "model_sha256"]


def generate(
    request: GenerateRequest, *, progress: Progress | None = None, pipeline: PathUpPipeline | None = None
) -> GenerateReport:
    """Carry out a request.

    Parameters
    ----------
    request
        What to make.
    progress
        Called as ``progress(stage, done, total)``, in the main process; stages are ``images`` and those of
        `make_large`.
    pipeline
        The request's model, as `loaded` has it, for callers that make many requests; unset: it is loaded.

    Raises
    ------
    PathUpError
        Anything wrong with the request, the model or the output; nothing half-written is left that looks finished.
    """
    started = time.perf_counter()
    with clear_memory_errors():
        run, kind = _prepared(request, pipeline)
        main = run.processes.is_main
        report = GenerateReport(size_px=run.size_px, device=str(run.pipeline.unet.device), is_main=main)
        shown = progress if main else None
        if request.level is not None and kind is not None:
            mpp = run.pipeline.scale_of(request.level, request.mpp)
            make_tile(run, request.level, request.index or 0, ImageFile(request.out, kind, run.size_px, mpp), report)
        elif request.level is not None:
            make_tiles(run, request.level, report, shown)
        elif kind is not None:
            report.mpp = sampling_levels(run.pipeline).mpp
            target = ImageFile(request.out, kind, run.size_px, report.mpp)
            _make_large(run, request.label, request.index or 0, target, report, shown)
        else:
            _make_folder(run, check_format(request.format), report, shown)
    report.seconds["total"] = time.perf_counter() - started
    report.peak_memory_bytes = peak_memory_bytes(run.pipeline.unet.device)
    return report


def estimate(request: GenerateRequest) -> Estimate | TilesEstimate:
    """What a request will cost; nothing is written.

    Raises
    ------
    PathUpError
        Anything wrong with the request or the model, as `generate` would find it.
    """
    with clear_memory_errors():
        run, kind = _prepared(request)
        if request.level is not None:
            return estimate_tiles(run, request.level)
        return estimate_plan(
            run.plan(run.labels[0], 0), kind or check_format(request.format), len(run.labels) * request.count
        )


def model_sha256(folder: Path) -> str:
    """One hash of a model: of the names and contents of its index and its components' files."""
    index = storage.read_json(folder / "model_index.json")
    parts = [folder / name for name in sorted(index) if (folder / name).is_dir()]
    files = [folder / "model_index.json"]
    files += [path for part in parts for path in sorted(part.iterdir()) if path.is_file()]
    lines = [f"{storage.sha256_file(path)} {path.relative_to(folder).as_posix()}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def loaded(request: GenerateRequest) -> PathUpPipeline:
    """A request's model, on its device and in its precision.

    Raises
    ------
    PathUpError
        The model or the device is not there, or does not fit.
    """
    device = choose_device(launched_processes(request.device)[1])
    if device.type == "cpu":
        keep_freed_memory()
    pipeline = load_pipeline(request.model, device=device, precision=request.precision)
    if request.compiled:
        compile_blocks(pipeline.unet)
    return pipeline


def _prepared(request: GenerateRequest, pipeline: PathUpPipeline | None = None) -> tuple[Run, Format | None]:
    """Load the model and check everything, so that nothing is written before a mistake is found."""
    kind = format_of(request.out)
    if request.index is not None:
        if kind is None or (request.level is not None and kind != "png"):
            raise PathUpError(
                f"--index draws one image, but '{request.out.name}' is "
                f"{'a folder' if kind is None else 'no PNG, as single tiles are'}; name one file (.png)"
            )
    elif kind is not None and (request.level is not None or request.count > 1 or request.label == ALL):
        raise PathUpError(
            f"'{request.out.name}' is one file, but several images were asked for; "
            "name a folder (without an ending), or ask for one label and --count 1"
        )
    if kind is not None and not request.resume:
        check_target(request.out, overwrite=request.overwrite)
    size = parse_size(request.size) if request.size else None
    reference = read_image(request.reference) if request.reference else None
    if kind is None:
        check_format(request.format)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    processes, _ = launched_processes(request.device)
    pipeline = pipeline or loaded(request)
    settings = resolve_settings(
        pipeline,
        steps=request.steps,
        guidance=request.guidance,
        strength=request.strength,
        scheduler=request.scheduler,
        windows=request.windows,
        window_weight=request.window_weight,
        step_power=request.step_power,
        overlap_latent=request.overlap,
        window_batch=request.window_batch,
    )
    labels = list(pipeline.labels) if request.label == ALL else [request.label]
    layout = None
    if request.level is not None:
        pipeline.prompt(labels[0], request.level)
        pipeline.scale_of(request.level, request.mpp)
        size_px = (int(pipeline.config.tile_px),) * 2
    else:
        levels = sampling_levels(pipeline)
        check_reference_level(levels, has_reference=reference is not None)
        size_px = resolve_size(size, settings, reference, levels)
        check_size(pipeline, size_px, settings)
        check_pixels(kind or check_format(request.format), size_px)
        if request.layout is not None:
            classes = [dict(spec) for spec in pipeline.config.classes]
            layout = read_layout(
                request.layout,
                classes,
                size_px=size_px,
                mpp=levels.mpp,
                background=request.label,
                unit=cast(LayoutUnit, request.layout_unit),
            )
        else:
            pipeline.prompt(labels[0], levels.patch)
    return Run(
        request, pipeline, labels, settings, size_px, reference, layout, model_sha256(request.model), processes
    ), kind


def _make_large(
    run: Run, label: str, index: int, target: ImageFile, report: GenerateReport, progress: Progress | None
) -> None:
    """Draw one large image into `target`, or find it there."""
    request, plan = run.request, run.plan(label, index)
    identity = identity_of(plan, run.model_sha256, run.reference_sha256)
    report.files.append(target.path)
    report.images += 1
    if request.resume and is_finished(target, identity):
        report.kept += 1
        return
    _, seconds = make_large(
        plan,
        target,
        identity=identity,
        made_by=run.made_by(),
        reference=run.reference,
        resume=request.resume,
        overwrite=request.overwrite,
        preview=request.preview,
        processes=run.processes,
        progress=progress,
    )
    report.add_seconds(seconds)
    report.forwards += plan.forwards_all
    report.coverage = plan.coverage


def _make_folder(run: Run, kind: Format, report: GenerateReport, progress: Progress | None) -> None:
    levels = sampling_levels(run.pipeline)
    report.mpp = levels.mpp
    claim(run, level=None, kind=kind)
    rows = []
    wanted = [(label, index) for label in run.labels for index in indices_of(run, label, kind)]
    for done, (label, index) in enumerate(wanted):
        target = ImageFile(name_of(run, label, index, kind), kind, run.size_px, levels.mpp)
        if is_complete(target):
            report.kept += 1
            report.images += 1
            report.files.append(target.path)
        else:
            if run.processes.is_main:
                remove_output(target.path)
            run.processes.wait()
            _make_large(run, label, index, target, report, progress)
        rows.append(
            {
                **row_of(run, target, label, levels.patch, index),
                "size": [run.size_px[1], run.size_px[0]],
            }
        )
        if progress is not None:
            progress("images", done + 1, len(wanted))
    if run.processes.is_main:
        report.files.append(write_rows(run, rows))
