"""Trusted checks: how a graded exercise is scored outside the student's process.

One module a chapter (`ch01` …) holds one function for each graded exercise, registered with
`@trusted` under the exercise's name. It gets a `Student`, which is a source of *data*: inputs go
in, the student's function runs in the sandbox, plain values come back. Comparison, oracle and
points stay here. Symptoms come from `loralab.checks`, which never imports this package.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# None, bool, int, float, str, list, dict with string keys, torch.Tensor
Data = Any


class StudentError(Exception):
    """The student's process gave no usable answer.

    `kind`: "missing" (no such name), "unsolved" (the stub's NotImplementedError), "raised" (`name`
    is the exception's, if it is a builtin one), "masked" (it used a library that is switched off
    for this item), "slow", "died" (`name` says of what) or "unreadable".
    """

    def __init__(self, kind: str, name: str = ""):
        super().__init__(f"{kind}: {name}" if name else kind)
        self.kind, self.name = kind, name


@dataclass(frozen=True)
class Code:
    """An input that only code can make: an expression evaluated in the student's process.

    Written by a check, never by a student. `torch` and `np` are there; other modules by
    `__import__`. Code("torch.bfloat16") is a dtype.
    """

    text: str


class Student(Protocol):
    """A submission while it is graded."""

    files: Mapping[str, Path]
    """The other files handed in, by their relative path, in a folder that only the grader sees."""
    parameters: Mapping[str, object]
    """Literals that the notebook's parameters cell assigns; read, never executed."""

    def function(
        self, name: str, *, take: str = "answer", masked: Sequence[str] = ()
    ) -> Callable[..., Data]:
        """A stand-in for the student's function of that name.

        Calling it runs the function in the sandbox and returns data. Arguments may be JSON values,
        torch dtypes, tensors, NumPy arrays and `Code`. `take` is an expression over `answer`,
        evaluated inside, that turns a rich object into data. `masked`: modules that raise while
        the function runs. Raises StudentError.
        """

    def value(self, name: str, *, take: str = "answer") -> Data:
        """The data that `take` makes of the student's variable `name`. Raises StudentError."""


@dataclass(frozen=True)
class Part:
    """A share of an item's points, and the check that earns it.

    `check()` returns, or raises `loralab.checks.WrongAnswer` (the student is told its symptom,
    never its text) or StudentError. `label` says in a few words what is tried. `measured()` gives
    numbers that the check has found, by name: they are kept with the result, whatever was earned.
    """

    points: float
    check: Callable[[], None]
    label: str = ""
    measured: Callable[[], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Personal:
    """What a submission is graded with besides its seed.

    secret: the class's, in hex; hidden test sets derive from it. student: an id, may be "".
    language: the seed of the language given to this student; None takes the student's choice.
    """

    secret: str = ""
    student: str = ""
    language: str | None = None


Maker = Callable[[Student, random.Random, Personal], list[Part]]


@dataclass(frozen=True)
class TrustedCheck:
    """One exercise's check. `runs` is False where only files are graded, and no cell is needed."""

    exercise: str
    parts: Maker
    runs: bool = True


_REGISTERED: dict[str, dict[str, TrustedCheck]] = {}


def trusted(exercise: str, *, runs: bool = True) -> Callable[[Maker], Maker]:
    """Register the decorated function as the check of `exercise` (its solution cell's grade_id).

    It is given the student, a `random.Random` made from the submission's seed and the exercise's
    name, and `Personal`, and returns the parts.
    """

    def register(make: Maker) -> Maker:
        chapter = make.__module__.rpartition(".ch")[2]
        _REGISTERED.setdefault(chapter, {})[exercise] = TrustedCheck(exercise, make, runs)
        return make

    return register


def checks_of(chapter: str) -> Mapping[str, TrustedCheck]:
    """The trusted checks of `chapter` ("01"), by exercise; none for a chapter without a module."""
    name = f"{__name__}.ch{chapter}"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return {}
    return _REGISTERED.get(chapter, {})
