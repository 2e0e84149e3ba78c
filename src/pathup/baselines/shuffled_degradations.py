"""BSRGAN's degradation model (Zhang et al. 2021): how a sharp image becomes a worse one of a fourth of its side.

Two Gaussian blurs, a downsampling, Gaussian noise and, mostly, a JPEG compression follow each other in an order that is
drawn for every image; a JPEG compression ends it. For a factor of 4, every fourth image is halved first and then goes
through the model of factor 2. Ranges and probabilities are after the paper; its range for the axes of the anisotropic
kernel is read as one of variances, so that both kernels are as wide.

The paper's camera sensor noise is left out: it is made by going back to a camera's raw image and forth again, and
slide scanners' images are no such thing. Bilinear and bicubic resizing are Pillow's, whose kernels widen with the
factor, so that only nearest-neighbour sampling folds fine detail into coarse.

Within this module an image is float32 RGB in [0, 1], (H, W, 3). Every step is a function of it and of `draw`.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.signal import fftconvolve

from pathup.errors import PathUpError

__all__ = [
    "STEPS",
    "anisotropic_blur",
    "degraded",
    "downsampling",
    "filtered",
    "gaussian_kernel",
    "gaussian_noise",
    "isotropic_blur",
    "jpeg_compression",
    "resized",
    "shuffled_order",
]

ISOTROPIC_WIDTH_PX = {2: (0.1, 2.4), 4: (0.1, 2.8)}
"""Deviation of the isotropic kernel, by the factor."""
ANISOTROPIC_VARIANCES = {2: (0.5, 6.0), 4: (0.5, 8.0)}
"""Variances along the axes of the anisotropic kernel, in square pixels, by the factor: as wide as the isotropic one."""
KERNEL_SIDES_PX = tuple(range(7, 22, 2))
SHIFTED_KERNEL_SIDE_PX = 21
SHIFTED_KERNEL_WIDTH = 0.6
"""Largest deviation of the blur before nearest-neighbour sampling, times the factor; the smallest is 0.1 px."""
HALVED_FIRST = 0.25
"""Share of the images that are halved first, where the factor is 4."""
NOISE_LEVELS = (1, 25)
"""Deviation of the noise, in grey levels of 255."""
NOISE_KINDS = {"independent": 0.4, "grey": 0.4, "correlated": 0.2}
"""Shares: one draw a channel, one for all three, or three of any covariance."""
JPEG_QUALITY = (30, 95)
COMPRESSED_AMID = 0.75
"""Share of the images that have the compression within the shuffled steps; all have the last one."""

_METHODS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_DOWNSAMPLINGS = ("nearest", "bilinear", "bicubic", "down-up")


def gaussian_kernel(
    side_px: int, axes_px: tuple[float, float], angle: float = 0.0, shift_px: float = 0.0
) -> np.ndarray:
    r"""A Gaussian kernel that sums to 1, float64 (side, side).

    .. math:: k(r) \propto \exp(-\tfrac12 (r - c)^T \Sigma^{-1} (r - c)), \quad \Sigma = R\,diag(a_1^2, a_2^2)\,R^T

    Parameters
    ----------
    side_px
        Odd.
    axes_px
        The deviations a along the axes.
    angle
        By which the rotation R turns the first axis from the horizontal, in radians.
    shift_px
        How far the centre c lies to the right of and below the middle.
    """
    across = np.arange(side_px) - side_px // 2 - shift_px
    x, y = across[None, :], across[:, None]
    along, beside = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    exponent = 0.5 * ((along / axes_px[0]) ** 2 + (beside / axes_px[1]) ** 2)
    kernel = np.exp(exponent.min() - exponent)
    return kernel / kernel.sum()


def filtered(pixels_HWC: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Each channel's correlation with a kernel of odd side; the border is reflected, so the size stays."""
    reach = kernel.shape[0] // 2
    wide = np.pad(pixels_HWC, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    turned = kernel[::-1, ::-1, None].astype(np.float32)
    return np.clip(fftconvolve(wide, turned, mode="valid", axes=(0, 1)), 0, 1)


def resized(pixels_HWC: np.ndarray, size_px: tuple[int, int], method: str) -> np.ndarray:
    """An image brought to (height, width), ``bilinear`` or ``bicubic``."""
    height, width = size_px
    channels = [
        Image.fromarray(np.ascontiguousarray(channel)).resize((width, height), _METHODS[method])
        for channel in np.moveaxis(pixels_HWC, -1, 0)
    ]
    return np.clip(np.stack([np.asarray(channel) for channel in channels], -1), 0, 1)


def isotropic_blur(pixels_HWC: np.ndarray, draw: np.random.Generator, factor: int = 4) -> np.ndarray:
    """A blur by a round Gaussian of any width of `ISOTROPIC_WIDTH_PX`, which begins at no blur."""
    side, width = int(draw.choice(KERNEL_SIDES_PX)), draw.uniform(*ISOTROPIC_WIDTH_PX[factor])
    return filtered(pixels_HWC, gaussian_kernel(side, (width, width)))


def anisotropic_blur(pixels_HWC: np.ndarray, draw: np.random.Generator, factor: int = 4) -> np.ndarray:
    """A blur by a Gaussian of any direction, its variances along two axes any of `ANISOTROPIC_VARIANCES`."""
    side, angle = int(draw.choice(KERNEL_SIDES_PX)), draw.uniform(0, np.pi)
    first, second = np.sqrt(draw.uniform(*ANISOTROPIC_VARIANCES[factor], size=2))
    return filtered(pixels_HWC, gaussian_kernel(side, (first, second), angle))


def downsampling(
    pixels_HWC: np.ndarray, draw: np.random.Generator, factor: int = 4, kind: str | None = None
) -> np.ndarray:
    """A downsampling to 1/factor of the side.

    Parameters
    ----------
    pixels_HWC
        Of sides that `factor` divides.
    draw
        Of the kind and what it leaves open.
    factor
        2 or 4.
    kind
        One of the four instead of a drawn one. ``nearest``: every factor-th pixel, after a blur whose kernel is shifted
        to the middle of the pixels that this one stands for; ``bilinear``; ``bicubic``; ``down-up``: first to 1/a of
        the side, a of [1/2, factor], then to the final one, each bilinear or bicubic.
    """
    chosen = str(draw.choice(_DOWNSAMPLINGS)) if kind is None else kind
    height, width = (side // factor for side in pixels_HWC.shape[:2])
    if chosen == "nearest":
        spread = draw.uniform(0.1, SHIFTED_KERNEL_WIDTH * factor)
        kernel = gaussian_kernel(SHIFTED_KERNEL_SIDE_PX, (spread, spread), shift_px=0.5 * (factor - 1))
        return filtered(pixels_HWC, kernel)[::factor, ::factor]
    if chosen == "down-up":
        part = draw.uniform(0.5, factor)
        first, second = (str(draw.choice(list(_METHODS))) for _ in range(2))
        between = tuple(max(1, round(side / part)) for side in pixels_HWC.shape[:2])
        return resized(resized(pixels_HWC, (between[0], between[1]), first), (height, width), second)
    return resized(pixels_HWC, (height, width), chosen)


def gaussian_noise(pixels_HWC: np.ndarray, draw: np.random.Generator, kind: str | None = None) -> np.ndarray:
    """Zero-mean Gaussian noise of covariance Sigma between the channels, drawn anew for every pixel.

    Sigma is s^2 times the identity (``independent``), times ones (``grey``: all channels alike), or Q diag(d) Q^T
    (``correlated``) with a random rotation Q and d of [0, 1]; s is of `NOISE_LEVELS`. `kind` is drawn where not given.
    """
    chosen = str(draw.choice(list(NOISE_KINDS), p=list(NOISE_KINDS.values()))) if kind is None else kind
    level = draw.uniform(*NOISE_LEVELS) / 255
    if chosen == "grey":
        noise = draw.standard_normal((*pixels_HWC.shape[:2], 1), np.float32)
    else:
        noise = draw.standard_normal(pixels_HWC.shape, np.float32)
        if chosen == "correlated":
            rotation, _ = np.linalg.qr(draw.standard_normal((3, 3)))
            noise = noise @ (rotation * np.sqrt(draw.uniform(0, 1, 3))).T.astype(np.float32)
    return np.clip(pixels_HWC + np.float32(level) * noise, 0, 1)


def jpeg_compression(pixels_HWC: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """What is left of an image after JPEG at a quality of `JPEG_QUALITY`."""
    stream = io.BytesIO()
    quality = int(draw.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1))
    Image.fromarray(_as_bytes(pixels_HWC)).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"), np.float32) / 255


def _perhaps_compressed(pixels_HWC: np.ndarray, draw: np.random.Generator, factor: int) -> np.ndarray:
    return jpeg_compression(pixels_HWC, draw) if draw.random() < COMPRESSED_AMID else pixels_HWC


STEPS: dict[str, Callable[[np.ndarray, np.random.Generator, int], np.ndarray]] = {
    "isotropic blur": isotropic_blur,
    "anisotropic blur": anisotropic_blur,
    "downsampling": downsampling,
    "noise": lambda pixels_HWC, draw, factor: gaussian_noise(pixels_HWC, draw),
    "jpeg": _perhaps_compressed,
}
"""What is shuffled: functions of an image, a draw and the factor."""


def shuffled_order(draw: np.random.Generator) -> list[str]:
    """The names of `STEPS`, every order as likely as any other."""
    names = list(STEPS)
    return [names[place] for place in draw.permutation(len(names))]


def degraded(pixels_HWC: np.ndarray, draw: np.random.Generator, *, factor: int = 4) -> np.ndarray:
    """A worse copy of an image, of 1/factor of its side.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB, its sides multiples of `factor`.
    draw
        Of everything that is open; the same state gives the same image.
    factor
        2 or 4, for which the paper gives ranges.

    Returns
    -------
    numpy.ndarray
        uint8 RGB, (H / factor, W / factor, 3).

    Raises
    ------
    PathUpError
        `factor` does not divide a side, or is neither 2 nor 4.
    """
    if factor not in ISOTROPIC_WIDTH_PX:
        raise PathUpError(f"a degradation by {factor} was asked for, but only those by 2 and by 4 are defined")
    height, width = pixels_HWC.shape[:2]
    if height % factor or width % factor or not height or not width:
        raise PathUpError(f"an image of {width} x {height} px is to be degraded, but sides divisible by {factor} were "
                          "needed; crop it")  # fmt: skip
    pixels = pixels_HWC.astype(np.float32) / 255
    if factor == 4 and draw.random() < HALVED_FIRST:
        pixels = resized(pixels, (height // 2, width // 2), str(draw.choice(list(_METHODS))))
        factor = 2
    for name in shuffled_order(draw):
        pixels = STEPS[name](pixels, draw, factor)
    return _as_bytes(jpeg_compression(pixels, draw))


def _as_bytes(pixels_HWC: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(pixels_HWC, 0, 1) * 255).astype(np.uint8)
