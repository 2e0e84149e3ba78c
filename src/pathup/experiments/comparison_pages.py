"""What a comparison writes: JSON, a page in the paper's layout with the paper's own figures, and sheets of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pathup import __version__, storage
from pathup.evaluation.tile_sets import TileSet
from pathup.experiments.comparison import Bench, Entry
from pathup.experiments.contenders import CONTENDERS
from pathup.experiments.pages import markdown
from pathup.experiments.seeds import mean_std
from pathup.slides.images import read_image
from pathup.training.sheets import image_sheet

__all__ = ["write_comparison"]

Row = dict[str, Any]

METRICS = {"precision": ("IP", ".3f"), "recall": ("IR", ".3f"), "fid": ("FD", ".1f"), "kid": ("KD x 1000", ".1f"),
           "coverage": ("coverage", ".2f"), "grey": ("grey tiles named right", ".2f"),
           "psnr": ("PSNR, dB", ".1f")}  # fmt: skip
"""What a page shows of a row, in the paper's order: title and format. FD and KD, since features are not Inception's
unless it is named."""


def write_comparison(bench: Bench) -> Row:
    """Write ``NAME.json``, ``NAME.md`` and the sheets; returns what the JSON holds."""
    name, output = bench.name, bench.output
    kept = {entry.name: _figures(bench, entry) for entry in bench.entries()}
    content = {
        "experiment": name, "version": __version__, "recipe": bench.recipe.name, "minutes": bench.request.minutes,
        "generations": bench.request.generations, "count": bench.request.count, "images": bench.request.images,
        "entries": [_told(bench, entry, kept[entry.name]) for entry in bench.entries()],
        "floor": _floor(bench),
    }  # fmt: skip
    storage.write_json(output / f"{name}.json", content)
    for level in bench.levels():
        _sheet(bench, level)
    storage.write_text(output / f"{name}.md", page(bench, content))
    return content


def _figures(bench: Bench, entry: Entry) -> list[Row]:
    return [storage.read_json(bench.figures_of(entry, generation)) for generation in bench.generations_of(entry)]


def _told(bench: Bench, entry: Entry, figures: list[Row]) -> Row:
    training = bench.training_of(entry)
    seconds = [own["seconds_a_tile"] for own in figures if own["seconds_a_tile"] is not None]
    return {
        "entry": entry.name, "title": entry.title, "once": entry.once,
        "training": None if training is None else training.notes(),
        "seconds_a_tile": float(np.median(seconds)) if seconds else None,
        "rows": [row for own in figures for row in own["rows"]],
    }  # fmt: skip


def _floor(bench: Bench) -> list[Row]:
    tiles, found = bench.yardstick.floor(), []
    for encoder in bench.yardstick.encoders:
        for level in bench.levels():
            figures = bench.yardstick.figures(tiles, encoder, level)
            interval = bench.yardstick.kid_interval(tiles, encoder, level)
            found.append({"level": level, "features": encoder.name, **figures, "kid_interval": interval})
    return found


def page(bench: Bench, content: Row) -> str:
    """The tables as markdown."""
    entries: list[Row] = content["entries"]
    generations, count = content["generations"], content["count"]
    lines = [
        f"# {bench.title}",
        "",
        f"Recipe `{content['recipe']}`, {generations} generations (seeds), {count} tiles a class and level in each; "
        "mean ± standard deviation of generations. FD and KD are the Fréchet and kernel distances on features of the "
        "network that is named: those of Inception alone are the FID and KID of the literature. The floor is as many "
        "real training tiles in their place (from such tiles the classifier of grey tiles has learnt, so that its "
        "figure there says nothing). 95 % intervals of KD are of the first generation. Measured with the functions of "
        f"`pathup evaluate` (PathUp {content['version']}).",
    ]
    for features in dict.fromkeys(row["features"] for row in content["floor"]):
        for level in bench.levels():
            floor = next(row for row in content["floor"] if (row["features"], row["level"]) == (features, level))
            lines += ["", f"## {level}, on features of {features}", "", *_table(entries, features, level, floor)]
    lines += ["", "## Cost", "", *_costs(entries)]
    latent = [CONTENDERS[name].title for name in bench.contenders if CONTENDERS[name].latent]
    if latent:
        verb = "are" if len(latent) > 1 else "is"
        lines += ["", f"{', '.join(latent)} {verb} trained on latents of an autoencoder that was trained before; that "
                  "time is in none of these seconds."]  # fmt: skip
    if bench.paper is not None:
        said = (
            "The paper's own figures (BRACS, Inception and VGG16, 10,000 images; not to be compared with those above):"
        )
        head, body = bench.paper
        lines += ["", "## The paper", "", said, "", *markdown([list(head), *(list(row) for row in body)])]
    sheets = [f"![{level}]({_sheet_name(bench, level)})" for level in bench.levels()]
    told = "One tile of each class (columns) by each row that is drawn in every generation, top to bottom, seed 0:"
    return "\n".join([*lines, "", "## Images", "", told, "", *sheets, ""])


def _table(entries: list[Row], features: str, level: str, floor: Row) -> list[str]:
    shown = {metric: METRICS[metric] for metric in METRICS if metric in entries[0]["rows"][0]}
    table = [["system", "tiles", *(title for title, _ in shown.values()), "KD x 1000, 95 %"]]
    for entry in entries:
        rows = [row for row in entry["rows"] if (row["features"], row["level"]) == (features, level)]
        cells = [_spread([row[metric] for row in rows], form) for metric, (_, form) in shown.items()]
        table.append([entry["title"], f"{rows[0]['tiles']:.0f}", *cells, _interval(rows[0]["kid_interval"])])
    cells = [format(floor[metric], form) if metric in floor else "" for metric, (_, form) in shown.items()]
    table.append(["*floor*", f"{floor['tiles']:.0f}", *cells, _interval(floor["kid_interval"])])
    return markdown(table)


def _spread(values: list[float], form: str) -> str:
    if len(values) == 1:
        return format(values[0], form)
    mean, std = mean_std(np.asarray(values))
    return f"{mean:{form}} ± {std:{form}}"


def _interval(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.1f} to {ends[1]:.1f}"


def _costs(entries: list[Row]) -> list[str]:
    table = [["system", "training, seconds", "optimiser steps", "tiles seen", "seconds a tile"]]
    for entry in entries:
        if entry["once"]:
            continue
        made, told = entry["training"], ["none", "", ""]
        if made is not None:
            seconds = f"{made['seconds']:.0f}" if made["seconds"] else "not noted"
            told = [seconds, *(f"{made[name]:,}" if made[name] else "" for name in ("steps", "tiles_seen"))]
        pace = entry["seconds_a_tile"]
        table.append([entry["title"], *told, "not noted" if pace is None else f"{pace:.3g}"])
    return markdown(table)


def _sheet_name(bench: Bench, level: str) -> str:
    return f"{bench.name}_{level}.png"


def _sheet(bench: Bench, level: str) -> Path:
    """The first tile of each class and row."""
    images, rows = [], []
    for entry in bench.entries():
        if entry.once:
            continue
        tiles, _ = bench.draw(entry, 0)
        own = tiles.of(level=level)
        images += [_first(own, label) for label in bench.recipe.labels]
        rows.append(entry.title)
    target, labels = bench.output / _sheet_name(bench, level), bench.recipe.labels
    image_sheet(torch.stack(images), target, columns=len(labels), titles=labels, rows=rows)
    return target


def _first(tiles: TileSet, label: str) -> torch.Tensor:
    """The first tile of a class, in [-1, 1]; grey where there is none."""
    place = next((place for place in range(len(tiles)) if tiles.labels[place] == label), None)
    if place is None:
        return torch.zeros(3, tiles.size_px, tiles.size_px)
    return torch.from_numpy(np.array(read_image(tiles.files[place]))).permute(2, 0, 1).float() / 127.5 - 1
