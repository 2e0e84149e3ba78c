from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pathup.errors import PathUpError
from pathup.evaluation.features import GREY_DEVIATION, VIEWS, Extractor, load_extractor, prepared
from tests.tiles.made import SHARED, save, tissue

WEIGHTS = SHARED / "data" / "weights" / "mobilenetv2_035.safetensors"


def _timm_is_there() -> bool:
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError, OSError):  # a torchvision of another build than torch raises RuntimeError
        return False
    return True


needs_timm = pytest.mark.skipif(not _timm_is_there(), reason="timm, or a torchvision that fits torch, is not installed")
needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"the weights are not at hand ({WEIGHTS})")


def test_colour_is_the_resized_pixels_between_minus_one_and_one() -> None:
    flat = np.zeros((40, 40, 3), np.uint8)
    flat[...] = (255, 0, 51)
    seen = prepared(flat, "colour")
    assert seen.shape == (3, 224, 224) and seen.dtype == torch.float32
    # 51 of 255 is a fifth: 2 / 5 - 1
    torch.testing.assert_close(seen.mean((1, 2)), torch.tensor([1.0, -1.0, -0.6]), atol=1e-6, rtol=0)
    same = tissue(224, 224)  # of the network's own size: nothing is resampled
    restored = ((prepared(same, "colour") + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(restored, same)


def test_grey_takes_away_stain_brightness_and_contrast() -> None:
    # few tones, so that scaling and shifting them stays within 0..255 and rounds nothing away
    tones = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 4, (16, 16)), 8, 0), 8, 1)
    pale = np.stack([200 + 4 * tones] * 3, -1).astype(np.uint8)
    dark = np.stack([20 + 30 * tones] * 3, -1).astype(np.uint8)
    pink = np.stack([100 + 30 * tones, 60 + 0 * tones, 90 + 20 * tones], -1).astype(np.uint8)
    expected = prepared(pale, "grey")
    for other in (dark, pink):
        torch.testing.assert_close(prepared(other, "grey"), expected, atol=1e-4, rtol=0)
    assert expected[0].equal(expected[1]) and expected[0].equal(expected[2])
    assert expected.abs().max() <= 1
    assert abs(float(expected.mean())) < 0.01  # clipping moves it a little
    assert float(expected.std()) == pytest.approx(GREY_DEVIATION, rel=0.05)
    assert not prepared(pale, "colour").allclose(prepared(dark, "colour"), atol=0.1)


def test_a_tile_without_contrast_is_zero_and_not_noise() -> None:
    assert prepared(np.full((32, 32, 3), 231, np.uint8), "grey").eq(0).all()


def test_features_come_in_the_files_order_whatever_the_batch(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i}.png", tissue(32, 32, seed=i)) for i in range(5)]
    means = Extractor("mean colour", "none", lambda seen: seen.mean((2, 3)))
    calls: list[tuple[int, int]] = []
    for view in VIEWS:
        whole = means.features(files, view)
        parts = means.features(files, view, batch_size=2, progress=lambda *call: calls.append(call))
        assert whole.shape == (5, 3) and np.allclose(whole, parts)
    assert calls == [(2, 5), (4, 5), (5, 5)] * 2
    assert np.allclose(means.features(files[3:4], "colour")[0], means.features(files, "colour")[3])
    with pytest.raises(PathUpError, match="no tiles"):
        means.features([], "grey")
    Image.fromarray(tissue(8, 8)).convert("L").save(tmp_path / "grey.png")
    with pytest.raises(PathUpError, match="greyscale image, but 8-bit RGB was needed"):
        means.features([tmp_path / "grey.png"], "colour")


def test_missing_or_broken_weights_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(PathUpError, match="do not exist"):
        load_extractor(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not this")
    with pytest.raises(PathUpError, match="not a readable safetensors file"):
        load_extractor(tmp_path / "broken.safetensors")


@needs_timm
def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(PathUpError, match="does not fit timm's mobilenetv2_035"):
        load_extractor(tmp_path / "other.safetensors")


@needs_timm
@needs_weights
def test_the_real_network_gives_1280_features_that_tell_tiles_apart(tmp_path: Path) -> None:
    extractor = load_extractor(WEIGHTS)
    files = [save(tmp_path / f"{i}.png", tissue(64, 64, seed=i)) for i in range(2)]
    features = extractor.features(files, "colour")
    assert features.shape == (2, 1280)  # MobileNetV2's head, as the weights' note says
    assert np.isfinite(features).all() and not np.allclose(features[0], features[1])
    assert len(extractor.described()["weights_sha256"]) == 64
