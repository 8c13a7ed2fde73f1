"""A trained adapter, tried on pairs of its task that nobody has seen.

The pairs are of the split "exam", drawn by the class's secret for the chapter. Where the task is a
language, it is the one that the class gave, or the one that the notebook names. What share earns
what, a chapter says for itself.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from dataclasses import dataclass
from typing import Protocol

from autograder.artifacts import adapter_files, evaluate
from autograder.artifacts.adapter_files import Adapter, BadAdapter
from autograder.checks import Personal, Student
from loralab.checks import Exercise, Symptom, WrongAnswer
from loralab.tasks import Pair
from loralab.tasks.language import Language

PAIRS = 64
UNTRAINED = 0.01  # a trained B reaches 0.1 and more
MAX_SEED = 200  # characters of a language's seed


class Task(Protocol):
    """What `loralab.tasks` has: a language, a shop."""

    def pairs(self, count: int, split: str, seed: int) -> list[Pair]: ...

    def prompt(self, source: str) -> str: ...


@dataclass(frozen=True)
class Tried:
    """What came of an adapter: the share of pairs that are right, 0…1, and what is wrong
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
    enough: int = PAIRS,
    task: Task | None = None,
) -> Tried:
    """Read the adapter that was handed in, and try it.

    `some`: the share from which it has begun to learn. `enough`: right answers after which the
    rest is not tried. `task`: by default, the student's language.
    """
    own: str | int = ""
    try:
        adapter = adapter_files.read_adapter(student.files)
        if task is None:
            own = named_language(student)
    except BadAdapter as bad:
        return Tried(0.0, bad.kind, str(bad))
    if adapter.largest_b == 0:
        return Tried(0.0, "untrained", "B is zero everywhere.", adapter)
    given = own if task is not None or personal.language is None else personal.language
    hits = evaluate.right_answers(
        adapter, drawn(task or Language(given), personal, draw), enough)
    share = hits / PAIRS
    return Tried(share, *_diagnosis(adapter, share >= some, str(own) != str(given)), adapter)


def _diagnosis(adapter: Adapter, begun: bool, another_language: bool) -> tuple[str, str]:
    if begun:
        return "short", "Some answers are right."
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


def drawn(task: Task, personal: Personal, draw: random.Random) -> list[dict[str, str]]:
    """The hidden pairs of a task, as prompt and completion: the same ones for a whole class.

    Without a class's secret they are drawn from the submission's seed.
    """
    key = personal.secret or f"{draw.getrandbits(256):x}"
    seed = hmac.digest(key.encode(), b"trained_adapter: sentences", hashlib.sha256)
    return [
        {"prompt": task.prompt(source), "completion": f" {target}"}
        for source, target in task.pairs(PAIRS, "exam", int.from_bytes(seed))
    ]
