"""Training of a classifier: by the same number of steps whatever it is shown, stopped early by its loss on 'val'.

The data flow: a batch is a function of (seed, step), every class equally often; every `evaluate_every` steps the mean
cross-entropy of 'val' is taken, the weights of the lowest are kept, and a checkpoint is written, so that a run that was
killed goes on to the same weights. Each learning rate of the recipe is tried; the lowest loss on 'val' decides.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from pathup import __version__, draws, storage
from pathup.downstream.classifiers import Classifier
from pathup.downstream.fields import Field
from pathup.errors import PathUpError
from pathup.recipes import save_recipe
from pathup.tiles.provenance import SourceRegion, write_sources
from pathup.training.checkpoints import newest_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from pathup.training.journal import Journal
from pathup.training.schedules import TileOrder, learning_rate

__all__ = ["NOTE", "WEIGHTS", "ClassifierRun", "mean_probabilities", "probabilities", "train_classifier"]

WEIGHTS, NOTE = "classifier.safetensors", "classifier.json"

CLIP_NORM = 1.0
"""Gradients are scaled down to this norm."""

SHOWN_AT_ONCE = 32
"""Fields, when nothing is trained."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the lowest loss on 'val', the step that had it, and the steps taken."""

    loss: float
    best_step: int
    steps: int


class ClassifierRun:
    """One training by one learning rate.

    Parameters
    ----------
    kind
        What is trained.
    train, val
        Fields; those of training with real and synthetic ones.
    folder
        Of checkpoints and curves.
    rate
        The learning rate.
    device
        Where it is trained.
    """

    def __init__(
        self, kind: Classifier, train: Sequence[Field], val: Sequence[Field], folder: Path, rate: float,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.kind, self.spec, self.folder, self.rate, self.device = kind, kind.spec, folder, rate, device
        self._train, self._val, self._labels = list(train), list(val), kind.recipe.labels
        self._order = TileOrder([field.label for field in train], seed=self.spec.seed, balanced=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.seed_of(self.spec.seed, "weights", kind.name))
            self.network = kind.network().to(device)
        self._optimizer = torch.optim.AdamW(self.network.parameters(), lr=rate, weight_decay=self.spec.weight_decay)
        self.step, self.best = 0, Outcome(float("inf"), 0, 0)
        self._best_weights: dict[str, torch.Tensor] = {}

    def run(self) -> Outcome:
        """Train to the end, from the newest checkpoint where there is one; the network then has the best weights."""
        self._resume()
        spec = self.spec
        with Journal(
            self.folder, steps=spec.steps, first_step=self.step, title=f"{self.kind.title}, rate {self.rate:g}",
            wandb_project=None,
        ) as journal:  # fmt: skip
            while self.step < spec.steps and not self._is_stopped():
                loss = self._take_step()
                self.step += 1
                journal.advance()
                if self.step % spec.evaluate_every == 0 or self.step == spec.steps:
                    journal.record(self.step, {"loss": loss, "val_loss": self._look()})
                    self._save()
            journal.draw_curves()
        self.network.load_state_dict(self._best_weights)
        return Outcome(self.best.loss, self.best.best_step, self.step)

    def _is_stopped(self) -> bool:
        return self.step - self.best.best_step >= self.spec.patience * self.spec.evaluate_every

    def _take_step(self) -> float:
        spec, first = self.spec, self.step * self.spec.batch_size
        positions = range(first, first + spec.batch_size)
        fields = [self._train[self._order[position]] for position in positions]
        samples = [self.kind.sample(field, position) for field, position in zip(fields, positions, strict=True)]
        wanted = torch.tensor([self._labels.index(field.label) for field in fields], device=self.device)
        rate = learning_rate(self.step, peak=self.rate, warmup=spec.warmup_steps, total=spec.steps, decay=spec.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(draws.seed_of(spec.seed, "step", self.step))  # of dropout
            logits = _logits(self.network, self.kind.batch(samples), self.device, spec.precision)
        loss = cross_entropy(logits, wanted, label_smoothing=spec.label_smoothing)
        if not torch.isfinite(loss):
            raise PathUpError(
                f"the loss of {self.kind.title} is no finite number at step {self.step + 1}; leave learning rate "
                f"{self.rate:g} out of downstream.{self.kind.name}.learning_rates"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        self._optimizer.step()
        return float(loss.detach())

    def _look(self) -> float:
        """The mean cross-entropy of 'val', every class weighing the same; the best weights are kept."""
        found = probabilities(self.kind, self.network, self._val, self.device)
        places = [self._labels.index(field.label) for field in self._val]
        losses = -np.log(np.maximum(found[np.arange(len(places)), places], 1e-12))
        loss = float(np.mean([losses[np.equal(places, own)].mean() for own in sorted(set(places))]))
        if loss < self.best.loss:
            self.best = Outcome(loss, self.step, self.step)
            self._best_weights = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        return loss

    def _save(self) -> None:
        groups = {
            "network": self.network.state_dict(), "best": self._best_weights,
            "optimizer": optimizer_tensors(self._optimizer),
        }  # fmt: skip
        values = {"loss": self.best.loss, "best_step": self.best.best_step}
        save_checkpoint(self.folder / "checkpoints", self.step, groups, values, keep=1)

    def _resume(self) -> None:
        checkpoint = newest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        values = checkpoint.values()
        self.step = checkpoint.step
        self.best = Outcome(float(values["loss"]), int(values["best_step"]), self.step)
        self.network.load_state_dict(checkpoint.tensors("network"))
        self._best_weights = {name: value.to(self.device) for name, value in checkpoint.tensors("best").items()}
        restore_optimizer(self._optimizer, checkpoint.tensors("optimizer"))


def train_classifier(
    kind: Classifier, train: Sequence[Field], val: Sequence[Field], folder: Path, device: torch.device,
    notes: dict[str, Any], sources: Sequence[SourceRegion] = (),
) -> Path:  # fmt: skip
    """Train a classifier by each learning rate of its recipe, from where the run stands.

    Parameters
    ----------
    kind, train, val, device
        As of `ClassifierRun`.
    folder
        Of the run.
    notes
        Kept in the model's ``classifier.json`` beside the loss on 'val' of each rate.
    sources
        The regions that it is trained and stopped by, and those that generators of its images have seen.

    Returns
    -------
    Path
        The model's folder: weights of the lowest loss on 'val', recipe, ``classifier.json``.

    Raises
    ------
    PathUpError
        A field cannot be read, a loss is not finite, or the disk is full.
    """
    target = folder / "model"
    if (target / NOTE).is_file():
        return target
    _prepare(kind, train, "training fields", training=True)
    _prepare(kind, val, "fields of val", training=False)
    tried: dict[str, dict[str, Any]] = {}
    best: ClassifierRun | None = None
    for rate in kind.spec.learning_rates:
        run = ClassifierRun(kind, train, val, folder / f"rate_{rate:g}", rate, device)
        outcome = run.run()
        tried[f"{rate:g}"] = {"val_loss": outcome.loss, "best_step": outcome.best_step, "steps": outcome.steps}
        if best is None or outcome.loss < best.best.loss:
            best = run
    chosen = min(tried, key=lambda rate: tried[rate]["val_loss"])
    told = {
        "pathup": __version__, **kind.described(), "labels": kind.recipe.labels, "learning_rate": float(chosen),
        "learning_rates": tried, "augmentations": list(kind.augmentations), **notes,
    }  # fmt: skip
    weights = {} if best is None else best.network.state_dict()
    with storage.atomic_folder(target) as partial:
        save_file({name: value.cpu().contiguous() for name, value in weights.items()}, partial / WEIGHTS)
        save_recipe(kind.recipe, partial / "recipe.yaml")
        write_sources(partial, sources)
        storage.write_json(partial / NOTE, told)
    for rate in kind.spec.learning_rates:
        shutil.rmtree(folder / f"rate_{rate:g}" / "checkpoints", ignore_errors=True)
    return target


def _prepare(kind: Classifier, fields: Sequence[Field], title: str, *, training: bool) -> None:
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{kind.title}, {title}", total=len(fields))
        kind.prepare(fields, training=training, progress=lambda done, total: bar.update(task, completed=done))


@torch.no_grad()
def probabilities(
    kind: Classifier, network: torch.nn.Module, fields: Sequence[Field], device: torch.device
) -> np.ndarray:
    """The probability of each class for each field, float64 (N, classes)."""
    network.eval()
    found = []
    for first in range(0, len(fields), SHOWN_AT_ONCE):
        batch = kind.batch([kind.sample(field) for field in fields[first : first + SHOWN_AT_ONCE]])
        found.append(_logits(network, batch, device, kind.spec.precision).double().softmax(1).cpu().numpy())
    return np.concatenate(found)


def mean_probabilities(fields: Sequence[Field], probabilities_NC: np.ndarray) -> tuple[list[Field], np.ndarray]:
    """The first field of each region, and the mean probabilities of all of its fields, in the order of regions."""
    places: dict[str, list[int]] = {}
    for place, field in enumerate(fields):
        places.setdefault(field.region, []).append(place)
    first = [fields[own[0]] for own in places.values()]
    return first, np.stack([probabilities_NC[own].mean(0) for own in places.values()])


def _logits(
    network: torch.nn.Module, batch: tuple[torch.Tensor, ...], device: torch.device, precision: str
) -> torch.Tensor:
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits: torch.Tensor = network(*(part.to(device) for part in batch))
    return logits.float()
