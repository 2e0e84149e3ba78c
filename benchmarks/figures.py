"""Where a benchmark's figures go: JSON, a table in Markdown, or the terminal."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pathup import storage


def add_targets(parser: argparse.ArgumentParser) -> None:
    """The options ``--output`` and ``--table``."""
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--table", type=Path, help="Markdown")


def tell(asked: argparse.Namespace, found: dict[str, Any], table: str) -> None:
    """Write what was found to the files that were asked for, and print the table, or all where there is no file."""
    if asked.output:
        storage.write_json(asked.output, found)
    if asked.table:
        storage.write_text(asked.table, table)
    print(table if asked.table or asked.output else json.dumps(found, indent=2) + "\n" + table)
