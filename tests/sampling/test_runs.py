from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pathup.errors import PathUpError
from pathup.sampling import large, runs, single_tiles
from pathup.sampling.device import choose_device, peak_memory_bytes
from pathup.sampling.runs import GenerateRequest, generate, model_sha256
from pathup.tiles.provenance import SOURCES_FILE, SourceRegion, read_sources, write_sources


def _run(model: Path, out: Path, **changed: Any) -> runs.GenerateReport:
    arguments: dict[str, Any] = {"label": "A", "size": "64x48", "steps": 2, "threads": 1, "device": "cpu"}
    return generate(GenerateRequest(model=model, out=out, **{**arguments, **changed}))


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_one_png_and_one_tiff_of_the_same_image(model: Path, tmp_path: Path) -> None:
    report = _run(model, tmp_path / "a.png", seed=4)
    assert report.files == [tmp_path / "a.png"] and report.size_px == (48, 64) and report.mpp == 0.5
    # overview: one window, 2 steps; canvas: 12 x 16 positions are 2 x 3 windows, round(0.6 * 2) = 1 step; guided
    assert report.forwards == 2 * (2 + 6)
    assert report.peak_memory_bytes > 50 * 2**20  # torch alone is more than that
    assert {"overview", "encode", "canvas", "decode", "write", "total"} == set(report.seconds)
    pixels = _pixels(tmp_path / "a.png")
    assert pixels.shape == (48, 64, 3)
    with Image.open(tmp_path / "a.png") as image:
        made = json.loads(image.text["pathup"])
    assert made["seed"] == 4 and made["model_sha256"] == model_sha256(model) and made["label"] == "A"
    _run(model, tmp_path / "a.ome.tiff", seed=4, window_batch=64)
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as reader:
        lossy = reader.series[0].asarray().astype(int)
        assert "model_sha256" in reader.ome_metadata
    # JPEG: random weights paint noise, its worst case, and what it keeps of that still correlates
    assert np.corrcoef(lossy.ravel(), pixels.ravel())[0, 1] > 0.9
    _run(model, tmp_path / "b.png", seed=4, window_batch=1)
    assert np.abs(_pixels(tmp_path / "b.png") - pixels).max() <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ome.tiff", "a.png", "b.png"]


def test_a_folder_of_large_images(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "many"
    report = _run(model, out, label="all", count=2, seed=5)
    names = ["A_0000.png", "A_0001.png", "B_0000.png", "B_0001.png"]
    assert sorted(path.name for path in out.glob("*.png")) == names
    rows = _rows(out)
    assert [row["file_name"] for row in rows] == names
    assert rows[3] == {
        "file_name": "B_0001.png", "text": "histopathology of beta tissue, patch", "label": "B", "level": "patch",
        "mpp": 0.5, "seed": 5, "index": 1, "size": [64, 48],
    }  # fmt: skip
    assert report.kept == 0 and len(report.files) == 5
    # image 0 of a label does not depend on what else was asked for
    _run(model, tmp_path / "one.png", label="B", seed=5)
    assert np.array_equal(_pixels(tmp_path / "one.png"), _pixels(out / "B_0000.png"))
    _run(model, tmp_path / "tiffs", format="ome.tiff")
    assert (tmp_path / "tiffs" / "A_0000.ome.tiff").is_file()


def test_a_folder_says_which_regions_its_model_was_trained_on(model: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    shutil.copytree(model, told)
    seen = [SourceRegion("r1", "A", "s", "p", "0" * 64, (0, 0, 8, 8), "ab" * 32)]
    write_sources(told, seen)
    _run(told, tmp_path / "tiles", level="patch", size=None)
    _run(told, tmp_path / "large")
    assert read_sources(tmp_path / "tiles") == read_sources(tmp_path / "large") == seen


def test_single_tiles_resume_by_index(model: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tiles: dict[str, Any] = {"label": "all", "level": "overview", "size": None, "seed": 2}
    _run(model, whole, count=5, window_batch=5, **tiles)
    _run(model, parts, count=2, window_batch=2, **tiles)
    (parts / "A_0001.png").write_bytes((parts / "A_0001.png").read_bytes()[:100])  # cut short by somebody
    (parts / "metadata.jsonl").unlink()
    kept = (parts / "A_0000.png").stat().st_mtime_ns
    report = _run(model, parts, count=5, window_batch=3, resume=True, **tiles)
    assert not (parts / SOURCES_FILE).exists()  # this model does not say what it was trained on
    assert report.kept == 3 and (parts / "A_0000.png").stat().st_mtime_ns == kept
    assert report.mpp == 2.0 and report.size_px == (32, 32)
    assert _rows(parts) == _rows(whole) and len(_rows(whole)) == 10
    for path in whole.glob("*.png"):
        assert np.abs(_pixels(path) - _pixels(parts / path.name)).max() <= 1  # rounding differs with the batch
    row = _rows(whole)[0]
    # the columns of real tiles' metadata, and the draw
    assert set(row) == {
        "file_name", "text", "label", "level", "patient", "slide", "region", "x", "y", "mpp", "source_sha256",
        "seed", "index",
    }  # fmt: skip
    assert row["text"] == "histopathology of alpha tissue, overall"
    # asked for fewer than there are: the metadata still names every file
    _run(model, parts, count=1, resume=True, **tiles)
    assert len(_rows(parts)) == 10


def test_one_image_of_a_longer_run_is_drawn_again_to_the_byte(model: Path, tmp_path: Path) -> None:
    tiles: dict[str, Any] = {"level": "patch", "size": None, "seed": 2, "window_batch": 3}
    _run(model, tmp_path / "many", label="all", count=7, **tiles)
    for index in (1, 4, 6):  # of a first, a middle and the last batch, which is not full
        report = _run(model, tmp_path / f"{index}.png", label="B", count=7, index=index, **tiles)
        assert report.files == [tmp_path / f"{index}.png"] and report.mpp == 0.5
        one, same = tmp_path / f"{index}.png", tmp_path / "many" / f"B_{index:04d}.png"
        assert np.array_equal(_pixels(one), _pixels(same))
        with Image.open(one) as image, Image.open(same) as other:
            assert json.loads(image.text["pathup"]) == json.loads(other.text["pathup"])
    # a count that does not reach it stands for any longer run: its batch is full
    _run(model, tmp_path / "4 again.png", label="B", index=4, **tiles)
    assert (tmp_path / "4 again.png").read_bytes() == (tmp_path / "4.png").read_bytes()
    # a large image is drawn by itself
    _run(model, tmp_path / "large", count=2)
    _run(model, tmp_path / "1 large.png", index=1)
    assert np.array_equal(_pixels(tmp_path / "1 large.png"), _pixels(tmp_path / "large/A_0001.png"))


def test_a_full_disk_leaves_whole_images_and_no_metadata(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", single_tiles.write_image

    def full(target: Any, *arguments: Any, **named: Any) -> None:
        if target.path.name == "A_0002.png":
            raise PathUpError("the disk is full")
        real(target, *arguments, **named)

    monkeypatch.setattr(single_tiles, "write_image", full)
    with pytest.raises(PathUpError, match="the disk is full"):
        _run(model, out, level="patch", size=None, count=6, window_batch=2)
    there = sorted(path.name for path in out.glob("*.png"))
    # what was written beside the one that failed is whole; no batch after the next was begun
    assert there in (["A_0000.png", "A_0001.png"], ["A_0000.png", "A_0001.png", "A_0003.png"])
    assert not (out / "metadata.jsonl").exists()
    monkeypatch.undo()
    report = _run(model, out, level="patch", size=None, count=6, resume=True)
    assert report.kept == len(there) and len(_rows(out)) == 6


def test_a_folder_belongs_to_one_run(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tiles: dict[str, Any] = {"level": "patch", "size": None}
    _run(model, out, **tiles)
    with pytest.raises(PathUpError, match="already holds this run; add --resume"):
        _run(model, out, **tiles)
    with pytest.raises(PathUpError, match=r"another run .* seed"):
        _run(model, out, seed=1, resume=True, **tiles)
    with pytest.raises(PathUpError, match=r"another run .* sampling"):
        _run(model, out, guidance=3.0, resume=True, **tiles)
    with pytest.raises(PathUpError, match="for an output that is one file"):
        _run(model, out, overwrite=True, **tiles)

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(PathUpError, match="not empty"):
        _run(model, foreign, **tiles)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


def test_a_scale_is_for_single_tiles_of_a_model_that_takes_it_in(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PathUpError, match=r"--mpp is for single tiles: --level was needed"):
        _run(model, out, mpp=1.0)
    with pytest.raises(PathUpError, match="takes in no scale"):
        _run(model, out, level="patch", size=None, mpp=1.0)
    assert not out.exists()


def test_a_reference_image(model: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(reference)
    report = _run(model, tmp_path / "a.png", reference=reference)
    assert report.forwards == 2 * 6  # no overview to draw
    assert _run(model, tmp_path / "b.png", reference=reference, size=None).size_px == (48, 64)
    assert np.array_equal(_pixels(tmp_path / "a.png"), _pixels(tmp_path / "b.png"))
    with pytest.raises(PathUpError, match="not the shape of 64 x 64"):
        _run(model, tmp_path / "c.png", reference=reference, size="64")
    with pytest.raises(PathUpError, match="not the shape of 64 x 64"):
        _run(model, tmp_path / "folder", reference=reference, size="64", label="all")
    assert not (tmp_path / "folder").exists(), "a corrected command is not another run"
    with pytest.raises(PathUpError, match="does not exist"):
        _run(model, tmp_path / "c.png", reference=tmp_path / "no.png")
    Image.new("L", (16, 12)).save(tmp_path / "grey.png")
    with pytest.raises(PathUpError, match="8-bit RGB was needed"):
        _run(model, tmp_path / "c.png", reference=tmp_path / "grey.png")
    assert not (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"label": "a"}, "unknown label 'a'; did you mean 'A'"),
        ({"level": "pach", "size": None, "out": "folder"}, "unknown level 'pach'; did you mean 'patch'"),
        ({"size": "99x64"}, r"multiples of 4 px.* nearest is 100x64"),
        ({"size": "16"}, "too small"),
        ({"size": "20000x20000"}, r"too large for a PNG .* \.ome\.tiff"),
        ({"out": "a.jpg"}, r"ends in \.jpg, which cannot be written"),
        ({"count": 2}, "one file, but several images"),
        ({"label": "all"}, "one file, but several images"),
        ({"count": 0}, "at least 1 was needed"),
        ({"level": "patch"}, "--size is for large images"),
        ({"scheduler": "ddpm"}, "scheduler 'ddpm'"),
        ({"strength": 2.0}, "strength 2.0"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cuda:99"}, r"torch sees \d+ CUDA devices"),
        ({"format": "jpeg", "out": "folder"}, "unknown format 'jpeg'"),
        ({"threads": 0}, "threads is 0"),
        ({"windows": "shift"}, "windows 'shift'"),
        ({"window_weight": "eq6"}, "window_weight 'eq6'"),
        ({"overlap": 8}, "overlap_latent 8 is not less than"),
        ({"level": "patch", "size": None, "windows": "shifted", "out": "folder"}, "--windows is for large images"),
        ({"label": "all", "layout": Path("a.geojson"), "out": "folder"}, "--label all draws every class"),
        ({"layout": Path("a.geojson"), "layout_unit": "mm"}, "layout unit 'mm'"),
        ({"index": -1}, "index -1 of label 'A'"),
        ({"index": 0, "label": "all"}, "index 0 of label 'all'"),
        ({"index": 3, "out": "folder"}, "'folder' is a folder; name one file"),
        ({"index": 3, "level": "patch", "size": None, "out": "a.ome.tiff"}, "is no PNG, as single tiles are"),
    ],
)
def test_each_mistake_is_one_sentence_and_writes_nothing(
    model: Path, tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    changed = dict(changed)
    with pytest.raises(PathUpError, match=sentence) as caught:
        _run(model, tmp_path / changed.pop("out", "a.png"), **changed)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_draws_much_the_same_image_and_is_another_run(model: Path, tmp_path: Path) -> None:
    _run(model, tmp_path / "whole.png", seed=2)
    _run(model, tmp_path / "half.png", seed=2, precision="bf16")
    whole, half = _pixels(tmp_path / "whole.png"), _pixels(tmp_path / "half.png")
    assert (whole != half).any()
    with Image.open(tmp_path / "half.png") as image:
        assert json.loads(image.text["pathup"])["precision"] == "bf16"
    assert np.corrcoef(whole.ravel(), half.ravel())[0, 1] > 0.99  # 8 bits of precision against random weights
    asked = {"level": "patch", "size": None, "count": 1}
    _run(model, tmp_path / "tiles", **asked)
    with pytest.raises(PathUpError, match="precision"):
        _run(model, tmp_path / "tiles", **asked, precision="bf16", resume=True)
    with pytest.raises(PathUpError, match="fp32"):
        _run(model, tmp_path / "other", **asked, precision="fp8")
    assert not (tmp_path / "other").exists()


def test_a_model_that_is_none(model: Path, tmp_path: Path) -> None:
    with pytest.raises(PathUpError, match="holds no model"):
        _run(tmp_path / "nowhere", tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_replaced(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    out.write_bytes(b"mine")
    with pytest.raises(PathUpError, match="exists already; add --overwrite"):
        _run(model, out)
    assert out.read_bytes() == b"mine"
    _run(model, out, overwrite=True)
    assert _pixels(out).shape == (48, 64, 3)


def test_too_little_memory_is_a_sentence(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(large, "synthesise", out_of_memory)
    with pytest.raises(PathUpError, match="memory is not enough"):
        _run(model, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_the_models_hash_changes_with_its_weights_only(model: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    before = model_sha256(own)
    (own / "README.md").write_text("a card")
    assert model_sha256(own) == before == model_sha256(model)
    weights = next((own / "unet").glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert model_sha256(own) != before


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert peak_memory_bytes(torch.device("cpu")) > 2**20
