"""A sheet of synthetic tiles and the training tiles most like them, side by side, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from pathup import storage
from pathup.evaluation.lookalikes import turned
from pathup.slides.images import read_image

__all__ = ["closest_pairs_sheet", "laid_over"]

COLUMNS = 3
_OUTSIDE = 128  # grey, where the shifted training tile shows nothing: white would look like glass


def laid_over(training_HWC: np.ndarray, orientation: int, shift_px: Sequence[float]) -> np.ndarray:
    """A training tile turned and shifted so that it lies as the tile that it was found for; grey beyond its rim.

    Parameters
    ----------
    training_HWC
        uint8 RGB, square.
    orientation, shift_px
        As `pathup.evaluation.lookalikes.Nearest` gives them.
    """
    x, y = shift_px
    upright = turned(training_HWC, orientation)
    moved = ndimage.shift(upright.astype(np.float32), (-y, -x, 0), order=1, cval=_OUTSIDE)
    return moved.round().clip(0, 255).astype(np.uint8)


def closest_pairs_sheet(pairs: Sequence[dict[str, Any]], target: Path) -> Path:
    """Draw pairs: the synthetic tile left, the training tile right, turned and shifted to lie the same way.

    Parameters
    ----------
    pairs
        What `pathup.evaluation.copying.copying` gives as ``pairs``; at least one.
    target
        PNG file to write.

    Raises
    ------
    PathUpError
        A tile cannot be read, or the file not be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.15 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axis in axes:
        axis.set_axis_off()
    for axis, pair in zip(axes, pairs, strict=False):
        synthetic, training = read_image(Path(pair["synthetic"])), read_image(Path(pair["training"]))
        laid = laid_over(training, pair["orientation"], pair["shift_px"])
        gap = np.full((len(synthetic), max(2, len(synthetic) // 16), 3), 255, np.uint8)
        axis.imshow(np.concatenate([synthetic, gap, laid], 1), interpolation="nearest")
        mark = " - called a copy" if pair["copy"] else ""
        names = f"{Path(pair['synthetic']).stem[-30:]} | {Path(pair['training']).stem[-30:]}"
        axis.set_title(f"similarity {pair['similarity']:.2f}{mark}\n{names}", fontsize=6)
    with storage.atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=150, facecolor="white")
    return target
