"""Which kernel computes attention: on a CPU, the plain product is faster for the short rows of small windows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

SHORT = 256
"""Positions up to which the plain product is taken: beyond, its (positions, positions) matrices cost memory and time.

At 64 positions and 16 windows in bf16, a whole training step was 1.1 to 1.2 times as fast on one core as with torch
2.14's flash kernel (benchmarks/attention.py).
"""


def most_positions(unet: Any) -> int:
    """The most latent positions that one attention of a U-Net relates, for windows of its own `sample_size`."""
    config = unet.config
    side = config.sample_size if isinstance(config.sample_size, int) else max(config.sample_size)
    sides = [side >> depth for depth, kind in enumerate(config.down_block_types) if "Attn" in kind]
    middle = side >> (len(config.down_block_types) - 1)
    return int(max([*sides, middle]) ** 2)


@contextmanager
def fast_attention(unet: Any, device: torch.device) -> Iterator[None]:
    """Within it, attention runs with the kernel that suits this U-Net on this device.

    A GPU, or a U-Net of longer rows (Stable Diffusion's 64 x 64), keeps torch's own choice.
    """
    if device.type == "cpu" and most_positions(unet) <= SHORT:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield
