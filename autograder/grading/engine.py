"""Grade one submission: a notebook in, scores and messages out; no database, no folder tree.

The student's code runs in the sandbox. What is asked of it, what is right, and what it earns are
decided here, where that code is not.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.metadata
import io
import logging
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from autograder.checks import Data, Part, Personal, StudentError, TrustedCheck, checks_of
from autograder.checks.once import FOR_GOOD
from autograder.grading.kernel import CELL_SECONDS, Kernel
from autograder.grading.plan import cells_to_run
from autograder.grading.repair import Repaired, repair
from autograder.grading.result import Item, Result
from autograder.sandbox.warm import Limits, Sandbox, shared
from loralab.checks import WrongAnswer


# Before the student's cells: the same luck each time, and an `exit()` that ends nothing.
PRELUDE = """
(lambda modules: [getattr(modules[module], name)(0)
                  for module, name in (("random", "seed"), ("numpy.random", "seed"),
                                       ("torch", "manual_seed")) if module in modules]
)(__import__("sys").modules) and setattr(get_ipython(), "ask_exit", lambda *given: None)
"""
MAX_RAISED = 5  # notes on cells that raised
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "nbgrader")


class NotGraded(RuntimeError):
    """The sandbox failed, not the student: there is no score."""


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

    Raises NoSandbox where student code can't be isolated, NotGraded where the sandbox then fails. Nothing that the student wrote raises.
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
        outcomes = student.run_own(own) if own else {}
        clock.lap("cells")
        items: dict[str, Item] = {}
        for cell in graded:
            name, points = cell.metadata.nbgrader.grade_id, float(cell.metadata.nbgrader.points)
            if _manual(cell):
                items[name] = Item(points, None)
            elif name in own:
                items[name] = _own_item(points, outcomes[name])
            else:
                check = checks[_exercise(cell)]
                drawn = random.Random(f"{seed}:{check.exercise}")
                items[name] = _item(points, check, student, drawn, personal)
        clock.lap("checks")
        if not student.sandbox.alive:
            raise NotGraded("the sandbox ended while it graded")
    finally:
        student.close()
    notes = [*repaired.notes, *student.notes]
    if any(item.score is not None and item.score < item.points for item in items.values()):
        notes += student.raised()
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    return Result(chapter, seed, items, tuple(notes), clock.laps, versions)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 4)
        self._last = now


def _source(chapter: str) -> NotebookNode:
    from autograder.authoring.markers import source_notebook
    from autograder.authoring.release import chapters

    return source_notebook(chapters([chapter])[0])


def _manual(cell: NotebookNode) -> bool:
    return bool(cell.metadata.nbgrader.get("solution")) or cell.cell_type != "code"


def _exercise(cell: NotebookNode) -> str:
    return cell.metadata.nbgrader.grade_id.removesuffix("-check")


# Scores and words ------------------------------------------------------------------------------


def _item(
    points: float, check: TrustedCheck, student: Submitted, drawn: random.Random, personal: Personal
) -> Item:
    earned, messages, measured = 0.0, [], {}
    parts = list(_parts(check, student, drawn, personal))
    for part in parts:
        said = _try(part)
        if said is None:
            earned += part.points
        elif said not in messages:
            messages.append(said)
        measured |= _measured(part)
    total = sum(part.points for part in parts)
    # Rounded, for sums of tenths; but never above the points, where nbgrader takes offence.
    score = min(points, round(points * earned / total, 6)) if total else 0.0
    return Item(points, score, (_summary(score, points), *messages), measured)


def _measured(part: Part) -> dict[str, float]:
    """What a part measured; nothing where the answer allowed no measurement."""
    if part.measured is None:
        return {}
    try:
        return dict(part.measured())
    except (WrongAnswer, StudentError):
        return {}


def _parts(
    check: TrustedCheck, student: Submitted, drawn: random.Random, personal: Personal
) -> Sequence[Part]:
    try:
        return check.parts(student, drawn, personal)
    except NotGraded:
        raise
    except Exception as error:
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
            where = " (Below the check there is help of that name.)" if wrong.symptom.help else ""
            return _said(part.label, wrong.symptom.sees + where)
        return _said(part.label, "wrong for inputs other than those of the check that you see.")
    except StudentError as error:
        # What holds for the whole exercise is said once.
        return _said("" if error.kind in FOR_GOOD else part.label, explain(error))
    except NotGraded:
        raise
    except Exception as error:  # an answer that a comparator did not expect, or a mistake in it
        logging.getLogger(__name__).exception("a check could not be carried out")
        return _said(part.label, f"what came back could not be compared ({type(error).__name__}).")
    return None


def _said(label: str, text: str) -> str:
    return f"{label}: {text}" if label else text[:1].upper() + text[1:]


def _summary(score: float, points: float) -> str:
    return f"{score:g} of {points:g} points."


def explain(error: StudentError) -> str:
    """What a student is told when his process gave no usable answer."""
    return {
        "missing": f"there is no {error.name or 'such name'} after your cells ran.",
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
    _until: float | None = None
    # By index: what each cell that ran to its end raised; those that hung or died.
    _errors: dict[int, str | None] = field(default_factory=dict)
    _skipped: dict[int, StudentError] = field(default_factory=dict)
    _lost: StudentError = field(default_factory=lambda: StudentError("died"))

    @property
    def parameters(self) -> Mapping[str, object]:
        return parameters(self.repaired.notebook)

    def function(
        self, name: str, *, take: str = "answer", masked: Sequence[str] = ()
    ) -> Callable[..., Data]:
        def call(*positional: object, **named: object) -> Data:
            return self._ask(
                name, lambda kernel: kernel.function(name, take=take, masked=masked)(
                    *positional, **named))

        return call

    def value(self, name: str, *, take: str = "answer") -> Data:
        return self._ask(name, lambda kernel: kernel.value(name, take=take))

    def _ask(self, name: str, ask: Callable[[Kernel], Data]) -> Data:
        try:
            return ask(self._live())
        except StudentError as error:
            if error.kind in ("slow", "died"):
                self.close()
                self._lost = error
            if error.kind == "missing":
                raise StudentError("missing", name) from None
            raise

    def _live(self) -> Kernel:
        """The kernel, with the planned cells run in it."""
        while self._kernel is None:
            kernel = self._start()
            try:
                kernel.run(PRELUDE)
                for index in self.planned:
                    if index not in self._skipped:
                        self._run(kernel, index)
                self._kernel = kernel
            except StudentError as error:
                # Without the cell that hung or died the others may still do.
                kernel.close()
                self._lost = error
        return self._kernel

    def _start(self) -> Kernel:
        """A kernel, for what is left of the submission's time."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self.limits.wall_seconds
        left = int(self._until - now)
        if left < 1:
            raise self._lost
        try:
            return Kernel(self.sandbox, replace(self.limits, wall_seconds=left), self.files)
        except StudentError as error:
            # No code of the student's has run: this is no fault of theirs.
            raise NotGraded(f"no kernel started in the sandbox: {error}") from None

    def _run(self, kernel: Kernel, index: int) -> None:
        cell = self.repaired.notebook.cells[index]
        seconds = cell.metadata.get("loralab", {}).get("timeout", CELL_SECONDS)
        try:
            self._errors[index] = kernel.run(cell.source, seconds)
        except StudentError as lost:
            self._skipped[index] = lost
            self.notes.append(f"{_shown(cell)} was left out: {explain(lost)}")
            raise

    def run_own(self, own: Collection[str]) -> dict[str, str | None]:
        """Run every planned cell; what became of an instructor's own test cells, None if passed."""
        with contextlib.suppress(StudentError):
            self._live()
        outcomes: dict[str, str | None] = dict.fromkeys(own, "This test was not reached in time.")
        for index in self.planned:
            name = self.repaired.notebook.cells[index].metadata.get("nbgrader", {}).get("grade_id")
            if name not in own:
                continue
            if index in self._skipped:
                outcomes[name] = _said("", explain(self._skipped[index]))
            elif index in self._errors:
                error = self._errors[index]
                outcomes[name] = error and f"The test raised {_word(error)}."
        return outcomes

    def raised(self) -> list[str]:
        """Notes on the cells that raised: what they should have made may be missing."""
        found = []
        for index, error in self._errors.items():
            cell = self.repaired.notebook.cells[index]
            if error and error != "NotImplementedError" and (
                    not cell.metadata.get("nbgrader", {}).get("grade")):
                found.append(f"{_shown(cell)} raised {_word(error)}.")
        return found[:MAX_RAISED]

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
        targets = node.targets if isinstance(node, ast.Assign) else (
            [node.target] if isinstance(node, ast.AnnAssign) else [])
        try:
            value = ast.literal_eval(node.value) if targets and node.value else ...
        except (ValueError, TypeError, RecursionError, MemoryError):
            continue
        if value is None or isinstance(value, bool | int | float | str):
            yield from ((one.id, value) for one in targets if isinstance(one, ast.Name))


def _shown(cell: NotebookNode) -> str:
    """A cell as its student knows it."""
    if marks := cell.metadata.get("nbgrader"):
        return f"The cell of {marks.grade_id}"
    first = cell.source.strip().split("\n")[0][:60]
    return f"The cell that starts with {first if first.isprintable() else ascii(first)!r}"


def _word(error: str) -> str:
    """A builtin exception's name: any other word was chosen by the student."""
    found = getattr(builtins, error, None)
    return error if isinstance(found, type) and issubclass(found, BaseException) else (
        "an exception")
