"""Morphology, copying and seams as Markdown."""

from __future__ import annotations

from typing import Any

from pathup.evaluation.nuclei import COARSEST_MPP
from pathup.evaluation.text import figure, percent, table

__all__ = ["copying_text", "morphology_text", "seams_text"]


def morphology_text(results: dict[str, Any]) -> list[str]:
    """What a pathologist reads: medians, and distances beside the floor."""
    lines = [
        "## Morphology",
        "",
        "What can be read off tiles: stain, nuclei (segmented classically from the haematoxylin channel) and texture. "
        "The "
        "distance is the 1-Wasserstein distance of the two distributions over the real standard deviation: 0 is the "
        "same, 1 "
        "as far as moving every tile by one deviation. In brackets: 95 % intervals.",
    ]
    for block in results["morphology"]:
        overall, spread = block["overall"], block["spread"]
        counts = overall["tiles"]
        where = f"Level {block['level']}, " if block["level"] else ""
        lines += [
            "",
            f"### {where}{block['mpp']:g} micrometres per pixel",
            "",
            f"{counts['real']} real, {counts['synthetic']} synthetic and {counts['floor']} floor tiles "
            f"({block['floor']}).",
            "",
        ]
        over = ["mean ± std of runs"] if spread else []
        head = ["measure", "unit", "real", "synthetic", "distance", *over, "floor", ""]
        rows = []
        without: dict[str, list[str]] = {}
        for name, row in overall["measures"].items():
            if row["distance"] is None:
                coarse = row["group"] == "nuclei" and block["mpp"] > COARSEST_MPP
                reason = "nuclei are not resolved at this scale" if coarse else row.get("reason", "")
                without.setdefault(reason, []).append(row["title"])
                continue
            runs = []
            if spread:
                own = spread.get(name)
                runs = [f"{figure(own['mean'], 2)} ± {figure(own['std'], 2)}" if own else "-"]
            rows.append(
                [row["title"], row["unit"], figure(row["median"]["real"]), figure(row["median"]["synthetic"]),
                 _distance(row["distance"]), *runs, _distance(row["floor"]),
                 "beyond the floor" if row["beyond_floor"] else ""]
            )  # fmt: skip
        lines += table(head, rows)
        for reason, titles in without.items():
            lines += ["", f"*Not measured ({reason}): {'; '.join(titles)}.*"]
        if block["classes"]:
            lines += ["", "Distance of each class (floor in brackets):", ""]
            names = [name for name, row in overall["measures"].items() if row["distance"]]
            labels = list(block["classes"])
            by_measure = []
            for name in names:
                own = [block["classes"][label]["measures"][name] for label in labels]
                cells = [f"{_value(row['distance'])} ({_value(row['floor'])})" for row in own]
                by_measure.append([overall["measures"][name]["title"], *cells])
            lines += table(["measure", *labels], by_measure)
    return lines


def _value(entry: dict[str, Any] | None) -> str:
    return "-" if entry is None else figure(entry["value"], 2)


def _distance(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    text = figure(entry["value"], 2)
    if entry["interval"] is None:
        return text
    return f"{text} ({figure(entry['interval'][0], 2)} to {figure(entry['interval'][1], 2)})"


def copying_text(results: dict[str, Any]) -> list[str]:
    """How many synthetic tiles look like a training tile, beside held-out real ones."""
    lines = [
        "## Copying",
        "",
        "Each synthetic tile is laid over the training tiles most like it, in all flips and quarter turns and small "
        "shifts. "
        "Held-out real tiles, which copy nothing, tell how often the method is wrong. It finds whole tiles only: to "
        "find "
        "none is no proof that there are none.",
    ]
    for block in results["copying"]:
        held_out, authentic = block["held_out"], block["authenticity"]
        if block["level"]:
            lines += ["", f"### Level {block['level']}"]
        mark = "**Warning.** " if block["warning"] else ""
        lines += ["", f"{mark}{block['reading'][0].upper()}{block['reading'][1:].rstrip('.')}.", ""]
        rows = []
        for name, found in (("synthetic", block["synthetic"]), ("held-out real", held_out)):
            if found is None:
                continue
            own = authentic.get("synthetic" if name == "synthetic" else "held_out")
            rows.append(
                [name, str(found["judged"]), str(found["copies"]),
                 f"{percent(found['share'])} ({percent(found['low'])} to {percent(found['high'])})",
                 percent(own["value"]) if own else "-"]
            )  # fmt: skip
        lines += table(["tiles", "judged", "called copies", "share", "authentic"], rows)
        threshold = block["threshold"]
        reason = f" ({authentic['reason']})" if authentic["reason"] else ""
        lines += [
            "",
            f"{block['counts']['training']} training tiles. A copy is more similar than {threshold['value']:.3f} "
            "(correlation), "
            f"set on {threshold['set_on'] or 'nothing but the fixed limits'}. Authentic: further from its nearest "
            "training tile "
            f"than that is from its nearest real tile {authentic['neighbours']}{reason}.",
        ]
        lines += [line for note in block["notes"] for line in ("", f"*{note[0].upper()}{note[1:]}.*")]
    return lines


def seams_text(results: dict[str, Any]) -> list[str]:
    """Gradients across window borders over those elsewhere, image by image."""
    lines = [
        "## Seams",
        "",
        "The mean gradient across the lines of the window grid over that across other lines like them (1: the same), "
        "and the "
        "p-value of the steps at those lines against random lines nearby, the smallest over intensity and stain "
        "channels "
        "corrected for there being several. No reference image is needed. Uniform p-values mean no seams.",
        "",
    ]
    rows = []
    for found in results["seams"]:
        ratios = [f"{channel['ratio']:.3f}" for channel in found["channels"].values()]
        rows.append([found["image"], found["size"], found["grid_from"], *ratios, f"{found['score']:.1f}",
                     f"{found['p_value']:.3f}"])  # fmt: skip
    names = list(results["seams"][0]["channels"])
    lines += table(["image", "px", "grid", *(f"ratio, {name}" for name in names), "score", "p"], rows)
    real = results.get("seams_real") or {}
    for kind, intervals in real.get("grids", {}).items():
        lines += [
            "",
            f"{kind[0].upper()}{kind[1:]}: 95 % interval of the ratio at random lines of {real['images']} real images "
            f"({real['placements']} places of the grid on each), and how many synthetic images lie within it:",
            "",
        ]
        rows_of_kind = [found["channels"] for found in results["seams"] if found["grid_from"] == kind]
        lines += table(
            ["channel", "real, 95 %", "synthetic, mean", "within"],
            [
                [
                    name,
                    f"{low:.3f} to {high:.3f}",
                    f"{sum(row[name]['ratio'] for row in rows_of_kind) / len(rows_of_kind):.3f}",
                    f"{sum(low <= row[name]['ratio'] <= high for row in rows_of_kind)} of {len(rows_of_kind)}",
                ]
                for name, (low, high) in intervals.items()
            ],
        )
    small = sum(found["p_value"] < 0.05 for found in results["seams"])
    lines += ["", f"{small} of {len(rows)} images have p below 0.05; by chance, 5 % would."]
    return lines
