"""What this machine has of what PathUp works with, what will be slow or missing, and the command that mends it.

Each check is a function from what it looks at to a `Finding`; what a check looks at comes as an argument, so that a
machine without it can be stood in for.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from pathup import __version__

__all__ = ["Finding", "State", "bfloat16_ratio", "examine"]

State = Literal["good", "note", "slow", "missing"]
"""How it stands: as it should be; worth knowing; will be slow or may run out; what PathUp needs is not there."""

_GIB = 2**30
_LEAST_MEMORY, _LEAST_DISK, _LEAST_SHARED = 8 * _GIB, 20 * _GIB, _GIB
_GPU_BUILD = "install the build for its CUDA version: pytorch.org/get-started/locally gives the command"
_OPTIONAL = {"wandb": "runs in Weights & Biases (--wandb)"}


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes
    ----------
    what
        What was looked at.
    state
        How it stands.
    told
        What was found, with its unit.
    mend
        What to do about it; empty where there is nothing to do.
    """

    what: str
    state: State
    told: str
    mend: str = ""

    def as_row(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def examine(folder: Path, *, probe: bool = True) -> list[Finding]:
    """Look at everything.

    Parameters
    ----------
    folder
        Where runs are to be written; it need not exist yet.
    probe
        Whether to time a convolution, which takes about a second.
    """
    cuda = torch.cuda.is_available()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    found = [
        Finding("software", "good", f"PathUp {__version__}, Python {platform.python_version()}, {platform.platform()}"),
        _torch(cuda, shutil.which("nvidia-smi") is not None),
        *[_gpu(index) for index in range(torch.cuda.device_count() if cuda else 0)],
        cores_of(cores, torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")),
        memory_of(memory.available, memory.total),
        disk_of("disk for runs", folder),
        disk_of("disk for temporary files", Path(tempfile.gettempdir())),
    ]
    if sys.platform == "linux":
        found.append(shared_memory_of(Path("/dev/shm")))  # noqa: S108 - looked at, never written to
    if probe and not cuda:
        found.append(bfloat16_of(bfloat16_ratio()))
    return [*found, *_libraries(), *_weights(), *_optional()]


def _torch(cuda: bool, nvidia: bool) -> Finding:
    build = "CUDA " + torch.version.cuda if torch.version.cuda else "CPU only"
    told = f"{torch.__version__} ({build}), torchvision {_version('torchvision')}, diffusers {_version('diffusers')}"
    if cuda:
        return Finding("torch", "good", f"{told}; it sees {torch.cuda.device_count()} GPU(s)")
    if nvidia and torch.version.cuda is None:
        return Finding("torch", "slow", f"{told}, but this machine has an NVIDIA driver", _GPU_BUILD)
    if nvidia:
        return Finding(
            "torch", "slow", f"{told}, but it sees no GPU",
            "run nvidia-smi: its driver has to be at least as new as that CUDA version",
        )  # fmt: skip
    return Finding(
        "torch", "note", f"{told}; no GPU, so training takes hours where a GPU takes minutes",
        "train on a GPU where there is one; drawing with models/atlas is quick enough here",
    )  # fmt: skip


def _gpu(index: int) -> Finding:
    facts = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    half = facts.major >= 8
    return Finding(
        f"cuda:{index}", "good" if half else "note",
        f"{facts.name}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free, "
        f"{'bf16' if half else 'no bf16'}",
        "" if half else "use --precision fp32",
    )  # fmt: skip


def cores_of(cores: int, threads: int, asked: str | None) -> Finding:
    """Cores that this process may use, beside the threads that torch takes."""
    told = f"{cores} core(s) for this process, torch computes on {threads}"
    if threads > cores:
        return Finding("processor", "slow", f"{told}: more threads than cores", f"export OMP_NUM_THREADS={cores}")
    if asked is not None and threads < cores:
        return Finding("processor", "note", f"{told}, as OMP_NUM_THREADS={asked} has it", "unset OMP_NUM_THREADS")
    return Finding("processor", "good", told)


def memory_of(available: int, total: int) -> Finding:
    """Memory beside what a training run and a large image take."""
    told = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if available >= _LEAST_MEMORY:
        return Finding("memory", "good", told)
    mend = "end other programs, or lower --batch-size (training) and --window-batch (drawing)"
    return Finding("memory", "slow", f"{told}; {_LEAST_MEMORY // _GIB} are a good start", mend)


def disk_of(what: str, folder: Path) -> Finding:
    """Room where runs or temporary files go."""
    place = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    if not os.access(place, os.W_OK):
        return Finding(what, "missing", f"{place} cannot be written to", "name another folder with --folder")
    free = shutil.disk_usage(place).free
    told = f"{free / _GIB:.0f} GiB free at {place}"
    if free >= _LEAST_DISK:
        return Finding(what, "good", told)
    mend = "write runs elsewhere (--output)" if what == "disk for runs" else "set TMPDIR to a folder with more room"
    return Finding(what, "slow", f"{told}; tiles and checkpoints of a run take {_LEAST_DISK // _GIB} and more", mend)


def shared_memory_of(place: Path) -> Finding:
    """Shared memory, through which processes that read tiles hand them on."""
    if not place.is_dir():
        return Finding("shared memory", "slow", f"{place} is not there", "train with --workers 0")
    total = shutil.disk_usage(place).total
    told = f"{total / _GIB:.2g} GiB at {place}"
    if total >= _LEAST_SHARED:
        return Finding("shared memory", "good", told)
    mend = "start the container with --shm-size=8g, or train with --workers 0"
    return Finding("shared memory", "slow", f"{told}: processes that read tiles may run out of it", mend)


def bfloat16_ratio(repeats: int = 20) -> float:
    """How many times as fast a 3 x 3 convolution, as a U-Net has them, is in bf16 as in fp32 on this CPU."""
    image_BCHW, layer = torch.randn(4, 96, 32, 32), torch.nn.Conv2d(96, 96, 3, padding=1)

    def seconds(enabled: bool) -> float:
        best = float("inf")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for _ in range(repeats + 1):  # the first makes the kernels
                begun = time.perf_counter()
                layer(image_BCHW)
                best = min(best, time.perf_counter() - begun)
        return best

    return seconds(False) / seconds(True)


def bfloat16_of(ratio: float) -> Finding:
    """What a CPU's bf16 is good for."""
    told = f"a convolution in bf16 takes 1/{ratio:.1f} of its time in fp32" if ratio >= 1 else (
        f"a convolution in bf16 takes {1 / ratio:.1f} times as long as in fp32"
    )  # fmt: skip
    if ratio >= 1.2:
        return Finding("bf16 on the CPU", "good", f"{told}: --precision bf16 draws faster")
    mend = "train and draw with --precision fp32"
    return Finding("bf16 on the CPU", "note" if ratio > 0.8 else "slow", f"{told}: nothing is gained by it", mend)


def _libraries() -> list[Finding]:
    return [
        library_of("slides: OpenSlide", _openslide, "pip install --force-reinstall openslide-python openslide-bin"),
        library_of("slides: tifffile", _tifffile, "pip install --force-reinstall tifffile imagecodecs"),
    ]


def library_of(what: str, look: Callable[[], str], mend: str) -> Finding:
    """A library that reads slides: imported and asked, since a package that is there may lack its shared library."""
    try:
        return Finding(what, "good", look())
    except Exception as error:  # what a broken installation raises is anybody's guess
        return Finding(what, "missing", f"it does not load ({type(error).__name__}: {_short(error)})", mend)


def _openslide() -> str:
    import openslide

    return f"{openslide.__library_version__}: Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana, DICOM, generic TIFF"


def _tifffile() -> str:
    import imagecodecs
    import tifffile

    absent = [name for name in ("jpeg8", "jpeg2k") if not getattr(imagecodecs, name.upper()).available]
    if absent:
        raise ImportError(f"imagecodecs lacks {', '.join(absent)}")
    return f"{tifffile.__version__}: OME-TIFF, with imagecodecs {imagecodecs.__version__} (JPEG, JPEG 2000)"


def _weights() -> list[Finding]:
    from pathup.evaluation.encoders import downloaded

    found = []
    for name, place in downloaded().items():
        if place.is_file():
            found.append(Finding(f"weights: {name}", "good", str(place)))
        else:
            found.append(Finding(
                f"weights: {name}", "note", f"not at {place}",
                f"--features {name} fetches them once; without a net, name a file: --features {name},weights=FILE",
            ))  # fmt: skip
    return found


def _optional() -> list[Finding]:
    there = [name for name in _OPTIONAL if importlib.util.find_spec(name) is not None]
    absent = [name for name in _OPTIONAL if name not in there]
    found = [Finding(f"optional: {name}", "good", f"{_version(name)}, for {_OPTIONAL[name]}") for name in there]
    return found + [
        Finding(f"optional: {name}", "note", f"not installed; for {_OPTIONAL[name]}", f"pip install {name}")
        for name in absent
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _short(error: Any) -> str:
    return " ".join(str(error).split())[:160]
