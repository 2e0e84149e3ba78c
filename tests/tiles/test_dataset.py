from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pathup.errors import PathUpError
from pathup.tiles.dataset import TileFolder
from pathup.tiles.making import make_tiles
from pathup.tiles.taxonomy import prompt_text
from tests.tiles.made import class_tree, rows_of, tiny, tissue


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tiles(class_tree(tmp_path / "source"), tmp_path / "out", tiny())
    return tmp_path / "out"


def _edit(folder: Path, change: Callable[[list[dict[str, Any]]], Any], split: str = "train") -> None:
    rows = rows_of(folder, split)
    change(rows)
    (folder / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_tiles_are_what_was_cut(folder: Path) -> None:
    recipe = tiny()
    tiles = TileFolder.load(folder, "train", recipe)
    assert len(tiles) == len(tiles.records) == len(rows_of(folder, "train"))
    for i in (0, len(tiles) - 1):
        pixels = tiles.pixels(i)
        assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 32, 32))
        with Image.open(tiles.path(i)) as image:
            assert np.array_equal(pixels.numpy().transpose(1, 2, 0), np.asarray(image))
        record = tiles.records[i]
        assert tiles.text(i) == record.text == prompt_text(recipe, record.label, record.level)


def test_the_fingerprint_tells_one_changed_pixel_but_not_a_moved_folder(folder: Path) -> None:
    tiles = TileFolder.load(folder, "train", tiny())
    before = tiles.fingerprint()
    moved = folder.rename(folder.with_name("moved"))
    tiles = TileFolder.load(moved, "train", tiny())
    assert tiles.fingerprint() == before
    pixels = np.array(Image.open(tiles.path(3)))
    pixels[5, 5, 0] ^= 1
    Image.fromarray(pixels).save(tiles.path(3))
    assert TileFolder.load(moved, "train", tiny()).fingerprint() != before


def test_an_unfinished_or_wrong_folder(folder: Path) -> None:
    with pytest.raises(PathUpError, match="unknown split 'trian'; did you mean 'train'"):
        TileFolder.load(folder, "trian", tiny())
    (folder / "train" / "metadata.jsonl").unlink()
    with pytest.raises(PathUpError, match=r"no finished tiles.*--resume"):
        TileFolder.load(folder, "train", tiny())
    (folder / "train" / "metadata.jsonl").write_text("")
    with pytest.raises(PathUpError, match="lists no tiles"):
        TileFolder.load(folder, "train", tiny())
    (folder / "train" / "metadata.jsonl").write_text('{"file_name": ')
    with pytest.raises(PathUpError, match="is damaged"):
        TileFolder.load(folder, "train", tiny())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"label": "C"}, "unknown label in .*row 3: 'C'"),
        ({"level": "pach"}, "did you mean 'patch'"),
        ({"mpp": 0.1}, "0.1 micrometres per pixel, but level"),
        ({"file_name": "../secret.png"}, "leads out of the folder"),
        ({"file_name": "patch/A/none.png"}, "cannot be opened"),
        ({"x": "0"}, "'x' is '0', of a wrong type"),
        ({"region": None}, "'region' is None, of a wrong type"),
    ],
)
def test_wrong_rows(folder: Path, values: dict[str, Any], said: str) -> None:
    _edit(folder, lambda rows: rows[2].update(values))
    with pytest.raises(PathUpError, match=said):
        TileFolder.load(folder, "train", tiny())


def test_rows_missing_a_value_or_listed_twice(folder: Path) -> None:
    _edit(folder, lambda rows: rows.append(dict(rows[0])))
    with pytest.raises(PathUpError, match="is listed twice"):
        TileFolder.load(folder, "train", tiny())
    _edit(folder, lambda rows: rows[0].pop("slide"))
    with pytest.raises(PathUpError, match="row 1 lacks 'slide'"):
        TileFolder.load(folder, "train", tiny())


def test_tiles_of_another_size_or_kind(folder: Path) -> None:
    path = TileFolder.load(folder, "train", tiny()).path(4)
    Image.fromarray(tissue(32, 31)).save(path)
    with pytest.raises(PathUpError, match="is 32 x 31 px, but recipe 'tiny' has tiles of 32 x 32"):
        TileFolder.load(folder, "train", tiny())
    Image.fromarray(tissue(32, 32)).convert("L").save(path)
    with pytest.raises(PathUpError, match="greyscale"):
        TileFolder.load(folder, "train", tiny())


def test_a_place_of_a_file_in_two_splits_is_an_error_whatever_its_region_is_called(folder: Path) -> None:
    shared = {key: rows_of(folder, "train")[0][key] for key in ("source_sha256", "x", "y", "level", "mpp")}
    _edit(folder, lambda rows: rows[0].update(shared), split="test")
    with pytest.raises(PathUpError, match=r"train/.*\.png and test/.*\.png are of one place of one source file"):
        TileFolder.load(folder, "train", tiny(split_by="region"))


def test_a_name_may_hold_any_character(folder: Path) -> None:
    # U+2028 and U+0085 end a line for str.splitlines(), but not in JSON lines
    name = "case \u2028 1 \u0085 2"
    rows = [row | {"slide": name} for row in rows_of(folder, "train")]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "train" / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    assert {record.slide for record in TileFolder.load(folder, "train", tiny()).records} == {name}


@pytest.mark.parametrize("by", ["patient", "slide", "region"])
def test_a_group_on_both_sides_is_an_error_that_names_it(folder: Path, by: str) -> None:
    TileFolder.load(folder, "train", tiny(split_by=by))
    shared = rows_of(folder, "train")[0][by]
    _edit(folder, lambda rows: rows[0].update({by: shared}), split="test")
    with pytest.raises(PathUpError, match=f"{by} '{shared}' is in both train and test"):
        TileFolder.load(folder, "train", tiny(split_by=by))
