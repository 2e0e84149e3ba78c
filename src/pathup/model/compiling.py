"""Compiling a U-Net block by block, so that what watches the middle block goes on seeing its output."""

from __future__ import annotations

import os
import shutil
import warnings

import torch
from diffusers import UNet2DConditionModel

from pathup.errors import PathUpError

__all__ = ["compile_blocks"]

KINDS = 64
"""Of blocks and shapes that may be compiled: a Stable Diffusion U-Net has 11 parts."""


def compile_blocks(unet: UNet2DConditionModel, backend: str = "inductor") -> None:
    """Have `torch.compile` fuse a U-Net's blocks, in place; names of weights stay.

    The middle block is compiled in its parts: a hook on it (eq. 3's feature) is set anew at every step, which would
    have it compiled anew. Shapes are taken as fixed, as those of training are: each other one is compiled anew.

    Raises
    ------
    PathUpError
        The U-Net is on a CPU, and there is no C++ compiler.
    """
    if backend == "inductor" and next(unet.parameters()).device.type == "cpu" and not _compilers():
        raise PathUpError(
            "--compile on a CPU needs a C++ compiler, and none was found; install one (Debian and Ubuntu: "
            "apt install g++), or leave --compile out"
        )
    config = torch._dynamo.config  # all blocks count as one function, which would be given up after 8 kinds
    config.recompile_limit = max(config.recompile_limit, KINDS)
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")  # diffusers' own
    middle = unet.mid_block
    parts = [] if middle is None else [*middle.resnets, *middle.attentions]
    for block in [*unet.down_blocks, *unet.up_blocks, *(part for part in parts if part is not None)]:
        block.compile(dynamic=False, backend=backend)


def _compilers() -> list[str]:
    """Those that PyTorch looks for."""
    return [name for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if name and shutil.which(name)]
