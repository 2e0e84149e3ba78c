"""diffusers' panorama pipeline (MultiDiffusion) on a PathUp model: as it is, but for the model's window and factor."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.deprecated.stable_diffusion_panorama import StableDiffusionPanoramaPipeline

from pathup.model.attention import fast_attention
from pathup.model.pipeline import PathUpPipeline


class Panorama(StableDiffusionPanoramaPipeline):  # type: ignore[misc]
    """The pipeline, whose ``get_views`` is written for 64 latent positions, a factor of 8 and one stride.

    Attributes
    ----------
    window, stride
        Side of a window and distance of neighbours, in latent positions. Where the stride does not divide a
        canvas, its rim stays unpainted: so diffusers has it.
    """

    window: int
    stride: int

    def get_views(
        self,
        panorama_height: int,
        panorama_width: int,
        window_size: int = 64,
        stride: int = 8,
        circular_padding: bool = False,
    ) -> list[tuple[int, int, int, int]]:
        """The pipeline's own views of this window and stride: told a canvas whose eighth is the latent's size."""
        height, width = (side // self.vae_scale_factor * 8 for side in (panorama_height, panorama_width))
        views: list[tuple[int, int, int, int]] = super().get_views(
            height, width, window_size=self.window, stride=self.stride, circular_padding=circular_padding
        )
        return views


def panorama(pipeline: PathUpPipeline, window: int, stride: int) -> Panorama:
    """The panorama pipeline with a PathUp model's own parts, and DDIM."""
    made = Panorama(
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        unet=pipeline.unet,
        scheduler=pipeline.make_scheduler("ddim"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.window, made.stride = window, stride
    made.set_progress_bar_config(disable=True)
    return made


def draw(
    made: Panorama,
    start_CHW: torch.Tensor,
    embeddings: dict[str, torch.Tensor],
    *,
    steps: int,
    guidance: float,
    view_batch: int,
) -> torch.Tensor:
    """x_0 of a canvas of noise, (C, H, W) on the CPU, with the attention kernel that PathUp's sampler takes.

    Parameters
    ----------
    start_CHW
        The noise, float32.
    embeddings
        ``prompt_embeds`` and ``negative_prompt_embeds``, (1, L, D).
    steps, guidance, view_batch
        As diffusers has them; guidance of 1 is none, and less than 1 too.
    """
    height, width = (side * made.vae_scale_factor for side in start_CHW.shape[1:])
    with fast_attention(made.unet, made._execution_device):
        result: Any = made(
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance,
            view_batch_size=view_batch,
            latents=start_CHW[None],
            output_type="latent",
            **embeddings,
        )
    return torch.as_tensor(result.images)[0].float().cpu()
