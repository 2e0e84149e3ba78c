"""Where attention MIL looked: the attention of each patch, drawn over its region."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from pathup import storage
from pathup.downstream.abmil import ABMIL
from pathup.downstream.classifiers import ABMILClassifier
from pathup.downstream.fields import Field, LabelledRegion
from pathup.slides.reader import open_slide

__all__ = ["attention_map", "overlay", "patch_attention"]

SIDE_PX = 768
"""The longer side of a region in the picture."""

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
        Of each patch, in any unit.
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
def patch_attention(
    kind: ABMILClassifier, network: torch.nn.Module, field: Field
) -> tuple[list[tuple[int, int, int, int]], np.ndarray]:
    """The patches of a field (x, y, width, height in level-0 pixels), and the attention of each, adding up to 1."""
    network.eval()
    device = next(network.parameters()).device
    bags, mask = (part.to(device) for part in kind.batch([kind.sample(field)]))
    return kind.places(field), cast(ABMIL, network).attention(bags, mask)[0].float().cpu().numpy()


def attention_map(
    kind: ABMILClassifier, network: torch.nn.Module, region: LabelledRegion, fields: Sequence[Field], target: Path,
    title: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """Draw the attention over a region, beside the region as it is, as PNG.

    Attention adds up to 1 over the patches of each field; so that fields can be compared, it is drawn in units of its
    mean there.

    Parameters
    ----------
    kind, network
        The classifier.
    region, fields
        A region, and the fields that it is looked at in.
    target
        The PNG.
    title
        Over the picture.

    Returns
    -------
    list of dict
        A row a patch: region, x, y, width and height in level-0 pixels, and its attention.
    """
    left, top, right, bottom = region.source.area
    shares, values, rows = [], [], []
    for field in fields:
        boxes, attention_N = patch_attention(kind, network, field)
        for (x, y, wide, high), attention in zip(boxes, attention_N.tolist(), strict=True):
            rows.append({
                "region": field.region, "x": x, "y": y, "width": wide, "height": high, "attention": attention,
            })  # fmt: skip
            ends = (x - left) / (right - left), (x + wide - left) / (right - left)
            sides = (y - top) / (bottom - top), (y + high - top) / (bottom - top)
            shares.append((ends[0], sides[0], ends[1], sides[1]))
            values.append(attention * len(boxes))
    scale = SIDE_PX / max(right - left, bottom - top)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    with open_slide(region.region.file, region.mpp[0]) as reader:
        pixels = reader.read_field(left, top, (right - left, bottom - top), size)
    figure, axes = plt.subplots(1, 2, figsize=(14, 6.2 * size[1] / size[0] + 0.5), layout="constrained")
    try:
        for panel, shown in zip(axes, (pixels, overlay(pixels, shares, np.array(values))), strict=True):
            panel.imshow(shown)
            panel.set_axis_off()
        scale_of = ScalarMappable(Normalize(0, max(values)), "viridis")
        figure.colorbar(scale_of, ax=axes, shrink=0.8, label="attention, in units of its mean over a field's patches")
        figure.suptitle(title)
        with storage.atomic_path(target) as partial:
            figure.savefig(partial, dpi=110, format="png")
    finally:
        plt.close(figure)
    return rows
