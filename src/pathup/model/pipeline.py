"""`PathUpPipeline`: a trained model as a diffusers pipeline that is asked by class and level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from pathup import draws
from pathup.errors import PathUpError, unknown
from pathup.model.attention import fast_attention
from pathup.model.components import (
    Components,
    build_components,
    check_finite,
    check_tokenizer,
    load_part,
    token_ids,
)
from pathup.model.guidance import guided
from pathup.model.scale import ScaleEncoder
from pathup.model.schedulers import make_scheduler, set_steps
from pathup.recipes import Recipe, SamplingRecipe
from pathup.tiles.taxonomy import filled_prompt

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

StepCallback = Callable[["PathUpPipeline", int, torch.Tensor, dict[str, Any]], dict[str, Any]]


class PathUpPipeline(DiffusionPipeline):
    """Latent diffusion conditioned on lesion class and spatial level.

    Calling it draws single tiles. Large images are grown by `pathup.sampling`.

    Parameters
    ----------
    vae, text_encoder, tokenizer, unet, scheduler
        The components, as in a Stable Diffusion pipeline.
    scale_encoder
        Of a model that takes in the physical scale as a number.
    classes
        The taxonomy: ``{"label", "name"}`` each.
    levels
        The spatial levels: ``{"name", "word", "mpp", "field_px"}`` each; ``mpp`` is that of the level's tiles.
    prompt_template
        With ``{name}`` and ``{word}``; a template without them is one prompt for all.
    tile_px
        Side of a training tile and of a single-tile sample, in pixels.
    sampling
        Default sampling values, `pathup.recipes.SamplingRecipe` as a dict.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = ["scale_encoder"]  # diffusers looks for it under this name

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: SchedulerMixin
    scale_encoder: ScaleEncoder | None
    config: Any

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        scale_encoder: ScaleEncoder | None = None,
        classes: list[dict[str, str]] | None = None,
        levels: list[dict[str, Any]] | None = None,
        prompt_template: str = "{name}, {word}",
        tile_px: int = 512,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            scale_encoder=scale_encoder,
        )  # fmt: skip
        self.register_to_config(
            classes=classes or [],
            levels=levels or [],
            prompt_template=prompt_template,
            tile_px=tile_px,
            sampling=sampling or {},
        )

    # -- what the model knows -------------------------------------------------------------------------------

    @property
    def labels(self) -> list[str]:
        """Class labels, in the taxonomy's order."""
        return [spec["label"] for spec in self.config.classes]

    @property
    def level_names(self) -> list[str]:
        """Names of the spatial levels."""
        return [level["name"] for level in self.config.levels]

    @property
    def compute_device(self) -> torch.device:
        """Where the parts compute, which is not where they lie while diffusers offloads them."""
        return torch.device(self._execution_device)

    @property
    def factor(self) -> int:
        """Image pixels a latent position, in each direction."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.latent_channels)

    @property
    def sampling(self) -> SamplingRecipe:
        """The model's default sampling values."""
        return SamplingRecipe.model_validate(self.config.sampling)

    def level(self, name: str) -> dict[str, Any]:
        """One level's values.

        Raises
        ------
        PathUpError
            The model has no such level.
        """
        for level in self.config.levels:
            if level["name"] == name:
                return dict(level)
        raise unknown("level", name, self.level_names)

    def prompt(self, label: str, level: str) -> str:
        """The text that stands for a class and a level; an unknown one is a PathUpError naming the nearest."""
        names = {spec["label"]: spec["name"] for spec in self.config.classes}
        if label not in names:
            raise unknown("label", label, names)
        return filled_prompt(str(self.config.prompt_template), names[label], self.level(level)["word"])

    def all_prompts(self) -> list[str]:
        """The texts of every class at every level."""
        return [self.prompt(label, level) for level in self.level_names for label in self.labels]

    # -- parts of sampling ----------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str], mpp: float | None = None) -> torch.Tensor:
        """Embeddings of prompts, (B, L, D) on the pipeline's device; the empty text is the unconditional prompt.

        Parameters
        ----------
        texts
            The prompts.
        mpp
            Micrometres a pixel of what is to be drawn, which a model with a `scale_encoder` is told.
        """
        ids = torch.tensor(token_ids(self.tokenizer, self.text_encoder, texts))
        embeddings: torch.Tensor = self.text_encoder(ids.to(self.compute_device))[0]
        if self.scale_encoder is None or mpp is None:
            return embeddings
        return self.scale_encoder.told(embeddings, [mpp] * len(texts))

    def scale_of(self, level: str, mpp: float | None = None) -> float:
        """The scale to draw a level at, micrometres a pixel: its own, unless another is asked for.

        Raises
        ------
        PathUpError
            No such level; the scale is not above 0, or another than the level's and the model takes none in.
        """
        own = float(self.level(level)["mpp"])
        if mpp is None or mpp == own:
            return own
        if not 0 < mpp < float("inf"):
            raise PathUpError(f"a scale of {mpp:g} micrometres a pixel was asked for, but one above 0 was needed")
        if self.scale_encoder is None:
            raise PathUpError(
                f"{mpp:g} micrometres a pixel were asked for, but this model takes in no scale and draws level "
                f"'{level}' at {own:g}; train with model.scale_conditioning for others"
            )
        return mpp

    @torch.no_grad()
    def encode_pixels(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, H/f, W/f) of RGB pixels in [-1, 1]: the posterior's mean, scaled as the U-Net wants them."""
        pixels = pixels_BCHW.to(self.compute_device, self.vae.dtype)
        return self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """RGB pixels in [-1, 1] (not clipped), (B, 3, H*f, W*f), of scaled latents."""
        latents = latents_BCHW.to(self.compute_device, self.vae.dtype)
        return self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]

    def make_scheduler(self, name: str | None = None) -> Any:
        """A fresh scheduler (``ddim``, ``dpmpp_2m``, a diffusers class) for the trained noise schedule."""
        return make_scheduler(name or self.sampling.scheduler, self.scheduler.config)

    @torch.no_grad()
    def predict(
        self,
        latents_BCHW: torch.Tensor,
        timestep: torch.Tensor | int,
        prompted_BLD: torch.Tensor,
        empty_BLD: torch.Tensor,
        guidance: float,
    ) -> torch.Tensor:
        """The U-Net's prediction with classifier-free guidance, (B, C, H, W).

        By `pathup.model.guidance.guided`; of the prompt alone when `guidance` is 1. Inputs are already scaled by
        ``scheduler.scale_model_input``, and are taken to the U-Net's precision here.
        """
        precision = next(self.unet.parameters()).dtype  # `unet.dtype` looks through all of them, at every call
        latents_BCHW, prompted_BLD, empty_BLD = (part.to(precision) for part in (latents_BCHW, prompted_BLD, empty_BLD))
        with fast_attention(self.unet, latents_BCHW.device):
            if guidance == 1:
                return self.unet(latents_BCHW, timestep, prompted_BLD, return_dict=False)[0]
            return guided(self.unet, latents_BCHW, timestep, prompted_BLD, empty_BLD, guidance)

    # -- single tiles ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        label: str | Sequence[str],
        level: str = "patch",
        num_images: int = 1,
        *,
        seed: int | None = None,
        first_index: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        step_power: float | None = None,
        mpp: float | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Draw single tiles of `tile_px` pixels.

        Parameters
        ----------
        label
            A class label, or several: `num_images` of each, in order.
        level
            The spatial level.
        seed, first_index
            Image i of a label is a function of (seed, label, level, first_index + i) alone. Without a seed one
            is drawn from `generator` or, without that, from torch's running generator.
        num_inference_steps, guidance_scale, scheduler, step_power
            Unset: the model's own `sampling` values.
        mpp
            Micrometres a pixel, for a model that takes in scales; unset: the level's own.
        output_type
            ``'pil'``; ``'np'`` (N, H, W, 3) in [0, 1]; ``'pt'`` (N, 3, H, W) in [0, 1]; ``'latent'``.
        callback_on_step_end
            ``f(pipeline, step, timestep, {"latents": ...})``; may return a dict with other latents.

        Raises
        ------
        PathUpError
            Unknown label, level or scheduler; a scale that the model cannot be told.
        """
        if output_type not in OUTPUT_TYPES:
            raise unknown("output_type", output_type, OUTPUT_TYPES)
        labels = [label] if isinstance(label, str) else list(label)
        defaults = self.sampling
        guidance = defaults.guidance if guidance_scale is None else guidance_scale
        if seed is None:
            device = generator.device if generator is not None else None
            seed = int(torch.randint(2**62, (1,), generator=generator, device=device))
        scale = self.scale_of(level, mpp)
        texts = [self.prompt(name, level) for name in labels]
        prompted = self.encode_prompts(texts, scale).repeat_interleave(num_images, 0)
        empty = self.encode_prompts([""], scale).expand_as(prompted)
        side = int(self.config.tile_px) // self.factor
        shape = (self.latent_channels, side, side)
        noise = [draws.normal(shape, seed, name, level, first_index + i) for name in labels for i in range(num_images)]
        steps = make_scheduler(scheduler or defaults.scheduler, self.scheduler.config)
        set_steps(
            steps,
            defaults.steps if num_inference_steps is None else num_inference_steps,
            defaults.step_power if step_power is None else step_power,
        )
        # in single precision: half cannot hold the noise that some schedulers begin with
        latents = torch.stack(noise).to(self.compute_device) * steps.init_noise_sigma
        for index, timestep in enumerate(self.progress_bar(steps.timesteps)):
            scaled = steps.scale_model_input(latents, timestep)
            prediction = self.predict(scaled, timestep, prompted, empty, guidance)
            latents = steps.step(prediction.float(), timestep, latents, return_dict=False)[0]
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, index, timestep, {"latents": latents})
                latents = (changed or {}).get("latents", latents)
        check_finite(latents, self.unet.dtype)
        if output_type == "latent":
            return latents
        pixels = (self.decode_latents(latents).float() / 2 + 0.5).clamp(0, 1).cpu()
        if output_type == "pt":
            return pixels
        arrays = pixels.permute(0, 2, 3, 1).numpy()
        if output_type == "np":
            return arrays
        return [Image.fromarray((array * 255).round().astype(np.uint8)) for array in arrays]


def assemble(components: Components, recipe: Recipe) -> PathUpPipeline:
    """A pipeline from components and the recipe's taxonomy, levels, prompt and sampling values."""
    template = recipe.model.prompt if recipe.diffusion.patho_align else recipe.model.neutral_prompt
    pipeline = PathUpPipeline(
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=components.unet,
        scheduler=components.scheduler,
        scale_encoder=components.scale_encoder,
        classes=[spec.model_dump() for spec in recipe.classes],
        levels=[
            {"name": level.name, "word": level.word, "mpp": recipe.tiles.level_mpp(level), "field_px": level.field_px}
            for level in recipe.tiles.levels
        ],
        prompt_template=template,
        tile_px=recipe.tiles.tile_px,
        sampling=recipe.sampling.model_dump(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_pipeline(recipe: Recipe) -> PathUpPipeline:
    """A pipeline with random weights (drawn from the recipe's seeds)."""
    return assemble(build_components(recipe), recipe)


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What a U-Net may compute in."""


def load_pipeline(
    folder: str | Path, *, device: str | torch.device = "cpu", precision: str = "fp32"
) -> PathUpPipeline:
    """Load a trained PathUp model, ready to sample.

    Parameters
    ----------
    folder
        As ``pathup train diffusion`` writes it.
    device
        Where to put it.
    precision
        One of `PRECISIONS`, for the U-Net alone: pixels are decoded, and latents kept, in float32 whatever it is.

    Raises
    ------
    PathUpError
        There is no such precision, or the folder is missing, is no diffusers model, or was not made by PathUp (so it
        names no classes).
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, list(PRECISIONS))
    path = Path(folder)
    if not (path / "model_index.json").is_file():
        raise PathUpError(
            f"{folder} holds no model: a folder with model_index.json, as 'pathup train diffusion' writes, was needed"
        )
    pipeline = load_part(PathUpPipeline.from_pretrained, "a PathUp model", path, use_safetensors=True)
    if not pipeline.config.classes or not pipeline.config.levels:
        raise PathUpError(
            f"{folder} is a diffusers model that names no classes and levels; "
            f"train it with 'pathup train diffusion --pretrained {folder}'"
        )
    check_tokenizer(pipeline.tokenizer, pipeline.text_encoder, pipeline.all_prompts(), path)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet, pipeline.scale_encoder):
        if part is not None:
            part.eval().requires_grad_(False)
    torch.nn.Module.to(pipeline.unet, PRECISIONS[precision])  # diffusers' own warns of parts that it keeps in float32
    pipeline.text_encoder.float()  # transformers keeps the precision of the file, diffusers does not
    if torch.device(device).type == "cpu":  # oneDNN's convolutions take an eighth less time
        for part in (pipeline.vae, pipeline.unet):
            part.to(memory_format=torch.channels_last)
    return pipeline.to(device)
