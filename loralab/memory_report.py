"""Predictions of memory as a terminal shows them: tables in GiB, bars, a card's verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from loralab.memory import COLOURS, GB, LABELS, Estimate, GiB, nearest
from loralab.memory.changes import COSTS
from loralab.memory.fit import FITS, NOT, PERHAPS, Fit, Proposal
from loralab.terminal import console

BAR = 30  # columns
VERDICTS = {FITS: "green", PERHAPS: "yellow", NOT: "red"}


def show_one(found: Estimate) -> None:
    """A table by component, whose bars follow one another as parts of the whole."""
    console.print(
        f"[bold]{escape(str(found.settings['model']))}, {found.settings['method']}[/]: "
        f"{found.trainable:,} of {found.parameters:,} parameters are trained\n"
    )
    table = _table("alive at the peak", "GiB", "share")
    table.add_column("", no_wrap=True)
    done = 0
    for name, size in found.components.items():
        if size:
            start, done = done, done + size
            table.add_row(LABELS[name], _gib(size), f"{size / found.total:.1%}",
                          _bar(name, start / found.total, done / found.total))
    table.add_section()
    table.add_row("[bold]peak, allocated[/]", f"[bold]{_gib(found.total)}[/]", "",
                  f"= {found.total / GB:,.2f} GB")
    console.print(table)
    console.print(f"\nThe peak is {escape(found.peak_at)} ({found.by}).")
    console.print(f"The allocator reserves {_range(found.reserved_range)} GiB; with the CUDA "
                  f"context, nvidia-smi shows {_range(found.device_range)} GiB.")
    if found.reserved is not None:
        console.print(f"With batches of one length it reserves {_gib(found.reserved)} GiB.")
    if (run := nearest(found)) is not None:
        console.print(escape(f"Nearest run that was {run}."))
    console.print(escape("Settings: " + ", ".join(_pair(*item)
                                                  for item in found.settings.items())))


def show_fit(found: Estimate, fit: Fit) -> None:
    """The verdict on a card, and what would make it fit."""
    console.print(f"\nA card of {_size(fit)}: [bold {VERDICTS[fit.verdict]}]{fit.verdict}[/] "
                  f"({_range(found.device_range)} GiB).")
    if fit.proposals:
        would = "would fit" if fit.then == FITS else "would fit perhaps; nothing here is certain to"
        console.print(f"The cheapest changes with which it {would}:\n")
        table = _table("change", "peak GiB", "nvidia-smi")
        table.add_column("costs", no_wrap=True)
        for proposal in fit.proposals:
            table.add_row(_change(proposal), *_sizes(proposal.predicted),
                          ", ".join(proposal.costs))
        console.print(table)
        used = {cost for proposal in fit.proposals for cost in proposal.costs}
        console.print()
        for cost in COSTS:
            if cost in used:
                console.print(f"{cost}: {COSTS[cost]}")
    elif fit.least:
        console.print(
            f"Nothing here makes it fit. With every change that saves something it still needs "
            f"{_range(fit.least.predicted.device_range)} GiB:\n  {_change(fit.least)}")
    elif fit.verdict != FITS:
        console.print("Nothing here makes it smaller.")


def show_comparison(names: Sequence[str], found: Sequence[Estimate],
                    fits: Sequence[Fit | None]) -> None:
    """Components as rows, one column for each prediction."""
    same = _shared(found)
    console.print(f"[bold]{escape(str(same.get('model', '')))}[/]: GiB alive at the peak\n")
    table = _table("", *names)
    for name, label in LABELS.items():
        sizes = [one.components[name] for one in found]
        if any(sizes):
            table.add_row(label, *(_gib(size) if size else "" for size in sizes))
    table.add_section()
    table.add_row("[bold]peak, allocated[/]", *(f"[bold]{_gib(one.total)}[/]" for one in found))
    table.add_row("reserved", *(_range(one.reserved_range) for one in found))
    table.add_row("nvidia-smi", *(_range(one.device_range) for one in found))
    table.add_row("trained parameters", *(f"{one.trainable:,}" for one in found))
    if fits[0]:
        table.add_row(f"a card of {_size(fits[0])}", *(_verdict(fit) for fit in fits))
    console.print(table)
    _show_shared(same, found)


def show_sweep(setting: str, labels: Sequence[str], found: Sequence[Estimate],
               fits: Sequence[Fit | None]) -> None:
    """One row for each value, and how it differs from the first."""
    same = _shared(found)
    who = [str(same[name]) for name in ("model", "method") if name in same]
    console.print(f"[bold]{escape(', '.join(who))}[/]: peak memory by {setting}\n")
    cards = [f"{_size(fits[0])} card"] if fits[0] else []
    lines = [label.replace(",", ",\n") for label in labels]
    widest = max(len(line) for text in (setting, *lines) for line in text.splitlines())
    table = _table(setting, "peak GiB", "change", "nvidia-smi", "trained", *cards,
                   min_width=min(widest, 30))
    first = found[0].total
    for label, one, fit in zip(lines, found, fits):
        change = "" if one is found[0] else f"{(one.total - first) / GiB:+,.2f}"
        table.add_row(escape(label), _gib(one.total), change, _range(one.device_range),
                      f"{one.trainable:,}", *([_verdict(fit)] if fit else []))
    console.print(table)
    _show_shared(same, found)


# --- parts ---------------------------------------------------------------------------------------


def _table(first: str, *others: str, min_width: int | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True,
                  header_style="bold")
    table.add_column(first, overflow="fold", min_width=min_width)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _gib(size: int) -> str:
    return f"{size / GiB:,.2f}"


def _range(ends: tuple[int, int]) -> str:
    return f"{ends[0] / GiB:,.1f} to {ends[1] / GiB:,.1f}"


def _sizes(found: Estimate) -> tuple[str, str]:
    return _gib(found.total), _range(found.device_range)


def _bar(name: str, start: float, end: float) -> Text:
    """A part of the whole bar, at its place; at least one column wide."""
    first, last = round(start * BAR), round(end * BAR)
    first = min(first, BAR - 1)
    # Black is for paper: on a dark terminal it would be nothing.
    style = COLOURS[name] if COLOURS[name] != "#000000" else "default"
    return Text(" " * first).append("█" * max(1, last - first), style)


def _size(fit: Fit) -> str:
    return f"{fit.card / GiB:,.4g} GiB"


def _verdict(fit: Fit) -> str:
    return f"[{VERDICTS[fit.verdict]}]{fit.verdict}[/]"


def _change(proposal: Proposal) -> str:
    """As it is given to the command."""
    said = " ".join(option(*item) for item in proposal.change.items())
    if proposal.accumulation > 1:
        said += f" (and {proposal.accumulation} batches accumulated)"
    return escape(said)


def option(name: str, value: Any) -> str:
    """A setting as an option of the command."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value:g}" if isinstance(value, float) else f"--{flag} {value}"


def _pair(name: str, value: Any) -> str:
    return f"{name}={value}"


def _shared(found: Iterable[Estimate]) -> Mapping[str, Any]:
    """The settings that are alike in all predictions that have them."""
    every = [one.settings for one in found]
    merged = {name: value for settings in reversed(every) for name, value in settings.items()}
    return {name: value for name, value in merged.items()
            if all(settings.get(name, value) == value for settings in every)}


def _show_shared(same: Mapping[str, Any], found: Sequence[Estimate]) -> None:
    console.print(f"\nPeak: allocated memory ({found[0].by}). nvidia-smi: reserved memory and the "
                  "CUDA context, in GiB.")
    console.print(escape("Settings: " + ", ".join(_pair(*item) for item in same.items())))
