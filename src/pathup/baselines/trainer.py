"""The loop that all baselines are trained by: steps, averages, checkpoints, sample sheets, progress.

The data flow: a batch is a function of (seed, step); the baseline's own `train_step` descends its losses; averages
follow; what `register` and `state` hold is kept in atomic checkpoints, so that a resumed run is the unbroken one.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pathup.baselines.systems import TrainRequest
from pathup.processes import computes_on_cpu
from pathup.recipes import BaselineTraining, save_recipe
from pathup.storage import claim_folder
from pathup.tiles.dataset import TileFolder
from pathup.training.averages import Average
from pathup.training.budget import within
from pathup.training.checkpoints import newest_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from pathup.training.journal import Journal
from pathup.training.runs import FREE_TO_CHANGE
from pathup.training.schedules import learning_rate
from pathup.training.sheets import image_sheet

__all__ = ["BaselineTrainer", "claim_run"]


class BaselineTrainer(ABC):
    """One run of one network, or of networks that are trained against each other.

    A subclass makes its networks in its constructor, registers them, and says how a step is taken.

    Parameters
    ----------
    request
        What is asked for; the recipe in it is final.
    spec
        The part of the recipe that this run is trained by.
    tiles
        The training tiles.
    folder
        Where checkpoints, sheets, curves and the model go.
    title
        Of the progress bar.

    Attributes
    ----------
    step
        Optimiser steps done.
    seconds
        Of training so far, over all parts of an interrupted run; without saving and sample sheets.
    state
        Tensors that are kept beside the networks (running means, probabilities), by name.
    """

    def __init__(
        self, request: TrainRequest, spec: BaselineTraining, tiles: TileFolder, folder: Path, *, title: str
    ) -> None:
        self.request, self.recipe, self.spec, self.tiles, self.folder = request, request.recipe, spec, tiles, folder
        precision = {"fp32": "no"}.get(spec.precision, spec.precision)
        self.accelerator = Accelerator(mixed_precision=precision, cpu=computes_on_cpu(request.cpu))
        self.device = self.accelerator.device
        self._title = title
        self._modules: dict[str, nn.Module] = {}
        self.averages: dict[str, Average] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.state: dict[str, torch.Tensor] = {}
        self.step = 0
        self.seconds = 0.0

    # -- what a baseline says -------------------------------------------------------------------------------

    @abstractmethod
    def batches(self) -> Dataset[tuple[torch.Tensor, ...]]:
        """Batches by step, each a tuple of tensors and a function of (seed, step)."""

    @abstractmethod
    def train_step(self, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        """Take the step `self.step` on a batch that is on the device; returns the losses, detached."""

    @abstractmethod
    def samples(self) -> tuple[torch.Tensor, list[str], int]:
        """Images in [-1, 1] (B, 3, H, W) by the averaged weights, their titles, and how many go in a row."""

    @abstractmethod
    def export(self) -> Path:
        """Write the model by the averaged weights; returns its folder."""

    @abstractmethod
    def prepare(self, steps: int) -> None:
        """Have ready what the steps up to this one need; called again when there are to be more.

        It counts as no training, unless it adds to `seconds`.
        """

    def dearer_from(self) -> int:
        """The step from which on steps cost more than before."""
        return 0

    # -- what is common -------------------------------------------------------------------------------------

    def register(
        self,
        name: str,
        module: nn.Module,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        averaged: bool = False,
    ) -> nn.Module:
        """Have a network, which is on the device, kept in checkpoints, with its optimiser and its average."""
        self._modules[name] = module
        if optimizer is not None:
            self.optimizers[name] = optimizer
        if averaged:
            self.averages[name] = Average(module, self.spec.ema_decay)
        return module

    def rate(self) -> float:
        """The learning rate of the step to be taken."""
        spec = self.spec
        decay = round(spec.decay_share * spec.steps)
        return learning_rate(
            self.step, peak=spec.learning_rate, warmup=spec.warmup_steps, total=spec.steps, decay=decay
        )

    def descend(self, name: str, loss: torch.Tensor, *, clip_norm: float | None = None, share: float = 1.0) -> None:
        """Step the registered optimiser `name` down a loss, at `share` of this step's rate."""
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = share * self.rate()
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        if clip_norm is not None:
            own = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
            nn.utils.clip_grad_norm_(own, clip_norm)
        optimizer.step()

    def notes(self) -> dict[str, Any]:
        """What a model's ``baseline.json`` says of every baseline."""
        seen = self.step * self.spec.batch_size
        return {"steps": self.step, "seconds": round(self.seconds, 1), "tiles_seen": seen,
                "tiles": self.tiles.fingerprint()}  # fmt: skip

    def run(self, *, share: float = 1.0) -> Path:
        """Train to the last step, from the newest checkpoint where there is one; returns the model's folder.

        Parameters
        ----------
        share
            Of the request's minutes, where it has any, that are this run's.

        Raises
        ------
        PathUpError
            A loss is not finite, the disk is full, or a checkpoint is damaged.
        """
        save_recipe(self.recipe, self.folder / "recipe.yaml")
        self._resume()
        if self.request.minutes is None:
            self._train_to(self.spec.steps, self.spec.decay_share)
        else:
            decay = self.spec.decay_share

            def train_to(step: int, last: bool) -> tuple[int, float]:
                self._train_to(step, decay if last else 0.0)
                return self.step, self.seconds

            within(share * self.request.minutes, self.folder, train_to, dearer_from=self.dearer_from())
        return self.export()

    def _train_to(self, steps: int, decay_share: float) -> None:
        """Take the steps up to this one, which is the last as the learning rate sees it."""
        self.spec = spec = self.spec.model_copy(update={"steps": steps, "decay_share": decay_share})
        self.prepare(steps)
        with Journal(
            self.folder, steps=spec.steps, first_step=self.step, title=self._title,
            wandb_project=self.request.wandb_project,
        ) as journal:  # fmt: skip
            started = time.perf_counter()
            for batch in self._stream():
                values = self.train_step(batch)
                for average in self.averages.values():
                    average.update(self.step)
                self.step += 1
                journal.advance()
                last = self.step == spec.steps
                if self.step % spec.log_every == 0 or last:
                    journal.record(self.step, {name: float(value) for name, value in values.items()})
                self.seconds += time.perf_counter() - started
                if self.step % spec.checkpoint_every == 0 or last:
                    self._save()
                if self.step % spec.sample_every == 0 or last:
                    self._sample(journal)
                started = time.perf_counter()

    def _stream(self) -> Iterator[tuple[torch.Tensor, ...]]:
        loader = DataLoader(
            self.batches(), batch_size=None, sampler=range(self.step, self.spec.steps),
            num_workers=self.request.workers, pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        for batch in loader:
            yield tuple(part.to(self.device, non_blocking=True) for part in batch)

    @torch.no_grad()
    def _sample(self, journal: Journal) -> None:
        pixels, titles, columns = self.samples()
        image_sheet(pixels, self.folder / "sheets" / f"{self.step:08d}.png", columns=columns, titles=titles)
        journal.draw_curves()

    def _save(self) -> None:
        groups = {name: module.state_dict() for name, module in self._modules.items()}
        groups |= {f"{name}_average": average.tensors for name, average in self.averages.items()}
        groups |= {f"{name}_optimizer": optimizer_tensors(own) for name, own in self.optimizers.items()}
        if self.state:
            groups["state"] = self.state
        values = {"step": self.step, "seconds": self.seconds}
        save_checkpoint(self.folder / "checkpoints", self.step, groups, values, keep=self.spec.keep_checkpoints)

    def _resume(self) -> None:
        checkpoint = newest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        self.step, self.seconds = checkpoint.step, float(checkpoint.values()["seconds"])
        for name, module in self._modules.items():
            module.load_state_dict(checkpoint.tensors(name))
        for name, average in self.averages.items():
            average.load(checkpoint.tensors(f"{name}_average"))
        for name, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, checkpoint.tensors(f"{name}_optimizer"))
        if self.state:
            self.state = {name: value.to(self.device) for name, value in checkpoint.tensors("state").items()}


def claim_run(request: TrainRequest, name: str, spec: BaselineTraining, tiles: TileFolder, **more: Any) -> None:
    """Make the request's folder this run's, or find that it is.

    Raises
    ------
    PathUpError
        It holds another run, or was begun and is not to be resumed.
    """
    identity = {
        "baseline": name, "recipe": spec.model_dump(mode="json", exclude=FREE_TO_CHANGE),
        "tiles": tiles.fingerprint(), **more,
    }  # fmt: skip
    claim_folder(request.output, "baseline train", identity, resume=request.resume)
