from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pathup.errors import PathUpError
from pathup.tiles.annotations import read_annotations, read_areas
from tests.tiles.made import feature, rectangle, save_geojson, tiny

BOUNDS = (0, 0, 1000, 800)


def _read(tmp_path: Path, content: Any) -> list:
    path = tmp_path / "s.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_annotations(path, tiny(), BOUNDS)


def test_the_three_shapes_of_a_file_read_alike(tmp_path: Path) -> None:
    one = feature("A", rectangle(10, 20, 110, 70))
    for content in ({"type": "FeatureCollection", "features": [one]}, [one], one):
        (found,) = _read(tmp_path, content)
        assert (found.label, found.number, found.box, found.outline.area) == ("A", 1, (10, 20, 110, 70), 5000)


def test_holes_and_multipolygons(tmp_path: Path) -> None:
    parts = [[rectangle(0, 0, 100, 100), rectangle(20, 20, 40, 40)], [rectangle(200, 200, 300, 300)]]
    multi = feature("alpha tissue", []) | {"geometry": {"type": "MultiPolygon", "coordinates": parts}}
    (found,) = _read(tmp_path, [multi])
    assert found.outline.area == 100 * 100 - 20 * 20 + 100 * 100
    assert found.box == (0, 0, 300, 300)


def test_a_crossed_outline_is_repaired(tmp_path: Path) -> None:
    bow = [[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]
    (found,) = _read(tmp_path, [feature("B", bow)])
    assert found.outline.is_valid
    assert found.outline.area == pytest.approx(5000)  # two triangles of 100 x 50 / 2


def test_tissue_that_an_outline_goes_round_twice_is_inside(tmp_path: Path) -> None:
    # a lasso over the squares 0..60 and 30..90, closed along the left edge
    lasso = [[0, 0], [60, 0], [60, 60], [30, 60], [30, 30], [90, 30], [90, 90], [0, 90], [0, 0]]
    (found,) = _read(tmp_path, [feature("A", lasso)])
    assert found.outline.is_valid
    assert found.outline.area == 60 * 30 + 90 * 60  # the square 30..60, round which it goes twice, counts once


def test_outlines_count_from_the_corner_of_the_scanned_part(tmp_path: Path) -> None:
    path = save_geojson(tmp_path / "s.geojson", feature("A", rectangle(0, 10, 100, 50)))
    (found,) = read_annotations(path, tiny(), (300, 400, 100, 50))
    assert found.box == (300, 410, 400, 450)
    with pytest.raises(PathUpError, match="outside the slide of 98 x 50 px"):
        read_annotations(path, tiny(), (300, 400, 98, 50))  # 2 px over; one may be a rounding


def test_other_qupath_objects_are_passed_over(tmp_path: Path) -> None:
    cell = feature(None, rectangle(0, 0, 5, 5), kind="cell")
    found = _read(
        tmp_path,
        [cell, feature("B", rectangle(0, 0, 90, 90)), feature("Tumor", rectangle(0, 0, 5, 5), kind="detection")],
    )
    assert [(a.label, a.number) for a in found] == [("B", 2)]


def test_an_outline_over_the_rim_by_a_rounding_is_cut_to_the_slide(tmp_path: Path) -> None:
    (found,) = _read(tmp_path, [feature("A", rectangle(-0.4, 0, 1000.5, 100))])
    assert found.box == (0, 0, 1000, 100)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{ not json", "not readable JSON"),
        ("", "not readable JSON"),
        ({"type": "Polygon", "coordinates": []}, "no GeoJSON of features"),
        ({"type": "FeatureCollection"}, "no GeoJSON of features"),
        ([1, 2], "no GeoJSON of features"),
        ({"type": "FeatureCollection", "features": []}, "holds no annotations"),
        ([feature("A", rectangle(0, 0, 9, 9), kind="detection")], "holds no annotations"),
        ([feature("Alpa tissue", rectangle(0, 0, 9, 9))], "annotation 1 .*'Alpa tissue'; did you mean 'alpha tissue'"),
        ([feature(None, rectangle(0, 0, 9, 9))], "annotation 1 .* has no class"),
        ([feature("A", rectangle(900, 0, 1100, 99))], r"outside the slide of 1000 x 800 px"),
        ([feature("A", rectangle(5000, 5000, 5100, 5100))], "outside the slide"),
        ([feature("A", rectangle(5, 5, 5, 5))], "encloses no area"),
        ([feature("A", [[0, 0], [1, 1]])], "broken outline|encloses no area"),
        ([feature("A", [[0, "x"], [1, 1], [2, 2], [0, 0]])], "broken outline"),
        ([feature("A") | {"geometry": {"type": "Point", "coordinates": [1, 1]}}], "Point, but an area"),
        ([feature("A") | {"geometry": None}], "without geometry, but an area"),
        ([feature("A") | {"geometry": {"type": "Polygon"}}], "has no list of coordinates"),
        ([feature("A") | {"geometry": {"type": "Polygon", "coordinates": {"x": 1}}}], "has no list of coordinates"),
        ([feature("A", [{"x": 1, "y": 2}])], "broken outline"),
        ([feature("A", [[0, 0], [float("nan"), 9], [9, 9], [0, 0]])], "a point that is not finite"),
        ([feature("A", [[0, 0], [float("inf"), 9], [9, 9], [0, 0]])], "a point that is not finite"),
        ([feature("A", [[0, 0], [10**400, 9], [9, 9], [0, 0]])], "broken outline"),
    ],
)
def test_wrong_annotations(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(PathUpError, match=said):
        _read(tmp_path, content)


CLASSES = [{"label": "A", "name": "alpha tissue"}, {"label": "B", "name": "beta tissue"}]


def test_areas_are_read_by_a_models_classes_wherever_they_lie(tmp_path: Path) -> None:
    cell = feature(None, rectangle(0, 0, 5, 5), kind="cell")
    outside = feature("2_Beta tissue", rectangle(-100, 0, 5000, 10))
    path = save_geojson(tmp_path / "s.geojson", cell, feature("a", rectangle(10, 20, 30, 40)), outside)
    found = read_areas(path, CLASSES)
    assert [(area.label, area.number, area.box) for area in found] == [
        ("A", 2, (10, 20, 30, 40)),
        ("B", 3, (-100, 0, 5000, 10)),
    ]
    assert [area.box for area in read_areas(path, CLASSES, scale=2.0)] == [(20, 40, 60, 80), (-200, 0, 10000, 20)]


def test_areas_of_another_models_classes_and_out_of_scale(tmp_path: Path) -> None:
    path = save_geojson(tmp_path / "s.geojson", feature("B", rectangle(0, 0, 1e200, 9)))
    with pytest.raises(PathUpError, match=r"annotation 1 .*'B'.*known: A, alpha tissue"):
        read_areas(path, CLASSES[:1])
    with pytest.raises(PathUpError, match="a point that is not finite"):
        read_areas(path, CLASSES, scale=1e200)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PathUpError, match="does not exist"):
        read_annotations(tmp_path / "none.geojson", tiny(), BOUNDS)
    assert save_geojson(tmp_path / "s.geojson", feature("A", rectangle(0, 0, 9, 9))).exists()
