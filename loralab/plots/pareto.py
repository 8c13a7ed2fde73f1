"""What accuracy costs: runs as points, and those that no other run beats at both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from loralab.plots.style import BLACK, BLUE, GREY, VERMILION


class Point(NamedTuple):
    """A run: its cost, its accuracy (0…1), and what stands beside it in the figure, if anything.

    `mine`: drawn as the one that the figure is about.
    """

    cost: float
    accuracy: float
    label: str = ""
    mine: bool = False


COSTS = {
    "trainable": "trained parameters (log scale)",
    "peak_gib": "predicted peak of a step (GiB)",
}

NEAR = 0.035  # of the axes: points so close share their label's line
CHARACTER = 0.009  # of the axes: about the width of one, in a label


def front(points: Sequence[tuple[float, float] | Point]) -> list[int]:
    """Indices of the points that no other point beats, in order of cost.

    A point beats another that is no cheaper and no more accurate, and in one of the two worse.
    Equal points beat each other not: all of them are on the front, or none.
    """
    best = []
    for index, (cost, accuracy, *_) in enumerate(points):
        beaten = any(
            other[0] <= cost and other[1] >= accuracy and tuple(other[:2]) != (cost, accuracy)
            for other in points
        )
        if not beaten:
            best.append(index)
    return sorted(best, key=lambda index: points[index][:2])


def accuracy_by_cost(
    points: Sequence[Point], cost: str, *, limit: float | None = None, title: str = ""
) -> Figure:
    """Accuracy against "trainable" (log axis) or "peak_gib", with the Pareto front as a line.

    `limit`: the budget, drawn as an edge.
    """
    figure, axes = plt.subplots(figsize=(8, 4.2))
    best = front(points)
    if len(best) > 1:
        line = [points[index] for index in best]
        axes.step([p.cost for p in line], [p.accuracy for p in line], where="post", color=BLUE,
                  linewidth=1.6, zorder=1, label="Pareto front")  # fmt: skip
    groups = {
        "beaten by another run": [p for i, p in enumerate(points) if i not in best],
        "on the front": [points[i] for i in best],
    }
    for (name, group), (face, edge) in zip(groups.items(), (("white", GREY), (BLUE, BLUE))):
        if group:
            axes.scatter([p.cost for p in group], [p.accuracy for p in group], s=46, facecolor=face,
                         edgecolor=edge, linewidth=1.5, zorder=2, label=name)  # fmt: skip
    mine = [p for p in points if p.mine]
    if mine:
        axes.scatter([p.cost for p in mine], [p.accuracy for p in mine], s=170, facecolor="none",
                     edgecolor=VERMILION, linewidth=2.2, zorder=3, label="yours")  # fmt: skip
    if limit is not None:
        axes.axvline(limit, color=BLACK, linewidth=1, linestyle="--", label="the budget's limit")
    if cost == "trainable":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(_count))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(ylim=(-0.04, 1.06), xlabel=COSTS[cost], ylabel="right on unseen examples (share)",
             title=title)  # fmt: skip
    _label(axes, points, limit)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=5)
    return figure


def _label(axes: plt.Axes, points: Sequence[Point], limit: float | None) -> None:
    """Each label beside its point, towards the middle but not across the limit's line; those of
    neighbours share a line."""
    axes.margins(x=0.18)
    axes.autoscale_view()  # else the places below are those of older limits
    to_axes = axes.transData + axes.transAxes.inverted()
    groups: list[tuple[float, float, list[str]]] = []
    named = [(*to_axes.transform((p.cost, p.accuracy)), p.label) for p in points if p.label]
    for x, y, label in sorted(named, key=lambda one: (-one[1], one[0])):
        for other_x, other_y, labels in groups:
            if abs(x - other_x) < NEAR and abs(y - other_y) < NEAR:
                labels.append(label)
                break
        else:
            groups.append((x, y, [label]))
    edge = None if limit is None else to_axes.transform((limit, 0))[0]
    for x, y, labels in groups:
        text = " · ".join(labels)
        left = x > 0.6
        if edge is not None and 0 < (x - edge if left else edge - x) < 0.03 + CHARACTER * len(text):
            left = not left
        axes.annotate(text, (x, y), (-9 if left else 9, 5), xycoords="axes fraction",
                      textcoords="offset points", ha="right" if left else "left", fontsize=9,
                      parse_math=False)  # fmt: skip


def _count(number: float, _: object = None) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g} {unit}"
    return f"{number:g}"
