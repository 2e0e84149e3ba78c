"""StyleGAN2's generator and discriminator (Karras et al. 2020), conditional on a group: a class at a level.

The generator maps noise z and a group to a style w, and w to an image that grows from 4 x 4, each resolution adding its
own RGB to the enlarged one before (skip connections). The discriminator is residual, and its verdict is the product of
its features with an embedding of the group (projection; Miyato and Koyama 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from pathup import draws
from pathup.baselines.stylegan2_layers import (
    EqualConv,
    EqualLinear,
    ModulatedConv,
    activated,
    at_least_single,
    doubled,
    minibatch_deviation,
    normalised,
)
from pathup.recipes import StyleGAN2Recipe

__all__ = ["Discriminator", "Generator", "build_discriminator", "build_generator"]

MAPPING_RATE = 0.01
"""How much slower the mapping network learns."""

MEAN_STYLE_RATE = 0.005
"""Of the moving average of w."""


class Mapping(nn.Module):
    """z and a group to w.

    Parameters
    ----------
    groups
        How many there are.
    size
        Channels of z and of w.
    layers
        Fully connected layers.
    """

    def __init__(self, groups: int, size: int, layers: int) -> None:
        super().__init__()
        self.embedding = EqualLinear(groups, size)
        widths = [2 * size, *[size] * layers]
        self.layers = nn.ModuleList(EqualLinear(wide, narrow, rate=MAPPING_RATE) for wide, narrow in pairwise(widths))
        self.register_buffer("mean_w", torch.zeros(size))
        self._groups = groups

    mean_w: torch.Tensor

    def forward(self, z_BD: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
        """Styles w, (B, D), float32."""
        one_hot = nn.functional.one_hot(group_B, self._groups).to(z_BD.dtype) * math.sqrt(self._groups)
        hidden = torch.cat([normalised(z_BD), normalised(self.embedding(one_hot))], 1)
        for layer in self.layers:
            hidden = activated(layer(hidden))
        return hidden

    @torch.no_grad()
    def follow(self, w_BD: torch.Tensor) -> None:
        """Move the mean style towards these."""
        self.mean_w.lerp_(w_BD.detach().float().mean(0), MEAN_STYLE_RATE)


class Generator(nn.Module):
    """Images of groups.

    Parameters
    ----------
    groups
        Classes x levels.
    channels
        Of the resolutions 4, 8, 16, ...
    latent_size
        Channels of z and of w.
    mapping_layers
        Of the mapping network.
    """

    def __init__(self, groups: int, channels: Sequence[int], latent_size: int, mapping_layers: int) -> None:
        super().__init__()
        self.latent_size, self.side = latent_size, 4 * 2 ** (len(channels) - 1)
        self.mapping = Mapping(groups, latent_size, mapping_layers)
        self.constant = nn.Parameter(torch.randn(1, channels[0], 4, 4))
        self.convs, self.rgbs = nn.ModuleList(), nn.ModuleList()
        self.noise_sides: list[int] = []
        """Sides of the noise that the convolutions take, in their order."""
        for number, wide in enumerate(channels):
            side = 4 * 2**number
            if number:
                self.convs.append(ModulatedConv(channels[number - 1], wide, latent_size, 3, double=True))
                self.noise_sides.append(side)
            self.convs.append(ModulatedConv(wide, wide, latent_size, 3))
            self.noise_sides.append(side)
            self.rgbs.append(ModulatedConv(wide, 3, latent_size, 1, to_rgb=True))

    @property
    def layers(self) -> int:
        """Styles that an image takes: one a convolution, and one for the last RGB."""
        return len(self.convs) + 1

    @property
    def noise_values(self) -> int:
        """Noise values of an image, over all layers."""
        return sum(side * side for side in self.noise_sides)

    def forward(self, w_BLD: torch.Tensor, noise_BN: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] (not clipped), (B, 3, side, side).

        Parameters
        ----------
        w_BLD
            A style for each of the `layers`.
        noise_BN
            Standard normal, `noise_values` an image.
        """
        parts = noise_BN.split([side * side for side in self.noise_sides], dim=1)
        planes = [part.view(-1, 1, side, side) for part, side in zip(parts, self.noise_sides, strict=True)]
        hidden = self.convs[0](self.constant.expand(len(w_BLD), -1, -1, -1), w_BLD[:, 0], planes[0])
        image, place = at_least_single(self.rgbs[0](hidden, w_BLD[:, 1], None)), 1
        for rgb in self.rgbs[1:]:
            for _ in range(2):
                hidden = self.convs[place](hidden, w_BLD[:, place], planes[place])
                place += 1
            own = rgb(hidden, w_BLD[:, place], None)  # the style of the next convolution, as the paper has it
            image = doubled(image) + at_least_single(own)
        return image

    def styles(self, z_BD: torch.Tensor, group_B: torch.Tensor, *, truncation: float = 1.0) -> torch.Tensor:
        """The same style for all layers, (B, L, D); with `truncation` below 1, nearer to the mean style."""
        w_BD = self.mapping(z_BD, group_B)
        if truncation != 1:
            w_BD = self.mapping.mean_w + truncation * (w_BD - self.mapping.mean_w)
        return w_BD[:, None].expand(-1, self.layers, -1)


class ResidualBlock(nn.Module):
    """Two convolutions beside a 1 x 1 one; the size is halved."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = EqualConv(inputs, inputs, 3)
        self.second = EqualConv(inputs, outputs, 3, halve=True)
        self.beside = EqualConv(inputs, outputs, 1, halve=True, bias=False)

    def forward(self, hidden_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) to (B, outputs, H/2, W/2)."""
        inner = activated(self.second(activated(self.first(hidden_BCHW))))
        return (inner + self.beside(hidden_BCHW)) * math.sqrt(0.5)


class Discriminator(nn.Module):
    """Verdicts on images of groups.

    Parameters
    ----------
    groups
        Classes x levels.
    channels
        Of the resolutions 4, 8, 16, ..., as the generator's.
    deviation_group
        Images over which it sees the deviation.
    """

    def __init__(self, groups: int, channels: Sequence[int], deviation_group: int) -> None:
        super().__init__()
        wide = channels[0]
        self.from_rgb = EqualConv(3, channels[-1], 1)
        self.blocks = nn.ModuleList(
            ResidualBlock(fine, coarse) for fine, coarse in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.last_conv = EqualConv(wide + 1, wide, 3)
        self.hidden = EqualLinear(wide * 16, wide)
        self.out = EqualLinear(wide, wide)
        self.embedding = EqualLinear(groups, wide)
        self._groups, self._deviation_group = groups, deviation_group

    def forward(self, images_BCHW: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
        """Verdicts (B,), positive for real, of images in [-1, 1]."""
        hidden = activated(self.from_rgb(images_BCHW))
        for block in self.blocks:
            hidden = block(hidden)
        hidden = activated(self.last_conv(minibatch_deviation(hidden, self._deviation_group)))
        features = at_least_single(self.out(activated(self.hidden(hidden.flatten(1)))))
        one_hot = nn.functional.one_hot(group_B, self._groups).to(self.embedding.weight.dtype) * math.sqrt(self._groups)
        asked = normalised(at_least_single(self.embedding(one_hot)))
        return (features * asked).sum(1) / math.sqrt(features.shape[1])


def build_generator(spec: StyleGAN2Recipe, groups: int) -> Generator:
    """A generator with weights drawn from the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.seed_of(spec.seed, "weights", "generator"))
        return Generator(groups, spec.channels, spec.latent_size, spec.mapping_layers)


def build_discriminator(spec: StyleGAN2Recipe, groups: int) -> Discriminator:
    """A discriminator with weights drawn from the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.seed_of(spec.seed, "weights", "discriminator"))
        return Discriminator(groups, spec.channels, spec.minibatch_std)
