"""The one error root, and the sentence that names what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PathUpError(Exception):
    """A mistake that the user can mend.

    Its message is one sentence: what was found, what was needed, what to do. The command line prints it
    without a traceback and exits with code 1.
    """


class OutputError(PathUpError):
    """What was asked for could not be written (a full disk, no permission); what was made before is kept."""


def nearest(found: str, known: Iterable[str]) -> str:
    """Return ``'; did you mean X?'`` for the closest of `known`, or an empty string when none is close."""
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(found).lower(), folded, n=1, cutoff=0.5)
    return f"; did you mean '{folded[close[0]]}'?" if close else ""


def unknown(kind: str, found: str, known: Iterable[str]) -> PathUpError:
    """The error for a name that is not in a closed list: says the name, the nearest and the whole list."""
    names = list(known)
    return PathUpError(f"unknown {kind} '{found}'{nearest(found, names)} (known: {', '.join(names)})")
