from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pathup.sampling import preview
from pathup.sampling.preview import PreviewFile


def _shown(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_a_preview_is_small_and_shows_overview_canvas_and_bands(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(preview, "PREVIEW_PX", 32)
    monkeypatch.setattr(preview, "_SHARE", 1e9)  # at every call
    path = tmp_path / "preview.png"
    # an image of 1024 x 512 px, 128 x 64 latent positions: the left half dark, the right half bright
    shown = PreviewFile(path, (512, 1024), 8)
    overview = np.full((128, 256, 3), (40, 60, 80), np.uint8)
    overview[:, 128:] = (200, 180, 220)
    shown.overview(overview)
    assert _shown(path).shape == (16, 32, 3)
    assert np.array_equal(_shown(path)[0, 0], (40, 60, 80)) and np.array_equal(_shown(path)[0, 31], (200, 180, 220))
    # latents that tell the halves apart, under noise: pooled, the colours come back
    state = torch.randn(8, 64, 128, generator=torch.Generator().manual_seed(0))
    state[:, :, 64:] += 3
    shown.canvas(state)
    halves = _shown(path)[:, :16].mean((0, 1)), _shown(path)[:, 16:].mean((0, 1))
    assert np.abs(halves[0] - (40, 60, 80)).max() < 10 and np.abs(halves[1] - (200, 180, 220)).max() < 10
    shown.band(256, np.full((64, 1024, 3), 9, np.uint8))  # rows 256 to 320 are rows 8 and 9 of the preview
    rows = np.flatnonzero((_shown(path) == 9).all(axis=(1, 2)))
    assert rows.tolist() == [8, 9]


def test_previews_take_little_of_the_time(tmp_path: Path) -> None:
    shown = PreviewFile(tmp_path / "preview.png", (64, 64), 4)
    shown.overview(np.zeros((16, 16, 3), np.uint8))
    before = (tmp_path / "preview.png").stat().st_mtime_ns
    shown.canvas(torch.randn(4, 16, 16))  # at once after the last one: not yet due
    assert (tmp_path / "preview.png").stat().st_mtime_ns == before
