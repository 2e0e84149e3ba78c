from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathup.slides.pyramid import Level, checked_bands, halved


def slow_half(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The mean of each 2 x 2 block, half rounded up; where the image has no second row or column, of what it has."""
    out = np.empty((*shape, 3), np.uint8)
    for y in range(shape[0]):
        for x in range(shape[1]):
            block = image[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].astype(int)
            out[y, x] = (block.sum((0, 1)) * (4 // (block.shape[0] * block.shape[1])) + 2) // 4
    return out


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_tiles_of_all_levels_are_those_of_the_whole_image(height: int, width: int, tile_px: int, data: Any) -> None:
    overlap = data.draw(st.integers(0, tile_px - 1))
    up = data.draw(st.booleans())
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    levels = [image]
    while max(levels[-1].shape[:2]) > 1:
        rows, columns = levels[-1].shape[:2]
        shape = (-(-rows // 2), -(-columns // 2)) if up else (max(1, rows // 2), max(1, columns // 2))
        levels.append(slow_half(levels[-1], shape))

    found: list[list[tuple[int, int, np.ndarray]]] = [[] for _ in levels]
    top: Level | None = None
    for level, tiles in zip(levels[::-1], found[::-1], strict=True):
        top = Level(
            level.shape[:2],
            tile_px,
            lambda r, c, pixels, tiles=tiles: tiles.append((r, c, pixels.copy())),
            overlap=overlap,
            below=top,
        )
    assert top is not None
    done = 0
    while done < height:
        count = data.draw(st.integers(1, 15))
        band = image[done : done + count].copy()
        top.add(band)
        band[:] = 0  # a caller may use its array again
        done += count

    for level, tiles in zip(levels, found, strict=True):
        rows, columns = -(-level.shape[0] // tile_px), -(-level.shape[1] // tile_px)
        assert [(r, c) for r, c, _ in tiles] == [(r, c) for r in range(rows) for c in range(columns)]
        for r, c, pixels in tiles:
            y, x = max(0, r * tile_px - overlap), max(0, c * tile_px - overlap)
            whole = level[y : (r + 1) * tile_px + overlap, x : (c + 1) * tile_px + overlap]
            assert np.array_equal(pixels, whole)


def test_halving_rounds_to_nearest() -> None:
    rows = np.zeros((2, 4, 3), np.uint8)
    rows[0, 0], rows[:, 2:] = [1, 2, 3], 255  # a quarter rounds down, a half up, three quarters up; 255 stays 255
    assert halved(rows, 2).tolist() == [[[0, 1, 1], [255, 255, 255]]]


def test_bands_must_fit() -> None:
    image = np.zeros((10, 6, 3), np.uint8)
    assert sum(len(band) for band in checked_bands([image[:3], image[3:]], (10, 6))) == 10
    for bands in ([image[:5]], [image, image[:1]], [image[:, :5]], [image.astype(float)], [image[..., 0]]):
        with pytest.raises(ValueError, match="band"):
            list(checked_bands(bands, (10, 6)))
