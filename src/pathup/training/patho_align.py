"""Patho-align: training the denoising U-Net on prompts of class and level, with the feature entropy loss.

The data flow: at a step, each sample's tile, orientation, noise, timestep and prompt dropout are functions of (seed,
position); its cached latent is noised, the U-Net predicts, and L = L_r + beta L_e (eq. 4) is descended. Then the
features of all processes move the memory and the averaged weights follow. A checkpoint holds all of that, so a
resumed run is the unbroken one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from pathup import __version__, storage
from pathup.model.aligned import UNetWithFeatures
from pathup.model.attention import fast_attention
from pathup.model.compiling import compile_blocks
from pathup.model.components import Components
from pathup.model.export import save_pipeline
from pathup.model.feature_entropy import FeatureEntropyLoss
from pathup.model.pipeline import PathUpPipeline, assemble
from pathup.model.pointwise import pointwise_products
from pathup.processes import check_launcher, computes_on_cpu, launched_processes
from pathup.recipes import Recipe, save_recipe
from pathup.tiles.dataset import TileFolder
from pathup.tiles.provenance import carry_sources
from pathup.tiles.taxonomy import all_prompts
from pathup.training.adapters import add_adapters, has_adapters, merge_adapters, save_adapters, trained_state
from pathup.training.averages import Average
from pathup.training.batches import Batch, Batches
from pathup.training.checkpoints import newest_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from pathup.training.journal import Journal
from pathup.training.latents import LatentCache
from pathup.training.objective import Objective
from pathup.training.optimizers import build_optimizers
from pathup.training.recording import Passed, Recorded, check_recording, cuda_graph
from pathup.training.schedules import learning_rate
from pathup.training.sharding import Sharded, check_sharding, load_state, sharding_is_asked, whole
from pathup.training.sheets import image_sheet


class PathoAlignTrainer:
    """One run of `pathup train diffusion`.

    Parameters
    ----------
    recipe
        The whole recipe.
    components
        The model's parts; the U-Net is trained, the others stay as they are.
    tiles
        The training tiles.
    folder
        The run's folder.
    cache
        The latent cache's folder.
    gradient_checkpointing
        Keep less for the backward pass and compute it again: less memory, more time.
    compiled
        Have `torch.compile` fuse the U-Net's blocks: a minute before the first step, then faster steps on a GPU.
    recorded
        Record a micro-batch's passes as a CUDA graph and replay it.
    sharded
        Each process holds a share of weights, gradients and moments.

    Raises
    ------
    PathUpError
        `recorded` or `sharded` is asked for with what it cannot have (`check_recording`, `check_sharding`), or the
        launcher asks for DeepSpeed.
    """

    def __init__(
        self,
        recipe: Recipe,
        components: Components,
        tiles: TileFolder,
        folder: Path,
        *,
        cache: Path,
        cpu: bool = False,
        wandb_project: str | None = None,
        gradient_checkpointing: bool = False,
        compiled: bool = False,
        recorded: bool = False,
        sharded: bool = False,
    ) -> None:
        self.recipe, self.spec, self.parts, self.folder = recipe, recipe.diffusion, components, folder
        spec = self.spec
        precision = {"fp32": "no"}.get(spec.precision, spec.precision)
        sharded = sharding_is_asked(sharded)
        self.accelerator = Accelerator(mixed_precision=precision, cpu=computes_on_cpu(cpu))
        check_launcher(self.accelerator)
        device = self.accelerator.device
        if recorded:
            check_recording(self.accelerator, spec, gradient_checkpointing=gradient_checkpointing)
        if sharded:
            check_sharding(self.accelerator.num_processes, spec, compiled=compiled)
        self._wandb, self._recorded = wandb_project, recorded
        self.parts.vae.to(device).eval().requires_grad_(False)
        self.parts.text_encoder.to(device).eval().requires_grad_(False)
        unet = self.parts.unet.to(device).float().train()
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if spec.lora_rank is not None:
            add_adapters(unet, spec.lora_rank, spec.seed)
        if compiled:
            compile_blocks(unet.to(memory_format=torch.channels_last))
        model = UNetWithFeatures(unet, self.parts.scale_encoder).to(device).train()
        self._sharded: Sharded | None = None
        if sharded:
            self._sharded = Sharded(self.accelerator.prepare_model(model, evaluation_mode=True), device)
        self.average = Average(model, spec.ema_decay)
        self.cache = LatentCache(
            cache,
            tiles,
            self.parts.vae,
            orientations=spec.orientations,
            seed=spec.seed,
            bfloat16=spec.precision == "bf16",
        )
        self.prompts = [(label, level) for label, level, _ in all_prompts(recipe)]
        width = int(unet.config.block_out_channels[-1])
        self.entropy = FeatureEntropyLoss(
            len(self.prompts),
            width,
            temperature=spec.feature_entropy.temperature,
            momentum=spec.feature_entropy.momentum,
            seed=spec.seed,
        ).to(device)
        self.optimizers = build_optimizers(model, unet, spec)
        self._peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers.values()]
        self.model = model if sharded else self.accelerator.prepare_model(model)
        prepared = [self.accelerator.prepare_optimizer(optimizer) for optimizer in self.optimizers.values()]
        self.optimizers = dict(zip(self.optimizers, prepared, strict=True))
        self.pipeline = assemble(self.parts, recipe)
        self.step = 0
        self.seconds = 0.0
        """Of training so far, over all parts of an interrupted run; without encoding, saving and sample sheets."""
        self.seconds_a_step: float | None = None
        """Of the newest steps between two lines of the log; None before there were two."""

    @property
    def trained(self) -> UNetWithFeatures:
        """What is being trained, out of any wrapper."""
        return self.accelerator.unwrap_model(self.model)

    # -- the run --------------------------------------------------------------------------------------------

    def run(self, *, workers: int = 0) -> Path:
        """Train to the recipe's last step, from the newest checkpoint where there is one.

        Returns
        -------
        Path
            The model's folder (averaged weights), which `PathUpPipeline.from_pretrained` loads.
        """
        main, device, spec = self.accelerator.is_main_process, self.accelerator.device, self.spec
        takes_part = main or self._sharded is not None  # what is kept is put together by all
        if main:
            save_recipe(self.recipe, self.folder / "recipe.yaml")
        self.cache.fill_shown(spec.encode_batch, device, launched_processes(device.type)[0])
        self.accelerator.wait_for_everyone()
        texts = [self.pipeline.prompt(label, level) for label, level in self.prompts]
        encode = self.pipeline.encode_prompts
        self._objective = Objective(self.spec, self.parts.scheduler, self.entropy, encode(texts), encode([""]))
        self._passes = Recorded(self._descend, self._clear, cuda_graph) if self._recorded else self._descend
        self._resume()
        curves = Journal(
            self.folder,
            steps=spec.steps,
            first_step=self.step,
            title="diffusion",
            wandb_project=self._wandb,
            active=main,
        )
        unet = self.trained.unet
        with fast_attention(unet, device), pointwise_products(unet, device), curves as journal:
            stream = self._stream(workers)
            logged, started = None, time.perf_counter()
            while self.step < spec.steps:
                last = self.step + 1 == spec.steps
                told = (self.step + 1) % spec.log_every == 0 or last
                values = self._train_step(stream, told)
                self.step += 1
                journal.advance()
                if told:
                    journal.record(self.step, values())
                    now = self.step, time.perf_counter()
                    if logged is not None:
                        self.seconds_a_step = (now[1] - logged[1]) / (now[0] - logged[0])
                    logged = now
                self.seconds += time.perf_counter() - started
                if takes_part and (self.step % spec.checkpoint_every == 0 or last):
                    self._save()
                if takes_part and (self.step % spec.sample_every == 0 or last):
                    self._sample(journal)
                started = time.perf_counter()
        if takes_part:
            self.export(self.folder / "model")
        self.accelerator.wait_for_everyone()
        return self.folder / "model"

    def go_on(self, steps: int, *, decay_steps: int, workers: int = 0) -> Path:
        """`run` again, to another last step, from where it stands: for budgets that are known only by then.

        The learning rate falls over the last `decay_steps`.
        """
        more = self.spec.model_copy(update={"steps": steps, "decay_steps": decay_steps})
        self.recipe, self.spec = self.recipe.model_copy(update={"diffusion": more}), more
        return self.run(workers=workers)

    def slow_down(self, share: float) -> None:
        """Multiply the learning rates by `share` from the next step on."""
        self._peaks = [share * peak for peak in self._peaks]

    def _stream(self, workers: int) -> Iterator[Batch]:
        spec = self.spec
        batches = Batches(
            self.cache,
            spec,
            self.prompts,
            self.parts.scheduler,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        numbers = range(self.step * spec.gradient_accumulation, spec.steps * spec.gradient_accumulation)
        pinned = self.accelerator.device.type == "cuda"  # so that copying does not wait for the GPU
        yield from DataLoader(batches, batch_size=None, sampler=numbers, num_workers=workers, pin_memory=pinned)

    def _train_step(self, stream: Iterator[Batch], logged: bool) -> Any:
        spec, rounds = self.spec, self.spec.gradient_accumulation
        share_of_peak = learning_rate(
            self.step, peak=1.0, warmup=spec.warmup_steps, total=spec.steps, decay=spec.decay_steps
        )
        for optimizer, peak in zip(self.optimizers.values(), self._peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * share_of_peak
        loaded = [next(stream) for _ in range(rounds)]
        device, share = self.accelerator.device, self._objective.entropy_share(loaded, self.accelerator)
        if not isinstance(share, torch.Tensor):
            share = torch.full((), share, device=device)  # copying a number to a GPU would wait for it
        batches = [_on(device, batch) for batch in loaded]
        passed = []
        for micro, batch in enumerate(batches):
            with nullcontext() if micro == rounds - 1 else self.accelerator.no_sync(self.model):
                one = self._passes(batch, share)
                passed.append(one if rounds == 1 or not self._recorded else Passed(*(part.clone() for part in one)))
        gap = None
        if logged and spec.patho_align:  # on the model itself: a wrapper awaits a backward pass
            gap = self._objective.prompt_gap(self.trained, batches[-1], passed[-1].error_B, self.accelerator)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), spec.clip_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self._clear()
        if self._objective.with_entropy:
            own = torch.cat([one.z_BD for one in passed]), torch.cat([one.prompt_B for one in passed])
            z_ND, prompt_N = self.accelerator.gather(own)
            whole_N = z_ND.isfinite().all(1)  # under fp16 a forward may overflow; its step is skipped
            self.entropy.update(z_ND.where(whole_N[:, None], 0.0), prompt_N.where(whole_N, -1))
        self.average.update(self.step)

        def values() -> dict[str, float]:
            told = {"L_r": self._over_processes([one.reconstruction for one in passed])}
            if gap is not None:
                told["prompt_gap"] = gap
            if self._objective.with_entropy:
                told["L_e"] = self._over_processes([one.entropy for one in passed])
            if self._scaler is None or torch.isfinite(norm):  # fp16's loss scale overflows now and then by design
                told["gradient_norm"] = float(whole({"norm": norm})["norm"])
            return {**told, "learning_rate": self._peaks[0] * share_of_peak}

        return values

    def _descend(self, batch: Batch, share: torch.Tensor) -> Passed:
        """Forward and backward of a micro-batch: gradients add up to those of L = L_r + beta L_e."""
        losses = self._objective.losses(self.model, batch)
        l_r, l_e = losses.error_B.mean() / self.spec.gradient_accumulation, losses.entropy * share
        self.accelerator.backward(l_r + self.spec.feature_entropy.beta * l_e)
        return Passed(losses.error_B.detach(), l_r.detach(), l_e.detach(), losses.z_BD, losses.prompt_B)

    def _clear(self) -> None:
        """Set gradients to zero; in place where a recording writes to them."""
        self.model.zero_grad(set_to_none=not self._recorded)

    def _over_processes(self, parts: list[torch.Tensor]) -> float:
        """The sum of one process's micro-batches, averaged over all processes, as their gradients are."""
        return float(self.accelerator.reduce(torch.stack(parts).sum(), reduction="mean"))

    @property
    def _scaler(self) -> Any:
        """The gradient scaler of fp16 training; None in other precisions."""
        return self.accelerator.scaler

    # -- keeping --------------------------------------------------------------------------------------------

    def _save(self) -> None:
        main = self.accelerator.is_main_process
        kept = {
            "model": trained_state(self.trained),
            "average": self.average.tensors,
            "feature_memory": self.entropy.state_dict(),
            **{name: optimizer_tensors(optimizer) for name, optimizer in self.optimizers.items()},
        }
        kept = {name: whole(tensors, keep=main) for name, tensors in kept.items()}
        if not main:
            return
        save_checkpoint(
            self.folder / "checkpoints",
            self.step,
            kept,
            {
                "step": self.step,
                "seconds": self.seconds,
                "scaler": self._scaler.state_dict() if self._scaler else None,
            },
            keep=self.spec.keep_checkpoints,
        )

    def _resume(self) -> None:
        checkpoint = newest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        self.step, self.seconds = checkpoint.step, float(checkpoint.values().get("seconds", 0.0))
        load_state(self.trained, checkpoint.tensors("model"))
        self.average.load(checkpoint.tensors("average"))
        self.entropy.load_state_dict(checkpoint.tensors("feature_memory"))
        for name, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, checkpoint.tensors(name))
        if self._scaler:
            self._scaler.load_state_dict(checkpoint.values()["scaler"])

    def averaged(self) -> UNetWithFeatures | None:
        """The model with the averaged weights; with weights in shards, None in all processes but the main one."""
        main, tensors = self.accelerator.is_main_process, self.average.tensors
        if self._sharded is not None:
            return self._sharded.twin(tensors, self.accelerator.device, keep=main)
        twin = copy.deepcopy(self.trained)
        load_state(twin, tensors)
        return twin

    def _pipeline(self, twin: UNetWithFeatures) -> PathUpPipeline:
        """The pipeline of a copy of the model, into which its adapters are merged."""
        if has_adapters(twin.unet):
            merge_adapters(twin.unet)
        return assemble(replace(self.parts, unet=twin.eval().unet, scale_encoder=twin.scale_encoder), self.recipe)

    def export(self, target: Path) -> None:
        """Write the model as a diffusers folder, with its recipe, memory and training values beside it."""
        twin, spec = self.averaged(), self.spec
        if twin is None:
            return
        seen = self.step * spec.batch_size * spec.gradient_accumulation * self.accelerator.num_processes
        made = {"steps": self.step, "tiles_seen": seen, "seconds": round(self.seconds, 1)}
        with storage.atomic_folder(target) as partial:
            if has_adapters(twin.unet):
                save_adapters(twin.unet, partial)
            save_pipeline(self._pipeline(twin), partial)
            memory = {name: value.cpu() for name, value in self.entropy.state_dict().items()}
            save_file(memory, partial / "feature_memory.safetensors")
            save_recipe(self.recipe, partial / "recipe.yaml")
            told = {"pathup": __version__, **made, "tiles": self.cache.tiles.fingerprint()}
            storage.write_json(partial / "training.json", told)
            carry_sources(self.cache.tiles.folder, partial)

    def _sample(self, journal: Journal) -> None:
        twin = self.averaged()
        if twin is None:
            return
        pipeline, images, titles = self._pipeline(twin), [], []
        for level in pipeline.level_names:
            pixels = pipeline(pipeline.labels, level, seed=self.spec.seed, output_type="pt")
            images.append(torch.as_tensor(pixels) * 2 - 1)
            titles += [f"{label} {level}" for label in pipeline.labels]
        path = self.folder / "sheets" / f"{self.step:08d}.png"
        image_sheet(torch.cat(images), path, columns=len(pipeline.labels), titles=titles)
        journal.draw_curves()
        journal.say(f"step {self.step}: samples in {path}")


def _on(device: torch.device, batch: Batch) -> Batch:
    return Batch(*(column.to(device, non_blocking=True) for column in batch))
