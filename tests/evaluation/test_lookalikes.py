from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pathup.errors import PathUpError
from pathup.evaluation import lookalikes
from pathup.evaluation.lookalikes import Descriptors, correlations, describe, nearest, turned
from pathup.evaluation.pair_sheet import laid_over
from tests.tiles.made import save


def texture(side: int, seed: int, grain: float = 3.0) -> np.ndarray:
    """Stained blobs some `grain` px wide: uint8 RGB, (side, side, 3)."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), grain)
    stain = noise / noise.std() * 25
    return (np.array([190, 130, 180]) + stain[..., None] * [1, 1.2, 0.6]).clip(0, 255).astype(np.uint8)


def written(folder: Path, tiles: Sequence[np.ndarray], name: str = "tile") -> list[Path]:
    """Tiles as files."""
    return [save(folder / f"{name}{i:04d}.png", np.ascontiguousarray(t), compress_level=1) for i, t in enumerate(tiles)]


@pytest.fixture(scope="module")
def fields() -> list[np.ndarray]:
    return [texture(192, seed) for seed in range(40)]  # tiles of 128 px and 32 px around


@pytest.fixture(scope="module")
def training(fields: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Descriptors:
    return describe(written(tmp_path_factory.mktemp("training"), [field[32:160, 32:160] for field in fields]))


def test_correlations_agree_with_numpys() -> None:
    draw = np.random.default_rng(0)
    tiles, others = draw.normal(5, 2, (2, 32, 32)), draw.normal(1, 3, (2, 2, 32, 32))
    found = correlations(torch.from_numpy(tiles), torch.from_numpy(others)).numpy()
    assert found.shape == (2, 2, 8, 9, 9)
    for tile in range(2):
        for other in range(2):
            for orientation in range(8):
                middle = turned(tiles[tile], orientation)[4:28, 4:28].ravel()
                for dy in range(-4, 5):
                    for dx in range(-4, 5):
                        part = others[tile, other, 4 + dy : 28 + dy, 4 + dx : 28 + dx].ravel()
                        # 1e-9: both in double precision
                        assert found[tile, other, orientation, 4 + dy, 4 + dx] == pytest.approx(
                            np.corrcoef(middle, part)[0, 1], abs=1e-9
                        )


def test_all_orientations_have_the_same_magnitudes(fields: list[np.ndarray], tmp_path: Path) -> None:
    tile = fields[0][:128, :128]
    found = describe(written(tmp_path, [turned(tile, orientation) for orientation in range(8)]))
    assert len({turned(tile, orientation).tobytes() for orientation in range(8)}) == 8
    # 1e-3: square roots of single-precision sums
    torch.testing.assert_close(found.magnitudes, found.magnitudes[:1].expand(8, -1), atol=1e-3, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    place=st.integers(0, 39), orientation=st.integers(0, 7), x=st.integers(-8, 8), y=st.integers(-8, 8)
)  # up to 8 px, each way
def test_a_turned_and_shifted_copy_is_found_and_lies_on_its_original(
    fields: list[np.ndarray],
    training: Descriptors,
    tmp_path_factory: pytest.TempPathFactory,
    place: int,
    orientation: int,
    x: int,
    y: int,
) -> None:
    copy = turned(fields[place][32 + y : 160 + y, 32 + x : 160 + x], orientation)
    near = nearest(describe(written(tmp_path_factory.mktemp("copy"), [copy])), training)
    assert near.index.tolist() == [place]
    assert near.similarity[0] > 0.95  # the threshold is at most 0.8
    original = fields[place][32:160, 32:160]
    laid = laid_over(original, int(near.orientation[0]), near.shift_px[0].tolist())
    inside = np.s_[16:-16, 16:-16]
    # the shift is told to 1 px of 128; a wrong orientation or sign gives differences of about 30 levels
    assert np.abs(laid[inside].astype(int) - copy[inside]).mean() < 8


def test_stain_and_blur_hide_no_copy(fields: list[np.ndarray], training: Descriptors, tmp_path: Path) -> None:
    changed = []
    for field in fields[:10]:
        blurred = ndimage.gaussian_filter(field[32:160, 32:160].astype(float), (1.5, 1.5, 0))
        changed.append((255 * (blurred / 255) ** [1.3, 0.8, 1.1]).astype(np.uint8))
    near = nearest(describe(written(tmp_path, changed)), training)
    assert near.index.tolist() == list(range(10))
    assert near.similarity.min() > 0.9


def test_other_tiles_are_not_alike(training: Descriptors, tmp_path: Path) -> None:
    near = nearest(describe(written(tmp_path, [texture(128, seed) for seed in range(100, 130)])), training)
    assert near.similarity.max() < 0.7  # the least threshold


@pytest.mark.parametrize("side", [32, 64, 100, 512])
def test_other_sizes(side: int, tmp_path: Path) -> None:
    shift = 8 if side > 128 else side // 16
    fields = [texture(side + shift, seed, side / 40) for seed in range(8)]
    known = describe(written(tmp_path / "known", [field[:side, :side] for field in fields]))
    near = nearest(describe(written(tmp_path / "shifted", [field[shift:, shift:] for field in fields])), known)
    assert near.index.tolist() == list(range(8))
    assert np.abs(near.shift_px - shift).max() <= side / 64  # half a thumbnail pixel
    assert near.similarity.min() > 0.8  # 8 of 512 px is half a thumbnail pixel each way, the worst case


def test_no_tile_is_compared_with_its_own_group(training: Descriptors) -> None:
    groups = [str(i // 10) for i in range(40)]
    near = nearest(training, training, groups=(groups, groups), candidates=40)
    assert all(groups[i] != groups[j] for i, j in enumerate(near.index))
    assert near.similarity.max() < 0.7
    alone = nearest(training, training, groups=(["a"] * 40, ["a"] * 40))
    assert (alone.index == -1).all() and np.isnan(alone.similarity).all()
    one_left = nearest(training, training, groups=(["a"] * 40, ["a"] * 39 + ["b"]))
    assert (one_left.index == 39).all()


def test_glass_is_neither_judged_nor_found(training: Descriptors, fields: list[np.ndarray], tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 1, (3, 128, 128, 3))
    glass = describe(written(tmp_path, [*(240 + noise).astype(np.uint8), np.full((128, 128, 3), 255, np.uint8)]))
    assert not glass.judged.any() and training.judged.all()
    near = nearest(glass, training)
    assert (near.index == -1).all() and np.isnan(near.similarity).all()
    assert (nearest(training, glass).index == -1).all()
    both = describe([*glass.files, *training.files])
    assert nearest(training, both).index.tolist() == list(range(4, 44))


def test_a_result_does_not_depend_on_the_other_tiles_asked_for(training: Descriptors) -> None:
    groups = [str(i) for i in range(40)]
    every = nearest(training, training, groups=(groups, groups))
    some = [7, 3, 31]
    part = nearest(training.at(some), training, groups=([groups[i] for i in some], groups))
    assert part.index.tolist() == every.index[some].tolist()
    np.testing.assert_allclose(part.similarity, every.similarity[some], atol=1e-5)  # single precision


def test_progress_and_nothing_to_do(training: Descriptors) -> None:
    told: list[tuple[int, int]] = []
    describe(training.files, progress=lambda done, total: told.append((done, total)))
    assert told == [(40, 40)]
    nothing = describe([])
    assert len(nothing) == 0 and len(nearest(nothing, training).index) == 0
    assert (nearest(training, nothing).index == -1).all()
    assert training.magnitudes.shape[1] == nothing.magnitudes.shape[1] == sum(map(len, lookalikes._orbits()))


def test_tiles_that_cannot_be_compared(training: Descriptors, tmp_path: Path) -> None:
    small, large = written(tmp_path, [texture(64, 0), texture(128, 0)])
    with pytest.raises(PathUpError, match="tiles of one size were needed"):
        describe([small, large])
    with pytest.raises(PathUpError, match="tiles are 64 px wide, but the training tiles 128"):
        nearest(describe([small]), training)
    with pytest.raises(PathUpError, match="square tiles of at least 32 x 32"):
        describe([save(tmp_path / "wide.png", texture(64, 0)[:32])])
    with pytest.raises(PathUpError, match="square tiles of at least 32 x 32"):
        describe([save(tmp_path / "tiny.png", texture(16, 0))])
    with pytest.raises(PathUpError, match="does not exist"):
        describe([*training.files, tmp_path / "none.png"])
