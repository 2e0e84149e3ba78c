"""Training the tissue encoder: the network by whose features tiles are compared.

The data flow: tiles, flipped and turned, some of them degraded and some grey, go through the encoder; three linear
heads on its features name the class and level, name the region, and say which degradation was applied and how
severely. Class and region make the features tell tissue apart, the third head makes them notice what a generator gets
wrong (blur, noise, blocks, colour). The heads are dropped at the end, and the averaged encoder is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy, smooth_l1_loss
from torch.utils.data import DataLoader, Dataset

from pathup import __version__, draws
from pathup.model.encoder import TissueEncoder, save_encoder
from pathup.recipes import EncoderRecipe, Recipe, save_recipe
from pathup.tiles.dataset import TileFolder
from pathup.training.checkpoints import newest_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from pathup.training.degradations import DEGRADATIONS, degraded
from pathup.training.journal import Journal
from pathup.training.schedules import TileOrder, ema_decay, learning_rate
from pathup.training.tissue_features import normalised_grey

KINDS = list(DEGRADATIONS)
SEVERITY_WEIGHT = 4.0
"""Of the severities' error, which is at most some tenths, beside two cross-entropies."""


class Examples(NamedTuple):
    """A training batch: pixels (B, 3, H, W) in [-1, 1], group and region (B,), severities (B, kinds)."""

    pixels: torch.Tensor
    group: torch.Tensor
    region: torch.Tensor
    severity: torch.Tensor


class TileExamples(Dataset[Examples]):
    """Batches by step, a function of (seed, position) alone."""

    def __init__(self, tiles: TileFolder, spec: EncoderRecipe) -> None:
        self._tiles, self._spec = tiles, spec
        names = [(record.label, record.level) for record in tiles.records]
        regions = [(record.slide, record.region) for record in tiles.records]
        self.groups, self.regions = sorted(set(names)), sorted(set(regions))
        places = {name: i for i, name in enumerate(self.groups)}, {name: i for i, name in enumerate(self.regions)}
        self._group = [places[0][name] for name in names]
        self._region = [places[1][name] for name in regions]
        self._order = TileOrder(names, seed=spec.seed, balanced=True)

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, step: int) -> Examples:
        """The batch of a step."""
        first = step * self._spec.batch_size
        rows = [self._example(position) for position in range(first, first + self._spec.batch_size)]
        return Examples(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def _example(self, position: int) -> tuple[torch.Tensor, ...]:
        index = self._order[position]
        draw = draws.numpy_generator(self._spec.seed, "example", position)
        pixels = np.rot90(self._tiles.pixels(index).permute(1, 2, 0).numpy(), int(draw.integers(4)))
        if draw.integers(2):
            pixels = pixels[:, ::-1]
        severity = torch.zeros(len(KINDS))
        if draw.random() < self._spec.degraded_share:
            kind = int(draw.integers(len(KINDS)))
            severity[kind] = amount = float(draw.random())
            pixels = degraded(np.ascontiguousarray(pixels), KINDS[kind], amount, draw)
        result = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1
        if draw.random() < self._spec.grey_share:
            result = normalised_grey(result[None], result[None])[0].clamp(-1, 1).expand(3, -1, -1)
        return result.contiguous(), torch.tensor(self._group[index]), torch.tensor(self._region[index]), severity


class EncoderTrainer:
    """One run of `pathup train encoder`.

    Parameters
    ----------
    recipe
        The whole recipe; `recipe.encoder` is what counts.
    tiles
        The training tiles, all levels.
    folder
        The run's folder.
    """

    def __init__(
        self, recipe: Recipe, tiles: TileFolder, folder: Path, *, cpu: bool = False, wandb_project: str | None = None
    ) -> None:
        self.recipe, self.spec, self.tiles, self.folder = recipe, recipe.encoder, tiles, folder
        self.examples = TileExamples(tiles, self.spec)
        self.accelerator = Accelerator(mixed_precision="bf16" if self.spec.precision == "bf16" else "no", cpu=cpu)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.seed_of(self.spec.seed, "weights", "encoder"))
            encoder = TissueEncoder(self.spec.channels, recipe.tiles.tile_px)
            heads = [len(self.examples.groups), len(self.examples.regions), len(KINDS)]
            self.network = nn.ModuleDict(
                {"encoder": encoder, "heads": nn.ModuleList([nn.Linear(encoder.width, size) for size in heads])}
            ).to(self.accelerator.device)
            self.network.to(memory_format=torch.channels_last)
        self.average = {k: v.detach().clone() for k, v in self.network["encoder"].state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.spec.learning_rate, weight_decay=self.spec.weight_decay, fused=True
        )
        self.step = 0
        self._wandb = wandb_project

    def run(self, *, workers: int = 0) -> Path:
        """Train to the recipe's last step, from the newest checkpoint where there is one.

        Returns
        -------
        Path
            The encoder's folder (averaged weights), for ``pathup evaluate --features``.
        """
        save_recipe(self.recipe, self.folder / "recipe.yaml")
        self._resume()
        with Journal(
            self.folder, steps=self.spec.steps, first_step=self.step, title="encoder", wandb_project=self._wandb
        ) as journal:
            for batch in self._batches(workers):
                values = self._train_step(batch)
                self.step += 1
                journal.advance()
                last = self.step == self.spec.steps
                if self.step % self.spec.log_every == 0 or last:
                    journal.record(self.step, {name: float(value) for name, value in values.items()})
                if self.step % self.spec.checkpoint_every == 0 or last:
                    self._save()
                    journal.draw_curves()
        return self.export()

    def _batches(self, workers: int) -> Iterator[Examples]:
        steps = range(self.step, self.spec.steps)
        yield from DataLoader(self.examples, batch_size=None, sampler=steps, num_workers=workers)

    def _train_step(self, batch: Examples) -> dict[str, torch.Tensor]:
        spec, device = self.spec, self.accelerator.device
        pixels, group, region, severity = (part.to(device) for part in batch)
        self.network.train()
        with self.accelerator.autocast():
            features = self.network["encoder"](pixels.contiguous(memory_format=torch.channels_last))
        logits = [head(features.float()) for head in self._heads]
        values = {
            "class": cross_entropy(logits[0], group, label_smoothing=spec.label_smoothing),
            "region": cross_entropy(logits[1], region, label_smoothing=spec.label_smoothing),
            "severity": smooth_l1_loss(logits[2], severity, beta=0.1),
        }
        loss = values["class"] + spec.region_weight * values["region"] + SEVERITY_WEIGHT * values["severity"]
        rate = learning_rate(
            self.step, peak=spec.learning_rate, warmup=spec.warmup_steps, total=spec.steps, decay=spec.steps // 2
        )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.optimizer.step()
        self._update_average()
        with torch.no_grad():
            values["class_accuracy"] = (logits[0].argmax(1) == group).float().mean()
            values["region_accuracy"] = (logits[1].argmax(1) == region).float().mean()
        return {name: value.detach() for name, value in values.items()}

    @torch.no_grad()
    def _update_average(self) -> None:
        weight = 1 - ema_decay(self.step, self.spec.ema_decay)
        for name, value in self.network["encoder"].state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, weight)
            else:
                self.average[name].copy_(value)

    def _save(self) -> None:
        save_checkpoint(
            self.folder / "checkpoints",
            self.step,
            {
                "network": self.network.state_dict(),
                "average": self.average,
                "optimizer": optimizer_tensors(self.optimizer),
            },
            {"step": self.step},
            keep=2,
        )

    def _resume(self) -> None:
        checkpoint = newest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        self.step = checkpoint.step
        self.network.load_state_dict(checkpoint.tensors("network"))
        device = self.accelerator.device
        self.average = {name: value.to(device) for name, value in checkpoint.tensors("average").items()}
        restore_optimizer(self.optimizer, checkpoint.tensors("optimizer"))

    def export(self) -> Path:
        """Write the averaged encoder's folder, with how it was made in its configuration."""
        encoder = TissueEncoder(self.spec.channels, self.recipe.tiles.tile_px)
        encoder.load_state_dict(self.average)
        target = self.folder / "encoder"
        notes = {
            "pathup": __version__,
            "recipe": self.recipe.name,
            "steps": self.step,
            "batch_size": self.spec.batch_size,
            "tiles": self.tiles.fingerprint(),
            "split": self.tiles.split,
            "classes": self.recipe.labels,
            "levels": {level.name: self.recipe.tiles.level_mpp(level) for level in self.recipe.tiles.levels},
        }
        save_encoder(encoder, target, notes)
        return target
