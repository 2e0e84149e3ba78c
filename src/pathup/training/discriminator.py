"""The patch discriminator of the autoencoder's adversarial term, and the losses between images."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, l1_loss, leaky_relu, relu
from torch.nn.utils.parametrizations import spectral_norm

TEXTURE_WINDOW = 16
"""Side of the windows in which detail is measured, in pixels: about a nucleus at 0.5 micrometres a pixel."""

FINEST_GAIN = 8.0
"""Brings the finest octave of H&E at 0.5 micrometres a pixel, of deviation about 0.1, to that of the image."""


def finest_octave(pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """What an image loses when it is halved (mean of 2 x 2) and enlarged again (bilinear); the same shape."""
    return pixels_BCHW - interpolate(avg_pool2d(pixels_BCHW, 2), scale_factor=2, mode="bilinear")


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches of an image as real or reconstructed (Isola et al. 2017), spectrally normalised.

    It sees the image and, amplified, its finest octave: grain and the sharpness of edges are faint beside stain and
    shape, and spectral normalisation bounds how loud a layer can make them. Pixels are first folded 2 x 2 into
    channels, since full-resolution convolutions cost most.

    Parameters
    ----------
    channels
        Width of the first layer; doubled at each of the two halvings that follow.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels, 2 * channels, 4 * channels]
        self.fold = nn.PixelUnshuffle(2)
        self.layers = nn.ModuleList(
            spectral_norm(layer)
            for layer in (
                nn.Conv2d(24, widths[0], 3, padding=1),
                nn.Conv2d(widths[0], widths[1], 4, stride=2, padding=1),
                nn.Conv2d(widths[1], widths[2], 4, stride=2, padding=1),
            )
        )
        self.verdict = spectral_norm(nn.Conv2d(widths[2], 1, 3, padding=1))

    def forward(self, pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Verdicts (B, 1, H/8, W/8), positive for real, and each layer's features, for pixels in [-1, 1]."""
        features = []
        hidden = self.fold(torch.cat([pixels_BCHW, FINEST_GAIN * finest_octave(pixels_BCHW)], 1))
        for layer in self.layers:
            hidden = leaky_relu(layer(hidden), 0.2)
            features.append(hidden)
        return self.verdict(hidden), features


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Hinge loss ``mean(relu(1 - real)) + mean(relu(1 + fake))`` over verdicts (Lim and Ye 2017)."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def feature_matching_loss(
    real: list[torch.Tensor], fake: list[torch.Tensor], window_px: int = TEXTURE_WINDOW
) -> torch.Tensor:
    """Mean absolute difference of the discriminator's features, each layer scaled by its own real magnitude.

    A perceptual distance learnt from the tissue itself (Salimans et al. 2016; Wang et al. 2018). Features are averaged
    over windows of `window_px` pixels that overlap by half before they are compared: what kind of grain there is can be
    foretold from a latent, where each speck of it lies cannot, and an error position by position (1 px) would reward
    having none.
    """
    terms = []
    for layer, (r, f) in enumerate(zip(real, fake, strict=True)):
        window = min(max(1, window_px >> (layer + 1)), *r.shape[-2:])  # layers halve the image 1, 2, 3 times
        near, far = (avg_pool2d(features, window, stride=max(1, window // 2)) for features in (f, r.detach()))
        terms.append(l1_loss(near, far) / far.abs().mean().clamp_min(1e-6))
    return torch.stack(terms).mean()


def gradient_loss(fake_BCHW: torch.Tensor, real_BCHW: torch.Tensor, scales: int = 3) -> torch.Tensor:
    """Mean absolute difference of horizontal and vertical image gradients at `scales` halvings.

    It weighs edges (nuclear membranes, gland borders), which a plain pixel error blurs.
    """
    total = fake_BCHW.new_zeros(())
    for scale in range(scales):
        if scale:
            fake_BCHW, real_BCHW = avg_pool2d(fake_BCHW, 2), avg_pool2d(real_BCHW, 2)
        difference = fake_BCHW - real_BCHW
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return total / scales


_GREY_LEVEL = 2 / 255  # of values in [-1, 1]: detail fainter than this is rounding
_SECOND, _FOURTH = torch.tensor([1.0, -2.0, 1.0]) / 4, torch.tensor([1.0, -4.0, 6.0, -4.0, 1.0]) / 16


def texture_loss(fake_BCHW: torch.Tensor, real_BCHW: torch.Tensor, scales: int = 2) -> torch.Tensor:
    r"""Mean absolute difference of the log amplitude of local detail.

    .. math:: |\log a(fake) - \log a(real)|, \quad a = \sqrt{mean_{window}(band^2) + g^2}

    over three bands of every colour at `scales` halvings, in windows of `TEXTURE_WINDOW` pixels that overlap by half;
    g is one grey level. The bands are the horizontal and vertical fourth differences and the product of both second
    differences: tissue's spectrum falls so steeply that gentler filters would see little of the finest octave.
    Fine grain cannot be foretold pixel by pixel, so errors of pixels and gradients blur it away; how strong it is,
    and in which direction, can.
    """
    terms = []
    for scale in range(scales):
        if scale:
            fake_BCHW, real_BCHW = avg_pool2d(fake_BCHW, 2), avg_pool2d(real_BCHW, 2)
        window = TEXTURE_WINDOW >> scale
        terms.append(l1_loss(_log_amplitude(fake_BCHW, window), _log_amplitude(real_BCHW, window)))
    return torch.stack(terms).mean()


def _log_amplitude(pixels_BCHW: torch.Tensor, window: int) -> torch.Tensor:
    channels = pixels_BCHW.shape[1]
    terms = []
    for kernel in (_FOURTH[None], _FOURTH[:, None], torch.outer(_SECOND, _SECOND)):
        band = conv2d(pixels_BCHW, kernel.to(pixels_BCHW).expand(channels, 1, *kernel.shape), groups=channels)
        size = min(window, *band.shape[-2:])
        energy = avg_pool2d(band.square(), size, stride=max(1, window // 2))
        terms.append(0.5 * torch.log(energy + _GREY_LEVEL**2).flatten(1))
    return torch.cat(terms, 1)
