"""RRDBNet, the network of ESRGAN (Wang et al. 2018) and BSRGAN: it enlarges by 4, without normalisation layers.

Its weights are named as BSRGAN's published ones, so those load here, and what is written here loads where those do
(spandrel takes blocks of 32 channels of growth, the published number).
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import interpolate, leaky_relu

from pathup.errors import PathUpError

__all__ = ["FACTOR", "RRDBNet", "load_published"]

FACTOR = 4
"""How many times wider and higher images get."""

RESIDUAL_SCALE = 0.2
"""Of what a block adds (Wang et al. 2018, beta)."""
INITIAL_SCALE = 0.1
"""Of the initial weights in dense blocks, times He's: deep networks without normalisation want small ones."""

SUFFIXES = (".pth", ".safetensors")
"""Of files with published weights."""


class DenseBlock(nn.Module):
    """Five convolutions, each of all that came before it; the last one's output is added to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, growth, INITIAL_SCALE)
        self.conv2 = _conv(channels + growth, growth, INITIAL_SCALE)
        self.conv3 = _conv(channels + 2 * growth, growth, INITIAL_SCALE)
        self.conv4 = _conv(channels + 3 * growth, growth, INITIAL_SCALE)
        self.conv5 = _conv(channels + 4 * growth, channels, INITIAL_SCALE)

    def forward(self, hidden_BCHW: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        known = hidden_BCHW
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            known = torch.cat([known, leaky_relu(conv(known), 0.2, inplace=True)], 1)
        return hidden_BCHW + RESIDUAL_SCALE * self.conv5(known)


class ResidualInResidualBlock(nn.Module):
    """Three dense blocks, whose output is added to the input (RRDB)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.RDB1, self.RDB2, self.RDB3 = (DenseBlock(channels, growth) for _ in range(3))

    def forward(self, hidden_BCHW: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        return hidden_BCHW + RESIDUAL_SCALE * self.RDB3(self.RDB2(self.RDB1(hidden_BCHW)))


class RRDBNet(nn.Module):
    """Blocks at the low resolution, then two doublings by nearest neighbour with a convolution each.

    Parameters
    ----------
    channels
        Of features; 64 in the published networks.
    growth
        Channels that each convolution of a dense block adds; 32 there.
    blocks
        Residual-in-residual dense blocks; 23 there.
    """

    def __init__(self, channels: int, growth: int, blocks: int) -> None:
        super().__init__()
        self.sizes = {"channels": channels, "growth": growth, "blocks": blocks}
        """The constructor's arguments."""
        self.conv_first = _conv(3, channels)
        self.RRDB_trunk = nn.Sequential(*(ResidualInResidualBlock(channels, growth) for _ in range(blocks)))
        self.trunk_conv = _conv(channels, channels)
        self.upconv1 = _conv(channels, channels)
        self.upconv2 = _conv(channels, channels)
        self.HRconv = _conv(channels, channels)
        self.conv_last = _conv(channels, 3)

    @property
    def reach_px(self) -> int:
        """How far from the pixel that it lies in an enlarged pixel's value may depend on, in low-resolution pixels.

        One for each 3 x 3 convolution at the low resolution (15 a block), and 2 for all those at higher ones.
        """
        return 15 * self.sizes["blocks"] + 4

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, 4 H, 4 W) for images (B, 3, H, W), both RGB in [0, 1] (the result not clipped)."""
        first = self.conv_first(pixels_BCHW)
        hidden = first + self.trunk_conv(self.RRDB_trunk(first))
        for conv in (self.upconv1, self.upconv2):
            hidden = leaky_relu(conv(interpolate(hidden, scale_factor=2, mode="nearest")), 0.2, inplace=True)
        return self.conv_last(leaky_relu(self.HRconv(hidden), 0.2, inplace=True))


def _conv(inputs: int, outputs: int, scale: float = 1.0) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, a=0.2)
    with torch.no_grad():
        conv.weight *= scale
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


def load_published(path: Path) -> RRDBNet:
    """A network with published weights, on the CPU and in evaluation mode.

    spandrel reads the file; of a ``.pth`` its unpickler takes tensors in dictionaries and nothing else, so no code in
    one is run. Names of weights may be those of BSRGAN, of the first ESRGAN or of Real-ESRGAN.

    Raises
    ------
    PathUpError
        There is no such file, it is neither ``.pth`` nor ``.safetensors``, it is damaged or holds no weights, or they
        are of another network or of one that does not enlarge RGB by 4.
    """
    from spandrel import ModelLoader  # here: it imports every architecture that it knows

    needed = (
        "the weights of an RRDB network (BSRGAN, ESRGAN) that enlarges RGB by 4 were needed, as .pth or .safetensors"
    )
    if not path.is_file():
        raise PathUpError(f"{path} is no file; {needed}")
    if path.suffix.lower() not in SUFFIXES:
        raise PathUpError(f"{path} ends in '{path.suffix}'; {needed}")
    try:
        found = ModelLoader("cpu").load_from_file(path)
    except Exception as error:  # of pickle, zipfile, torch, safetensors, spandrel: whatever its bytes lead to
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PathUpError(f"{path} holds no image model that can be read ({reason}); {needed}") from error
    state = found.model.state_dict()
    plain = found.architecture.id == "ESRGAN" and not any("conv1x1" in name for name in state)
    if not plain or (found.scale, found.input_channels, found.output_channels) != (FACTOR, 3, 3):
        raise PathUpError(
            f"{path} holds a model of type {found.architecture.name} that enlarges by {found.scale} and takes "
            f"{found.input_channels} channel(s) to {found.output_channels}; {needed}"
        )
    tensors = _published_names(state)
    network = RRDBNet(
        channels=tensors["conv_first.weight"].shape[0],
        growth=tensors["RRDB_trunk.0.RDB1.conv1.weight"].shape[0],
        blocks=len({name.split(".")[1] for name in tensors if name.startswith("RRDB_trunk.")}),
    )
    network.load_state_dict(tensors)
    return network.eval()


def _published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of spandrel's network, which counts layers, by the names of BSRGAN's."""
    block = re.compile(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.")
    trunk = re.compile(r"model\.1\.sub\.\d+\.(?=weight|bias)")
    others = {"0": "conv_first", "3": "upconv1", "6": "upconv2", "8": "HRconv", "10": "conv_last"}
    named = {}
    for name, value in state.items():
        renamed = trunk.sub("trunk_conv.", block.sub(r"RRDB_trunk.\1.RDB\2.conv\3.", name))
        named[re.sub(r"^model\.(\d+)\.", lambda found: f"{others[found[1]]}.", renamed)] = value
    return named
