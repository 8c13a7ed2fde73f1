"""Running a chapter's trusted checks as the engine does, and what the tests want to know of it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autograder.checks import Personal, Student, StudentError, checks_of
from loralab.checks import WrongAnswer
from loralab.paths import PROJECT

SEEDS = ("a", "b", "c")

# What a hostile process may send in place of an answer: data, as the border lets it through.
HOSTILE = (
    None, True, False, 0, -1, 1, float("nan"), float("inf"), -float("inf"), 10**4000, -(10**4000),
    1e308, "", "16", "x" * 10**6, [], [[[]]], [1, 2], ["lora", [1]], ["lora", torch.ones(3)], {},
    ["lora", float("nan")], [["lora"], True], [{}] * 1000, torch.ones(0), torch.ones(2, 2),
    torch.tensor(float("nan")), torch.tensor(1j), torch.tensor(True), torch.ones(1).bfloat16(),
    {"": None}, {"full": None, "lora": [1, 2], "qlora": [{}, []]},
    {"full": [{"batch": "5"}, {}], "lora": [{"seq": torch.ones(2)}, {}],
     "qlora": [{"rank": 10**4000}, {"": []}]},
    {"full": [{"dtype": []}, {}], "lora": [{"targets": [[]]}, {}],
     "qlora": [{"compute_dtype": "nn"}, {"optimizer": {}}]},
    {"full": [{"batch": float("nan")}, {}], "lora": [{"targets": ["q_proj"] * 10**6}, {}],
     "qlora": [{"model": "gpt2"}, {"method": "full"}]},
    {"prompt": 1, "completion": []}, {"prompt": "", "completion": ""},
    {"trainable": None, "held_bytes": {}}, {"trainable": [1], "held_bytes": 10**4000},
    {"where": 1, "default": "False", "control": torch.ones(2), "quantised": []},
    {"kind": "x"}, {"kind": [], "r": [], "lora_alpha": {}, "target_modules": 3, "task_type": 1},
    {"kind": "", "r": 8, "lora_alpha": "16", "use_rslora": [], "target_modules": [[1]],
     "task_type": []},
    {"kind": "", "load_in_4bit": torch.ones(2), "bnb_4bit_quant_type": []},
    {"kind": "", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    {"merged": float("nan"), "separate": 10**4000}, {"merged": [], "separate": torch.ones(2)},
    {"kind": "x", "wrapped": False, "layers": {"a": []}, "weights": {}},
    {"wrapped": False, "layers": {"a": "Linear"}, "weights": {"model.layers.0.mlp.down_proj": 1}},
    [["16-bit", 0.5, True]] * 5, [torch.ones(2, 3), torch.ones(3, 2)], [float("nan")] * 400,
)  # fmt: skip


class Raw:
    """A student whose process sends `value` whatever it is asked, past any encoding."""

    files: Mapping[str, Path] = {}
    parameters: Mapping[str, object] = {}

    def __init__(self, value: Any):
        self._value = value

    def function(
        self, name: str, *, take: str = "answer", masked: Sequence[str] = ()
    ) -> Callable[..., Any]:
        return lambda *positional, **named: self._value

    def value(self, name: str, *, take: str = "answer") -> Any:
        return self._value


@dataclass(frozen=True)
class Outcome:
    """One part: its points, its label, and the error that cost it, if any."""

    points: float
    label: str
    error: WrongAnswer | StudentError | None

    @property
    def symptom(self):
        return getattr(self.error, "symptom", None)


def outcomes(chapter: str, exercise: str, student: Student, seed: str = "a") -> list[Outcome]:
    """Every part of one exercise. An exception that is no verdict is the test's to see."""
    check = checks_of(chapter)[exercise]
    found = []
    for part in check.parts(student, random.Random(f"{seed}:{exercise}"), Personal()):
        error = None
        try:
            part.check()
        except (WrongAnswer, StudentError) as wrong:
            error = wrong
        found.append(Outcome(part.points, part.label, error))
    return found


def earned(found: list[Outcome]) -> float:
    return sum(one.points for one in found if one.error is None)


def total(found: list[Outcome]) -> float:
    return sum(one.points for one in found)


def lost(found: list[Outcome]) -> list[str]:
    """What the student is told of each lost part, in order."""
    return [
        f"{one.label}: {one.symptom.sees if one.symptom else one.error}"
        for one in found if one.error is not None
    ]


def points_of(chapter: str) -> dict[str, float]:
    """The points that the chapter's source gives each exercise."""
    (path,) = (PROJECT / "solutions").glob(f"{chapter}_*.py")
    found = re.findall(r'^# %% check="(\w+)" points=([\d.]+)', path.read_text("utf-8"), re.M)
    return {name: float(points) for name, points in found}
