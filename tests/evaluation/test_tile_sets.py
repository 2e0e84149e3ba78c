from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pathup.errors import PathUpError
from pathup.evaluation.tile_sets import TileSet, check_comparable, drawn, load_tile_set
from tests.tiles.made import save, tissue


def generated(folder: Path, rows: list[dict[str, Any]], side: int = 32) -> Path:
    """A folder like those of `pathup generate`: a tile a row."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        row.setdefault("file_name", f"{number}.png")
        save(folder / row["file_name"], tissue(side, side, number))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def of_kind(cells: dict[tuple[str | None, str | None], int], name: str = "real", **changed: Any) -> TileSet:
    """A set of files that do not exist, so many of each level and class."""
    rows = [cell for cell, count in cells.items() for _ in range(count)]
    values: dict[str, Any] = {
        "name": name, "files": tuple(Path(f"{name}_{i}.png") for i in range(len(rows))),
        "labels": tuple(label for _, label in rows), "levels": tuple(level for level, _ in rows),
        "regions": (None,) * len(rows), "mpp": (0.5,) * len(rows), "size_px": 32, "source": name,
    }  # fmt: skip
    return TileSet(**{**values, **changed})


def test_a_split_of_a_tiles_folder_knows_class_level_region_and_scale(tiny_tiles: Path) -> None:
    test = load_tile_set(tiny_tiles, "real")
    train = load_tile_set(tiny_tiles, "training", split="train")
    assert set(test.labels) == {"A", "B"} and set(test.levels) == {"overview", "patch"}
    assert not {file.name for file in test.files} & {file.name for file in train.files}
    assert all(region and "test" in region for region in test.regions)
    # recipe tiny: patches at 0.5 mpp, overviews four or five times as coarse
    assert test.mpp_of("patch") == pytest.approx(0.5) and test.mpp_of("overview") > 1
    assert test.labelled and test.size_px == 32
    assert "tiles, split test" in test.source and "/" not in test.source  # no path of a machine


def test_generated_folders_of_two_levels_under_one_are_one_set(tmp_path: Path) -> None:
    for level, count in (("overview", 2), ("patch", 3)):
        generated(tmp_path / "run" / level, [{"label": "A", "level": level, "mpp": 1.0}] * count)
    found = load_tile_set(tmp_path / "run", "synthetic")
    assert {cell: len(places) for cell, places in found.cells().items()} == {("overview", "A"): 2, ("patch", "A"): 3}
    assert len(found.of(level="patch")) == 3 and len(found.of(level="patch", label="B")) == 0


def test_plain_images_have_no_class_but_that_of_their_folder(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "flat" / f"{number}.png", tissue(16, 16, number))
        save(tmp_path / "classes" / "3_FEA" / f"{number}.png", tissue(16, 16, number))
    save(tmp_path / "classes" / "N" / "a.jpg", tissue(16, 16))
    flat, classes = (load_tile_set(tmp_path / name, "real", mpp=0.25) for name in ("flat", "classes"))
    assert set(flat.labels) == {None} and not flat.labelled and flat.mpp_of(None) == 0.25
    assert sorted(set(classes.labels), key=str) == ["FEA", "N"] and classes.labelled


def test_bad_folders_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PathUpError, match=r"the real tiles .*none do not exist"):
        load_tile_set(tmp_path / "none", "real")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PathUpError, match="empty holds no tiles"):
        load_tile_set(tmp_path / "empty", "real")
    mixed = generated(tmp_path / "mixed", [{}, {}])
    save(mixed / "1.png", tissue(16, 16))
    with pytest.raises(PathUpError, match=r"mixed sizes: .*0\.png is 32 x 32 px and .*1\.png 16 x 16; .*--crop"):
        load_tile_set(mixed, "synthetic")
    Image.fromarray(tissue(32, 32)).convert("L").save(mixed / "1.png")
    with pytest.raises(PathUpError, match=r"1\.png is a greyscale image"):
        load_tile_set(mixed, "synthetic")
    (mixed / "1.png").unlink()
    with pytest.raises(PathUpError, match="cannot be opened"):
        load_tile_set(mixed, "synthetic")
    save(tmp_path / "long" / "a.png", tissue(32, 16))
    with pytest.raises(PathUpError, match="32 x 16 px, but square tiles were needed"):
        load_tile_set(tmp_path / "long", "real")
    (tmp_path / "table.csv").write_text("a")
    with pytest.raises(PathUpError, match="is neither a folder nor an image"):
        load_tile_set(tmp_path / "table.csv", "real")
    with pytest.raises(PathUpError, match="is one image; add --crop"):
        load_tile_set(tmp_path / "long" / "a.png", "real")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "row 1 is damaged"),
        ("[]", "row 1 is damaged"),
        ('{"label": "A"}', "row 1 is damaged"),
        ('{"file_name": "../0.png"}', "leads out of the folder"),
        ('{"file_name": "0.png", "mpp": "wide"}', "'mpp' is 'wide', of a wrong type"),
        ('{"file_name": "0.png", "label": 3}', "'label' is 3, of a wrong type"),
    ],
)
def test_damaged_metadata_is_one_sentence(tmp_path: Path, line: str, said: str) -> None:
    folder = generated(tmp_path / "run", [{}])
    (folder / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(PathUpError, match=said):
        load_tile_set(folder, "synthetic")


def test_tiles_that_could_only_differ_are_refused() -> None:
    real = of_kind({("patch", "A"): 4})
    check_comparable(real, of_kind({("patch", "A"): 2}, "synthetic"))
    check_comparable(real, of_kind({(None, None): 2}, "synthetic"))
    with pytest.raises(PathUpError, match="synthetic tiles are 64 px wide, but the real ones 32"):
        check_comparable(real, of_kind({("patch", "A"): 2}, "synthetic", size_px=64))
    with pytest.raises(PathUpError, match=r"of level patch have 1 micrometres per pixel, but the real ones 0.5"):
        check_comparable(real, of_kind({("patch", "A"): 2}, "synthetic", mpp=(1.0, 1.0)))
    with pytest.raises(PathUpError, match="synthetic set holds tiles of class B, level 'patch'"):
        check_comparable(real, of_kind({("patch", "B"): 1}, "synthetic"))


def test_a_draw_is_of_the_seed_and_its_name_and_never_repeats() -> None:
    places = np.arange(100)
    once = drawn(places, 30, 0, "real")
    assert len(set(once)) == 30 and (np.diff(once) > 0).all()
    assert np.array_equal(once, drawn(places, 30, 0, "real"))
    assert not np.array_equal(once, drawn(places, 30, 1, "real"))
    assert np.array_equal(drawn(places, 200, 0, "real"), places)
