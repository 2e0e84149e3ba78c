"""A study's table is checked where it is made, and cannot be changed after."""

from __future__ import annotations

import numpy as np
import pytest

from pathup.errors import PathUpError
from pathup.study.scores import Scores
from tests.study.made_scores import CLASSES, whole

GOOD = {
    "readers": ("a", "b"),
    "images": ("x", "y", "z"),
    "labels": ("N", "IC", "N"),
    "synthetic": np.array([False, True, True]),
    "values": np.array([[1, 10, np.nan], [2, 3, 4]]),
    "repeats": np.full((2, 3), np.nan),
}


def test_a_class_is_cut_out_with_all_readers():
    part = Scores(**GOOD).of_class("N")
    assert (part.readers, part.images, part.classes) == (("a", "b"), ("x", "z"), ("N",))
    assert part.synthetic.tolist() == [False, True]
    np.testing.assert_equal(part.values, [[1, np.nan], [2, 4]])
    assert whole(0).classes == CLASSES


def test_tables_are_copies_that_cannot_be_written():
    values = GOOD["values"].copy()
    scores = Scores(**{**GOOD, "values": values})
    values[0, 0] = 7
    assert scores.values[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        scores.values[0, 0] = 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"readers": ("a", "a")}, "reader 'a' is there more than once"),
        ({"images": ("x", "y", "y")}, "image 'y' is there more than once"),
        ({"labels": ("N", "IC")}, "3 images have 2 classes"),
        ({"synthetic": np.array([True])}, "1 arms"),
        ({"values": np.ones((3, 2))}, r"\(3, 2\)"),
        ({"values": np.array([[1, 11, 2], [2, 3, 4]])}, "hold 11"),
        ({"repeats": np.array([[0, 1, 2], [2, 3, 4]])}, "repeated scores hold 0"),
        ({"values": np.array([[1, np.inf, 2], [2, 3, 4]])}, "hold inf"),
        ({"readers": (), "values": np.ones((0, 3)), "repeats": np.ones((0, 3))}, "0 readers"),
    ],
)
def test_what_does_not_fit_is_said(change, said):
    with pytest.raises(PathUpError, match=said):
        Scores(**{**GOOD, **change})
