"""Nothing half-written: atomic files and the folder of one run."""

from __future__ import annotations

import errno
import os

import pytest

from pathup import storage
from pathup.errors import PathUpError


def test_a_file_appears_only_when_complete(tmp_path):
    target = tmp_path / "new" / "picture.png"

    class HalfwayError(Exception):
        pass

    with pytest.raises(HalfwayError), storage.atomic_path(target) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("half")
        raise HalfwayError
    assert list(target.parent.iterdir()) == []
    with storage.atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"


def test_a_failed_rewrite_leaves_the_old_file(tmp_path):
    target = tmp_path / "values.json"
    storage.write_json(target, {"a": 1})
    with pytest.raises(TypeError):
        storage.write_json(target, {"a": object()})
    assert storage.read_json(target) == {"a": 1}


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "the disk is full.*MiB free.*run the same command again"),
        (errno.EACCES, "cannot write .*ermission"),
    ],
)
def test_what_the_disk_says_is_one_sentence(tmp_path, monkeypatch, number, sentence):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage.os, "replace", refuse)
    with pytest.raises(PathUpError, match=sentence):
        storage.write_text(tmp_path / "a.txt", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_belongs_to_one_run(tmp_path):
    folder = tmp_path / "run"
    assert storage.claim_folder(folder, "train", {"seed": 1}, resume=False) is False
    assert storage.claim_folder(folder, "train", {"seed": 1}, resume=True) is True
    with pytest.raises(PathUpError, match="add --resume"):
        storage.claim_folder(folder, "train", {"seed": 1}, resume=False)
    with pytest.raises(PathUpError, match=r"holds another run .*differs in: seed"):
        storage.claim_folder(folder, "train", {"seed": 2}, resume=True)


def test_folders_that_are_not_ours_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PathUpError, match="is not empty and was not made by"):
        storage.claim_folder(tmp_path, "tiles", {}, resume=True)
    with pytest.raises(PathUpError, match="is a file"):
        storage.claim_folder(tmp_path / "notes.txt", "tiles", {}, resume=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_broken_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(PathUpError, match=r"a.json is not readable JSON"):
        storage.read_json(tmp_path / "a.json")
    with pytest.raises(PathUpError, match="does not exist"):
        storage.read_json(tmp_path / "b.json")


def test_a_disk_that_fills_under_safetensors_is_the_same_sentence(tmp_path, monkeypatch):
    """safetensors wraps the operating system's error in a type of its own, with its number in the text."""
    from safetensors import SafetensorError

    with pytest.raises(PathUpError, match="the disk is full"), storage.clear_disk_errors(tmp_path / "model"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(PathUpError, match="File too large"), storage.clear_disk_errors(tmp_path / "model"):
        raise SafetensorError("Error while serializing: I/O error: File too large (os error 27)")


def test_a_folder_appears_only_when_complete_and_keeps_what_else_lay_there(tmp_path):
    target = tmp_path / "model"
    for content in ("one", "two"):
        with storage.atomic_folder(target) as partial:
            (partial / "part").mkdir()
            (partial / "part/weights").write_text(content)
        if content == "one":
            (target / "README.md").write_text("a card")
    assert (target / "part/weights").read_text() == "two"
    assert (target / "README.md").read_text() == "a card"
    with pytest.raises(PathUpError, match="the disk is full"), storage.atomic_folder(target) as partial:
        (partial / "half").write_text("")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (target / "part/weights").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_disk_that_fills_under_a_library_of_its_own_exceptions_is_the_same_sentence(tmp_path):
    with pytest.raises(PathUpError, match="the disk is full"), storage.clear_disk_errors(tmp_path / "x"):
        raise Exception("No space left on device (os error 28)")  # as tokenizers raises it
    with pytest.raises(ZeroDivisionError), storage.clear_disk_errors(tmp_path / "x"):
        raise ZeroDivisionError


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    for name in (".123.partial.a.png", "a.png", ".hidden"):
        (tmp_path / name).write_text("")
    storage.remove_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.png"]
