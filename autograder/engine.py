"""Grade one submission: a notebook in, scores and messages out; no database, no folder tree.

The student's code runs in the sandbox. What is asked of it, what is right, and what it earns are
decided here, where that code is not.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import io
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from autograder.checks import Data, Part, Personal, StudentError, TrustedCheck, checks_of
from autograder.kernel import Kernel
from autograder.plan import cells_to_run
from autograder.repair import Repaired, repair
from autograder.result import Item, Result
from autograder.sandbox.warm import Limits, Sandbox, shared
from loralab.checks import WrongAnswer

RESTARTS = 2  # a submission that hangs or dies is started again so often, for its other exercises
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "nbgrader")


def grade(
    notebook: NotebookNode,
    chapter: str,
    seed: str,
    *,
    source: NotebookNode | None = None,
    files: Mapping[str, Path] | None = None,
    personal: Personal = Personal(),
    sandbox: Sandbox | None = None,
    limits: Limits = Limits(),
) -> Result:
    """The scores of a submitted notebook (v4).

    chapter: "01". seed: the same one gives the same inputs, and so the same score. source: the
    notebook that was released, with its solutions (default: the course's own). files: what else
    was handed in, by relative path. sandbox: default, one that this process keeps warm.

    Raises NoSandbox where student code can't be isolated. Nothing that the student wrote raises.
    """
    clock = _Clock()
    source = source if source is not None else _source(chapter)
    repaired = repair(notebook, source)
    clock.lap("repair")
    checks = checks_of(chapter)
    graded = [cell for cell in source.cells if cell.metadata.get("nbgrader", {}).get("grade")]
    own = {cell.metadata.nbgrader.grade_id for cell in graded
           if not _manual(cell) and _exercise(cell) not in checks}
    wanted = {name for cell in graded if (check := checks.get(_exercise(cell))) and check.runs
              for name in [check.exercise]}
    student = Submitted(
        repaired, cells_to_run(repaired, source, wanted | own), sandbox or shared(), limits,
        dict(files or {}),
    )  # fmt: skip
    try:
        if own:
            outcomes = student.run_own(own)
        clock.lap("cells")
        items: dict[str, Item] = {}
        for cell in graded:
            name, points = cell.metadata.nbgrader.grade_id, float(cell.metadata.nbgrader.points)
            if _manual(cell):
                items[name] = Item(points, None)
            elif name in own:
                items[name] = _own_item(points, outcomes.get(name))
            else:
                check = checks[_exercise(cell)]
                drawn = random.Random(f"{seed}:{check.exercise}")
                items[name] = _item(points, check, student, drawn, personal)
        clock.lap("checks")
    finally:
        student.close()
    notes = (*repaired.notes, *student.notes)
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    return Result(chapter, seed, items, notes, clock.laps, versions)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 4)
        self._last = now


def _source(chapter: str) -> NotebookNode:
    from autograder.markers import source_notebook
    from autograder.release import chapters

    return source_notebook(chapters([chapter])[0])


def _manual(cell: NotebookNode) -> bool:
    return bool(cell.metadata.nbgrader.get("solution")) or cell.cell_type != "code"


def _exercise(cell: NotebookNode) -> str:
    return cell.metadata.nbgrader.grade_id.removesuffix("-check")


# Scores and words ------------------------------------------------------------------------------


def _item(
    points: float, check: TrustedCheck, student: Submitted, drawn: random.Random, personal: Personal
) -> Item:
    earned, messages = 0.0, []
    parts = list(_parts(check, student, drawn, personal))
    for part in parts:
        wrong = _try(part)
        if wrong is None:
            earned += part.points
        else:
            said = f"{part.label}: {wrong}" if part.label else wrong
            messages += [] if said in messages else [said]
    total = sum(part.points for part in parts)
    # Rounded, for sums of tenths; but never above the points, where nbgrader takes offence.
    score = min(points, round(points * earned / total, 6)) if total else 0.0
    return Item(points, score, (_summary(score, points), *messages))


def _parts(
    check: TrustedCheck, student: Submitted, drawn: random.Random, personal: Personal
) -> Sequence[Part]:
    try:
        return check.parts(student, drawn, personal)
    except (WrongAnswer, StudentError) as error:
        said = error

        def fail() -> None:
            raise said

        return [Part(1.0, fail)]


def _try(part: Part) -> str | None:
    """None if the part is earned, else what the student is told."""
    try:
        # Comparators are shared with the visible checks, which say OK.
        with contextlib.redirect_stdout(io.StringIO()):
            part.check()
    except WrongAnswer as wrong:
        if wrong.symptom:
            return f"{wrong.symptom.sees} (Below the check there is help of that name.)"
        return "wrong for inputs other than those of the check that you see."
    except StudentError as error:
        return explain(error)
    return None


def _summary(score: float, points: float) -> str:
    return f"{score:g} of {points:g} points."


def explain(error: StudentError) -> str:
    """What a student is told when his process gave no usable answer."""
    return {
        "missing": "the name that the exercise asks for does not exist after your cells ran.",
        "unsolved": "not solved yet.",
        "raised": f"your code raised {error.name or 'an exception'}.",
        "masked": "this uses a library that is switched off here: write it by hand.",
        "slow": "it took too long.",
        "died": {
            "memory": "your code used more memory than it may.",
            "processes": "your code started more processes than it may.",
            "time": "your code used more time than it may.",
            "output": "your code sent more than it may.",
        }.get(error.name, "your code ended its own process."),
        "unreadable": "what came back is no number, text, list, dict or tensor of usable size.",
    }[error.kind]


def _own_item(points: float, outcome: str | None) -> Item:
    """An instructor's own test cell: all points unless it raised (`outcome` says what)."""
    if outcome is None:
        return Item(points, points, (_summary(points, points),))
    return Item(points, 0.0, (_summary(0.0, points), outcome))


# The student ------------------------------------------------------------------------------------


@dataclass
class Submitted:
    """A submission while it is graded: see `autograder.checks.Student`.

    Its kernel starts when the first value is asked for. One that hung or died is started again,
    so that one exercise does not cost the others.
    """

    repaired: Repaired
    planned: Sequence[int]
    sandbox: Sandbox
    limits: Limits
    files: Mapping[str, Path]
    notes: list[str] = field(default_factory=list)
    _kernel: Kernel | None = None
    _starts: int = 0
    _skipped: set[int] = field(default_factory=set)
    _lost: StudentError | None = None

    @property
    def parameters(self) -> Mapping[str, object]:
        return parameters(self.repaired.notebook)

    def function(
        self, name: str, *, take: str = "answer", masked: Sequence[str] = ()
    ) -> Callable[..., Data]:
        def call(*positional: object, **named: object) -> Data:
            return self._ask(
                lambda kernel: kernel.function(name, take=take, masked=masked)(
                    *positional, **named))

        return call

    def value(self, name: str, *, take: str = "answer") -> Data:
        return self._ask(lambda kernel: kernel.value(name, take=take))

    def _ask(self, ask: Callable[[Kernel], Data]) -> Data:
        try:
            return ask(self._live())
        except StudentError as error:
            if error.kind in ("slow", "died"):
                self.close()
                self._lost = error
            raise

    def _live(self) -> Kernel:
        """The kernel, with the planned cells run in it."""
        while self._kernel is None:
            if self._starts > RESTARTS:
                raise self._lost or StudentError("died")
            self._starts += 1
            kernel = Kernel(self.sandbox, self.limits, self.files)
            try:
                for index in self.planned:
                    if index not in self._skipped:
                        self._run(kernel, index)
                self._kernel = kernel
            except StudentError as error:
                # Without the cell that hung or died the others may still do.
                kernel.close()
                self._lost = error
        return self._kernel

    def _run(self, kernel: Kernel, index: int) -> str | None:
        try:
            error = kernel.run(self.repaired.notebook.cells[index].source)
        except StudentError as lost:
            self._skipped.add(index)
            self.notes.append(f"Cell {index + 1} was left out: {explain(lost)}")
            raise
        return error

    def run_own(self, own: set[str]) -> dict[str, str | None]:
        """Run every planned cell in order; what became of an instructor's own test cells."""
        outcomes: dict[str, str | None] = dict.fromkeys(own, "the kernel did not reach this test.")
        kernel = Kernel(self.sandbox, self.limits, self.files)
        try:
            for index in self.planned:
                cell = self.repaired.notebook.cells[index]
                error = self._run(kernel, index)
                name = cell.metadata.get("nbgrader", {}).get("grade_id")
                if name in own:
                    outcomes[name] = error and f"the test raised {error}."
        except StudentError:
            kernel.close()
        else:
            self._kernel = kernel
        return outcomes

    def close(self) -> None:
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None


def parameters(notebook: NotebookNode) -> dict[str, Any]:
    """Literals that cells tagged `parameters` assign to names: read, never executed."""
    return {
        name: value
        for cell in notebook.cells
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", [])
        for name, value in _literals(cell.source)
    }


def _literals(code: str) -> Iterator[tuple[str, Any]]:
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value.value
