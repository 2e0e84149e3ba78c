"""Weights, gradients and moments in shards, one a process, by PyTorch's FSDP2 (ZeRO-3: Rajbhandari et al. 2020).

A layer's weights are whole in a process only while it computes; its gradients are averaged into shards, which the
optimiser steps where they lie. What is kept on disk is whole, so that a run may go on in either way.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping

import torch
from accelerate import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pathup.errors import PathUpError
from pathup.model.aligned import UNetWithFeatures
from pathup.recipes import DiffusionRecipe

__all__ = ["Sharded", "check_sharding", "load_state", "placed_like", "sharding_is_asked", "whole"]

_ASKED = "ACCELERATE_USE_FSDP"


def sharding_is_asked(flag: bool) -> bool:
    """Whether the command, or the configuration that `accelerate launch` was given, asks for shards.

    The configuration's wish is taken down: Accelerate shards for GPUs only and by names of classes, PathUp everywhere
    and by the U-Net's own layers.

    Raises
    ------
    PathUpError
        The configuration asks for FSDP's first version, or for weights in the computer's memory.
    """
    if os.environ.get(_ASKED, "false").lower() != "true":
        return flag
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise PathUpError(
            f"the launcher's configuration asks for version {plugin.fsdp_version} of FSDP, but weights are sharded by "
            "version 2; set fsdp_version: 2 in its fsdp_config"
        )
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise PathUpError(
            "the launcher's configuration asks for weights in the computer's memory (fsdp_offload_params), which "
            "training cannot do; set it to false, and for less memory take --gradient-checkpointing"
        )
    del os.environ[_ASKED]
    return True


def check_sharding(processes: int, spec: DiffusionRecipe, *, compiled: bool) -> None:
    """Refuse what weights in shards cannot have.

    Raises
    ------
    PathUpError
        There is one process, or the run is one of fp16, of 8-bit moments or of compiled blocks.
    """
    for found, hindered in (
        ("one process", processes == 1),
        ("fp16", spec.precision == "fp16"),
        ("--adam-8bit", spec.adam_8bit),
        ("--compile", compiled),
    ):
        if hindered:
            raise PathUpError(
                "weights in shards (--shard, or FSDP in the launcher's configuration) need several processes, bf16 or "
                f"fp32, moments of 32 bits, and blocks that are not compiled; this run has {found}, so leave one of "
                "the two out"
            )


class Sharded:
    """A model whose weights lie in shards from now on, and how to have it whole again.

    Parameters
    ----------
    model
        Changed in place: every residual layer and every transformer of its U-Net is a unit of its own.
    device
        Where the shards lie.
    """

    def __init__(self, model: UNetWithFeatures, device: torch.device) -> None:
        self.model = model
        empty = {id(weight): _without_numbers(weight) for weight in model.parameters()}
        self._shape: UNetWithFeatures = copy.deepcopy(model, memo=empty)
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        unet = model.unet
        for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
            for layer in [*block.resnets, *(getattr(block, "attentions", None) or [])]:
                if layer is not None:  # a middle block may go without attention
                    fully_shard(layer, mesh=mesh)
        # the rest, too, is let go after every forward: a pass without a backward would keep weights that age
        fully_shard(model, mesh=mesh, reshard_after_forward=True)

    def twin(self, tensors: Mapping[str, torch.Tensor], device: torch.device, *, keep: bool) -> UNetWithFeatures | None:
        """A whole copy of the model with some of its tensors replaced (these may be in shards), where `keep` is true.

        Every process has to ask.
        """
        state = whole({**self.model.state_dict(), **tensors}, keep=keep)
        if not keep:
            return None
        twin = copy.deepcopy(self._shape)
        twin.load_state_dict(state, assign=True)
        return twin.to(device)


def whole(tensors: Mapping[str, torch.Tensor], *, keep: bool = True) -> dict[str, torch.Tensor]:
    """Tensors with shards put together, one after the other, and those kept on the CPU; the others as they are.

    Every process has to ask; the result is empty where `keep` is false.
    """
    result = {}
    for name, value in tensors.items():
        one = value.full_tensor().cpu() if isinstance(value, DTensor) else value
        if keep:
            result[name] = one
    return result


def placed_like(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A copy of a whole tensor, the same in every process, on `target`'s device and in shards where that one is."""
    if isinstance(target, DTensor):
        mine = value.to(target.device)
        return distribute_tensor(mine, target.device_mesh, target.placements, src_data_rank=None).clone()
    return value.to(target.device, copy=True)


@torch.no_grad()
def load_state(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back whole tensors, which a run has trained, into a module; frozen weights stay as they are."""
    state = module.state_dict()
    for name, value in tensors.items():
        state[name].copy_(placed_like(value, state[name]))


def _without_numbers(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
