"""Stains of haematoxylin and eosin: optical density, fixed separation, and a set's own stain vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pathup.errors import PathUpError

__all__ = [
    "GLASS_DENSITY",
    "RUIFROK_JOHNSTON",
    "StainEstimate",
    "checked",
    "estimate_stains",
    "optical_density",
    "stain_channels",
    "tissue_mask",
]

RUIFROK_JOHNSTON = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Rows haematoxylin, eosin, residual; columns red, green, blue absorption. From A. C. Ruifrok and D. A. Johnston, 2001,
"Quantification of histochemical staining by color deconvolution" (their third row is DAB; here it takes up what is
neither of the two stains: pigment, ink, blur). Rows are brought to length 1 before use."""

GLASS_DENSITY = 0.25
"""Summed over the three channels; a pixel with less is taken for empty glass. It is a grey value of about 235."""

_UNIT = RUIFROK_JOHNSTON / np.linalg.norm(RUIFROK_JOHNSTON, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(_UNIT).astype(np.float32)
_DENSITY = -np.log((np.arange(256, dtype=np.float64) + 1) / 256).astype(np.float32)

_LEAST_PIXELS = 100
_FAINT = 0.15 * np.log(10)
"""Macenko's limit of 0.15, which they state for decimal logarithms."""
_TAIL_PERCENT = 1.0
_LEAST_ANGLE = 3.0
"""Degrees; below it noise tells the two vectors apart, not stain."""


def checked(pixels_HWC: np.ndarray) -> np.ndarray:
    """The pixels, when they are uint8 RGB.

    Raises
    ------
    PathUpError
        They are of another type or shape, or there are none.
    """
    if pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3 or pixels_HWC.dtype != np.uint8 or not pixels_HWC.size:
        raise PathUpError(
            f"an image of shape {pixels_HWC.shape} and type {pixels_HWC.dtype} was found; 8-bit RGB (height, width, 3) "
            "was needed, so convert it first"
        )
    return pixels_HWC


def optical_density(pixels_HWC: np.ndarray) -> np.ndarray:
    """``-ln((I + 1) / 256)``: how much light the tissue takes, natural logarithm (Beer and Lambert).

    The 1 keeps black finite (5.55); white is 0.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB, (..., 3).

    Returns
    -------
    numpy.ndarray
        float32, the same shape, 0 to 5.55.
    """
    return _DENSITY[pixels_HWC]


def stain_channels(pixels_HWC: np.ndarray) -> np.ndarray:
    """Haematoxylin, eosin and the residual of each pixel, by the fixed vectors of `RUIFROK_JOHNSTON`.

    Optical density is a mixture of the unit stain vectors, ``od = c @ M``, so ``c = od @ inverse(M)``.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB, (H, W, 3).

    Returns
    -------
    numpy.ndarray
        float32, (H, W, 3), optical density along each vector; may be a little below 0.

    Raises
    ------
    PathUpError
        See `checked`.
    """
    return optical_density(checked(pixels_HWC)) @ _UNMIX


def tissue_mask(pixels_HWC: np.ndarray) -> np.ndarray:
    """Where a tile is stained: bool, (H, W); summed optical density above `GLASS_DENSITY`."""
    return optical_density(pixels_HWC).sum(-1) > GLASS_DENSITY


@dataclass(frozen=True)
class StainEstimate:
    """A set's own stains.

    Attributes
    ----------
    vectors
        (2, 3) float64 unit vectors of optical density, haematoxylin first; None where they could not be found.
    angle
        Between them, in degrees, 0 to 90; NaN where they could not be found.
    reason
        Why not; empty otherwise.
    """

    vectors: np.ndarray | None
    angle: float
    reason: str = ""


def estimate_stains(pixels_HWC: np.ndarray) -> StainEstimate:
    """The two stain vectors of an image, as M. Macenko et al., 2009, "A method for normalizing histology slides".

    Pixels with at least 0.15 decimal (0.345 natural) optical density in some channel span, by their covariance's first
    two eigenvectors, a plane; the directions at the 1st and 99th percentile of the angle within it are the two stains.
    Haematoxylin is the one with more red absorption for its green. The limit is taken on the strongest channel and not
    on each, since pure eosin takes next to no red.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB, (H, W, 3). Several tiles may be stacked along the height.

    Raises
    ------
    PathUpError
        See `checked`. An image without two stains is no error: see `StainEstimate.reason`.
    """
    density_N3 = optical_density(checked(pixels_HWC)).reshape(-1, 3)
    density_N3 = density_N3[density_N3.max(1) > _FAINT].astype(np.float64)
    if len(density_N3) < _LEAST_PIXELS:
        return StainEstimate(None, np.nan, f"{len(density_N3)} stained pixels; {_LEAST_PIXELS} were needed")
    _, directions = np.linalg.eigh(np.cov(density_N3, rowvar=False))
    plane = directions[:, [2, 1]] * np.where(directions[:, [2, 1]].sum(0) < 0, -1, 1)
    projected = density_N3 @ plane
    angles = np.arctan2(projected[:, 1], projected[:, 0])
    ends = np.percentile(angles, [_TAIL_PERCENT, 100 - _TAIL_PERCENT])
    vectors = np.stack([np.cos(ends), np.sin(ends)], 1) @ plane.T
    vectors *= np.where(vectors.sum(1, keepdims=True) < 0, -1, 1)
    angle = float(np.degrees(np.arccos(np.clip(abs(vectors[0] @ vectors[1]), 0, 1))))
    if angle < _LEAST_ANGLE:
        return StainEstimate(None, np.nan, f"one stain only: the directions differ by {angle:.1f} degrees")
    redness = np.arctan2(vectors[:, 0], vectors[:, 1])
    return StainEstimate(vectors[np.argsort(-redness)], angle)
