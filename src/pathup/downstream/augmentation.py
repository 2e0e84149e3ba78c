"""Random augmentation of real tissue: what synthetic tissue has to be better than.

Named parts, applied in this order, each a function of the generator alone. ``geometry``: one of the eight flips and
quarter turns, and a crop of 70 to 100 % of the side, resized back. ``stain``: the amounts of haematoxylin and eosin
(skimage's separation, after Ruifrok and Johnston 2001) are scaled and shifted (Tellez et al. 2018). ``colour``:
brightness, contrast, saturation and hue. ``randaugment``: two operations of torchvision's RandAugment (Cubuk et al.
2020) at magnitude 9.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from skimage.color import hed2rgb, rgb2hed
from torchvision.transforms import v2

from pathup import draws

__all__ = ["augmented"]

STAIN_SCALE, STAIN_SHIFT = 0.15, 0.02
"""Half widths of the uniform draws, of a factor around 1 and of an addition in optical density as skimage scales it."""

LEAST_SIDE = 0.7
"""Of a crop, as a share of the side."""

_COLOUR = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.04)
_RANDAUGMENT = v2.RandAugment(num_ops=2, magnitude=9, fill=255)


def augmented(pixels_HWC: np.ndarray, parts: Sequence[str], seed: int, *keys: int | str) -> np.ndarray:
    """An image changed at random by the named parts: a function of it, `parts`, `seed` and `keys`.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB, square.
    parts
        Of ``geometry``, ``colour``, ``stain`` and ``randaugment``.
    """
    rng = draws.numpy_generator(seed, "augmented", *keys)
    if "geometry" in parts:
        pixels_HWC = _moved(pixels_HWC, rng)
    if "stain" in parts:
        pixels_HWC = _stained(pixels_HWC, rng)
    tensor = torch.from_numpy(np.array(pixels_HWC.transpose(2, 0, 1), order="C"))  # in this order torchvision is faster
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
        torch.manual_seed(draws.seed_of(seed, "torchvision", *keys))
        if "colour" in parts:
            tensor = _COLOUR(tensor)
        if "randaugment" in parts:
            tensor = _RANDAUGMENT(tensor)
    return np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())


def _moved(pixels_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    turned = np.rot90(pixels_HWC, int(rng.integers(4)))
    if rng.integers(2):
        turned = turned[:, ::-1]
    height, width = turned.shape[:2]
    share = rng.uniform(LEAST_SIDE, 1)
    high, wide = round(share * height), round(share * width)
    top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    crop = Image.fromarray(np.ascontiguousarray(turned[top : top + high, left : left + wide]))
    return np.asarray(crop.resize((width, height), Image.Resampling.BILINEAR))


def _stained(pixels_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    amounts = rgb2hed(pixels_HWC)
    scale = rng.uniform(1 - STAIN_SCALE, 1 + STAIN_SCALE, 3)
    shift = rng.uniform(-STAIN_SHIFT, STAIN_SHIFT, 3)
    return np.rint(np.clip(hed2rgb(amounts * scale + shift), 0, 1) * 255).astype(np.uint8)
