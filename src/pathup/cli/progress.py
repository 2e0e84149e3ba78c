"""Progress of long work: bars with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 30.0
"""Where there is no terminal (a cluster's log), a line is written this often, and none for what takes less."""


class Bars:
    """A bar a stage with the time left, on a terminal; a line every half minute elsewhere.

    Called as ``bars(stage, done, total)``; a stage that begins again starts its bar anew, but for those in `counted`,
    which may report several times without having begun again.
    """

    def __init__(self, counted: tuple[str, ...] = ()) -> None:
        console = Console(stderr=True)
        self._counted = counted
        self._lines = None if console.is_terminal else _Lines()
        self._progress = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that a stage has come to `done` of `total`."""
        if self._lines is not None:
            self._lines(stage, done, total)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        task = self._tasks[stage]
        if stage not in self._counted and done < self._progress.tasks[self._progress.task_ids.index(task)].completed:
            self._progress.reset(task, total=total)  # the stage begins again
        self._progress.update(task, completed=done, total=total)


class _Lines:
    """Lines on stderr for the stage that is going on."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[float, int]] = {}
        self._said = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        started, first = self._begun.get(stage, (now, done))
        if done <= first:  # a new stage, or one that begins again
            started, first = now, done
        self._begun[stage] = started, first
        if now - self._said < LINE_SECONDS:
            return
        self._said = now
        left = ""
        if first < done < total:
            left = f", about {(now - started) * (total - done) / (done - first):.0f} s left"
        print(f"{stage}: {done} of {total}{left}", file=sys.stderr, flush=True)
