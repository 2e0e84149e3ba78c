"""The networks whose features tiles are compared by, each with its weights, its input and how tiles are resized to it.

``--features`` names one: ``atlas`` (shipped), ``inception`` and ``vgg16`` (torch-fidelity's, with the weights that FID
and improved precision and recall are defined on), ``dinov2`` and ``clip`` (timm's), ``hf-hub:OWNER/NAME`` (any timm
model of the hub), a folder (of `pathup train encoder`, or one in timm's hub format), or any timm model with local
weights: ``NAME,weights=FILE`` and further ``key=value``. Figures on different features are not comparable.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from pathup import storage
from pathup.errors import PathUpError, unknown
from pathup.model.encoder import CONFIG_FILE, WEIGHTS_FILE, load_encoder

__all__ = ["NOT_COMPARABLE", "STANDARD", "Encoder", "downloaded", "load_features"]

NOT_COMPARABLE = (
    "Figures on features of different networks, or of other weights or another resize filter, are not comparable with "
    "each other; only Inception's are the FID and KID of the literature, and only VGG16's its precision and recall."
)

STANDARD = ("atlas", "inception", "vgg16", "dinov2", "clip")
"""Names that ``--features`` takes besides timm's; the first is the default."""

CPU_BATCH = 16
"""Tiles a forward on a CPU: with 64, what passes from layer to layer leaves its caches, and a tile takes 1.3 (atlas) to
2.7 times (MobileNetV2 at 224 px) as long."""

_TIMM = {"dinov2": "vit_base_patch14_dinov2.lvd142m", "clip": "vit_base_patch32_clip_224.openai"}
_SETTINGS: dict[str, dict[str, Any]] = {
    "dinov2": {"img_size": 224},  # a multiple of 14; its own 518 px would only enlarge tiles further
    # the one published set of weights at this width is Keras's
    "mobilenetv2_035": {"pad_type": "same", "bn_eps": 1e-3, "mean": 0.5, "std": 0.5},
}
_BICUBIC, _BILINEAR_TF = "bicubic (Pillow, with antialiasing)", "bilinear (TensorFlow 1's, without antialiasing)"


@dataclass(frozen=True)
class Encoder:
    """A frozen network and where it came from.

    Attributes
    ----------
    name
        What a result calls it.
    sha256
        Of the weights: of their file, or of their values where they came from a hub.
    input_px
        Side of what the network sees.
    resize_filter
        How tiles of another size get there.
    network
        Takes (B, 3, H, W): uint8 where the network resizes by itself, else values in [0, 1] at `input_px`, in which
        case `mean` and `std` are applied first. Gives (B, D).
    resizes
        Whether the network takes uint8 and resizes by itself.
    literature
        The names that figures on it bear in the literature ('FID', 'KID', ...); others are named by their features.
    """

    name: str
    sha256: str
    input_px: int
    resize_filter: str
    network: Callable[[torch.Tensor], torch.Tensor]
    resizes: bool = False
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    literature: frozenset[str] = frozenset()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def prepared(self, pixels_HWC: np.ndarray) -> torch.Tensor:
        """One tile as `features` takes it: uint8, (3, H, W), at `input_px` unless the network resizes by itself."""
        if not self.resizes and pixels_HWC.shape[:2] != (self.input_px, self.input_px):
            image = Image.fromarray(pixels_HWC).resize((self.input_px,) * 2, Image.Resampling.BICUBIC)
            pixels_HWC = np.asarray(image)
        return torch.from_numpy(np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)))

    @torch.inference_mode()
    def features(self, pixels_BCHW: torch.Tensor) -> np.ndarray:
        """Features (B, D), float32, of tiles that `prepared` made."""
        at_once = CPU_BATCH if self.device.type == "cpu" else max(1, len(pixels_BCHW))
        return np.concatenate([self._forward(part) for part in pixels_BCHW.split(at_once)])

    def _forward(self, pixels_BCHW: torch.Tensor) -> np.ndarray:
        pixels = pixels_BCHW.to(self.device)
        if not self.resizes:
            mean, std = (pixels.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std))
            pixels = ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        result = self.network(pixels)
        return np.asarray(result.flatten(1).float().cpu().numpy())

    def described(self) -> dict[str, Any]:
        """What a result file says of the features."""
        return {
            "network": self.name,
            "weights_sha256": self.sha256,
            "input_px": self.input_px,
            "resize_filter": self.resize_filter,
        }


def load_features(name: str, device: torch.device | str = "cpu") -> Encoder:
    """The encoder that ``--features`` names; see the module for what it may be.

    Raises
    ------
    PathUpError
        No such network, its weights are missing, damaged or of another network, or they would have to be fetched and
        could not be.
    """
    device = torch.device(device)
    base, _, rest = name.partition(",")
    settings = _settings(name, rest)
    weights = settings.pop("weights", None)
    path = Path(base)
    if base.endswith(".safetensors"):
        base, weights = path.stem, base
    if weights is not None and not Path(weights).is_file():
        raise PathUpError(f"weights {weights} do not exist; a file with the weights of {base} was needed")
    if base == "atlas" and weights is None:
        with resources.as_file(resources.files("pathup.evaluation") / "atlas") as folder:
            return _tissue_encoder(folder, "atlas (shipped with PathUp)", device)
    if base in ("inception", "vgg16"):
        return _fidelity_encoder(base, weights, device)
    if path.is_dir():
        config = storage.read_json(path / CONFIG_FILE)
        if isinstance(config, dict) and "channels" in config:
            return _tissue_encoder(path, f"tissue encoder {path.name}", device)
        return _timm_encoder(f"local-dir:{path.resolve()}", path.name, None, settings, device)
    if base.startswith("hf-hub:"):
        return _timm_encoder(base, base, weights, settings, device)
    _check_known(base)
    return _timm_encoder(_TIMM.get(base, base), base, weights, {**_SETTINGS.get(base, {}), **settings}, device)


def _settings(name: str, text: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise PathUpError(
                f"features '{name}': '{part}' is not understood; KEY=VALUE was needed, as in weights=FILE"
            )
        settings[key.strip()] = value if key.strip() == "weights" else yaml.safe_load(value)
    return settings


def _check_known(base: str) -> None:
    import timm

    if base in STANDARD or timm.is_model(base.partition(".")[0]):
        return
    raise unknown(
        "features",
        base,
        [*STANDARD, "hf-hub:OWNER/NAME", "a folder", "a timm model's name with weights=FILE"],
    )


def _tissue_encoder(folder: Path, name: str, device: torch.device) -> Encoder:
    if not (folder / CONFIG_FILE).is_file():
        raise PathUpError(f"{folder} holds no {CONFIG_FILE}; what 'pathup train encoder' wrote was needed")
    encoder = load_encoder(folder).to(device).to(memory_format=torch.channels_last)
    digest = storage.sha256_file(folder / WEIGHTS_FILE)
    return Encoder(name, digest, encoder.input_px, _BICUBIC, encoder, device=device)


def _fidelity_encoder(base: str, weights: str | None, device: torch.device) -> Encoder:
    """torch-fidelity's Inception (pool features, 2048) or VGG16 (fc2 after ReLU, 4096)."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16
    from torchvision.models import VGG16_Weights

    if base == "inception":
        kind, layer, url, known = FeatureExtractorInceptionV3, "2048", URL_INCEPTION_V3, {"FID", "KID"}
    else:
        url = VGG16_Weights.IMAGENET1K_V1.url
        kind, layer, known = FeatureExtractorVGG16, "fc2_relu", {"precision", "recall"}
    file = Path(weights) if weights is not None else _found_or_fetched(base, url)
    stream = io.BytesIO()
    torch.save(_state_of(file), stream)  # torch-fidelity unpickles what it is given, so it is given tensors alone
    stream.seek(0)
    try:
        network = kind(base, [layer], feature_extractor_weights_path=stream).to(device)
    except RuntimeError as error:
        raise PathUpError(
            f"{file} does not fit torch-fidelity's {base} ({_short(error)}); name other weights"
        ) from error
    return Encoder(
        f"torch-fidelity {base}, {layer}", storage.sha256_file(file), kind.INPUT_IMAGE_SIZE, _BILINEAR_TF,
        lambda pixels: network(pixels)[0], resizes=True, literature=frozenset(known), device=device,
    )  # fmt: skip


def downloaded() -> dict[str, Path]:
    """Where torch keeps the weights that the figures of the literature need; a file may not be there yet."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torchvision.models import VGG16_Weights

    return {"inception": _kept(URL_INCEPTION_V3), "vgg16": _kept(VGG16_Weights.IMAGENET1K_V1.url)}


def _kept(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def _found_or_fetched(base: str, url: str) -> Path:
    """The weights' file where torch keeps downloads; fetched when it is not there yet."""
    target = _kept(url)
    if not target.is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(target), progress=True)  # under another name until it is whole
        except OSError as error:
            raise PathUpError(
                f"the weights of {base} are neither at {target} nor could they be fetched from {url} "
                f"({_short(error)}); "
                f"fetch them elsewhere and name the file with --features {base},weights=FILE, or use --features atlas"
            ) from error
    return target


def _timm_encoder(
    model: str, name: str, weights: str | None, settings: dict[str, Any], device: torch.device
) -> Encoder:
    import timm

    own = {key: settings.pop(key) for key in ("mean", "std") if key in settings}
    try:
        network = timm.create_model(model, pretrained=weights is None, num_classes=0, **settings)
    except Exception as error:  # timm, the hub's client and safetensors each raise their own
        where = "the weights could not be found or fetched" if weights is None else "the model could not be built"
        raise PathUpError(
            f"features '{name}': {where} ({_short(error)}); name local weights with NAME,weights=FILE or a folder in "
            "the hub's format, or use --features atlas"
        ) from error
    if weights is not None:
        try:
            network.load_state_dict(_state_of(Path(weights)))
        except RuntimeError as error:
            raise PathUpError(
                f"{weights} does not fit timm's {model} without its classifier ({_short(error)}); name other weights"
            ) from error
        digest = storage.sha256_file(Path(weights))
    else:
        digest = _sha256_of(network)
    data = timm.data.resolve_model_data_config(network)
    mean, std = (_three(own.get(key, data[key])) for key in ("mean", "std"))
    network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    told = f"timm {model.removeprefix('local-dir:') if weights or ':' not in model else name}, pooled"
    return Encoder(told, digest, int(data["input_size"][-1]), _BICUBIC, network, mean=mean, std=std, device=device)


def _state_of(file: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a safetensors file, or from a pickle of which only tensors are read."""
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if not isinstance(error, (SafetensorError, OSError, RuntimeError, EOFError, ValueError)) and (
            type(error).__name__ != "UnpicklingError"
        ):
            raise
        raise PathUpError(f"{file} is not a readable file of weights ({_short(error)}); copy it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PathUpError(f"{file} holds no plain table of weights; a state dict in safetensors or .pth was needed")
    return state


def _sha256_of(network: torch.nn.Module) -> str:
    import hashlib

    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _three(value: Any) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, (int, float)) else tuple(float(v) for v in value)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
