"""Figures of rank: what it costs in parameters, and what it brings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from loralab.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION

RANKS = (1, 2, 4, 8, 16, 32, 64)
PRINTED = (8, 4_194_304)  # what is often printed as Llama-3.2-1B's


def counts_by_rank(curves: Mapping[tuple[str, str], Sequence[int]]) -> Figure:
    """Trainable parameters against rank on logarithmic axes.

    `curves`: (model, choice of layers) -> counts at `RANKS`. Colour: model; line: choice.
    """
    figure, axes = plt.subplots(figsize=(8, 5))
    models = list(dict.fromkeys(model for model, _ in curves))
    choices = list(dict.fromkeys(choice for _, choice in curves))
    colours = dict(zip(models, (VERMILION, ORANGE, BLUE, GREEN)))
    lines = dict(zip(choices, ("--", "-")))
    for (model, choice), counts in curves.items():
        axes.plot(RANKS, counts, lines[choice], color=colours[model], marker="o", markersize=4)
    axes.plot(*PRINTED, "s", color=BLACK, markersize=9, fillstyle="none", markeredgewidth=1.5)
    axes.annotate(f"{PRINTED[1]:,}", PRINTED, (12, -14), textcoords="offset points")
    _rank_axis(axes)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(_count))
    axes.set_ylabel("trainable parameters")
    axes.set_title("Trainable parameters: r · Σ(in + out)")
    handles = [Line2D([], [], color=colours[model], label=model) for model in models]
    handles += [Line2D([], [], color=GREY, linestyle=lines[choice], label=choice)
                for choice in choices]
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def update_by_rank(norms: Mapping[bool, Sequence[float]]) -> Figure:
    """Size of the update against rank: use_rslora -> Frobenius norms at `RANKS`."""
    figure, axes = plt.subplots(figsize=(7, 3.5))
    for use_rslora, values in norms.items():
        label = "rsLoRA: (α / √r)·B·A" if use_rslora else "LoRA: (α / r)·B·A"
        axes.plot(RANKS, values, "o-", label=label)
    _rank_axis(axes)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.set_ylabel("Frobenius norm of the update")
    axes.set_title("The same α at every rank: α = 16")
    axes.legend()
    return figure


def accuracy_by_setting(chosen: Mapping[str, Sequence[Any]]) -> Figure:
    """Held-out accuracy of each setting: every run, their mean, and its 95 % interval.

    `chosen`: of `rank_sweep.chosen()`. Colour: which layers carry adapters.
    """
    from loralab.rank_sweep import mean_interval

    figure, axes = plt.subplots(figsize=(8, 0.6 * len(chosen) + 1.6))
    for row, (name, runs) in enumerate(reversed(chosen.items())):
        colour = BLUE if runs[0].config.targets == "all-linear" else VERMILION
        found = [run.accuracy for run in runs]
        low, high = mean_interval(found)
        axes.plot([max(0, low), min(1, high)], [row, row], color=colour, linewidth=1.4)
        axes.plot(found, [row] * len(found), "o", markersize=7, markerfacecolor="white",
                  markeredgecolor=colour, markeredgewidth=1.4)
        axes.plot(statistics.mean(found), row, "|", color=BLACK, markersize=16, markeredgewidth=2)
        axes.text(1.04, row, f"{runs[0].trainable / 1e6:.2f} M", va="center")
    axes.text(1.04, len(chosen) - 0.45, "parameters", fontsize=9)
    axes.set_yticks(range(len(chosen)), list(reversed(chosen)))
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(chosen) - 0.4),
             xlabel="exact match on held-out sentences")
    axes.set_title("Five seeds each, at their own learning rates")
    axes.grid(axis="x")
    axes.grid(False, axis="y")
    figure.legend(handles=[
        Line2D([], [], color=GREY, marker="o", linestyle="none", markersize=7,
               markerfacecolor="white", markeredgewidth=1.4, label="one run"),
        Line2D([], [], color=BLACK, marker="|", linestyle="none", markersize=12,
               markeredgewidth=2, label="mean"),
        Line2D([], [], color=GREY, linewidth=1.4, label="95 % interval of the mean"),
    ], loc="outside lower center", ncols=3)  # fmt: skip
    return figure


def _rank_axis(axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(RANKS, [str(r) for r in RANKS])
    axes.set_xlabel("rank r")


def _count(number: float, _: Any = None) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g} {unit}"
    return f"{number:g}"
