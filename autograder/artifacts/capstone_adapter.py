"""Exercise 8.3: the capstone's adapter, by its file, by its plan, and on hidden questions.

Eight parts: within the budget; the planned one; an accuracy within 0.15 of the predicted one; and
five for 12, 24, 36, 48 and 60 % of 64 hidden questions, of which none is earned over the budget.
The last share lies below the 80 % that the visible check asks for, for the reason that
`trained_adapter` gives. All questions are tried, because a leaderboard shows the share.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import cache

from autograder.artifacts.adapter_files import Adapter
from autograder.artifacts.exam import Tried, tried
from autograder.checks import Part, Personal, Student, StudentError
from autograder.checks.ch08 import PLAN
from autograder.checks.once import once
from loralab import capstone, memory
from loralab.checks import WrongAnswer
from loralab.checks.ch08 import (
    EXERCISES,
    AdapterFile,
    Plan,
    compare_accuracy,
    compare_budget,
    compare_with_plan,
    read_plan,
)
from loralab.errors import CourseError

EXERCISE = EXERCISES["trained_adapter"]
POINTS = 5  # of accuracy
FULL = 0.75 * capstone.BUDGET.accuracy
SHARES = tuple(FULL * part / POINTS for part in range(1, POINTS + 1))


def parts(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """The parts of `trained_adapter`. The adapter is tried once, when the first is checked."""

    @cache
    def found() -> Tried:
        return tried(student, draw, personal, some=SHARES[0], task=capstone.SHOP)

    def file() -> AdapterFile:
        adapter = found().adapter
        if adapter is None or found().symptom == "untrained":
            raise found().wrong(EXERCISE)
        return _described(adapter)

    ask = once(student.function("plan", take=PLAN))

    def planned() -> Plan:
        return read_plan(ask())

    def accuracy() -> None:
        mine = file()
        compare_budget(mine)
        # Whoever predicts nothing and learns nothing has not predicted well.
        if found().share < SHARES[0]:
            raise found().wrong(EXERCISE)
        compare_accuracy(found().share, planned())

    def share(needed: float) -> Callable[[], None]:
        def check() -> None:
            compare_budget(file())
            if found().share < needed:
                raise found().wrong(EXERCISE)

        return check

    def measured() -> Mapping[str, float]:
        mine = file()
        return {"trainable": mine.trainable, "accuracy": found().share,
                **_predicted_peak(mine, planned)}  # fmt: skip

    return [
        Part(1, lambda: compare_budget(file()), "within the budget", measured),
        Part(1, lambda: compare_with_plan(file(), planned()), "as planned"),
        Part(1, accuracy, "accuracy as predicted"),
        *(Part(1, share(needed)) for needed in SHARES),
    ]


def _described(adapter: Adapter) -> AdapterFile:
    settings = adapter.settings
    # rsLoRA scales by α/√r: as α/r it is another α.
    alpha = settings.scale * settings.r
    trainable = sum(half.numel() for pair in adapter.pairs.values() for half in pair)
    return AdapterFile(trainable, settings.r, alpha, settings.targets)


def _predicted_peak(mine: AdapterFile, planned: Callable[[], Plan]) -> dict[str, float]:
    """The peak in GiB of the run that was planned, if the file is that run's."""
    try:
        plan = planned()
        compare_with_plan(mine, plan)
        return {"peak_gib": plan.estimate().total / memory.GiB}
    except (WrongAnswer, StudentError, CourseError):
        return {}
