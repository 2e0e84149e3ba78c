"""The results as Markdown: every figure beside its floor, its counts and its interval."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pathup.evaluation.encoders import NOT_COMPARABLE
from pathup.evaluation.fidelity import METRICS
from pathup.evaluation.rows import metric_title
from pathup.evaluation.text import figure, interval, percent, table
from pathup.evaluation.tissue_tables import copying_text, morphology_text, seams_text

__all__ = ["markdown"]

_COUNT = re.compile(r"(\d+) (images|regions)")

SCALE = {"kid": 1000.0}  # the literature prints KID x 1000


def markdown(results: dict[str, Any]) -> str:
    """``results.json`` as a Markdown page.

    Parameters
    ----------
    results
        What `pathup.evaluation.runs.evaluate` writes.
    """
    parts = [f"# {title(results)}", "", *setting(results)]
    for part, render in (
        ("fidelity", _fidelity), ("consistency", _consistency), ("morphology", morphology_text),
        ("copying", copying_text), ("seams", seams_text),
    ):  # fmt: skip
        if results.get(part):
            parts += ["", *render(results)]
    if results["notes"]:
        parts += ["", "## Notes", "", *(f"- {note}" for note in results["notes"])]
    return "\n".join(parts) + "\n"


def title(results: dict[str, Any]) -> str:
    """What is compared with what, in one line."""
    sets = results["sets"]
    names = ", ".join(run["source"] for run in sets["synthetic"])
    return f"Synthetic tiles ({names}) beside real tiles ({sets['real']['source']})"


def setting(results: dict[str, Any]) -> list[str]:
    """The lines that say what was measured with."""
    sets = results["sets"]
    train = sets["train"]["count"] if sets["train"] else "none"
    counts = ", ".join(str(run["count"]) for run in sets["synthetic"])
    lines = [
        f"PathUp {results['pathup']}, seed {results['seed']}. Tiles: real test {sets['real']['count']}, real training "
        f"{train}, synthetic {counts}; {sets['real']['size_px']} px.",
        "",
        NOT_COMPARABLE,
    ]
    if results["split_by"] == "region":
        lines += [
            "",
            "The real splits are by region: training and test tiles may come from the same slide, so the floor is "
            "lower than "
            "between patients.",
        ]
    return lines


def _fidelity(results: dict[str, Any]) -> list[str]:
    lines = ["## Fidelity"]
    for block in results["fidelity"]:
        features = block["features"]
        lines += [
            "",
            f"### On features of {features['network']}",
            "",
            f"{features['dimension']} features; tiles resized to {features['input_px']} px, "
            f"{features['resize_filter']}; "
            f"weights SHA-256 {features['weights_sha256'][:16]}. In brackets: 95 % intervals. **Floor**: real "
            "training tiles "
            "in the synthetic ones' place, as many and of the same mixture. **Halves**: one half of the real test "
            "tiles "
            "against the other, and as many synthetic tiles against the first half.",
        ]
        for metric in METRICS:
            name, scale = metric_title(metric, features["literature"]), SCALE.get(metric, 1.0)
            lines += ["", f"**{name}** ({'smaller' if metric in ('fid', 'kid') else 'larger'} is better)", ""]
            runs = max((len(row["runs"]) for row in block["rows"]), default=1)
            head = ["tiles", "real", "synthetic", name, *([f"mean ± std of {runs} runs"] if runs > 1 else []), "floor",
                    "halves: real", "halves: synthetic", ""]  # fmt: skip
            lines += table(head, (_fidelity_row(row, metric, scale, runs) for row in block["rows"] if row["runs"]))
        subsets = [row["runs"][0]["kid_subsets"] for row in block["rows"] if row["runs"]]
        if subsets:
            own = subsets[0]
            lines += [
                "",
                f"{metric_title('kid', features['literature'])} over {own['subsets']} subsets of {own['subset_size']} "
                "(overall): "
                f"{figure(own['mean'] * 1000)} ± {figure(own['std'] * 1000)}.",
            ]
        check = block.get("torch_fidelity")
        if check:
            worst = max(entry["relative_difference"] for entry in check["figures"].values())
            counts = check["counts"]
            lines += [
                "",
                f"The overall figures of {counts['real']} real and {counts['synthetic']} synthetic tiles were computed "
                f"by torch-fidelity {results['libraries']['torch-fidelity']} as well, from the same features: they "
                f"differ by at most {worst:.1g} (relative).",
            ]
        lines += [line for text in _warnings(block["rows"]) for line in ("", f"*{text}*")]
    return lines


def _warnings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows' warnings; those that differ in a count alone are told once, with the rows and their counts."""
    told: dict[str, list[str]] = {}
    for row in rows:
        for warning in row["warnings"]:
            count = _COUNT.search(warning)
            text = warning if count is None else warning.replace(count[0], f"so few {count[2]}", 1)
            told.setdefault(text, []).append(row["name"] if count is None else f"{row['name']} ({count[1]})")
    return [f"{text[0].upper()}{text[1:]}: {'; '.join(names)}." for text, names in told.items()]


def _fidelity_row(row: dict[str, Any], metric: str, scale: float, runs: int) -> list[str]:
    counts, halves = row["counts"], row["halves"] or {}
    over = []
    if runs > 1:
        own = row["spread"]
        over = [f"{figure(own[metric]['mean'] * scale)} ± {figure(own[metric]['std'] * scale)}" if own else "-"]
    return [
        row["name"], str(counts["real"]), str(counts["synthetic"]), interval(row["runs"][0][metric], scale), *over,
        interval((row["floor"] or {}).get(metric), scale),
        interval((halves.get("real") or {}).get(metric), scale),
        interval((halves.get("synthetic") or {}).get(metric), scale),
        "beyond the floor" if metric in row["beyond_floor"] else "",
    ]  # fmt: skip


def _consistency(results: dict[str, Any]) -> list[str]:
    lines = [
        "## Class consistency",
        "",
        "A classifier trained on real training tiles names the class of real test tiles and of synthetic ones. Stain "
        "alone can "
        "give a class away, so the view that counts is the grey one (luminance, each tile to the same mean and "
        "contrast).",
    ]
    for block in results["consistency"]:
        level = f", level {block['level']}" if block["level"] else ""
        lines += ["", f"### On features of {block['features']['network']}{level} (chance {block['chance']:.1%})", ""]
        rows = []
        for view, found in block["views"].items():
            for name, title_ in (("accuracy", "accuracy"), ("balanced_accuracy", "mean recall")):
                ratio = found["ratio"][name]
                rows.append(
                    [view, title_, _with_interval(found["real_test"], name), _with_interval(found["synthetic"], name),
                     "-" if ratio is None else f"{ratio:.2f}"]
                )  # fmt: skip
        lines += table(["view", "figure", "real test", "synthetic", "ratio"], rows)
        lines += ["", "Recall of each class, real test / synthetic:", ""]
        lines += table(
            ["view", *block["labels"]],
            (
                [view, *(_recalls(found, label) for label in block["labels"])]
                for view, found in block["views"].items()
            ),
        )
        if block.get("spread"):
            told = ", ".join(
                f"{view} {percent(own['mean'])} ± {percent(own['std'])}" for view, own in block["spread"].items()
            )
            lines += ["", f"Accuracy on synthetic tiles over {block['runs']} runs: {told}."]
    return lines


def _recalls(found: dict[str, Any], label: str) -> str:
    return " / ".join(percent(found[name]["recall"][label]) for name in ("real_test", "synthetic"))


def _with_interval(found: dict[str, Any], name: str) -> str:
    text = percent(found[name])
    return f"{text} ({found['interval'][0]:.1%} to {found['interval'][1]:.1%})" if name == "accuracy" else text
