"""The transformer over a VQ-GAN's codes: a GPT that draws them one after another, given class and level.

The data flow: the codes of training tiles come from the cache by (seed, step), every class of every level equally
often, each behind a start token of its class and level. The transformer foretells each code from those before it and
descends the cross-entropy; dropout is drawn by (seed, step). Its averaged weights are written beside the autoencoder's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import DynamicCache, GPT2Config, GPT2Model

from pathup import draws
from pathup.baselines.code_cache import CodeCache
from pathup.baselines.codebook import images_of
from pathup.baselines.model_folder import ModelFolder, save_weights, writing_model
from pathup.baselines.systems import TrainRequest
from pathup.baselines.trainer import BaselineTrainer
from pathup.errors import PathUpError, unknown
from pathup.recipes import CodesRecipe, Recipe
from pathup.storage import sha256_file
from pathup.tiles.dataset import TileFolder
from pathup.tiles.taxonomy import level_of

__all__ = [
    "CodeBatches",
    "CodeTransformer",
    "CodesTrainer",
    "build_transformer",
    "chosen",
    "draw_codes",
    "kept",
    "start_of",
    "uniforms",
]

NAME = "vqgan"
AUTOENCODER, TRANSFORMER = "autoencoder", "transformer"
"""Names of the files of weights."""


def start_of(recipe: Recipe, label: str, level: str) -> int:
    """The number of the start token of a class and level, from 0.

    Raises
    ------
    PathUpError
        The recipe has no such class or level.
    """
    if label not in recipe.labels:
        raise unknown("label", label, recipe.labels)
    return recipe.labels.index(label) * len(recipe.level_names) + recipe.level_names.index(level_of(recipe, level).name)


class CodeTransformer(nn.Module):
    """A GPT-2 (Radford et al. 2019) over start tokens and codes, with learnt positions.

    Parameters
    ----------
    spec
        Its sizes.
    codes
        Entries of the codebook.
    starts
        Start tokens: classes x levels.
    length
        Codes an image.
    """

    def __init__(self, spec: CodesRecipe, *, codes: int, starts: int, length: int) -> None:
        super().__init__()
        self.codes, self.length = codes, length
        config = GPT2Config(
            vocab_size=codes + starts,  # a code's number is its token
            n_positions=length,
            n_embd=spec.width,
            n_layer=spec.layers,
            n_head=spec.heads,
            embd_pdrop=spec.dropout,
            resid_pdrop=spec.dropout,
            attn_pdrop=spec.dropout,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.gpt = GPT2Model(config)
        self.head = nn.Linear(spec.width, codes, bias=False)
        nn.init.normal_(self.head.weight, std=config.initializer_range)

    def forward(self, starts_B: torch.Tensor, codes_BT: torch.Tensor) -> torch.Tensor:
        """Logits (B, T + 1, codes) of the first T + 1 codes, each by those before it; T is less than the length."""
        tokens = torch.cat([self.codes + starts_B[:, None], codes_BT], 1)
        return self.head(self.gpt(tokens, use_cache=False).last_hidden_state)

    def following(self, tokens_B: torch.Tensor, past: Any) -> tuple[torch.Tensor, Any]:
        """Logits (B, codes) of the code after a token, and the keys and values of all tokens; `past` is the last one's.

        Before the first token, which is ``codes + start``, `past` is None.
        """
        past = DynamicCache(config=self.gpt.config) if past is None else past
        told = self.gpt(tokens_B[:, None], past, use_cache=True)  # by place: releases of transformers name it otherwise
        return self.head(told.last_hidden_state[:, -1]), past


def build_transformer(recipe: Recipe) -> CodeTransformer:
    """A transformer with random weights, drawn from the recipe's seed, for the recipe's codes."""
    spec = recipe.baselines.vqgan
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.seed_of(spec.transformer.seed, "weights", "vqgan transformer"))
        return CodeTransformer(
            spec.transformer,
            codes=spec.codes,
            starts=len(recipe.labels) * len(recipe.level_names),
            length=(recipe.tiles.tile_px // spec.factor) ** 2,
        )


# -- sampling -----------------------------------------------------------------------------------------------


def kept(logits_BK: torch.Tensor, *, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """Which codes may be drawn, (B, K).

    Parameters
    ----------
    logits_BK
        Of the codes.
    top_k
        Only as many, the likeliest ones (Fan et al. 2018); of equal ones the first. 0: all.
    top_p
        Of these, the fewest likeliest ones that have this share of their probability together (Holtzman et al. 2020);
        at least one.
    """
    ordered, order = logits_BK.double().sort(dim=-1, descending=True, stable=True)
    if top_k:
        ordered[:, top_k:] = -torch.inf
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    stays = (probabilities > 0) & ((before < top_p) if top_p < 1 else True)
    return torch.zeros_like(stays).scatter_(-1, order, stays)


def chosen(
    logits_BK: torch.Tensor, uniform_B: torch.Tensor, *, top_k: int = 0, top_p: float = 1.0, temperature: float = 1.0
) -> torch.Tensor:
    """The codes (B,) that uniform numbers in [0, 1) stand for: the inverse of the distribution, summed code by code."""
    logits = logits_BK.double() / temperature
    allowed = kept(logits, top_k=top_k, top_p=top_p)
    summed = logits.masked_fill(~allowed, -torch.inf).softmax(-1).cumsum(-1)
    total = summed[:, -1:]
    below = torch.minimum(uniform_B.to(summed)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return (summed <= below).sum(-1)


def uniforms(label: str, level: str, indices: range, seed: int, length: int) -> torch.Tensor:
    """The numbers (B, L) in [0, 1) that images' codes are drawn by, each image's own."""
    rows = [
        torch.rand(length, generator=draws.torch_generator(seed, "codes", label, level, index), dtype=torch.float64)
        for index in indices
    ]
    return torch.stack(rows)


@torch.no_grad()
def draw_codes(
    transformer: CodeTransformer, starts_B: torch.Tensor, uniforms_BL: torch.Tensor, spec: CodesRecipe
) -> torch.Tensor:
    """Draw images' codes (B, L), one place after another, by the spec's `top_k`, `top_p` and `temperature`."""
    uniforms_BL = uniforms_BL.to(starts_B.device)
    tokens, past, drawn = transformer.codes + starts_B, None, []
    for place in range(transformer.length):
        logits, past = transformer.following(tokens, past)
        tokens = chosen(logits, uniforms_BL[:, place], top_k=spec.top_k, top_p=spec.top_p, temperature=spec.temperature)
        drawn.append(tokens)
    return torch.stack(drawn, 1)


# -- training -----------------------------------------------------------------------------------------------


class CodeBatches(Dataset[tuple[torch.Tensor, ...]]):
    """Batches by step: start tokens' numbers (B,) and codes (B, L), a function of (seed, step)."""

    def __init__(self, cache: CodeCache, recipe: Recipe, batch_size: int) -> None:
        self._cache, self._batch = cache, batch_size
        self._starts = [start_of(recipe, record.label, record.level) for record in cache.tiles.records]

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, step: int) -> tuple[torch.Tensor, ...]:
        """Starts and codes, int64."""
        positions = range(step * self._batch, (step + 1) * self._batch)
        starts = [self._starts[self._cache.place(position)[0]] for position in positions]
        return torch.tensor(starts), torch.stack([self._cache[position] for position in positions])


class CodesTrainer(BaselineTrainer):
    """The second stage of ``pathup baseline train vqgan``.

    Parameters
    ----------
    request
        What is asked for.
    tiles
        The training tiles.
    autoencoder
        Of the first stage, with its averaged weights.
    stage_one
        The folder that it was read from.
    """

    spec: CodesRecipe

    def __init__(self, request: TrainRequest, tiles: TileFolder, autoencoder: VQModel, stage_one: ModelFolder) -> None:
        spec = request.recipe.baselines.vqgan.transformer
        super().__init__(request, spec, tiles, request.output / TRANSFORMER, title="VQ-GAN, transformer")
        self.autoencoder, self._stage_one = autoencoder.to(self.device), stage_one
        self.transformer = build_transformer(self.recipe).to(self.device)
        weights = list(self.transformer.parameters())
        groups = [
            {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": spec.weight_decay},
            {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate, betas=(0.9, 0.95), fused=True)
        self.register(TRANSFORMER, self.transformer, optimizer=optimizer, averaged=True)
        self.cache = CodeCache(
            self.folder / "codes", tiles, self.autoencoder, autoencoder_sha256=weights_sha256(stage_one), seed=spec.seed
        )

    def batches(self) -> CodeBatches:
        """Codes of tiles, each behind the start of its class and level."""
        return CodeBatches(self.cache, self.recipe, self.spec.batch_size)

    def train_step(self, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        """One step down the cross-entropy (nats a code)."""
        starts, codes = batch
        self.transformer.train()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(draws.seed_of(self.spec.seed, "step", self.step))
            with self.accelerator.autocast():
                logits = self.transformer(starts, codes[:, :-1])
        loss = cross_entropy(logits.float().flatten(0, 1), codes.flatten())
        self.descend(TRANSFORMER, loss, clip_norm=1.0)
        return {"cross_entropy": loss.detach()}

    def samples(self) -> tuple[torch.Tensor, list[str], int]:
        """A tile of every class at every level that there are tiles of; a level a row."""
        transformer = build_transformer(self.recipe).to(self.device).eval()
        transformer.load_state_dict(self.averages[TRANSFORMER].tensors)
        groups = sorted(self._groups(), key=lambda group: (group[1], group[0]))
        numbers = torch.cat([uniforms(*group, range(1), self.spec.seed, transformer.length) for group in groups])
        starts = torch.tensor([start_of(self.recipe, *group) for group in groups], device=self.device)
        codes = draw_codes(transformer, starts, numbers, self.spec)
        return images_of(self.autoencoder, codes), [" ".join(group) for group in groups], len(self.recipe.labels)

    def notes(self) -> dict[str, Any]:
        """The sums of both stages, and each."""
        own, first = super().notes(), self._stage_one.notes
        stages = {
            AUTOENCODER: {key: first[key] for key in ("steps", "seconds", "tiles_seen")},
            TRANSFORMER: {key: own[key] for key in ("steps", "seconds", "tiles_seen")},
        }
        sums = {key: round(sum(stage[key] for stage in stages.values()), 1) for key in stages[TRANSFORMER]}
        return {
            **sums,
            "tiles": own["tiles"],
            **stages,
            "perplexity": first["perplexity"],
            "codes_used": first["codes_used"],
            "encoding_seconds": round(self.cache.seconds, 1),
            "autoencoder_sha256": weights_sha256(self._stage_one),
            "groups": [list(group) for group in self._groups()],
        }

    def export(self) -> Path:
        """Write the autoencoder of the first stage and the averaged transformer."""
        target = self.request.output / "model"
        with writing_model(target, NAME, self.recipe, self.notes()) as folder:
            save_weights(folder, AUTOENCODER, self._stage_one.tensors(AUTOENCODER))
            save_weights(folder, TRANSFORMER, self.averages[TRANSFORMER].tensors)
        return target

    def prepare(self, steps: int) -> None:
        """Have the codes of all batches that there are to come."""
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("VQ-GAN, codes of the tiles")
            self.cache.fill(
                steps * self.spec.batch_size,
                self.device,
                lambda done, total: bar.update(task, completed=done, total=total),
            )

    def _groups(self) -> list[tuple[str, str]]:
        return sorted({(record.label, record.level) for record in self.tiles.records})


def weights_sha256(stage_one: ModelFolder) -> str:
    """The hash of an autoencoder's file.

    Raises
    ------
    PathUpError
        It cannot be read.
    """
    path = stage_one.folder / f"{AUTOENCODER}.safetensors"
    try:
        return sha256_file(path)
    except OSError as error:
        raise PathUpError(f"{path} cannot be read ({error}); train the autoencoder again") from error
