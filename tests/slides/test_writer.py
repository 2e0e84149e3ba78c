from __future__ import annotations

import errno
import json
import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathup import storage
from pathup.errors import PathUpError
from pathup.slides import writer
from pathup.slides.writer import level_shapes, write_ome_tiff, write_png
from tests.slides.faults import KILLED, in_child, limit_file_size

PROVENANCE = {"seed": 7, "label": "IC", "prompt": 'tissue <a> & "b" µ', "sampling": {"steps": 30}}


def _picture(height: int, width: int) -> np.ndarray:
    """Smooth gradients and a grid: JPEG keeps it within a few grey values, and a shifted tile would show."""
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    image = np.empty((height, width, 3), np.uint8)
    for channel, ramp in enumerate((x // 7, y // 5, (x + y) // 11)):
        image[..., channel] = ramp % 200
    image[(y // 64 + x // 64) % 2 == 0] += 40
    return image


def _bands(image: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    return (image[top : top + rows] for top in range(0, len(image), rows))


def _halved(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The mean of each 2 x 2 block, half rounded up; a last row or column that is its own pair counts twice."""
    height, width = shape
    image = np.pad(image, ((0, 1), (0, 1), (0, 0)), mode="edge")[: 2 * height, : 2 * width].astype(np.uint16)
    return ((image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2] + 2) // 4).astype(np.uint8)


def test_levels_shrink_alike_both_ways() -> None:
    assert level_shapes(16_384, 16_384) == [(16_384 // 2**n,) * 2 for n in range(7)]
    # 5000 / 32 = 156.25, 3300 / 32 = 103.125
    assert level_shapes(3300, 5000) == [(3300, 5000), (1650, 2500), (825, 1250), (413, 625), (206, 313), (103, 156)]
    assert level_shapes(256, 256) == [(256, 256)] and level_shapes(1, 300) == [(1, 300), (1, 150)]
    for sides in ((700, 16_384), (3299, 5001), (257, 100_000)):
        for number, shape in enumerate(level_shapes(*sides)):
            for side, whole in zip(shape, sides, strict=True):
                assert abs(side - whole / 2**number) <= 0.5


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_openslide_tifffile_and_the_ome_metadata_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: Any, big: bool
) -> None:
    if big:
        monkeypatch.setattr(writer, "BIGTIFF_BYTES", 0)
    height, width = 700, 1301  # neither a multiple of a TIFF tile, one odd
    image, path = _picture(height, width), tmp_path / "a.ome.tiff"
    write_ome_tiff(
        path, _bands(image, 90), shape=(height, width), mpp=0.25, provenance=PROVENANCE, compression=compression
    )
    shapes = level_shapes(height, width)
    assert shapes == [(700, 1301), (350, 651), (175, 325), (88, 163)]
    # JPEG at quality 90 rounds coefficients by a few grey values; the grid's corners suffer most
    worst, mean = (40, 2.0) if compression == "jpeg" else (0, 0.0)

    with tifffile.TiffFile(path) as reader:
        assert reader.is_ome and reader.is_bigtiff == big
        (series,) = reader.series
        assert [level.shape for level in series.levels] == [(*shape, 3) for shape in shapes]
        levels = [level.asarray() for level in series.levels]
        for page in [reader.pages.first, *(level.pages[0] for level in series.levels[1:])]:
            # 1 in the first place has Bio-Formats 7.3 convert colours that are converted already (its issue 2811)
            assert compression == "deflate" or page.keyframe.tags["YCbCrSubSampling"].value == (2, 1)
        ome = ElementTree.fromstring(reader.ome_metadata)  # noqa: S314  we wrote it
    difference = np.abs(levels[0].astype(int) - image)
    assert difference.max() <= worst and difference.mean() <= mean
    half = np.abs(levels[1].astype(int) - _halved(image, shapes[1]))
    assert half.max() <= worst and half.mean() <= mean

    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == tuple((columns, rows) for rows, columns in shapes)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.25, rel=1e-6)
        for level, (rows, columns) in enumerate(shapes):
            region = np.asarray(slide.read_region((0, 0), level, (columns, rows)).convert("RGB"))
            assert np.abs(region.astype(int) - levels[level]).max() <= 2  # two JPEG decoders round differently
        corner = slide.read_region((1100, 500), 0, (201, 200)).convert("RGB")
        assert np.abs(np.asarray(corner).astype(int) - image[500:700, 1100:1301]).max() <= worst

    names = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
    pixels = ome.find("ome:Image/ome:Pixels", names)
    assert pixels is not None
    assert (pixels.get("SizeX"), pixels.get("SizeY"), pixels.get("SizeC")) == ("1301", "700", "3")
    assert pixels.get("PhysicalSizeX") == pixels.get("PhysicalSizeY") == "0.25"
    assert pixels.get("PhysicalSizeXUnit") == "µm"
    value = ome.find("ome:StructuredAnnotations/ome:CommentAnnotation/ome:Value", names)
    assert value is not None and json.loads(value.text or "") == PROVENANCE


@pytest.mark.parametrize(("height", "width"), [(700, 16_384), (1650, 2501)])
def test_every_level_of_a_large_image_is_where_readers_look(tmp_path: Path, height: int, width: int) -> None:
    image, path = _picture(height, width), tmp_path / "a.ome.tiff"
    write_ome_tiff(path, _bands(image, 256), shape=(height, width), mpp=0.25, compression="deflate")
    shapes = level_shapes(height, width)
    with tifffile.TiffFile(path) as reader, openslide.OpenSlide(path) as slide:
        (series,) = reader.series
        assert [level.shape[:2] for level in series.levels] == shapes
        assert slide.level_dimensions == tuple((columns, rows) for rows, columns in shapes)
        # OpenSlide's is the mean of both sides' ratios; half a pixel of 11 is 5 %, of which the mean has half
        assert slide.level_downsamples == pytest.approx([2**n for n in range(len(shapes))], rel=0.025)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-6)
        expected = image
        for number, (rows, columns) in enumerate(shapes):
            expected = _halved(expected, (rows, columns)) if number else image
            assert np.array_equal(series.levels[number].asarray(), expected)
            region = slide.read_region((0, 0), number, (min(300, columns), min(300, rows))).convert("RGB")
            assert np.array_equal(np.asarray(region), expected[:300, :300])
        corner = slide.read_region((width - 300, height - 300), 0, (300, 300)).convert("RGB")
        assert np.array_equal(np.asarray(corner), image[-300:, -300:])


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 100))
@settings(max_examples=25, deadline=None)
def test_any_size_in_any_bands_comes_back(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, rows: int
) -> None:
    side = writer.TIFF_TILE_PX
    writer.TIFF_TILE_PX = 16  # small tiles, so that small images have many of them and several levels
    try:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = tmp_path_factory.mktemp("any") / "a.tif"
        write_ome_tiff(path, _bands(image, rows), shape=(height, width), mpp=1.0, compression="deflate")
        shapes = level_shapes(height, width)
        with tifffile.TiffFile(path) as reader:
            levels = [level.asarray() for level in reader.series[0].levels]
        assert [level.shape[:2] for level in levels] == shapes
        assert np.array_equal(levels[0], image)
        for upper, lower in pairwise(levels):
            assert np.array_equal(lower, _halved(upper, lower.shape[:2]))
    finally:
        writer.TIFF_TILE_PX = side


def test_memory_is_bounded_by_rows_not_by_height(tmp_path: Path) -> None:
    width, height = 512, 16_384  # 24 MiB of pixels

    def bands() -> Iterator[np.ndarray]:
        for top in range(0, height, 128):
            yield np.full((128, width, 3), top % 251, np.uint8)

    tracemalloc.start()
    write_ome_tiff(tmp_path / "tall.ome.tiff", bands(), shape=(height, width), mpp=0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # two rows of tiles a level and the sums of one: about 3 MiB at this width
    assert peak < 8 * 2**20


def test_nothing_is_left_of_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = _picture(300, 300)

    def full() -> Iterator[np.ndarray]:
        yield image[:100]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for write, name in ((write_ome_tiff, "a.ome.tiff"), (write_png, "a.png")):
        if write is write_png:  # its bands are gathered before anything is written: the disk fills later
            monkeypatch.setattr(storage, "fsync_path", lambda path: next(x for x in full() if x is None))
        bands = full() if write is write_ome_tiff else _bands(image, 100)
        with pytest.raises(PathUpError, match="disk is full"):
            write(tmp_path / name, bands, shape=(300, 300), mpp=0.5)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["tiff", "spool"])
def test_a_full_disk_is_one_sentence_wherever_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1100, 600, 3), dtype=np.uint8)

    def write() -> None:
        if where == "spool":  # the smaller levels' files alone are on the full disk
            real = tempfile.TemporaryFile
            monkeypatch.setattr(tempfile, "TemporaryFile", lambda **named: _full(real(**named)))
        else:
            limit_file_size(200_000)  # level 0 takes 1.7 MB
        write_ome_tiff(tmp_path / "a.ome.tiff", _bands(image, 100), shape=(1100, 600), mpp=0.5)

    code, told = in_child(write)
    sentence = "cannot write" if where == "tiff" else "the disk is full"
    assert code == 1 and told.startswith(sentence) and "\n" not in told
    assert list(tmp_path.iterdir()) == []


def _full(file: Any) -> Any:
    def write(content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return SimpleNamespace(write=write, seek=file.seek, read=file.read, close=lambda: write(b""))


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    image = _picture(300, 300)

    def killed() -> Iterator[np.ndarray]:
        yield image[:200]
        os._exit(KILLED)

    code, _ = in_child(lambda: write_ome_tiff(tmp_path / "a.ome.tiff", killed(), shape=(300, 300), mpp=0.5))
    assert code == KILLED
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    write_ome_tiff(tmp_path / "a.ome.tiff", [image], shape=(300, 300), mpp=0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.tiff"]


def test_bands_that_do_not_fit_are_an_error_and_leave_nothing(tmp_path: Path) -> None:
    image = _picture(100, 60)
    for write, name in ((write_ome_tiff, "a.ome.tiff"), (write_png, "a.png")):
        for bands in ([image[:50]], [image, image[:1]], [image[:, :59]], [image.astype(float)], [image[..., 0]]):
            with pytest.raises(ValueError, match="band"):
                write(tmp_path / name, iter(bands), shape=(100, 60), mpp=0.5)
            assert list(tmp_path.iterdir()) == []


def test_the_same_call_writes_the_same_bytes(tmp_path: Path) -> None:
    image = _picture(300, 280)
    for name in ("one", "two"):
        target = tmp_path / name / "a.ome.tiff"
        target.parent.mkdir()
        write_ome_tiff(target, _bands(image, 77), shape=(300, 280), mpp=0.5, provenance=PROVENANCE)
    assert (tmp_path / "one/a.ome.tiff").read_bytes() == (tmp_path / "two/a.ome.tiff").read_bytes()


def test_an_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    image = _picture(40, 40)
    for write, name in ((write_ome_tiff, "a.ome.tiff"), (write_png, "a.png")):
        path = tmp_path / name
        path.write_bytes(b"mine")
        with pytest.raises(PathUpError, match="exists already; add --overwrite"):
            write(path, [image], shape=(40, 40), mpp=0.5)
        assert path.read_bytes() == b"mine"
        write(path, [image], shape=(40, 40), mpp=0.5, overwrite=True)
        assert path.stat().st_size > 4
    with pytest.raises(PathUpError, match="is a folder"):
        write_png(tmp_path, [image], shape=(40, 40), mpp=0.5, overwrite=True)


def test_png_is_lossless_with_scale_and_provenance(tmp_path: Path) -> None:
    image, path = _picture(90, 70), tmp_path / "a.png"
    write_png(path, _bands(image, 32), shape=(90, 70), mpp=0.5, provenance=PROVENANCE)
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(opened), image)
        assert json.loads(opened.text["pathup"]) == PROVENANCE
        # pHYs counts pixels a metre: 2,000,000 at 0.5 micrometres a pixel; Pillow gives it an inch
        assert opened.info["dpi"][0] * 1e6 / 25_400 == pytest.approx(2_000_000, rel=1e-6)


def test_a_png_beyond_the_limit_is_refused_before_any_pixel(tmp_path: Path) -> None:
    def bands() -> Iterator[np.ndarray]:
        raise AssertionError("a pixel was asked for")
        yield

    with pytest.raises(PathUpError, match=r"too large for a PNG .* ends in \.ome\.tiff or \.dzi"):
        write_png(tmp_path / "a.png", bands(), shape=(20_000, 20_000), mpp=0.5)
    assert list(tmp_path.iterdir()) == []
