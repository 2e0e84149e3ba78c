"""The demonstration on a tiny model with random weights, at a small size."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from PIL import Image

from pathup import demo
from pathup.demo import FILES, DemoRequest, demonstrate, main
from pathup.errors import PathUpError
from pathup.model.pipeline import build_pipeline, load_pipeline
from pathup.recipes import Recipe
from pathup.storage import sha256_file

SIZE = 272  # more than one TIFF tile of 256 px, so that there is a pyramid; a multiple of the tiny model's 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    build_pipeline(recipe).save_pretrained(folder)
    return folder


def _request(model: Path, out: Path, **changed: Any) -> DemoRequest:
    small: dict[str, Any] = {"size_px": SIZE, "tiles": 2, "steps": 2, "device": "cpu", "threads": 1}
    return DemoRequest(model=model, out=out, **{**small, **changed})


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "demo"
    demonstrate(_request(model, out))
    return out


def _run(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def test_all_five_files_are_there_and_nothing_half_written(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {*FILES, "pathup.run.json"}


def test_the_slide_opens_in_openslide_with_its_scale(made: Path) -> None:
    with openslide.OpenSlide(made / "slide.ome.tiff") as slide:
        assert slide.dimensions == (SIZE, SIZE) and slide.level_count == 2
        # the tiny recipe's 0.5 micrometres per pixel; resolution tags are fractions
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5, rel=1e-4)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5, rel=1e-4)
        halved = np.asarray(slide.read_region((0, 0), 1, (SIZE // 2, SIZE // 2)).convert("RGB")).astype(int)
    with Image.open(made / "slide.png") as preview:
        assert preview.size == (SIZE, SIZE)  # already shorter than a preview may be
        whole = np.asarray(preview.convert("RGB")).astype(int)
    means = whole.reshape(SIZE // 2, 2, SIZE // 2, 2, 3).mean((1, 3))
    assert np.corrcoef(means.ravel(), halved.ravel())[0, 1] > 0.9  # the same image; JPEG at both levels


def test_classes_png_holds_the_very_tiles_that_its_commands_draw(made: Path, model: Path) -> None:
    with Image.open(made / "classes.png") as image:
        sheet = np.asarray(image.convert("RGB"))
    pipeline = load_pipeline(model)
    for label in pipeline.labels:
        for level in pipeline.level_names:
            for tile in pipeline(label, level, 2, seed=0, num_inference_steps=2):
                assert _holds(sheet, np.asarray(tile)), (label, level)


def _holds(sheet: np.ndarray, tile: np.ndarray) -> bool:
    """Whether `tile` lies somewhere in `sheet`, to one grey value (rounding differs between batches)."""
    side = tile.shape[0]
    near = np.abs(sheet[: 1 - side, : 1 - side].astype(int) - tile[0, 0]).max(-1) <= 1
    for top, left in zip(*np.nonzero(near), strict=True):
        if np.abs(sheet[top : top + side, left : left + side].astype(int) - tile).max() <= 1:
            return True
    return False


def test_run_json_tells_what_it_took(made: Path) -> None:
    told = _run(made)
    # 2 classes x 2 levels x 2 tiles x 2 steps, guided: twice
    assert told["unet_forwards"]["classes.png"] == 2 * (2 * 2 * 2 * 2)
    # overview of 68 px = 17 positions: 4 x 4 windows of 8 with 4 overlap, 2 steps; canvas of 68: 16 x 16, 1 step of 2
    assert told["unet_forwards"]["slide.ome.tiff"] == 2 * (16 * 2 + 256)
    assert told["unet_forwards"]["total"] == sum(
        told["unet_forwards"][name] for name in ("classes.png", "slide.ome.tiff")
    )
    assert {"load", "tiles", "overview", "canvas", "decode", "write", "preview", "total"} <= set(told["seconds"])
    parts = sum(value for name, value in told["seconds"].items() if name != "total")
    assert 0 < parts <= told["seconds"]["total"] + 0.1  # rounding of each to 0.01
    assert told["peak_memory_bytes"] > 50 * 2**20  # torch alone is more than that
    assert {"pathup", "python", "torch", "diffusers"} <= set(told["versions"])
    for name in FILES[:3]:
        assert told["files"][name] == {"bytes": (made / name).stat().st_size, "sha256": sha256_file(made / name)}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""
        self.language: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [str(values[key]) for key in ("src", "href") if key in values]
        self.language = values.get("lang") if tag == "html" else self.language
        if tag == "img":
            self.images.append(values)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_them_and_needs_nothing_else(made: Path) -> None:
    page = _Page()
    source = (made / "index.html").read_text(encoding="utf-8")
    page.feed(source)
    assert set(page.links) == {"classes.png", "slide.png", "slide.ome.tiff", "run.json"}
    assert all((made / link).is_file() for link in page.links)
    assert all(image["alt"] for image in page.images) and page.language == "en"
    assert "prefers-color-scheme: dark" in source and "$" not in page.text
    commands = _run(made)["commands"]
    for name in ("overview tiles", "patch tiles", "slide.ome.tiff"):
        assert commands[name] in page.text
    assert "not for diagnosis" in " ".join(page.text.split())


def test_its_command_draws_the_same_slide(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathup.cli import main as cli

    words = _run(made)["commands"]["slide.ome.tiff"].split()
    monkeypatch.setattr("sys.argv", [*words, "--device", "cpu", "--threads", "1"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert words[0] == "pathup" and not ended.value.code
    with openslide.OpenSlide(tmp_path / "slide.ome.tiff") as one, openslide.OpenSlide(made / "slide.ome.tiff") as other:
        first, second = (np.asarray(s.read_region((0, 0), 0, (SIZE, SIZE))).astype(int) for s in (one, other))
    assert np.abs(first - second).max() <= 2  # JPEG of what is the same but for rounding


def test_a_second_run_replaces_the_first_and_an_interrupted_one_has_no_page(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    demonstrate(_request(model, out, size_px=64, tiles=1))
    before = _run(out)

    def broken(*_: Any, **__: Any) -> None:
        raise PathUpError("the disk is full")

    monkeypatch.setattr(demo, "generate", broken)
    with pytest.raises(PathUpError, match="disk is full"):
        demonstrate(_request(model, out, size_px=64, tiles=1, seed=5))
    assert {path.name for path in out.iterdir()} == {"classes.png", "pathup.run.json"}
    monkeypatch.undo()
    demonstrate(_request(model, out, size_px=64, tiles=1, label="B", seed=5))
    after = _run(out)
    assert after["label"] == "B" and after["files"] != before["files"]
    assert {path.name for path in out.iterdir()} == {*FILES, "pathup.run.json"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"label": "C"}, "unknown label 'C'"),
        ({"size_px": 330}, "multiples of 4 px"),
        ({"steps": 0}, "steps 0"),
        ({"threads": 0}, "threads is 0"),
        ({"tiles": 0}, "at least 1 was needed"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"model": Path("none")}, "the model none is not there"),
    ],
)
def test_a_mistake_is_a_sentence_and_writes_nothing(
    model: Path, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(PathUpError, match=said):
        demonstrate(_request(changed.pop("model", model), tmp_path / "demo", **changed))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(PathUpError, match="is not empty"):
        demonstrate(_request(model, tmp_path))
    assert (tmp_path / "index.html").read_text() == "mine"


def test_from_the_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(model), "--out", str(tmp_path / "demo"), "--size", "64", "--tiles", "1", "--steps", "1"]
    assert main([*arguments, "--device", "cpu", "--threads", "1"]) == 0
    told = capsys.readouterr()
    assert "index.html in a browser" in told.out
    assert "classes.png: 4 tiles" in told.err and "slide.ome.tiff: 64 x 64 px of alpha tissue" in told.err
    assert main(["--model", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("pathup: the model ")
