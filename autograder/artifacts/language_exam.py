"""A trained adapter, tried on sentences of its language that nobody has seen.

The sentences are of the split "exam", drawn by the class's secret for the chapter; the language is
the one that the class gave, or the one that the notebook names. What share earns what, a chapter
says for itself.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Callable
from dataclasses import dataclass

from autograder.artifacts import adapter_files, evaluate
from autograder.artifacts.adapter_files import Adapter, BadAdapter
from autograder.checks import Personal, Student
from loralab.checks import Exercise, Symptom, WrongAnswer
from loralab.tasks.language import Language

SENTENCES = 64
UNTRAINED = 0.01  # a trained B reaches 0.1 and more
MAX_SEED = 200  # characters of a language's seed


@dataclass(frozen=True)
class Tried:
    """What came of an adapter: the share of sentences that are right, 0…1, and what is wrong
    where that is too little (`symptom`: a key of the exercise's table, or "" where `said` is all
    there is to say). `adapter` is None where there is none that could be read."""

    share: float
    symptom: str
    said: str
    adapter: Adapter | None = None

    def wrong(self, exercise: Exercise) -> WrongAnswer:
        """The error to raise where the share is too small."""
        if self.symptom:
            return exercise.wrong(self.said, self.symptom)
        return WrongAnswer(exercise, self.said, Symptom(self.said, ""))


def tried(
    student: Student,
    draw: random.Random,
    personal: Personal,
    *,
    some: float,
    enough: int = SENTENCES,
    language: Callable[[str | int], Language] = Language,
) -> Tried:
    """Read the adapter that was handed in, and try it.

    `some`: the share from which it has begun to learn. `enough`: right sentences after which the
    rest is not tried. `language`: what is made of the seed that a student has.
    """
    try:
        adapter = adapter_files.read_adapter(student.files)
        own = named_language(student)
    except BadAdapter as bad:
        return Tried(0.0, bad.kind, str(bad))
    if adapter.largest_b == 0:
        return Tried(0.0, "untrained", "B is zero everywhere.", adapter)
    given = personal.language if personal.language is not None else own
    hits = evaluate.right_answers(adapter, exam(given, personal, draw, language), enough)
    share = hits / SENTENCES
    return Tried(share, *_diagnosis(adapter, share >= some, str(own) != str(given)), adapter)


def _diagnosis(adapter: Adapter, begun: bool, another_language: bool) -> tuple[str, str]:
    if begun:
        return "short", "Some sentences are right."
    if adapter.largest_b < UNTRAINED:
        return "untrained", "B has hardly moved."
    if another_language:
        return "", (
            "Almost nothing is right in the language that your class gave you. Your notebook's "
            "LANGUAGE names another one: set it, and train again."
        )
    return "other_language", "Almost nothing is right."


def named_language(student: Student) -> str | int:
    """The seed that the notebook's LANGUAGE names. Raises `BadAdapter`."""
    seed = student.parameters.get("LANGUAGE", Language.seed)
    usable = type(seed) is str and len(seed) <= MAX_SEED and seed.isprintable()
    if usable or (type(seed) is int and abs(seed) < 10**MAX_SEED):
        return seed  # type: ignore[return-value]
    raise BadAdapter(
        f"LANGUAGE in the notebook has to be a text of at most {MAX_SEED} characters, or a whole "
        "number."
    )


def exam(
    seed: str | int,
    personal: Personal,
    draw: random.Random,
    language: Callable[[str | int], Language] = Language,
) -> list[dict[str, str]]:
    """The hidden sentences in the language of that seed: the same ones for a whole class.

    Without a class's secret they are drawn from the submission's seed.
    """
    key = personal.secret or f"{draw.getrandbits(256):x}"
    drawn = hmac.digest(key.encode(), b"trained_adapter: sentences", hashlib.sha256)
    spoken = language(seed)
    return [
        {"prompt": spoken.prompt(english), "completion": f" {translation}"}
        for english, translation in spoken.pairs(SENTENCES, "exam", int.from_bytes(drawn))
    ]
