from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.tiles.made import (
    class_tree,
    feature,
    rectangle,
    rows_of,
    save,
    save_geojson,
    save_slide,
    save_table,
    tissue,
)


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pathup", "tiles", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_from_regions_to_tiles_with_a_summary(tmp_path: Path) -> None:
    result = _run(class_tree(tmp_path / "source"), tmp_path / "out", "--recipe", "tiny", "--workers", "2")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert sum(summary["tiles"]["train"]["patch"].values()) > 0
    for word in ("train", "val", "test", "overview", "patch", str(summary["tiles"]["train"]["patch"]["A"])):
        assert word in result.stdout
    again = _run(tmp_path / "source", tmp_path / "out", "--recipe", "tiny")
    assert (again.returncode, "--resume" in again.stderr) == (1, True)
    assert _run(tmp_path / "source", tmp_path / "out", "--recipe", "tiny", "--resume").returncode == 0


def test_a_slide_with_its_options(tmp_path: Path) -> None:
    slide = save_slide(tmp_path / "s.tif", tissue(512, 512), mpp=None)
    notes = save_geojson(tmp_path / "drawn.geojson", feature("alpha tissue", rectangle(64, 64, 448, 448)))
    patients = save_table(tmp_path / "p.csv", [{"slide": "s", "patient": "P7"}])
    options = ("--recipe", "tiny", "--annotations", notes, "--patients", patients, "--mpp", "0.25")
    result = _run(slide, tmp_path / "out", *options)
    assert result.returncode == 0, result.stderr
    rows = rows_of(tmp_path / "out", "train")
    assert {(r["patient"], r["slide"], r["label"]) for r in rows} == {("P7", "s", "A")}
    assert "split 'val' is empty" in result.stdout


def _truncated(folder: Path) -> None:
    path = save(folder / "A" / "bad.jpg", tissue(200, 200))
    path.write_bytes(path.read_bytes()[:3000])


def _truncated_pages(folder: Path) -> None:
    (folder / "A").mkdir(parents=True)
    path = folder / "A" / "bad.tif"
    tifffile.imwrite(path, np.stack([tissue(100, 100, i) for i in range(3)]), photometric="rgb", compression="zlib")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _scaleless(folder: Path) -> None:
    save_slide(folder / "A" / "bad.tif", tissue(256, 256), mpp=None)


def _empty_file(folder: Path) -> None:
    (folder / "A").mkdir(parents=True)
    (folder / "A" / "bad.png").write_bytes(b"")


def _converted(mode: str, ending: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "A").mkdir(parents=True)
        Image.fromarray(tissue(200, 200)).convert(mode).save(folder / "A" / f"bad.{ending}")

    return make


def _deep(folder: Path) -> None:
    (folder / "A").mkdir(parents=True)
    Image.fromarray(np.full((200, 200), 40_000, np.uint16)).save(folder / "A" / "bad.png")


def _huge(folder: Path) -> None:
    path = save(folder / "A" / "bad.png", tissue(8, 8))
    content = bytearray(path.read_bytes())
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    path.write_bytes(content)


def _annotated(mpp: float | None, name: str, place: tuple[int, int, int, int]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save_slide(folder / "bad.tif", tissue(256, 256), mpp=mpp)
        save_geojson(folder / "bad.geojson", feature(name, rectangle(*place)))

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_truncated, "bad.jpg is truncated or damaged"),
        (_truncated_pages, "bad.tif is truncated or damaged"),
        (_scaleless, "bad.tif records no micrometres per pixel"),
        (_empty_file, "bad.png is empty (0 bytes)"),
        (_deep, "bad.png has 16 bits per channel"),
        (_converted("CMYK", "jpg"), "bad.jpg is a CMYK image"),
        (_converted("RGBA", "png"), "bad.png is an image with an alpha channel"),
        (_huge, "50000 x 50000|more than 800,000,000 pixels"),
        (_annotated(None, "A", (0, 0, 200, 200)), "bad.tif records no micrometres per pixel"),
        (_annotated(0.5, "Alpha tisue", (0, 0, 200, 200)), "'Alpha tisue'; did you mean 'alpha tissue'?"),
        (_annotated(0.5, "A", (200, 200, 400, 400)), "outside the slide of 256 x 256 px"),
        (lambda folder: folder.mkdir(), "holds no regions"),
        (lambda folder: None, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "source")
    result = _run(tmp_path / "source", tmp_path / "out", "--recipe", "tiny")
    assert result.returncode == 1
    sentences = [line for line in result.stderr.splitlines() if line and not line.startswith("looking through")]
    assert len(sentences) == 1, result.stderr
    assert sentences[0].startswith("pathup: ")
    assert any(part in sentences[0] for part in said.split("|")), sentences[0]
    assert not (tmp_path / "out").exists()


def test_a_wrong_recipe_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: x\ntils: {}\n")
    result = _run(class_tree(tmp_path / "source", count=1), tmp_path / "out", "--recipe", tmp_path / "r.yaml")
    assert result.returncode == 1
    assert "unknown key 'tils'; did you mean 'tiles'?" in result.stderr
    assert not (tmp_path / "out").exists()
