"""The benchmark of landmarks on made regions: it finds cut-outs, and other tissue is other tissue."""

from __future__ import annotations

import json
import sys

import numpy as np

from benchmarks import landmarks
from tests.tiles.made import nuclei, save


def test_cut_outs_are_found_and_counted(tmp_path, monkeypatch, capsys):
    for seed in range(3):
        save(tmp_path / "regions" / f"{seed}.png", np.asarray(nuclei(seed, 1024)))
    target = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["landmarks.py", str(tmp_path / "regions"), "--mpp", "1", "--output", str(target)])
    assert landmarks.main() == 0
    found = json.loads(target.read_text())
    assert found["regions"] == 3
    assert found["most_of_others"] < found["wanted"]
    quarter, seventh = (part["known"] for part in found["cut_outs"])
    assert quarter == 3
    assert seventh >= 1  # a made region of 1 mm has few corners in a seventh of it, of half its pixels
    assert "3 of 3" in capsys.readouterr().out


def test_a_folder_without_regions_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["landmarks.py", str(tmp_path)])
    assert landmarks.main() == 1
    assert "holds 0 region images, but at least two were needed" in capsys.readouterr().err
