from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pathup.errors import PathUpError
from pathup.slides.reader import RESIZE_FILTER, RegionImage, Slide, is_slide, open_slide, slide_files, slide_identity
from tests.tiles.made import SHARED, needs_slides, save, save_slide, tissue

SVS = SHARED / "data" / "slides" / "CMU-1-Small-Region.svs"
TIF = SHARED / "data" / "slides" / "endometrial-polyp.tif"


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_slide(tmp_path_factory.mktemp("slide") / "s.tif", tissue(512, 384), mpp=0.25, levels=3)


def test_a_pyramid_is_opened_as_a_slide_and_a_plain_image_as_a_region(pyramid: Path, tmp_path: Path) -> None:
    assert is_slide(pyramid)
    with open_slide(pyramid) as slide:
        assert isinstance(slide, Slide)
        assert slide.size == (512, 384)
        assert slide.downsamples == (1.0, 2.0, 4.0)
        assert slide.mpp == pytest.approx((0.25, 0.25))
    for name in ("a.png", "a.tif"):  # a plain TIFF has no tiles, so OpenSlide leaves it alone
        with open_slide(save(tmp_path / name, tissue(20, 10)), 0.5) as region:
            assert isinstance(region, RegionImage)
            assert (region.size, region.mpp, region.bounds) == ((20, 10), (0.5, 0.5), (0, 0, 20, 10))
        assert not is_slide(tmp_path / name)


@pytest.mark.parametrize(
    ("reduction", "level"), [(0.5, 0), (1, 0), (1.99, 0), (2, 1), (1.999, 1), (3.9, 1), (4, 2), (64, 2)]
)
def test_the_level_is_the_coarsest_that_is_fine_enough(pyramid: Path, reduction: float, level: int) -> None:
    with Slide(pyramid) as slide:
        assert slide.level_for(reduction) == level


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=st.integers(0, 200), y=st.integers(0, 100), field=st.integers(16, 280), out=st.integers(8, 300))
def test_a_field_is_openslides_own_read_resampled(pyramid: Path, x: int, y: int, field: int, out: int) -> None:
    with Slide(pyramid) as slide, openslide.OpenSlide(pyramid) as plain:
        read = slide.read_field(x, y, field, out)
        down = max(d for d in plain.level_downsamples if d <= max(1, field / out) * 1.001)
        side = round(field / down)
        expected = plain.read_region((x, y), plain.level_downsamples.index(down), (side, side)).convert("RGB")
        if side != out:
            expected = expected.resize((out, out), RESIZE_FILTER)
    assert np.array_equal(read, np.asarray(expected))


def test_a_field_of_a_region_image_is_its_pixels(tmp_path: Path) -> None:
    pixels = tissue(60, 40)
    with RegionImage(save(tmp_path / "a.png", pixels)) as region:
        assert np.array_equal(region.read_field(7, 3, 16, 16), pixels[3:19, 7:23])
        shrunk = Image.fromarray(pixels[0:40, 0:40]).resize((10, 10), RESIZE_FILTER)
        assert np.array_equal(region.read_field(0, 0, 40, 10), np.asarray(shrunk))
        oblong = Image.fromarray(pixels[0:40, 0:60]).resize((30, 10), RESIZE_FILTER)
        assert np.array_equal(region.read_field(0, 0, (60, 40), (30, 10)), np.asarray(oblong))


def test_an_oblong_field_is_of_the_level_that_is_fine_enough_both_ways(pyramid: Path) -> None:
    with Slide(pyramid) as slide, openslide.OpenSlide(pyramid) as plain:
        read = slide.read_field(0, 0, (512, 384), (128, 192))  # 4 times one way, twice the other: level 1
        expected = plain.read_region((0, 0), 1, (256, 192)).convert("RGB").resize((128, 192), RESIZE_FILTER)
    assert np.array_equal(read, np.asarray(expected))


def test_shrinking_averages_over_the_area(tmp_path: Path) -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2 * 200  # a one-pixel chessboard: point sampling would show it
    with RegionImage(save(tmp_path / "a.png", np.repeat(board[..., None], 3, axis=2).astype(np.uint8))) as region:
        middle = region.read_field(0, 0, 64, 16)[2:-2, 2:-2]
    assert np.abs(middle.astype(int) - 100).max() <= 3  # its mean, but for rounding and the filter's tails


@pytest.mark.parametrize(("x", "y", "side"), [(-1, 0, 10), (0, -1, 10), (503, 0, 10), (0, 375, 10), (0, 0, 0)])
def test_nothing_is_read_outside(pyramid: Path, x: int, y: int, side: int) -> None:
    with Slide(pyramid) as slide, pytest.raises(PathUpError, match=r"reaches outside|were asked"):
        slide.read_field(x, y, side, 8)


def test_a_field_at_the_rim_has_no_white_edge(tmp_path: Path) -> None:
    colour = np.array((100, 20, 30), np.uint8)
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path) as writer:
        for side in (103, 25):  # 103 / 4 rounded down, as scanners do: 25 * 4.12
            pixels = np.zeros((side, side, 3), np.uint8) + colour
            writer.write(pixels, tile=(16, 16), photometric="rgb", compression="zlib", subfiletype=int(side < 103))
    with Slide(path) as slide:
        assert slide.downsamples == pytest.approx((1, 4.12))
        # a field of 97 px at 6 is 24 px of the level (23.5 rounded) from 1.46: to 25.46, where the level ends at 25
        read = slide.read_field(6, 6, 97, 16)
    # OpenSlide blends tiles at fractional places, by up to 3 of 255; half a column of white would be 70 and more
    assert np.abs(read.astype(int) - colour).max() <= 5


@pytest.mark.parametrize(
    ("told", "bounds"),
    [
        (("64", "32", "256", "128"), (64, 32, 256, 128)),
        (("64", "32", "449", "128"), (0, 0, 512, 384)),  # over the slide's rim by a pixel: no bounds
        (("64", "32", "all", "128"), (0, 0, 512, 384)),
        ((), (0, 0, 512, 384)),
    ],
)
def test_the_scanned_part_of_a_slide(
    pyramid: Path, monkeypatch: pytest.MonkeyPatch, told: tuple[str, ...], bounds: tuple[int, ...]
) -> None:
    names = ("x", "y", "width", "height")
    with openslide.OpenSlide(pyramid) as plain:
        properties = dict(plain.properties) | {f"openslide.bounds-{n}": v for n, v in zip(names, told, strict=False)}
    monkeypatch.setattr(openslide.OpenSlide, "properties", properties)
    with Slide(pyramid) as slide:
        assert slide.bounds == bounds
        assert slide.size == (512, 384)


def test_transparent_pixels_become_white(pyramid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Slide(pyramid) as slide:
        half = Image.new("RGBA", (8, 8), (100, 0, 0, 0))
        half.paste((100, 20, 30, 255), (0, 0, 4, 8))
        monkeypatch.setattr(slide._slide, "read_region", lambda *_: half)
        read = slide.read_field(0, 0, 8, 8)
    assert (read[:, :4] == (100, 20, 30)).all()
    assert (read[:, 4:] == 255).all()


def test_a_file_without_a_scale_needs_one_stated(tmp_path: Path) -> None:
    path = save_slide(tmp_path / "s.tif", tissue(256, 256), mpp=None)
    with open_slide(path) as slide, pytest.raises(PathUpError, match=r"records no micrometres per pixel.*--mpp"):
        _ = slide.mpp
    with open_slide(path, 0.5) as slide:
        assert slide.mpp == (0.5, 0.5)
        assert slide.recorded_mpp is None


def test_a_prints_resolution_is_no_scale(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", tissue(20, 20), dpi=(300, 300))
    with open_slide(path, 0.5) as region:
        assert region.mpp == (0.5, 0.5)


def test_a_plain_tiffs_resolution_is_its_scale(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, tissue(20, 20), photometric="rgb", resolution=(40_000, 20_000), resolutionunit=3)
    with open_slide(path, 9.0) as region:
        assert region.mpp == pytest.approx((0.25, 0.5))  # 40,000 and 20,000 pixels a centimetre


@pytest.mark.parametrize("kind", [2, 3])  # text (empty here) and a 16-bit number; a resolution is a pair of numbers
def test_a_resolution_that_is_no_fraction_is_no_scale(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, tissue(20, 20), photometric="rgb", resolution=(20_000, 20_000), resolutionunit=3)
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages.first.tags["XResolution"].offset
    content = bytearray(path.read_bytes())
    content[place + 2 : place + 4] = kind.to_bytes(2, "little")  # a tag: its number, type, count, value
    content[place + 8 : place + 12] = bytes(4)
    path.write_bytes(content)
    with open_slide(path, 0.7) as region:
        assert region.mpp == (0.7, 0.7)


@pytest.mark.parametrize(
    ("pixels", "how", "said"),
    [
        (np.zeros((256, 256, 3), np.uint16), {"photometric": "rgb"}, "16 bits"),
        (np.zeros((256, 256), np.uint8), {"photometric": "minisblack"}, "is a greyscale image"),
        (np.zeros((256, 256, 4), np.uint8), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, "an alpha channel"),
        (np.zeros((256, 256, 4), np.uint8), {"photometric": "rgb", "extrasamples": ["unspecified"]}, "of 4 channels"),
        (np.zeros((256, 256, 4), np.uint8), {"photometric": "separated"}, "is a CMYK image"),
    ],
)
def test_tiled_tiffs_of_other_colour_kinds_are_refused(
    tmp_path: Path, pixels: np.ndarray, how: dict, said: str
) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, pixels, tile=(128, 128), **how)
    with pytest.raises(PathUpError, match=said):
        open_slide(path)


@pytest.mark.parametrize("name", ["s.svs", "s.tif", "s.ndpi", "s.mrxs", "s.dcm"])
@pytest.mark.parametrize("content", [b"", b"II*\x00 nothing of a slide"])
def test_a_broken_slide_is_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PathUpError, match=name):
        open_slide(tmp_path / name)


def test_a_slide_with_damaged_tiles_is_one_sentence(pyramid: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    whole = pyramid.read_bytes()
    path.write_bytes(whole[:8] + bytes(len(whole) // 2) + whole[8 + len(whole) // 2 :])  # tiles overwritten, tags whole
    with pytest.raises(PathUpError, match=r"damaged|cannot be opened|not an image"), open_slide(path, 0.5) as slide:
        slide.read_field(0, 0, 256, 64)


def test_what_tells_one_slide_from_another(pyramid: Path, tmp_path: Path) -> None:
    other = save_slide(tmp_path / "other.tif", tissue(256, 256, seed=1), mpp=0.25)
    assert slide_identity(pyramid) == slide_identity(pyramid) != slide_identity(other)
    (tmp_path / "a.dcm").write_bytes(b"no slide")
    assert slide_identity(tmp_path / "a.dcm") is None


def test_the_files_of_a_mirax_slide(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for name in ("s.mrxs", "s/Data0000.dat", "s/Slidedat.ini", "other.txt"):
        (tmp_path / name).write_text(name)
    assert [p.relative_to(tmp_path).as_posix() for p in slide_files(tmp_path / "s.mrxs")] == [
        "s.mrxs", "s/Data0000.dat", "s/Slidedat.ini",
    ]  # fmt: skip


@needs_slides
def test_real_slides_at_level_0_are_read_unchanged() -> None:
    for path, mpp in ((SVS, 0.499), (TIF, 0.5)):
        with open_slide(path) as slide, openslide.OpenSlide(path) as plain:
            assert slide.mpp == pytest.approx((mpp, mpp))
            read = slide.read_field(800, 1900, 512, 512)
            assert np.array_equal(read, np.asarray(plain.read_region((800, 1900), 0, (512, 512)))[..., :3])
            assert read.std() > 10, "tissue, not glass"


@needs_slides
def test_a_real_pyramid_serves_a_reduced_field_from_its_reduced_level() -> None:
    with open_slide(TIF) as slide, openslide.OpenSlide(TIF) as plain:
        exact = slide.read_field(1024, 2048, 2048, 512)  # 4 times: level 2, no resizing
        assert np.array_equal(exact, np.asarray(plain.read_region((1024, 2048), 2, (512, 512)))[..., :3])
        resized = slide.read_field(1024, 2048, 1536, 512)  # 3 times: level 1, then 768 to 512
        level1 = plain.read_region((1024, 2048), 1, (768, 768)).convert("RGB")
        assert np.array_equal(resized, np.asarray(level1.resize((512, 512), RESIZE_FILTER)))
        full = plain.read_region((1024, 2048), 0, (2048, 2048)).convert("RGB").reduce(4)
        # the same place at the same size: a wrong scale or offset would differ by the tissue's contrast (about 40)
        assert np.abs(exact.astype(float) - np.asarray(full)).mean() < 6
