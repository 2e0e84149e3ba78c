"""The device that sampling runs on, and what it says of its memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pathup.errors import PathUpError, unknown

__all__ = [
    "Returning",
    "choose_device",
    "clear_memory_errors",
    "computes_bfloat16",
    "peak_memory_bytes",
    "reduced_precision",
    "returned",
    "sent",
]


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and name.partition(":")[0] != "cuda":
        raise unknown("device", name, ["auto", "cpu", "cuda"])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ["auto", "cpu", "cuda"]) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PathUpError(
            f"device '{name}' was asked for, but torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; a CPU without them takes several times as long in it."""
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device.type != "cpu" or bool(asked())


def reduced_precision(module: Any) -> torch.autocast:
    """Within it a float32 network on a CPU that has bfloat16 computes in that, in about half the time.

    For what is noised or averaged afterwards, never for an image's pixels. Elsewhere it does nothing: a CPU without
    bfloat16 would be slower in it.
    """
    enabled = module.dtype == torch.float32 and module.device.type == "cpu" and computes_bfloat16(module.device)
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values of the CPU on their way to the device; on a GPU the call does not wait for them to arrive."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class Returning:
    """Values on their way from the device to the CPU."""

    def __init__(self, values: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(values.device))
        else:
            self._values = values.cpu()

    def wait(self) -> torch.Tensor:
        """The values, once they are here."""
        if self._event is not None:
            self._event.synchronize()
        return self._values


def returned(values: torch.Tensor) -> Returning:
    """Begin to fetch values from their device; what is asked of it meanwhile does not wait for them."""
    return Returning(values)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: the GPU's allocations on a GPU, else this process's resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def clear_memory_errors() -> Iterator[None]:
    """Turn running out of memory, on the GPU or off it, into one sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise PathUpError(
            "the memory is not enough for this; lower --window-batch or --size, or use a device with more memory"
        ) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise PathUpError("the memory is not enough for this; lower --window-batch or --size") from error
