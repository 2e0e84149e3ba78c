"""The U-Net together with the feature of its middle block, as one module that can be trained in parallel."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from pathup.model.feature_entropy import pooled
from pathup.model.scale import ScaleEncoder


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """The middle block has been passed; the rest of the U-Net is not needed."""


class UNetWithFeatures(nn.Module):
    """Predict, and tell the pooled mid-block feature z of eq. 3.

    Parameters
    ----------
    unet
        Any `UNet2DConditionModel`; it is held, not copied.
    scale_encoder
        What tells the prompts their scales, where the model takes them in; trained with the U-Net.
    """

    def __init__(self, unet: UNet2DConditionModel, scale_encoder: ScaleEncoder | None = None) -> None:
        super().__init__()
        self.unet, self.scale_encoder = unet, scale_encoder

    def forward(
        self,
        noisy_BCHW: torch.Tensor,
        timestep_B: torch.Tensor,
        prompts_BLD: torch.Tensor,
        empty_BLD: torch.Tensor | None,
        mpp_B: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction (B, C, H, W) and z (B, D), of length 1.

        With `empty_BLD` given, z is taken from a second pass, up to the middle block, on that prompt: then only the
        image can tell classes apart. Without it z has attended to `prompts_BLD`, as in the paper. `mpp_B`, the
        tiles' scales, are for a scale encoder.
        """
        if self.scale_encoder is not None and mpp_B is not None:
            prompts_BLD = self.scale_encoder.told(prompts_BLD, mpp_B)
            empty_BLD = None if empty_BLD is None else self.scale_encoder.told(empty_BLD, mpp_B)
        caught: list[torch.Tensor] = []

        def catch(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            caught.append(output)

        handle = self.unet.mid_block.register_forward_hook(catch)
        try:
            prediction = self.unet(noisy_BCHW, timestep_B, prompts_BLD, return_dict=False)[0]
        finally:
            handle.remove()
        features = caught[0] if empty_BLD is None else self._features(noisy_BCHW, timestep_B, empty_BLD)
        return prediction, pooled(features)

    def _features(self, noisy: torch.Tensor, timestep: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        caught: list[torch.Tensor] = []

        def stop(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            caught.append(output)
            raise _Reached

        handle = self.unet.mid_block.register_forward_hook(stop)
        try:
            self.unet(noisy, timestep, prompts)
        except _Reached:
            return caught[0]
        finally:
            handle.remove()
        raise RuntimeError("the U-Net has no middle block")
