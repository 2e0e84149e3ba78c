from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pathup.errors import PathUpError
from pathup.evaluation.encoders import CPU_BATCH, load_features
from pathup.evaluation.features import extract
from pathup.model.encoder import TissueEncoder, save_encoder
from tests.tiles.made import SHARED, save, tissue

WEIGHTS = SHARED / "data" / "weights" / "mobilenetv2_035.safetensors"
SMALL = "test_resnet.r160_in1k"  # timm's own tiny network for tests


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [save(tmp_path / "tiles" / f"{i}.png", tissue(64, 64, seed=i)) for i in range(2)]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty folders of downloads, and a fetch that fails as it does without a network."""

    def refused(*args: object, **kwargs: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_local_weights_of_a_timm_network_standing_for_any_pathology_encoder(
    tmp_path: Path, files: list[Path], ending: str
) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0)
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    encoder = load_features(f"test_resnet,weights={path}")
    found = extract(encoder, files)
    data = timm.data.resolve_model_data_config(network)
    side = data["input_size"][-1]
    expected = []
    for file in files:
        image = Image.open(file).resize((side, side), Image.Resampling.BICUBIC)
        pixels = (np.asarray(image) / 255 - data["mean"]) / data["std"]
        with torch.inference_mode():
            expected.append(network.eval()(torch.from_numpy(pixels).permute(2, 0, 1).float()[None])[0].numpy())
    assert np.allclose(found, expected, atol=1e-4)
    told = encoder.described()
    assert "test_resnet" in told["network"] and len(told["weights_sha256"]) == 64 and told["input_px"] == side


def test_a_folder_in_the_hubs_format_standing_for_a_pathology_encoder_of_the_hub(
    tmp_path: Path, files: list[Path]
) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0)
    folder = tmp_path / "encoder"
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "test_resnet", "num_classes": 0,
        "pretrained_cfg": {"input_size": [3, 96, 96], "mean": [0.5] * 3, "std": [0.25] * 3, "num_classes": 0},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    encoder = load_features(str(folder))
    assert encoder.input_px == 96 and encoder.std == (0.25,) * 3
    assert extract(encoder, files).shape == (2, network.num_features)


def test_a_trained_tissue_encoder_is_read_from_its_folder_and_its_features_are_pooled_stages(
    tmp_path: Path, files: list[Path]
) -> None:
    torch.manual_seed(0)
    save_encoder(TissueEncoder([8, 8, 16, 24], 32), tmp_path / "encoder", {"recipe": "tiny"})
    encoder = load_features(str(tmp_path / "encoder"))
    found = extract(encoder, files)
    assert encoder.input_px == 32 and found.shape == (2, 16 + 24)
    assert not np.allclose(found[0], found[1])


def test_the_shipped_encoder_is_small_and_gives_features_offline(files: list[Path]) -> None:
    encoder = load_features("atlas")
    found = extract(encoder, files)
    assert found.shape[0] == 2 and np.isfinite(found).all() and not np.allclose(found[0], found[1])
    folder = Path(__file__).resolve().parents[2] / "src" / "pathup" / "evaluation" / "atlas"
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 12e6  # what was allowed to ship


def inception_state(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Random weights in the shape of FID's own."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with monkeypatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        return FeatureExtractorInceptionV3("inception", ["2048"]).state_dict()


@pytest.mark.parametrize("count", [0, 1, CPU_BATCH, 2 * CPU_BATCH + 3])
def test_features_do_not_hang_on_how_many_tiles_are_asked_for(count: int) -> None:
    encoder = load_features("atlas")
    draw = np.random.default_rng(0)
    tiles = [encoder.prepared(draw.integers(0, 256, (48, 48, 3), np.uint8)) for _ in range(2 * CPU_BATCH + 3)]
    alone = np.concatenate([encoder.features(tile[None]) for tile in tiles[:count]] or [np.empty((0, 1))])
    found = encoder.features(torch.stack(tiles)[:count])
    assert len(found) == count
    if count:
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-4)  # float32; sums in another order


@pytest.mark.parametrize(("name", "side", "width"), [("inception", 299, 2048), ("vgg16", 224, 4096)])
def test_local_weights_of_torch_fidelitys_networks_made_at_random(
    tmp_path: Path, files: list[Path], name: str, side: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    torch.manual_seed(0)
    state = inception_state(monkeypatch) if name == "inception" else torchvision.models.vgg16().state_dict()
    reference, layer = (
        (FeatureExtractorInceptionV3, "2048") if name == "inception" else (FeatureExtractorVGG16, "fc2_relu")
    )
    weights = tmp_path / "weights.pth"
    torch.save(state, weights)
    encoder = load_features(f"{name},weights={weights}")
    theirs = reference(name, [layer], feature_extractor_weights_path=str(weights))
    weights.unlink()  # VGG16's are half a gigabyte
    assert encoder.input_px == side and "bilinear" in encoder.resize_filter
    found = extract(encoder, files)
    tiles = torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in files])
    assert found.shape == (2, width) and np.allclose(found, theirs(tiles)[0].numpy(), atol=1e-5)
    assert encoder.literature == ({"FID", "KID"} if name == "inception" else {"precision", "recall"})


@pytest.mark.parametrize("name", ["inception", "vgg16"])
def test_weights_that_cannot_be_fetched_are_one_sentence_that_says_where_they_may_lie(
    name: str, no_network: None, tmp_path: Path
) -> None:
    with pytest.raises(PathUpError, match=rf"weights of {name} are neither at .*hub.* nor could .*weights=FILE"):
        load_features(name)
    assert not list((tmp_path / "hub").rglob("*.pth"))


def test_weights_where_torch_keeps_downloads_are_found(
    no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "hub" / "checkpoints"
    kept.mkdir(parents=True)
    torch.save(inception_state(monkeypatch), kept / "weights-inception-2015-12-05-6726825d.pth")
    assert load_features("inception").input_px == 299


@pytest.mark.parametrize("name", ["dinov2", "clip", "hf-hub:nobody/nothing", SMALL])
def test_an_encoder_of_a_hub_that_cannot_be_reached_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PathUpError, match=r"could not be found or fetched .*--features atlas"):
        load_features(name)


def test_wrong_names_files_and_settings_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PathUpError, match="unknown features 'inceptoin'; did you mean 'inception'"):
        load_features("inceptoin")
    with pytest.raises(PathUpError, match=r"none\.safetensors do not exist"):
        load_features(str(tmp_path / "none.safetensors"))
    with pytest.raises(PathUpError, match="'wieghts' is not understood; KEY=VALUE was needed"):
        load_features("test_resnet,wieghts")
    (tmp_path / "broken.safetensors").write_bytes(b"not this")
    with pytest.raises(PathUpError, match="not a readable file of weights"):
        load_features(f"test_resnet,weights={tmp_path / 'broken.safetensors'}")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(PathUpError, match="does not fit timm's test_resnet"):
        load_features(f"test_resnet,weights={tmp_path / 'other.safetensors'}")
    with pytest.raises(PathUpError, match="model could not be built"):
        load_features(f"test_resnet,weights={tmp_path / 'other.safetensors'},no_such_option=1")
    torch.save({"weight": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(PathUpError, match="no plain table of weights"):
        load_features(f"test_resnet,weights={tmp_path / 'list.pth'}")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap()))
    for name in ("inception", "vgg16", "test_resnet"):
        with pytest.raises(PathUpError, match="not a readable file of weights"):
            load_features(f"{name},weights={tmp_path / 'trap.pth'}")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"the weights are not at hand ({WEIGHTS})")
def test_the_real_imagenet_weights_give_1280_features_that_tell_tiles_apart(files: list[Path]) -> None:
    encoder = load_features(str(WEIGHTS))
    found = extract(encoder, files)
    assert found.shape == (2, 1280)  # MobileNetV2's head, as the weights' note says
    assert np.isfinite(found).all() and not np.allclose(found[0], found[1])
    assert encoder.input_px == 224 and encoder.mean == (0.5,) * 3
