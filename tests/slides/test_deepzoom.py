from __future__ import annotations

import errno
import json
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openslide import ImageSlide
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from pathup.errors import PathUpError
from pathup.slides import deepzoom
from pathup.slides.deepzoom import deepzoom_provenance, deepzoom_shapes, whole_deepzoom_shape, write_deepzoom
from pathup.slides.pyramid import encode_jpeg
from tests.slides.faults import KILLED, in_child, limit_file_size
from tests.slides.test_pyramid import slow_half

PROVENANCE = {"seed": 7, "label": "IC", "prompt": 'tissue <a> & "b" µ', "sampling": {"steps": 30}}


def _smooth(height: int, width: int) -> np.ndarray:
    """Waves: JPEG keeps them within a few grey values, and a tile shifted by a pixel would show."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9), np.sin(y / 9), np.sin((x + y) / 13)], -1)
    return (128 + 100 * waves).astype(np.uint8)


def _bands(image: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    return (image[top : top + rows] for top in range(0, len(image), rows))


def _write(target: Path, image: np.ndarray, **values: object) -> None:
    write_deepzoom(target, _bands(image, 61), shape=image.shape[:2], mpp=0.25, **values)  # type: ignore[arg-type]


@given(st.integers(1, 90), st.integers(1, 90), st.integers(2, 40), st.integers(0, 1))
@settings(max_examples=25, deadline=None)
def test_geometry_is_openslides(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, tile_px: int, overlap: int
) -> None:
    image = _smooth(height, width)
    target = tmp_path_factory.mktemp("zoom") / "a.dzi"
    _write(target, image, tile_px=tile_px, overlap=overlap)
    theirs = DeepZoomGenerator(ImageSlide(Image.fromarray(image)), tile_px, overlap)
    ours = target.with_name("a_files")
    assert sorted(p.name for p in ours.iterdir() if p.is_dir()) == sorted(map(str, range(theirs.level_count)))
    assert [(w, h) for h, w in deepzoom_shapes(height, width)[::-1]] == list(theirs.level_dimensions)
    for level, (columns, rows) in enumerate(theirs.level_tiles):
        assert len(list((ours / str(level)).iterdir())) == columns * rows
        for column, row in np.ndindex(columns, rows):
            with Image.open(ours / str(level) / f"{column}_{row}.jpeg") as tile:
                assert tile.size == theirs.get_tile_dimensions(level, (column, row))
    index, reference = (ElementTree.fromstring(text) for text in (target.read_text(), theirs.get_dzi("jpeg")))  # noqa: S314
    assert index.tag == reference.tag and index.attrib == reference.attrib
    assert [(node.tag, node.attrib) for node in index] == [(node.tag, node.attrib) for node in reference]


@pytest.mark.parametrize("overlap", [0, 1, 5])
def test_tiles_show_their_part_of_each_level(tmp_path: Path, overlap: int) -> None:
    image = _smooth(131, 210)  # neither divided by the tile, one odd
    _write(tmp_path / "a.dzi", image, tile_px=62, overlap=overlap)
    shapes = deepzoom_shapes(131, 210)
    assert shapes == [(131, 210), (66, 105), (33, 53), (17, 27), (9, 14), (5, 7), (3, 4), (2, 2), (1, 1)]
    level_image = image
    for number, shape in zip(range(8, -1, -1), shapes, strict=True):
        if number < 8:
            level_image = slow_half(level_image, shape)
        for path in (tmp_path / "a_files" / str(number)).iterdir():
            column, row = map(int, path.stem.split("_"))
            y, x = max(0, row * 62 - overlap), max(0, column * 62 - overlap)
            whole = level_image[y : (row + 1) * 62 + overlap, x : (column + 1) * 62 + overlap]
            assert path.read_bytes() == encode_jpeg(whole, 90)
            if number == 8:
                with Image.open(path) as opened:
                    assert opened.format == "JPEG" and opened.mode == "RGB"
                    difference = np.abs(np.asarray(opened).astype(int) - whole)
                # JPEG at quality 90 rounds smooth waves by a few grey values
                assert difference.max() <= 12 and difference.mean() < 1.5


def test_scale_and_provenance_lie_beside_the_levels(tmp_path: Path) -> None:
    target = tmp_path / "a.b.dzi"
    _write(target, _smooth(30, 40), provenance=PROVENANCE)
    assert deepzoom_provenance(target) == PROVENANCE
    told = json.loads((tmp_path / "a.b_files/provenance.json").read_text(encoding="utf-8"))
    assert told["mpp"] == 0.25 and told["software"].startswith("pathup ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.b.dzi", "a.b_files"]
    _write(tmp_path / "c.dzi", _smooth(30, 40))
    assert deepzoom_provenance(tmp_path / "c.dzi") is None


def test_whole_means_every_tile_of_every_level(tmp_path: Path) -> None:
    target, tiles = tmp_path / "a.dzi", tmp_path / "a_files"
    assert whole_deepzoom_shape(target) is None
    _write(target, _smooth(100, 70), tile_px=32)
    assert whole_deepzoom_shape(target) == (100, 70)
    (tiles / "7" / ".DS_Store").write_bytes(b"what a file manager leaves does not matter")
    assert whole_deepzoom_shape(target) == (100, 70)
    for lost in (tiles / "7/1_2.jpeg", tiles / "0/0_0.jpeg"):
        content = lost.read_bytes()
        lost.unlink()
        assert whole_deepzoom_shape(target) is None
        lost.write_bytes(b"")
        assert whole_deepzoom_shape(target) is None
        lost.with_name("9_9.jpeg").write_bytes(b"as many tiles, but not the right ones")
        assert whole_deepzoom_shape(target) is None
        lost.with_name("9_9.jpeg").unlink()
        lost.write_bytes(content)
    assert whole_deepzoom_shape(target) == (100, 70)
    index = target.read_text()
    vast = index.replace('Width="70"', f'Width="{10**15}"')
    bomb = index.replace("<Image", '<!DOCTYPE a [<!ENTITY b "c">]><Image')
    for text in (index[:40], "", "none", vast, bomb, index.replace('TileSize="32"', 'TileSize="0"'), "\x00" * 50):
        target.write_text(text)
        assert whole_deepzoom_shape(target) is None
    target.write_text(index)
    shutil.rmtree(tiles)
    assert whole_deepzoom_shape(target) is None


def test_memory_is_bounded_by_rows_not_by_height(tmp_path: Path) -> None:
    width, height = 512, 16_384  # 24 MiB of pixels

    def bands() -> Iterator[np.ndarray]:
        for top in range(0, height, 128):
            yield np.full((128, width, 3), top % 251, np.uint8)

    tracemalloc.start()
    write_deepzoom(tmp_path / "tall.dzi", bands(), shape=(height, width), mpp=0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # two rows of tiles a level and the sums of one: about 3 MiB at this width
    assert peak < 8 * 2**20


def _kill_at(call: int) -> None:
    """End this process, as a kill would, at the call-th renaming."""
    calls, real = [], os.replace

    def replace(source: Path, target: Path) -> None:
        calls.append(1)
        if len(calls) == call:
            os._exit(KILLED)
        real(source, target)

    os.replace = replace  # type: ignore[assignment]  # of the child alone


@pytest.mark.parametrize(
    ("old", "renaming"),
    # 0: among the tiles. The new tiles are renamed, then the index; first of all the old tiles, if there are any
    [(False, 0), (False, 1), (False, 2), (True, 0), (True, 1), (True, 2), (True, 3)],
)
def test_a_kill_leaves_nothing_that_looks_finished(tmp_path: Path, old: bool, renaming: int) -> None:
    target, image = tmp_path / "a.dzi", _smooth(150, 140)
    if old:
        _write(target, image[:90, :80], tile_px=32, provenance={"seed": 1})

    def killed_bands() -> Iterator[np.ndarray]:
        yield image[:100]
        if renaming == 0:
            os._exit(KILLED)
        yield image[100:]

    def write() -> None:
        _kill_at(renaming)
        write_deepzoom(target, killed_bands(), shape=(150, 140), mpp=0.25, tile_px=32, overwrite=old)

    code, _ = in_child(write)
    assert code == KILLED
    if old and renaming == 0:
        assert whole_deepzoom_shape(target) == (90, 80) and deepzoom_provenance(target) == {"seed": 1}
        return
    assert not target.exists()
    _write(target, image, tile_px=32, provenance={"seed": 2})  # unasked: what is there was never finished
    assert whole_deepzoom_shape(target) == (150, 140) and deepzoom_provenance(target) == {"seed": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.dzi", "a_files"]  # of the killed writer, nothing is left


def test_what_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, image = tmp_path / "a.dzi", _smooth(150, 140)
    for old in (False, True):
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        for bands in ([image[:50]], [image, image[:1]], [image.astype(float)]):
            with pytest.raises(ValueError, match="band"):
                write_deepzoom(target, bands, shape=(150, 140), mpp=0.5, overwrite=True)

        with monkeypatch.context() as patched:
            patched.setattr(deepzoom, "encode_jpeg", _full_after(3))
            with pytest.raises(PathUpError, match=r"disk is full: .*a\.dzi could not be written"):
                _write(target, image, tile_px=32, overwrite=True)
        code, told = in_child(lambda: (limit_file_size(900), _write(target, image, overwrite=True))[1])
        assert code == 1 and told == f"cannot write {target}: {os.strerror(errno.EFBIG)}"
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
        if not old:
            _write(target, image[:90])


def _full_after(tiles: int) -> object:
    real, calls = deepzoom.encode_jpeg, []

    def encode(tile: np.ndarray, quality: int) -> bytes:
        calls.append(1)
        if len(calls) > tiles:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(tile, quality)

    return encode


def test_overwrite_replaces_index_and_tiles(tmp_path: Path) -> None:
    target = tmp_path / "a.dzi"
    _write(target, _smooth(150, 140), tile_px=32, provenance={"seed": 1})
    with pytest.raises(PathUpError, match="exists already; add --overwrite"):
        _write(target, _smooth(40, 30))
    assert deepzoom_provenance(target) == {"seed": 1}
    _write(target, _smooth(40, 30), overwrite=True)
    assert whole_deepzoom_shape(target) == (40, 30) and deepzoom_provenance(target) is None
    assert sorted(p.name for p in (tmp_path / "a_files").iterdir() if p.is_dir()) == list("0123456")


def test_what_cannot_be_asked_for(tmp_path: Path) -> None:
    for values in ({"tile_px": 0}, {"overlap": -1}, {"tile_px": 4, "overlap": 4}):
        with pytest.raises(ValueError, match="tiles of"):
            _write(tmp_path / "a.dzi", _smooth(8, 8), **values)
    with pytest.raises(ValueError, match="does not end in"):
        _write(tmp_path / "a.tiff", _smooth(8, 8))
    assert list(tmp_path.iterdir()) == []
