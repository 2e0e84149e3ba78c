"""The tissue encoder: a small residual network whose pooled features tiles are compared by.

A folder holds it: ``config.json`` (architecture, levels and classes it was trained on) and ``model.safetensors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pathup import storage
from pathup.errors import PathUpError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class TissueEncoder(nn.Module):
    """A residual network (timm's ``resnet10t``) and the mean over space of its last two stages.

    The last stage alone tells classes apart; the one before it keeps more of grain, sharpness and compression, which a
    fidelity measure has to see as well.

    Parameters
    ----------
    channels
        Of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the size.
    input_px
        Side of the tiles that it was trained on, and that others are resized to.
    """

    def __init__(self, channels: Sequence[int], input_px: int) -> None:
        super().__init__()
        import timm

        self.channels, self.input_px = tuple(channels), input_px
        self.network = timm.create_model(
            "resnet10t", features_only=True, out_indices=(3, 4), channels=self.channels, pretrained=False
        )

    @property
    def width(self) -> int:
        """The number of features."""
        return sum(self.channels[-2:])

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Features (B, D) of pixels in [-1, 1], (B, 3, input_px, input_px)."""
        return torch.cat([stage.mean((2, 3)) for stage in self.network(pixels_BCHW)], 1)


def save_encoder(encoder: TissueEncoder, folder: Path, notes: dict[str, Any]) -> None:
    """Write an encoder's folder; `notes` (how it was made) go into its configuration.

    Raises
    ------
    PathUpError
        The folder could not be written.
    """
    with storage.atomic_folder(folder) as partial:
        config = {"architecture": "resnet10t", "channels": list(encoder.channels), "input_px": encoder.input_px}
        storage.write_json(partial / CONFIG_FILE, {**config, **notes})
        save_file({k: v.contiguous().cpu() for k, v in encoder.state_dict().items()}, partial / WEIGHTS_FILE)


def load_encoder(folder: Path) -> TissueEncoder:
    """Read an encoder that `save_encoder` wrote; frozen, fp32.

    Raises
    ------
    PathUpError
        A file is missing or damaged, or the weights do not fit the configuration.
    """
    config = storage.read_json(folder / CONFIG_FILE)
    try:
        channels, side = [int(width) for width in config["channels"]], int(config["input_px"])
    except (KeyError, TypeError, ValueError) as error:
        raise PathUpError(
            f"{folder / CONFIG_FILE} is no configuration of a tissue encoder ({error!r}); "
            "what 'pathup train encoder' wrote was needed"
        ) from error
    encoder = TissueEncoder(channels, side)
    try:
        encoder.load_state_dict({name: value.float() if value.is_floating_point() else value
                                 for name, value in load_file(folder / WEIGHTS_FILE).items()})  # fmt: skip
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PathUpError(f"{folder / WEIGHTS_FILE} cannot be loaded ({reason}); train the encoder again") from error
    return encoder.eval().requires_grad_(False)
