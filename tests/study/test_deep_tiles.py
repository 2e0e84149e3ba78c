from __future__ import annotations

import io
import json
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from pathup.errors import PathUpError
from pathup.slides.deepzoom import write_deepzoom
from pathup.slides.writer import write_ome_tiff, write_png
from pathup.study import deep_tiles
from pathup.study.deep_tiles import BLOCK_PX, DeepImage, FolderTiles, PyramidTiles, open_tiles
from tests.tiles.made import SHARED, needs_slides, save, tissue

MPP = 0.5


class Made:
    """A pyramid in memory, and how often each of its rectangles was read."""

    def __init__(self, levels: list[np.ndarray]) -> None:
        self.levels, self.reads, self._lock = levels, Counter(), threading.Lock()

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(level.shape[1], level.shape[0]) for level in self.levels]

    def fitting(self, reduction: float) -> int:
        ratios = [max(self.sizes[0]) / max(size) for size in self.sizes]
        return max(i for i, ratio in enumerate(ratios) if ratio <= reduction * 1.001)

    def read(self, level: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        assert 0 <= left < right <= self.sizes[level][0] and 0 <= top < bottom <= self.sizes[level][1]
        with self._lock:
            self.reads[level, left, top, right, bottom] += 1
        return self.levels[level][top:bottom, left:right]


def halves(pixels: np.ndarray) -> list[np.ndarray]:
    """The levels that Deep Zoom wants, each the mean of 2 x 2 pixels of the one before, the smallest first."""
    levels = [pixels]
    while max(levels[-1].shape[:2]) > 1:
        rows, columns = levels[-1].shape[:2]
        even = np.pad(levels[-1], ((0, rows % 2), (0, columns % 2), (0, 0)), mode="edge").astype(int)
        total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
        levels.append(((total + 2) // 4).astype(np.uint8))
    return levels[::-1]


def tiles_of(image: DeepImage, level: int) -> list[tuple[int, int]]:
    rows, columns = image.shapes[level]
    side = image.tile_px
    return [(column, row) for row in range(-(-rows // side)) for column in range(-(-columns // side))]


def joined(image: DeepImage, level: int) -> np.ndarray:
    """A level put together from its tiles' own parts, and each position covered once."""
    out = np.zeros((*image.shapes[level], 3), np.uint8)
    covered = np.zeros(image.shapes[level], int)
    for column, row in tiles_of(image, level):
        left, top, right, bottom = image.box(level, column, row)
        tile = np.asarray(Image.open(io.BytesIO(image.tile(level, column, row))))
        assert tile.shape == (bottom - top, right - left, 3)
        x, y = column * image.tile_px, row * image.tile_px
        own = tile[y - top :, x - left :][: image.tile_px, : image.tile_px]
        out[y : y + own.shape[0], x : x + own.shape[1]] = own
        covered[y : y + own.shape[0], x : x + own.shape[1]] += 1
    assert (covered == 1).all()
    return out


def _attributes(descriptor: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="(\d+|jpeg)"', descriptor))


def smooth(width: int, height: int) -> np.ndarray:
    """A picture that a JPEG keeps to a few grey levels."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / a) * np.cos(y / b) for a, b in ((41, 67), (83, 31), (59, 53))]
    return np.stack(waves, axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same picture as an OME-TIFF without loss, a PNG and a DeepZoom image; every level's size is whole."""
    root, pixels = tmp_path_factory.mktemp("pictures"), smooth(1536, 1024)
    write_ome_tiff(root / "a.ome.tiff", [pixels], shape=(1024, 1536), mpp=MPP, compression="deflate")
    write_png(root / "a.png", [pixels], shape=(1024, 1536), mpp=MPP)
    write_deepzoom(root / "a.dzi", [pixels], shape=(1024, 1536), mpp=MPP, quality=95)
    return root


@pytest.mark.parametrize("name", ["a.ome.tiff", "a.png", "a.dzi"])
def test_tiles_joined_again_are_the_image(folder: Path, name: str) -> None:
    image = open_tiles(folder / name)
    wanted = halves(smooth(1536, 1024))
    assert image.size == (1536, 1024) and image.mpp == pytest.approx((MPP, MPP), rel=1e-4)
    assert image.shapes == [level.shape[:2] for level in wanted]
    for level, pixels in enumerate(wanted):
        if isinstance(image, PyramidTiles):
            rows, columns = image.shapes[level]
            assert (image.pixels(level, 0, 0, columns, rows) == pixels).all()
        error = np.abs(joined(image, level).astype(int) - pixels).mean()
        assert error < 1.5 or max(pixels.shape) < 256  # JPEG at 90; levels smaller than the waves are noise to it


@given(
    width=st.integers(1, 1300),
    height=st.integers(1, 1300),
    more=st.integers(1, 4),
    kept=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_any_size_has_all_its_levels_whatever_the_file_holds(width: int, height: int, more: int, kept: bool) -> None:
    pixels = np.random.default_rng(width * 1301 + height).integers(0, 256, (height, width, 3), np.uint8)
    wanted = halves(pixels)
    held = wanted[::-1][:: more if kept else len(wanted)]  # every so many of the levels, or the full size alone
    image = PyramidTiles(Path("made"), Made(held), None)
    for level, (rows, columns) in enumerate(image.shapes):
        assert (image.pixels(level, 0, 0, columns, rows) == wanted[level]).all()
        boxes = [image.box(level, column, row) for column, row in tiles_of(image, level)]
        assert all(0 <= left < right <= columns and 0 <= top < bottom <= rows for left, top, right, bottom in boxes)
        assert max(right - left for left, _, right, _ in boxes) <= image.tile_px + 2 * image.overlap


@pytest.mark.parametrize("ratio", [3, 1.5, 2.0003])
def test_levels_between_those_of_deep_zoom_are_in_place(ratio: float) -> None:
    # a ramp tells from its value where a pixel comes from: the value at x (full size) is x / 8
    def ramp(width: int, height: int, down: float) -> np.ndarray:
        values = (np.arange(width) + 0.5) * down / 8
        return np.broadcast_to(values[None, :, None], (height, width, 3)).round().astype(np.uint8)

    width, height = 1800, 700
    downs = [1.0, ratio, ratio**2, ratio**3]
    levels = [ramp(int(width / d), int(height / d), width / int(width / d)) for d in downs]
    image = PyramidTiles(Path("made"), Made(levels), None)
    for level, (rows, columns) in enumerate(image.shapes[4:], start=4):
        found = image.pixels(level, 0, 0, columns, rows)[..., 0].astype(float)
        reduction = 2 ** (len(image.shapes) - 1 - level)
        wanted = np.minimum((np.arange(columns) + 0.5) * reduction, width) / 8
        # within a pixel of this level (the last is narrower), and the rounding of grey levels
        assert np.abs(found - wanted).max() <= reduction / 8 + 1


def test_what_a_slide_without_small_levels_takes_at_once_is_a_block() -> None:
    made = Made([smooth(3000, 2100)])
    image = PyramidTiles(Path("made"), made, None)
    image.tile(len(image.shapes) - 4, 0, 0)  # at an eighth, all of it in one tile
    assert all(right - left <= BLOCK_PX and bottom - top <= BLOCK_PX for _, left, top, right, bottom in made.reads)
    assert sum(made.reads.values()) == 6 * 5  # each block of the full size once


def test_no_more_blocks_are_kept_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_tiles, "BLOCKS_KEPT", 2)
    made = Made([smooth(3 * BLOCK_PX, BLOCK_PX)])
    image = PyramidTiles(Path("made"), made, None)
    finest = len(image.shapes) - 1
    for column in (0, 1, 2, 2, 1, 0):  # the last one is out by then
        image.pixels(finest, column * BLOCK_PX, 0, (column + 1) * BLOCK_PX, BLOCK_PX)
    assert sorted(made.reads.values()) == [1, 1, 2]


def test_threads_get_what_one_gets_and_read_each_block_once() -> None:
    pixels = smooth(2300, 1700)
    alone, made = PyramidTiles(Path("made"), Made([pixels]), None), Made([pixels])
    shared = PyramidTiles(Path("made"), made, None)
    wanted = [(level, *tile) for level in range(len(alone.shapes)) for tile in tiles_of(alone, level)] * 3
    order = np.random.default_rng(0).permutation(len(wanted))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: shared.tile(*wanted[index]), order))
    assert all(tile == alone.tile(*wanted[index]) for index, tile in zip(order, found, strict=True))
    assert set(made.reads.values()) == {1}


def test_a_block_that_fails_fails_for_all_who_wait_and_is_tried_again() -> None:
    made = Made([smooth(600, 600)])
    image = PyramidTiles(Path("made"), made, None)
    read, gate = made.read, threading.Event()

    def broken(*box: int) -> np.ndarray:
        gate.wait(10)
        raise PathUpError("the disk is gone")

    made.read = broken
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(image.tile, 9, 0, 0) for _ in range(4)]
        gate.set()
        assert [str(one.exception()) for one in waiting] == ["the disk is gone"] * 4
    made.read = read
    assert image.tile(9, 0, 0).startswith(b"\xff\xd8")


def test_openslides_own_deep_zoom_has_the_same_tiles(tmp_path: Path) -> None:
    write_ome_tiff(tmp_path / "a.ome.tiff", [tissue(2048, 1536)], shape=(1536, 2048), mpp=MPP, compression="deflate")
    image = open_tiles(tmp_path / "a.ome.tiff")
    with openslide.OpenSlide(tmp_path / "a.ome.tiff") as slide:
        other = DeepZoomGenerator(slide, image.tile_px, image.overlap)
        assert image.shapes == [(height, width) for width, height in other.level_dimensions]
        assert _attributes(image.descriptor()) == _attributes(other.get_dzi("jpeg"))
        for level in range(len(image.shapes) - slide.level_count, len(image.shapes)):  # those that the file has
            for at in tiles_of(image, level):
                own = image.pixels(level, *image.box(level, *at))
                assert (own == np.asarray(other.get_tile(level, at).convert("RGB"))).all()


def test_tiles_of_the_full_size_hold_the_very_pixels_and_others_are_jpegs(folder: Path) -> None:
    image = open_tiles(folder / "a.ome.tiff")
    finest = len(image.shapes) - 1
    for at in tiles_of(image, finest):
        tile = image.tile(finest, *at)
        left, top, right, bottom = image.box(finest, *at)
        assert tile.startswith(b"\x89PNG") and image.media_type(finest) == "image/png"
        assert (np.asarray(Image.open(io.BytesIO(tile))) == smooth(1536, 1024)[top:bottom, left:right]).all()
    assert image.tile(finest - 1, 0, 0).startswith(b"\xff\xd8") and image.media_type(finest - 1) == "image/jpeg"


@needs_slides
@pytest.mark.parametrize("name", ["endometrial-polyp.tif", "CMU-1-Small-Region.svs"])
def test_a_real_slide_has_openslides_pixels(name: str) -> None:
    path = SHARED / "data" / "slides" / name
    image = open_tiles(path)
    with openslide.OpenSlide(path) as slide:
        other = DeepZoomGenerator(slide, image.tile_px, image.overlap)
        level = len(image.shapes) - 1
        for at in (tiles_of(image, level)[0], tiles_of(image, level)[-1]):
            own = image.pixels(level, *image.box(level, *at))
            assert (own == np.asarray(other.get_tile(level, at).convert("RGB"))).all()
        assert image.mpp == pytest.approx((float(slide.properties[openslide.PROPERTY_NAME_MPP_X]),) * 2)


def test_of_a_slide_that_tells_of_a_scanned_part_this_is_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathup.slides.reader._bounds", lambda *_: (128, 64, 1024, 768))
    image = open_tiles(folder / "a.ome.tiff")
    assert image.size == (1024, 768)
    wanted = halves(smooth(1536, 1024)[64:832, 128:1152])
    for level in range(len(wanted) - 3, len(wanted)):
        rows, columns = image.shapes[level]
        assert isinstance(image, PyramidTiles)
        assert (image.pixels(level, 0, 0, columns, rows) == wanted[level]).all()


def test_transparent_pixels_are_white(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    monkeypatch.setattr(openslide.OpenSlide, "read_region", lambda *_: clear.copy())
    image = open_tiles(folder / "a.ome.tiff")
    assert isinstance(image, PyramidTiles)
    assert (image._levels.read(0, 0, 0, 8, 8) == 255).all()


def test_a_slide_that_was_damaged_and_mended_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tiff"
    write_ome_tiff(path, [tissue(1200, 1200)], shape=(1200, 1200), mpp=MPP)
    whole = path.read_bytes()
    image = open_tiles(path)
    finest = len(image.shapes) - 1
    path.write_bytes(whole[:8])
    with pytest.raises(PathUpError, match=r"^a\.ome\.tiff cannot be read here: it is damaged or gone$"):
        image.tile(finest, 2, 2)
    path.unlink()
    with pytest.raises(PathUpError, match="damaged or gone"):
        image.tile(finest, 2, 2)
    path.write_bytes(whole)
    assert image.tile(finest, 2, 2).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["a.ome.tiff", "a.png", "a.dzi"])
@pytest.mark.parametrize(
    "at", [(11, 7, 0), (11, 0, 5), (11, 10**30, 0), (10, 4, 3), (12, 0, 0), (-1, 0, 0), (11, -1, 0), (0, 0, 1)]
)
def test_beyond_the_image_is_nothing(folder: Path, name: str, at: tuple[int, int, int]) -> None:
    with pytest.raises(LookupError):
        open_tiles(folder / name).tile(*at)


def test_a_deepzoom_images_tiles_are_its_files(folder: Path) -> None:
    image = open_tiles(folder / "a.dzi")
    assert isinstance(image, FolderTiles)
    assert image.tile(11, 3, 1) == (folder / "a_files" / "11" / "3_1.jpeg").read_bytes()
    assert image.descriptor() == (folder / "a.dzi").read_text()


def test_a_missing_tile_of_a_deepzoom_image_is_nothing(tmp_path: Path) -> None:
    write_deepzoom(tmp_path / "a.dzi", [tissue(300, 300)], shape=(300, 300), mpp=MPP)
    image = open_tiles(tmp_path / "a.dzi")
    (tmp_path / "a_files" / "9" / "1_1.jpeg").unlink()
    with pytest.raises(LookupError, match="missing"):
        image.tile(9, 1, 1)
    (tmp_path / "a_files" / "9" / "0_0.jpeg").unlink()
    (tmp_path / "a_files" / "9" / "0_0.jpeg").mkdir()
    with pytest.raises(PathUpError, match="cannot be read"):
        image.tile(9, 0, 0)


@pytest.mark.parametrize(
    "index",
    [
        "",
        "<html/>",
        '<!DOCTYPE x [<!ENTITY e "e">]><Image/>',
        '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpeg" Overlap="1" TileSize="254"/>',
        '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="../x" Overlap="1" TileSize="254">'
        '<Size Width="9" Height="9"/></Image>',
        '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpeg" Overlap="1" TileSize="0">'
        '<Size Width="9" Height="9"/></Image>',
    ],
)
def test_what_is_no_index_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "a_files").mkdir()
    (tmp_path / "a.dzi").write_text(index)
    with pytest.raises(PathUpError, match="no index of a DeepZoom image"):
        open_tiles(tmp_path / "a.dzi")


def test_a_scale_is_the_recorded_one_or_else_the_stated_one(folder: Path, tmp_path: Path) -> None:
    plain = save(tmp_path / "plain.png", tissue(64, 64), dpi=(25_400, 25_400))  # a print's, whatever its value
    region = tmp_path / "region.tif"
    tifffile.imwrite(region, tissue(64, 64), resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    assert open_tiles(plain).mpp is None
    assert open_tiles(plain).extent is None
    assert open_tiles(plain, 2.0).mpp == (2.0, 2.0)
    assert open_tiles(plain, 2.0).extent == (128.0, 128.0)
    assert open_tiles(region, 2.0).mpp == (0.5, 0.5)
    for name in ("a.ome.tiff", "a.png", "a.dzi"):
        assert open_tiles(folder / name, 2.0).mpp == pytest.approx((MPP, MPP), rel=1e-4)
    (tmp_path / "b_files").mkdir()
    (tmp_path / "b.dzi").write_bytes((folder / "a.dzi").read_bytes())
    for told in (None, json.dumps([]), json.dumps({"mpp": "far"}), json.dumps({"mpp": 1e9}), "{"):
        if told is not None:
            (tmp_path / "b_files" / "provenance.json").write_text(told)
        assert open_tiles(tmp_path / "b.dzi").mpp is None


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf"), 1000.0])
def test_a_scale_that_no_tissue_has_is_refused(folder: Path, mpp: float) -> None:
    with pytest.raises(PathUpError, match=r"--mpp is .*, but micrometres a pixel from 0.02 to 50 were needed"):
        open_tiles(folder / "a.png", mpp)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.svs", None, "does not exist"),
        ("none.png", None, "does not exist"),
        ("none.dzi", None, "does not exist"),
        ("empty.tif", b"", "is empty"),
        ("text.svs", b"no slide", "not a slide that OpenSlide can read"),
        ("text.png", b"no image", "not an image that can be read"),
        ("lonely.dzi", b"<Image/>", "the tiles of .* are not there"),
    ],
)
def test_what_cannot_be_opened_is_told_in_a_sentence(
    tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PathUpError, match=sentence):
        open_tiles(tmp_path / name)
