"""Texture of a tile in a few numbers that a reader can name: sharpness, spectrum, contrast, co-occurrence, glass."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pathup.evaluation.stains import checked, tissue_mask

__all__ = ["GREY_LEVELS", "texture"]

GREY_LEVELS = 16
"""Of the co-occurrence matrix: 0 to 255 in steps of 16, the same in all tiles."""

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_LOCAL_PX = 9


def texture(pixels_HWC: np.ndarray) -> dict[str, float]:
    """Texture numbers of one tile, of its luminance ``g`` (BT.601, 0 to 255). None changes by flips and right turns.

    Compare tiles of the same size and scale only: all distances are in pixels.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB, (H, W, 3).

    Returns
    -------
    dict
        ``sharpness``
            Variance of what a Gaussian blur of 1 px takes away (the finest octave) over that of g. 0 to 1; blur lowers
            it, noise raises it. NaN in a tile of one grey.
        ``spectrum_slope``
            Slope of log power over log frequency (radial mean, Hann window, 4 cycles a tile to 0.4 cycles a pixel);
            more negative is smoother. D. J. Field, 1987, "Relations between the statistics of natural images and
            the response properties of cortical cells". NaN in a tile of one grey or too small for 4 frequencies.
        ``local_contrast``
            Mean standard deviation of g in windows of 9 x 9 px, grey levels of 255.
        ``cooccurrence_contrast``, ``cooccurrence_homogeneity``, ``cooccurrence_entropy``
            Of pairs of neighbouring pixels in `GREY_LEVELS` steps, p(i, j), both axes and both diagonals together:
            ``sum p (i - j)^2`` (steps squared), ``sum p / (1 + (i - j)^2)`` (0 to 1), ``-sum p log2 p`` (bits). R. M.
            Haralick, K. Shanmugam, I. Dinstein, 1973, "Textural features for image classification".
        ``glass``
            Share of pixels without stain, 0 to 1; see `stains.GLASS_DENSITY`.

    Raises
    ------
    PathUpError
        See `stains.checked`.
    """
    grey = checked(pixels_HWC).astype(np.float32) @ _LUMINANCE
    variance = float(grey.var())
    flat = variance < 1e-2  # of rounding
    blurred = ndimage.gaussian_filter(grey, 1.0)
    contrast, homogeneity, entropy = _cooccurrence(grey)
    return {
        "sharpness": np.nan if flat else float((grey - blurred).var()) / variance,
        "spectrum_slope": np.nan if flat else _spectrum_slope(grey),
        "local_contrast": _local_contrast(grey),
        "cooccurrence_contrast": contrast,
        "cooccurrence_homogeneity": homogeneity,
        "cooccurrence_entropy": entropy,
        "glass": float(1 - tissue_mask(pixels_HWC).mean()),
    }


def _spectrum_slope(grey: np.ndarray) -> float:
    height, width = grey.shape
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    power = np.abs(np.fft.rfft2((grey - grey.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    # a real signal's spectrum is symmetric: what rfft2 leaves out counts as often as what it keeps
    twice = np.full(power.shape, 2.0)
    twice[:, 0] = 1
    if width % 2 == 0:
        twice[:, -1] = 1
    side = min(height, width)
    ring = np.rint(frequency * side).astype(int).ravel()
    total = np.bincount(ring, (power * twice).ravel()) / np.maximum(np.bincount(ring, twice.ravel()), 1)
    used = np.arange(4, int(0.4 * side) + 1)
    used = used[total[used] > 0]
    if len(used) < 4:
        return np.nan
    return float(np.polyfit(np.log(used), np.log(total[used]), 1)[0])


def _local_contrast(grey: np.ndarray) -> float:
    centred = (grey - grey.mean()).astype(np.float64)
    mean = ndimage.uniform_filter(centred, _LOCAL_PX)
    square = ndimage.uniform_filter(centred**2, _LOCAL_PX)
    return float(np.sqrt(np.maximum(square - mean**2, 0)).mean())


def _cooccurrence(grey: np.ndarray) -> tuple[float, float, float]:
    step = (grey * (GREY_LEVELS / 256)).astype(np.int64)
    straight = (step[:, :-1], step[:, 1:]), (step[:-1], step[1:])
    diagonal = (step[:-1, :-1], step[1:, 1:]), (step[:-1, 1:], step[1:, :-1])
    counts = sum(np.bincount((a * GREY_LEVELS + b).ravel(), minlength=GREY_LEVELS**2) for a, b in straight + diagonal)
    matrix = np.asarray(counts, np.float64).reshape(GREY_LEVELS, GREY_LEVELS)
    matrix = matrix + matrix.T
    matrix /= max(matrix.sum(), 1)
    apart = np.subtract.outer(np.arange(GREY_LEVELS), np.arange(GREY_LEVELS)) ** 2
    present = matrix[matrix > 0]
    return (
        float((matrix * apart).sum()),
        float((matrix / (1 + apart)).sum()),
        float(-(present * np.log2(present)).sum()),
    )
