"""Running one function over many jobs in several processes, with progress and time left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pathup.errors import PathUpError


def run_all(
    function: Callable[..., None], jobs: Sequence[tuple[Any, ...]], workers: int, title: str, done: int = 0
) -> None:
    """Call `function(*job)` for every job; the first error stops the rest.

    Parameters
    ----------
    function
        A module's function, so that other processes can import it.
    workers
        Number of processes; 1 works in this one.
    title
        What the progress bar says.
    done
        Jobs that an earlier run has finished, for the progress bar.

    Raises
    ------
    PathUpError
        Whatever a job raised, or a process that was killed (usually for lack of memory).
    """
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left:"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=done + len(jobs), completed=done)
        if workers == 1 or len(jobs) <= 1:
            for job in jobs:
                function(*job)
                progress.advance(task)
            return
        context = multiprocessing.get_context("spawn")
        others = set(multiprocessing.active_children())
        with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_end_with_parent) as pool:
            try:
                futures = _submitted(pool, function, jobs)
                for future in futures:
                    future.add_done_callback(lambda _: progress.advance(task))
                wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future.done():
                        future.result()
            except BrokenProcessPool as error:
                raise PathUpError(
                    "a worker process was killed, most likely because memory ran out; "
                    "run again with --resume and fewer --workers"
                ) from error
            except KeyboardInterrupt:
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _submitted(
    pool: ProcessPoolExecutor, function: Callable[..., None], jobs: Sequence[tuple[Any, ...]]
) -> list[Future[None]]:
    """Submit all jobs; a Ctrl-C meanwhile waits, since a pool that is half started cannot be shut down."""
    if threading.current_thread() is not threading.main_thread():  # where Ctrl-C is not handled anyway
        return [pool.submit(function, *job) for job in jobs]
    # not a signal mask: another thread, such as the progress bar's, would take the signal in this one's place
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        futures = [pool.submit(function, *job) for job in jobs]
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
    return futures


def _end_with_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when that ends, even killed: no writing behind a resumed run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)
