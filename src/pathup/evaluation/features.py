"""Features of tiles: a frozen network with weights from a local file, on colour or on grey pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from pathup import storage
from pathup.errors import PathUpError
from pathup.slides.images import read_image

__all__ = ["GREY_DEVIATION", "INPUT_PX", "RESIZE_FILTER", "VIEWS", "Extractor", "View", "load_extractor", "prepared"]

View = Literal["colour", "grey"]
VIEWS: tuple[View, ...] = get_args(View)

INPUT_PX = 224
"""Side of what the network sees."""

RESIZE_FILTER = "bicubic (Pillow, with antialiasing)"
GREY_DEVIATION = 0.45
"""Standard deviation of a grey tile after normalising, of a range of [-1, 1]: about that of natural photographs, which
the network was trained on. Values beyond 2.2 deviations are clipped."""

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, which JPEG uses as well
_ARCHITECTURE: dict[str, Any] = {"model_name": "mobilenetv2_035", "num_classes": 0, "pad_type": "same", "bn_eps": 1e-3}


def prepared(pixels_HWC: np.ndarray, view: View, *, side: int = INPUT_PX) -> torch.Tensor:
    """A tile as the network sees it: float32, (3, side, side), in [-1, 1].

    ``colour``: resized, and scaled from 0..255 to [-1, 1].

    ``grey``: luminance (0.299 R + 0.587 G + 0.114 B), resized; then, tile by tile, the mean is taken off, the standard
    deviation is set to `GREY_DEVIATION`, values are clipped to [-1, 1] and repeated in three channels. Stain,
    brightness and contrast are then the same in all tiles; a tile without any contrast is 0 everywhere.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB.
    """
    if view == "colour":
        resized = Image.fromarray(pixels_HWC).resize((side, side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(resized, np.float32)).permute(2, 0, 1) / 127.5 - 1
    luminance = pixels_HWC.astype(np.float32) @ _LUMINANCE
    grey = np.asarray(Image.fromarray(luminance).resize((side, side), Image.Resampling.BICUBIC))
    centred = grey - grey.mean()
    deviation = float(centred.std())
    if deviation < 1e-3:  # of 255: rounding, not tissue
        return torch.zeros(3, side, side)
    scaled = np.clip(centred * (GREY_DEVIATION / deviation), -1, 1)
    return torch.from_numpy(scaled).expand(3, -1, -1).clone()


@dataclass(frozen=True)
class Extractor:
    """A frozen network and where it came from.

    Attributes
    ----------
    name
        What a result calls it.
    sha256
        Of the weights' file.
    network
        Takes (B, 3, 224, 224) in [-1, 1], gives (B, D).
    """

    name: str
    sha256: str
    network: Callable[[torch.Tensor], torch.Tensor]

    @torch.inference_mode()
    def features(
        self,
        files: Sequence[Path],
        view: View,
        *,
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Features of image files, float64 (N, D), in their order.

        Raises
        ------
        PathUpError
            A file is missing, damaged or not 8-bit RGB; or `files` is empty.
        """
        if not files:
            raise PathUpError("there are no tiles to take features of")
        rows = []
        for first in range(0, len(files), batch_size):
            batch = [prepared(read_image(file), view) for file in files[first : first + batch_size]]
            rows.append(self.network(torch.stack(batch)).double().cpu().numpy())
            if progress is not None:
                progress(min(first + batch_size, len(files)), len(files))
        return np.concatenate(rows)

    def described(self) -> dict[str, Any]:
        """What a result file says of the features."""
        return {
            "network": self.name,
            "weights_sha256": self.sha256,
            "input_px": INPUT_PX,
            "resize_filter": RESIZE_FILTER,
            "grey": f"BT.601 luminance, each tile to mean 0 and deviation {GREY_DEVIATION}, clipped to [-1, 1]",
        }


def load_extractor(weights: Path) -> Extractor:
    """MobileNetV2-0.35 (timm's ``mobilenetv2_035``) with its weights from a safetensors file; nothing is fetched.

    Raises
    ------
    PathUpError
        The file is missing or not of this network, or timm cannot be imported.
    """
    if not weights.is_file():
        raise PathUpError(f"weights {weights} do not exist; a safetensors file of timm's mobilenetv2_035 was needed")
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise PathUpError(f"{weights} is not a readable safetensors file ({error})") from error
    try:
        import timm
    except (ImportError, OSError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        raise PathUpError(
            f"timm cannot be imported ({' '.join(str(error).split())}); install it with: pip install 'pathup[evaluate]'"
            f", and a torchvision of the same build as torch {torch.__version__}"
        ) from error
    network = timm.create_model(**_ARCHITECTURE)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise PathUpError(
            f"{weights} does not fit timm's mobilenetv2_035 without its classifier; name other weights"
        ) from error
    return Extractor("timm mobilenetv2_035, pooled", storage.sha256_file(weights), network.eval().requires_grad_(False))
