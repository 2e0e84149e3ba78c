"""A folder of generated images: whose it is, what its files are called, and their rows of metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pathup import storage
from pathup.errors import PathUpError
from pathup.sampling.outputs import Format, ImageFile, write_metadata
from pathup.sampling.requests import Run
from pathup.tiles.provenance import carry_sources

__all__ = ["claim", "indices_of", "name_of", "row_of", "write_rows"]


def claim(run: Run, *, level: str | None, kind: Format) -> None:
    """The folder belongs to one model, one seed and one set of values; the count may grow when it is resumed."""
    request = run.request
    if request.overwrite:
        raise PathUpError("--overwrite is for an output that is one file; for a folder use --resume, or name another")
    identity = {
        "model_sha256": run.model_sha256,
        "labels": run.labels,
        "level": level,
        "mpp": request.mpp,
        "size_px": list(run.size_px),
        "seed": request.seed,
        "format": kind,
        "reference_sha256": run.reference_sha256,
        "layout_sha256": None if run.layout is None else run.layout.digest,
        "precision": request.precision,
        "sampling": run.settings.model_dump(mode="json", exclude={"window_batch", "size_px"}),
    }
    if request.compiled:  # the same sums in another order
        identity |= {"compiled": True}
    if request.shard_size is not None:  # where a tile lies depends on both
        identity |= {"shard_size": request.shard_size, "count": request.count}
    if run.processes.is_main:
        storage.claim_folder(request.out, "generate", identity, resume=request.resume)
        storage.remove_partial(request.out)
    run.processes.wait()


def indices_of(run: Run, label: str, kind: Format) -> range:
    """All indices asked for, and any made before by a longer run, so that the metadata names every file."""
    last = run.request.count
    while name_of(run, label, last, kind).exists():
        last += 1
    return range(last)


def name_of(run: Run, label: str, index: int, kind: Format) -> Path:
    """Where image `index` of a label lies."""
    return run.request.out / f"{label}_{index:04d}.{kind}"


def row_of(run: Run, target: ImageFile, label: str, level: str, index: int) -> dict[str, Any]:
    """What the metadata says of every generated image."""
    return {
        "file_name": target.path.name,
        "text": run.pipeline.prompt(label, level),
        "label": label,
        "level": level,
        "mpp": target.mpp,
        "seed": run.request.seed,
        "index": index,
    }


def write_rows(run: Run, rows: list[dict[str, Any]]) -> Path:
    """Write the metadata of a folder that is complete, and the regions that the model was trained on, if it tells."""
    carry_sources(run.request.model, run.request.out)
    return write_metadata(run.request.out, rows)
