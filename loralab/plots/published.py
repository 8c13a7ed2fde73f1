"""Predicted memory against what others published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from loralab import memory
from loralab.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

# What a published number measured, and who published it, by the marker that stands for it.
MEMORY_MARKERS = {"allocated": "o", "reserved": "s", "not stated": "D"}
SOURCES = {"can-i-finetune-this": BLUE, "PEFT": VERMILION, "torchtune": PURPLE, "LitGPT": GREEN,
           "LitGPT, 4-bit": SKY, "LLaMA-Factory": ORANGE, "this course": GREY}  # fmt: skip


def predicted_against_published(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Predicted against measured memory in GiB, and the error below, one marker for each row.

    `rows`: of `memory.measurements()`, `published()`, `fully_stated_runs()` or `gpu_rows()`; those
    without a prediction are not drawn. The marker is the simulation, the dot in it the formula.
    Colour: source; shape: what was measured; open: a setting is assumed. Where there is room, the
    rows of chapter 01 have their id beside them. An error too large for the lower panel is written
    there.
    """
    rows = [row for row in rows if row["simulated"]]
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(8.4, 8.2), sharex=True, height_ratios=[3, 2.5]
    )
    points = [_point(row) for row in rows]
    sizes = [size for x, simulated, formula in points for size in (x, simulated)]
    ends = [0.85 * min(sizes), 1.2 * max(sizes)]
    errors = [100 * (simulated / x - 1) for x, simulated, _ in points]
    limits = min(-12, min(errors) - 8), max(12, min(22, max(errors) + 4))
    upper.plot(ends, ends, color=GREY, linewidth=1, zorder=1)
    upper.fill_between(
        ends, [0.9 * e for e in ends], [1.1 * e for e in ends], color="#EFEFEF", zorder=0
    )
    for width, grey in ((10, "#EFEFEF"), (1, "#CFCFCF")):
        lower.axhspan(-width, width, color=grey, linewidth=0, zorder=0)
    lower.axhline(0, color=GREY, linewidth=1, zorder=1)
    named = len([row for row in rows if row["group"] != "this course"]) < 30
    for row, (x, simulated, formula), off in zip(rows, points, errors):
        aside = named and _aside(row, x, rows, points)
        _mark(upper, row, x, simulated, formula,
              (13 + 4 * aside, -9 + 6 * aside) if named else None)
        dot = 100 * (formula / x - 1)
        if off > limits[1]:
            lower.annotate(f"{off:+.0f} %", (x, limits[1] - 1.8), (9, 0), fontsize=9,
                           textcoords="offset points", va="center")  # fmt: skip
            off = dot = limits[1] - 1.8
        _mark(lower, row, x, off, dot, (8 * aside, -15) if named else None)
    for axes in (upper, lower):
        axes.set_xscale("log", base=2)
        axes.set_xlim(ends)
        axes.grid(axis="x")
    upper.set_yscale("log", base=2)
    upper.set_ylim(ends)
    ticks = [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if ends[0] <= size <= ends[1]]
    upper.set_xticks(ticks, [str(size) for size in ticks])
    upper.set_yticks(ticks, [str(size) for size in ticks])
    lower.set_ylim(limits)
    upper.set_ylabel("predicted, in GiB allocated")
    lower.set_ylabel("predicted / measured − 1, in %")
    lower.set_xlabel("measured, in GiB")
    upper.set_title("Predicted against measured memory")
    figure.legend(handles=_published_legend(rows), loc="outside lower center", ncols=3)
    return figure


def _point(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Measured, simulated and by formula, in GiB."""
    return tuple(row[key] / memory.GiB for key in ("bytes", "simulated", "formula"))


def _aside(row: Mapping[str, Any], x: float, rows: Sequence[Mapping[str, Any]],
           points: Sequence[tuple[float, float, float]]) -> int:  # fmt: skip
    """1 or -1 if another row with a name is so close on the left or right that their names would
    meet, otherwise 0."""
    error = row["simulated"] / row["bytes"]
    for other, (at, *_) in zip(rows, points):
        named = row.get("chapter") and other.get("chapter")
        level = abs(other["simulated"] / other["bytes"] - error) < 0.03
        if named and level and at != x and 0.87 < at / x < 1.15:
            return 1 if x > at else -1
    return 0


def _series(row: Mapping[str, Any]) -> str:
    """Who published it; LitGPT's 4-bit runs apart, as one cause makes them differ."""
    return "LitGPT, 4-bit" if (row["group"], row["method"]) == ("LitGPT", "qlora") else row["group"]


def _mark(axes, row, x: float, y: float, dot: float, name_at) -> None:
    colour = SOURCES[_series(row)]
    size = 5 if row["group"] == "this course" else 8
    axes.plot(
        x, y, MEMORY_MARKERS[row["memory"]], markersize=size, markeredgewidth=1.4, zorder=2,
        markeredgecolor=colour, color="white" if "assumed" in row else colour,
    )  # fmt: skip
    axes.plot(x, dot, ".", color=BLACK, markersize=3.5, zorder=3)
    if name_at and row.get("chapter"):
        axes.annotate(
            row["id"], (x, y), name_at, textcoords="offset points", ha="center", fontsize=9
        )


def _published_legend(rows) -> list[Patch | Line2D]:
    def mark(marker: str, label: str, colour: str = GREY, **given: Any) -> Line2D:
        return Line2D([], [], linestyle="none", marker=marker, label=label, color=colour, **given)

    shown = [_series(row) for row in rows]
    handles: list[Patch | Line2D] = [
        mark("o", f"{name} ({shown.count(name)})", colour, markersize=8)
        for name, colour in SOURCES.items() if name in shown
    ]
    said = {"allocated": "allocated", "reserved": "reserved (1.02 to 1.25 × that)",
            "not stated": "memory not stated"}  # fmt: skip
    handles += [mark(marker, said[kind], markersize=8) for kind, marker in MEMORY_MARKERS.items()
                if any(row["memory"] == kind for row in rows)]
    handles += [
        mark("o", "open: a setting assumed", markersize=8, markerfacecolor="white",
             markeredgewidth=1.4),
        mark(".", "dot: formula; marker: simulation", BLACK, markersize=5),
        Patch(color="#CFCFCF", label="± 1 %"),
        Patch(color="#EFEFEF", label="± 10 %"),
    ]  # fmt: skip
    return handles
