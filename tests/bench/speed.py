"""Seconds per submission: this engine and stock nbgrader on the same notebooks, in turns."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loralab import paths
from tests.bench.class_folders import Ours, Stock
from tests.bench.handed_in import Chapter, Work, chapter, full, untouched

KINDS = ("full credit", "untouched")
STOCK_STUDENTS = {"01": 3, "05": 1}  # copies in one of stock nbgrader's runs


@dataclass(frozen=True)
class Turn:
    """One repetition of one kind of work: seconds per submission.

    stock: of its whole command, divided by its submissions. whole: the same of this engine's
    command, warm-up and all, with `students` submissions. warm: what each further one takes, from
    the times at which results were written. right: every score was what it had to be, with both.
    """

    chapter: str
    kind: str
    students: int
    stock_students: int
    stock: float
    whole: float
    warm: float
    right: bool


@dataclass(frozen=True)
class Prepared:
    """A chapter, and what its full-credit submission holds. `first`: seconds that stock nbgrader
    took for it before anything was cached; None where it was cached already, or nothing is."""

    chapter: Chapter
    files: dict[str, bytes]
    first: float | None = None

    def work(self, kind: str) -> Work:
        return full(self.chapter, self.files) if kind == KINDS[0] else untouched(self.chapter)


def prepare(number: str, stock: Stock) -> Prepared:
    """Chapter 05 is solved once, untimed: its training is in the cache then, and its adapter is
    what students hand in."""
    subject = chapter(number)
    if number != "05":
        return Prepared(subject, {})
    known = _trained()
    stock.empty()
    stock.put("first", subject, full(subject))
    seconds = stock.grade(subject)
    adapter = stock.root / "autograded" / "first" / subject.name / "adapter"
    files = {f"adapter/{path.name}": path.read_bytes() for path in sorted(adapter.iterdir())
             if path.is_file()}
    stock.empty()
    return Prepared(subject, files, seconds if _trained() > known else None)


def _trained() -> int:
    return len(list((paths.cache() / "fits").glob("*")))


def measure(
    place: Path, numbers: Sequence[str], students: int, repetitions: int,
    said: Callable[[str], None],
) -> tuple[list[Turn], dict[str, float]]:
    """The turns; and for chapters whose training was not cached, what stock nbgrader's first
    submission took, in seconds."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    subjects = [chapter(number) for number in numbers]
    ours, stock = Ours(place / "ours", subjects), Stock(place / "stock", subjects)
    prepared = []
    for number in numbers:
        said(f"chapter {number}: getting ready")
        prepared.append(prepare(number, stock))
    turns = []
    for repetition in range(repetitions):
        for one in prepared:
            for kind in KINDS:
                turns.append(turn(ours, stock, one, kind, students))
                said(f"{repetition + 1}/{repetitions} {one.chapter.name}, {kind}: "
                     f"stock {turns[-1].stock:.2f} s, this engine {turns[-1].warm:.3f} s warm, "
                     f"{turns[-1].whole:.2f} s with warm-up")
    return turns, {one.chapter.number: one.first for one in prepared if one.first is not None}


def turn(ours: Ours, stock: Stock, given: Prepared, kind: str, students: int) -> Turn:
    """Grade the same work with both."""
    subject, work = given.chapter, given.work(kind)
    few = STOCK_STUDENTS[subject.number]
    for folder, count in ((ours, students), (stock, few)):
        folder.empty()
        for number in range(count):
            folder.put(f"student{number:03}", subject, work)
    whole = ours.grade(subject)
    warm = ours.seconds_once_warm()
    seconds = stock.grade(subject)
    right = same_scores(ours, stock, subject, students, few, subject.points * (kind == KINDS[0]))
    return Turn(subject.number, kind, students, few, round(seconds / few, 3),
                round(whole / students, 3), round(warm, 4), right)


def same_scores(
    ours: Ours, stock: Stock, subject: Chapter, students: int, few: int, points: float
) -> bool:
    """Whether both gave each cell of each copy the same score, `points` in all."""
    here, there = ours.scores(subject), stock.scores(subject)
    names = [f"student{number:03}" for number in range(students)]
    first = here.get(names[0])
    return (first is not None and sum(first.values()) == points
            and all(here.get(name) == first for name in names)
            and all(there.get(name) == first for name in names[:few]))


# What it comes to ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 3 if self.high < 1 else 2 if self.high < 10 else 1
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def spread(values: Iterable[float]) -> Spread:
    every = sorted(values)
    return Spread(statistics.median(every), every[0], every[-1])


@dataclass(frozen=True)
class Line:
    """A row of the table. Ratios are taken within a turn."""

    chapter: str
    kind: str
    stock: Spread
    warm: Spread
    ratio: Spread
    whole: Spread
    whole_ratio: Spread
    right: bool


def lines(turns: Sequence[Turn]) -> list[Line]:
    kinds = dict.fromkeys((one.chapter, one.kind) for one in turns)
    made = []
    for name, kind in sorted(kinds):
        some = [one for one in turns if (one.chapter, one.kind) == (name, kind)]
        made.append(Line(
            name, kind, spread(one.stock for one in some), spread(one.warm for one in some),
            spread(one.stock / one.warm for one in some), spread(one.whole for one in some),
            spread(one.stock / one.whole for one in some), all(one.right for one in some)))
    return made


def write(path: Path, turns: Sequence[Turn], first: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"turns": [asdict(one) for one in turns], "first": first},
                               indent=1) + "\n", "utf-8")
