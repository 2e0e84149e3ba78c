"""Progress bars on a terminal, one a stage; silent elsewhere."""

from __future__ import annotations

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


class Bars:
    """A bar a stage with the time left, on a terminal; silent elsewhere.

    Called as ``bars(stage, done, total)``; a stage that begins again starts its bar anew, but for those in `counted`,
    which may report several times without having begun again.
    """

    def __init__(self, counted: tuple[str, ...] = ()) -> None:
        console = Console(stderr=True)
        self._counted = counted
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
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        task = self._tasks[stage]
        if stage not in self._counted and done < self._progress.tasks[self._progress.task_ids.index(task)].completed:
            self._progress.reset(task, total=total)  # the stage begins again
        self._progress.update(task, completed=done, total=total)
