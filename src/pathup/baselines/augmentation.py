"""Adaptive discriminator augmentation (Karras et al. 2020b): a discriminator that sees few images, changed.

With some thousand images a discriminator learns them by heart, and its verdicts teach nothing more. So all that it
sees, real and generated, is changed at random, each way with probability p; while p is below 0.8 the generator does not
learn to draw the changes. p rises while verdicts on real images are too sure.

Changes are the paper's pixel blitting, general geometry and colour. Geometry is one affine map an image, by bilinear
interpolation with mirrored rims (the paper's wavelet filters against aliasing are left out).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import affine_grid, grid_sample

__all__ = ["AugmentationControl", "augmented"]

SHIFT, FRACTIONAL_SHIFT = 0.125, 0.125
"""Largest whole-pixel shift, and the deviation of the other, as shares of the side."""

SCALE, ASPECT = 0.2, 0.2
"""Deviations of the logarithms to base 2 of scale and aspect."""

BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.0
"""Deviations of an added constant, and of the logarithms to base 2 of two factors."""


def augmented(images_BCHW: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Images, each way of changing them applied to each with this probability.

    Parameters
    ----------
    images_BCHW
        In [-1, 1], square, RGB.
    probability
        p, 0 to 1; with 0 nothing is changed.
    generator
        On the CPU; it gives the same number of values whatever `probability` is.

    Returns
    -------
    torch.Tensor
        The same shape, differentiable once with respect to the images.
    """
    count, side = images_BCHW.shape[0], images_BCHW.shape[-1]
    geometry = _geometry(count, side, probability, generator)
    colour = _colour(count, probability, generator)
    if probability <= 0:
        return images_BCHW
    device, kind = images_BCHW.device, torch.float32
    colour = colour.to(device, kind)
    with torch.autocast(device.type, enabled=False):  # in bfloat16, places would be off by half a pixel
        grid = affine_grid(geometry[:, :2].to(device, kind), list(images_BCHW.shape), align_corners=False)
        moved = grid_sample(images_BCHW.to(kind), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        return torch.einsum("bij,bjhw->bihw", colour[:, :3, :3], moved) + colour[:, :3, 3, None, None]


@dataclass
class AugmentationControl:
    """p, steered by how sure the discriminator is of real images.

    ``r_t = E[sign(D(real))]`` over `INTERVAL` steps: above `target`, p rises by the tiles seen over `tiles`, else it
    falls by that. `state` is (p, sum of signs, number of signs).

    Parameters
    ----------
    target
        r_t that is aimed at.
    tiles
        Real tiles seen while p goes from 0 to 1 at the fastest.
    """

    target: float
    tiles: int

    INTERVAL = 4

    @staticmethod
    def begin() -> torch.Tensor:
        """The state before the first step."""
        return torch.zeros(3, dtype=torch.float64)

    def after(self, state_3: torch.Tensor, step: int, real_B: torch.Tensor) -> torch.Tensor:
        """The state after a step (counted from 0) with these verdicts on real images."""
        signs = real_B.detach().sign()
        probability, total, count = (float(value) for value in state_3)
        total, count = total + float(signs.sum()), count + len(signs)
        if (step + 1) % self.INTERVAL == 0:
            direction = math.copysign(1.0, total / count - self.target) if total / count != self.target else 0.0
            probability = min(1.0, max(0.0, probability + direction * count / self.tiles))
            total, count = 0.0, 0
        return torch.tensor([probability, total, count], dtype=torch.float64)


def _geometry(count: int, side: int, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Maps from places in the result to places in the image, (B, 3, 3), in units of half the side."""
    chosen = _Draws(count, probability, generator)
    eye = torch.eye(3, dtype=torch.float64).expand(count, 3, 3)
    total = eye
    flip = torch.where(chosen.uniform() < 0.5, -1.0, 1.0)
    total = total @ chosen.applied(_scaling(flip, torch.ones(count)))
    quarter = (chosen.uniform() * 4).floor() * (math.pi / 2)
    total = total @ chosen.applied(_rotation(quarter))
    across, down = (2 * (2 * chosen.uniform() - 1) * SHIFT for _ in range(2))
    whole = 2.0 / side  # shifts by whole pixels
    total = total @ chosen.applied(_shift((across / whole).round() * whole, (down / whole).round() * whole))
    scale = torch.exp2(chosen.normal() * SCALE)
    total = total @ chosen.applied(_scaling(1 / scale, 1 / scale))
    angle_share = 1 - math.sqrt(max(0.0, 1 - probability))  # of two rotations: either with probability p
    total = total @ chosen.applied(_rotation((2 * chosen.uniform() - 1) * math.pi), angle_share)
    aspect = torch.exp2(chosen.normal() * ASPECT)
    total = total @ chosen.applied(_scaling(1 / aspect, aspect))
    total = total @ chosen.applied(_rotation((2 * chosen.uniform() - 1) * math.pi), angle_share)
    across, down = (2 * chosen.normal() * FRACTIONAL_SHIFT for _ in range(2))
    return total @ chosen.applied(_shift(across, down))


def _colour(count: int, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Affine maps of RGB in [-1, 1], (B, 4, 4)."""
    chosen = _Draws(count, probability, generator)
    eye = torch.eye(4, dtype=torch.float64)
    axis = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64) / math.sqrt(3)  # grey
    along = torch.outer(axis, axis)
    brightness = eye.repeat(count, 1, 1)
    brightness[:, :3, 3] = (chosen.normal() * BRIGHTNESS)[:, None]
    total = chosen.applied(brightness)
    contrast = eye.repeat(count, 1, 1)
    contrast[:, range(3), range(3)] = torch.exp2(chosen.normal() * CONTRAST)[:, None]
    total = chosen.applied(contrast) @ total
    flip = (chosen.uniform() < 0.5).double()[:, None, None]
    total = chosen.applied(eye - 2 * along * flip) @ total
    total = chosen.applied(_about_grey((2 * chosen.uniform() - 1) * math.pi)) @ total
    saturation = torch.exp2(chosen.normal() * SATURATION)[:, None, None]
    return chosen.applied(along + (eye - along) * saturation - _corner(saturation)) @ total


def _corner(factor_B11: torch.Tensor) -> torch.Tensor:
    """Takes the factor from the last entry of the diagonal, which is to be 1."""
    corner = torch.zeros(4, 4, dtype=torch.float64)
    corner[3, 3] = 1
    return corner * (factor_B11 - 1)


class _Draws:
    """Values an image, and whether a change is applied to it."""

    def __init__(self, count: int, probability: float, generator: torch.Generator) -> None:
        self._count, self._probability, self._generator = count, probability, generator

    def uniform(self) -> torch.Tensor:
        return torch.rand(self._count, generator=self._generator, dtype=torch.float64)

    def normal(self) -> torch.Tensor:
        return torch.randn(self._count, generator=self._generator, dtype=torch.float64)

    def applied(self, maps_BNN: torch.Tensor, probability: float | None = None) -> torch.Tensor:
        """The maps, or nothing changed, image by image."""
        wanted = self.uniform() < (self._probability if probability is None else probability)
        return torch.where(wanted[:, None, None], maps_BNN.double(), torch.eye(maps_BNN.shape[-1], dtype=torch.float64))


def _scaling(across_B: torch.Tensor, down_B: torch.Tensor) -> torch.Tensor:
    maps = torch.zeros(len(across_B), 3, 3, dtype=torch.float64)
    maps[:, 0, 0], maps[:, 1, 1], maps[:, 2, 2] = across_B, down_B, 1
    return maps


def _rotation(angle_B: torch.Tensor) -> torch.Tensor:
    maps = torch.zeros(len(angle_B), 3, 3, dtype=torch.float64)
    maps[:, 0, 0] = maps[:, 1, 1] = angle_B.cos()
    maps[:, 0, 1], maps[:, 1, 0], maps[:, 2, 2] = -angle_B.sin(), angle_B.sin(), 1
    return maps


def _shift(across_B: torch.Tensor, down_B: torch.Tensor) -> torch.Tensor:
    maps = torch.eye(3, dtype=torch.float64).repeat(len(across_B), 1, 1)
    maps[:, 0, 2], maps[:, 1, 2] = across_B, down_B
    return maps


def _about_grey(angle_B: torch.Tensor) -> torch.Tensor:
    """Rotations of RGB about the axis of greys: hues change, (B, 4, 4); Rodrigues' formula."""
    u = 1 / math.sqrt(3)
    cross = torch.tensor([[0.0, -u, u], [u, 0.0, -u], [-u, u, 0.0]], dtype=torch.float64)
    along = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    cosine, sine = angle_B.cos()[:, None, None], angle_B.sin()[:, None, None]
    maps = torch.eye(4, dtype=torch.float64).repeat(len(angle_B), 1, 1)
    maps[:, :3, :3] = cosine * torch.eye(3, dtype=torch.float64) + sine * cross + (1 - cosine) * along
    return maps
