"""The demonstration: what the shipped model draws, with the commands that draw it, as five files and a page.

``python -m pathup.demo`` (``make demo``) needs a model and nothing else. Into its folder go ``classes.png`` (every
class at every level), ``slide.ome.tiff`` (one large image), ``slide.png`` (a preview of it), ``run.json`` (what it
took) and, last, ``index.html``, which shows them: without it, a demonstration is unfinished.
"""

from __future__ import annotations

import argparse
import html
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import numpy as np
import tifffile
import torch
from PIL import Image, ImageDraw, ImageFont

from pathup import __version__, storage
from pathup.errors import PathUpError
from pathup.memory import keep_freed_memory
from pathup.model.pipeline import PathUpPipeline, load_pipeline
from pathup.sampling.device import choose_device, clear_memory_errors, peak_memory_bytes
from pathup.sampling.runs import GenerateRequest, generate
from pathup.sampling.settings import check_size, resolve_settings
from pathup.sampling.tracking import all_timesteps, forwards_of

__all__ = ["FILES", "DemoRequest", "demonstrate", "main"]

FILES = ("classes.png", "slide.ome.tiff", "slide.png", "run.json", "index.html")
"""What a finished demonstration consists of."""

PREVIEW_PX = 1024
"""Longest side of ``slide.png``, at most."""

_GAP_PX, _TITLE_PX, _PAPER, _INK, _PALE = 6, 18, "#ffffff", "#1a1a1a", "#5a5a5a"


@dataclass(frozen=True, kw_only=True)
class DemoRequest:
    """What to show.

    Attributes
    ----------
    model, out
        The model's folder, and the folder to write.
    label
        The class of the large image; None: the model's first.
    size_px
        Side of the large image, in pixels.
    tiles
        Tiles of each class and level.
    seed
        The same seed draws the same demonstration.
    steps, device, threads
        As in ``pathup generate``; None: the model's own, or all cores.
    """

    model: Path = Path("models/atlas")
    out: Path = Path("demo")
    label: str | None = None
    size_px: int = 2048
    tiles: int = 4
    seed: int = 0
    steps: int | None = None
    device: str = "auto"
    threads: int | None = None


@dataclass
class _Teller:
    """Says on stderr what is being done, for how long, and how long it may still take."""

    interactive: bool = field(default_factory=lambda: sys.stderr.isatty())
    _stage: str = ""
    _started: float = 0.0
    _said: int = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage or done < total * self._said // 10:
            self._stage, self._started, self._said = stage, time.perf_counter(), 0
        tenths = 10 * done // total
        if not self.interactive and tenths <= self._said:
            return
        self._said = tenths
        spent = time.perf_counter() - self._started
        left = f", about {spent * (total - done) / done:.0f} s left" if 0 < done < total else ""
        line = f"  {stage}: {100 * done // total} %, {spent:.0f} s{left}"
        if self.interactive:
            print(f"\r{line}\033[K", end="\n" if done == total else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    @contextmanager
    def stage(self, seconds: dict[str, float], name: str, what: str) -> Iterator[None]:
        """Announce a stage and keep its wall time."""
        print(what, file=sys.stderr, flush=True)
        started = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - started, 2)


def demonstrate(request: DemoRequest) -> dict[str, Any]:
    """Draw the demonstration; a folder that holds an earlier one is written anew.

    Returns
    -------
    dict
        What ``run.json`` holds: ``seconds`` of wall time by stage, ``unet_forwards`` (one window once through the
        U-Net; guidance takes two), ``peak_memory_bytes``, ``versions``, ``commands``, and each file's ``bytes`` and
        ``sha256``.

    Raises
    ------
    PathUpError
        The model is missing or not PathUp's, the label unknown, the size not to be sampled, or the folder holds
        anything else than a demonstration. Nothing is written then.
    """
    with clear_memory_errors():
        return _demonstrated(request)


def _demonstrated(request: DemoRequest) -> dict[str, Any]:
    tell, started = _Teller(), time.perf_counter()
    seconds: dict[str, float] = {}
    if request.tiles < 1:
        raise PathUpError(f"{request.tiles} tiles a class were asked for, but at least 1 was needed")
    if request.threads is not None and request.threads < 1:
        raise PathUpError(f"threads is {request.threads}, but at least 1 was needed")
    if not request.model.is_dir():
        raise PathUpError(
            f"the model {request.model} is not there; run this from the repository's root, where the shipped model "
            "lies in models/atlas, or name a model with --model"
        )
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    with tell.stage(seconds, "load", f"loading {request.model}"):
        pipeline = load_pipeline(request.model, device=choose_device(request.device))
        if pipeline.unet.device.type == "cpu":
            keep_freed_memory()
    label = request.label or pipeline.labels[0]
    pipeline.prompt(label, pipeline.level_names[0])
    check_size(pipeline, (request.size_px, request.size_px))
    settings = resolve_settings(pipeline, steps=request.steps)
    storage.claim_folder(request.out, "demo", {}, resume=True)
    for name in reversed(FILES):  # the page first: an earlier one would show what is no longer there
        with storage.clear_disk_errors(request.out / name):
            (request.out / name).unlink(missing_ok=True)

    count = request.tiles * len(pipeline.labels) * len(pipeline.level_names)
    with tell.stage(seconds, "tiles", f"classes.png: {count} tiles, every class at every level"):
        images = _draw_tiles(pipeline, request, tell)
        _write_png(_sheet(pipeline, images), request.out / "classes.png")
    side = request.size_px
    print(f"slide.ome.tiff: {side} x {side} px of {_name_of(pipeline, label)}", file=sys.stderr, flush=True)
    report = generate(
        GenerateRequest(
            model=request.model,
            out=request.out / "slide.ome.tiff",
            label=label,
            size=f"{side}x{side}",
            seed=request.seed,
            steps=request.steps,
            device=request.device,
            overwrite=True,
        ),
        progress=tell,
    )
    seconds |= {name: round(spent, 2) for name, spent in report.seconds.items() if name != "total"}
    with tell.stage(seconds, "preview", "slide.png: a preview of it"):
        _write_png(_preview(request.out / "slide.ome.tiff"), request.out / "slide.png")
    seconds["total"] = round(time.perf_counter() - started, 2)

    timesteps = all_timesteps(pipeline.make_scheduler(settings.scheduler), settings)
    forwards = {
        "classes.png": forwards_of(count * len(timesteps), settings.guidance),
        "slide.ome.tiff": report.forwards,
    }
    content = {
        "made_by": "pathup demo",
        "model": request.model.as_posix(),
        "label": label,
        "class": _name_of(pipeline, label),
        "seed": request.seed,
        "size_px": [side, side],
        "mpp": report.mpp,
        "device": report.device,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "unet_forwards": {**forwards, "total": sum(forwards.values())},
        "peak_memory_bytes": max(report.peak_memory_bytes, peak_memory_bytes(pipeline.unet.device)),
        "versions": _versions(),
        "commands": _commands(pipeline, request, label),
        "files": {name: _described(request.out / name) for name in FILES[:3]},
    }
    storage.write_json(request.out / "run.json", content)
    storage.write_text(request.out / "index.html", _page(pipeline, content, request.tiles))
    return content


# -- the tiles -----------------------------------------------------------------------------------------------


def _draw_tiles(
    pipeline: PathUpPipeline, request: DemoRequest, tell: _Teller
) -> dict[tuple[str, str], list[Image.Image]]:
    """`request.tiles` tiles of every (label, level)."""
    wanted = [(label, level) for label in pipeline.labels for level in pipeline.level_names]
    images = {}
    for done, (label, level) in enumerate(wanted):
        drawn = pipeline(label, level, request.tiles, seed=request.seed, num_inference_steps=request.steps)
        images[label, level] = list(drawn)
        tell("tiles", done + 1, len(wanted))
    return images


def _sheet(pipeline: PathUpPipeline, images: dict[tuple[str, str], list[Image.Image]]) -> Image.Image:
    """A row a class, a group of columns a level; every tile pixel for pixel, titles above and beside."""
    side, count = int(pipeline.config.tile_px), len(next(iter(images.values())))
    letters = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # Pillow's own font has no µ
    font, small = ImageFont.truetype(letters, _TITLE_PX), ImageFont.truetype(letters, _TITLE_PX - 4)
    titles = {label: _name_of(pipeline, label) for label in pipeline.labels}
    widest = max(small.getlength(name) for name in titles.values())
    left = int(max(widest, *(font.getlength(label) for label in titles))) + 3 * _GAP_PX
    top = 2 * _TITLE_PX + 4 * _GAP_PX
    heads = [_level_titles(pipeline, level) for level in pipeline.level_names]
    needed = int(max(max(font.getlength(title), small.getlength(scale)) for title, scale in heads))
    group = max(count * (side + _GAP_PX), needed) + 3 * _GAP_PX
    width = left + group * len(heads)
    sheet = Image.new("RGB", (width, top + len(titles) * (side + _GAP_PX) + _GAP_PX), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, (level, (title, scale)) in enumerate(zip(pipeline.level_names, heads, strict=True)):
        x = left + column * group
        pen.text((x, _GAP_PX), title, fill=_INK, font=font)
        pen.text((x, 2 * _GAP_PX + _TITLE_PX), scale, fill=_PALE, font=small)
        for row, label in enumerate(titles):
            for place, image in enumerate(images[label, level]):
                sheet.paste(image, (x + place * (side + _GAP_PX), top + row * (side + _GAP_PX)))
    for row, (label, name) in enumerate(titles.items()):
        y = top + row * (side + _GAP_PX) + max(0, side // 2 - _TITLE_PX)
        pen.text((_GAP_PX, y), label, fill=_INK, font=font)
        pen.text((_GAP_PX, y + _TITLE_PX + 2), name, fill=_PALE, font=small)
    return sheet


def _level_titles(pipeline: PathUpPipeline, name: str) -> tuple[str, str]:
    """A level's name, and what a tile of it shows: its side in micrometres and its scale."""
    mpp, side = float(pipeline.level(name)["mpp"]), int(pipeline.config.tile_px)
    return name, f"{mpp * side:g} µm a tile, {mpp:g} µm a pixel"


def _name_of(pipeline: PathUpPipeline, label: str) -> str:
    return next(str(spec["name"]) for spec in pipeline.config.classes if spec["label"] == label)


# -- the large image and the page ----------------------------------------------------------------------------


def _preview(slide: Path) -> Image.Image:
    """The largest level of the pyramid that is not longer than `PREVIEW_PX`."""
    with tifffile.TiffFile(slide) as reader:
        levels = reader.series[0].levels
        fitting = [level for level in levels if max(level.shape[:2]) <= PREVIEW_PX]
        return Image.fromarray(np.asarray((fitting or levels[-1:])[0].asarray()))


def _write_png(image: Image.Image, target: Path) -> None:
    with storage.atomic_path(target) as temporary:
        image.save(temporary, format="PNG")


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": storage.sha256_file(path)}


def _versions() -> dict[str, str]:
    names = ("torch", "diffusers", "transformers", "numpy")
    return {"pathup": __version__, "python": platform.python_version(), **{name: version(name) for name in names}}


def _commands(pipeline: PathUpPipeline, request: DemoRequest, label: str) -> dict[str, str]:
    """The commands that draw the same: of the whole demonstration, the tiles of each level, the large image."""
    model, side = request.model.as_posix(), request.size_px
    steps = f" --steps {request.steps}" if request.steps else ""
    tiles = {
        f"{level} tiles": f"pathup generate {model} {level} --label all --level {level} --count {request.tiles} "
        f"--seed {request.seed}{steps}"
        for level in pipeline.level_names
    }
    slide = f"pathup generate {model} slide.ome.tiff --label {label} --size {side}x{side} --seed {request.seed}{steps}"
    whole = f"python -m pathup.demo --model {model} --label {label} --size {side} --tiles {request.tiles}"
    return {"demonstration": f"{whole} --seed {request.seed}{steps}", **tiles, "slide.ome.tiff": slide}


def _page(pipeline: PathUpPipeline, content: dict[str, Any], tiles: int) -> str:
    """index.html, from the template beside this module."""
    text = (resources.files("pathup") / "demo_page.html").read_text(encoding="utf-8")
    facts = {
        "device": f"{content['device']}, {content['threads']} threads",
        "time": f"{content['seconds']['total']:.0f} s",
        "U-Net forwards": f"{content['unet_forwards']['total']:,}",
        "peak memory": f"{content['peak_memory_bytes'] / 2**20:,.0f} MiB",
        **content["versions"],
    }
    rows = "\n".join(f'<tr><th scope="row">{_safe(k)}</th><td>{_safe(v)}</td></tr>' for k, v in facts.items())
    spent = "\n".join(
        f'<tr><th scope="row">{_safe(name)}</th><td>{value:.1f} s</td></tr>'
        for name, value in content["seconds"].items()
    )
    commands = content["commands"]
    return Template(text).substitute(
        class_name=_safe(content["class"]),
        classes=_safe(", ".join(_name_of(pipeline, label) for label in pipeline.labels)),
        levels=_safe(" and ".join(pipeline.level_names)),
        tiles=tiles,
        tile_px=int(pipeline.config.tile_px),
        size=content["size_px"][0],
        field=f"{content['size_px'][0] * content['mpp'] / 1000:.2g}",
        mpp=f"{content['mpp']:g}",
        tile_commands=_safe("\n".join(commands[f"{level} tiles"] for level in pipeline.level_names)),
        slide_command=_safe(commands["slide.ome.tiff"]),
        facts=rows,
        seconds=spent,
        version=_safe(__version__),
    )


def _safe(text: object) -> str:
    return html.escape(str(text))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    known = DemoRequest()
    parser = argparse.ArgumentParser(prog="python -m pathup.demo", description="Show what a trained model draws.")
    parser.add_argument("--model", type=Path, default=known.model, help="the model's folder [%(default)s]")
    parser.add_argument("--out", type=Path, default=known.out, help="folder to write [%(default)s]")
    parser.add_argument("--label", help="class of the large image [the model's first]")
    parser.add_argument("--size", type=int, default=known.size_px, help="its side in pixels [%(default)s]")
    parser.add_argument("--tiles", type=int, default=known.tiles, help="tiles of each class and level [%(default)s]")
    parser.add_argument("--seed", type=int, default=known.seed, help="the same seed draws the same [%(default)s]")
    parser.add_argument("--steps", type=int, help="steps of the scheduler [the model's]")
    parser.add_argument("--device", default=known.device, help="auto, cpu or cuda [%(default)s]")
    parser.add_argument("--threads", type=int, help="CPU threads [all cores]")
    asked = parser.parse_args(arguments)
    try:
        content = demonstrate(
            DemoRequest(
                model=asked.model,
                out=asked.out,
                label=asked.label,
                size_px=asked.size,
                tiles=asked.tiles,
                seed=asked.seed,
                steps=asked.steps,
                device=asked.device,
                threads=asked.threads,
            )
        )
    except PathUpError as error:
        print(f"pathup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\npathup: interrupted", file=sys.stderr)
        return 130
    forwards, memory = content["unet_forwards"]["total"], content["peak_memory_bytes"] / 2**20
    print(f"{forwards:,} U-Net forwards in {content['seconds']['total']:.0f} s, peak memory {memory:,.0f} MiB")
    print(f"open {asked.out / 'index.html'} in a browser; {asked.out / 'slide.ome.tiff'} opens in QuPath")
    return 0


if __name__ == "__main__":
    sys.exit(main())
