"""What stands where an image is to be written: what may be replaced, and what a killed run left.

A DeepZoom image is an index, ``NAME.dzi``, and its tiles in ``NAME_files`` beside it. The index is written last and
removed first: tiles without one are of an image that is not finished.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import psutil

from pathup.errors import PathUpError

__all__ = ["DZI_ENDING", "check_target", "remove_leftovers", "remove_target", "tiles_folder"]

DZI_ENDING = ".dzi"
PROVENANCE_FILE = "provenance.json"
"""What PathUp puts beside a DeepZoom image's levels: its scale and provenance."""

_BESIDE_LEVELS = (PROVENANCE_FILE, "vips-properties.xml")


def tiles_folder(target: Path) -> Path:
    """Where the tiles of the DeepZoom image `target` lie."""
    return target.with_name(f"{target.stem}_files")


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise a PathUpError when `target` exists and must not be replaced, or is a folder.

    Of a DeepZoom image that is its folder of tiles as well. Such a folder is replaced unasked where PathUp wrote it and
    was killed before the index; one that holds anything but tiles is never replaced.
    """
    if target.is_dir():
        raise PathUpError(f"{target} is a folder, but a file is to be written there; name another output")
    if target.exists() and not overwrite:
        raise PathUpError(f"{target} exists already; add --overwrite to replace it, or name another output")
    folder = tiles_folder(target)
    if not _is_deepzoom(target) or not folder.exists():
        return
    if not _holds_tiles(folder):
        raise PathUpError(f"{folder} holds something other than tiles, but they are to be written there; name another")
    if not overwrite and not (folder / PROVENANCE_FILE).is_file():
        raise PathUpError(f"{folder} exists already; add --overwrite to replace it, or name another output")


def remove_target(target: Path) -> None:
    """Remove an image, a DeepZoom image's tiles included, if it is there."""
    target.unlink(missing_ok=True)
    folder = tiles_folder(target)
    if _is_deepzoom(target) and _holds_tiles(folder):
        shutil.rmtree(folder)


def remove_leftovers(target: Path) -> None:
    """Remove what killed writers of `target` left beside it: hidden, and as large as the image.

    To be called before this process begins to write there.
    """
    names = "|".join(re.escape(path.name) for path in (target, tiles_folder(target)))
    left = re.compile(rf"\.(\d+)\.(?:partial|replaced)\.(?:{names})")
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        match = left.fullmatch(path.name)
        if match is None or (int(match[1]) != os.getpid() and psutil.pid_exists(int(match[1]))):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_deepzoom(target: Path) -> bool:
    return target.suffix.lower() == DZI_ENDING


def _holds_tiles(folder: Path) -> bool:
    """Whether a folder holds a DeepZoom image's levels and nothing else (but for hidden files of file managers)."""
    return folder.is_dir() and all(
        p.name.isdigit() or p.name in _BESIDE_LEVELS or p.name.startswith(".") for p in folder.iterdir()
    )
