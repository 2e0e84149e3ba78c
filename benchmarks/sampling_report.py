"""What the turns of ``benchmarks/sampling.py`` say: figures, verdicts, and the table for docs/results."""

from __future__ import annotations

import statistics
from typing import Any

Row = dict[str, Any]

TITLES = {
    "literal": "literal Algorithm 1, one window after another",
    "equation_6": "PathUp overlapped, equation 6",
    "overlapped": "PathUp overlapped, Hann",
    "overlapped_1": "PathUp overlapped, Hann, one window at a time",
    "shifted": "PathUp shifted",
    "panorama_half": "diffusers panorama, stride of half a window",
    "panorama_half_batched": "diffusers panorama, stride of half a window, our batch",
    "panorama": "diffusers panorama, its stride of 8",
    "panorama_batched": "diffusers panorama, its stride of 8, our batch",
    "whole_overlapped": "pathup generate, overlapped",
    "bare_overlapped": "bare cost, overlapped",
    "whole_shifted": "pathup generate, shifted",
    "bare_shifted": "bare cost, shifted",
}
"""The methods, in the order of their turns."""

LIMITS = {"shifted": 0.45, "overlapped": 1.0, "whole": 1.10, "agreement": 1e-4}
"""What must hold: time of shifted windows over overlapped, of overlapped over the literal loop's, of a whole slide over
its bare cost; and how far apart two ways to compute the same canvas may be, of its largest value."""


def summary(title: str, turns: list[Row]) -> Row:
    """One method's turns as one row: the least time counts, of the median is told too."""
    best = min(turns, key=lambda turn: float(turn["seconds"]["total"]))
    totals = [float(turn["seconds"]["total"]) for turn in turns]
    return {
        **{key: value for key, value in best.items() if key != "seconds"},
        "title": title,
        "seconds": min(totals),
        "seconds_median": statistics.median(totals),
        "seconds_all": totals,
        "cpu_seconds": min(float(turn["cpu_seconds"]) for turn in turns),
        "seconds_a_forward": min(totals) / best["forwards"],
        "stages": best["seconds"],
        "peak_memory_bytes": max(int(turn["peak_memory_bytes"]) for turn in turns),
    }


def add_ratios(rows: dict[str, Row]) -> None:
    """Each method's time and memory over the literal loop's, each slide's over its bare cost; in place."""
    for name, row in rows.items():
        other = f"bare_{name.removeprefix('whole_')}" if name.startswith("whole_") else "literal"
        if other in rows and not name.startswith("bare_"):
            row["over"] = other
            for key in ("seconds", "seconds_median", "cpu_seconds", "peak_memory_bytes"):
                row[f"{key}_ratio"] = row[key] / rows[other][key]
            if "seconds_of_full_windows" in rows[other]:
                row["full_windows_ratio"] = row["seconds"] / rows[other]["seconds_of_full_windows"]


def verdicts(rows: dict[str, Row], apart: float | None) -> list[Row]:
    """What must hold, said of the figures: ``holds`` or ``fails``; what was not measured is left out.

    Parameters
    ----------
    rows
        By method, from `summary`.
    apart
        Largest difference of PathUp's canvas with equation 6 from the literal loop's, over its largest value.
    """
    found: list[Row] = []

    def judged(line: int, what: str, value: float, limit: float, holds: bool, **more: float) -> None:
        row = {"line": line, "what": what, "value": value, **more, "limit": limit}
        found.append({**row, "verdict": "holds" if holds else "fails"})

    def compared(line: int, what: str, one: str, other: str, limit: float) -> None:
        if one in rows and other in rows:
            least, medians, cpu = (
                rows[one][key] / rows[other][key] for key in ("seconds", "seconds_median", "cpu_seconds")
            )
            judged(line, what, least, limit, least <= limit, of_medians=medians, of_cpu_time=cpu)

    compared(1, "time of shifted over overlapped windows", "shifted", "overlapped", LIMITS["shifted"])
    for name, how in (("equation_6", "equation 6"), ("overlapped", "Hann"), ("overlapped_1", "one window at a time")):
        compared(1, f"time of overlapped windows ({how}) over the literal loop", name, "literal", LIMITS["overlapped"])
    for name in ("equation_6", "overlapped", "shifted"):
        if name in rows:
            value = rows[name]["windows_worth"] / rows[name]["windows_worth_expected"]
            judged(1, f"windows' worth of forwards over the schedule's ({name})", value, 1.0, abs(value - 1) < 1e-6)
    if apart is not None:
        what, limit = "difference of overlapped windows (equation 6) from the literal loop", LIMITS["agreement"]
        judged(1, what, apart, limit, apart <= limit)
    for kind in ("overlapped", "shifted"):
        compared(2, f"time of a whole slide ({kind}) over bare cost", f"whole_{kind}", f"bare_{kind}", LIMITS["whole"])
    return found


def said(verdict: Row) -> str:
    """One verdict as a line of text."""
    value, limit = (f"{verdict[key]:.3g}" for key in ("value", "limit"))
    others = ""
    if "of_medians" in verdict:
        others = f" (of medians {verdict['of_medians']:.3g}, of processor time {verdict['of_cpu_time']:.3g})"
    return f"line {verdict['line']}: {verdict['what']}: {value}{others}, limit {limit}: **{verdict['verdict']}**"


def table(result: Row) -> str:
    """The figures as a page of markdown."""
    facts, rows = result["facts"], result["methods"]
    where = facts["device_name"] or f"{facts['threads']} threads of {result['processor']}"
    model = result["model"] + (f" ({result['model_sha256'][:12]})" if result["model_sha256"] else "")
    side, canvas, tried = result["size_px"], facts["canvas_latent"], ", ".join(map(str, facts["batches"]))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        "# What a large image costs",
        "",
        f"`python benchmarks/sampling.py` with {model} on {where}: {side} x {side} px, {canvas} x {canvas} latent",
        f"positions, windows of {facts['window_latent']}. Methods took turns, {result['repeats']} times each, every",
        "turn in a process of its own; the least time counts, that of the medians is beside it. Batch of the U-Net:",
        f"{result['batch']}, the fastest of {tried}.",
        f"Versions: {versions}.",
    ]
    compared = [row for name, row in rows.items() if not name.startswith(("whole_", "bare_"))]
    if compared:
        lines += _compared(compared, facts)
    wholes = {name.removeprefix("whole_"): row for name, row in rows.items() if name.startswith("whole_")}
    if wholes:
        lines += _slides(wholes, rows, facts)
    lines += ["", "## What must hold", "", *(f"- {said(verdict)}" for verdict in result["verdicts"]), ""]
    return "\n".join(lines)


_READING_COMPARED = """
- *seconds* run from the same noise to x_0, without loading or decoding.
- *processor s* is the processor's time in all threads: where others use the machine, it tells more than the clock.
- *U-Net forwards* are windows that went through the U-Net, counted where it is called: the work a method asks for.
- *ms a forward* is seconds over forwards: batching, and what is done around the U-Net.
- *time / literal* below 1 is faster than the paper's algorithm taken literally.
- *peak MiB* is the most memory the process held, the model and Python with it (on a GPU, the GPU's).
- *peak / literal* above 1 is what the batch costs.
"""

_READING_SLIDES = """
- *seconds* are all that the command does once Python has started.
- *bare* is the same forwards of the U-Net, in the same batches, with nothing around them, and the decoder over as many
  pixels in plain tiles.
- *whole / bare* is what is lost around the networks; encoding, and decoding the overview, count as lost.
- *of full windows* is the ratio where as many positions in full windows of the best batch, with the sampler's own
  attention, stand for the forwards: what windows of other sizes at the rim lose counts as lost too.
- *processor s*, whole and bare, are the processor's time in all threads.
- *forwards* of the U-Net are those of overview and canvas together.
- *ms a bare forward* and *bare decoding* are what the bare cost is made of.
- *peak MiB* is the most memory the process held.
- *stages* add up to the seconds of the fastest turn; *load* is the model's loading and its hash.
"""


def _compared(rows: list[Row], facts: Row) -> list[str]:
    """The table of what begins with the same noise."""
    scheduler, head = facts["scheduler"].upper(), [
        "method", "windows at once", "seconds (median)", "processor s", "U-Net forwards", "ms a forward",
        "time / literal (of medians)", "peak MiB", "peak / literal",
    ]  # fmt: skip
    body = [
        [
            row["title"],
            str(row["window_batch"]),
            f"{row['seconds']:.1f} ({row['seconds_median']:.1f})",
            f"{row['cpu_seconds']:.1f}",
            str(row["forwards"]),
            f"{1000 * row['seconds_a_forward']:.2f}",
            _time_ratio(row),
            _mebibytes(row),
            f"{row['peak_memory_bytes_ratio']:.2f}" if "peak_memory_bytes_ratio" in row else "-",
        ]
        for row in rows
    ]
    title = f"## From noise to a canvas: {facts['steps']} steps of {scheduler}, guidance {facts['guidance']:g}"
    return ["", title, "", *_markdown(head, body), *_READING_COMPARED.rstrip().splitlines()]


def _slides(wholes: dict[str, Row], rows: dict[str, Row], facts: Row) -> list[str]:
    """The table of whole slides beside their bare cost."""
    head = [
        "windows", "seconds (median)", "bare (median)", "whole / bare (of medians)", "of full windows", "processor s",
        "forwards", "ms a bare forward", "bare decoding, s", "peak MiB", "stages, s",
    ]  # fmt: skip
    body = []
    for kind, row in wholes.items():
        bare = rows[f"bare_{kind}"]
        stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in row["stages"].items() if stage != "total")
        body.append([
            kind,
            f"{row['seconds']:.1f} ({row['seconds_median']:.1f})",
            f"{bare['seconds']:.1f} ({bare['seconds_median']:.1f})",
            _time_ratio(row),
            f"{row['full_windows_ratio']:.2f}",
            f"{row['cpu_seconds']:.1f} / {bare['cpu_seconds']:.1f}",
            str(row["forwards"]),
            f"{1000 * bare['stages']['forwards'] / bare['forwards']:.2f}",
            f"{bare['stages']['decode']:.1f}",
            _mebibytes(row),
            stages,
        ])  # fmt: skip
    own = facts["own_settings"]
    title = (
        f"## A whole slide: `pathup generate` into an OME-TIFF, {facts['whole_steps']} steps of {own['scheduler']}, "
        f"strength {own['strength']:g}, guidance {facts['whole_guidance']:g}"
    )
    return ["", title, "", *_markdown(head, body), *_READING_SLIDES.rstrip().splitlines()]


def _markdown(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---", *["---:"] * (len(head) - 1)], *body)]


def _time_ratio(row: Row) -> str:
    return f"{row['seconds_ratio']:.2f} ({row['seconds_median_ratio']:.2f})" if "seconds_ratio" in row else "-"


def _mebibytes(row: Row) -> str:
    return f"{row['peak_memory_bytes'] / 2**20:.0f}"
