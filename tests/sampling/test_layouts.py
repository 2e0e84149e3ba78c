from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pathup.errors import PathUpError
from pathup.sampling import layouts
from pathup.sampling.layouts import GLASS, Layout, plain_layout, read_layout
from tests.tiles.made import feature, rectangle, save_geojson

CLASSES = [{"label": "N", "name": "normal tissue"}, {"label": "IC", "name": "invasive carcinoma"}]
LABELS = [spec["label"] for spec in CLASSES]
SIDE = 24
"""Side of the canvas of the property tests: small enough to paint pixel by pixel."""


def breast() -> list[dict[str, Any]]:
    """Two pieces of tissue on glass, as QuPath exports them, on 4096 x 3072 px.

    The left piece has a hole (a duct) and a lesion, drawn after it; the right one is two islands of one annotation.
    """
    left = _wavy(1300, 1500, 1100, 400)
    islands = [[_wavy(3200, 900, 500, 250)], [_wavy(3300, 2300, 450, 250)]]
    right = feature("Normal tissue") | {"geometry": {"type": "MultiPolygon", "coordinates": islands}}
    return [
        feature("Normal tissue", left, _wavy(900, 1000, 200, 120)),
        right,
        feature("Invasive carcinoma", _wavy(1600, 1800, 450, 300)),
        feature("Glass", _wavy(1700, 1800, 90, 60)),  # a tear within the lesion
        feature("Tumor", rectangle(0, 0, 9, 9), kind="detection"),
    ]


def _wavy(x: float, y: float, radius: float, points: int) -> list[list[float]]:
    """A lobed, closed outline."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    reach = radius * (1 + 0.08 * np.sin(5 * turn) + 0.03 * np.cos(23 * turn))
    ring = np.stack([x + reach * np.cos(turn), y + reach * np.sin(turn)], axis=1).round(2).tolist()
    return [*ring, ring[0]]


def _read(tmp_path: Path, *features: dict[str, Any], **how: Any) -> Layout:
    how = {"size_px": (100, 200), "mpp": 0.5, "background": "N"} | how
    return read_layout(save_geojson(tmp_path / "l.geojson", *features), how.pop("classes", CLASSES), **how)


def _grid(size_px: tuple[int, int], side: float, stride: float) -> np.ndarray:
    """Boxes of `side` at every `stride`, row by row."""
    tops, lefts = np.meshgrid(*(np.arange(0, n - side + 1e-9, stride) for n in size_px), indexing="ij")
    corners = np.stack([tops.ravel(), lefts.ravel()], axis=1)
    return np.concatenate([corners, corners + side], axis=1)


# -- made layouts and what a slow painter sees ---------------------------------------------------------------------

Areas = list[tuple[str, Any]]


@st.composite
def blocks(draw: st.DrawFn) -> tuple[str, Areas]:
    """Areas made of whole pixels: rectangles, some with a hole, some of several pieces."""

    def rectangles() -> Any:
        x, y = draw(st.integers(0, SIDE - 1)), draw(st.integers(0, SIDE - 1))
        return shapely.box(x, y, draw(st.integers(x + 1, SIDE)), draw(st.integers(y + 1, SIDE)))

    areas: Areas = []
    for _ in range(draw(st.integers(1, 6))):
        area = rectangles().union(rectangles()) if draw(st.booleans()) else rectangles()
        cut = area.difference(rectangles()) if draw(st.booleans()) else area
        areas.append((draw(st.sampled_from([*LABELS, GLASS])), area if cut.is_empty else cut))
    return draw(st.sampled_from([*LABELS, GLASS])), areas


@st.composite
def slanted(draw: st.DrawFn) -> tuple[str, Areas]:
    """Areas with corners anywhere: stars round a point, of up to 40 corners."""
    areas: Areas = []
    for _ in range(draw(st.integers(1, 5))):
        seed = draw(st.integers(0, 2**32 - 1))
        noise = np.random.default_rng(seed)
        turn = np.sort(noise.uniform(0, 2 * np.pi, draw(st.integers(3, 40))))
        reach = noise.uniform(1, 8, len(turn))
        centre = noise.uniform(8, SIDE - 8, 2)
        star = shapely.Polygon(centre + np.stack([reach * np.cos(turn), reach * np.sin(turn)], axis=1)).buffer(0)
        if star.area > 0:
            areas.append((draw(st.sampled_from([*LABELS, GLASS])), star))
    return draw(st.sampled_from([*LABELS, GLASS])), areas


def _painted(background: str, areas: Areas, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The label at each point: areas painted one over the other."""
    seen = np.full(x.shape, background, object)
    for label, area in areas:
        seen[shapely.contains_xy(area, x, y)] = label
    return seen


def _centres(per_px: int) -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(SIDE * per_px) + 0.5) / per_px
    x, y = np.meshgrid(at, at)
    return x, y


boxes_px = st.lists(
    st.tuples(st.integers(0, SIDE - 1), st.integers(0, SIDE - 1), st.integers(1, SIDE), st.integers(1, SIDE)).map(
        lambda b: (b[0], b[1], min(b[0] + b[2], SIDE), min(b[1] + b[3], SIDE))
    ),
    min_size=1,
    max_size=20,
)


def _painted_shares(seen: np.ndarray, labels: list[str], box: tuple[int, ...], per_px: int) -> tuple[np.ndarray, float]:
    """Shares of a box by counting points, and its pixels of tissue."""
    top, left, bottom, right = (edge * per_px for edge in box)
    inside = seen[top:bottom, left:right]
    counts = np.asarray([(inside == label).sum() for label in labels], float)
    return counts / max(counts.sum(), 1), counts.sum() / per_px**2


@given(blocks(), boxes_px)
@settings(max_examples=150, deadline=None)
def test_of_whole_pixels_a_painter_sees_the_same(made: tuple[str, Areas], boxes: list[tuple[int, ...]]) -> None:
    background, areas = made
    layout = Layout((SIDE, SIDE), LABELS, background, areas)
    seen = _painted(background, areas, *_centres(1))
    assert layout.labels == [label for label in LABELS if (seen == label).any()]
    assert layout.has_glass == bool((seen == GLASS).any())
    assert layout.fraction_glass == pytest.approx((seen == GLASS).mean())
    assert layout.class_areas() == pytest.approx({label: (seen == label).mean() for label in layout.labels})
    for box, shares, glass in zip(boxes, layout.shares(boxes), layout.glass(boxes), strict=True):
        expected, _ = _painted_shares(seen, layout.labels, box, 1)
        assert shares == pytest.approx(expected, abs=1e-6)  # float32
        assert glass == (not expected.any())
    mask = layout.glass_mask(0, 0, SIDE, SIDE, 1.0)
    assert np.array_equal(mask, seen == GLASS)
    if layout.has_glass:  # a pixel is glass where a box of that pixel is
        assert np.array_equal(mask.ravel(), layout.glass(_grid((SIDE, SIDE), 1, 1)))


@given(slanted(), boxes_px)
@settings(max_examples=100, deadline=None)
def test_of_any_outline_a_painter_sees_nearly_the_same(
    made: tuple[str, Areas], boxes: list[tuple[int, ...]]
) -> None:
    background, areas = made
    layout = Layout((SIDE, SIDE), LABELS, background, areas)
    per_px = 8
    seen = _painted(background, areas, *_centres(per_px))
    outline = sum(area.length for _, area in areas)
    for box, shares in zip(boxes, layout.shares(boxes), strict=True):
        assert shares.sum() == pytest.approx(1, abs=1e-6) or not shares.any()
        expected, tissue_px = _painted_shares(seen, layout.labels, box, per_px)
        # a point stands for 1/8 px each way, and is wrong at most where an outline passes within its diagonal
        wrong_px = 2 * outline * np.sqrt(2) / per_px
        if tissue_px > 0:
            assert np.abs(shares - expected).max() <= wrong_px / tissue_px + 1e-6


@given(slanted(), st.integers(-3, 4), st.integers(-3, 4), st.floats(0.3, 3))
@settings(max_examples=150, deadline=None)
def test_a_cell_of_the_mask_is_what_its_centre_is(made: tuple[str, Areas], top: int, left: int, px: float) -> None:
    background, areas = made
    layout = Layout((SIDE, SIDE), LABELS, background, areas)
    height, width = int((SIDE - 1) / px) - top, int((SIDE - 1) / px) - left
    mask = layout.glass_mask(top, left, height, width, px)
    assert mask.shape == (height, width) and mask.dtype == bool
    y, x = (np.arange(height) + 0.5 + top) * px, (np.arange(width) + 0.5 + left) * px
    expected = _painted(background, areas, *np.meshgrid(x, y)) == GLASS
    assert np.array_equal(mask, expected)
    # any part of the grid has the same values
    part = layout.glass_mask(top + 2, left + 1, height - 2, width - 1, px)
    assert np.array_equal(part, mask[2:, 1:])


@given(slanted())
@settings(max_examples=60, deadline=None)
def test_the_mask_agrees_with_what_boxes_of_its_cells_see(made: tuple[str, Areas]) -> None:
    layout = Layout((SIDE, SIDE), LABELS, *made)
    boxes = _grid((SIDE, SIDE), 1, 1)
    mask, glass = layout.glass_mask(0, 0, SIDE, SIDE, 1.0).ravel(), layout.glass(boxes)
    assert np.array_equal(glass, ~layout.shares(boxes).any(axis=1))
    assert mask[glass].all()  # a cell of nothing but glass has glass at its centre


@given(slanted(), boxes_px)
@settings(max_examples=50, deadline=None)
def test_how_areas_are_cut_up_changes_nothing(made: tuple[str, Areas], boxes: list[tuple[int, ...]]) -> None:
    whole = Layout((SIDE, SIDE), LABELS, *made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "_VERTICES", 6)
        patch.setattr(layouts, "_AT_ONCE", 3)
        cut = Layout((SIDE, SIDE), LABELS, *made)
        assert cut.shares(boxes) == pytest.approx(whole.shares(boxes), abs=1e-6)
    assert cut.digest == whole.digest


def test_a_quick_cut_that_goes_wrong_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lesion = shapely.Polygon(_wavy(500, 500, 400, 1000))
    boxes = _grid((1000, 1000), 100, 50)
    cut = Layout((1000, 1000), LABELS, "N", [("IC", lesion)]).shares(boxes)
    monkeypatch.setattr(shapely, "clip_by_rect", lambda part, *side: shapely.box(*side))
    assert Layout((1000, 1000), LABELS, "N", [("IC", lesion)]).shares(boxes) == pytest.approx(cut, abs=1e-6)
    expected = shapely.area(shapely.intersection(lesion, shapely.box(*boxes[:, [1, 0, 3, 2]].T))) / 100**2
    assert cut[:, 1] == pytest.approx(expected, abs=1e-6)


# -- what is read ---------------------------------------------------------------------------------------------------


def test_later_areas_lie_on_top(tmp_path: Path) -> None:
    lower, upper = feature("IC", rectangle(0, 0, 60, 60)), feature("Normal tissue", rectangle(30, 0, 90, 60))
    box = [[0, 0, 60, 60]]
    for order, expected in (((lower, upper), [0.5, 0.5]), ((upper, lower), [0, 1])):
        layout = _read(tmp_path, *order)
        assert layout.labels == ["N", "IC"]  # the model's order, whatever the file's
        assert layout.shares(box)[0] == pytest.approx(expected)
    covered = _read(tmp_path, lower, feature("N", rectangle(0, 0, 70, 70)))
    assert covered.labels == ["N"]
    assert covered.shares(box).tolist() == [[1]]


def test_the_class_below_counts_only_where_it_is_seen(tmp_path: Path) -> None:
    layout = _read(tmp_path, feature("IC", rectangle(0, 0, 200, 100)))
    assert (layout.labels, layout.has_glass) == (["IC"], False)
    layout = _read(tmp_path, feature("IC", rectangle(0, 0, 200, 50)), background=GLASS)
    assert (layout.labels, layout.fraction_glass, layout.class_areas()) == (["IC"], 0.5, {"IC": 0.5})


def test_a_real_looking_layout(tmp_path: Path) -> None:
    size_px = (3072, 4096)
    layout = _read(tmp_path, *breast(), size_px=size_px, background="Glass")
    assert layout.labels == ["N", "IC"]
    at = {"tissue": (1500, 400), "hole": (1000, 900), "lesion": (1500, 1600), "tear": (1800, 1700)}
    at |= {"glass": (100, 2400), "upper island": (900, 3200), "lower island": (2300, 3300)}
    at |= {"between the islands": (1600, 3250)}
    boxes = np.asarray([(y - 8, x - 8, y + 8, x + 8) for y, x in at.values()])
    glass = dict(zip(at, layout.glass(boxes).tolist(), strict=True))
    assert [place for place in at if glass[place]] == ["hole", "tear", "glass", "between the islands"]
    shares = dict(zip(at, layout.shares(boxes).tolist(), strict=True))
    assert [place for place in at if shares[place] == [0, 1]] == ["lesion"]
    assert [place for place in at if shares[place] == [1, 0]] == ["tissue", "upper island", "lower island"]
    mask = layout.glass_mask(0, 0, 768, 1024, 4.0)
    # a centre can err within 2 px of the 20,000 px of outlines: 80,000 of 12.6 million px, 0.0064
    assert mask.mean() == pytest.approx(layout.fraction_glass, abs=0.007)
    for place, (y, x) in at.items():
        assert mask[y // 4, x // 4] == glass[place]
    assert sum(layout.class_areas().values()) + layout.fraction_glass == pytest.approx(1)
    # the tissue in windows side by side is the tissue on the canvas
    left, right, lesion, tear = (shapely.geometry.shape(f["geometry"]) for f in breast()[:4])
    tissue = left.union(right).union(lesion).difference(tear)
    assert layout._areas(_grid(size_px, 128, 128)).sum() == pytest.approx(tissue.area, rel=1e-9)


def test_micrometres(tmp_path: Path) -> None:
    in_px = _read(tmp_path, feature("IC", rectangle(20, 40, 60, 80)))
    in_um = _read(tmp_path, feature("IC", rectangle(10, 20, 30, 40)), unit="um")  # half a micrometre a pixel
    assert in_um.digest == in_px.digest
    assert in_um.shares([[40, 20, 80, 60]]).tolist() == [[0, 1]]


def test_glass_may_be_a_class_of_the_model(tmp_path: Path) -> None:
    classes = [*CLASSES, {"label": "glass", "name": "empty glass"}]
    layout = _read(tmp_path, feature("Glass", rectangle(0, 0, 50, 50)), classes=classes)
    assert (layout.labels, layout.has_glass) == (["N", "glass"], False)
    assert layout.shares([[0, 0, 50, 100]]).tolist() == [[0.5, 0.5]]
    layout = _read(tmp_path, feature("N", rectangle(0, 0, 50, 50)), classes=classes, background="glass")
    assert (layout.labels, layout.has_glass) == (["N", "glass"], False)


def test_what_reaches_beyond_the_canvas_counts_for_nothing(tmp_path: Path) -> None:
    layout = _read(tmp_path, feature("IC", rectangle(0, 0, 100, 100)), background="N")
    assert layout.shares([[-50, -100, 300, 500], [-9, -9, 1, 1]]).tolist() == [[0.5, 0.5], [0, 1]]
    with pytest.raises(ValueError, match="box 1 has no area"):
        layout.shares([[0, 0, 9, 9], [100, 0, 200, 9]])


def test_an_outline_over_the_rim_by_a_rounding_fits(tmp_path: Path) -> None:
    assert _read(tmp_path, feature("IC", rectangle(-0.5, 0, 200.9, 100))).labels == ["IC"]


def test_a_plain_layout_is_one_class_without_end() -> None:
    layout = plain_layout("N", (100, 100))
    assert (layout.labels, layout.has_glass, layout.fraction_glass) == (["N"], False, 0)
    assert layout.class_areas() == {"N": 1}
    boxes = [[0, 0, 9, 9], [90, 90, 400, 400]]
    assert layout.shares(boxes).tolist() == [[1], [1]]
    assert layout.glass(boxes).tolist() == [False, False]
    assert not layout.glass_mask(0, 0, 4, 5, 8.0).any()
    assert layout.digest != plain_layout("IC", (100, 100)).digest


def test_no_boxes(tmp_path: Path) -> None:
    layout = _read(tmp_path, feature("IC", rectangle(0, 0, 50, 50)), background=GLASS)
    for made in (layout, plain_layout("N", (9, 9))):
        assert made.shares(np.empty((0, 4))).shape == (0, 1)
        assert made.glass(np.empty((0, 4))).shape == (0,)


def test_the_digest_tells_layouts_apart_and_nothing_else(tmp_path: Path) -> None:
    a, b = feature("IC", rectangle(0, 0, 50, 50)), feature("N", rectangle(20, 0, 90, 50))
    turned = feature("invasive carcinoma", [[50, 0], [50, 50], [0, 50], [0, 0], [50, 0]])
    cell = feature(None, rectangle(0, 0, 9, 9), kind="cell")
    first = _read(tmp_path, a, b).digest
    assert _read(tmp_path, cell, turned, b).digest == first
    others = [
        _read(tmp_path, b, a),
        _read(tmp_path, a),
        _read(tmp_path, a, feature("N", rectangle(21, 0, 90, 50))),
        _read(tmp_path, a, feature("glass", rectangle(20, 0, 90, 50))),
        _read(tmp_path, a, b, background="IC"),
        _read(tmp_path, a, b, size_px=(100, 201)),
    ]
    assert len({first, *(layout.digest for layout in others)}) == 7


IC = feature("IC", rectangle(0, 0, 50, 50))


@pytest.mark.parametrize(
    ("content", "how", "said"),
    [
        ("{ not json", {}, "not readable JSON"),
        ({"type": "Polygon"}, {}, "no GeoJSON of features"),
        ([], {}, "holds no annotations"),
        ([feature("cell", rectangle(0, 0, 9, 9), kind="cell")], {}, "holds no annotations"),
        ([feature("Invasive carcinom", rectangle(0, 0, 9, 9))], {}, "did you mean 'invasive carcinoma'"),
        ([feature("glas", rectangle(0, 0, 9, 9))], {}, "did you mean 'glass'"),
        ([IC, feature(None, rectangle(0, 0, 9, 9))], {}, "annotation 2 .* has no class"),
        ([feature("IC", rectangle(5, 5, 5, 9))], {}, "annotation 1 .*encloses no area; draw it again"),
        ([IC, feature("IC", rectangle(200.2, 0, 200.8, 9))], {}, "annotation 2 .*no area of the image of 200 x 100"),
        (
            [IC, feature("IC", rectangle(100, 50, 300.5, 90))],
            {},
            r"spans \(0, 0\) to \(300, 90\) px, .*image of 200 x 100 px; ask for a --size of 301x100 or more$",
        ),
        ([feature("IC", rectangle(-9, 0, 20, 90))], {}, r"move its outlines to begin at \(0, 0\)$"),
        ([feature("IC", rectangle(0, 0, 190, 90))], {"unit": "um"}, "380x180 or more, .*--layout-unit px, which would"),
        ([feature("IC", rectangle(0, 0, 300, 90))], {"mpp": 2.0}, "300x100 or more, .*--layout-unit um, which would"),
        ([feature("IC", rectangle(900, 900, 1000, 1000))], {"unit": "um"}, "--size of 2000x2000 or more$"),
        ([IC], {"background": "Nn"}, "unknown label 'Nn'; did you mean 'N'.*glass"),
        ([feature("glass", rectangle(0, 0, 9, 9))], {"background": "glass"}, "nothing but glass .*N, IC"),
        ([feature("glass", rectangle(0, 0, 200, 100))], {}, "nothing but glass"),
        ([IC, feature("glass", rectangle(0, 0, 90, 90))], {"background": "glass"}, "nothing but glass"),
    ],
)
def test_wrong_layouts_are_one_sentence(tmp_path: Path, content: Any, how: dict[str, Any], said: str) -> None:
    path = tmp_path / "l.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(PathUpError, match=said) as error:
        read_layout(path, CLASSES, **({"size_px": (100, 200), "mpp": 0.5, "background": "N"} | how))
    assert "\n" not in str(error.value)
