"""A start for a vision transformer where no pretrained one is at hand: it learns what a frozen network sees in tissue.

For a crop x of a training field, with the features h_1, ..., h_N of the patches whose centres lie in it, the
transformer f regresses their mean, each channel in units of its deviation between whole training fields (features as
targets: Romero et al. 2015, "FitNets"),

    L = 1/D sum_d ( f_d(x) - (1/N sum_n h_nd - mu_d) / sigma_d )^2 .

No label is used, and of regions those of 'train' alone; the weights say of which (``sources.jsonl``).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file
from torch import nn

from pathup import __version__, draws, storage
from pathup.downstream.classifiers import ABMILClassifier, ViTClassifier
from pathup.downstream.fields import Field
from pathup.errors import PathUpError
from pathup.recipes import DistillationRecipe, save_recipe
from pathup.tiles.provenance import SourceRegion, write_sources
from pathup.training.checkpoints import newest_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from pathup.training.journal import Journal
from pathup.training.schedules import TileOrder, learning_rate

__all__ = ["DISTILLED", "NOTE", "Crops", "Distillation", "distil"]

DISTILLED, NOTE = "vit.safetensors", "distillation.json"

CLIP_NORM = 1.0
"""Gradients are scaled down to this norm."""

LEAST_DEVIATION = 1e-3
"""Of a channel, as a share of the largest: one that hardly differs between fields is not blown up to noise."""


class Crops:
    """Crops of fields, and what the frozen network says of each.

    Parameters
    ----------
    vit
        Whose input crops are resized to.
    bags
        The frozen network, with its patches.
    fields
        Of regions.
    least_side
        Of a crop, as a share of the field's side.
    seed
        Crops are a function of it and of the position.
    title
        Of the bar that is shown while fields are read.
    """

    def __init__(
        self, vit: ViTClassifier, bags: ABMILClassifier, fields: Sequence[Field], *, least_side: float, seed: int,
        title: str,
    ) -> None:  # fmt: skip
        self._vit, self._bags, self.fields = vit, bags, list(fields)
        self._least, self._seed = least_side, seed
        self._whole_px = round(vit.spec.input_px / least_side)
        self._centres: list[np.ndarray] = []
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=len(fields))
            for field in fields:
                bags.prepare([field], training=False)
                vit.kept(field, self._whole_px)
                self._centres.append(_centres(field, bags.places(field)))
                bar.advance(task)

    def whole(self, index: int) -> tuple[torch.Tensor, np.ndarray]:
        """A field as classifiers see it, uint8 (3, H, W), and the mean features of its patches, (D,)."""
        side = self._vit.spec.input_px
        pixels = Image.fromarray(self._vit.kept(self.fields[index], self._whole_px))
        return self._seen(pixels.resize((side, side), Image.Resampling.BILINEAR)), self.features(index).mean(0)

    def crop(self, index: int, position: int) -> tuple[torch.Tensor, np.ndarray]:
        """A square of a field, flipped and turned at random, and the mean features of the patches centred in it."""
        rng = draws.numpy_generator(self._seed, "crop", position)
        share = rng.uniform(self._least, 1)
        left, top = rng.uniform(0, 1 - share, 2)
        pixels, side = Image.fromarray(self._vit.kept(self.fields[index], self._whole_px)), self._vit.spec.input_px
        box = tuple(edge * self._whole_px for edge in (left, top, left + share, top + share))
        shown = np.asarray(pixels.resize((side, side), Image.Resampling.BILINEAR, box=box))
        shown = np.rot90(shown, int(rng.integers(4)))
        shown = shown[:, ::-1] if rng.integers(2) else shown
        middle = np.array([left, top]) + share / 2
        away = np.abs(self._centres[index] - middle).max(1)
        inside = away <= max(share / 2, float(away.min()))  # where no patch is centred in it, the nearest
        return self._seen(shown), self.features(index)[inside].mean(0)

    def features(self, index: int) -> np.ndarray:
        """Those of a field's patches, (N, D)."""
        return self._bags.sample(self.fields[index]).numpy()

    def _seen(self, pixels: Any) -> torch.Tensor:
        return self._vit.as_seen(np.ascontiguousarray(pixels))


@dataclass(frozen=True)
class Targets:
    """Mean and deviation of the frozen network's channels between whole fields, (D,) each."""

    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, crops: Crops) -> Targets:
        """Those of fields."""
        values = torch.from_numpy(
            np.stack([crops.features(index).mean(0) for index in range(len(crops.fields))])
        ).float()
        deviation = values.std(0, correction=0)
        least = LEAST_DEVIATION * float(deviation.max())
        if not least:
            raise PathUpError(
                "the frozen network says the same of all training fields, so there is nothing to learn from it; take "
                "other --features, or more regions"
            )
        return cls(values.mean(0), deviation.clamp(min=least))

    def standardised(self, features: Sequence[np.ndarray]) -> torch.Tensor:
        """Features (B, D) in units of the deviation."""
        return (torch.from_numpy(np.stack(features)).float() - self.mean) / self.deviation


class Distillation:
    """One training.

    Parameters
    ----------
    vit
        The transformer.
    spec
        Steps, batch, rate.
    train, val
        Crops of the fields of each split.
    folder
        Of checkpoints and curves.
    device
        Where it is trained.
    """

    def __init__(
        self, vit: ViTClassifier, spec: DistillationRecipe, train: Crops, val: Crops, folder: Path, device: torch.device
    ) -> None:
        self._spec, self._folder, self._device, self._vit = spec, folder, device, vit
        self._train, self._val, self._targets = train, val, Targets.of(train)
        self._order = TileOrder([0] * len(train.fields), seed=spec.seed, balanced=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.seed_of(spec.seed, "weights", "distillation"))
            self.network = vit.network(outputs=len(self._targets.mean)).to(device)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay
        )
        self.step = 0

    def run(self) -> float:
        """Train to the end, from the newest checkpoint where there is one; returns the explained share at the end."""
        spec = self._spec
        self._resume()
        with Journal(
            self._folder, steps=spec.steps, first_step=self.step, title=f"{self._vit.title}, distillation",
            wandb_project=None,
        ) as journal:  # fmt: skip
            while self.step < spec.steps:
                loss = self._take_step()
                self.step += 1
                journal.advance()
                if self.step % spec.evaluate_every == 0 or self.step == spec.steps:
                    journal.record(self.step, {"loss": loss, "val_explained": self.explained()})
                    groups = {
                        "network": self.network.state_dict(), "optimizer": optimizer_tensors(self._optimizer),
                    }  # fmt: skip
                    save_checkpoint(self._folder / "checkpoints", self.step, groups, {}, keep=1)
            journal.draw_curves()
        return self.explained()

    @torch.no_grad()
    def explained(self) -> float:
        """Of the variance of the frozen network's features of the fields of 'val', around the mean of 'train'; R^2."""
        self.network.eval()
        left, total, count = 0.0, 0.0, len(self._val.fields)
        for first in range(0, count, self._spec.batch_size):
            shown = [self._val.whole(index) for index in range(first, min(first + self._spec.batch_size, count))]
            wanted = self._targets.standardised([features for _, features in shown])
            found = self._forward([pixels for pixels, _ in shown]).cpu()
            left += float((found - wanted).square().sum())
            total += float(wanted.square().sum())
        return 1 - left / total if total else 0.0

    def _take_step(self) -> float:
        spec, first = self._spec, self.step * self._spec.batch_size
        shown = [self._train.crop(self._order[place], place) for place in range(first, first + spec.batch_size)]
        wanted = self._targets.standardised([features for _, features in shown]).to(self._device)
        rate = learning_rate(
            self.step, peak=spec.learning_rate, warmup=spec.warmup_steps, total=spec.steps, decay=spec.steps
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(draws.seed_of(spec.seed, "distillation step", self.step))  # of stochastic depth
            loss = (self._forward([pixels for pixels, _ in shown]) - wanted).square().mean()
        if not torch.isfinite(loss):
            raise PathUpError(
                f"the loss of the distillation is no finite number at step {self.step + 1}; lower "
                "downstream.vit.distillation.learning_rate"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        self._optimizer.step()
        return float(loss.detach())

    def _forward(self, samples: list[torch.Tensor]) -> torch.Tensor:
        (pixels,) = self._vit.batch(samples)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._vit.spec.precision == "bf16"):
            found: torch.Tensor = self.network(pixels.to(self._device))
        return found.float()

    def _resume(self) -> None:
        checkpoint = newest_checkpoint(self._folder / "checkpoints")
        if checkpoint is not None:
            self.step = checkpoint.step
            self.network.load_state_dict(checkpoint.tensors("network"))
            restore_optimizer(self._optimizer, checkpoint.tensors("optimizer"))


def distil(
    vit: ViTClassifier, bags: ABMILClassifier, fields: dict[str, list[Field]], sources: Sequence[SourceRegion],
    folder: Path, device: torch.device,
) -> Path:  # fmt: skip
    """Teach a transformer the features of a frozen network, from where the run stands.

    Parameters
    ----------
    vit, bags
        The transformer, and the frozen network with its patches.
    fields
        Of the splits 'train' and 'val'; the latter only tell how well it goes.
    sources
        The regions of 'train', kept beside the weights.
    folder
        Of the run.
    device
        Where it is trained.

    Returns
    -------
    Path
        The weights, without the last layer: what ``pathup classify train vit --pretrained`` takes.

    Raises
    ------
    PathUpError
        A field cannot be read or is smaller than a patch, a loss is not finite, or the disk is full.
    """
    target, spec = folder / "model", vit.spec.distillation
    if (target / NOTE).is_file():
        return target / DISTILLED
    crops = {
        split: Crops(
            vit, bags, fields[split], least_side=spec.least_side, seed=spec.seed,
            title=f"{vit.title}, fields of {split}",
        )
        for split in ("train", "val")
    }  # fmt: skip
    run = Distillation(vit, spec, crops["train"], crops["val"], folder, device)
    explained = run.run()
    weights = {name: value for name, value in run.network.state_dict().items() if not name.startswith("head.")}
    told = {
        "pathup": __version__, "model": vit.spec.model, "taught_by": bags.described()["features"], "steps": run.step,
        "val_explained": explained, "fields": len(fields["train"]),
    }  # fmt: skip
    with storage.atomic_folder(target) as partial:
        save_file({name: value.cpu().contiguous() for name, value in weights.items()}, partial / DISTILLED)
        save_recipe(vit.recipe, partial / "recipe.yaml")
        write_sources(partial, sources)
        storage.write_json(partial / NOTE, told)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return target / DISTILLED


def _centres(field: Field, boxes: Sequence[tuple[int, int, int, int]]) -> np.ndarray:
    """Centres of patches, x and y as shares of the field's sides, (N, 2)."""
    x, y, width, height = field.box
    places = np.array(boxes, np.float64)
    return (places[:, :2] + places[:, 2:] / 2 - (x, y)) / (width, height)
