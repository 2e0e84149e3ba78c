"""Drawing from baselines into a folder: what it holds, resumption, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pathup.baselines import generating, systems
from pathup.baselines.generating import DrawRequest, draw_from_baseline
from pathup.baselines.model_folder import read_model, save_weights, writing_model
from pathup.errors import PathUpError
from pathup.evaluation.tile_sets import load_tile_set
from pathup.training.sheets import to_pixels


class Painter:
    """Stands for a trained system: tiles of one grey that tells what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, range, int]] = []

    def draw(self, label: str, level: str, indices: range, seed: int) -> np.ndarray:
        self.asked.append((label, level, indices, seed))
        grey = [(10 * index + seed + 100 * (label == "B")) % 256 for index in indices]
        return np.stack([np.full((32, 32, 3), value, np.uint8) for value in grey])


class Doubler:
    factor = 2

    def enlarge(self, pixels_HWC: np.ndarray, seed: int, index: int) -> np.ndarray:
        return pixels_HWC.repeat(2, 0).repeat(2, 1) // 2 + seed


@pytest.fixture
def painted(monkeypatch, recipe, tmp_path):
    """A model folder of each kind, and what draws from it."""
    makers = {"stylegan2": Painter(), "bsrgan": Doubler()}
    for name in makers:
        with writing_model(
            tmp_path / name / "model", name, recipe, {"steps": 1, "seconds": 0.0, "tiles_seen": 1}
        ) as made:
            save_weights(made, "generator", {"weight": torch.zeros(1)})

    def load(model: Path, device: torch.device) -> object:
        found = read_model(model)
        return found, makers[found.name]

    monkeypatch.setattr(generating, "load_baseline", load)
    return tmp_path, makers


def test_a_folder_of_tiles_is_as_pathup_generate_makes_it(painted):
    folder, makers = painted
    out = folder / "out"
    report = draw_from_baseline(DrawRequest(
        model=folder / "stylegan2", out=out, label="all", level="patch", count=3, batch=2, seed=5, device="cpu"
    ))  # fmt: skip
    assert [path.name for path in report.files] == [f"{label}_{index:04d}.png" for label in "AB" for index in range(3)]
    assert [asked[2] for asked in makers["stylegan2"].asked] == [range(2), range(2, 3)] * 2
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert rows[4]["label"] == "B"
    assert (rows[4]["level"], rows[4]["mpp"], rows[4]["seed"], rows[4]["index"]) == ("patch", 0.5, 5, 1)
    assert np.asarray(Image.open(out / "B_0001.png"))[0, 0, 0] == 115
    tiles = load_tile_set(out, "drawn")
    assert set(tiles.labels) == {"A", "B"}
    assert set(tiles.levels) == {"patch"}
    made = Image.open(out / "B_0001.png").text
    assert "pathup baseline generate" in " ".join(made.values())


def test_a_stopped_run_draws_what_is_missing_and_no_more(painted):
    folder, makers = painted
    asked = {"model": folder / "stylegan2", "out": folder / "out", "label": "all", "level": "patch", "device": "cpu"}
    draw_from_baseline(DrawRequest(count=3, **asked))
    (folder / "out/A_0001.png").write_bytes(b"cut short")
    makers["stylegan2"].asked.clear()
    report = draw_from_baseline(DrawRequest(count=4, batch=1, resume=True, **asked))
    assert makers["stylegan2"].asked == [
        ("A", "patch", range(1, 2), 0), ("A", "patch", range(3, 4), 0), ("B", "patch", range(3, 4), 0)
    ]  # fmt: skip
    assert report.kept == 5
    assert len((folder / "out/metadata.jsonl").read_text().splitlines()) == 8
    with pytest.raises(PathUpError, match="differs in: seed"):
        draw_from_baseline(DrawRequest(count=3, seed=1, resume=True, **asked))
    with pytest.raises(PathUpError, match="add --resume"):
        draw_from_baseline(DrawRequest(count=3, **asked))


def test_images_are_enlarged_with_what_is_known_of_them(painted):
    folder, _ = painted
    source = folder / "small"
    source.mkdir()
    for number in range(2):
        Image.fromarray(np.full((8, 12, 3), 100 * number, np.uint8)).save(source / f"A_{number:04d}.png")
    rows = [{"file_name": f"A_{number:04d}.png", "label": "A", "level": "overview", "mpp": 2.0} for number in range(2)]
    (source / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"model": folder / "bsrgan", "out": folder / "large", "images": source, "device": "cpu"}
    report = draw_from_baseline(DrawRequest(**asked))
    assert len(report.files) == 2
    assert Image.open(folder / "large/A_0001.png").size == (24, 16)
    made = [json.loads(line) for line in (folder / "large/metadata.jsonl").read_text().splitlines()]
    assert made[1]["label"] == "A"
    assert made[1]["mpp"] == 1.0
    assert draw_from_baseline(DrawRequest(resume=True, **asked)).kept == 2
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(source / "A_0001.png")
    with pytest.raises(PathUpError, match="differs in: images"):
        draw_from_baseline(DrawRequest(resume=True, **asked))


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("stylegan2", {"label": "all"}, "--label and --level were needed"),
        ("stylegan2", {"label": "C", "level": "patch"}, "unknown label 'C'"),
        ("stylegan2", {"label": "A", "level": "path"}, "did you mean 'patch'"),
        ("stylegan2", {"images": Path("x")}, "enlarges nothing"),
        ("bsrgan", {}, "--images was needed"),
        ("bsrgan", {"label": "A", "images": Path("x")}, "takes neither --label nor --level"),
        ("bsrgan", {"images": Path("nowhere")}, "does not exist"),
        ("stylegan2", {"label": "A", "level": "patch", "count": 0}, "count is 0"),
    ],
)
def test_a_senseless_request_is_one_sentence_and_leaves_nothing(painted, name, values, said):
    folder, _ = painted
    with pytest.raises(PathUpError, match=said):
        draw_from_baseline(DrawRequest(model=folder / name, out=folder / "out", device="cpu", **values))
    assert not (folder / "out").exists()


def test_two_images_of_one_name_or_none_are_refused(painted):
    folder, _ = painted
    source = folder / "small"
    source.mkdir()
    request = DrawRequest(model=folder / "bsrgan", out=folder / "out", images=source, device="cpu")
    with pytest.raises(PathUpError, match="holds no images"):
        draw_from_baseline(request)
    for ending in ("png", "tif"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(source / f"a.{ending}")
    with pytest.raises(PathUpError, match=r"a.png and a.tif, which would both become one PNG"):
        draw_from_baseline(request)


def test_a_folder_without_a_baseline_or_with_a_damaged_one_is_named(tmp_path, recipe):
    with pytest.raises(PathUpError, match="holds no trained baseline"):
        systems.load_baseline(tmp_path)
    with writing_model(tmp_path / "model", "stylegan2", recipe, {}) as made:
        save_weights(made, "generator", {"weight": torch.zeros(4)})
    path = tmp_path / "model/generator.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(PathUpError, match=r"generator.safetensors cannot be read"):
        systems.load_baseline(tmp_path)


def test_the_hash_of_a_model_changes_with_any_of_its_files(tmp_path, recipe):
    with writing_model(tmp_path / "model", "stylegan2", recipe, {"steps": 1}) as made:
        save_weights(made, "generator", {"weight": torch.zeros(4)})
    before = read_model(tmp_path).sha256()
    assert read_model(tmp_path / "model").sha256() == before
    (tmp_path / "model/generator.safetensors").write_bytes(b"other")
    assert read_model(tmp_path).sha256() != before


def test_pixels_are_rounded_and_clipped():
    values = torch.tensor([-2.0, -1.0, 0.0, 0.0039, 1.0, 3.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_pixels(values)[0, 0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]  # 127.5 is rounded to even
