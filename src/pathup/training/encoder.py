"""Training the tissue encoder: the network by whose features tiles are compared.

The data flow: tiles, flipped and turned, some of them degraded and some grey, go through the encoder; three linear
heads on its features name the class and level, name the region, and say which degradation was applied and how
severely. Class and region make the features tell tissue apart, the third head makes them notice what a generator gets
wrong (blur, noise, blocks, colour). Some tiles are also seen at two severities of one degradation: the worse one is to
lie further from the whole tile, so that distances between features grow with damage. The heads are dropped at the end,
and the averaged encoder is written.
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

from pathup import __version__, draws, storage
from pathup.errors import PathUpError
from pathup.model.encoder import WEIGHTS_FILE, TissueEncoder, load_encoder, save_encoder
from pathup.processes import computes_on_cpu
from pathup.recipes import EncoderRecipe, Recipe, save_recipe
from pathup.tiles.dataset import TileFolder
from pathup.training.averages import Average
from pathup.training.checkpoints import newest_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from pathup.training.degradations import DEGRADATIONS, degraded
from pathup.training.journal import Journal
from pathup.training.schedules import TileOrder, learning_rate
from pathup.training.tissue_features import normalised_grey

KINDS = list(DEGRADATIONS)
LEAST_STEP = 0.1
"""Least difference of two severities that are to be told apart."""

RANKING_MARGIN = 0.5
"""By how much the logarithm of the squared distance is to grow from severity 0 to 1, at least."""

SEVERITY_WEIGHT = 4.0
"""Of the severities' error, which is at most some tenths, beside two cross-entropies."""


class Examples(NamedTuple):
    """A training batch: pixels (B, 3, H, W) in [-1, 1], group and region (B,), severities (B, kinds).

    `ranked` (R, 3, 3, H, W) holds R other tiles whole, milder and worse, and `step` (R,) by how much worse.
    """

    pixels: torch.Tensor
    group: torch.Tensor
    region: torch.Tensor
    severity: torch.Tensor
    ranked: torch.Tensor
    step: torch.Tensor


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
        ranked = [self._ranked(first + number) for number in range(self.ranked_count)]
        side = rows[0][0].shape[-1]
        columns = [torch.stack(column) for column in zip(*rows, strict=True)]
        if ranked:
            columns += [torch.stack(column) for column in zip(*ranked, strict=True)]
        else:
            columns += [torch.zeros(0, 3, 3, side, side), torch.zeros(0)]
        return Examples(*columns)

    @property
    def ranked_count(self) -> int:
        """Tiles a batch that are seen whole, milder and worse."""
        return round(self._spec.ranking_share * self._spec.batch_size)

    def _turned(self, index: int, draw: np.random.Generator) -> np.ndarray:
        """A tile's pixels in one of the 8 flips and quarter turns."""
        pixels = np.rot90(self._tiles.pixels(index).permute(1, 2, 0).numpy(), int(draw.integers(4)))
        return np.ascontiguousarray(pixels[:, ::-1] if draw.integers(2) else pixels)

    def _ranked(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = draws.numpy_generator(self._spec.seed, "ranked", position)
        whole = self._turned(self._order[int(draw.integers(2**40))], draw)
        kind = KINDS[int(draw.integers(len(KINDS)))]
        milder = float(draw.random()) * (1 - LEAST_STEP)
        worse = milder + LEAST_STEP + float(draw.random()) * (1 - LEAST_STEP - milder)
        seed = int(draw.integers(2**62))  # both severities share noise, direction and order
        copies = [degraded(whole, kind, amount, np.random.default_rng(seed)) for amount in (milder, worse)]
        return torch.stack([_values(pixels) for pixels in (whole, *copies)]), torch.tensor(worse - milder)

    def _example(self, position: int) -> tuple[torch.Tensor, ...]:
        index = self._order[position]
        draw = draws.numpy_generator(self._spec.seed, "example", position)
        pixels = self._turned(index, draw)
        severity = torch.zeros(len(KINDS))
        if draw.random() < self._spec.degraded_share:
            kind = int(draw.integers(len(KINDS)))
            severity[kind] = amount = float(draw.random())
            pixels = degraded(pixels, KINDS[kind], amount, draw)
        result = _values(pixels)
        if draw.random() < self._spec.grey_share:
            result = normalised_grey(result[None], result[None])[0].clamp(-1, 1).expand(3, -1, -1)
        return result.contiguous(), torch.tensor(self._group[index]), torch.tensor(self._region[index]), severity


def _values(pixels_HWC: np.ndarray) -> torch.Tensor:
    """Pixels as the network takes them: (3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1).float() / 127.5 - 1


def ranking_loss(features_RKD: torch.Tensor, step_R: torch.Tensor) -> torch.Tensor:
    """How far the order of damage is from the order of distances, 0 when all are right by the margin.

    The mean of max(0, log d(whole, milder) - log d(whole, worse) + `RANKING_MARGIN` x step), d being the squared
    distance: a hinge on the logarithm, so that it does not ask for larger features.

    Parameters
    ----------
    features_RKD
        Of R tiles whole, milder and worse, (R, 3, D).
    step_R
        The difference of the two severities.
    """
    whole, milder, worse = features_RKD.unbind(1)
    near, far = ((other - whole).square().sum(1).clamp_min(1e-8).log() for other in (milder, worse))
    return (near - far + RANKING_MARGIN * step_R).clamp_min(0).mean()


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
    start
        The folder of an encoder to start from instead of random weights.

    Raises
    ------
    PathUpError
        `start` does not load, or has other channels than the recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        tiles: TileFolder,
        folder: Path,
        *,
        start: Path | None = None,
        cpu: bool = False,
        wandb_project: str | None = None,
    ) -> None:
        self.recipe, self.spec, self.tiles, self.folder = recipe, recipe.encoder, tiles, folder
        self.examples = TileExamples(tiles, self.spec)
        precision = "bf16" if self.spec.precision == "bf16" else "no"
        self.accelerator = Accelerator(mixed_precision=precision, cpu=computes_on_cpu(cpu))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.seed_of(self.spec.seed, "weights", "encoder"))
            encoder = TissueEncoder(self.spec.channels, recipe.tiles.tile_px)
            if start is not None:
                _take_weights(encoder, start)
            heads = [len(self.examples.groups), len(self.examples.regions), len(KINDS)]
            self._heads = nn.ModuleList([nn.Linear(encoder.width, size) for size in heads])
            self.network = nn.ModuleDict({"encoder": encoder, "heads": self._heads}).to(self.accelerator.device)
            self.network.to(memory_format=torch.channels_last)
        self.average = Average(self.network["encoder"], self.spec.ema_decay)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.spec.learning_rate, weight_decay=self.spec.weight_decay, fused=True
        )
        self.step = 0
        self._wandb = wandb_project
        self._start = None if start is None else storage.sha256_file(start / WEIGHTS_FILE)

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
        pixels, group, region, severity, ranked, step = (part.to(device) for part in batch)
        self.network.train()
        with self.accelerator.autocast():
            every = torch.cat([pixels, ranked.flatten(0, 1)]).contiguous(memory_format=torch.channels_last)
            features = self.network["encoder"](every).float()
        features, triples = features[: len(pixels)], features[len(pixels) :].unflatten(0, (len(ranked), 3))
        logits = [head(features) for head in self._heads]
        values = {
            "class": cross_entropy(logits[0], group, label_smoothing=spec.label_smoothing),
            "region": cross_entropy(logits[1], region, label_smoothing=spec.label_smoothing),
            "severity": smooth_l1_loss(logits[2], severity, beta=0.1),
        }
        loss = values["class"] + spec.region_weight * values["region"] + SEVERITY_WEIGHT * values["severity"]
        if len(ranked):
            values["ranking"] = ranking_loss(triples, step)
            loss = loss + spec.ranking_weight * values["ranking"]
        rate = learning_rate(
            self.step, peak=spec.learning_rate, warmup=spec.warmup_steps, total=spec.steps, decay=spec.steps // 2
        )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.average.update(self.step)
        with torch.no_grad():
            values["class_accuracy"] = (logits[0].argmax(1) == group).float().mean()
            values["region_accuracy"] = (logits[1].argmax(1) == region).float().mean()
        return {name: value.detach() for name, value in values.items()}

    def _save(self) -> None:
        save_checkpoint(
            self.folder / "checkpoints",
            self.step,
            {
                "network": self.network.state_dict(),
                "average": self.average.tensors,
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
        self.average.load(checkpoint.tensors("average"))
        restore_optimizer(self.optimizer, checkpoint.tensors("optimizer"))

    def export(self) -> Path:
        """Write the averaged encoder's folder, with how it was made in its configuration."""
        encoder = TissueEncoder(self.spec.channels, self.recipe.tiles.tile_px)
        encoder.load_state_dict(self.average.tensors)
        target = self.folder / "encoder"
        notes = {
            "pathup": __version__,
            "recipe": self.recipe.name,
            "steps": self.step,
            "batch_size": self.spec.batch_size,
            "tiles": self.tiles.fingerprint(),
            "split": self.tiles.split,
            "started_from": self._start,
            "classes": self.recipe.labels,
            "levels": {level.name: self.recipe.tiles.level_mpp(level) for level in self.recipe.tiles.levels},
        }
        save_encoder(encoder, target, notes)
        return target


def _take_weights(encoder: TissueEncoder, start: Path) -> None:
    given = load_encoder(start)
    if given.channels != encoder.channels:
        raise PathUpError(
            f"the encoder {start} has channels {list(given.channels)}, but the recipe {list(encoder.channels)}; "
            "set encoder.channels in the recipe, or start from another"
        )
    encoder.load_state_dict(given.state_dict())
