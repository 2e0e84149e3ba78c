"""What becomes of a run of several processes when one of them dies: a sentence in place of the others' tracebacks."""

from __future__ import annotations

import os

__all__ = ["lost_peer"]

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
