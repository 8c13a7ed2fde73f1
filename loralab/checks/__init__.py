"""How an exercise is checked where the student can see it.

One module a chapter (`ch01`, `ch05` …) holds that chapter's `Exercise` objects and one check
function for each, named after the exercise's `grade_id`. A check runs the student's answer on
inputs it shows, and names the *symptom* when the answer is wrong. The help sections of the
notebooks are generated from the same symptoms, so what a check says and what the help explains
cannot drift apart.

Each check is a comparator (`compare_…`), which takes the answer and the cases, raises WrongAnswer
and prints nothing, and a visible check that runs it on fixed cases and says OK. The autograder's
trusted checks run the same comparators on cases of their own. Answers may be hostile data: a
comparator raises WrongAnswer for whatever it is given, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class WrongAnswer(AssertionError):
    """An answer that a check does not accept. Shown to the student without a traceback."""

    def __init__(self, exercise: "Exercise", message: str, symptom: "Symptom | None" = None):
        super().__init__(message)
        self.exercise, self.symptom = exercise, symptom

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet: exercise {self.exercise.number} ({self.exercise.grade_id})", str(self)]


@dataclass(frozen=True)
class Symptom:
    """One typical wrong answer, named by what the student sees.

    `sees`: the heading in the help section and the check's message, in one line.
    `help`: Markdown that leads to the mistake without giving the answer.
    """

    sees: str
    help: str


@dataclass(frozen=True)
class Exercise:
    """A graded exercise: its name, its rising hints, and its symptoms by key."""

    grade_id: str
    number: str
    hints: tuple[str, ...] = ()
    symptoms: Mapping[str, Symptom] = field(default_factory=dict)

    def wrong(self, message: str, symptom: str | None = None) -> WrongAnswer:
        """The error to raise for a wrong answer; `symptom` is a key of `symptoms`."""
        found = self.symptoms[symptom] if symptom else None
        if found:
            message = f"{message}\n  {found.sees}\n  (Below the check there is help of that name.)"
        return WrongAnswer(self, message, found)

    def expect_number(
        self,
        case: str,
        got: object,
        expected: float,
        typical: Mapping[str, float | tuple[float, ...]] | None = None,
        rel_tol: float = 1e-9,
        reveal: bool = True,
    ) -> None:
        """Raise unless `got` equals `expected`.

        `case` is the call as the student would type it. `typical` maps a symptom's key to the
        number (or numbers) that its mistake gives on this case; the first that matches names it.
        `reveal=False` keeps the expected number back and says only in which direction it lies.
        """
        number = as_number(got)
        if number is None:
            raise self.wrong(f"{case} should be a number; it gave {kind_of(got)}.")
        if math.isclose(number, expected, rel_tol=rel_tol):
            return
        for key, mistaken in (typical or {}).items():
            values = mistaken if isinstance(mistaken, tuple) else (mistaken,)
            if any(math.isclose(number, value, rel_tol=max(rel_tol, 1e-9)) for value in values):
                raise self.wrong(f"{case} gave {_show(number)}.", key)
        direction = "too high" if number > expected else "too low"
        said = f"expected {_show(expected)}" if reveal else direction
        raise self.wrong(f"{case} gave {_show(number)}; {said}.")

    def passed(self, note: str = "") -> None:
        """Say that the check passed."""
        print(f"OK: exercise {self.number} ({self.grade_id}){': ' + note if note else ''}")


def kind_of(given: object) -> str:
    """What an answer of the wrong kind is, for the end of a sentence."""
    return "None (is there a `return`?)" if given is None else type(given).__name__


def as_number(given: Any) -> float | None:
    """`given` as a float where it is one number, else None.

    A 0-d tensor or array is a number too; text, bools and longer arrays are not. Integers beyond
    the floats are infinite.
    """
    if isinstance(given, bool | str | bytes) or str(getattr(given, "dtype", "")).endswith("bool"):
        return None
    try:
        return float(given)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError, RuntimeError):
        return None


def as_whole(given: Any) -> int | None:
    """`given` as an int where it is one whole number, else None."""
    number = as_number(given)
    return int(number) if number is not None and number.is_integer() else None


def as_truth(given: Any) -> bool | None:
    """`given` as a bool where it is one (torch's and NumPy's too), else None."""
    if isinstance(given, bool):
        return given
    if getattr(given, "shape", None) == () and str(given.dtype).endswith("bool"):
        return bool(given)
    return None


def shortened(given: object) -> str:
    """`repr` of an answer for a message, cut to a line."""
    # A cut of the text first: the repr of a long one is as long again.
    text = repr(given[:200] if isinstance(given, str | list | tuple) else given)
    return text if len(text) <= 120 else text[:117] + "…"


def _show(number: float) -> str:
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.6g}"


def help_markdown(exercise: Exercise) -> str:
    """The exercise's help as Markdown: hints first, then one entry a symptom."""
    blocks = [
        f"<details><summary>Hint {i}</summary>\n\n{hint}\n\n</details>"
        for i, hint in enumerate(exercise.hints, 1)
    ]
    blocks += [
        f"<details><summary>Help: “{symptom.sees}”</summary>\n\n{symptom.help}\n\n</details>"
        for symptom in exercise.symptoms.values()
    ]
    return "\n\n".join(blocks)
