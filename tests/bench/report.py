"""The tables: on the terminal, and as Markdown for the documentation."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.attacks import hostile
from tests.bench import otter
from tests.bench.attacks import CELL_SECONDS, Otter, Outcome, StockNbgrader
from tests.bench.speed import Line, Spread, Turn

NAMES = {"ours": "LoRA Lab", "nbgrader": "stock nbgrader", "otter": "otter-grader"}
PACKAGES = ("nbgrader", "torch", "transformers", "peft", "bitsandbytes")


def where(command: str, load: tuple[float, ...]) -> str:
    """When, on what kind of machine, with which versions, how."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    if (found := otter.version()) is not None:
        versions.append(f"otter-grader {found}")
    gpu = "a GPU" if torch.cuda.is_available() else "no GPU"
    return (f"Measured on {datetime.date.today():%Y-%m-%d}: {os.cpu_count()} cores, {gpu}, "
            f"{memory:.0f} GiB of memory, {platform.system()}; load average before and after "
            f"{load[0]:.1f} and {load[1]:.1f}. {', '.join(versions)}. Command: `{command}`.")


# Speed --------------------------------------------------------------------------------------------


SPEED_HEAD = ["chapter", "submission", "stock nbgrader", "LoRA Lab, warm", "ratio",
              "with warm-up", "ratio", "same scores"]


def speed_rows(lines: Sequence[Line], *, spreads: bool) -> list[list[str]]:
    """Cells of SPEED_HEAD. `spreads`: least and most beside the medians."""
    def cell(one: Spread) -> str:
        return str(one) if spreads else str(one).split()[0]

    return [[one.chapter, one.kind, cell(one.stock), cell(one.warm), f"{cell(one.ratio)} ×",
             cell(one.whole), f"{cell(one.whole_ratio)} ×", "yes" if one.right else "NO"]
            for one in lines]


def speed_notes(turns: Sequence[Turn], first: dict[str, float]) -> list[str]:
    notes = [
        "Seconds per submission on the machine named below: median (least–most) of "
        f"{max(sum(t.chapter == u.chapter and t.kind == u.kind for t in turns) for u in turns)} "
        "repetitions, the engines in turns. Ratios are taken within a repetition.",
        f"LoRA Lab: `autograder grade` on {turns[0].students} submissions, nothing kept from "
        "before, written to the gradebook. *Warm*: what each further submission took once every "
        "worker had graded one. *With warm-up*: the whole command divided by its submissions.",
        "Stock nbgrader: `nbgrader autograde` with its own steps, "
        + ", ".join(f"{count} submission{'s' * (count > 1)} a run in chapter {number}"
                    for number, count in sorted({(t.chapter, t.stock_students) for t in turns}))
        + "; the released visible checks are its tests, and only its time limits are raised.",
        "*Same scores*: every copy got the same points for every cell from both engines, all of "
        "them for full credit and none for untouched work.",
    ]
    if any(one.chapter == "05" for one in turns):
        uncached = (f" Without it, stock nbgrader took {first['05']:.0f} s for one submission."
                    if "05" in first else "")
        notes.append("Chapter 05 under stock nbgrader takes its training from the cache, which is "
                     f"in its favour.{uncached} LoRA Lab evaluates the adapter that was handed in.")
    return notes


# Attacks ------------------------------------------------------------------------------------------


def attack_rows(
    outcomes: Sequence[Outcome], missing: dict[str, str]
) -> tuple[list[str], list[list[str]]]:
    engines = [name for name in NAMES
               if name in missing or any(one.engine == name for one in outcomes)]
    found = {(one.attack, one.engine): one for one in outcomes}
    rows = [[attack.name, *(_cell(found.get((attack.name, name)), name in missing)
                            for name in engines)]
            for attack in hostile.ATTACKS if any(one.attack == attack.name for one in outcomes)]
    return ["attack", *(NAMES[name] for name in engines)], rows


def _cell(outcome: Outcome | None, missing: bool) -> str:
    if outcome is None:
        return "not tried" if missing else ""
    score = "none" if outcome.score is None else f"{outcome.score:g}"
    if outcome.score is not None and outcome.score > hostile.HONEST_POINTS:
        score = f"**{score}**"
    return "; ".join([score, *outcome.damage])


def attack_summary(outcomes: Sequence[Outcome]) -> list[str]:
    lines = []
    for name, shown in NAMES.items():
        some = [one for one in outcomes if one.engine == name]
        if some:
            paid = sum((one.score or 0.0) > hostile.HONEST_POINTS for one in some)
            cost = sum(one.score is None or one.score < hostile.HONEST_POINTS for one in some)
            harmed = sum(bool(one.damage) for one in some)
            lines.append(f"{shown}: of {len(some)} attacks {paid} paid, {harmed} did damage, "
                         f"{cost} cost their author points.")
    return lines


def attack_notes(missing: dict[str, str]) -> list[str]:
    return [
        f"Each cell: the score of the attacking submission, of 20, then the damage. "
        f"{hostile.HONEST_POINTS:g} points are earned honestly in each; more is in bold. *none*: "
        "the grader gave it no score.",
        "Damage that is looked for: another student's score in the gradebook or files changed; a "
        "file left outside the submission; the grader's environment read and sent to a listener; "
        f"the run not ended within {Otter.seconds:g} s (otter-grader, which has no limits) or "
        f"{StockNbgrader.seconds:g} s (stock nbgrader, whose cells end after {CELL_SECONDS} s); the "
        "next submission not graded, or graded otherwise.",
        "Stock nbgrader and otter-grader (`otter run`, without a container) run the released "
        "visible checks inside walls made for this benchmark: bubblewrap, no network, limits. "
        "What an attack does to them would be done to the instructor's account otherwise. "
        "LoRA Lab grades all attacks in one batch, with nothing around its own sandbox.",
        *(f"{NAMES.get(name, name)} could not be tried: {why.splitlines()[0]}"
          for name, why in missing.items()),
    ]


# Forms --------------------------------------------------------------------------------------------


def markdown(
    title: str, before: Sequence[str], head: list[str], rows: list[list[str]], notes: Sequence[str]
) -> str:
    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    table = [row(head), row(["---"] * len(head)), *(row(one) for one in rows)]
    return "\n\n".join([f"# {title}", *before, "\n".join(table), *notes]) + "\n"


def show(
    console: Console, title: str, head: list[str], rows: list[list[str]], notes: Sequence[str]
) -> None:
    table = Table(*head, title=title, box=SIMPLE, title_justify="left")
    for row in rows:
        table.add_row(*(_plain(cell) for cell in row))
    console.print(table)
    for note in notes:
        console.print(escape(note), soft_wrap=True)


def _plain(cell: str) -> str:
    bold = cell.startswith("**")
    return f"[bold red]{escape(cell.replace('**', ''))}[/]" if bold else escape(cell)
