"""Sample sheets: every image is where its row and column say, and texts lie above it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from pathup.training.sheets import GAP_PX, LINE_PX, image_sheet, to_pixels

SIDE = 32


def read(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) - 1.0  # dark: no white in them


def test_images_stand_row_by_row_as_they_are(tmp_path):
    given = images(5)
    image_sheet(given, tmp_path / "a.png", columns=3)
    sheet = read(tmp_path / "a.png")
    assert sheet.shape == (2 * SIDE + GAP_PX, 3 * SIDE + 2 * GAP_PX, 3)
    for index, pixels in enumerate(to_pixels(given)):
        top, left = (place * (SIDE + GAP_PX) for place in divmod(index, 3))
        assert np.array_equal(sheet[top : top + SIDE, left : left + SIDE], pixels)
    assert (sheet[-SIDE:, -SIDE:] == 255).all()  # where the sixth would be


def test_a_text_above_each_image(tmp_path):
    image_sheet(images(4), tmp_path / "a.png", columns=2, titles=["one", "two", "three", ""])
    sheet = read(tmp_path / "a.png")
    height = LINE_PX + SIDE + GAP_PX
    assert sheet.shape == (2 * height - GAP_PX, 2 * SIDE + GAP_PX, 3)
    written = [
        (sheet[row * height : row * height + LINE_PX, column * (SIDE + GAP_PX) :][:, :SIDE] < 128).any()
        for row in range(2) for column in range(2)
    ]  # fmt: skip
    assert written == [True, True, True, False]


def test_rows_have_their_text_and_columns_theirs_once(tmp_path):
    given = images(6)
    image_sheet(given, tmp_path / "a.png", columns=3, titles=["x", "", "z"], rows=["a row's long text", "second"])
    sheet = read(tmp_path / "a.png")
    height = LINE_PX + SIDE + GAP_PX
    assert sheet.shape == (LINE_PX + 2 * height - GAP_PX, 3 * SIDE + 2 * GAP_PX, 3)
    for index, pixels in enumerate(to_pixels(given)):
        row, column = divmod(index, 3)
        top, left = 2 * LINE_PX + row * height, column * (SIDE + GAP_PX)
        assert np.array_equal(sheet[top : top + SIDE, left : left + SIDE], pixels)
    columns = [(sheet[:LINE_PX, place * (SIDE + GAP_PX) :][:, :SIDE] < 128).any() for place in range(3)]
    assert columns == [True, False, True]
    assert (sheet[LINE_PX : 2 * LINE_PX, SIDE + GAP_PX :] < 128).any()  # the first row's text goes on beyond its image
    assert (sheet[LINE_PX + height : 2 * LINE_PX + height] < 128).any()
