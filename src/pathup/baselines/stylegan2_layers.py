"""The layers of StyleGAN2 (Karras et al. 2020): equalised, modulated, and resampled by a binomial filter.

Weights are drawn from a standard normal distribution and multiplied, at each use, by ``gain / sqrt(inputs)``, so that
all of them learn at one rate (Karras et al. 2018). Activations are leaky with slope 0.2, times sqrt(2), which keeps
their mean square.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, leaky_relu, linear, pad

__all__ = [
    "EqualConv",
    "EqualLinear",
    "ModulatedConv",
    "activated",
    "at_least_single",
    "halved",
    "minibatch_deviation",
    "modulated_conv",
    "normalised",
]

BINOMIAL = (1.0, 3.0, 3.0, 1.0)
"""The filter that images and features are resampled by, a side."""

EPSILON = 1e-8


def activated(hidden: torch.Tensor) -> torch.Tensor:
    """``sqrt(2) leaky_relu(x, 0.2)``."""
    return leaky_relu(hidden, 0.2) * math.sqrt(2)


def at_least_single(values: torch.Tensor) -> torch.Tensor:
    """Half precision, as autocast leaves it, taken to single."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def normalised(values_BD: torch.Tensor) -> torch.Tensor:
    """Each row with mean square 1."""
    return values_BD * torch.rsqrt(values_BD.square().mean(1, keepdim=True) + EPSILON)


class _Binomial(torch.autograd.Function):
    """`filtered`, whose gradient is the same filter again.

    Differentiated twice, a convolution channel by channel would go through its channels one by one.
    """

    @staticmethod
    def forward(ctx: Any, images_BCHW: torch.Tensor, gain: float, margin: tuple[int, int]) -> torch.Tensor:
        ctx.gain, ctx.margin = gain, margin
        channels, (before, after) = images_BCHW.shape[1], margin
        row = images_BCHW.new_tensor(BINOMIAL)
        row = row / row.sum() * math.sqrt(gain)
        padded = pad(images_BCHW, (before, after, before, after))
        padded = conv2d(padded, row.view(1, 1, 1, 4).expand(channels, 1, 1, 4), groups=channels)
        return conv2d(padded, row.view(1, 1, 4, 1).expand(channels, 1, 4, 1), groups=channels)

    @staticmethod
    def backward(ctx: Any, gradient_BCHW: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        before, after = ctx.margin
        reach = len(BINOMIAL) - 1
        return _Binomial.apply(gradient_BCHW, ctx.gain, (reach - before, reach - after)), None, None


def filtered(images_BCHW: torch.Tensor, gain: float, margin: tuple[int, int]) -> torch.Tensor:
    """Each channel by the binomial filter (sum `gain`), with zeros on (left and top, right and bottom) first."""
    result: torch.Tensor = _Binomial.apply(images_BCHW, gain, margin)
    return result


def halved(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Half the height and width, by the binomial filter."""
    return filtered(images_BCHW, 1.0, (1, 1))[:, :, ::2, ::2]


def doubled(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Twice the height and width: zeros between pixels, then the binomial filter."""
    batch, channels, height, width = images_BCHW.shape
    spread = images_BCHW.new_zeros(batch, channels, height, 2, width, 2)
    spread[:, :, :, 0, :, 0] = images_BCHW
    return filtered(spread.view(batch, channels, 2 * height, 2 * width), 4.0, (2, 1))


class EqualLinear(nn.Module):
    """A fully connected layer of equalised learning rate.

    Parameters
    ----------
    inputs, outputs
        Channels.
    bias
        What the bias begins with.
    rate
        How much slower than the rest the layer learns (the mapping network's 0.01).
    """

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self._gain, self._rate = rate / math.sqrt(inputs), rate

    def forward(self, values_BD: torch.Tensor) -> torch.Tensor:
        """(B, inputs) to (B, outputs)."""
        return linear(values_BD, self.weight * self._gain, self.bias * self._rate)


class EqualConv(nn.Module):
    """A convolution of equalised learning rate that keeps the size, or halves it after the binomial filter.

    Parameters
    ----------
    inputs, outputs
        Channels.
    side
        Of the kernel, odd.
    halve
        Half the height and width.
    bias
        Whether there is one.
    """

    def __init__(self, inputs: int, outputs: int, side: int, *, halve: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, side, side))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self._gain, self._halve, self._margin = 1 / math.sqrt(inputs * side * side), halve, side // 2

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W) or half of that."""
        weight = self.weight * self._gain
        if not self._halve:
            return conv2d(images_BCHW, weight, self.bias, padding=self._margin)
        if self._margin == 0:  # a 1 x 1 kernel may come after the halving, at a quarter of the cost
            return conv2d(halved(images_BCHW), weight, self.bias)
        margin = self._margin + 1  # the kernel's and the filter's
        return conv2d(filtered(images_BCHW, 1.0, (margin, margin)), weight, self.bias, stride=2)


def modulated_conv(
    images_BCHW: torch.Tensor,
    weight_OCKK: torch.Tensor,
    style_BC: torch.Tensor,
    *,
    demodulate: bool = True,
    double: bool = False,
) -> torch.Tensor:
    """Convolve each image with weights scaled by its own style (Karras et al. 2020, equations 1 and 3).

    ``w'_bock = s_bc w_ock``, and with `demodulate` ``w''_bock = w'_bock / sqrt(sum_ck w'_bock^2 + eps)``, so that
    outputs have the deviation 1 where inputs have. Scaling the inputs by s and the outputs by the root is the same
    and needs no weights of each image's own.

    Parameters
    ----------
    images_BCHW
        Inputs.
    weight_OCKK
        Shared weights, with an odd kernel.
    style_BC
        One factor an image and input channel.
    demodulate
        Divide by the norm.
    double
        Twice the height and width: a transposed convolution, then the binomial filter.

    Returns
    -------
    torch.Tensor
        (B, O, H, W), or (B, O, 2 H, 2 W).
    """
    side = weight_OCKK.shape[-1]
    scaled = images_BCHW * style_BC[:, :, None, None].to(images_BCHW.dtype)
    if double:
        spread = conv_transpose2d(scaled, weight_OCKK.transpose(0, 1), stride=2)  # 2 H + side - 2
        before = 1 + (3 - side) // 2
        result = filtered(spread, 4.0, (before, before))
    else:
        result = conv2d(scaled, weight_OCKK, padding=side // 2)
    if demodulate:
        squares_OC = at_least_single(weight_OCKK).square().sum((2, 3))
        power_BO = (at_least_single(style_BC).square()[:, None] * squares_OC).sum(
            2
        )  # by autocast, a product would be rounded
        result = result * torch.rsqrt(power_BO + EPSILON)[:, :, None, None].to(result.dtype)
    return result


class ModulatedConv(nn.Module):
    """`modulated_conv` with its own weights, the style from w, noise, a bias and (unless it ends in RGB) activation.

    Parameters
    ----------
    inputs, outputs
        Channels.
    style
        Channels of w.
    side
        Of the kernel.
    double
        Twice the height and width.
    to_rgb
        The end of a block: neither demodulated, nor noisy, nor activated.
    """

    def __init__(
        self, inputs: int, outputs: int, style: int, side: int, *, double: bool = False, to_rgb: bool = False
    ) -> None:
        super().__init__()
        self.affine = EqualLinear(style, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, side, side))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = None if to_rgb else nn.Parameter(torch.zeros(()))
        self._gain, self._double, self._to_rgb = 1 / math.sqrt(inputs * side * side), double, to_rgb

    def forward(self, images_BCHW: torch.Tensor, w_BD: torch.Tensor, noise_B1HW: torch.Tensor | None) -> torch.Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W), or twice as high and wide; the noise is of the output's size."""
        style = self.affine(w_BD)
        weight = self.weight * self._gain
        result = modulated_conv(images_BCHW, weight, style, demodulate=not self._to_rgb, double=self._double)
        if self.noise_strength is not None and noise_B1HW is not None:
            result = result + (noise_B1HW * self.noise_strength).to(result.dtype)
        result = result + self.bias[:, None, None].to(result.dtype)
        return result if self._to_rgb else activated(result)


def minibatch_deviation(hidden_BCHW: torch.Tensor, group: int) -> torch.Tensor:
    """Append a channel with the features' deviation over groups of images (Karras et al. 2018).

    A discriminator that sees how much images differ from each other can punish a generator that draws one image.

    Parameters
    ----------
    hidden_BCHW
        Features; image b is in one group with b + B/group, b + 2 B/group, and so on.
    group
        Images a group; less where the batch is not a multiple of it: the largest divisor of the batch up to it.
    """
    batch, channels, height, width = hidden_BCHW.shape
    size = max(own for own in range(1, min(group, batch) + 1) if batch % own == 0)
    grouped = at_least_single(hidden_BCHW).view(size, batch // size, channels, height, width)
    deviation = (grouped.var(0, unbiased=False) + EPSILON).sqrt().mean((1, 2, 3))
    plane = deviation.repeat(size).view(batch, 1, 1, 1).expand(batch, 1, height, width)
    return torch.cat([hidden_BCHW, plane.to(hidden_BCHW.dtype)], 1)
