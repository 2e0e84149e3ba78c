"""Starting and continuing a training run: its recipe, its tiles, its folder."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from pathup.errors import PathUpError
from pathup.memory import keep_freed_memory
from pathup.model.components import (
    Components,
    build_components,
    check_tokenizer,
    load_autoencoder,
    load_pretrained,
    with_scale,
)
from pathup.model.schedulers import make_scheduler, set_steps
from pathup.processes import PATIENCE, check_one_process, computes_on_cpu
from pathup.recipes import Recipe, load_recipe, recipe_with
from pathup.storage import claim_folder
from pathup.tiles.dataset import TileFolder
from pathup.tiles.taxonomy import all_prompts, level_of
from pathup.training.budget import within
from pathup.training.latents import encoder_sha256

if TYPE_CHECKING:
    from pathup.training.patho_align import PathoAlignTrainer

FREE_TO_CHANGE = {
    "steps", "checkpoint_every", "keep_checkpoints", "sample_every", "log_every", "encode_batch", "learning_rate",
    "muon_learning_rate", "decay_steps",
}  # fmt: skip
"""Fields that may differ when a run is resumed: how far and how fast it goes and how often it saves, not what it is."""


def ask_for_repeatable_kernels() -> None:
    """Have a GPU take its deterministic kernels, so that a resumed run can be the unbroken one; a CPU's always are.

    An operation that has none only warns.
    """
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings: Any = torch.utils.deterministic
        settings.fill_uninitialized_memory = False  # else, what is about to be written is filled first


def changed_recipe(recipe: Recipe, section: str, changes: dict[str, Any]) -> Recipe:
    """The recipe with some fields of a section replaced; None leaves a field as it is.

    A dotted name reaches into a nested section (``feature_entropy.enabled``).
    """
    asked = {f"{section}.{name}": value for name, value in changes.items() if value is not None}
    return recipe_with(recipe, asked, source="command line")


def one_level(recipe: Recipe, level: str) -> Recipe:
    """The recipe of a model that knows this spatial level alone."""
    tiles = recipe.tiles.model_copy(update={"levels": [level_of(recipe, level)]})
    return recipe.model_copy(update={"tiles": tiles})


def train_autoencoder(
    tiles: Path,
    output: Path,
    recipe_name: str,
    *,
    pretrained: str | None,
    resume: bool,
    changes: dict[str, Any],
    cpu: bool,
    workers: int,
    wandb_project: str | None,
) -> Path:
    """Run `pathup train autoencoder`; returns the autoencoder's folder."""
    from pathup.training.autoencoder import AutoencoderTrainer

    check_one_process("an autoencoder")
    ask_for_repeatable_kernels()
    recipe = changed_recipe(load_recipe(recipe_name), "autoencoder", changes)
    data = TileFolder.load(tiles, "train", recipe)
    identity = {
        "recipe": recipe.autoencoder.model_dump(mode="json", exclude=FREE_TO_CHANGE),
        "tiles": data.fingerprint(),
        "pretrained": pretrained,
    }
    trainer = AutoencoderTrainer(recipe, data, output, start=pretrained, cpu=cpu, wandb_project=wandb_project)
    if trainer.accelerator.device.type == "cpu":
        keep_freed_memory()
    claim_folder(output, "train autoencoder", identity, resume=resume)
    return trainer.run(workers=workers)


def train_encoder(
    tiles: Path,
    output: Path,
    recipe_name: str,
    *,
    pretrained: str | None,
    resume: bool,
    changes: dict[str, Any],
    cpu: bool,
    workers: int,
    wandb_project: str | None,
) -> Path:
    """Run `pathup train encoder`; returns the encoder's folder."""
    from pathup.training.encoder import EncoderTrainer

    check_one_process("an encoder")
    ask_for_repeatable_kernels()
    recipe = changed_recipe(load_recipe(recipe_name), "encoder", changes)
    data = TileFolder.load(tiles, "train", recipe)
    identity = {
        "recipe": recipe.encoder.model_dump(mode="json", exclude=FREE_TO_CHANGE),
        "tiles": data.fingerprint(),
        "pretrained": pretrained,
    }
    start = None if pretrained is None else Path(pretrained)
    trainer = EncoderTrainer(recipe, data, output, start=start, cpu=cpu, wandb_project=wandb_project)
    if trainer.accelerator.device.type == "cpu":
        keep_freed_memory()
    claim_folder(output, "train encoder", identity, resume=resume)
    return trainer.run(workers=workers)


def train_diffusion(
    tiles: Path, output: Path, recipe_name: str, *, workers: int, minutes: float | None = None, **options: Any
) -> Path:
    """Run `pathup train diffusion`; returns the model's folder. `options` are those of `diffusion_trainer`.

    With `minutes` it trains for about so long, the learning rate falling over the recipe's share of the steps.

    Raises
    ------
    PathUpError
        As `diffusion_trainer`, or training diverges or finds the disk full.
    """
    ask_for_repeatable_kernels()
    return train_for(diffusion_trainer(tiles, output, recipe_name, **options), minutes, workers=workers)


def train_for(trainer: PathoAlignTrainer, minutes: float | None, *, workers: int = 0) -> Path:
    """Train for about so long, or, without `minutes`, the recipe's steps; returns the model's folder."""
    if minutes is None:
        return trainer.run(workers=workers)
    share = trainer.spec.decay_steps / trainer.spec.steps

    def train_to(step: int, last: bool) -> tuple[int, float]:
        trainer.go_on(step, decay_steps=round(share * step) if last else 0, workers=workers)
        return trainer.step, trainer.seconds

    within(minutes, trainer.folder, train_to)
    return trainer.folder / "model"


def diffusion_trainer(
    tiles: Path,
    output: Path,
    recipe_name: str,
    *,
    pretrained: str | None,
    autoencoder: str | None,
    level: str | None,
    latents: Path | None,
    resume: bool,
    changes: dict[str, Any],
    cpu: bool,
    wandb_project: str | None,
    gradient_checkpointing: bool,
    compiled: bool = False,
    recorded: bool = False,
    sharded: bool = False,
) -> PathoAlignTrainer:
    """What `pathup train diffusion` runs, its folder claimed and nothing trained yet.

    Raises
    ------
    PathUpError
        Neither `pretrained` nor `autoencoder` is given, the parts do not fit the recipe, or the folder holds
        another run.
    """
    from pathup.training.patho_align import PathoAlignTrainer

    recipe = changed_recipe(load_recipe(recipe_name), "diffusion", changes)
    if pretrained is None and autoencoder is None:
        raise PathUpError(
            "an autoencoder is needed: --pretrained with a Stable Diffusion folder or hub id, or --autoencoder with "
            "what 'pathup train autoencoder' wrote"
        )
    data = TileFolder.load(tiles, "train", recipe)
    if level is not None:
        data = data.only(level)
        recipe = one_level(recipe, level)
    if pretrained is not None:
        parts = load_pretrained(pretrained)
        if autoencoder is not None:
            parts.vae = load_autoencoder(autoencoder)
        parts = with_scale(parts, recipe)
    else:
        parts = build_components(recipe, autoencoder=load_autoencoder(str(autoencoder)))
    if recipe.diffusion.lora_rank is not None and pretrained is None:
        raise PathUpError(
            "adapters (lora_rank) need a U-Net that was trained before: give --pretrained, or leave --lora-rank out"
        )
    _check_parts(parts, pretrained or str(autoencoder))
    recipe = _fitting_windows(recipe, parts)
    sampling = recipe.sampling
    set_steps(make_scheduler(sampling.scheduler, parts.scheduler.config), sampling.steps, sampling.step_power)
    if recipe.diffusion.patho_align:
        texts = [text for _, _, text in all_prompts(recipe)]
        check_tokenizer(parts.tokenizer, parts.text_encoder, texts, pretrained or recipe.name)
    processes = PartialState(cpu=computes_on_cpu(cpu), **({"timeout": PATIENCE} if "WORLD_SIZE" in os.environ else {}))
    if processes.device.type == "cpu":
        keep_freed_memory()
    if recipe.diffusion.precision == "fp16" and processes.device.type == "cpu":
        raise PathUpError("fp16 needs a GPU, but this run is on the CPU; train with --precision bf16 or fp32")
    identity = {
        "recipe": {
            "classes": [spec.model_dump() for spec in recipe.classes],
            "model": recipe.model.model_dump(mode="json"),
            "diffusion": recipe.diffusion.model_dump(mode="json", exclude=FREE_TO_CHANGE),
        },
        "muon": recipe.diffusion.muon_learning_rate is not None,  # how fast may change, whether may not
        "tiles": data.fingerprint(),
        "level": level,
        "encoder": encoder_sha256(parts.vae),
        "pretrained": pretrained,
        "processes": processes.num_processes,  # each sees its own share of every joint batch
    }
    trainer = PathoAlignTrainer(
        recipe,
        parts,
        data,
        output,
        cache=latents or output / "latents",
        cpu=cpu,
        wandb_project=wandb_project,
        gradient_checkpointing=gradient_checkpointing,
        compiled=compiled,
        recorded=recorded,
        sharded=sharded,
    )
    with processes.main_process_first():
        claim_folder(output, "train diffusion", identity, resume=resume or not processes.is_main_process)
    return trainer


def _check_parts(parts: Components, source: str) -> None:
    wanted, made = parts.unet.config.in_channels, parts.vae.config.latent_channels
    if wanted != made:
        raise PathUpError(
            f"the U-Net of {source} takes latents of {wanted} channels, but the autoencoder makes {made}; "
            "an autoencoder of the same channels is needed"
        )


def _fitting_windows(recipe: Recipe, parts: Components) -> Recipe:
    """The recipe with windows of one tile for the autoencoder at hand; another factor than the recipe's is told.

    Raises
    ------
    PathUpError
        The autoencoder's factor does not divide the tile.
    """
    factor, side = int(2 ** (len(parts.vae.config.block_out_channels) - 1)), recipe.tiles.tile_px
    if side % factor:
        raise PathUpError(
            f"tiles of {side} px cannot be encoded by an autoencoder that shrinks by {factor}; "
            "cut them with another tiles.tile_px, or take another autoencoder"
        )
    sampling = recipe.sampling
    window = side // factor
    if window == sampling.window_latent:
        return recipe
    overlap = sampling.overlap_latent * window // sampling.window_latent
    warnings.warn(
        f"tiles of {side} px are {window} latent positions wide for this autoencoder: sampling.window_latent is "
        f"{window} and overlap_latent {overlap} in this run (the recipe has {sampling.window_latent} and "
        f"{sampling.overlap_latent})",
        stacklevel=2,
    )
    return changed_recipe(recipe, "sampling", {"window_latent": window, "overlap_latent": overlap})
