"""Figures of predicted memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from loralab import memory
from loralab.plots.style import BLACK, COLOURS, METHOD_NAMES, VERMILION


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
