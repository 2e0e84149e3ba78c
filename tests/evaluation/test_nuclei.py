from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pathup.errors import PathUpError
from pathup.evaluation.nested import fill_holes, moments, most_elliptic
from pathup.evaluation.nuclei import Nuclei, nuclei_properties, segment_nuclei
from tests.evaluation.made_nuclei import grid, painted, scattered
from tests.tiles.made import SHARED

COUNTS = Path(__file__).with_name("nuclei_counts.json")


def measured(pixels: np.ndarray, mpp: float = 0.5) -> Nuclei:
    return nuclei_properties(segment_nuclei(pixels, mpp), mpp)


@pytest.mark.parametrize(("length", "width"), [(2.5, 2.5), (4, 2.5), (5, 3), (6, 2)])
@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_painted_ellipses_are_found_with_their_shape(length: float, width: float, mpp: float) -> None:
    direction = 0.5
    true = grid(64, 16, length, width, direction)
    found = measured(painted(64, true, mpp), mpp)
    assert found.count == len(true) == 16 and found.whole.all()
    assert np.median(found.area_um2) == pytest.approx(np.pi * length * width, rel=0.12)  # half a pixel of outline
    loose = 0.12 if length > width else 0.35  # of a circle of 10 pixels, one pixel more along one axis gives 0.4
    assert np.median(found.eccentricity) == pytest.approx(np.sqrt(1 - (width / length) ** 2), abs=loose)
    assert np.median(found.x_um[found.x_um < 16]) == pytest.approx(8, abs=0.3)
    assert found.neighbour_distance_um() == pytest.approx(16, abs=0.3)
    if length > width:
        assert abs(np.median(found.orientation) - direction) < 0.1  # radians, 6 degrees


def test_scales_of_one_scene_agree() -> None:
    true = scattered(56, 22, 3.5, 2.5)
    true[:, :2] += 4  # none cut by the border, where a pixel decides
    fine, coarse, odd = (measured(painted(64, true, mpp), mpp) for mpp in (0.25, 0.5, 0.4))
    assert fine.count == coarse.count == odd.count
    for other in (fine, odd):
        assert np.median(other.area_um2) == pytest.approx(np.median(coarse.area_um2), rel=0.08)
        assert other.neighbour_distance_um() == pytest.approx(coarse.neighbour_distance_um(), rel=0.03)


def test_pale_and_dark_stain_give_the_same_count() -> None:
    true = grid(64, 12, 3, 2.5)
    assert [measured(painted(64, true, haematoxylin=stain)).count for stain in (0.6, 0.9, 1.6)] == [25] * 3


def test_touching_nuclei_are_parted() -> None:
    pairs = grid(64, 16, 3, 3)
    apart = np.array([2.8, 0, 0, 0, 0])  # centres 5.6 um from each other, radii 3: they overlap by 0.4 um
    assert measured(painted(64, np.concatenate([pairs - apart, pairs + apart]))).count == 32


def test_what_is_no_nucleus_is_left_out() -> None:
    assert measured(painted(64, np.empty((0, 5)))).count == 0
    assert measured(np.full((128, 128, 3), 255, np.uint8)).count == 0
    assert measured(np.zeros((128, 128, 3), np.uint8)).count == 0
    dust = grid(64, 16, 0.8, 0.8)  # 2 um2
    assert measured(painted(64, dust)).count == 0
    blood = painted(64, grid(64, 16, 3, 3), haematoxylin=0, eosin=0.2).astype(int)
    red = (blood.mean(2) < np.median(blood.mean(2)) - 20)[..., None]
    assert measured(np.where(red, [200, 60, 60], blood).astype(np.uint8)).count == 0


def test_directions() -> None:
    aligned = measured(painted(64, grid(64, 16, 4.5, 2, 1.2)))
    assert aligned.orientation_order() > 0.95
    random = [measured(painted(96, scattered(96, 40, 4, 2, seed), seed=seed)).orientation_order() for seed in range(6)]
    assert abs(np.mean(random)) < 0.08  # its deviation is about 1 / n of 40 in each of 6 fields
    few = measured(painted(64, grid(64, 32, 4.5, 2)))
    assert few.count == 4 and np.isnan(few.orientation_order()) and np.isfinite(few.neighbour_distance_um())
    single = measured(painted(64, np.array([[32, 32, 4, 3, 0.0]])))
    assert single.count == 1 and np.isnan(single.neighbour_distance_um())


def test_order_has_no_bias_by_number() -> None:
    draws = np.random.default_rng(0)
    ones = np.ones(5)
    orders = [
        Nuclei(ones, 0.9 * ones, draws.uniform(0, np.pi, 5), ones, ones, ones > 0, ones > 0).orientation_order()
        for _ in range(2000)
    ]
    assert abs(np.mean(orders)) < 0.02  # |mean|^2 itself would be 1 / 5


@pytest.mark.parametrize("turn", range(8))
def test_flips_and_turns_change_nothing(turn: int) -> None:
    pixels = painted(64, scattered(64, 30, 3.5, 2.5, 3))
    turned = np.rot90(pixels if turn < 4 else pixels[::-1], turn)
    one, other = measured(pixels), measured(np.ascontiguousarray(turned))
    assert one.count == other.count
    assert np.median(other.area_um2) == pytest.approx(np.median(one.area_um2), rel=0.02)
    assert other.orientation_order() == pytest.approx(one.orientation_order(), abs=0.03)


def test_counting_at_the_border_has_no_bias() -> None:
    inside, counted = 0, 0
    for seed in range(12):
        true = scattered(64, 70, 3.5, 2.6, seed, beyond=8)
        centres = true[:, :2]
        inside += int(((centres >= 0) & (centres < 64)).all(1).sum())
        found = measured(painted(64, true, seed=seed))
        counted += found.count
        assert (~found.whole).any()
    assert inside > 350 and counted == pytest.approx(inside, rel=0.03)  # all of those cut would be 25 % more


def test_coarse_tiles_and_other_pixels_are_refused() -> None:
    pixels = painted(64, grid(64, 16, 3, 3))
    for mpp in (2.0, 0.0, -1.0, float("nan")):
        with pytest.raises(PathUpError, match="micrometres per pixel"):
            segment_nuclei(pixels, mpp)
    with pytest.raises(PathUpError, match="8-bit RGB"):
        segment_nuclei(pixels[..., 0], 0.5)


def test_labels_are_numbered_without_gaps() -> None:
    labels = segment_nuclei(painted(64, grid(64, 16, 3, 3)), 0.5)
    assert labels.dtype == np.int32 and labels.shape == (128, 128)
    assert np.unique(labels).tolist() == list(range(17))


def test_moments_agree_with_those_of_numpy_and_join() -> None:
    labels = np.zeros((20, 30), int)
    labels[3:9, 4:20], labels[9:14, 6:11] = 1, 2
    shape = moments(labels, 2)
    rows, columns = np.nonzero(labels == 1)
    assert (shape.area[0], shape.x[0], shape.y[0]) == (96, columns.mean(), rows.mean())
    assert shape.xx[0] == pytest.approx(columns.var() + 1 / 12) == pytest.approx(16**2 / 12)
    one, two = shape.each()
    both = moments((labels > 0).astype(int), 1)
    for name in ("area", "x", "y", "xx", "yy", "xy"):
        assert getattr(one.joined(two), name) == pytest.approx(getattr(both, name)[0])
    assert both.ellipticity()[0] < shape.ellipticity().min()  # together they are an L


def test_holes_are_filled_and_bays_are_not() -> None:
    mask = np.ones((30, 30), bool)
    mask[5:8, 5:8] = mask[20:, 14:16] = False
    mask[10:19, 10:19] = False  # 81 pixels: more than a nucleolus
    filled = fill_holes(mask)
    assert filled[5:8, 5:8].all() and not filled[20:, 14:16].any() and not filled[10:19, 10:19].any()


def test_of_nested_components_the_more_elliptic_are_kept() -> None:
    y, x = np.indices((40, 60))
    hills = np.maximum(1 - np.hypot(x - 20, y - 20) / 12, 1 - np.hypot(x - 40, y - 20) / 12)
    kept = most_elliptic(hills, hills > 0.05, [0.1, 0.3, 0.5], 10)
    assert len(np.unique(kept)) == 3 and kept[20, 20] != kept[20, 40]
    assert len(np.unique(most_elliptic(hills[:, :30], hills[:, :30] > 0.05, [0.5], 10))) == 2


@pytest.mark.skipif(
    not (SHARED / "data" / "regions").is_dir(), reason=f"real regions are not at hand ({SHARED}/data/regions)"
)
@pytest.mark.parametrize(("which", "fields_within"), [("first", 7), ("second", 6), ("second, other reader", 4)])
def test_counts_on_real_regions_agree_with_counts_by_hand(which: str, fields_within: int) -> None:
    from pathup.slides.images import read_image

    by_hand, found = [], []
    for field in (f for f in json.loads(COUNTS.read_text())["fields"] if f["set"] == which):
        place = slice(field["y"], field["y"] + field["side"]), slice(field["x"], field["x"] + field["side"])
        by_hand.append(field["count"])
        found.append(measured(read_image(SHARED / "data" / "regions" / field["file"])[place], field["mpp"]).count)
    hand, count = np.array(by_hand), np.array(found)
    assert len(hand) == 10
    # Within 15 % holds for all fields together (-8.5 %; -12.4 % and -10.5 % by the two readers of the second set), for
    # the median field, and for 8; 7 and 5 of the 10. It does not hold where there are few nuclei among fibres (keloid:
    # 8 by hand, 16 found) or crowded small ones (polyp: 108 by hand and 71 found, 120 or 125 and 75).
    assert count.sum() == pytest.approx(hand.sum(), rel=0.15)
    off = abs(count - hand) / hand
    assert np.median(off) <= 0.15 and (off <= 0.15).sum() >= fields_within  # one less than now: a pixel may tip a field
    assert np.corrcoef(hand, count)[0, 1] > 0.9
