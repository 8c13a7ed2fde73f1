"""Exercise 5.6: a trained adapter, tried on sentences that nobody has seen.

Five equal parts, for 9, 18, 27, 36 and 45 % of 64 sentences. Full marks start below the 60 % that
the visible check asks for: an adapter that really gets 60 % right falls below 45 % in fewer than 1
of 100 draws.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from autograder.artifacts.exam import PAIRS as SENTENCES
from autograder.artifacts.exam import Tried, drawn, tried
from autograder.checks import Part, Personal, Student
from loralab.checks.ch05 import ENOUGH, EXERCISES
from loralab.tasks.language import Language

POINTS = 5
FULL = 0.75 * ENOUGH
SHARES = tuple(FULL * part / POINTS for part in range(1, POINTS + 1))
EXERCISE = EXERCISES["trained_adapter"]


def parts(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """The parts of `trained_adapter`. The adapter is tried once, when the first is checked."""
    enough = -int(-FULL * SENTENCES // 1)

    @cache
    def found() -> Tried:
        return tried(student, draw, personal, some=SHARES[0], enough=enough)

    def part(needed: float) -> Callable[[], None]:
        def check() -> None:
            if found().share < needed:
                raise found().wrong(EXERCISE)

        return check

    return [Part(1, part(needed)) for needed in SHARES]


def exam(seed: str | int, personal: Personal, draw: random.Random) -> list[dict[str, str]]:
    """The hidden sentences in the language of that seed: see `exam.drawn`."""
    return drawn(Language(seed), personal, draw)
