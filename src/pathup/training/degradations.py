"""Ways in which a tile gets worse, each with a severity from 0 to 1, for an encoder that is to notice them.

Of no measurement: what is measured there is made by its own means.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

__all__ = ["DEGRADATIONS", "degraded"]


def _blurred(pixels: np.ndarray, severity: float, draw: np.random.Generator) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.25 + 2.5 * severity)))  # sigma, px


def _noisy(pixels: np.ndarray, severity: float, draw: np.random.Generator) -> np.ndarray:
    noise = draw.standard_normal(pixels.shape, np.float32) * (1 + 24 * severity)  # of 255
    return np.clip(pixels + noise, 0, 255).round().astype(np.uint8)


def _compressed(pixels: np.ndarray, severity: float, draw: np.random.Generator) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=int(95 - 80 * severity))
    return np.asarray(Image.open(stream).convert("RGB"))


def _discoloured(pixels: np.ndarray, severity: float, draw: np.random.Generator) -> np.ndarray:
    direction = draw.standard_normal(3)
    shift = 2 + 38 * severity  # of 255
    return np.clip(pixels + shift * direction / np.linalg.norm(direction), 0, 255).round().astype(np.uint8)


def _shuffled(pixels: np.ndarray, severity: float, draw: np.random.Generator) -> np.ndarray:
    """Blocks change places; the smaller the blocks, the severer."""
    parts = (2, 4, 8)[min(2, int(3 * severity))]
    side = pixels.shape[0] // parts
    square = pixels[: parts * side, : parts * side].reshape(parts, side, parts, side, 3).swapaxes(1, 2)
    blocks = square.reshape(-1, side, side, 3)[draw.permutation(parts**2)].reshape(parts, parts, side, side, 3)
    result = pixels.copy()
    result[: parts * side, : parts * side] = blocks.swapaxes(1, 2).reshape(parts * side, parts * side, 3)
    return result


DEGRADATIONS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "blur": _blurred,
    "noise": _noisy,
    "jpeg": _compressed,
    "colour": _discoloured,
    "shuffle": _shuffled,
}


def degraded(pixels_HWC: np.ndarray, kind: str, severity: float, draw: np.random.Generator) -> np.ndarray:
    """A worse copy of a tile.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB, at least 8 px a side.
    kind
        ``blur`` (Gaussian, sigma 0.25 to 2.75 px), ``noise`` (Gaussian, deviation 1 to 25 of 255), ``jpeg`` (quality 95
        to 15), ``colour`` (one shift of all pixels by 2 to 40 of 255) or ``shuffle`` (blocks of 1/2, 1/4 or 1/8 of the
        side change places).
    severity
        0 to 1.
    draw
        Of the noise, the direction of the shift and the order of blocks.
    """
    return DEGRADATIONS[kind](pixels_HWC, severity, draw)
