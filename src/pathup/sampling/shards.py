"""Single tiles in WebDataset shards: tar files of which each sample is three members of one name.

``IC_0042.png`` is the tile, ``IC_0042.txt`` its prompt and ``IC_0042.json`` its row of metadata, as ``webdataset``,
``datasets`` and ``img2dataset`` have them. The tiles of a shard that is being drawn lie in a folder beside it, each
whole; the shard appears when it has all of them. Its bytes are a function of its samples alone.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pathup import storage

__all__ = ["is_whole", "pack", "remove_unfinished", "shard_path", "unfinished"]


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` of a folder lies."""
    return folder / f"shard-{number:06d}.tar"


def unfinished(shard: Path) -> Path:
    """The folder of a shard's tiles for as long as it is not written."""
    return shard.with_name(f"{shard.stem}.unfinished")


def pack(shard: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a shard of its unfinished folder's tiles, in the rows' order, and remove the folder.

    Parameters
    ----------
    shard
        The tar file to be.
    rows
        Metadata of each sample; ``file_name`` is that of its tile, ``text`` its prompt.

    Raises
    ------
    PathUpError
        The disk is full, or a tile cannot be read.
    """
    folder = unfinished(shard)
    with storage.atomic_path(shard) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            tile = folder / row["file_name"]
            _add(tar, tile.name, tile.read_bytes())
            _add(tar, tile.with_suffix(".txt").name, str(row["text"]).encode())
            _add(tar, tile.with_suffix(".json").name, json.dumps(row, ensure_ascii=False).encode())
    remove_unfinished(shard)


def remove_unfinished(shard: Path) -> None:
    """Remove the folder that a shard's tiles were in, if it is there."""
    shutil.rmtree(unfinished(shard), ignore_errors=True)


def is_whole(shard: Path, rows: list[dict[str, Any]]) -> bool:
    """Whether a shard is there with the tiles of all its rows, and nothing after its last member is missing."""
    if not shard.is_file():
        return False
    try:
        with tarfile.open(shard, "r:") as tar:
            members = tar.getmembers()
    except (OSError, tarfile.TarError):
        return False
    tiles = [member.name for member in members if member.name.endswith(".png")]
    last = members[-1] if members else None
    ends = 0 if last is None else last.offset_data + last.size
    return tiles == [row["file_name"] for row in rows] and shard.stat().st_size >= ends + 2 * tarfile.BLOCKSIZE


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """One member without owner or time, which would make equal samples different files."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
