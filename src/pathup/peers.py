"""How several processes part: at once at a run's end, and with a sentence, not a traceback, where one of them dies."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from typing import NoReturn

__all__ = ["leave", "lost_peer", "process_count", "say_last", "say_what_ended_it"]

_SIGNS = ("gloo", "nccl", "by peer", "remote process", "broken pipe")
"""What PyTorch's backends name, in small letters, when another process does not answer any more."""

_said = threading.Lock()
"""Taken by the first of a process's last words; there are no second ones."""


def leave(code: int) -> NoReturn:
    """End this process: one of several at once, without Python's taking itself apart.

    A thread of Gloo can be the last to hold a tensor, some time after the operation on it is done. To let go of it the
    thread needs Python, and where Python is just ending, PyTorch aborts the process (``terminate called without an
    active exception``): a run that is complete would be told of as failed. So what was registered for the end is done
    here, as Python does it, and the process ends with its threads as they are.

    Parameters
    ----------
    code
        The exit code; with 0, a run that has ended well, connections are closed first, as PyTorch asks for.
    """
    if process_count() < 2:
        sys.exit(code)
    distributed = sys.modules.get("torch.distributed")
    if code == 0 and distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # such as a full disk under a redirected output
        code = code or 1
    os._exit(code)


def lost_peer(error: BaseException) -> str | None:
    """What to say of an error that another process's end has caused; None for every other error.

    Parameters
    ----------
    error
        What a collective operation raised: ``torch.distributed.DistError``, or the plain ``RuntimeError`` of Gloo.
    """
    count = process_count()
    text = " ".join(str(error).split())
    if count < 2 or not isinstance(error, RuntimeError) or not any(sign in text.lower() for sign in _SIGNS):
        return None
    return (
        f"process {os.environ.get('RANK', '?')} of {count} lost another one, which was killed, ran out of memory or "
        f"cannot be reached ({text[:160]}); all end here, and the same command with --resume goes on from the newest "
        "checkpoint"
    )


def say_last(sentence: str) -> None:
    """Print what a run ends with; one of several processes has no second last words."""
    if process_count() < 2 or _said.acquire(blocking=False):
        print(f"pathup: {sentence}", file=sys.stderr, flush=True)


def say_what_ended_it() -> None:
    """From now on, have one of several processes say a sentence where SIGTERM ends it.

    That is how a launcher ends the others when one has died, often before they notice. A thread says it, since the
    process itself may be deep in a computation or waiting for the other; it ends at once, as it would without.
    """
    if process_count() < 2 or threading.current_thread() is not threading.main_thread():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGTERM, lambda *_: None)  # so that Python tells of it
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_as_before)
    threading.Thread(target=_await_end, args=(reading,), daemon=True).start()


def _as_before() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _await_end(reading: int) -> None:
    while os.read(reading, 1) != bytes([signal.SIGTERM]):
        pass  # another signal, which has its own handler
    say_last(
        f"process {os.environ.get('RANK', '?')} of {process_count()} was told to end, as launchers do when another one "
        "has died and clusters when time is up; the same command with --resume goes on from the newest checkpoint"
    )
    os._exit(128 + signal.SIGTERM)


def process_count() -> int:
    """How many processes a launcher started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))
