"""Figures of what a low rank can and cannot learn."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loralab.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION

SHAPES = (("o", BLUE), ("s", ORANGE), ("^", GREEN), ("D", VERMILION))


def error_by_rank(
    predicted: Mapping[int, float],
    measured: Mapping[int, float],
    D: torch.Tensor,
    updates: Mapping[int, torch.Tensor],
) -> Figure:
    """Error after training against rank, and the singular values of what was learnt.

    `predicted`, `measured`: rank → ‖ΔW − D‖ in the Frobenius norm. D: the update that was wanted,
    (out, in). `updates`: rank → the trained ΔW, (out, in), at most four of them.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4), width_ratios=[1.1, 1])
    wanted = torch.linalg.svdvals(D.double())
    rank = int((wanted > 1e-4 * wanted[0]).sum())
    _errors(left, predicted, measured, rank)
    _spectra(right, wanted, rank, updates)
    return figure


def _errors(
    axes: Axes, predicted: Mapping[int, float], measured: Mapping[int, float], rank: int
) -> None:
    """Dots for the first ranks only: on a log axis the others run together."""
    dotted = [index for index, r in enumerate(sorted(predicted)) if r <= rank + 2]
    top = 0.4 * max(predicted.values())  # below the legend
    axes.vlines(rank, 0, top, color=GREY, linewidth=1.2, linestyle="--")
    axes.text(1.05 * rank, top, f"rank of D: {rank}", va="top")
    axes.plot(*zip(*sorted(predicted.items())), ".-", color=BLACK, linewidth=1.5, markersize=6,
              markevery=dotted, label="predicted: root of the squared\nsingular values left over")
    axes.plot(*zip(*sorted(measured.items())), "o", color=BLUE, markersize=8,
              label="measured after training")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(measured), [str(rank) for rank in sorted(measured)])
    axes.set(xlabel="rank r (log2 scale)", ylabel="error ‖ΔW − D‖ (Frobenius norm)",
             title="Error after training", ylim=(-0.3, None))
    axes.legend()


def _spectra(
    axes: Axes, wanted: torch.Tensor, rank: int, updates: Mapping[int, torch.Tensor]
) -> None:
    """The first values only: as many as D has, and two more."""
    shown = rank + 2
    places = range(1, shown + 1)
    axes.step([0.5, *[place + 0.5 for place in places]], [wanted[0], *wanted[:shown]],
              where="pre", color=BLACK, linewidth=1.5, label="D, which was wanted")
    width = 0.8 / len(updates)
    for index, (r, update) in enumerate(sorted(updates.items())):
        shape, colour = SHAPES[index]
        values = torch.linalg.svdvals(update.double())[:shown]
        shift = (index - (len(updates) - 1) / 2) * width
        axes.plot([place + shift for place in places], values, shape, color=colour, markersize=5.5,
                  label=f"ΔW, trained at rank {r}")
    axes.set_xticks(list(places))
    axes.set(xlabel="number, largest first", ylabel="singular value",
             title="What was learnt", ylim=(-0.3, None))
    axes.legend()
