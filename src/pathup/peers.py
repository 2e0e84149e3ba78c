"""How several processes part: in order at a run's end, and with a sentence, not a traceback, where one of them dies."""

from __future__ import annotations

import os
import sys

__all__ = ["lost_peer", "part_in_order"]

_SIGNS = ("gloo", "nccl", "by peer", "remote process", "broken pipe")
"""What PyTorch's backends name, in small letters, when another process does not answer any more."""


def lost_peer(error: BaseException) -> str | None:
    """What to say of an error that another process's end has caused; None for every other error.

    Parameters
    ----------
    error
        What a collective operation raised: ``torch.distributed.DistError``, or the plain ``RuntimeError`` of Gloo.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    text = " ".join(str(error).split())
    if count < 2 or not isinstance(error, RuntimeError) or not any(sign in text.lower() for sign in _SIGNS):
        return None
    return (
        f"process {os.environ.get('RANK', '?')} of {count} lost another one, which was killed, ran out of memory or "
        f"cannot be reached ({text[:160]}); all end here, and the same command with --resume goes on from the newest "
        "checkpoint"
    )


def part_in_order() -> None:
    """Close the connections of a run that has ended well, which PyTorch asks for before an interpreter ends.

    Does nothing where there is one process, or PyTorch was not needed.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
