"""Numbers, intervals and tables as the report writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["figure", "interval", "percent", "table"]


def figure(value: float | None, digits: int = 3) -> str:
    """A number to three significant digits."""
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"


def interval(entry: dict[str, Any] | None, scale: float = 1.0) -> str:
    """A figure with its 95 % interval."""
    if entry is None:
        return "-"
    text = figure(entry["value"] * scale)
    if entry.get("low") is None:
        return text
    return f"{text} ({figure(entry['low'] * scale)} to {figure(entry['high'] * scale)})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def percent(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{value:.1%}"
