"""The figure of claims: what was said against what was measured, by verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from loralab.claims import CLAIMS
from loralab.plots.style import BLACK, BLUE, GREY, ORANGE, VERMILION

COLOURS = {"holds": BLUE, "depends": ORANGE, "wrong": VERMILION}
MARKERS = {"holds": "o", "depends": "D", "wrong": "X"}
TICKS = (0.2, 0.5, 1, 2, 5)


def claimed_and_measured(
    rulings: Mapping[str, Sequence[Any]], elsewhere: Mapping[str, Sequence[Any]]
) -> Figure:
    """Each claim's measured number as a multiple of the claimed one, on one log axis.

    rulings: claim -> (verdict, number, …). elsewhere: further rulings on some of them, under other
    settings; a line joins both. Claims without a number of their own are a row of text.
    """
    claims = sorted((name for name in CLAIMS if name in rulings),
                    key=lambda name: CLAIMS[name].number is None)  # fmt: skip
    figure, (axes, words) = plt.subplots(
        1, 2, figsize=(9.9, 0.34 * len(claims) + 1.7), width_ratios=[1, 0.92], sharey=True
    )
    for row, name in enumerate(reversed(claims)):
        verdict, number, *setting = rulings[name]
        claim, colour = CLAIMS[name], COLOURS[verdict]
        shown = [number, *([elsewhere[name][1]] if name in elsewhere else [])]
        said = " to ".join(_short(one) for one in sorted(shown)) + claim.unit
        if claim.number is not None:
            ratios = [one / claim.number for one in shown]
            axes.plot(ratios, [row] * len(ratios), "-", color=colour, linewidth=2,
                      marker=MARKERS[verdict], markersize=8)  # fmt: skip
        else:
            axes.text(0.95, row, "the lesson names no number", va="center", ha="center",
                      fontsize=8, color=GREY,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
        words.text(0, row, verdict + (f": {setting[0]}" if setting else ""), va="center",
                   fontsize=9, color=colour, fontweight="bold")  # fmt: skip
        words.text(0.7, row, said, va="center", fontsize=9)
    words.set(xlim=(0, 1.55))
    words.set_axis_off()
    axes.axvline(1, color=BLACK, linewidth=1)
    axes.set_xscale("log")
    axes.set(xlim=(0.15, 6), ylim=(-0.6, len(claims) - 0.3),
             xlabel="measured / claimed (log scale); 1 is as claimed")  # fmt: skip
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in TICKS]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(claims)), [CLAIMS[name].says for name in reversed(claims)])
    axes.set_title("The lesson's claims")
    words.set_title("Verdict, and what was measured")
    axes.grid(axis="x")
    axes.grid(False, axis="y")
    handles = [Line2D([], [], color=COLOURS[one], marker=MARKERS[one], linestyle="none",
                      markersize=8, label=one) for one in COLOURS]  # fmt: skip
    handles.append(Line2D([], [], color=GREY, label="two settings"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
