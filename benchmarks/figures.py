"""How a benchmark ends: figures as JSON, as a table in Markdown or on the terminal, or a sentence of what failed."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pathup import PathUpError, storage


def add_targets(parser: argparse.ArgumentParser) -> None:
    """The options ``--output`` and ``--table``."""
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--table", type=Path, help="Markdown")


def measured(
    asked: argparse.Namespace, measure: Callable[[Path], dict[str, Any]], table: Callable[[dict[str, Any]], str]
) -> int:
    """Measure, with a folder that is removed afterwards, and tell what was found; returns the exit code."""
    try:
        with tempfile.TemporaryDirectory() as work:
            found = {**measure(Path(work)), **machine()}
    except PathUpError as error:
        print(f"pathup: {error}", file=sys.stderr)
        return 1
    _tell(asked, found, table(found))
    return 0


def machine() -> dict[str, Any]:
    """What it was measured on: the processor's name, or at least its kind, and cores."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else platform.machine(), "cores": os.cpu_count()}


def _tell(asked: argparse.Namespace, found: dict[str, Any], table: str) -> None:
    """Write what was found to the files that were asked for, and print the table, or all where there is no file."""
    if asked.output:
        storage.write_json(asked.output, found)
    if asked.table:
        storage.write_text(asked.table, table)
    print(table if asked.table or asked.output else json.dumps(found, indent=2) + "\n" + table)
