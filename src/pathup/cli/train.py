"""`pathup train`: the autoencoder, the diffusion model (patho-align), and the encoder that tiles are compared by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Train the autoencoder, the diffusion model or the tissue encoder.")


@app.callback()
def train() -> None:
    """Train the autoencoder, the diffusion model or the tissue encoder."""


Tiles = Annotated[Path, typer.Option(help="Folder that 'pathup tiles' wrote.")]
Output = Annotated[Path, typer.Option(help="Folder of the run: checkpoints, sample sheets, curves, the model.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="A shipped recipe (bracs, atlas, tiny) or a YAML file.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --output, exactly where it stood.")]
Steps = Annotated[int | None, typer.Option(help="Instead of the recipe's number of steps.")]
Seed = Annotated[int | None, typer.Option(help="Instead of the recipe's seed.")]
Precision = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16, instead of the recipe's.")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Train on the CPU even where there is a GPU.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read tiles; 0: the training process itself.")]
Wandb = Annotated[str | None, typer.Option(help="Log to this Weights & Biases project as well.")]


@app.command()
def autoencoder(
    tiles: Tiles,
    output: Output,
    recipe: RecipeName = "atlas",
    pretrained: Annotated[str | None, typer.Option(help="Start from this autoencoder (folder or hub id).")] = None,
    resume: Resume = False,
    steps: Steps = None,
    seed: Seed = None,
    precision: Precision = None,
    cpu: Cpu = False,
    workers: Workers = 0,
    wandb: Wandb = None,
) -> None:
    """Train a KL autoencoder on tiles, for those without a pretrained one."""
    from pathup.training.runs import train_autoencoder

    folder = train_autoencoder(
        tiles,
        output,
        recipe,
        pretrained=pretrained,
        resume=resume,
        changes={"steps": steps, "seed": seed, "precision": precision},
        cpu=cpu,
        workers=workers,
        wandb_project=wandb,
    )
    _written("autoencoder", folder)


@app.command()
def diffusion(
    tiles: Tiles,
    output: Output,
    recipe: RecipeName = "atlas",
    pretrained: Annotated[
        str | None, typer.Option(help="Start from this Stable Diffusion 1.x/2.x (diffusers folder or hub id).")
    ] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="Train from scratch on the latents of this autoencoder (folder or hub id).")
    ] = None,
    resume: Resume = False,
    steps: Steps = None,
    seed: Seed = None,
    precision: Precision = None,
    batch_size: Annotated[int | None, typer.Option(help="Tiles a process and forward.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Train for about so long instead of the recipe's steps.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Instead of the recipe's.")] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of the feature entropy loss.")] = None,
    patho_align: Annotated[
        bool | None,
        typer.Option(
            "--patho-align/--no-patho-align",
            help="Prompts of class and level, or one neutral prompt. [default: the recipe's]",
        ),
    ] = None,
    feature_entropy: Annotated[
        bool | None,
        typer.Option(
            "--feature-entropy/--no-feature-entropy", help="The feature entropy loss. [default: the recipe's]"
        ),
    ] = None,
    level: Annotated[str | None, typer.Option(help="Train on this level's tiles alone.")] = None,
    latents: Annotated[Path | None, typer.Option(help="Folder of the latent cache, to share between runs.")] = None,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, more time.")] = False,
    lora_rank: Annotated[
        int | None,
        typer.Option(
            help="Train adapters of this rank in a pretrained U-Net's attentions, the rest frozen: much less memory."
        ),
    ] = None,
    adam_8bit: Annotated[
        bool | None, typer.Option("--adam-8bit", help="AdamW keeps its moments in 8 bits: a quarter of their memory.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Fuse the U-Net's blocks: some minutes first, then faster steps.")
    ] = False,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="On a GPU, record a step's passes once and replay them: small U-Nets wait for Python else."
        ),
    ] = False,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard", help="Each of several processes holds a share of weights, gradients and moments (FSDP2)."
        ),
    ] = False,
    cpu: Cpu = False,
    workers: Workers = 0,
    wandb: Wandb = None,
) -> None:
    """Train the diffusion model on class and level (patho-align) with the feature entropy loss."""
    from pathup.training.runs import train_diffusion

    folder = train_diffusion(
        tiles,
        output,
        recipe,
        pretrained=pretrained,
        autoencoder=autoencoder,
        level=level,
        latents=latents,
        resume=resume,
        minutes=minutes,
        changes={
            "steps": steps,
            "seed": seed,
            "precision": precision,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "feature_entropy.beta": beta,
            "patho_align": patho_align,
            "feature_entropy.enabled": feature_entropy,
            "lora_rank": lora_rank,
            "adam_8bit": adam_8bit,
        },
        cpu=cpu,
        workers=workers,
        wandb_project=wandb,
        gradient_checkpointing=gradient_checkpointing,
        compiled=compiled,
        recorded=record,
        sharded=shard,
    )
    _written("model", folder)


@app.command()
def encoder(
    tiles: Tiles,
    output: Output,
    recipe: RecipeName = "atlas",
    pretrained: Annotated[str | None, typer.Option(help="Start from this encoder (a folder).")] = None,
    resume: Resume = False,
    steps: Steps = None,
    seed: Seed = None,
    learning_rate: Annotated[float | None, typer.Option(help="Instead of the recipe's.")] = None,
    precision: Precision = None,
    cpu: Cpu = False,
    workers: Workers = 0,
    wandb: Wandb = None,
) -> None:
    """Train a tissue encoder: the features by which 'pathup evaluate' compares tiles, where no other is at hand."""
    from pathup.training.runs import train_encoder

    folder = train_encoder(
        tiles,
        output,
        recipe,
        pretrained=pretrained,
        resume=resume,
        changes={"steps": steps, "seed": seed, "precision": precision, "learning_rate": learning_rate},
        cpu=cpu,
        workers=workers,
        wandb_project=wandb,
    )
    _written("encoder", folder)


def _written(what: str, folder: Path) -> None:
    """Say where it is; of several processes the first does."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"{what} written to {folder}")
