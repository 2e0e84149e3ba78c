from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pathup.errors import PathUpError
from pathup.sampling.outputs import (
    ImageFile,
    as_band,
    check_format,
    format_of,
    is_complete,
    parse_size,
    remove_output,
    write_image,
    write_metadata,
)
from pathup.slides.provenance import provenance_of


def test_sizes_are_width_by_height() -> None:
    assert parse_size("2048x1024") == (1024, 2048)
    assert parse_size("512") == (512, 512)
    assert parse_size(" 64X32 ") == (32, 64)
    for text in ("", "big", "2048x", "x2048", "-5", "1.5x2", "0", "64x0", "1e3", "99999999"):
        with pytest.raises(PathUpError, match=r"size '.*'.*needed"):
            parse_size(text)


def test_the_ending_names_the_format(tmp_path: Path) -> None:
    assert format_of(tmp_path / "a.png") == format_of(tmp_path / "A.PNG") == "png"
    for name in ("a.ome.tiff", "a.ome.tif", "a.tiff", "a.TIF"):
        assert format_of(tmp_path / name) == "ome.tiff"
    assert format_of(tmp_path / "a.dzi") == format_of(tmp_path / "A.DZI") == "dzi"
    assert format_of(tmp_path / "tiles") is None
    assert format_of(tmp_path / "run.2026-01-01") is None
    (tmp_path / "odd.png").mkdir()
    assert format_of(tmp_path / "odd.png") is None  # a folder that exists is one, whatever its name
    for name in ("a.jpg", "a.svs", "a.webp"):
        with pytest.raises(PathUpError, match=r"cannot be written; \.png, \.ome\.tiff.*, \.dzi or a folder"):
            format_of(tmp_path / name)


def test_formats_by_name() -> None:
    assert check_format("PNG") == "png"
    assert check_format("dzi") == check_format(".DZI") == "dzi"
    assert check_format("ome.tif") == check_format(".ome.tiff") == "ome.tiff"
    with pytest.raises(PathUpError, match=r"unknown format 'ome-tiff'; did you mean 'ome\.tiff'"):
        check_format("ome-tiff")


@pytest.mark.parametrize("name", ["a.png", "a.ome.tiff"])
def test_complete_means_whole_and_of_the_right_size(tmp_path: Path, name: str) -> None:
    kind = format_of(tmp_path / name)
    assert kind is not None
    target = ImageFile(tmp_path / name, kind, (40, 30), 0.5)
    assert not is_complete(target)
    pixels = np.random.default_rng(0).random((40, 30, 3))
    write_image(target, [as_band(pixels)], {"seed": 1})
    assert is_complete(target)
    assert not is_complete(ImageFile(target.path, kind, (30, 40), 0.5))
    whole = target.path.read_bytes()
    for part in (len(whole) // 2, len(whole) - 20, 10):
        target.path.write_bytes(whole[:part])
        assert not is_complete(target)
    target.path.write_bytes(b"")
    assert not is_complete(target)


def test_a_deepzoom_image_is_complete_with_all_its_tiles(tmp_path: Path) -> None:
    target = ImageFile(tmp_path / "IC_0000.dzi", "dzi", (600, 300), 0.5)
    assert not is_complete(target)
    write_image(target, [np.full((600, 300, 3), 200, np.uint8)], {"seed": 1})
    assert is_complete(target) and provenance_of(target.path) == {"seed": 1}
    assert not is_complete(ImageFile(target.path, "dzi", (300, 600), 0.5))
    lost = tmp_path / "IC_0000_files/10/1_2.jpeg"  # the last tile of the last level: 2 x 3 tiles of 254 px
    lost.unlink()
    assert not is_complete(target)
    with pytest.raises(PathUpError, match="exists already"):
        write_image(target, [np.full((600, 300, 3), 200, np.uint8)], {"seed": 1})
    remove_output(target.path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.png", "a.ome.tiff"])
def test_removal_is_of_that_file_alone(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / name, tmp_path / "b.png"):
        path.write_bytes(b"not whole")
    remove_output(tmp_path / name)
    remove_output(tmp_path / name)  # nothing to remove is nothing wrong
    assert [p.name for p in tmp_path.iterdir()] == ["b.png"]
    (tmp_path / name).mkdir()
    with pytest.raises(PathUpError, match="is not whole and cannot be removed"):
        remove_output(tmp_path / name)


def test_as_band_rounds() -> None:
    assert as_band(np.array([[[0.0, 0.5, 1.0]]])).tolist() == [[[0, 128, 255]]]


def test_metadata_is_one_object_a_line(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "text": "über"}, {"file_name": "b.png", "text": "x\ny"}]
    target = write_metadata(tmp_path, rows)
    assert [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()] == rows
