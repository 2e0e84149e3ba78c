from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pathup.errors import PathUpError
from pathup.evaluation import large_images
from pathup.evaluation.large_images import parsed_grid, recorded_lines, seams
from pathup.evaluation.runs import EvaluateRequest
from pathup.slides.writer import write_ome_tiff, write_png
from tests.tiles.made import save, tissue

PROVENANCE: dict[str, Any] = {"window_lines": {"last": [[128, 256, 384], [128, 256]]}}


@dataclass
class _Work:
    request: EvaluateRequest
    notes: list[str] = field(default_factory=list)

    def cropped(self) -> list[Path]:
        return []

    def tell(self, stage: str, done: int, total: int) -> None:
        pass


def looked_for(tmp_path: Path, *large: Path, **changed: Any) -> list[dict[str, Any]]:
    request = EvaluateRequest(
        real=tmp_path, fake=tmp_path / "none", output=tmp_path / "report", large=tuple(large), **changed
    )
    return seams(_Work(request))  # type: ignore[arg-type]


def stepped(width: int, height: int, pitch: int) -> np.ndarray:
    """Noise whose tiles of `pitch` px are 6 grey levels brighter in turns."""
    bright = (np.arange(height)[:, None] // pitch + np.arange(width) // pitch) % 2
    return np.clip(tissue(width, height).astype(int) + 6 * bright[..., None], 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.ome.tiff"])
def test_the_recorded_grid_is_used_and_a_seam_on_it_found(tmp_path: Path, name: str) -> None:
    write = write_png if name.endswith("png") else write_ome_tiff
    how: dict[str, Any] = {} if name.endswith("png") else {"compression": "deflate"}
    write(tmp_path / name, [stepped(512, 384, 128)], shape=(384, 512), mpp=0.5, provenance=PROVENANCE, **how)
    assert recorded_lines(tmp_path / name) == {"last": ([128, 256, 384], [128, 256])}
    found = looked_for(tmp_path, tmp_path / name)
    assert {result["grid_from"] for result in found} == {"recorded"}
    assert all(result["p_value"] < 0.01 for result in found)


def test_each_kind_of_lines_is_looked_at_by_itself(tmp_path: Path) -> None:
    lines = {"last": [[64, 192, 320, 448], [64, 192, 320]], "shifted": PROVENANCE["window_lines"]["last"]}
    told = {"window_lines": lines}
    write_png(tmp_path / "a.png", [stepped(512, 384, 128)], shape=(384, 512), mpp=0.5, provenance=told)
    by_kind = {found["grid_from"]: found["p_value"] for found in looked_for(tmp_path, tmp_path / "a.png")}
    assert by_kind["recorded, shifted"] < 0.01 < by_kind["recorded"]


@pytest.mark.parametrize("lines", [None, [], {"last": 3}, {"last": [["a"], []]}, {"last": [[1.5], []]}])
def test_lines_that_are_none_are_searched_for(tmp_path: Path, lines: Any) -> None:
    path = tmp_path / "a.png"
    write_png(path, [tissue(512, 384)], shape=(384, 512), mpp=0.5, provenance={"window_lines": lines})
    assert recorded_lines(path) == {}


def test_an_image_of_others_has_its_grid_given_or_searched_for(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", stepped(512, 512, 128))
    assert recorded_lines(path) == {}
    (given,) = looked_for(tmp_path, path, grid="128")
    (beside,) = looked_for(tmp_path, path, grid="128+64")
    assert given["p_value"] < 0.01 < beside["p_value"] and given["grid_from"] == "given, 128 px"
    (searched,) = looked_for(tmp_path, path)
    assert searched["grid_from"] == "searched, 128 px" and searched["p_value"] < 0.05


def test_large_slides_are_read_field_by_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_images, "FIELD_PX", 256)
    told = {"window_lines": {"last": [list(range(128, 1024, 128)), list(range(128, 512, 128))]}}
    write_png(tmp_path / "a.png", [tissue(1024, 512)], shape=(512, 1024), mpp=0.5, provenance=told)
    found = looked_for(tmp_path, tmp_path / "a.png")
    assert len(found) == 4 and {result["size"] for result in found} == {"256 x 256"}
    assert len({(result["left"], result["top"]) for result in found}) == 4
    for result in found:  # lines of the whole image, in the field's own pixels
        assert all((x + result["left"]) % 128 == 0 for x in result["grid"]["xs"])


@pytest.mark.parametrize("text", ["wide", "1", "-4", "256+", "256+1,"])
def test_a_grid_that_is_not_understood_is_one_sentence(text: str) -> None:
    with pytest.raises(PathUpError, match=r"is not understood; PITCH or PITCH\+OFFSET"):
        parsed_grid(text)


def test_parsed_grids_and_images_too_small(tmp_path: Path) -> None:
    assert [parsed_grid(text) for text in ("256", "256+128", "256+128,64")] == [
        (256, (0, 0)), (256, (128, 128)), (256, (128, 64)),
    ]  # fmt: skip
    small = save(tmp_path / "small.png", tissue(24, 24))
    with pytest.raises(PathUpError, match="seams need at least"):
        looked_for(tmp_path, small, grid="8")
