from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pathup.errors import PathUpError
from pathup.processes import Processes
from pathup.sampling.workspace import Workspace

IDENTITY: dict[str, Any] = {"seed": 1, "label": "A"}


def _band(index: int, rows: int = 5) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (rows, 7, 3), dtype=np.uint8)


def test_what_is_kept_is_there_for_the_next_run(tmp_path: Path) -> None:
    target = tmp_path / "slide.ome.tiff"
    workspace = Workspace(target, IDENTITY)
    assert workspace.folder == tmp_path / "slide.ome.tiff.unfinished"
    assert workspace.overview() is None and workspace.band(0) is None and not workspace.is_worth_keeping
    overview = _band(9, rows=12)
    workspace.keep_overview([overview[:5], overview[5:]], (12, 7))
    for index in range(3):
        workspace.keep_band(index, _band(index))
    again = Workspace(target, IDENTITY, resume=True)
    assert again.is_worth_keeping
    found = again.overview()
    assert found is not None and np.array_equal(found, overview)
    assert all(np.array_equal(band, _band(index)) for index, band in enumerate(again.bands(3)))
    with pytest.raises(PathUpError, match="band 3 of 4 is not in"):
        list(again.bands(4))
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_image_is_neither_lost_nor_mixed_with_another(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    Workspace(target, IDENTITY).keep_band(0, _band(0))
    with pytest.raises(PathUpError, match=r"a.png was begun before and is unfinished .* --resume .* --overwrite"):
        Workspace(target, IDENTITY)
    with pytest.raises(PathUpError, match=r"another run .* differs in: seed.* --overwrite to begin anew"):
        Workspace(target, {**IDENTITY, "seed": 2}, resume=True)
    kept = Workspace(target, IDENTITY, resume=True).band(0)
    assert kept is not None
    assert Workspace(target, {**IDENTITY, "seed": 2}, overwrite=True).band(0) is None


def test_an_interrupted_overview_or_band_is_not_there(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "a.png", IDENTITY)

    def bands() -> Any:
        yield _band(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workspace.keep_overview(bands(), (10, 7))
    assert workspace.overview() is None and not workspace.is_worth_keeping


def test_processes_that_do_not_share_a_disk_are_told(tmp_path: Path) -> None:
    class Second(Processes):
        rank, count = 1, 2

    with pytest.raises(PathUpError, match=r"process 1 does not find .* same disk"):
        Workspace(tmp_path / "a.png", IDENTITY, processes=Second())
