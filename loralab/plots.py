"""The course's one figure style, its colours, and the figures that chapters share.

Figure functions return the Figure and leave showing it to the notebook. Colours are Okabe and
Ito's, which people with any common colour blindness can tell apart.
"""

from __future__ import annotations

import math
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
    **memory.COLOURS,
    "full": BLUE,
    "lora": ORANGE,
    "qlora": GREEN,
}
METHOD_NAMES = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
# What a published number measured, and who published it, by the marker that stands for it.
MEMORY_MARKERS = {"allocated": "o", "reserved": "s", "not stated": "D"}
SOURCES = {"can-i-finetune-this": BLUE, "PEFT": VERMILION, "torchtune": PURPLE, "LitGPT": GREEN,
           "LitGPT, 4-bit": SKY, "LLaMA-Factory": ORANGE}  # fmt: skip


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
    *,
    title: str = "",
    lesson: Mapping[str, float] | None = None,
) -> Figure:
    """Stacked bars of memory by component, in GB, one bar for each of `estimates` (name -> it).

    Full fine-tuning has a panel and a scale of its own, or it would flatten the others. The dashed
    box above a bar is what the card needs (`memory.on_card`). `lesson`: method -> bytes, drawn as
    a line across that bar.
    """
    full = {name: e for name, e in estimates.items() if e.settings["method"] == "full"}
    panels = [p for p in (full, {n: e for n, e in estimates.items() if n not in full}) if p]
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(10, 5), squeeze=False, width_ratios=[len(p) for p in panels]
    )
    for axes, panel in zip(all_axes[0], panels):
        _bars(axes, panel, lesson or {})
    all_axes[0][0].set_ylabel("peak memory in GB (10⁹ bytes)")
    if len(panels) > 1:
        all_axes[0][1].set_ylabel("GB, on a scale of its own")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.legend(handles=_bar_legend(list(estimates.values()), lesson), loc="outside right upper")
    return figure


def _bars(axes, estimates, lesson) -> None:
    """One panel of `memory_bars`."""
    width = 0.6
    methods = [e.settings["method"] for e in estimates.values()]
    tops = [memory.on_card(e.total) for e in estimates.values()]
    tops += [lesson[method] for method in methods if method in lesson]
    scale = max(tops) / memory.GB
    axes.set_ylim(0, 1.14 * scale)
    for x, (method, estimate) in enumerate(zip(methods, estimates.values())):
        base = 0.0
        for component, size in estimate.components.items():
            axes.bar(
                x, size / memory.GB, width, bottom=base / memory.GB,
                color=COLOURS[component], edgecolor="white", linewidth=0.5,
            )  # fmt: skip
            base += size
        base, card = base / memory.GB, memory.on_card(base) / memory.GB
        axes.bar(
            x, card - base, width, bottom=base,
            fill=False, edgecolor=BLACK, linestyle=(0, (3, 2)), linewidth=1,
        )  # fmt: skip
        said = f"{base:.1f} GB\ncard: {card:.1f}"
        axes.text(x, card + 0.012 * scale, said, ha="center", va="bottom", fontsize=9)
        if method in lesson:
            y = lesson[method] / memory.GB
            axes.plot([x - width / 2 - 0.04, x + width / 2 + 0.04], [y, y], color=BLACK)
    axes.set_xticks(range(len(estimates)), list(estimates))
    axes.set_xlim(-0.5, len(estimates) - 0.5)


def _bar_legend(estimates, lesson) -> list[Patch | Line2D]:
    used = [c for c in memory.LABELS if any(e.components[c] for e in estimates)]
    handles = [Patch(color=COLOURS[c], label=memory.LABELS[c]) for c in reversed(used)]
    handles.insert(0, Patch(fill=False, linestyle="--", label="allocator and CUDA context"))
    if lesson:
        handles.append(Line2D([], [], color=BLACK, label="what many texts say"))
    return handles


def predicted_against_published(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Predicted against measured memory in GiB, and the error below, one marker for each row.

    `rows`: of `memory.measurements()`, `published()` or `fully_stated_runs()`; those without a
    prediction are not drawn. The marker is the simulation, the dot in it the formula. Colour:
    source; shape: what was measured; open: a setting is assumed. Where there is room, the rows of
    chapter 01 have their id beside them. An error too large for the lower panel is written there.
    """
    rows = [row for row in rows if row["simulated"]]
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(8.4, 8.2), sharex=True, height_ratios=[3, 2.5]
    )
    points = [_point(row) for row in rows]
    sizes = [size for x, simulated, formula in points for size in (x, simulated)]
    ends = [0.85 * min(sizes), 1.2 * max(sizes)]
    errors = [100 * (simulated / x - 1) for x, simulated, _ in points]
    limits = min(-12, min(errors) - 8), max(12, min(22, max(errors) + 4))
    upper.plot(ends, ends, color=GREY, linewidth=1, zorder=1)
    upper.fill_between(
        ends, [0.9 * e for e in ends], [1.1 * e for e in ends], color="#EFEFEF", zorder=0
    )
    for width, grey in ((10, "#EFEFEF"), (1, "#CFCFCF")):
        lower.axhspan(-width, width, color=grey, linewidth=0, zorder=0)
    lower.axhline(0, color=GREY, linewidth=1, zorder=1)
    named = len(rows) < 30
    for row, (x, simulated, formula), off in zip(rows, points, errors):
        _mark(upper, row, x, simulated, formula, (13, -9) if named else None)
        dot = 100 * (formula / x - 1)
        if off > limits[1]:
            lower.annotate(f"{off:+.0f} %", (x, limits[1] - 1.8), (9, 0), fontsize=9,
                           textcoords="offset points", va="center")  # fmt: skip
            off = dot = limits[1] - 1.8
        _mark(lower, row, x, off, dot, (0, -15) if named else None)
    for axes in (upper, lower):
        axes.set_xscale("log", base=2)
        axes.set_xlim(ends)
        axes.grid(axis="x")
    upper.set_yscale("log", base=2)
    upper.set_ylim(ends)
    ticks = [size for size in (1, 2, 4, 8, 16, 32, 64) if ends[0] <= size <= ends[1]]
    upper.set_xticks(ticks, [str(size) for size in ticks])
    upper.set_yticks(ticks, [str(size) for size in ticks])
    lower.set_ylim(limits)
    upper.set_ylabel("predicted, in GiB allocated")
    lower.set_ylabel("predicted / measured − 1, in %")
    lower.set_xlabel("published measurement, in GiB")
    upper.set_title("Predicted against published memory")
    figure.legend(handles=_published_legend(rows), loc="outside lower center", ncols=3)
    return figure


def _point(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Measured, simulated and by formula, in GiB."""
    return tuple(row[key] / memory.GiB for key in ("bytes", "simulated", "formula"))


def _series(row: Mapping[str, Any]) -> str:
    """Who published it; LitGPT's 4-bit runs apart, as one cause makes them differ."""
    return "LitGPT, 4-bit" if (row["group"], row["method"]) == ("LitGPT", "qlora") else row["group"]


def _mark(axes, row, x: float, y: float, dot: float, name_at) -> None:
    colour = SOURCES[_series(row)]
    axes.plot(
        x, y, MEMORY_MARKERS[row["memory"]], markersize=8, markeredgewidth=1.4, zorder=2,
        markeredgecolor=colour, color="white" if "assumed" in row else colour,
    )  # fmt: skip
    axes.plot(x, dot, ".", color=BLACK, markersize=3.5, zorder=3)
    if name_at and row.get("chapter"):
        axes.annotate(
            row["id"], (x, y), name_at, textcoords="offset points", ha="center", fontsize=9
        )


def _published_legend(rows) -> list[Patch | Line2D]:
    def mark(marker: str, label: str, colour: str = GREY, **given: Any) -> Line2D:
        return Line2D([], [], linestyle="none", marker=marker, label=label, color=colour, **given)

    shown = [_series(row) for row in rows]
    handles: list[Patch | Line2D] = [
        mark("o", f"{name} ({shown.count(name)})", colour, markersize=8)
        for name, colour in SOURCES.items() if name in shown
    ]
    said = {"allocated": "allocated", "reserved": "reserved (1.02 to 1.25 × that)",
            "not stated": "memory not stated"}  # fmt: skip
    handles += [mark(marker, said[kind], markersize=8) for kind, marker in MEMORY_MARKERS.items()
                if any(row["memory"] == kind for row in rows)]
    handles += [
        mark("o", "open: a setting assumed", markersize=8, markerfacecolor="white",
             markeredgewidth=1.4),
        mark(".", "dot: formula; marker: simulation", BLACK, markersize=5),
        Patch(color="#CFCFCF", label="± 1 %"),
        Patch(color="#EFEFEF", label="± 10 %"),
    ]  # fmt: skip
    return handles


def memory_by_tokens(model: str, tokens: Sequence[int], **settings: Any) -> Figure:
    """Memory of the three methods against tokens in a batch, with and without checkpointing.

    `tokens`: sizes of batches of sequences of 512 tokens; one shorter sequence below that.
    """
    figure, axes = plt.subplots()
    for method in memory.METHODS:
        for checkpointing, line in ((False, "-"), (True, "--")):
            sizes = [
                memory.estimate(
                    model, method, batch=max(1, n // 512), seq=min(n, 512),
                    checkpointing=checkpointing, **settings,
                ).total
                for n in tokens
            ]  # fmt: skip
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


def memory_sweep(
    setting: str,
    values: Sequence[Any],
    estimates: Sequence[memory.Estimate],
    *,
    card: int | None = None,
) -> Figure:
    """Stacked bars of memory by component, in GiB, one for each value of a setting.

    The axis of rank, batch and seq is logarithmic (base 2). The bracket beside a bar is the range
    in which nvidia-smi's number lies; `card`: bytes, drawn as a line.
    """
    figure, axes = plt.subplots(figsize=(9.5, 5))
    scaled = setting in ("rank", "batch", "seq")
    places = [math.log2(value) for value in values] if scaled else list(range(len(values)))
    gaps = [abs(a - b) for at, a in enumerate(places) for b in places[:at]]
    width = 0.62 * min(gaps, default=1)

    def across(place: float, share: float) -> float:
        """Where on the axis a share of the bar's width is, from its middle."""
        x = place + share * width
        return 2**x if scaled else x

    top = max(estimate.device_range[1] for estimate in estimates) / memory.GiB
    for place, estimate in zip(places, estimates):
        left, right = across(place, -0.5), across(place, 0.32)
        base = 0.0
        for component, size in estimate.components.items():
            axes.bar(
                left, size / memory.GiB, right - left, bottom=base, align="edge",
                color=COLOURS[component], edgecolor="white", linewidth=0.5,
            )  # fmt: skip
            base += size / memory.GiB
        # Right-aligned, since the bracket is on the right.
        axes.text(right, base + 0.01 * top, f"{base:.2f}", ha="right", va="bottom", fontsize=9)
        low, high = (size / memory.GiB for size in estimate.device_range)
        x, ends = across(place, 0.44), (across(place, 0.40), across(place, 0.48))
        axes.plot([x, x], [low, high], color=BLACK, linewidth=1.2, solid_capstyle="butt")
        for y in (low, high):
            axes.plot(ends, [y, y], color=BLACK, linewidth=1.2)
    axes.set_ylim(0, 1.08 * max(top, (card or 0) / memory.GiB))
    if scaled:
        axes.set_xscale("log", base=2)
    margin = 0.8 if len(places) > 1 else 3
    axes.set_xlim(across(min(places), -margin), across(max(places), margin))
    at = [across(place, 0) for place in places]
    axes.set_xticks(at, [_as_label(value) for value in values], minor=False)
    axes.minorticks_off()
    axes.set_xlabel(_AXES.get(setting, setting.replace("_", " ")))
    axes.set_ylabel("GiB (2³⁰ bytes)")
    who = [estimates[0].settings[name] for name in ("model", "method")
           if len({estimate.settings[name] for estimate in estimates}) == 1]
    axes.set_title(", ".join(who) + f": peak memory by {setting.replace('_', ' ')}")
    handles = _bar_legend(estimates, None)[1:]
    handles.append(Line2D([], [], color=BLACK, linewidth=1.2, marker="_", markersize=7,
                          label="what nvidia-smi shows: from, to"))
    if card:
        axes.axhline(card / memory.GiB, color=VERMILION, linewidth=1.5, linestyle="--")
        handles.append(Line2D([], [], color=VERMILION, linewidth=1.5, linestyle="--",
                              label=f"a card of {card / memory.GiB:,.4g} GiB"))
    figure.legend(handles=handles, loc="outside right upper")
    return figure


_AXES = {
    "rank": "rank r of the adapters", "batch": "sequences in a batch",
    "seq": "tokens in a sequence", "alpha": "lora_alpha", "targets": "adapted layers",
}  # fmt: skip


def _as_label(value: Any) -> str:
    """A value under an axis; lists of modules one below the other."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else str(value).replace(",", "\n")


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
