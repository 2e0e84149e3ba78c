from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pathup import storage
from pathup.errors import PathUpError
from pathup.evaluation.encoders import Encoder
from pathup.evaluation.features import GREY_DEVIATION, VIEWS, content_hashes, extract, kept_features, seen
from tests.tiles.made import save, tissue


def means(calls: list[int] | None = None, sha256: str = "0" * 64) -> Encoder:
    """An encoder whose features are the mean colour in 0..255; counts its calls."""

    def network(pixels: torch.Tensor) -> torch.Tensor:
        if calls is not None:
            calls.append(len(pixels))
        return pixels.float().mean((2, 3))

    return Encoder("mean colour", sha256, 32, "none", network, resizes=True)


def test_colour_is_the_tile_itself() -> None:
    tile = tissue(20, 20)
    assert np.array_equal(seen(tile, "colour"), tile)


def test_grey_takes_away_stain_brightness_and_contrast() -> None:
    # few tones, so that scaling and shifting them stays within 0..255 and rounds nothing away
    tones = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 4, (16, 16)), 8, 0), 8, 1)
    pale = np.stack([200 + 4 * tones] * 3, -1).astype(np.uint8)
    dark = np.stack([20 + 30 * tones] * 3, -1).astype(np.uint8)
    pink = np.stack([100 + 30 * tones, 60 + 0 * tones, 90 + 20 * tones], -1).astype(np.uint8)
    expected = seen(pale, "grey").astype(int)
    for other in (dark, pink):
        assert np.abs(seen(other, "grey").astype(int) - expected).max() <= 1  # rounding to 8 bits
    assert (expected[..., 0] == expected[..., 1]).all() and (expected[..., 0] == expected[..., 2]).all()
    assert abs(expected.mean() - 127.5) < 2  # clipping moves it a little
    assert expected.std() / 127.5 == pytest.approx(GREY_DEVIATION, rel=0.05)


@given(st.integers(0, 255))
def test_a_tile_without_contrast_is_mid_grey_and_not_noise(tone: int) -> None:
    assert set(np.unique(seen(np.full((16, 16, 3), tone, np.uint8), "grey"))) == {128}


def test_features_come_in_the_files_order_whatever_the_batch(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i}.png", tissue(32, 32, seed=i)) for i in range(5)]
    calls: list[tuple[int, int]] = []
    for view in VIEWS:
        whole = extract(means(), files, view)
        parts = extract(means(), files, view, batch_size=2, progress=lambda *call: calls.append(call))
        assert whole.shape == (5, 3) and whole.dtype == np.float32 and np.allclose(whole, parts)
        one_by_one = [seen(np.asarray(Image.open(file)), view).mean((0, 1)) for file in files]
        assert np.allclose(whole, one_by_one, atol=1e-3)
    assert calls == [(2, 5), (4, 5), (5, 5)] * 2


def test_what_cannot_be_compared_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PathUpError, match="no tiles"):
        extract(means(), [], "grey")
    Image.fromarray(tissue(8, 8)).convert("L").save(tmp_path / "grey.png")
    with pytest.raises(PathUpError, match="greyscale image, but 8-bit RGB was needed"):
        extract(means(), [tmp_path / "grey.png"])
    mixed = [save(tmp_path / f"{side}.png", tissue(side, side)) for side in (8, 16)]
    with pytest.raises(PathUpError, match=r"mixed sizes \(16 x 16, 8 x 8 px\)"):
        extract(means(), mixed)
    broken = Encoder("broken", "0", 8, "none", lambda pixels: pixels.float().mean((2, 3)) / 0, resizes=True)
    with pytest.raises(PathUpError, match=r"broken gave features that are no finite numbers for 1 of 1 tiles.*8\.png"):
        extract(broken, mixed[:1])


def test_what_several_want_at_once_is_extracted_once(tmp_path: Path) -> None:
    calls: list[int] = []
    files = [save(tmp_path / f"{seed}.png", tissue(32, 32, seed=seed)) for seed in range(3)]
    with ThreadPoolExecutor(4) as wanting:
        found = list(wanting.map(lambda _: kept_features(means(calls), files, cache=tmp_path / "cache"), range(4)))
    assert calls == [3]
    assert all(np.array_equal(one, found[0]) for one in found)


def test_kept_features_are_used_until_a_file_the_order_the_view_or_the_weights_change(tmp_path: Path) -> None:
    files = [save(tmp_path / "tiles" / f"{i}.png", tissue(32, 32, seed=i)) for i in range(3)]
    calls: list[int] = []
    cache = tmp_path / "cache"
    first = kept_features(means(calls), files, cache=cache)
    assert np.array_equal(kept_features(means(calls), files, cache=cache), first) and calls == [3]
    moved = [file.rename(file.with_name(f"moved{file.name}")) for file in files]
    assert np.array_equal(kept_features(means(calls), moved, cache=cache), first) and calls == [3]  # content, not names
    assert np.array_equal(kept_features(means(calls), moved[::-1], cache=cache), first[::-1]) and calls == [3] * 2
    kept_features(means(calls, "1" * 64), moved, cache=cache)
    kept_features(means(calls), moved, "grey", cache=cache)
    save(moved[0], tissue(32, 32, seed=9))
    assert not np.array_equal(kept_features(means(calls), moved, cache=cache)[0], first[0])
    assert calls == [3] * 5
    kept_features(means(calls), moved, cache=None)
    assert calls == [3] * 6


def test_a_damaged_kept_file_is_made_anew_and_a_full_disk_only_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [save(tmp_path / "tiles" / "0.png", tissue(32, 32))]
    cache = tmp_path / "cache"
    first = kept_features(means(), files, cache=cache)
    (kept,) = cache.glob("*.safetensors")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:20])
    assert np.array_equal(kept_features(means(), files, cache=cache), first) and kept.read_bytes() == whole

    def full(target: Path) -> None:
        raise PathUpError("the disk is full")

    monkeypatch.setattr(storage, "atomic_path", full)
    kept.unlink()
    assert np.array_equal(kept_features(means(), files, cache=cache), first) and not list(cache.glob("*.safetensors"))
    monkeypatch.setattr(storage, "held", full)
    assert np.array_equal(kept_features(means(), files, cache=cache), first)


def test_a_file_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PathUpError, match=r"gone.png cannot be read"):
        content_hashes([tmp_path / "gone.png"])
