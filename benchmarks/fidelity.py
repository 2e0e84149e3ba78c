"""What limits a model: single tiles, and reconstructions, beside real test tiles and a floor of real training tiles.

    python benchmarks/fidelity.py TILES --output DIR --sets old=models/atlas new=RUN/model new_g1=RUN/model,guidance=1

A set is NAME=MODEL, then any values of sampling (guidance, steps, scheduler), all of one seed. A row holds, for a
level and a network, the kernel distance x 1000 to the test split, precision, recall and coverage, and how often
a classifier of real grey tiles names the class. The floor is as many real training tiles, of the same classes.
``--reconstructions NAME=MODEL`` are of test tiles, and stand beside these themselves. Tiles and features that are there
already are kept. Writes ``fidelity.json`` and ``fidelity.md`` into DIR.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pathup import PathUpError, draws, storage
from pathup.evaluation.consistency import capped, trained_classifier
from pathup.evaluation.encoders import Encoder, load_features
from pathup.evaluation.features import kept_features
from pathup.evaluation.kernel import kernel_distance
from pathup.evaluation.neighbours import manifold
from pathup.evaluation.tile_sets import TileSet, load_tile_set
from pathup.model.pipeline import PathUpPipeline, load_pipeline
from pathup.sampling.device import choose_device
from pathup.slides.images import read_image

TRAINING = 400
"""Real training tiles a class for the classifier of grey tiles."""

BATCH = 48


def balanced(tiles: TileSet, count: int, purpose: str) -> TileSet:
    """As many tiles of each class and level: `count`, or all that the rarest has."""
    cells = tiles.cells()
    least = min(count, *map(len, cells.values()))
    order = {cell: draws.numpy_generator(0, purpose, *map(str, cell)) for cell in cells}
    return tiles.at(np.concatenate([np.sort(order[cell].permutation(own)[:least]) for cell, own in cells.items()]))


def wanted(text: str) -> tuple[str, Path, dict[str, Any]]:
    """``NAME=MODEL[,KEY=VALUE]...``."""
    name, _, rest = text.partition("=")
    model, *values = rest.split(",")
    named = dict(value.split("=", 1) for value in values)
    kinds = {"guidance": float, "steps": int, "scheduler": str}
    return name, Path(model), {key: kinds[key](value) for key, value in named.items()}


def drawn(pipeline: PathUpPipeline, values: dict[str, Any], folder: Path, count: int) -> TileSet:
    """Tiles of every class and level, `count` each."""
    names = {"guidance": "guidance_scale", "steps": "num_inference_steps"}
    told = {names.get(key, key): value for key, value in values.items()}
    rows: list[tuple[Path, str, str]] = []
    for level in pipeline.level_names:
        for label in pipeline.labels:
            for first in range(0, count, BATCH):
                span = range(first, min(first + BATCH, count))
                paths = [folder / level / label / f"{index:05d}.png" for index in span]
                rows += [(path, label, level) for path in paths]
                if all(path.is_file() for path in paths):
                    continue
                paths[0].parent.mkdir(parents=True, exist_ok=True)
                images: Any = pipeline(label, level, len(span), seed=0, first_index=first, **told)
                for path, image in zip(paths, images, strict=True):
                    image.save(path, compress_level=1)
    return tile_set(folder.name, rows, int(pipeline.config.tile_px))


@torch.no_grad()
def reconstructed(pipeline: PathUpPipeline, tiles: TileSet, folder: Path) -> tuple[TileSet, dict[str, float]]:
    """Tiles through the autoencoder and back, and the mean PSNR of each level, decibels of 8-bit pixels."""
    found: dict[str, list[float]] = {}
    rows = []
    for first in range(0, len(tiles), BATCH):
        span = range(first, min(first + BATCH, len(tiles)))
        pixels = np.stack([read_image(tiles.files[place]) for place in span])
        given = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        values = pipeline.decode_latents(pipeline.encode_pixels(given)).float().cpu() * 127.5 + 127.5
        made = values.round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()
        errors = np.square(made.astype(np.float64) - pixels).mean((1, 2, 3))
        for place, image, error in zip(span, made, errors, strict=True):
            level, label = str(tiles.levels[place]), str(tiles.labels[place])
            path = folder / level / label / f"{place:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, compress_level=1)
            rows.append((path, label, level))
            found.setdefault(level, []).append(10 * np.log10(255**2 / max(error, 1e-9)))
    return tile_set(folder.name, rows, tiles.size_px), {level: float(np.mean(own)) for level, own in found.items()}


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
    split = load_tile_set(asked.tiles, asked.split, split=asked.split)
    train = load_tile_set(asked.tiles, "train", split="train")
    device = choose_device(asked.device)
    sets: dict[str, TileSet] = {"floor": balanced(train, asked.count, "floor")}
    psnr: dict[str, dict[str, float]] = {}
    for text in asked.reconstructions:
        name, model, _ = wanted(text)
        originals = balanced(split, asked.count, "originals")
        sets["originals"] = originals
        sets[name], psnr[name] = reconstructed(
            load_pipeline(model, device=device), originals, asked.output / "reconstructions" / name
        )
    for text in asked.sets:
        name, model, values = wanted(text)
        print(name, file=sys.stderr, flush=True)
        sets[name] = drawn(load_pipeline(model, device=device), values, asked.output / "sets" / name, asked.count)
    real = balanced(split, 10 * asked.count, "real")
    learnt = capped(train, TRAINING, 0, "fidelity")
    rows = []
    for encoder in map(load_features, asked.features):
        for level in sorted({str(level) for level in real.levels}):
            of_level, named = real.of(level=level), learnt.of(level=level)
            told = {"features": encoder.name, "level": level}
            classifier = trained_classifier(features(encoder, named, asked.output, "grey"), named.labels)
            truth = features(encoder, of_level, asked.output)
            rows.append({**told, "set": "test", "grey": share(classifier, encoder, of_level, asked.output)})
            for name, tiles in sets.items():
                own = tiles.of(level=level)
                found = features(encoder, own, asked.output)
                beside = features(encoder, sets["originals"].of(level=level), asked.output) if name in psnr else truth
                figures = manifold(beside, found).figures
                row = {
                    **told, "set": name, "tiles": len(own),
                    "kernel_distance": 1000 * kernel_distance(beside, found),
                    "precision": figures["precision"], "recall": figures["recall"], "coverage": figures["coverage"],
                    "grey": share(classifier, encoder, own, asked.output),
                    **({"psnr": psnr[name][level], "beside": "originals"} if name in psnr else {}),
                }  # fmt: skip
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    content = {"split": asked.split, "count": asked.count, "sets": asked.sets, "rows": rows}
    storage.write_json(asked.output / "fidelity.json", content)
    storage.write_text(asked.output / "fidelity.md", table(rows))
    print(table(rows))


def features(encoder: Encoder, tiles: TileSet, output: Path, view: Any = "colour") -> np.ndarray:
    return kept_features(encoder, tiles.files, view, cache=output / "features")


def share(classifier: Any, encoder: Encoder, tiles: TileSet, output: Path) -> float:
    """How often a grey tile's class is named."""
    named = classifier.predict(features(encoder, tiles, output, "grey").astype(np.float64))
    return float(np.mean(named == np.asarray(tiles.labels)))


def table(rows: list[dict[str, Any]]) -> str:
    columns = dict.fromkeys(("precision", "recall", "coverage", "grey"), ".2f")
    columns = {"kernel_distance": ".1f", **columns, "psnr": ".1f"}
    lines = ["| features | level | set | tiles | " + " | ".join(columns) + " |", "|" + " --- |" * (4 + len(columns))]
    for row in rows:
        cells = [format(row[name], form) if name in row else "" for name, form in columns.items()]
        told = [str(row.get(name, "")) for name in ("features", "level", "set", "tiles")]
        lines.append("| " + " | ".join([*told, *cells]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
