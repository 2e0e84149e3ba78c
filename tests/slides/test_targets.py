from __future__ import annotations

import os
from pathlib import Path

import pytest

from pathup.errors import PathUpError
from pathup.slides.targets import check_target, remove_leftovers, remove_target, tiles_folder


def _image(folder: Path, name: str = "a", *, ours: bool = True, index: bool = True) -> Path:
    target = folder / f"{name}.dzi"
    (tiles_folder(target) / "0").mkdir(parents=True)
    (tiles_folder(target) / "0/0_0.jpeg").write_bytes(b"tile")
    if ours:
        (tiles_folder(target) / "provenance.json").write_text("{}")
    if index:
        target.write_text("index")
    return target


def test_an_image_that_exists_is_replaced_only_when_told(tmp_path: Path) -> None:
    for target in (_image(tmp_path, "ours"), _image(tmp_path, "theirs", ours=False)):
        with pytest.raises(PathUpError, match=r"dzi exists already; add --overwrite"):
            check_target(target, overwrite=False)
        check_target(target, overwrite=True)


def test_tiles_without_an_index_are_ours_or_theirs(tmp_path: Path) -> None:
    check_target(_image(tmp_path, "ours", index=False), overwrite=False)
    with pytest.raises(PathUpError, match=r"theirs_files exists already; add --overwrite"):
        check_target(_image(tmp_path, "theirs", ours=False, index=False), overwrite=False)


def test_a_folder_of_other_things_is_never_touched(tmp_path: Path) -> None:
    target = _image(tmp_path)
    (tmp_path / "a_files/thesis.docx").write_bytes(b"mine")
    with pytest.raises(PathUpError, match="holds something other than tiles"):
        check_target(target, overwrite=True)
    remove_target(target)
    assert (tmp_path / "a_files/thesis.docx").exists() and not target.exists()
    (tmp_path / "b_files").write_bytes(b"a file of that name")
    with pytest.raises(PathUpError, match="holds something other than tiles"):
        check_target(tmp_path / "b.dzi", overwrite=True)
    check_target(tmp_path / "a.png", overwrite=False)  # only a DeepZoom image has a folder of tiles


def test_removal_takes_the_tiles_along(tmp_path: Path) -> None:
    target = _image(tmp_path)
    (tmp_path / "a.png").write_bytes(b"other")
    remove_target(target)
    remove_target(target)  # nothing to remove is nothing wrong
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_leftovers_are_those_of_this_target_and_of_the_dead(tmp_path: Path) -> None:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    living = os.getppid()
    for name in (f".{dead}.partial.a_files", f".{dead}.replaced.a_files", f".{living}.partial.a_files"):
        (tmp_path / name / "0").mkdir(parents=True)
    kept = [f".{living}.partial.a.dzi", f".{dead}.partial.b.dzi", f".{dead}.partial.aXdzi", "a.dzi", ".x.partial.a.dzi"]
    for name in (f".{dead}.partial.a.dzi", f".{os.getpid()}.partial.a.dzi", *kept):
        (tmp_path / name).write_bytes(b"1")
    remove_leftovers(tmp_path / "a.dzi")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, f".{living}.partial.a_files"])
    remove_leftovers(tmp_path / "gone" / "a.dzi")
