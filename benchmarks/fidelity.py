"""What limits a model: single tiles, and reconstructions, beside real test tiles and a floor of real training tiles.

    python benchmarks/fidelity.py TILES --output DIR --sets old=models/atlas new=RUN/model new_g1=RUN/model,guidance=1

A set is NAME=MODEL, then any values of sampling (guidance, steps, step_power, scheduler), or precision=bf16; all are of
one seed. A row holds, for a level and a network, the kernel distance x 1000 to the test split, precision, recall and
coverage, and how often a classifier of real grey tiles names the class. The floor is as many real training tiles, of
the same classes. ``--reconstructions NAME=MODEL`` are of test tiles, and stand beside these themselves; ``paired`` is
their kernel distance without the pairs of a tile and its own reconstruction (see `paired_kernel_distance`). Tiles and
features that are there already are kept. With ``--from T ...`` each set's model also draws real training tiles anew
from timestep T, by its own sampling values in evenly spread steps: the rows ``NAME@T`` tell at which noise a distance
is made. Writes ``fidelity.json`` and ``fidelity.md`` into DIR.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pathup import PathUpError, draws, storage
from pathup.evaluation.encoders import load_features
from pathup.evaluation.tile_sets import TileSet, load_tile_set
from pathup.experiments.yardstick import Yardstick, balanced
from pathup.model.pipeline import PathUpPipeline, load_pipeline
from pathup.recipes import SamplingRecipe
from pathup.sampling.device import choose_device
from pathup.sampling.runs import GenerateRequest, generate
from pathup.sampling.settings import resolve_settings
from pathup.sampling.tracking import last_timesteps
from pathup.slides.images import read_image

BATCH = 48


def wanted(text: str) -> tuple[str, Path, dict[str, Any]]:
    """``NAME=MODEL[,KEY=VALUE]...``."""
    name, _, rest = text.partition("=")
    model, *values = rest.split(",")
    named = dict(value.split("=", 1) for value in values)
    kinds = {"guidance": float, "steps": int, "scheduler": str, "step_power": float, "precision": str}
    return name, Path(model), {key: kinds[key](value) for key, value in named.items()}


def drawn(model: Path, values: dict[str, Any], folder: Path, levels: list[str], asked: argparse.Namespace) -> TileSet:
    """Tiles of every class and level, as many as asked for of each."""
    for level in levels:
        generate(GenerateRequest(
            model=model, out=folder / level, label="all", level=level, count=asked.count, device=asked.device,
            resume=True, **values,
        ))  # fmt: skip
    return load_tile_set(folder, folder.name)


@torch.no_grad()
def reconstructed(pipeline: PathUpPipeline, tiles: TileSet, folder: Path) -> tuple[TileSet, dict[str, float]]:
    """Tiles through the autoencoder and back, and the mean PSNR of each level, decibels of 8-bit pixels."""
    found: dict[str, list[float]] = {}

    def passed(latents_BCHW: torch.Tensor, span: range) -> torch.Tensor:
        return latents_BCHW

    def compared(made: np.ndarray, pixels: np.ndarray, place: int) -> None:
        error = np.square(made.astype(np.float64) - pixels).mean()
        found.setdefault(str(tiles.levels[place]), []).append(10 * np.log10(255**2 / max(error, 1e-9)))

    made = remade(pipeline, tiles, folder, passed, compared)
    return made, {level: float(np.mean(own)) for level, own in found.items()}


@torch.no_grad()
def drawn_from(
    pipeline: PathUpPipeline, settings: SamplingRecipe, tiles: TileSet, timestep: int, folder: Path
) -> TileSet:
    """Tiles noised to a timestep and drawn from there: above it the tile is real, below it is the model's."""

    def drawn_anew(latents_BCHW: torch.Tensor, span: range) -> torch.Tensor:
        scheduler = pipeline.make_scheduler(settings.scheduler)
        left = [float(taken) <= timestep for taken in last_timesteps(scheduler, settings.steps, 1.0)]
        if not any(left):
            raise PathUpError(f"none of the {settings.steps} steps is at timestep {timestep} or below; take more steps")
        timesteps = last_timesteps(scheduler, settings.steps, sum(left) / len(left))
        noise = torch.stack([draws.normal(latents_BCHW.shape[1:], 0, "drawn from", place) for place in span])
        latents = scheduler.add_noise(latents_BCHW, noise.to(latents_BCHW.device), timesteps[:1])
        named = [(str(tiles.labels[place]), str(tiles.levels[place])) for place in span]
        told, empty = (
            torch.cat([pipeline.encode_prompts([text], pipeline.scale_of(level, None)) for text, level in texts])
            for texts in ([(pipeline.prompt(*own), own[1]) for own in named], [("", level) for _, level in named])
        )
        for taken in timesteps:
            scaled = scheduler.scale_model_input(latents, taken)
            prediction = pipeline.predict(scaled, taken, told, empty, settings.guidance)
            latents = scheduler.step(prediction.float(), taken, latents, return_dict=False)[0]
        return latents

    return remade(pipeline, tiles, folder, drawn_anew)


def remade(
    pipeline: PathUpPipeline,
    tiles: TileSet,
    folder: Path,
    change: Callable[[torch.Tensor, range], torch.Tensor],
    seen: Callable[[np.ndarray, np.ndarray, int], None] = lambda made, pixels, place: None,
) -> TileSet:
    """Tiles encoded, changed (latents and which tiles they are of) and decoded; `seen` gets each beside its own."""
    rows = []
    for first in range(0, len(tiles), BATCH):
        span = range(first, min(first + BATCH, len(tiles)))
        pixels = np.stack([read_image(tiles.files[place]) for place in span])
        given = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        values = pipeline.decode_latents(change(pipeline.encode_pixels(given), span)).float().cpu() * 127.5 + 127.5
        made = values.round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()
        for place, image, own in zip(span, made, pixels, strict=True):
            seen(image, own, place)
            level, label = str(tiles.levels[place]), str(tiles.labels[place])
            path = folder / level / label / f"{place:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, compress_level=1)
            rows.append((path, label, level))
    return tile_set(folder.name, rows, tiles.size_px)


def tile_set(name: str, rows: list[tuple[Path, str, str]], side: int) -> TileSet:
    files, labels, levels = zip(*rows, strict=True)
    nothing = (None,) * len(rows)
    return TileSet(name, files, labels, levels, nothing, nothing, side, name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=[], help="NAME=MODEL[,guidance=G][,steps=N][,scheduler=S]")
    parser.add_argument("--reconstructions", nargs="*", default=[], help="NAME=MODEL")
    parser.add_argument("--from", nargs="*", type=int, default=[], dest="drawn_from", help="timesteps, of --sets")
    parser.add_argument("--features", nargs="+", default=["atlas"])
    parser.add_argument("--count", type=int, default=48, help="tiles a class, level and set [48]")
    parser.add_argument("--split", default="test")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    try:
        measure(asked)
    except PathUpError as error:
        print(f"pathup: {error}", file=sys.stderr)
        return 1
    return 0


def measure(asked: argparse.Namespace) -> None:
    device = choose_device(asked.device)
    encoders = [load_features(name, device) for name in asked.features]
    yardstick = Yardstick(asked.tiles, encoders, asked.count, asked.output / "features", split=asked.split)
    originals = balanced(load_tile_set(asked.tiles, asked.split, split=asked.split), asked.count, "originals")
    sets: dict[str, TileSet] = {"floor": yardstick.floor()}
    psnr: dict[str, dict[str, float]] = {}
    for text in asked.reconstructions:
        name, model, _ = wanted(text)
        pipeline = load_pipeline(model, device=device)
        sets[name], psnr[name] = reconstructed(pipeline, originals, asked.output / "reconstructions" / name)
    for text in asked.sets:
        name, model, values = wanted(text)
        print(name, file=sys.stderr, flush=True)
        sets[name] = drawn(model, values, asked.output / "sets" / name, yardstick.levels, asked)
        for timestep in asked.drawn_from:
            pipeline = load_pipeline(model, device=device, precision=values.get("precision", "fp32"))
            settings = resolve_settings(pipeline, **{key: values[key] for key in values if key != "precision"})
            own = asked.output / "drawn_from" / f"{name}@{timestep}"
            sets[own.name] = drawn_from(pipeline, settings, sets["floor"], timestep, own)
    rows = []
    for encoder in encoders:
        for level in yardstick.levels:
            told = {"features": encoder.name, "level": level}
            rows.append({**told, "set": asked.split, "grey": yardstick.named(yardstick.real(level), encoder, level)})
            for name, tiles in sets.items():
                beside = originals if name in psnr else None
                row = {**told, "set": name, **yardstick.figures(tiles, encoder, level, beside)}
                if beside is not None:
                    apart = yardstick.paired_distance(beside, tiles, encoder, level)
                    row = {**row, "psnr": psnr[name][level], "beside": "originals", "paired": apart}
                rows.append(row)
                print(rows[-1], file=sys.stderr, flush=True)
    content = {"split": asked.split, "count": asked.count, "sets": asked.sets, "rows": rows}
    storage.write_json(asked.output / "fidelity.json", content)
    storage.write_text(asked.output / "fidelity.md", table(rows))
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    columns = dict.fromkeys(("precision", "recall", "coverage", "grey"), ".2f")
    columns = {"kid": ".1f", "paired": ".1f", **columns, "psnr": ".1f"}
    lines = ["| features | level | set | tiles | " + " | ".join(columns) + " |", "|" + " --- |" * (4 + len(columns))]
    for row in rows:
        cells = [format(row[name], form) if name in row else "" for name, form in columns.items()]
        told = [*(row[name] for name in ("features", "level", "set")), f"{row['tiles']:.0f}" if "tiles" in row else ""]
        lines.append("| " + " | ".join([*told, *cells]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
