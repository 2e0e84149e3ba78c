"""The verb ``pathup doctor``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathup.doctor import Finding

_MARKS = {"good": "ok", "note": "note", "slow": "SLOW", "missing": "MISSING"}


def doctor(
    folder: Annotated[Path, typer.Option(help="Where runs are to be written: its disk is looked at.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Time nothing.")] = False,
) -> None:
    """Say what this machine has for PathUp, what will be slow or missing, and what mends it.

    The exit code is 1 where something is missing that PathUp needs, else 0.
    """
    from pathup.doctor import examine

    findings = examine(folder, probe=not no_probe)
    if as_json:
        typer.echo(json.dumps([finding.as_row() for finding in findings], indent=2))
    else:
        typer.echo("\n".join(told(findings)))
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


def told(findings: list[Finding]) -> list[str]:
    """The findings in words: a line each, what mends it below, and how many of which there are."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.state]:8}{finding.what:{width}}  {finding.told}")
        if finding.mend:
            lines.append(f"{'':8}{'':{width}}  -> {finding.mend}")
    counts = {state: sum(finding.state == state for finding in findings) for state in ("missing", "slow")}
    if not any(counts.values()):
        return [*lines, "", "all that PathUp needs is here"]
    said = [f"{count} {state}" for state, count in counts.items() if count]
    return [*lines, "", ", ".join(said)]
