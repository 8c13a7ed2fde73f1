"""The class's leaderboard: what capstone adapters reach and what they cost, as one local page.

It reads kept results and nothing else: the numbers that the trusted check has measured
(`Item.measured`), for each submission as it lies there now. No submission is opened but to see
whether it is the one that was graded, no number or text of a student's is taken, and the page has
no scripts and asks no network. The only text that somebody else chose is a student's id, where
names are asked for.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from autograder.classes import batch, classroom, tasks
from autograder.grading.result import Result
from loralab.capstone import BUDGET

CHAPTER = "08"


@dataclass(frozen=True)
class Entry:
    """A student's adapter. `accuracy`: share of hidden questions, 0…1. `peak_gib` is None where
    the adapter is not the one that was planned."""

    student: str
    name: str
    trainable: int
    accuracy: float
    peak_gib: float | None = None

    @property
    def within(self) -> bool | None:
        """Whether it keeps the budget of parameters and of memory; None where nobody knows."""
        if self.trainable > BUDGET.trainable:
            return False
        return None if self.peak_gib is None else self.peak_gib <= BUDGET.peak_gib


@dataclass(frozen=True)
class Board:
    """entries: best first. without: students whose adapter could not be tried, or who handed in
    none. ungraded: students whose work has changed since it was graded, or never was."""

    entries: tuple[Entry, ...]
    without: tuple[str, ...]
    ungraded: tuple[str, ...]


def read(root: Path, *, names: bool = False) -> Board:
    """The board of a class folder. `names`: ids in place of pseudonyms.

    Raises CourseError where it is no class folder, or has no capstone.
    """
    (chapter,) = tasks.chapters(root, [CHAPTER])
    found, _ = tasks.submissions(root, [chapter])
    entries, without, ungraded = [], [], []
    for each in found:
        result = batch.stored_result(root, tasks.key_of(root, chapter, each.student))
        if result is None:
            ungraded.append(each.student)
            continue
        name = each.student if names else classroom.pseudonym(root, each.student)
        entry = _entry(each.student, name, result)
        if entry is None:
            without.append(each.student)
        else:
            entries.append(entry)
    # By name last: the order of ids would tell pseudonyms apart.
    entries.sort(key=lambda one: (-one.accuracy, one.trainable, one.peak_gib or 1e9, one.name))
    return Board(tuple(entries), tuple(without), tuple(ungraded))


def _entry(student: str, name: str, result: Result) -> Entry | None:
    measured: dict[str, float] = {}
    for item in result.items.values():
        measured |= item.measured
    if not {"trainable", "accuracy"} <= measured.keys():
        return None
    return Entry(student, name, int(measured["trainable"]), float(measured["accuracy"]),
                 measured.get("peak_gib"))  # fmt: skip


def places(entries: Sequence[Entry]) -> list[int]:
    """1, 2, 2, 4 …: who is as accurate has the same place."""
    return [1 + sum(other.accuracy > one.accuracy for other in entries) for one in entries]


def page(board: Board, course: str) -> str:
    """The board as one HTML page that holds all it needs."""
    from jinja2 import Environment, StrictUndefined

    from loralab.plots.pareto import front

    entries = board.entries
    placed = [index for index, one in enumerate(entries) if one.peak_gib is not None]
    by_count = front([(one.trainable, one.accuracy) for one in entries])
    by_peak = [placed[i] for i in front(
        [(entries[index].peak_gib, entries[index].accuracy) for index in placed])]
    rows = [
        {"number": number, "place": place, "entry": entry,
         "fronts": [word for word, best in (("parameters", by_count), ("memory", by_peak))
                    if number - 1 in best]}
        for number, (place, entry) in enumerate(zip(places(entries), entries, strict=True), 1)
    ]  # fmt: skip
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    text = files(__package__).joinpath("leaderboard.html.j2").read_text("utf-8")
    return environment.from_string(text).render(
        course=course, budget=BUDGET, rows=rows, without=len(board.without),
        ungraded=len(board.ungraded),
        plots=[
            {"title": title, "picture": _picture(entries, cost), "alt": _alt(entries, cost, best)}
            for title, cost, best in (
                ("Accuracy against trained parameters", "trainable", by_count),
                ("Accuracy against predicted memory", "peak_gib", by_peak))
        ],
    )  # fmt: skip


def _picture(entries: Sequence[Entry], cost: str) -> str:
    """The Pareto plot as an address that holds its SVG. Points have row numbers, not names."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "leaderboard"}):
        from matplotlib import pyplot

        from loralab import plots
        from loralab.plots.pareto import Point, accuracy_by_cost

        plots.use_style()
        points = [
            Point(getattr(one, cost), one.accuracy, str(number))
            for number, one in enumerate(entries, 1) if getattr(one, cost) is not None
        ]  # fmt: skip
        figure = accuracy_by_cost(points, cost, limit=getattr(BUDGET, cost))
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def _alt(entries: Sequence[Entry], cost: str, best: Sequence[int]) -> str:
    shown = sum(getattr(one, cost) is not None for one in entries)
    points = ("1 adapter as a point, with its row" if shown == 1
              else f"{shown} adapters as points, with their rows")  # fmt: skip
    if not best:
        return f"{points}."
    rows = ", ".join(str(index + 1) for index in sorted(best))
    return f"{points}; on the Pareto front: row{'' if len(best) == 1 else 's'} {rows}."
