"""Figures of merges: accuracy and logit error side by side, and updates against steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from loralab.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION
from loralab.plots.training import wilson_interval

WAY_COLOURS = (GREEN, BLUE, ORANGE, VERMILION)
FLOOR = 1e-7  # of the log axis: what is exactly zero is drawn at its edge


def merges(hits: Mapping[str, Sequence[bool]], errors: Mapping[str, float]) -> Figure:
    """Exact match with 95 % intervals, and the logit error as a share of the adapter's effect.

    hits: way → one bool a sentence. errors: way → ‖z − z_unmerged‖/‖z_unmerged − z_base‖; 0 for
    the reference.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.1), sharey=True)
    names = list(hits)
    for row, (name, colour) in enumerate(zip(names, WAY_COLOURS)):
        share, count = sum(hits[name]) / len(hits[name]), len(hits[name])
        low, high = wilson_interval(share, count)
        left.barh(row, share, color=colour, height=0.6)
        left.plot([low, high], [row, row], color=BLACK, linewidth=1.2)
        left.text(min(max(high, share) + 0.02, 1.0), row, f"{share:.2f}", va="center", fontsize=10)
        error = errors[name]
        right.plot([max(error, FLOOR)], [row], "o" if error else "|", color=colour, markersize=10)
        said = f"{error:.2g}" if error else "0, by definition"
        left_side = error > 0.01
        right.annotate(said, (max(error, FLOOR), row), (-10 if left_side else 10, 0), va="center",
                       textcoords="offset points", ha="right" if left_side else "left",
                       fontsize=10)  # fmt: skip
    right.axvline(1, color=GREY, linestyle="--", linewidth=1.2)
    right.text(1, -0.47, "the adapter's\nown effect ", ha="right", va="top", fontsize=8, color=GREY)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set(xlim=(0, 1.1), xlabel=f"exact match on {count} held-out sentences",
             title="What the model can do")  # fmt: skip
    right.set_xscale("log")
    right.set(xlim=(FLOOR, 4), xlabel="logit error, as a share of the adapter's effect (log scale)",
              title="How far its logits are off")  # fmt: skip
    for axes in (left, right):
        axes.grid(axis="x")
        axes.grid(False, axis="y")
        axes.minorticks_off()
    return figure


def updates_against_steps(update: torch.Tensor, half_step: torch.Tensor, *, name: str) -> Figure:
    """Histograms of |ΔW| and of half the way to the next level, on a log axis.

    update, half_step: (n,), one number for each weight of the layer `name`.
    """
    figure, axes = plt.subplots(figsize=(8, 3.4))
    both = torch.cat([update.abs(), half_step])
    ends = both.quantile(torch.tensor([0.003, 0.9995])).log10()
    edges = torch.logspace(*ends.tolist(), 90)
    for values, colour, label in ((update.abs(), ORANGE, "|ΔW|: what the adapter adds"),
                                  (half_step, BLUE, "half the way to the next level")):
        counts = torch.histogram(values, edges).hist
        axes.stairs((100 * counts / len(values)).numpy(), edges.numpy(), fill=True, color=colour,
                    alpha=0.6, label=label)  # fmt: skip
        axes.axvline(values.median(), color=colour, linewidth=1.5, linestyle="--")
    axes.set_xscale("log")
    axes.set(xlabel="size (log scale); dashed: medians", ylabel="weights (%)",
             title=f"{name}: the update against the step")  # fmt: skip
    axes.legend(loc="upper left")
    return figure
