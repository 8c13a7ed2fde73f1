"""Predict every published run, and write down what came out.

    python -m loralab.memory.compare            # about five minutes on one core
    python -m loralab.memory.compare --stored   # table and figure only, from what is stored

writes `recorded/published_predictions.json` (formula and simulation of each row of
`recorded/published_memory.json`, and the versions that gave them), `recorded/published_memory.md`
(all rows as a table) and, in a checkout, `.github/memory-published.png` (the figure of the README).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loralab.memory.formula import estimate
from loralab.memory.gpu_runs import gpu_rows
from loralab.memory.published import (
    PREDICTED,
    left_out,
    measured_rows,
    measurements,
    reserved_range,
    versions,
)
from loralab.memory.result import GB, GiB
from loralab.memory.simulation import simulate
from loralab.paths import PROJECT, RECORDED

TABLE = RECORDED / "published_memory.md"
FIGURE = PROJECT / ".github" / "memory-published.png"
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl")


def predictions(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What formula and simulation say of each row with settings: its id -> bytes allocated."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["settings"] is None:
            continue
        found[row["id"]] = predicted(row, row["settings"])
        if "at_least" in row:
            lower = predicted(row, row["settings"] | row["at_least"])
            found[row["id"]] |= {f"{name}_at_least": size for name, size in lower.items()}
    return found


def predicted(row: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, int]:
    """Bytes allocated at the peak, by formula and by simulation, and reserved by the latter."""
    model, method = row["model"], row["method"]
    simulated = simulate(model, method, **settings)
    return {
        "formula": estimate(model, method, **settings).total,
        "simulated": simulated.total,
        "simulated_reserved": simulated.reserved,
    }


def error(row: Mapping[str, Any], by: str = "simulated") -> float:
    """Predicted / measured - 1. `by`: "simulated" or "formula"."""
    return row[by] / row["bytes"] - 1


def spread(rows: Sequence[Mapping[str, Any]], by: str) -> tuple[float, float]:
    """The mean and the largest distance between prediction and measurement, as shares of it."""
    distances = [abs(error(row, by)) for row in rows]
    return sum(distances) / len(distances), max(distances)


# --- the table -----------------------------------------------------------------------------------


def table() -> str:
    """All rows as Markdown, with their errors and reasons."""
    rows = measurements()
    with_prediction = [row for row in rows if row["settings"]]
    parts = [
        "# Published measurements of training memory, and what is predicted",
        "Written by `python -m loralab.memory.compare` from `published_memory.json` (measurements "
        "and their sources) and `published_predictions.json`. Do not edit it.",
        f"{len(rows)} measurements on one GPU; {len(with_prediction)} state enough to be "
        "predicted. Predictions are of *allocated* memory; nothing in them was fitted to a "
        "measurement. A percentage is predicted / measured - 1. *Reserved* memory is 1.02 to 1.25 "
        "times allocated, so a prediction 2 to 20 % below it is as expected. Predicted with "
        + ", ".join(f"{name} {number}" for name, number in versions().items()) + ".",
        _summary(with_prediction),
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        parts += _group(group, [row for row in rows if row["group"] == group])
    counts = ", ".join(f"{why} {count}" for why, count in left_out().items())
    parts += ["## Left out", f"Figures that were collected and are not here: {counts}."]
    return "\n\n".join(parts) + "\n"


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        for memory in ("allocated", "reserved", "not stated"):
            some = [row for row in rows if (row["group"], row["memory"]) == (group, memory)]
            if some:
                errors = sorted(error(row) for row in some)
                middle = errors[len(errors) // 2]
                lines.append([group, memory, str(len(some)), f"{errors[0]:+.1%}",
                              f"{middle:+.1%}", f"{errors[-1]:+.1%}"])
    head = ["source", "memory", "rows", "lowest error of the simulation", "median", "highest"]
    return _markdown(head, lines)


def _group(group: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = [f"## {group}"]
    shown = [row for row in rows if row["settings"]]
    if shown:
        head = ["", "model and method", "measured", "memory", "formula", "simulation", "said",
                "why they differ"]
        parts.append(_markdown(head, [_predicted_line(row) for row in shown]))
    if rest := [row for row in rows if not row["settings"]]:
        parts.append("No prediction:")
        lines = [[row["id"], f"{row['model']}, {row['method']}", row["reported"], row["memory"],
                  row["said"], row["reason"]] for row in rest]
        head = ["", "model and method", "measured", "memory", "said", "reason"]
        parts.append(_markdown(head, lines))
    sources = dict.fromkeys(row["source"] for row in rows)
    ids = {source: [row["id"] for row in rows if row["source"] == source] for source in sources}
    parts.append("\n".join(f"- {', '.join(ids[source])}: {source}" for source in sources))
    return parts


def _predicted_line(row: Mapping[str, Any]) -> list[str]:
    """One row's cells, its predictions in the unit that the source uses."""
    unit, name = (GB, "GB") if row["reported"].endswith("GB") else (GiB, "GiB")
    measured = row["reported"]
    if measured.endswith("bytes"):
        measured = f"{row['bytes'] / unit:.2f} {name}"
    elif "reserved_bytes" in row:
        measured += f" (reserved {row['reserved_bytes'] / unit:.4f})"
    kind = row["memory"]
    if kind == "reserved":
        low, high = reserved_range(row)
        inside = "in" if low <= row["bytes"] <= high else "not in"
        kind += f", {inside} {low / unit:.1f} to {high / unit:.1f} {name}"
    sizes = [
        f"{row[by] / unit:.2f} {name} ({error(row, by):+.1%})" for by in ("formula", "simulated")
    ]
    return [row["id"], f"{row['model']}, {row['method']}", measured, kind, *sizes, row["said"],
            row.get("reason", "")]


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |"
                     for line in body)


# --- the files -----------------------------------------------------------------------------------


def write_predictions(path: Path = PREDICTED) -> None:
    """Predict every row, and store it with the versions that did."""
    made = {
        "about": "Written by `python -m loralab.memory.compare`. Bytes allocated at the peak, by "
        "formula and by simulation, for each row of published_memory.json; `_at_least`: where the "
        "row's `at_least` replaces a setting.",
        "versions": {name: version(name) for name in LIBRARIES},
    }
    rows = predictions(measured_rows())
    lines = ",\n".join(f'  "{name}": {json.dumps(found)}' for name, found in rows.items())
    head = json.dumps(made, indent=1).removesuffix("\n}")
    path.write_text(f'{head},\n "rows": {{\n{lines}\n }}\n}}\n', "utf-8")


def draw(path: Path = FIGURE) -> None:
    """The figure of all rows that can be predicted, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from loralab import plots

    plots.use_style()
    figure = plots.predicted_against_published(gpu_rows() + measurements())
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def main(arguments: Sequence[str]) -> None:
    if "--stored" not in arguments:
        write_predictions()
    TABLE.write_text(table(), "utf-8")
    if FIGURE.parent.is_dir():
        draw()


if __name__ == "__main__":
    main(sys.argv[1:])
