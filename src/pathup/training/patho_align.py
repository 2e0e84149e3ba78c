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
from rich.console import Console
from rich.progress import Progress
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
from pathup.recipes import Recipe, save_recipe
from pathup.tiles.dataset import TileFolder
from pathup.tiles.taxonomy import all_prompts
from pathup.training.batches import Batch, Batches, loss_weights, multiscale_error, training_target
from pathup.training.checkpoints import newest_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from pathup.training.journal import Journal
from pathup.training.latents import LatentCache
from pathup.training.optimizers import build_optimizers
from pathup.training.schedules import ema_decay, learning_rate
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
    ) -> None:
        self.recipe, self.spec, self.parts, self.folder = recipe, recipe.diffusion, components, folder
        spec = self.spec
        self.accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(spec.precision, spec.precision), cpu=cpu)
        device = self.accelerator.device
        self._wandb = wandb_project
        self.parts.vae.to(device).eval().requires_grad_(False)
        self.parts.text_encoder.to(device).eval().requires_grad_(False)
        unet = self.parts.unet.to(device).float().train()
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if compiled:
            compile_blocks(unet.to(memory_format=torch.channels_last))
        model = UNetWithFeatures(unet, self.parts.scale_encoder).to(device).train()
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
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
        self.model, *prepared = self.accelerator.prepare(model, *self.optimizers.values())
        self.optimizers = dict(zip(self.optimizers, prepared, strict=True))
        self.pipeline = assemble(self.parts, recipe)
        self.step = 0
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
        main = self.accelerator.is_main_process
        if main:
            save_recipe(self.recipe, self.folder / "recipe.yaml")
            self._fill_cache()
        self.accelerator.wait_for_everyone()
        texts = [self.pipeline.prompt(label, level) for label, level in self.prompts]
        self._prompts_KLD = self.pipeline.encode_prompts(texts)
        self._empty_1LD = self.pipeline.encode_prompts([""])
        self._resume()
        spec = self.spec
        curves = Journal(
            self.folder,
            steps=spec.steps,
            first_step=self.step,
            title="diffusion",
            wandb_project=self._wandb,
            active=main,
        )
        with fast_attention(self.trained.unet, self.accelerator.device), curves as journal:
            stream = self._stream(workers)
            logged = None
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
                if main and (self.step % spec.checkpoint_every == 0 or last):
                    self._save()
                if main and (self.step % spec.sample_every == 0 or last):
                    self._sample(journal)
        if main:
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

    def _fill_cache(self) -> None:
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("encoding tiles", total=None)
            self.cache.fill(
                self.spec.encode_batch,
                self.accelerator.device,
                lambda done, total: bar.update(task, completed=done, total=total),
            )

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
        share = self._entropy_share(loaded)
        device = self.accelerator.device
        batches = [Batch(*(column.to(device, non_blocking=True) for column in batch)) for batch in loaded]
        reconstruction, entropy, features, prompts = [], [], [], []
        for micro, batch in enumerate(batches):
            together = nullcontext() if micro == rounds - 1 else self.accelerator.no_sync(self.model)
            with together:
                error_B, l_e, z, told = self._losses(batch)
                l_r, l_e = error_B.mean() / rounds, l_e * share
                self.accelerator.backward(l_r + spec.feature_entropy.beta * l_e)
            reconstruction.append(l_r.detach())
            entropy.append(l_e.detach())
            features.append(z)
            prompts.append(told)
        gap = self._prompt_gap(batches[-1], error_B) if logged and spec.patho_align else None
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), spec.clip_norm)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        if self._with_entropy:
            z_ND, prompt_N = self.accelerator.gather((torch.cat(features), torch.cat(prompts)))
            whole_N = z_ND.isfinite().all(1)  # under fp16 a forward may overflow; its step is skipped
            self.entropy.update(z_ND.where(whole_N[:, None], 0.0), prompt_N.where(whole_N, -1))
        self._update_average()

        def values() -> dict[str, float]:
            told = {"L_r": self._over_processes(reconstruction)}
            if gap is not None:
                told["prompt_gap"] = gap
            if self._with_entropy:
                told["L_e"] = self._over_processes(entropy)
            if self._scaler is None or torch.isfinite(norm):  # fp16's loss scale overflows now and then by design
                told["gradient_norm"] = float(norm)
            return {**told, "learning_rate": self._peaks[0] * share_of_peak}

        return values

    def _over_processes(self, parts: list[torch.Tensor]) -> float:
        """The sum of one process's micro-batches, averaged over all processes, as their gradients are."""
        return float(self.accelerator.reduce(torch.stack(parts).sum(), reduction="mean"))

    def _entropy_share(self, batches: list[Batch]) -> float | torch.Tensor:
        """What each process multiplies its sums of eq. 3's terms by, so that L_e is the mean over the joint batch.

        Prompt dropout leaves each process and micro-batch another number of terms, and gradients are averaged over
        processes: without this, two processes would descend another loss than one on their joint batch. `batches` are
        as they were loaded: asking a GPU for their numbers would wait for it.
        """
        if not self._with_entropy:
            return 0.0
        own = sum(int(self._counted(batch).sum()) for batch in batches)
        if self.accelerator.num_processes == 1:
            return 1 / own if own else 0.0
        joint = self.accelerator.reduce(torch.tensor(own, device=self.accelerator.device), reduction="sum")
        return self.accelerator.num_processes / joint.clamp_min(1)

    def _counted(self, batch: Batch) -> torch.Tensor:
        """Which samples have a term in L_e, (B,).

        One whose prompt was dropped has no prompt to be near to, unless z never sees prompts at all.
        """
        unprompted = self.spec.feature_entropy.source == "unprompted"
        return torch.ones_like(batch.dropped_B) if unprompted else ~batch.dropped_B

    @property
    def _scaler(self) -> Any:
        """The gradient scaler of fp16 training; None in other precisions."""
        return self.accelerator.scaler

    @property
    def _with_entropy(self) -> bool:
        return self.spec.feature_entropy.enabled and self.spec.patho_align

    def _losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Errors (B,), L_e (sum over terms), the detached features and their prompts (-1 where one does not count)."""
        error_B, z = self._errors(batch, self.model)
        counted = self._counted(batch)
        l_e = error_B.new_zeros(())
        if self._with_entropy:
            l_e = (self.entropy.terms(z, batch.prompt_B) * counted).sum()
        return error_B, l_e, z.detach(), torch.where(counted, batch.prompt_B, -1)

    def _errors(self, batch: Batch, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Each sample's weighed squared error, (B,), and its feature z."""
        scheduler = self.parts.scheduler
        noisy = scheduler.add_noise(batch.latents_BCHW, batch.noise_BCHW, batch.timestep_B)
        dropped = batch.dropped_B[:, None, None]
        prompts = torch.where(dropped, self._empty_1LD, self._prompts_KLD[batch.prompt_B])
        unprompted = self._with_entropy and self.spec.feature_entropy.source == "unprompted"
        empty = self._empty_1LD.expand_as(prompts) if unprompted else None
        prediction, z = model(noisy, batch.timestep_B, prompts, empty, batch.mpp_B)
        spec = self.spec
        error_B = multiscale_error(prediction.float() - training_target(scheduler, batch), spec.multiscale_weight)
        return loss_weights(scheduler, batch.timestep_B, spec.min_snr_gamma, spec.min_snr_offset) * error_B, z

    def _prompt_gap(self, batch: Batch, own_B: torch.Tensor) -> float | None:
        """How much larger than its `own_B` the error is with a neighbour's prompt: 0 where prompts have no say.

        Over the samples that have a prompt, and another than their neighbour; None where there are none.
        """
        neighbours = batch.prompt_B.roll(1)
        counted = (neighbours != batch.prompt_B) & ~batch.dropped_B
        other_B, _ = self._errors(batch._replace(prompt_B=neighbours), self.trained)  # a wrapper awaits a backward pass
        sums = torch.stack([(error_B.detach() * counted).sum() for error_B in (own_B, other_B)])
        own, other = self.accelerator.reduce(sums, reduction="sum")
        return float(other / own - 1) if own > 0 else None

    @torch.no_grad()
    def _update_average(self) -> None:
        weight = 1 - ema_decay(self.step, self.spec.ema_decay)
        current = self.trained.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [current[name] for name in self.average], weight)

    # -- keeping --------------------------------------------------------------------------------------------

    def _save(self) -> None:
        save_checkpoint(
            self.folder / "checkpoints",
            self.step,
            {
                "model": self.trained.state_dict(),
                "average": self.average,
                "feature_memory": self.entropy.state_dict(),
                **{name: optimizer_tensors(optimizer) for name, optimizer in self.optimizers.items()},
            },
            {"step": self.step, "scaler": self._scaler.state_dict() if self._scaler else None},
            keep=self.spec.keep_checkpoints,
        )

    def _resume(self) -> None:
        checkpoint = newest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        self.step = checkpoint.step
        self.trained.load_state_dict(checkpoint.tensors("model"))
        device = self.accelerator.device
        self.average = {name: value.to(device) for name, value in checkpoint.tensors("average").items()}
        self.entropy.load_state_dict(checkpoint.tensors("feature_memory"))
        for name, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, checkpoint.tensors(name))
        if self._scaler:
            self._scaler.load_state_dict(checkpoint.values()["scaler"])

    def averaged_pipeline(self) -> PathUpPipeline:
        """A pipeline with the averaged weights."""
        twin = copy.deepcopy(self.trained)
        twin.load_state_dict(self.average)
        return assemble(replace(self.parts, unet=twin.eval().unet, scale_encoder=twin.scale_encoder), self.recipe)

    def export(self, target: Path) -> None:
        """Write the model as a diffusers folder, with its recipe, memory and training values beside it."""
        spec = self.spec
        seen = self.step * spec.batch_size * spec.gradient_accumulation * self.accelerator.num_processes
        made = {"steps": self.step, "tiles_seen": seen, "tiles": self.cache.tiles.fingerprint()}
        with storage.atomic_folder(target) as partial:
            save_pipeline(self.averaged_pipeline(), partial)
            memory = {name: value.cpu() for name, value in self.entropy.state_dict().items()}
            save_file(memory, partial / "feature_memory.safetensors")
            save_recipe(self.recipe, partial / "recipe.yaml")
            storage.write_json(partial / "training.json", {"pathup": __version__, **made})

    def _sample(self, journal: Journal) -> None:
        pipeline = self.averaged_pipeline()
        images, titles = [], []
        for level in pipeline.level_names:
            pixels = pipeline(pipeline.labels, level, seed=self.spec.seed, output_type="pt")
            images.append(torch.as_tensor(pixels) * 2 - 1)
            titles += [f"{label} {level}" for label in pipeline.labels]
        path = self.folder / "sheets" / f"{self.step:08d}.png"
        image_sheet(torch.cat(images), path, columns=len(pipeline.labels), titles=titles)
        journal.draw_curves()
        journal.say(f"step {self.step}: samples in {path}")
