"""Exercise 5.6: a trained adapter, tried on sentences that nobody has seen.

The sentences are of the split "exam", drawn by the class's secret; the language is the one that
the class gave, or the one that the notebook names. Five equal parts, for 9, 18, 27, 36 and 45 % of
64 sentences. Full marks start below the 60 % that the visible check asks for: an adapter that
really gets 60 % right falls below 45 % in fewer than 1 of 100 draws.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Callable
from functools import cache

from autograder.artifacts import adapter_files, evaluate
from autograder.artifacts.adapter_files import Adapter, BadAdapter
from autograder.checks import Part, Personal, Student
from loralab.checks import Symptom, WrongAnswer
from loralab.checks.ch05 import ENOUGH, EXERCISES
from loralab.tasks.language import Language

SENTENCES = 64
POINTS = 5
FULL = 0.75 * ENOUGH
SHARES = tuple(FULL * part / POINTS for part in range(1, POINTS + 1))
UNTRAINED = 0.01  # a trained B reaches 0.1 and more
MAX_SEED = 200  # characters of a language's seed
EXERCISE = EXERCISES["trained_adapter"]


def parts(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """The parts of `trained_adapter`. The adapter is tried once, when the first is checked."""

    @cache
    def tried() -> tuple[float, str, str]:
        return _tried(student, draw, personal)

    def part(needed: float) -> Callable[[], None]:
        def check() -> None:
            share, symptom, said = tried()
            if share < needed:
                raise _wrong(symptom, said)

        return check

    return [Part(1, part(needed)) for needed in SHARES]


def _wrong(symptom: str, said: str) -> WrongAnswer:
    """`symptom`: a key of the exercise's table, or "" where `said` is all there is to say."""
    if symptom:
        return EXERCISE.wrong(said, symptom)
    return WrongAnswer(EXERCISE, said, Symptom(said, ""))


def _tried(
    student: Student, draw: random.Random, personal: Personal
) -> tuple[float, str, str]:
    """The share of sentences that are right, and what is wrong where that is too little."""
    try:
        adapter = adapter_files.read_adapter(student.files)
        own = _named_language(student)
    except BadAdapter as bad:
        return 0.0, bad.kind, str(bad)
    if adapter.largest_b == 0:
        return 0.0, "untrained", "B is zero everywhere."
    given = personal.language if personal.language is not None else own
    enough = -int(-FULL * SENTENCES // 1)
    hits = evaluate.right_answers(adapter, exam(given, personal, draw), enough)
    return hits / SENTENCES, *_diagnosis(adapter, hits, str(own) != str(given))


def _diagnosis(adapter: Adapter, hits: int, another_language: bool) -> tuple[str, str]:
    if hits >= SHARES[0] * SENTENCES:
        return "short", "Some sentences are right."
    if adapter.largest_b < UNTRAINED:
        return "untrained", "B has hardly moved."
    if another_language:
        return "", (
            "Almost nothing is right in the language that your class gave you. Your notebook's "
            "LANGUAGE names another one: set it, and train again."
        )
    return "other_language", "Almost nothing is right."


def _named_language(student: Student) -> str | int:
    """The seed that the notebook's LANGUAGE names. Raises `BadAdapter`."""
    seed = student.parameters.get("LANGUAGE", Language.seed)
    usable = type(seed) is str and len(seed) <= MAX_SEED and seed.isprintable()
    if usable or (type(seed) is int and abs(seed) < 10**MAX_SEED):
        return seed  # type: ignore[return-value]
    raise BadAdapter(
        f"LANGUAGE in the notebook has to be a text of at most {MAX_SEED} characters, or a whole "
        "number."
    )


def exam(seed: str | int, personal: Personal, draw: random.Random) -> list[dict[str, str]]:
    """The hidden sentences in the language of that seed: the same ones for a whole class.

    Without a class's secret they are drawn from the submission's seed.
    """
    key = personal.secret or f"{draw.getrandbits(256):x}"
    drawn = hmac.digest(key.encode(), b"trained_adapter: sentences", hashlib.sha256)
    language = Language(seed)
    return [
        {"prompt": language.prompt(english), "completion": f" {translation}"}
        for english, translation in language.pairs(SENTENCES, "exam", int.from_bytes(drawn))
    ]
