"""Processes of ``pathup``, which tests kill or let work together: each is its own, and none waits for PyTorch's import.

They are forked from a server that has imported what the commands need, once a test session; a command line that is
started anew takes some five seconds to begin. What a shell sees of it (exit code, stderr) is what a test sees.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

__all__ = ["PathUpProcess", "run_pathup", "run_several"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([
    "pathup.cli.main", "pathup.training.runs", "pathup.baselines.systems", "pathup.baselines.ldm",
    "pathup.baselines.ldm_sr", "pathup.baselines.bsrgan", "pathup.baselines.vqgan", "pathup.baselines.stylegan2",
    "pathup.sampling.runs", "pathup.sampling.large", "pathup.sampling.tissue", "accelerate", "tensorboard",
])  # fmt: skip


def _main(arguments: list[str], stderr: str, environment: Mapping[str, str]) -> None:
    """What the new process does: the command line, with its streams where the test wants them."""
    os.environ |= {"OMP_NUM_THREADS": "1", **environment}
    import torch  # by the server, before that was set

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null, errors = os.open(os.devnull, os.O_RDWR), os.open(stderr, os.O_WRONLY | os.O_CREAT)
    for stream, target in ((0, null), (1, null), (2, errors)):
        os.dup2(target, stream)
    sys.argv = ["pathup", *arguments]
    runpy.run_module("pathup", run_name="__main__", alter_sys=True)


class PathUpProcess:
    """``pathup ARGUMENTS`` in a process of its own, killed with the block that it is used in.

    Parameters
    ----------
    arguments
        What follows ``pathup`` on the command line.
    environment
        What is set beside the server's environment.
    """

    def __init__(self, *arguments: object, environment: Mapping[str, str] | None = None) -> None:
        with tempfile.NamedTemporaryFile(delete=False) as file:
            self._stderr = Path(file.name)
        told = ([str(part) for part in arguments], file.name, environment or {})
        self._process = _CONTEXT.Process(target=_main, args=told)
        self._process.start()

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.exitcode is None

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        self._process.kill()
        self._process.join()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def stderr(self) -> str:
        """What it has said on stderr."""
        return self._stderr.read_text()

    def kill_once_there(self, folder: Path, pattern: str, seconds: float = 120) -> bool:
        """Kill it as soon as a path in a folder fits a pattern; False where it ended before or none came in time."""
        deadline = time.monotonic() + seconds
        while self.running() and time.monotonic() < deadline and not any(folder.glob(pattern)):
            time.sleep(0.002)
        in_time = self.running() and any(folder.glob(pattern))
        self.kill()
        return in_time

    def __enter__(self) -> PathUpProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._stderr.unlink()


def run_pathup(*arguments: object, code: int = 0) -> str:
    """Run ``pathup ARGUMENTS`` to its end, which has to have this exit code; what it said on stderr."""
    with PathUpProcess(*arguments) as process:
        ended, said = process.wait(), process.stderr()
    assert ended == code, f"exit code {ended}: {said[-2000:]}"
    return said


def run_several(count: int, *arguments: object) -> None:
    """Run ``pathup ARGUMENTS`` in several processes that find each other, as torchrun's do, to the end of all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
        meeting["LOCAL_WORLD_SIZE"] = meeting["WORLD_SIZE"]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(PathUpProcess(*arguments, environment={**meeting, "RANK": rank, "LOCAL_RANK": rank}))
            for rank in map(str, range(count))
        ]
        codes = [process.wait() for process in processes]
        assert not any(codes), f"exit codes {codes}: {' | '.join(process.stderr()[-1000:] for process in processes)}"
