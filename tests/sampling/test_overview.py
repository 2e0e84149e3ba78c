from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pathup.errors import PathUpError
from pathup.model.pipeline import PathUpPipeline
from pathup.sampling.layouts import plain_layout
from pathup.sampling.overview import EnlargedOverview, draw_overview, overview_bands, sampling_levels
from pathup.sampling.settings import resolve_settings


def _picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_areas_of_the_enlarged_overview_equal_the_whole() -> None:
    image = _picture(30, 20)
    enlarged = EnlargedOverview(image, (120, 80))
    whole = np.asarray(Image.fromarray(image).resize((80, 120), Image.Resampling.BICUBIC)).astype(float)
    everything = enlarged(0, 0, 120, 80)
    assert everything.min() >= -1 and everything.max() <= 1
    difference = (everything.permute(1, 2, 0).numpy() + 1) * 127.5 - whole
    # Pillow rounds and clips between its passes, which we do not: noise is the worst case, and most of it agrees
    assert np.mean(np.abs(difference) <= 1) > 0.9
    for top, left, height, width in [(0, 0, 16, 16), (37, 21, 40, 40), (104, 64, 16, 16), (60, 0, 1, 80)]:
        area = enlarged(top, left, height, width)
        torch.testing.assert_close(area, everything[:, top : top + height, left : left + width], rtol=0, atol=1e-5)


def test_levels_and_their_scale(pipeline: PathUpPipeline) -> None:
    levels = sampling_levels(pipeline)
    assert (levels.overview, levels.patch, levels.shrink, levels.mpp) == ("overview", "patch", 4, 0.5)


def test_levels_of_no_whole_ratio_are_refused(pipeline: PathUpPipeline) -> None:
    class Fake:
        config: Any = type("C", (), {"levels": [{"name": "fine", "mpp": 0.5}, {"name": "coarse", "mpp": 0.8}]})

    with pytest.raises(PathUpError, match="whole multiple"):
        sampling_levels(Fake())  # type: ignore[arg-type]


def _draw(
    pipeline: PathUpPipeline, label: str = "A", size: tuple[int, int] = (32, 32), seed: int = 0, index: int = 0
) -> tuple[np.ndarray, int]:
    """The overview's pixels and the windows that it took."""
    settings = resolve_settings(pipeline, steps=2)
    layout = plain_layout(label, (4 * size[0], 4 * size[1]))
    windows = []
    latents = draw_overview(
        pipeline,
        layout,
        size_px=size,
        shrink=4,
        seed=seed,
        keys=(label, index),
        settings=settings,
        progress=lambda _, done, total: windows.append(total),
    )
    return np.concatenate(list(overview_bands(pipeline, latents, size, layout, 4))), windows[-1]


def test_one_window_many_windows_and_a_cut_out_centre(pipeline: PathUpPipeline) -> None:
    one, windows = _draw(pipeline)  # tile_px is 32: exactly one window
    assert one.shape == (32, 32, 3) and one.dtype == np.uint8
    assert windows == 2  # two steps
    many, windows = _draw(pipeline, size=(48, 64))
    assert many.shape == (48, 64, 3)
    assert windows == 2 * (2 * 3)  # 12 x 16 positions in windows of 8 with 4 overlap
    cut, windows = _draw(pipeline, size=(16, 24))
    assert cut.shape == (16, 24, 3)
    assert windows == 2
    assert np.array_equal(cut, one[8:24, 4:28])  # the centre of the window that is drawn


def test_an_overview_is_a_function_of_label_seed_and_index(pipeline: PathUpPipeline) -> None:
    first = _draw(pipeline)[0]
    assert np.array_equal(first, _draw(pipeline)[0])
    for other in (_draw(pipeline, "B"), _draw(pipeline, seed=1), _draw(pipeline, index=1)):
        assert not np.array_equal(first, other[0])
