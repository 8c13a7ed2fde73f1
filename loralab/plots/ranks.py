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


def accuracy_by_parameters(chosen: Mapping[str, Sequence[Any]]) -> Figure:
    """Held-out accuracy against trainable parameters: every run, the mean, its 95 % interval.

    `chosen`: of `rank_sweep.chosen()`. All linear layers are joined by a line; q and v stand
    apart.
    """
    from loralab.rank_sweep import mean_interval

    figure, axes = plt.subplots(figsize=(8.5, 4.8))
    series: dict[bool, list[tuple[int, float]]] = {True: [], False: []}
    for name, runs in chosen.items():
        everywhere = runs[0].config.targets == "all-linear"
        colour, x = (BLUE if everywhere else VERMILION), runs[0].trainable
        found = [run.accuracy for run in runs]
        low, high = mean_interval(found)
        axes.plot([x, x], [max(0, low), min(1, high)], color=colour, linewidth=1.2)
        axes.plot([x] * len(found), found, "o", color=colour, markersize=4, alpha=0.6)
        mean = statistics.mean(found)
        axes.plot(x, mean, "s", color=colour, markersize=8)
        axes.annotate(f"r = {runs[0].config.r}", (x, mean), (9, -4), textcoords="offset points",
                      color=colour)
        series[everywhere].append((x, mean))
    for everywhere, places in series.items():
        axes.plot(*zip(*sorted(places)), color=BLUE if everywhere else VERMILION, linewidth=1,
                  alpha=0.5, linestyle="-" if everywhere else "--")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_count))
    axes.set(ylim=(-0.03, 1.03), xlabel="trainable parameters",
             ylabel="exact match on held-out sentences")
    axes.set_title("Accuracy, each setting at its own learning rate")
    axes.legend(handles=[
        Line2D([], [], color=BLUE, marker="s", label="all linear layers"),
        Line2D([], [], color=VERMILION, marker="s", linestyle="--", label="q and v"),
        Line2D([], [], color=GREY, marker="o", linestyle="none", markersize=4, label="one run"),
        Line2D([], [], color=GREY, linewidth=1.2, label="95 % interval of the mean"),
    ], loc="upper left")  # fmt: skip
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
