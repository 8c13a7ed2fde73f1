"""Figures of 4-bit formats: which codes are used, what blocks cost, levels over weights."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loralab.plots.style import BLACK, BLUE, GREY, ORANGE, SKY, VERMILION

PLAIN = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # behind text that lines cross
SCHEME_COLOURS = {"NF4": BLUE, "FP4": ORANGE, "absmax": VERMILION}


def code_usage(shares: Mapping[str, torch.Tensor], levels: Mapping[str, torch.Tensor]) -> Figure:
    """The share of weights (per cent) that each level gets, one panel for each format.

    shares, levels: name -> (levels,) tensor, shares as fractions that add up to 1.
    """
    figure, panels = plt.subplots(1, len(shares), figsize=(8, 3.2), sharey=True, squeeze=False)
    for axes, (name, share) in zip(panels[0], shares.items(), strict=True):
        axes.bar(levels[name].tolist(), (100 * share).tolist(), width=0.045,
                 color=SCHEME_COLOURS[name])  # fmt: skip
        even = 100 / len(share)
        axes.axhline(even, color=BLACK, linewidth=1, linestyle="--")
        axes.text(1.07, even, f"1/{len(share)}", va="bottom", ha="right", fontsize=9)
        axes.set(title=f"{name}: {len(share)} levels", xlabel="level, in units of the block's absmax",
                 xlim=(-1.08, 1.08))  # fmt: skip
    panels[0][0].set_ylabel("weights with this code (%)")
    return figure


def error_by_block(errors: Mapping[str, Mapping[int, float]]) -> Figure:
    """Relative error (per cent) against the block size, log axes; name -> {block: fraction}."""
    figure, axes = plt.subplots(figsize=(8, 3.8))
    for (name, found), marker in zip(errors.items(), "os^Dv"):
        (line,) = axes.plot(
            list(found), [100 * error for error in found.values()], f"{marker}-", label=name
        )
        last, error = list(found.items())[-1]
        axes.annotate(name, (last, 100 * error), (8, 0), textcoords="offset points", va="center",
                      fontsize=10, color=line.get_color())  # fmt: skip
    blocks = sorted({block for found in errors.values() for block in found})
    axes.set_xscale("log", base=2)
    axes.set_xticks(blocks, [str(block) for block in blocks])
    axes.set_yscale("log")
    axes.set_yticks([10, 20, 50], ["10", "20", "50"])
    axes.minorticks_off()
    axes.set(xlabel="weights in a block (log2 scale)",
             ylabel="relative error ‖W − Ŵ‖/‖W‖ (%, log scale)",
             title="NF4: larger blocks, larger errors")  # fmt: skip
    return figure


def levels_over_weights(
    scaled: torch.Tensor,
    levels: Mapping[str, torch.Tensor],
    errors: Mapping[str, float],
    *,
    name: str,
) -> Figure:
    """Where each format has its levels, under the weights that they stand for.

    scaled: weights (n,) divided by their block's absmax. levels: format -> (levels,) tensor;
    errors: format -> relative error of these weights, a fraction. name: of the layer.
    """
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(8.4, 5.2), sharex=True, height_ratios=[2.3, 1]
    )
    _, edges, _ = upper.hist(scaled.numpy(), bins=161, density=True, color=SKY)
    at_ends = 100 * (scaled.abs() > 1 - (edges[1] - edges[0]) / 2).double().mean().item()
    upper.annotate(f"absmax itself: {at_ends:.1f} % at ±1", (1, 0.55), (0.98, 1.0), ha="right",
                   fontsize=9, arrowprops={"arrowstyle": "-", "color": GREY}, bbox=PLAIN)
    first = next(iter(levels))
    for level in levels[first].tolist():
        for axes in (upper, lower):
            axes.axvline(level, color=SCHEME_COLOURS[first], linewidth=0.7, alpha=0.55, zorder=0.5)
    upper.text(-0.98, 0.97, f"thin lines: {first}'s levels", fontsize=9, va="top",
               transform=upper.get_xaxis_transform(), color=SCHEME_COLOURS[first], bbox=PLAIN)
    upper.set(ylabel="density of weights", title=f"{name}: weights, and the levels for them")
    for row, (scheme, places) in enumerate(reversed(levels.items())):
        places = places.unique()
        lower.plot(places, [row] * len(places), "|", markersize=20, markeredgewidth=2.4,
                   color=SCHEME_COLOURS[scheme])  # fmt: skip
        _mark_merged(lower, places, row)
        lower.text(1.1, row, f"{100 * errors[scheme]:.1f} %", va="center", fontsize=10,
                   color=SCHEME_COLOURS[scheme], fontweight="bold")  # fmt: skip
    lower.text(1.1, len(levels) - 0.3, "error", va="center", fontsize=9)
    lower.set_yticks(range(len(levels)), [f"{scheme}, {len(places.unique())} levels"
                                          for scheme, places in reversed(levels.items())])
    lower.set(xlabel="weight, divided by the absmax of its block",
              ylim=(-0.6, len(levels) - 0.1), xlim=(-1.06, 1.06))  # fmt: skip
    for axes in (upper, lower):
        axes.grid(False)
    return figure


def _mark_merged(axes: Axes, places: torch.Tensor, row: int) -> None:
    """Say how many levels there are where several look like one."""
    merged = [one.item() for one in places if (places - one).abs().lt(0.02).sum() > 1]
    if merged:
        axes.annotate(f"{len(merged)} levels", (max(merged), row), (3, 0), va="center",
                      textcoords="offset points", fontsize=9,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3})  # fmt: skip
