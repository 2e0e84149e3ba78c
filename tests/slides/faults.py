"""Faults of the machine, in a child process: a kill, and a limit of the size that a file may have."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

from pathup.errors import PathUpError

KILLED, WRITTEN = 9, 0


def in_child(work: Callable[[], None]) -> tuple[int, str]:
    """Do the work in a forked child; its exit code (`WRITTEN`, or what it ended itself with), and its PathUpError."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = WRITTEN
        except PathUpError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as handle:
        told = handle.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


def limit_file_size(limit: int) -> None:
    """No file of this process may grow beyond `limit` bytes: to write further fails, in the middle of a write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
