"""Feature extraction by all processes of a run: the first one measures, and asks the others for their share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pathup.errors import PathUpError
from pathup.evaluation.encoders import Encoder
from pathup.evaluation.features import Progress, View, extract
from pathup.processes import Processes

__all__ = ["SharedExtraction"]


class SharedExtraction:
    """Features of images, taken by several processes at once; used as a context, at whose end the others are let go.

    Every process makes one, with the same encoders in the same order. The first calls `extract` as often as it likes;
    all others call `serve`, which returns when the first leaves the context.

    Parameters
    ----------
    encoders
        Networks, each process's own, on its own device.
    processes
        Those of the run; with one, `extract` is the plain one.
    """

    def __init__(self, encoders: Sequence[Encoder], processes: Processes) -> None:
        self._encoders, self._processes = list(encoders), processes

    def __enter__(self) -> SharedExtraction:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._processes.is_main and self._processes.count > 1:
            try:
                self._processes.told(None)
            except RuntimeError:  # one of them is lost
                if error is None:
                    raise

    def extract(
        self, encoder: Encoder, files: Sequence[Path], view: View = "colour", *, progress: Progress | None = None
    ) -> np.ndarray:
        """As `pathup.evaluation.features.extract`, by all processes: each takes every n-th image.

        Raises
        ------
        PathUpError
            What one of the processes met.
        """
        if self._processes.count == 1:
            return extract(encoder, files, view, progress=progress)
        self._processes.told((self._encoders.index(encoder), [str(file) for file in files], view))
        count = self._processes.count

        def of_all(done: int, total: int) -> None:
            if progress is not None:
                progress(min(len(files), count * done), len(files))

        parts = self._share(encoder, files, view, of_all)
        for part in parts:
            if isinstance(part, PathUpError):
                raise part
        rows = np.empty((len(files), next(part.shape[1] for part in parts if len(part))), np.float32)
        for rank, part in enumerate(parts):
            if len(part):
                rows[rank::count] = part
        return rows

    def serve(self) -> None:
        """Take shares of what the first process asks for, until it is done."""
        while (asked := self._processes.told(None)) is not None:
            number, files, view = asked
            self._share(self._encoders[number], [Path(file) for file in files], view, None)

    def _share(self, encoder: Encoder, files: Sequence[Path], view: View, progress: Progress | None) -> list[Any]:
        """All processes' features, or what they met, by rank."""
        mine = files[self._processes.rank :: self._processes.count]
        own: Any
        try:
            own = extract(encoder, mine, view, progress=progress) if mine else np.empty((0, 0), np.float32)
        except PathUpError as error:  # told to all: the others wait for a share
            own = error
        return self._processes.gathered_objects(own)
