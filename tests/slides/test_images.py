from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from pathup.errors import PathUpError
from pathup.slides import images
from pathup.slides.images import image_size, read_image
from tests.tiles.made import save, tissue


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_lossless_images_come_back_as_they_were(tmp_path: Path, ending: str) -> None:
    pixels = tissue(50, 30)
    path = save(tmp_path / f"a.{ending}", pixels, **({"lossless": True} if ending == "webp" else {}))
    read = read_image(path)
    assert read.dtype == np.uint8
    assert np.array_equal(read, pixels)
    assert image_size(path) == (50, 30)


def test_a_jpeg_is_read_as_pillow_decodes_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", tissue(64, 64), quality=90)
    with Image.open(path) as image:
        assert np.array_equal(read_image(path), np.asarray(image))


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_truncated_image_is_refused(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # another library's habit must not weaken the check
    path = save(tmp_path / f"a.{ending}", tissue(200, 200))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PathUpError, match="truncated or damaged"):
        read_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True, "the setting is given back"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("a.png", b"", "empty"), ("a.jpg", b"not an image at all", "not an image"), ("b.png", None, "does not exist")],
)
def test_no_image_is_refused(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PathUpError, match=said):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("mode", "ending", "said"),
    [
        ("RGBA", "png", "alpha"),
        ("LA", "png", "alpha"),
        ("L", "png", "greyscale"),
        ("P", "png", "palette"),
        ("1", "png", "black-and-white"),
        ("CMYK", "jpg", "CMYK"),
        ("CMYK", "tif", "CMYK"),
        ("RGBA", "tif", "alpha"),
        ("RGBA", "webp", "alpha"),
        ("I;16", "png", "16 bits"),
    ],
)
def test_other_colour_kinds_are_refused(tmp_path: Path, mode: str, ending: str, said: str) -> None:
    path = tmp_path / f"a.{ending}"
    if mode == "I;16":
        Image.fromarray(np.full((20, 20), 4000, np.uint16)).save(path)
    else:
        picture = Image.fromarray(tissue(20, 20)).convert(mode)
        if "A" in mode:
            picture.putalpha(100)
        picture.save(path)
    with pytest.raises(PathUpError, match=said):
        read_image(path)
    with pytest.raises(PathUpError, match="8-bit RGB was needed"):
        image_size(path)


def test_a_transparent_colour_is_alpha(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(tissue(20, 20)).save(path, transparency=(255, 255, 255))
    with pytest.raises(PathUpError, match="transparent colour"):
        read_image(path)


def _png(width: int, height: int, depth: int, body: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def test_16_bit_rgb_is_refused_though_pillow_opens_it_as_8_bit(tmp_path: Path) -> None:
    png = tmp_path / "a.png"
    png.write_bytes(_png(4, 4, 16, (b"\x00" + b"\x12\x34" * 12) * 4))
    tif = tmp_path / "a.tif"
    tifffile.imwrite(tif, np.zeros((8, 8, 3), np.uint16), photometric="rgb")
    with Image.open(png) as image:
        assert image.mode == "RGB", "if Pillow told the depth, this check would not be needed"
    for path in (png, tif):
        with pytest.raises(PathUpError, match="16 bits per channel"):
            read_image(path)


@pytest.mark.parametrize(("width", "height"), [(20_001, 20_000), (60_000, 60_000)])
def test_an_image_beyond_the_limit_is_refused_from_its_header(tmp_path: Path, width: int, height: int) -> None:
    # 20,000 x 20,000 is the limit; Pillow itself raises only beyond twice its own, so both ways are tried
    path = tmp_path / "a.png"
    path.write_bytes(_png(width, height, 8, b""))
    with pytest.raises(PathUpError, match="400,000,000 that a region image may have"):
        image_size(path)


def test_an_image_above_pillows_limit_but_within_ours_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow would refuse more than 200 pixels
    path = save(tmp_path / "a.png", tissue(40, 40))
    assert read_image(path).shape == (40, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(images, "MAX_REGION_PIXELS", 1599)
    with pytest.raises(PathUpError, match="40 x 40 = 1,600 pixels"):
        read_image(path)


def test_a_file_of_several_images_that_was_cut_short_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pages = np.stack([tissue(100, 100, seed) for seed in range(3)])
    tifffile.imwrite(path, pages, photometric="rgb", compression="zlib")  # compressed, each page has its own tags
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (read_image, image_size):
        with pytest.raises(PathUpError, match=r"a\.tif is truncated or damaged"):
            read(path)


def test_several_images_in_one_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((3, 8, 8, 3), np.uint8), photometric="rgb")
    with pytest.raises(PathUpError, match="holds 3 images"):
        read_image(path)


def test_a_tiff_that_is_to_be_turned_is_refused_and_one_that_is_not_is_read(tmp_path: Path) -> None:
    pixels = tissue(50, 30)
    for turned in (1, 6):
        tifffile.imwrite(tmp_path / f"{turned}.tif", pixels, photometric="rgb", extratags=[(274, "H", 1, turned, True)])
    assert np.array_equal(read_image(tmp_path / "1.tif"), pixels)
    for read in (read_image, image_size):
        with pytest.raises(PathUpError, match=r"to be turned or mirrored \(orientation tag 6\)"):
            read(tmp_path / "6.tif")


def test_threads_that_read_at_once_leave_pillows_limits_as_they_were(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    files = [save(tmp_path / f"{i}.png", tissue(64, 64, i)) for i in range(16)]
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        pixels = list(pool.map(read_image, files * 20))
    assert all(np.array_equal(one, pixels[i % 16]) for i, one in enumerate(pixels))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before
