"""A canvas after each step, so that a run which was killed goes on from the last one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol

import torch

from pathup import storage
from pathup.sampling.canvas import Canvas, FileCanvas

__all__ = ["FileStates", "MemoryStates", "States"]

_NAME = re.compile(r"step_(\d{5})_(\d{4})\.latent")


class States(Protocol):
    """States of one canvas by steps done; 0 is the noised canvas that denoising begins with."""

    @property
    def latest(self) -> int | None:
        """The most steps done; None before there is a canvas."""
        ...

    def read(self) -> Canvas:
        """The latest state."""
        ...

    def begin(self, step: int, channels: int) -> Canvas:
        """A new state to be written; it counts once it is committed."""
        ...

    def commit(self, step: int) -> None:
        """The new state is whole: it is the latest from now on, and the one before is given up."""
        ...


class MemoryStates:
    """States in memory, gone with the process."""

    def __init__(self, shape_HW: tuple[int, int]) -> None:
        self._shape_HW = shape_HW
        self._latest: tuple[int, torch.Tensor] | None = None
        self._next: torch.Tensor | None = None

    @property
    def latest(self) -> int | None:
        """Steps done."""
        return None if self._latest is None else self._latest[0]

    def read(self) -> torch.Tensor:
        """The latest state."""
        if self._latest is None:
            raise ValueError("no state was committed")
        return self._latest[1]

    def begin(self, step: int, channels: int) -> torch.Tensor:
        """Room for the state after `step` steps."""
        self._next = torch.empty(channels, *self._shape_HW)
        return self._next

    def commit(self, step: int) -> None:
        """Take the new state for the latest."""
        if self._next is None:
            raise ValueError("no state was begun")
        self._latest, self._next = (step, self._next), None


class FileStates:
    """States in files of a folder, one whole state there at any time; several processes may read it.

    Parameters
    ----------
    folder
        Made when missing.
    shape_HW
        The canvas.
    """

    def __init__(self, folder: Path, shape_HW: tuple[int, int]) -> None:
        self._folder, self._shape_HW = folder, shape_HW
        self._next: tuple[int, int] | None = None
        with storage.clear_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def latest(self) -> int | None:
        """The most steps done of all whole states."""
        found = self._found()
        return max(found) if found else None

    def read(self) -> FileCanvas:
        """The latest state."""
        found = self._found()
        step = max(found)
        return FileCanvas(self._path(step, found[step]), (found[step], *self._shape_HW))

    def begin(self, step: int, channels: int) -> FileCanvas:
        """Room on the disk for the state after `step` steps, under a name that is none of a state."""
        self._next = step, channels
        return FileCanvas(self._partial(), (channels, *self._shape_HW), create=True)

    def commit(self, step: int) -> None:
        """Give the new state its name, then remove the one before."""
        if self._next is None or self._next[0] != step:
            raise ValueError(f"the state after {step} steps was not begun")
        target = self._path(*self._next)
        with storage.clear_disk_errors(target):
            storage.fsync_path(self._partial())
            os.replace(self._partial(), target)
            storage.fsync_path(self._folder)
            for older, channels in self._found().items():
                if older < step:
                    self._path(older, channels).unlink(missing_ok=True)
        self._next = None

    def _found(self) -> dict[int, int]:
        """Steps done of each whole state there, and its channels."""
        matches = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return {int(match[1]): int(match[2]) for match in matches if match}

    def _path(self, step: int, channels: int) -> Path:
        return self._folder / f"step_{step:05d}_{channels:04d}.latent"

    def _partial(self) -> Path:
        return self._folder / "next.partial"
