"""Chapter 08's trusted checks: predictions of drawn settings, the plan, the adapter's file.

What a leaderboard shows is measured here: parameters counted in the file, memory that
`loralab.memory` predicts for the plan's settings, the share of hidden questions that are right.
"""

from __future__ import annotations

import random
from functools import partial

from autograder.checks import Part, Personal, Student, trusted
from autograder.checks.once import once
from loralab.checks import ch08 as visible

GROUPS = (
    ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"], ["up_proj", "down_proj"],
    ["o_proj", "gate_proj", "down_proj"], ["k_proj", "up_proj"],
)  # fmt: skip
PLAN = "__import__('loralab.checks.ch08', fromlist=['*']).plan_data(answer)"


@trusted("predict")
def predict(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """A QLoRA on all linear layers and a LoRA on some of them: both have to be right."""
    ask = once(student.function("predict"))
    cases = []
    for method, targets in (("qlora", "all-linear"), ("lora", draw.choice(GROUPS))):
        settings = {
            "method": method, "r": draw.randrange(2, 33), "lora_alpha": draw.randrange(1, 65),
            "targets": targets, "learning_rate": draw.choice((1e-3, 2e-3, 5e-3)),
            "steps": draw.randrange(20, 400), "batch_size": draw.randrange(2, 25),
        }  # fmt: skip
        cases.append((settings, round(draw.uniform(0.2, 9), 2)))
    compare = partial(visible.compare_predict, ask, cases)
    return [
        Part(1, partial(compare, ("trainable",)), "parameters"),
        Part(2, partial(compare, ("peak_gib",)), "peak"),
        Part(1, partial(compare, ("minutes",)), "minutes"),
    ]


@trusted("plan")
def plan(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """No input to draw: the plan is the student's own."""
    ask = once(student.function("plan", take=PLAN))

    def compare(*which: str) -> None:
        visible.compare_plan(ask(), which)

    return [
        Part(1, partial(compare, "trainable"), "parameters"),
        Part(1, partial(compare, "peak_gib"), "peak"),
        Part(1, partial(compare, "minutes"), "minutes"),
        Part(1, partial(compare, "budget"), "all three within the budget"),
    ]


@trusted("trained_adapter", runs=False)
def trained_adapter(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    # What tries adapters brings a model along: only for those who hand one in.
    from autograder.artifacts import capstone_adapter

    return capstone_adapter.parts(student, draw, personal)
