from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pathup.errors import PathUpError
from pathup.study.deep_tiles import FolderTiles
from pathup.study.layers import COLOURS, read_layer

IMAGE = FolderTiles(Path("slide.ome.tiff"), (400, 300), (0.5, 0.5))
BARE = FolderTiles(Path("bare.png"), (400, 300), None)


def square(left: float, top: float, side: float) -> list[list[float]]:
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]


def feature(classification: Any, *rings: list[list[float]], kind: str = "annotation") -> dict[str, Any]:
    properties = {"objectType": kind, "classification": classification}
    return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": list(rings)}}


def geojson(folder: Path, *features: dict[str, Any]) -> Path:
    path = folder / "areas.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def labels(folder: Path, numbers: np.ndarray, palette: list[int] | None = None) -> Path:
    image = Image.fromarray(numbers.astype(np.uint8))
    if palette is not None:
        image.putpalette(palette)
    image.save(folder / "labels.png")
    return folder / "labels.png"


def test_areas_have_their_classes_colours_and_holes_in_the_files_order(tmp_path: Path) -> None:
    layer = read_layer(
        geojson(
            tmp_path,
            feature({"name": "DCIS", "color": [200, 0, 16]}, square(0, 0, 200), square(50, 50, 20)),
            feature({"name": "cell"}, square(0, 0, 5), kind="cell"),
            feature({"name": "glass", "colorRGB": -16776961}, square(10, 10, 20.123456)),  # 0xff0000ff, blue
            feature("N", square(300, 200, 100)),
            feature({"name": "DCIS"}, square(250, 0, 10)),
        ),
        IMAGE,
    )
    # a class that has no colour of its own gets the one of its place
    assert layer.classes == [("DCIS", "#c80010"), ("glass", "#0000ff"), ("N", COLOURS[2])]
    assert [number for number, _ in layer.areas] == [0, 1, 2, 0]
    assert [len(rings) for _, rings in layer.areas] == [2, 1, 1, 1]
    assert layer.areas[1][1][0][:6] == [10, 10, 30.12, 10, 30.12, 30.12]
    content = json.loads(json.dumps(layer.content))
    assert content["classes"][0] == {"name": "DCIS", "colour": "#c80010"} and content["picture"] is False


def test_micrometres_become_pixels(tmp_path: Path) -> None:
    path = geojson(tmp_path, feature({"name": "N"}, square(0, 0, 100)))
    assert max(read_layer(path, IMAGE, "um").areas[0][1][0]) == 200  # at 0.5 um a pixel


@pytest.mark.parametrize("palette", [None, [9, 9, 9, 255, 0, 0, 0, 0, 0, 0, 0, 255]])
def test_a_picture_of_class_numbers(tmp_path: Path, palette: list[int] | None) -> None:
    numbers = np.zeros((30, 40), int)
    numbers[:, 10:20], numbers[:, 20:] = 1, 3
    layer = read_layer(labels(tmp_path, numbers, palette), IMAGE)
    colours = ("#ff0000", "#0000ff") if palette else COLOURS[:2]
    assert layer.classes == [("class 1", colours[0]), ("class 3", colours[1])]
    assert layer.picture is not None and layer.content["picture"] is True
    drawn = np.asarray(Image.open(io.BytesIO(layer.picture)))
    assert drawn.shape == (30, 40, 4)
    assert (drawn[..., 3] == np.where(numbers > 0, 255, 0)).all()  # nothing where there is no class
    assert drawn[0, 15].tobytes().hex() == colours[0][1:] + "ff"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist"),
        ("{", "not readable JSON"),
        ("3", "no GeoJSON of features"),
        ('{"type": "FeatureCollection", "features": []}', "holds no annotations"),
        ('[{"type": "Feature", "properties": null, "geometry": null}]', "has no class"),
        ('{"type": "FeatureCollection", "features": [3]}', "no GeoJSON of features"),
        (json.dumps(feature({"name": "N"}, square(0, 0, 302))), "does not fit on slide.ome.tiff of 400 x 300 px"),
        (json.dumps(feature({"name": "N"}, square(-2, 0, 20))), "does not fit"),
        (json.dumps(feature({"name": 3}, square(0, 0, 20))), "has no class"),
    ],
)
def test_what_is_no_layout_of_the_image_is_refused(tmp_path: Path, content: str | None, sentence: str) -> None:
    path = tmp_path / "areas.geojson"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PathUpError, match=sentence):
        read_layer(path, IMAGE)


def test_units_are_known_and_micrometres_want_a_scale(tmp_path: Path) -> None:
    path = geojson(tmp_path, feature({"name": "N"}, square(0, 0, 10)))
    with pytest.raises(PathUpError, match="unknown --layout-unit 'mm'"):
        read_layer(path, IMAGE, "mm")
    with pytest.raises(PathUpError, match=r"bare\.png records no scale; state it with --mpp"):
        read_layer(path, BARE, "um")


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"no image"), "no PNG that can be read"),
        (lambda path: Image.new("RGB", (400, 300)).save(path), "mode RGB"),
        (lambda path: Image.new("L", (400, 300)).save(path), "no class number above 0"),
        (lambda path: Image.new("L", (300, 300), 1).save(path), "belongs to this image"),
        (lambda path: Image.new("L", (9000, 8000), 1).save(path), "shrink it"),
    ],
)
def test_what_is_no_picture_of_class_numbers_is_refused(tmp_path: Path, made: Any, sentence: str) -> None:
    path = tmp_path / "labels.png"
    made(path)
    with pytest.raises(PathUpError, match=sentence):
        read_layer(path, IMAGE)
