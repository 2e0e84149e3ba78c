"""The C library's allocator, told to keep what PyTorch frees: each step of a CPU run asks for the same sizes anew."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["HUGE_PAGES", "ask_for_huge_pages", "keep_freed_memory"]

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""The environment variable by which PyTorch is asked for them."""

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h's M_...; a threshold of -1 is none


def ask_for_huge_pages() -> None:
    """Have PyTorch ask Linux for pages of 2 MiB, for blocks of that size and more; to be called before torch's import.

    Memory that is touched for the first time costs a fault a page: an image of 2048 px took 300,000 faults on pages of
    4 KiB, a second and more of a minute, and few on large ones. A set ``THP_MEM_ALLOC_ENABLE`` is left as it is.
    """
    os.environ.setdefault(HUGE_PAGES, "1")


def keep_freed_memory() -> bool:
    """Have glibc's malloc keep freed memory instead of handing it back to the system at once.

    Blocks above some MiB, as activations are, otherwise come fresh from the system and go back to it, each page zeroed
    anew, at every operation. Kept, 64 tiles of 128 px were encoded 1.8 times as fast on two cores; a training step of a
    small U-Net, whose activations are smaller, took the same time (``benchmarks/allocator.py``). The process holds on
    to its peak, which is the same.

    Returns
    -------
    bool
        Whether it took effect; False where the C library is not glibc, where nothing changes.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    taken = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_TOP_PAD, 64 * 2**20)]
    return all(result == 1 for result in taken)
