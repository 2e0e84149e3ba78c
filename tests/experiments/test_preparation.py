"""Steps that several processes share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from pathup.experiments.preparation import Step, carry_out


def steps_in(folder: Path, seconds: float) -> list[Step]:
    """Six steps: a first one, then five that start from it, two of which must not be done at once."""

    def step(name: str, lock: str, needs: str | None) -> Step:
        def do() -> None:
            assert needs is None or (folder / needs).is_file()
            (folder / "at" / lock).mkdir()  # fails if another is at it
            time.sleep(seconds)
            with (folder / "log").open("a") as log:
                log.write(f"{name} {os.getpid()}\n")
            (folder / "at" / lock).rmdir()
            (folder / name).write_text("done")

        return Step(name, (folder / name).is_file, do, "", lock, lambda: needs is None or (folder / needs).is_file())

    return [step("first", "first", None), step("a", "same", "first"), step("b", "same", "first")] + [
        step(name, name, "first") for name in ("c", "d", "e")
    ]


def share(folder: Path, seconds: float) -> None:
    carry_out(steps_in(folder, seconds), folder / "locks", lambda *told: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "at").mkdir()
    return tmp_path


def started(folder: Path, seconds: float) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=share, args=(folder, seconds))
    process.start()
    return process


def test_processes_share_steps_and_each_is_done_once(folder):
    processes = [started(folder, 0.3) for _ in range(3)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    assert sorted(name for name, _ in lines) == ["a", "b", "c", "d", "e", "first"]
    assert lines[0][0] == "first"
    assert len({who for _, who in lines}) > 1


def test_what_a_killed_process_was_at_another_takes_up(folder):
    process = started(folder, 60)
    deadline = time.monotonic() + 60
    while not (folder / "at/first").is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (folder / "at/first").rmdir()
    share(folder, 0.0)
    assert (folder / "log").read_text().split()[::2] == ["first", "a", "b", "c", "d", "e"]


def test_a_step_that_fails_is_told_and_leaves_its_lock(folder):
    def fails() -> None:
        raise ValueError("this step")

    with pytest.raises(ValueError, match="this step"):
        carry_out([Step("x", lambda: False, fails, "", "x")], folder / "locks", lambda *told: None)
    assert len(list((folder / "locks").iterdir())) == 1
    done: list[int] = []
    carry_out([Step("x", lambda: bool(done), lambda: done.append(1), "", "x")], folder / "locks", lambda *told: None)
    assert done == [1]
