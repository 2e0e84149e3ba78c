"""Large images in tiles: the same as the whole image where the reach is within the margin."""

from __future__ import annotations

import numpy as np
import pytest

from pathup.baselines.tiled import in_tiles
from pathup.errors import PathUpError

REACH = 3


def enlarged(pixels_HWC: np.ndarray, factor: int = 2) -> np.ndarray:
    """Sums over windows that reach `REACH` pixels, beyond the border zeros, then each pixel repeated: exact."""
    height, width = pixels_HWC.shape[:2]
    wide = np.pad(pixels_HWC, ((REACH, REACH), (REACH, REACH), (0, 0)))
    shifts = [(row, column) for row in range(2 * REACH + 1) for column in range(2 * REACH + 1)]
    total = sum((1 + row + 10 * column) * wide[row : row + height, column : column + width] for row, column in shifts)
    return np.asarray(total).repeat(factor, 0).repeat(factor, 1)


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3))


# one tile, a tile and one pixel, sides of no round number, and sides that tiles divide
@pytest.mark.parametrize("size", [(10, 10), (11, 10), (5, 41), (37, 53), (1, 1), (18, 26)])
def test_tiles_make_the_whole_image_bit_for_bit_where_the_reach_is_within_the_margin(size):
    pixels = image(*size)
    np.testing.assert_array_equal(in_tiles(pixels, enlarged, 2, 10, REACH), enlarged(pixels))
    np.testing.assert_array_equal(in_tiles(pixels, enlarged, 2, 16, REACH + 1), enlarged(pixels))


def test_a_margin_less_than_the_reach_shows():
    pixels = image(30, 30)
    assert (in_tiles(pixels, enlarged, 2, 10, REACH - 1) != enlarged(pixels)).any()


def test_no_tile_is_larger_than_asked_nor_smaller_than_the_image_allows():
    sizes = set()

    def recording(tile: np.ndarray) -> np.ndarray:
        sizes.add(tile.shape[:2])
        return tile.repeat(4, 0).repeat(4, 1)

    pixels = image(45, 7).astype(np.uint8)
    result = in_tiles(pixels, recording, 4, 12, 2)
    assert sizes == {(12, 7)}
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, pixels.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize(
    ("size", "tile", "margin", "enlarge", "sentence"),
    [
        ((8, 8), 8, 4, enlarged, "larger than two margins"),
        ((8, 8), 8, -1, enlarged, "larger than two margins"),
        ((0, 8), 8, 1, enlarged, "8 x 0 px"),
        ((8, 8), 8, 1, lambda tile: tile, r"enlarged to \(8, 8\), but \(16, 16\)"),
    ],
)
def test_what_cannot_be_tiled_is_one_sentence(size, tile, margin, enlarge, sentence):
    with pytest.raises(PathUpError, match=sentence):
        in_tiles(image(*size), enlarge, 2, tile, margin)
