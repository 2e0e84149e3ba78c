"""Sample sheets: many images on one PNG, to look at while a run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from pathup import storage

GAP_PX = 4
LINE_PX = 14


def to_pixels(images_BCHW: torch.Tensor) -> np.ndarray:
    """Images in [-1, 1], (B, 3, H, W), as uint8 RGB (B, H, W, 3); values outside are clipped."""
    values = (images_BCHW.float().clamp(-1, 1) + 1) * 127.5
    return values.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def image_sheet(
    pixels_BCHW: torch.Tensor, target: Path, *, columns: int, titles: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Write images in [-1, 1], row by row, as one PNG.

    Parameters
    ----------
    pixels_BCHW
        (B, 3, H, W); values outside [-1, 1] are clipped.
    target
        The PNG.
    columns
        Images a row.
    titles
        A short text above each image; with `rows`, above each column, once.
    rows
        A text above each row, which may be as long as the row.
    """
    images = to_pixels(pixels_BCHW)
    count, height, width, _ = images.shape
    head, above = LINE_PX if titles or rows else 0, LINE_PX if titles and rows else 0
    lines = -(-count // columns)
    size = columns * (width + GAP_PX) - GAP_PX, above + lines * (height + head + GAP_PX) - GAP_PX
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left, top = column * (width + GAP_PX), above + row * (height + head + GAP_PX)
        if rows and column == 0:
            pen.text((left + 1, top), rows[row], fill="black")
        if titles and (row == 0 or not rows):
            pen.text((left + 1, top - above), titles[index], fill="black")
        sheet.paste(Image.fromarray(np.ascontiguousarray(image)), (left, top + head))
    with storage.atomic_path(target) as temporary:
        sheet.save(temporary)
