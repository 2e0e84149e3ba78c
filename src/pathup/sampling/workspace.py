"""The folder beside an output in which an image lies while it is unfinished: what a killed run goes on from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from pathup import storage
from pathup.errors import PathUpError
from pathup.processes import ONE_PROCESS, Processes
from pathup.sampling.states import FileStates

__all__ = ["UNFINISHED", "Workspace"]

UNFINISHED = ".unfinished"
"""Ending of the folder's name, behind the output's own name."""


class Workspace:
    """An unfinished image's folder.

    It holds the overview once it is drawn (``overview.npy``), the canvas after the last step (``canvas/``), the
    statistics that the
    decoder uses, each decoded band (``bands/``, losslessly compressed), and ``preview.png``. Each file appears when
    whole.

    Parameters
    ----------
    target
        The output.
    identity
        JSON values that make two runs the same image.
    resume
        Go on with what is there.
    overwrite
        Remove what is there, and begin anew.
    processes
        The main one makes the folder, the others find it.

    Raises
    ------
    PathUpError
        The folder holds an unfinished image and neither `resume` nor `overwrite` is set, or it holds another one; or
        the processes do not share a disk.
    """

    def __init__(
        self,
        target: Path,
        identity: dict[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        processes: Processes = ONE_PROCESS,
    ) -> None:
        self.folder = target.with_name(target.name + UNFINISHED)
        self._processes = processes
        if processes.is_main:
            if overwrite and not resume:
                shutil.rmtree(self.folder, ignore_errors=True)
            self._claim(target, identity, resume=resume)
        processes.wait()
        if not (self.folder / storage.IDENTITY_FILE).is_file():
            raise PathUpError(
                f"process {processes.rank} does not find {self.folder}, which process 0 made; all processes must see "
                f"the "
                "same disk"
            )

    def _claim(self, target: Path, identity: dict[str, Any], *, resume: bool) -> None:
        found = self.folder / storage.IDENTITY_FILE
        if found.is_file() and not resume:
            raise PathUpError(
                f"{target.name} was begun before and is unfinished ({self.folder}); add --resume to go on with it, or "
                "--overwrite to begin anew"
            )
        try:
            with storage.clear_disk_errors(self.folder):
                storage.claim_folder(self.folder, "generate", identity, resume=resume)
        except PathUpError as error:
            if "another run" not in str(error):
                raise
            raise PathUpError(f"{error}; or add --overwrite to begin anew, without --resume") from None

    # -- what is kept ---------------------------------------------------------------------------------------

    def states(self, stage: str, shape_HW: tuple[int, int]) -> FileStates:
        """The states of a stage's canvas."""
        return FileStates(self.folder / stage, shape_HW)

    @property
    def preview(self) -> Path:
        """Where the preview lies."""
        return self.folder / "preview.png"

    def overview(self) -> np.ndarray | None:
        """The overview, uint8 RGB (h, w, 3), mapped from its file; None before it is drawn."""
        path = self.folder / "overview.npy"
        return np.load(path, mmap_mode="r", allow_pickle=False) if path.is_file() else None

    def keep_overview(self, bands: Iterable[np.ndarray], shape_HW: tuple[int, int]) -> None:
        """Write the overview from its bands, uint8 RGB (rows, w, 3)."""
        with storage.atomic_path(self.folder / "overview.npy") as temporary, temporary.open("wb") as handle:
            header = {"descr": "|u1", "fortran_order": False, "shape": (*shape_HW, 3)}
            np.lib.format.write_array_header_1_0(handle, header)
            for band in bands:
                handle.write(np.ascontiguousarray(band).tobytes())

    def band(self, index: int) -> np.ndarray | None:
        """A decoded band, uint8 RGB (rows, W, 3); None before it is decoded."""
        path = self._band(index)
        if not path.is_file():
            return None
        content = path.read_bytes()
        rows, columns = (int.from_bytes(content[at : at + 4], "little") for at in (0, 4))
        return np.frombuffer(imagecodecs.zstd_decode(content[8:]), np.uint8).reshape(rows, columns, 3)

    def keep_band(self, index: int, pixels: np.ndarray) -> None:
        """Keep a decoded band."""
        head = b"".join(side.to_bytes(4, "little") for side in pixels.shape[:2])
        with storage.atomic_path(self._band(index)) as temporary:
            temporary.write_bytes(head + imagecodecs.zstd_encode(np.ascontiguousarray(pixels).tobytes(), level=1))

    def bands(self, count: int) -> Iterator[np.ndarray]:
        """All bands, from the top."""
        for index in range(count):
            band = self.band(index)
            if band is None:
                raise PathUpError(
                    f"band {index} of {count} is not in {self.folder}; run the same command with --resume"
                )
            yield band

    def _band(self, index: int) -> Path:
        return self.folder / "bands" / f"{index:06d}.zst"

    # -- its end --------------------------------------------------------------------------------------------

    @property
    def is_worth_keeping(self) -> bool:
        """Whether anything is in it that a later run need not do again."""
        return any(self.folder.glob("*/step_*")) or (self.folder / "overview.npy").is_file()

    def remove(self) -> None:
        """The image is finished (or nothing of it was): nothing of the folder is needed any more."""
        if self._processes.is_main and self.folder.exists():
            gone = self.folder.with_name(f".{os.getpid()}.removed.{self.folder.name}")
            os.replace(self.folder, gone)  # at once: a killed removal must not look like something to resume
            shutil.rmtree(gone, ignore_errors=True)
