from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pathup.sampling.footprint import MOST_SIDE, TILE_BYTES, bytes_a_position, tile_side


def _pipeline(factor: int, channels: int) -> Any:
    return SimpleNamespace(factor=factor, vae=SimpleNamespace(config=SimpleNamespace(block_out_channels=[channels])))


@pytest.mark.parametrize(
    ("factor", "channels", "side"),
    [
        (4, 32, MOST_SIDE),  # a small autoencoder: the largest tile
        (8, 128, 64),  # Stable Diffusion's, whatever it takes: of a smaller tile most would be halo
        (4, 64, 104),  # between them as much as fits
        (32, 128, 16),  # 512 px
    ],
)
def test_a_tile_is_as_large_as_memory_allows_but_not_smaller_than_its_halo_wants(
    factor: int, channels: int, side: int
) -> None:
    pipeline = _pipeline(factor, channels)
    assert tile_side(pipeline) == side
    if side > 64:
        assert side**2 * bytes_a_position(pipeline) <= TILE_BYTES
