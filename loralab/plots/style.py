"""The course's one figure style and its colours.

Colours are Okabe and Ito's, which people with any common colour blindness can tell apart.
"""

from __future__ import annotations

import matplotlib.pyplot as plt

from loralab import memory

ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, BLACK, GREY = "#0072B2", "#D55E00", "#CC79A7", "#000000", "#8A8A8A"

# Component of memory, and method, by name.
COLOURS = {
    **memory.COLOURS,
    "full": BLUE,
    "lora": ORANGE,
    "qlora": GREEN,
}
METHOD_NAMES = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}


def use_style() -> None:
    """Set matplotlib's defaults to the course's style, for every figure made afterwards."""
    plt.rcParams.update(
        {
            "figure.figsize": (8, 4.5),
            "figure.dpi": 100,
            "savefig.dpi": 150,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "grid.color": "#DDDDDD",
            "grid.linewidth": 0.8,
            "lines.linewidth": 2,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "axes.prop_cycle": plt.cycler(
                color=[BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK]
            ),
        }
    )
