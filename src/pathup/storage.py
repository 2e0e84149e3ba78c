"""Writing so that nothing is half-written: atomic files, hashes, and the folder of one run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from pathup.errors import OutputError, PathUpError

IDENTITY_FILE = "pathup.run.json"


@contextmanager
def clear_disk_errors(target: Path) -> Iterator[None]:
    """Turn an operating-system error while writing `target` into one clear sentence."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, target) from error
    except PathUpError:
        raise
    except Exception as error:  # libraries written in Rust wrap the operating system's error in types of their own
        wrapped = _wrapped_error(error)
        if wrapped is None:
            raise
        raise disk_error(wrapped, target) from error


def _wrapped_error(error: Exception) -> OSError | None:
    number = re.search(r"os error (\d+)", str(error))
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return OSError(errno.EIO, str(error)) if isinstance(error, SafetensorError) else None


def disk_error(error: OSError, target: Path) -> OutputError:
    """The sentence for an OSError met while writing `target`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(p for p in [target, *target.parents] if p.exists())).free
        return OutputError(
            f"the disk is full: {target} could not be written ({free / 2**20:.0f} MiB free); "
            "free some space and run the same command again (with --resume where a folder was being written)"
        )
    reason = error.strerror or str(error) or type(error).__name__
    return OutputError(f"cannot write {target}: {reason}")


def fsync_path(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `target` to write to; it takes `target`'s name only when complete.

    The temporary name keeps the ending of `target` (libraries choose a format by it). On any error the
    temporary file is removed and `target` is as it was.

    Raises
    ------
    PathUpError
        The file could not be written (full disk, no permission).
    """
    temporary = target.with_name(f".{os.getpid()}.partial.{target.name}")
    with clear_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            fsync_path(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what processes that were killed had not written to the end, in a folder that no other writes to now."""
    for path in folder.glob(".*.partial.*"):
        if path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling folder to write to; it takes `target`'s place only when complete.

    Files at the top of an earlier `target` that the new one lacks (a card, a note) are kept. On any error the temporary
    folder is removed and `target` is as it was.

    Raises
    ------
    PathUpError
        The folder could not be written (full disk, no permission).
    """
    temporary = target.with_name(f".{os.getpid()}.partial.{target.name}")
    replaced = target.with_name(f".{os.getpid()}.replaced.{target.name}")
    with clear_disk_errors(target):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in target.iterdir() if target.is_dir() else ():
                if file.is_file() and not (temporary / file.name).exists():
                    shutil.copy2(file, temporary / file.name)
            for path in temporary.rglob("*"):
                fsync_path(path)
            if target.exists():
                os.replace(target, replaced)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write `text` (UTF-8) to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, content: Any) -> None:
    """Write `content` as indented JSON to `target` atomically."""
    write_text(target, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(source: Path) -> Any:
    """Read JSON; a missing or broken file is a PathUpError that names it."""
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PathUpError(f"{source} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PathUpError(f"{source} is not readable JSON ({error})") from error


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def held(lock: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock, a file that stays; whether it is held. A process that ends, however it ends, holds none any more.

    With `wait` off, a lock that another process holds is not waited for.
    """
    with clear_disk_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
    one = FileLock(lock)
    try:
        one.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        one.release()


def claim_folder(folder: Path, command: str, identity: dict[str, Any], *, resume: bool) -> bool:
    """Make `folder` the output of one run, or find that it already is.

    Parameters
    ----------
    folder
        The output folder; made when missing.
    command
        What runs (``'tiles'``, ``'train diffusion'``), for the message.
    identity
        JSON values that make two runs the same run.
    resume
        Whether a folder that this very run has begun may be continued.

    Returns
    -------
    bool
        True when the folder was begun by this run before, False when it is new.

    Raises
    ------
    PathUpError
        The folder holds another run, holds files that no run of PathUp made, or was begun and `resume`
        is False.
    """
    mark = folder / IDENTITY_FILE
    mine = json.loads(json.dumps({"command": command, **identity}))
    if folder.exists() and not folder.is_dir():
        raise PathUpError(f"{folder} is a file, but a folder is needed for the output; name another")
    if mark.exists():
        found = read_json(mark)
        if found != mine:
            differs = sorted(k for k in {*found, *mine} if found.get(k) != mine.get(k))
            raise PathUpError(
                f"{folder} holds another run ('{found.get('command')}', which differs in: {', '.join(differs)}); "
                "name another output folder, or remove this one"
            )
        if not resume:
            raise PathUpError(
                f"{folder} already holds this run; add --resume to go on with it, or name another output folder"
            )
        return True
    if folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise PathUpError(f"{folder} is not empty and was not made by 'pathup {command}'; name another output folder")
    write_json(mark, mine)
    return False
