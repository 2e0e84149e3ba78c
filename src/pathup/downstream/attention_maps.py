"""Where attention MIL looked: the attention of each patch, drawn over its region."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import matplotlib
import numpy as np
import torch
from PIL import Image

from pathup import storage
from pathup.downstream.abmil import ABMIL
from pathup.downstream.classifiers import ABMILClassifier
from pathup.downstream.fields import Field, read_field

__all__ = ["attention_map", "overlay"]

SIDE_PX = 768
OPACITY = 0.45
"""Of the colours over the tissue, where attention is highest."""


def overlay(
    pixels_HWC: np.ndarray, places: list[tuple[float, float, float, float]], attention_N: np.ndarray
) -> np.ndarray:
    """An image with patches coloured by their attention, uint8 RGB of the same size.

    Colours are viridis from no attention to the highest of any patch; what is in no patch stays as it is.

    Parameters
    ----------
    pixels_HWC
        uint8 RGB.
    places
        Left, top, right, bottom of each patch, as shares of the image's width and height.
    attention_N
        Of each patch, adding up to 1.
    """
    height, width = pixels_HWC.shape[:2]
    result = pixels_HWC.astype(np.float64)
    share_N = attention_N / max(float(attention_N.max()), 1e-12)
    colours_N3 = 255 * matplotlib.colormaps["viridis"](share_N)[:, :3]
    for (left, top, right, bottom), share, colour in zip(places, share_N, colours_N3, strict=True):
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        opacity = OPACITY * (0.25 + 0.75 * share)
        result[rows, columns] = (1 - opacity) * result[rows, columns] + opacity * colour
    return np.rint(result).astype(np.uint8)


@torch.no_grad()
def attention_map(kind: ABMILClassifier, network: torch.nn.Module, field: Field, target: Path) -> Path:
    """Draw the attention over a field, beside the field as it is, as PNG."""
    network.eval()
    device = next(network.parameters()).device
    bags, mask = (part.to(device) for part in kind.batch([kind.sample(field)]))
    attention = cast(ABMIL, network).attention(bags, mask)[0].float().cpu().numpy()
    x, y, width, height = field.box
    shares = [
        ((left - x) / width, (top - y) / height, (left - x + wide) / width, (top - y + high) / height)
        for left, top, wide, high in kind.places(field)
    ]
    pixels = read_field(field, SIDE_PX)
    both = np.concatenate([pixels, np.full((SIDE_PX, 8, 3), 255, np.uint8), overlay(pixels, shares, attention)], 1)
    with storage.atomic_path(target) as partial:
        Image.fromarray(both).save(partial)
    return target
