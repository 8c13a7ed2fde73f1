"""The course's one figure style, its colours, and the figures that chapters share.

Figure functions return the Figure and leave showing it to the notebook. Colours are Okabe and
Ito's, which people with any common colour blindness can tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from loralab import memory

ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, BLACK, GREY = "#0072B2", "#D55E00", "#CC79A7", "#000000", "#8A8A8A"

# Component of memory, and method, by name.
COLOURS = {
    "weights": BLUE,
    "weights_4bit": SKY,
    "constants": BLACK,
    "master": GREY,
    "adapters": YELLOW,
    "gradients": VERMILION,
    "optimizer": ORANGE,
    "activations": GREEN,
    "temporary": PURPLE,
    "full": BLUE,
    "lora": ORANGE,
    "qlora": GREEN,
}
METHOD_NAMES = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
# What a published number measured, by the marker that stands for it.
MEMORY_MARKERS = {"allocated": "o", "reserved": "s", "not stated": "D"}


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


def memory_bars(
    estimates: Mapping[str, memory.Estimate],
    published: Sequence[Mapping[str, Any]] = (),
    *,
    title: str = "",
    lesson: Mapping[str, float] | None = None,
) -> Figure:
    """Stacked bars of memory by component, in GB, one bar for each of `estimates` (name -> it).

    The dashed box above a bar is what the card needs (`memory.on_card`). `published`: rows of
    `memory.published()`, drawn as numbered markers to the right of the bar of their method.
    `lesson`: method -> bytes, drawn as a line across that bar.
    """
    wide = 1.0 if published else 0.0
    figure, axes = plt.subplots(figsize=(8.5 + wide, 5.2))
    tops = [memory.on_card(e.total) / memory.GB for e in estimates.values()]
    scale = max(tops + [row["bytes"] / memory.GB for row in published])
    axes.set_ylim(0, 1.13 * scale)
    left, bar = (-0.16, 0.5) if published else (0, 0.55)
    for x, (name, estimate) in enumerate(estimates.items()):
        base = 0.0
        for component, size in estimate.components.items():
            axes.bar(
                x + left, size / memory.GB, bar, bottom=base / memory.GB,
                color=COLOURS[component], edgecolor="white", linewidth=0.6,
            )  # fmt: skip
            base += size
        card = memory.on_card(base) / memory.GB
        axes.bar(
            x + left, card - base / memory.GB, bar, bottom=base / memory.GB,
            fill=False, edgecolor=BLACK, linestyle=(0, (3, 2)), linewidth=1,
        )  # fmt: skip
        axes.text(
            x + left, card + 0.012 * scale, f"{base / memory.GB:.1f} GB\n(card {card:.1f})",
            ha="center", va="bottom", fontsize=9,
        )  # fmt: skip
        method = estimate.settings["method"]
        if lesson and method in lesson:
            y = lesson[method] / memory.GB
            axes.plot([x + left - bar / 2 - 0.05, x + left + bar / 2 + 0.05], [y, y], color=BLACK)
            axes.text(
                x + left - bar / 2 - 0.06, y, f"lesson\n{y:.0f}", ha="right", va="center", fontsize=8
            )
        rows = sorted((r for r in published if r["method"] == method), key=lambda r: r["bytes"])
        last = -scale
        for row in rows:
            y = row["bytes"] / memory.GB
            lost = row.get("out_of_memory")
            axes.plot(
                x + left + bar / 2 + 0.08, y, "^" if lost else MEMORY_MARKERS[row["memory"]],
                color="white", markeredgecolor=BLACK, markersize=8, clip_on=False,
            )  # fmt: skip
            last = max(y, last + 0.034 * scale)  # keep the names of close markers apart
            axes.text(
                x + left + bar / 2 + 0.14, last, f"{row['id']}  {'> ' if lost else ''}{y:.1f}",
                va="center", fontsize=8.5,
            )  # fmt: skip
    axes.set_xticks(
        [x + left for x in range(len(estimates))], list(estimates), fontsize=10.5
    )
    axes.set_xlim(-0.65, len(estimates) - 0.45)
    axes.set_ylabel("peak memory in GB (10⁹ bytes)")
    axes.set_title(title)
    used = [
        c for c in memory.LABELS if any(e.components[c] > 0 for e in estimates.values())
    ]
    handles = [Patch(color=COLOURS[c], label=memory.LABELS[c]) for c in used]
    handles.append(
        Patch(fill=False, edgecolor=BLACK, linestyle="--", label="allocator and CUDA context")
    )
    kinds = {"out of memory" if r.get("out_of_memory") else r["memory"] for r in published}
    for kind in ("allocated", "reserved", "not stated", "out of memory"):
        if kind in kinds:
            said = kind if kind == "out of memory" else f"published: {kind}"
            handles.append(
                Line2D([], [], marker=MEMORY_MARKERS.get(kind, "^"), color="none", label=said,
                       markerfacecolor="white", markeredgecolor=BLACK, markersize=8)
            )  # fmt: skip
    axes.legend(handles=handles, loc="upper right")
    return figure


def memory_by_tokens(model: str, tokens: Sequence[int], **settings: Any) -> Figure:
    """Memory of the three methods against tokens in a batch, with and without checkpointing."""
    figure, axes = plt.subplots()
    for method in memory.METHODS:
        for checkpointing, line in ((False, "-"), (True, "--")):
            sizes = [
                memory.estimate(model, method, seq=n, checkpointing=checkpointing, **settings).total
                for n in tokens
            ]
            axes.plot(
                tokens, [size / memory.GB for size in sizes], line, color=COLOURS[method],
                label=METHOD_NAMES[method] + (", checkpointing" if checkpointing else ""),
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, [f"{n:,}" for n in tokens])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens in a batch (batch size × length)")
    axes.set_ylabel("memory in GB (10⁹ bytes)")
    axes.set_title(f"What grows with the batch: {model}")
    axes.legend(loc="upper left", ncols=1)
    return figure


def fit_grid(
    choose: Callable[[int, str, int, int], tuple[str, bool] | None],
    models: Sequence[str],
    gpus: Sequence[int],
    *,
    batch: int,
    seq: int,
) -> Figure:
    """Which option fits: one row for each model, one column for each card size in GiB."""
    figure, axes = plt.subplots(figsize=(8, 0.62 * len(models) + 1.3))
    for y, model in enumerate(models):
        for x, gpu in enumerate(gpus):
            found = choose(gpu, model, batch, seq)
            method, checkpointing = found if found else (None, False)
            said = METHOD_NAMES[method].replace(" fine-tuning", "") if found else "–"
            axes.add_patch(
                plt.Rectangle(
                    (x - 0.48, y - 0.46), 0.96, 0.92, alpha=0.35,
                    color=COLOURS[method] if found else "#E0E0E0", linewidth=0,
                )
            )  # fmt: skip
            axes.text(
                x, y, said + ("\n+ checkpointing" if checkpointing else ""),
                ha="center", va="center", fontsize=9,
            )  # fmt: skip
    axes.set_xticks(range(len(gpus)), [f"{gpu} GiB" for gpu in gpus])
    axes.set_yticks(range(len(models)), models)
    axes.set_xlim(-0.5, len(gpus) - 0.5)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("size of the card")
    axes.set_title(f"The first option that fits: batch {batch} × {seq:,} tokens")
    return figure
