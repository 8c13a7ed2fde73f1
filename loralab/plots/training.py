"""Figures of training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from loralab.plots.style import BLACK, COLOURS, METHOD_NAMES


def loss_curve(history: Sequence[tuple[int, float]], *, title: str = "Training loss") -> Figure:
    """The loss (nats per token, completion tokens only) against the optimizer step."""
    figure, axes = plt.subplots(figsize=(8, 3.5))
    steps, losses = zip(*history, strict=True)
    axes.plot(steps, losses, "o-", markersize=4)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)", title=title, ylim=(0, None))
    return figure


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of `count` trials (Wilson, 1927)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = share * (1 - share) / count + z * z / (4 * count * count)
    half = z * spread**0.5 / (1 + z * z / count)
    return centre - half, centre + half


def accuracy_by_run(runs: Mapping[str, Any]) -> Figure:
    """Horizontal bars of exact match, one for each run (name -> `training.Run`), coloured by
    method, with 95 % intervals and the number of trained parameters."""
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(runs) + 1.2))
    for row, (name, run) in enumerate(reversed(runs.items())):
        low, high = wilson_interval(run.accuracy, run.config.test_size)
        axes.barh(row, run.accuracy, color=COLOURS[run.config.method], height=0.7)
        axes.plot([low, high], [row, row], color=BLACK, linewidth=1.2)
        axes.text(1.03, row, f"{run.trainable / 1e6:.2f} M", va="center", ha="left")
    axes.text(1.03, len(runs) - 0.3, "parameters", va="bottom", ha="left", fontsize=9)
    axes.set_yticks(range(len(runs)), list(reversed(runs)))
    axes.set(xlim=(0, 1.0), xlabel="exact match on held-out sentences",
             title="Where adapters sit, and how fast they learn")
    axes.grid(axis="x")
    axes.grid(False, axis="y")
    methods = dict.fromkeys(run.config.method for run in runs.values())
    handles = [Patch(color=COLOURS[method], label=METHOD_NAMES[method]) for method in methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure
