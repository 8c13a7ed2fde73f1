"""What the tests know of a chapter's answers: right ones, wrong ones, and what each earns.

`answers_chNN.py` holds the answers as source text, so that the visible check, the trusted check
and the sandbox can all be given the same ones. It has these names:

IMPORTS       names that the chapter's other cells would have made (its imports, its model …)
RIGHT         exercise → other right answers
WRONG         a list of `Wrong`: at least one for each symptom of the chapter
NOT_BY_HAND   exercise → a right answer that uses a library which is switched off for it
CHEATS        (exercise, code): answers that ignore their arguments, or know only the visible cases
BY_FILE       exercises that are graded by the files handed in, if there are any: tests of their
              own try those
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from local_student import LocalStudent

from loralab.paths import PROJECT

HERE = Path(__file__).parent
CELL = r'^# %% {}="(\w+)"[^\n]*\n(.*?)(?=^# %%)'


@dataclass(frozen=True)
class Wrong:
    """A typical mistake: the symptom that names it, and the points that it may still earn.

    `also`: symptoms of further parts that the same mistake loses.
    """

    exercise: str
    symptom: str
    code: str
    earns: Sequence[float] = (0,)
    also: Sequence[str] = ()


class Sheet:
    """One chapter's answers, with its solution's cells."""

    def __init__(self, chapter: str):
        self.chapter = chapter
        answers = importlib.import_module(f"answers_ch{chapter}")
        self.imports: Mapping[str, Any] = answers.IMPORTS
        self.right: Mapping[str, Sequence[str]] = answers.RIGHT
        self.wrong: Sequence[Wrong] = answers.WRONG
        self.not_by_hand: Mapping[str, str] = answers.NOT_BY_HAND
        self.cheats: Sequence[tuple[str, str]] = answers.CHEATS
        self.by_file: Sequence[str] = getattr(answers, "BY_FILE", ())
        self.check = importlib.import_module(f"loralab.checks.ch{chapter}")

    @cached_property
    def source(self) -> str:
        (path,) = (PROJECT / "solutions").glob(f"{self.chapter}_*.py")
        return path.read_text("utf-8")

    @cached_property
    def cells(self) -> dict[str, str]:
        """The solution of each exercise."""
        return self._by_answer(re.findall(CELL.format("exercise"), self.source, re.S | re.M))

    @cached_property
    def check_cells(self) -> dict[str, str]:
        """The cell that calls the visible check of each exercise."""
        return self._by_answer(re.findall(CELL.format("check"), self.source, re.S | re.M))

    @cached_property
    def points(self) -> dict[str, float]:
        found = re.findall(r'^# %% check="(\w+)" points=([\d.]+)', self.source, re.M)
        return {name: float(points) for name, points in self._by_answer(found).items()}

    @cached_property
    def exercises(self) -> dict[str, Any]:
        """The visible check's `Exercise`s."""
        return self._by_answer(self.check.EXERCISES.items())

    def _by_answer(self, found: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        return {name: what for name, what in found if name not in self.by_file}

    def stub(self, exercise: str) -> str:
        """The exercise's cell as students get it."""
        return re.sub(
            r"^( *)### BEGIN SOLUTION.*?### END SOLUTION", r"\1raise NotImplementedError('write it')",
            self.cells[exercise], flags=re.S | re.M,
        )  # fmt: skip

    def run_visible_check(self, exercise: str, code: str) -> None:
        """Run the visible check's cell after `code`; raises WrongAnswer as the notebook would."""
        space = {**self.imports, "check": self.check}
        exec(code, space)
        exec(self.check_cells[exercise], space)

    def student(self, code: str) -> LocalStudent:
        return LocalStudent.of(code, **{**self.imports, "check": self.check})


@lru_cache
def sheet(chapter: str) -> Sheet:
    return Sheet(chapter)


# Chapters 00, 01 and 05 have test modules of their own.
CHAPTERS = sorted(
    path.stem.removeprefix("answers_ch") for path in HERE.glob("answers_ch*.py")
    if path.stem[-2:] not in ("00", "01", "05")
)  # fmt: skip


def each(what: str) -> list[tuple[str, Any]]:
    """(chapter, one of its answers), for every chapter; `what` is a Sheet's attribute."""
    found = []
    for chapter in CHAPTERS:
        given = getattr(sheet(chapter), what)
        if what == "right":
            given = [(exercise, code) for exercise, codes in given.items() for code in codes]
        elif isinstance(given, Mapping):
            given = list(given.items())
        found += [(chapter, one) for one in given]
    return found
