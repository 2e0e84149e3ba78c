"""One large image into its file: drawn, decoded band by band, written; a killed run goes on where it stood."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from pathup.processes import ONE_PROCESS, Processes
from pathup.sampling.decoding import band_count
from pathup.sampling.footprint import tile_side
from pathup.sampling.outputs import ImageFile, is_complete, write_image
from pathup.sampling.plan import Plan
from pathup.sampling.preview import PreviewFile
from pathup.sampling.synthesis import Synthesis, synthesise
from pathup.sampling.tracking import Progress
from pathup.sampling.workspace import Workspace
from pathup.slides.provenance import provenance_of
from pathup.slides.writer import check_target

__all__ = ["identity_of", "is_finished", "make_large"]


def identity_of(plan: Plan, model_sha256: str, reference_sha256: str | None) -> dict[str, Any]:
    """JSON values that make two runs draw the same image."""
    return {
        "model_sha256": model_sha256,
        "label": plan.label,
        "index": plan.index,
        "size_px": list(plan.size_px),
        "seed": plan.seed,
        "reference_sha256": reference_sha256,
        "layout_sha256": plan.layout.digest,
        "precision": str(plan.pipeline.unet.dtype),
        "sampling": plan.settings.model_dump(mode="json", exclude={"window_batch", "size_px"}),
    }


def is_finished(target: ImageFile, identity: dict[str, Any]) -> bool:
    """Whether the file is there, whole, and this very image."""
    told = provenance_of(target.path) if is_complete(target) else None
    return told is not None and told.get("run_sha256") == _digest(identity)


def make_large(
    plan: Plan,
    target: ImageFile,
    *,
    identity: dict[str, Any],
    made_by: dict[str, Any],
    reference: np.ndarray | None = None,
    resume: bool = False,
    overwrite: bool = False,
    preview: Path | None = None,
    processes: Processes = ONE_PROCESS,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Draw one large image into `target`.

    Parameters
    ----------
    plan
        What to draw.
    target
        The file.
    identity
        `identity_of` the plan.
    made_by
        First entries of the provenance.
    reference
        The image that takes the overview's place.
    resume, overwrite
        Go on with an unfinished image; replace a finished one, and begin an unfinished one anew.
    preview
        Where the last preview is put in the end; it is in the workspace before.
    processes
        Those that share the work.
    progress
        Called as ``progress(stage, done, total)`` with the stages of `synthesise`, and ``decode`` by bands.

    Returns
    -------
    tuple of dict and dict
        The provenance, and wall time by stage.

    Raises
    ------
    PathUpError
        The output exists, another image is unfinished there, the disk is full; what was done is kept.
    """
    if processes.is_main:
        check_target(target.path, overwrite=overwrite)
    workspace = Workspace(target.path, identity, resume=resume, overwrite=overwrite, processes=processes)
    shown = PreviewFile(workspace.preview, plan.size_px, plan.pipeline.factor) if processes.is_main else None
    try:
        result = synthesise(
            plan.pipeline,
            plan.label,
            size_px=plan.size_px,
            seed=plan.seed,
            index=plan.index,
            reference=reference,
            layout=plan.layout,
            workspace=workspace,
            processes=processes,
            progress=progress,
            preview=shown,
            **{name: getattr(plan.settings, name) for name in type(plan.settings).model_fields if name != "size_px"},
        )
        seconds, started = dict(result.seconds), time.perf_counter()
        _decode(result, workspace, processes, shown, progress)
        seconds["decode"], started = time.perf_counter() - started, time.perf_counter()
        provenance = {**made_by, **result.provenance(), "run_sha256": _digest(identity)}
        if processes.is_main:
            bands = workspace.bands(band_count(plan.shape[1], tile_side(plan.pipeline)))
            write_image(target, bands, provenance, overwrite=overwrite)
            if preview is not None:
                shutil.copyfile(workspace.preview, preview)
        seconds["write"] = time.perf_counter() - started
    except BaseException:
        if not workspace.is_worth_keeping:
            workspace.remove()
        raise
    processes.wait()
    workspace.remove()
    return provenance, seconds


def _decode(
    result: Synthesis,
    workspace: Workspace,
    processes: Processes,
    preview: PreviewFile | None,
    progress: Progress | None,
) -> None:
    """Decode the bands that the workspace lacks, each process its share."""
    decoder = result.decoder(result.plan.pipeline)
    if processes.is_main and not decoder.find(workspace.folder):
        decoder.measure()
        decoder.keep(workspace.folder)
    processes.wait()
    decoder.find(workspace.folder)  # also in the process that measured: all decode with what was kept
    for index in range(processes.rank, len(decoder), processes.count):
        if workspace.band(index) is None:
            pixels = decoder.band(index)
            workspace.keep_band(index, pixels)
            if preview is not None:
                preview.band(index * decoder.tile * result.plan.pipeline.factor, pixels)
        if progress is not None:
            progress("decode", min(index + processes.count, len(decoder)), len(decoder))
    processes.wait()


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
