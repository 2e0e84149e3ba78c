from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shapely import Polygon, box, to_wkb

from pathup.errors import PathUpError
from pathup.slides.reader import RESIZE_FILTER
from pathup.tiles.cutting import (
    covering_positions,
    cut_region,
    positions,
    scan_region,
    source_sha256,
    tissue_fraction,
)
from pathup.tiles.regions import Region
from tests.tiles.made import save, save_slide, tiny, tissue


def _region(file: Path, **values: object) -> Region:
    defaults = {"name": "r", "place": file.name, "label": "A", "slide": "s", "patient": "p", "assume_mpp": 0.5}
    return Region(file=file, **(defaults | values))  # type: ignore[arg-type]


@given(st.integers(0, 3000), st.integers(1, 600), st.floats(1, 700))
def test_positions_are_every_place_that_fits(length: int, field: int, stride: float) -> None:
    starts = positions(length, field, stride)
    assert all(s >= 0 and s + field <= length for s in starts)
    assert starts == sorted(set(starts))
    assert all(abs(s - i * stride) <= 0.5 for i, s in enumerate(starts))
    assert np.floor(len(starts) * stride + 0.5) + field > length, "one more would not fit"


def test_positions_by_hand() -> None:
    assert positions(2048, 512, 256) == [0, 256, 512, 768, 1024, 1280, 1536]  # (2048 - 512) / 256 + 1 = 7
    assert positions(511, 512, 256) == []
    assert positions(300, 100, 100.25) == [0, 100]  # the third would start at 200.5, rounded 201
    assert positions(301, 100, 100.25) == [0, 100, 201]


@given(st.integers(0, 900), st.integers(1, 1000), st.integers(1, 300), st.integers(1, 300))
def test_covering_positions_stay_on_the_slide_and_cover(start: int, length: int, field: int, stride: int) -> None:
    limit = 1000
    stride = min(stride, field)  # a recipe's overlap is never negative
    length = min(length, limit - start)
    starts = covering_positions(start, length, field, stride, limit)
    assert all(s >= 0 and s + field <= limit for s in starts)
    needed = max(1, -(-(length - field) // stride) + 1)
    if (needed - 1) * stride + field <= limit:
        assert starts[0] <= start
        assert starts[-1] + field >= start + length
    else:
        assert len(starts) < needed, "the grid that would leave the slide loses fields, not the slide its rim"


def test_background_rule() -> None:
    white, black = np.full((8, 8, 3), 243, np.uint8), np.zeros((8, 8, 3), np.uint8)
    grey = np.full((8, 8, 3), 150, np.uint8)
    assert [tissue_fraction(p) for p in (white, black, grey)] == [0, 0, 0]
    assert tissue_fraction(tissue(32, 32)) > 0.99
    half = np.concatenate([white, np.full((8, 8, 3), (210, 150, 190), np.uint8)])
    assert tissue_fraction(half) == 0.5
    edge = np.array([[[237, 225, 230], [238, 226, 230], [236, 225, 230]]], np.uint8)
    assert tissue_fraction(edge) == pytest.approx(1 / 3), "at most 225 and at least 12 apart; the others miss one each"


def test_fields_and_tiles_of_a_region(tmp_path: Path) -> None:
    pixels = tissue(300, 160)
    region, recipe = _region(save(tmp_path / "r.png", pixels)), tiny().tiles
    scan = scan_region(region, recipe)
    overview = [f for f in scan.fields if f.level == "overview"]
    patch = [f for f in scan.fields if f.level == "patch"]
    assert [(f.x, f.y, f.width, f.mpp) for f in overview] == [(0, 0, 128, 2.0), (128, 0, 128, 2.0)]
    assert len(patch) == 9 * 5  # 300 // 32 by 160 // 32
    assert scan.left_out == {"overview": {}, "patch": {}}
    names = [tmp_path / "out" / f"{i}.png" for i in range(len(scan.fields))]
    cut_region(region, scan.fields, recipe, names)
    for field, name in zip(scan.fields, names, strict=True):
        with Image.open(name) as tile:
            part = Image.fromarray(pixels[field.y : field.y + field.height, field.x : field.x + field.width])
            expected = part if field.level == "patch" else part.resize((32, 32), RESIZE_FILTER)
            assert np.array_equal(np.asarray(tile), np.asarray(expected))


def test_a_20x_and_a_40x_slide_give_the_same_physical_fields(tmp_path: Path) -> None:
    coarse = tissue(512, 384)
    fine = np.repeat(np.repeat(coarse, 2, axis=0), 2, axis=1)
    scans = [
        scan_region(_region(save_slide(tmp_path / f"{mpp}.tif", pixels, mpp=mpp, levels=2)), tiny().tiles)
        for mpp, pixels in ((0.5, coarse), (0.25, fine))
    ]

    def fields(scan: object, mpp: float) -> list[tuple]:
        return [(f.level, f.x * mpp, f.y * mpp, f.width * mpp, f.mpp) for f in scan.fields]  # type: ignore[attr-defined]

    assert fields(scans[0], 0.5) == fields(scans[1], 0.25)
    assert len(scans[0].fields) == 4 * 3 + 16 * 12


def test_an_odd_scale_is_rounded_to_pixels_and_told(tmp_path: Path) -> None:
    region = _region(save(tmp_path / "r.png", tissue(256, 256)), stated_mpp=0.3)
    fields = {f.level: f for f in scan_region(region, tiny().tiles).fields}
    assert (fields["patch"].width, fields["overview"].width) == (53, 213)  # 32 and 128 px at 0.5 are 53.3 and 213.3
    assert fields["patch"].mpp == pytest.approx(53 * 0.3 / 32)


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    import tifffile

    path = tmp_path / "s.tif"
    tifffile.imwrite(
        path, tissue(256, 256), photometric="rgb", tile=(128, 128), resolution=(20_000, 40_000), resolutionunit=3
    )
    field = next(f for f in scan_region(_region(path), tiny().tiles).fields if f.level == "patch")
    assert (field.width, field.height) == (32, 64)  # 16 micrometres both, at 0.5 and 0.25


def test_background_is_left_out_and_counted(tmp_path: Path) -> None:
    pixels = np.full((128, 256, 3), 243, np.uint8)
    pixels[:, :128] = tissue(128, 128)
    scan = scan_region(_region(save(tmp_path / "r.png", pixels)), tiny().tiles)
    assert max(f.x for f in scan.fields) < 128
    assert scan.left_out == {"overview": {"background": 1}, "patch": {"background": 16}}


def test_a_region_smaller_than_a_field_gives_none_at_that_level(tmp_path: Path) -> None:
    scan = scan_region(_region(save(tmp_path / "r.png", tissue(127, 200))), tiny().tiles)
    assert {f.level for f in scan.fields} == {"patch"}
    assert scan.left_out["overview"] == {"region smaller than a field": 1}


def test_annotated_fields_are_those_inside(tmp_path: Path) -> None:
    file = save_slide(tmp_path / "s.tif", tissue(512, 512), mpp=0.5)
    outline = Polygon([(100, 100), (400, 100), (100, 400)], [[(150, 150), (200, 150), (200, 200), (150, 200)]])
    scan = scan_region(_region(file, box=(100, 100, 300, 300), outline=to_wkb(outline)), tiny().tiles)
    kept = {(f.x, f.y) for f in scan.fields if f.level == "patch"}
    starts = [90 + 32 * i for i in range(10)]  # 10 fields of 32 are the fewest that cover 300 px, centred on them
    shares = {(x, y): box(x, y, x + 32, y + 32).intersection(outline).area / 32**2 for x in starts for y in starts}
    assert kept == {place for place, share in shares.items() if share >= 0.5}
    assert scan.left_out["patch"]["outside the annotation"] == 100 - len(kept)
    assert (154, 154) not in kept, "that one lies in the hole"


def test_an_annotation_of_the_whole_slide_is_a_grid_inside_it(tmp_path: Path) -> None:
    file = save_slide(tmp_path / "s.tif", tissue(300, 300), mpp=0.5)
    scan = scan_region(_region(file, box=(0, 0, 300, 300), outline=to_wkb(box(0, 0, 300, 300))), tiny().tiles)
    assert sum(f.level == "patch" for f in scan.fields) == 81  # 300 // 32 = 9 a side


def test_a_table_may_mean_a_rectangle_of_a_slide(tmp_path: Path) -> None:
    pixels = tissue(256, 256)
    file = save(tmp_path / "s.png", pixels)
    scan = scan_region(_region(file, box=(100, 60, 64, 32)), tiny().tiles)
    assert [(f.x, f.y) for f in scan.fields] == [(100, 60), (132, 60)]
    crop = scan_region(_region(file, box=(5000, 7000, 256, 256)), tiny().tiles)
    assert min(f.x for f in crop.fields) == 0, "of the file's own size: the table tells where it was cropped"
    with pytest.raises(PathUpError, match="must be of that size"):
        scan_region(_region(file, box=(200, 0, 64, 64)), tiny().tiles)


def test_mixed_scales(tmp_path: Path) -> None:
    file = save_slide(tmp_path / "s.tif", tissue(256, 256), mpp=0.25)
    assert scan_region(_region(file, stated_mpp=0.2501), tiny().tiles).fields
    with pytest.raises(PathUpError, match=r"listed with 0.5 micrometres per pixel, but its file records 0.25 x 0.25"):
        scan_region(_region(file, stated_mpp=0.5), tiny().tiles)


def test_a_scan_too_coarse_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "r.png", tissue(256, 256))
    assert scan_region(_region(file, stated_mpp=1.0), tiny().tiles).fields, "twice is a 20x slide under a 40x recipe"
    with pytest.raises(PathUpError, match=r"has 2 micrometres per pixel, but level 'patch' needs 0.5.*4.0 times"):
        scan_region(_region(file, stated_mpp=2.0), tiny().tiles)


def test_the_hash_of_a_source(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "a.png").write_bytes(b"pixels")
    assert source_sha256(tmp_path / "a.png") == hashlib.sha256(b"pixels").hexdigest()
    (tmp_path / "s").mkdir()
    (tmp_path / "s.mrxs").write_bytes(b"head")
    (tmp_path / "s" / "Data.dat").write_bytes(b"1")
    before = source_sha256(tmp_path / "s.mrxs")
    (tmp_path / "s" / "Data.dat").write_bytes(b"2")
    assert source_sha256(tmp_path / "s.mrxs") != before, "a slide's pixels lie in its companion files"
