from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from pathup.errors import PathUpError
from pathup.tiles.workers import run_all


def _touch(folder: Path, name: str) -> None:
    (folder / name).write_text(str(os.getpid()))


def _fail(folder: Path, name: str) -> None:
    if name == "3":
        raise PathUpError("job 3 has a fault")
    _touch(folder, name)


def _die(folder: Path, name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_runs_once(tmp_path: Path, workers: int) -> None:
    run_all(_touch, [(tmp_path, str(i)) for i in range(9)], workers, "test")
    pids = {(tmp_path / str(i)).read_text() for i in range(9)}
    assert (pids == {str(os.getpid())}) is (workers == 1)


def test_no_jobs() -> None:
    assert multiprocessing.active_children() == []
    run_all(_touch, [], 4, "test", done=7)
    assert multiprocessing.active_children() == []  # nor is a pool started for nothing


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_comes_out_as_it_was(tmp_path: Path, workers: int) -> None:
    with pytest.raises(PathUpError, match="job 3 has a fault"):
        run_all(_fail, [(tmp_path, str(i)) for i in range(200)], workers, "test")
    assert len(list(tmp_path.iterdir())) < 199, "the rest was called off"


def test_a_killed_worker_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PathUpError, match=r"a worker process was killed.*fewer --workers"):
        run_all(_die, [(tmp_path, str(i)) for i in range(4)], 2, "test")
