"""The parts of a model: diffusers' and transformers' own classes, built from a recipe or loaded from a folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, SchedulerMixin, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from pathup.draws import seed_of
from pathup.errors import PathUpError
from pathup.model.scale import ScaleEncoder
from pathup.model.schedulers import build_scheduler, make_scheduler
from pathup.model.tokens import build_tokenizer
from pathup.recipes import AutoencoderRecipe, Recipe
from pathup.tiles.taxonomy import all_prompts


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
        with _bars_off() if path.is_dir() else nullcontext():  # what is fetched from the hub takes long and shows it
            return loader(str(source), **settings)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        first = " ".join(str(error).split())[:300]
        raise PathUpError(f"{source} does not load as {what} in diffusers format: {first}") from error
    except Exception as error:  # safetensors and the hub client raise types of their own
        raise PathUpError(f"{source} does not load as {what}: {type(error).__name__}: {error}") from error


@contextmanager
def _bars_off() -> Iterator[None]:
    """Within it the libraries show no bar for each part that they load: our own are about images and steps."""
    shown = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


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
