"""The parts of a model: diffusers' and transformers' own classes, built from a recipe or loaded from a folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pathup.draws import seed_of
from pathup.errors import PathUpError, unknown
from pathup.model.scale import ScaleEncoder
from pathup.model.tokens import build_tokenizer
from pathup.recipes import AutoencoderRecipe, Recipe
from pathup.tiles.taxonomy import all_prompts

SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}
"""Short names; the others of `SCHEDULER_CLASSES` go by the name of their class."""

SCHEDULER_CLASSES = (
    *(kind.__name__ for kind in SCHEDULERS.values()),
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
)
"""diffusers' schedulers that draw no noise of their own (else a seed would not give one image), keep to the trained
noise schedule, and can begin in the middle of it, as a canvas does."""


RESPACED = (UniPCMultistepScheduler, DPMSolverMultistepScheduler)
"""Schedulers that step from any timestep to any other."""


@dataclass
class Components:
    """What a Stable Diffusion folder holds, in its own names, and what takes in the scale, where something does."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: SchedulerMixin
    scale_encoder: ScaleEncoder | None = None


def build_autoencoder(recipe: AutoencoderRecipe) -> AutoencoderKL:
    """An `AutoencoderKL` with random weights (drawn from the recipe's seed); scaling factor 1."""
    blocks = len(recipe.block_channels)
    with _Seeded(recipe.seed, "autoencoder"):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=tuple(recipe.block_channels),
            layers_per_block=recipe.layers_per_block,
            latent_channels=recipe.latent_channels,
            norm_num_groups=recipe.norm_groups,
            sample_size=recipe.crop_px,
            scaling_factor=1.0,
            force_upcast=False,
            mid_block_add_attention=recipe.mid_attention,
        )


def build_text_encoder(recipe: Recipe) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """A small CLIP text model with random weights, and its tokenizer. It stays frozen.

    Random weights are enough to tell prompts apart: the U-Net's cross-attention learns what they mean.
    """
    spec = recipe.model.text_encoder
    texts = [text for _, _, text in all_prompts(recipe)] + [recipe.model.neutral_prompt]
    tokenizer = build_tokenizer(texts, spec.max_tokens)
    longest = max(len(ids) for ids in tokenizer(texts)["input_ids"])
    if longest > spec.max_tokens:
        raise PathUpError(
            f"the longest prompt has {longest} tokens, but model.text_encoder.max_tokens is {spec.max_tokens}; raise it"
        )
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        intermediate_size=4 * spec.hidden_size,
        projection_dim=spec.hidden_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        max_position_embeddings=spec.max_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with _Seeded(recipe.diffusion.seed, "text encoder"):
        text_encoder = CLIPTextModel(config)
        # CLIP's own initial scale (0.02) leaves all prompts within a cosine of 0.99 of each other; words drawn
        # at unit scale are near-orthogonal, which is what cross-attention needs from an encoder that is not trained
        embeddings = text_encoder.get_input_embeddings()
        torch.nn.init.normal_(embeddings.weight, std=1.0)
        return text_encoder, tokenizer


def token_ids(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, padded or cut to the length that the text encoder takes."""
    length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
    ids: list[list[int]] = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True)["input_ids"]
    return ids


def check_tokenizer(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, texts: Sequence[str], source: str | Path
) -> None:
    """Check that a model's tokenizer tells prompts apart.

    transformers loads one whose vocabulary files are missing without a word; every prompt is then the same.

    Raises
    ------
    PathUpError
        It knows ids that the text encoder does not, or it makes the same tokens of all prompts and of the empty one.

    Warns
    -----
    UserWarning
        Two prompts, or a prompt and the empty one, become the same tokens.
    """
    if len(tokenizer) > text_encoder.config.vocab_size:
        raise PathUpError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens and the text encoder knows "
            f"{text_encoder.config.vocab_size}; a tokenizer and text encoder of one model are needed"
        )
    distinct = list(dict.fromkeys([*texts, ""]))
    first: dict[tuple[int, ...], str] = {}
    for text, ids in zip(distinct, token_ids(tokenizer, text_encoder, distinct), strict=True):
        first.setdefault(tuple(ids), text)
    if len(first) == 1 < len(distinct):
        raise PathUpError(
            f"{source}: the tokenizer makes the same tokens of every prompt, so classes could not be told apart; its "
            "vocabulary is missing: vocab.json and merges.txt, or tokenizer.json, are needed"
        )
    if len(first) < len(distinct):
        lost = sorted(set(distinct) - set(first.values()))
        warnings.warn(
            f"{source}: the tokenizer cannot tell {len(lost)} of {len(distinct)} prompts from others (the first: "
            f"'{lost[0]}'); its vocabulary lacks their words, or they are cut off before they differ",
            stacklevel=2,
        )


POOLING_HEADS = 4
"""Of the attention that pools a prompt."""


def build_unet(recipe: Recipe, latent_channels: int, prompt_width: int) -> UNet2DConditionModel:
    """A `UNet2DConditionModel` with random weights for windows of the recipe's size."""
    spec = recipe.model.unet
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in spec.attention)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(spec.attention))
    pooled = {"addition_embed_type": "text", "addition_embed_type_num_heads": POOLING_HEADS}
    with _Seeded(recipe.diffusion.seed, "unet"):
        return UNet2DConditionModel(
            sample_size=recipe.sampling.window_latent,
            in_channels=latent_channels,
            out_channels=latent_channels,
            down_block_types=down,
            up_block_types=up,
            block_out_channels=tuple(spec.block_channels),
            layers_per_block=spec.layers_per_block,
            # diffusers names this 'attention_head_dim' but reads it as the number of heads
            attention_head_dim=tuple(max(1, width // spec.head_channels) for width in spec.block_channels),
            norm_num_groups=spec.norm_groups,
            cross_attention_dim=prompt_width,
            use_linear_projection=True,
            **(pooled if spec.pooled_prompt else {}),
        )


def with_scale(components: Components, recipe: Recipe) -> Components:
    """The components, with a new scale encoder where the recipe wants one and they have none."""
    if components.scale_encoder is not None or not recipe.model.scale_conditioning:
        return components
    with _Seeded(recipe.diffusion.seed, "scale encoder"):
        return replace(components, scale_encoder=ScaleEncoder(int(components.text_encoder.config.hidden_size)))


def build_scheduler(recipe: Recipe) -> DDIMScheduler:
    """The training noise schedule as a DDIM scheduler (the paper's)."""
    noise = recipe.model.noise
    return DDIMScheduler(
        num_train_timesteps=noise.steps,
        beta_start=noise.beta_start,
        beta_end=noise.beta_end,
        beta_schedule=noise.schedule,
        prediction_type=noise.prediction,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def make_scheduler(name: str, config: Any) -> Any:
    """A fresh scheduler for a trained schedule.

    Parameters
    ----------
    name
        One of `SCHEDULERS` or of `SCHEDULER_CLASSES`.
    config
        Any diffusers scheduler's.

    Raises
    ------
    PathUpError
        It is none of them (random ones and those for other kinds of model among them), or does not fit this schedule.
    """
    if name not in SCHEDULERS and name not in SCHEDULER_CLASSES:
        if isinstance(getattr(diffusers, name if name.endswith("Scheduler") else "", None), type):
            raise PathUpError(
                f"scheduler {name} draws noise of its own, or cannot begin in the middle of such a noise schedule; "
                f"choose one of {', '.join([*SCHEDULERS, *SCHEDULER_CLASSES])}"
            )
        raise unknown("scheduler", name, [*SCHEDULERS, *SCHEDULER_CLASSES])
    kind: Any = SCHEDULERS.get(name) or getattr(diffusers, name)
    settings = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    for own in (
        "skip_prk_steps",
        "algorithm_type",
    ):  # PNDM's; DPM-Solver's, maybe a random one
        settings.pop(own, None)
    if name == "ddim":
        settings["clip_sample"] = False
    try:
        made = kind.from_config(settings)
        made.set_timesteps(2)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise PathUpError(f"scheduler {name} does not fit this model's noise schedule ({error})") from error
    return kind.from_config(settings)


def set_steps(scheduler: Any, steps: int, power: float = 1.0) -> None:
    """Set a scheduler to `steps` timesteps, the n-th of N (from 0) being ``T (1 - (n / N) ** power) - 1``.

    A power of 1 is the scheduler's own even spread. Above 1 more of the steps are at high noise. Only `RESPACED`
    schedulers can do that; the steps of others are evenly spread whatever the power.

    Raises
    ------
    PathUpError
        The noise schedule has fewer, or diffusers' rounding would leave it, or not begin at pure noise, with that many.
    """
    trained = int(scheduler.config.num_train_timesteps)
    if not 1 <= steps <= trained:
        raise PathUpError(f"{steps} steps were asked for, but this model's noise schedule has 1 to {trained}")
    scheduler.set_timesteps(steps)
    if not _within_schedule(scheduler, trained):
        fitting = steps
        while fitting > 1 and not _within_schedule(scheduler, trained):
            fitting -= 1
            scheduler.set_timesteps(fitting)
        raise PathUpError(
            f"{steps} steps cannot be spread over this model's noise schedule of {trained} timesteps with "
            f"{type(scheduler).__name__}; {fitting} can"
        )
    if power != 1 and isinstance(scheduler, RESPACED):
        _respace(scheduler, steps, power)


def _respace(scheduler: Any, steps: int, power: float) -> None:
    """Replace what these schedulers keep of their steps: timesteps, and sigmas that end in 0."""
    trained = int(scheduler.config.num_train_timesteps)
    spread = trained * (1 - (torch.arange(steps, dtype=torch.float64) / steps) ** power)
    taken = (spread.round().long() - 1).clamp_min(0)
    if len(taken.unique()) < steps:
        raise PathUpError(
            f"{steps} steps are too many for this model's noise schedule of {trained} timesteps with step_power "
            f"{power:g}, by which the first ones would be one timestep; take fewer, or step_power 1"
        )
    alpha_bar = scheduler.alphas_cumprod.double()[taken]
    sigmas = torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), torch.zeros(1)]).float()
    scheduler.timesteps, scheduler.sigmas = taken, sigmas


def _within_schedule(scheduler: Any, trained: int) -> bool:
    taken = scheduler.timesteps
    steps, low, high = len(taken.unique()), float(taken.min()), float(taken.max())
    # 'leading' counts up from 0 by a whole stride; a stride rounded down from 1.9 to 1 would end half-way
    end = trained * (steps - 1) / steps if scheduler.config.get("timestep_spacing") == "leading" else 0
    return low >= 0 and 0.75 * end <= high <= trained - 1


def check_finite(latents: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise a PathUpError where a model of this precision has overflowed."""
    if not torch.isfinite(latents).all():
        raise PathUpError(
            f"the model's predictions overflowed in {str(dtype).removeprefix('torch.')}; load it in float32, "
            "or lower the guidance"
        )


def build_components(recipe: Recipe, *, autoencoder: AutoencoderKL | None = None) -> Components:
    """Everything from scratch, but for an autoencoder that may be given."""
    vae = autoencoder if autoencoder is not None else build_autoencoder(recipe.autoencoder)
    text_encoder, tokenizer = build_text_encoder(recipe)
    unet = build_unet(recipe, vae.config.latent_channels, text_encoder.config.hidden_size)
    return with_scale(Components(vae, text_encoder, tokenizer, unet, build_scheduler(recipe)), recipe)


def load_autoencoder(source: str | Path) -> AutoencoderKL:
    """An `AutoencoderKL` from its own folder, from a model's folder (its `vae` part) or from a hub id."""
    path = Path(source)

    def load(subfolder: str | None) -> AutoencoderKL:
        return load_part(
            AutoencoderKL.from_pretrained, "an autoencoder", source, subfolder=subfolder, use_safetensors=True
        )

    if path.exists():
        return load("vae" if (path / "vae").is_dir() else None)
    try:
        return load("vae")  # a hub id of a whole model
    except PathUpError as error:
        try:
            return load(None)  # or of an autoencoder alone
        except PathUpError:
            raise error from None


def load_pretrained(source: str | Path) -> Components:
    """Components of any Stable Diffusion 1.x/2.x (or PathUp) folder or hub id in diffusers format.

    Raises
    ------
    PathUpError
        The folder is missing or incomplete, or its parts do not fit each other.
    """

    def part(loader: Callable[..., Any], name: str, **settings: Any) -> Any:
        return load_part(loader, f"'{name}' of a Stable Diffusion model", source, subfolder=name, **settings)

    vae = part(AutoencoderKL.from_pretrained, "vae", use_safetensors=True)
    # transformers would keep the precision that the file has; training and sampling are in the U-Net's
    text_encoder = part(CLIPTextModel.from_pretrained, "text_encoder", use_safetensors=True, dtype=torch.float32)
    tokenizer = part(CLIPTokenizer.from_pretrained, "tokenizer")
    unet = part(UNet2DConditionModel.from_pretrained, "unet", use_safetensors=True)
    scheduler = part(DDIMScheduler.from_pretrained, "scheduler")
    if unet.config.in_channels != vae.config.latent_channels:
        raise PathUpError(
            f"{source}: the U-Net takes {unet.config.in_channels} channels and the autoencoder makes "
            f"{vae.config.latent_channels}; a text-to-image model (not an inpainting or depth one) is needed"
        )
    if unet.mid_block is None:
        raise PathUpError(
            f"{source}: the U-Net has no middle block, from which the feature entropy loss takes its features; "
            "Stable Diffusion 1.x or 2.x is needed"
        )
    if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
        raise PathUpError(
            f"{source}: the U-Net attends to prompts {unet.config.cross_attention_dim} wide and the text encoder makes "
            f"{text_encoder.config.hidden_size}; Stable Diffusion 1.x or 2.x is needed"
        )
    scale = part(ScaleEncoder.from_pretrained, "scale_encoder") if (Path(source) / "scale_encoder").is_dir() else None
    return Components(vae, text_encoder, tokenizer, unet, make_scheduler("ddim", scheduler.config), scale)


def load_part(loader: Callable[..., Any], what: str, source: str | Path, **settings: Any) -> Any:
    """Call a `from_pretrained` and turn what goes wrong into one sentence."""
    settings = {key: value for key, value in settings.items() if value is not None}
    path = Path(source)
    looks_like_a_hub_id = str(source).count("/") == 1 and str(source)[0] not in "/."
    if not path.is_dir() and not looks_like_a_hub_id:
        raise PathUpError(
            f"{source} is not a folder; {what} in diffusers format (or a hub id such as org/name) was needed"
        )
    try:
        return loader(str(source), **settings)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        first = " ".join(str(error).split())[:300]
        raise PathUpError(f"{source} does not load as {what} in diffusers format: {first}") from error
    except Exception as error:  # safetensors and the hub client raise types of their own
        raise PathUpError(f"{source} does not load as {what}: {type(error).__name__}: {error}") from error


class _Seeded:
    """Build modules under a seed of their own and leave torch's running generator as it was."""

    def __init__(self, seed: int, purpose: str) -> None:
        self._seed = seed_of(seed, "weights", purpose)

    def __enter__(self) -> None:
        self._fork = torch.random.fork_rng(devices=[])
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *details: Any) -> None:
        self._fork.__exit__(*details)
