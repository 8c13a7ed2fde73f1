"""Chapter 01's trusted checks: points for behaviour on drawn inputs, each mistake named."""

from __future__ import annotations

import random

import pytest
import torch
from answers_ch01 import CELLS, IMPORTS, MUTANTS, NOT_BY_HAND, RIGHT, stub_code
from local_student import LocalStudent
from trusting import HOSTILE, SEEDS, Raw, earned, lost, outcomes, points_of, total

from autograder.checks import ch01 as trusted
from autograder.checks import checks_of
from loralab.checks import ch01

POINTS = points_of("01")
GOOD = "\n".join(CELLS.values())


def student(code: str) -> LocalStudent:
    return LocalStudent.of(code, **IMPORTS)


def grade(exercise: str, code: str, seed: str = "a"):
    return outcomes("01", exercise, student(code), seed)


def test_every_exercise_of_the_chapter_has_a_trusted_check():
    assert set(checks_of("01")) == set(POINTS) == set(ch01.EXERCISES)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("exercise", POINTS)
def test_the_solution_earns_all_points(exercise, seed):
    found = grade(exercise, CELLS[exercise], seed)
    assert earned(found) == total(found) == POINTS[exercise], lost(found)


@pytest.mark.parametrize("exercise", POINTS)
def test_the_stub_earns_nothing(exercise):
    found = grade(exercise, stub_code(exercise))
    assert {one.error.kind for one in found} == {"unsolved"}


@pytest.mark.parametrize("exercise, code", [(e, c) for e, codes in RIGHT.items() for c in codes])
def test_other_right_answers_earn_all_points(exercise, code):
    for seed in SEEDS:
        found = grade(exercise, code, seed)
        assert earned(found) == total(found), lost(found)


@pytest.mark.parametrize("exercise, code", NOT_BY_HAND.items())
def test_a_library_that_solves_it_is_switched_off(exercise, code):
    found = grade(exercise, code)
    assert earned(found) == 0
    assert {one.error.kind for one in found} == {"masked"}


# What each typical mistake still earns, where it is not nothing.
PARTIAL = {
    ("weight_bytes", "bits"): {2},
    ("weight_bytes", "one_size"): {2},
    ("weight_bytes", "gib"): {1},
    ("weight_bytes", "thousand"): {2},
    ("training_state_bytes", "master"): {2},
    ("training_state_bytes", "working"): {2},
    ("training_state_bytes", "sgd"): {0, 2},
    ("training_state_bytes", "fp32_moments"): {3.5},
    ("lora_state_bytes", "dtype"): {1},
    ("qlora_weight_bytes", "double"): {2},
    ("qlora_weight_bytes", "nested"): {2},
    ("qlora_weight_bytes", "tables"): {0, 2},
    ("table_settings", "sixteen"): {2},
    ("table_settings", "low"): {2},
    ("table_settings", "high"): {2},
    ("table_settings", "two_changes"): {2},
    ("table_settings", "no_effect"): {2},
    ("table_settings", "unusual"): {2},
    ("cheapest_fit", "overhead"): {2},
    ("cheapest_fit", "decimal"): {2.5},
    ("cheapest_fit", "none"): {2.5},
}
# Three copies whatever the optimizer are wrong in several ways: each part says what it sees.
ALSO = {("training_state_bytes", "weights"): ("sgd", "master", "working")}


@pytest.mark.parametrize("exercise, symptom, code", MUTANTS)
def test_each_typical_mistake_costs_its_points_and_is_named(exercise, symptom, code):
    expected = ch01.EXERCISES[exercise].symptoms[symptom]
    for seed in SEEDS:
        found = grade(exercise, code, seed)
        assert earned(found) in PARTIAL.get((exercise, symptom), {0}), lost(found)
        named = [one.symptom for one in found if one.error]
        assert named[0] == expected, lost(found)
        also = {ch01.EXERCISES[exercise].symptoms[key].sees
                for key in ALSO.get((exercise, symptom), ())}  # fmt: skip
        assert {s.sees for s in named if s} <= {expected.sees, *also}, lost(found)


CHEATS = [
    ("weight_bytes", "weight_bytes = lambda n, d: 2000\nin_gb = in_gib = lambda n: 5.0"),
    ("weight_bytes", "weight_bytes = lambda n, d: n\nin_gb = in_gib = lambda n: n"),
    ("training_state_bytes", "training_state_bytes = lambda n, p, o: 16 * n"),
    ("training_state_bytes", "training_state_bytes = lambda n, p, o: 8 * n"),
    ("training_state_bytes",
     "training_state_bytes = lambda n, p, o: n * (16 if o == 'adamw' else 8)"),
    ("training_state_bytes",
     "training_state_bytes = lambda n, p, o: n * (4 if p == 'bf16' else 8)"),
    ("training_state_bytes", "training_state_bytes = lambda n, p, o: 8000"),
    ("lora_state_bytes", "lora_state_bytes = lambda a, b, c, d: 4 * a + 16 * b"),
    ("lora_state_bytes", "lora_state_bytes = lambda a, b, c, d: 4160"),
    ("qlora_weight_bytes", "qlora_weight_bytes = lambda s, n, d, q: 464"),
    ("qlora_weight_bytes", "qlora_weight_bytes = lambda s, n, d, q: sum(s) // 2 + 2 * n"),
    ("table_settings", "table_settings = lambda: {k: ({}, {}) for k in ('full', 'lora', 'qlora')}"),
    ("cheapest_fit", "cheapest_fit = lambda *a: None"),
    *[("cheapest_fit", f"cheapest_fit = lambda *a: {option}") for option in ch01.OPTIONS],
]  # fmt: skip


@pytest.mark.parametrize("exercise, code", CHEATS)
def test_whoever_ignores_the_arguments_earns_nothing(exercise, code):
    for seed in SEEDS:
        found = grade(exercise, code, seed)
        assert earned(found) == 0, lost(found)


def test_the_inputs_of_the_visible_check_earn_nothing():
    """A function that knows only what the visible check asks."""
    for name in ("training_state_bytes", "lora_state_bytes", "qlora_weight_bytes", "cheapest_fit"):
        right, known = student(GOOD).space[name], {}

        def note(*given, right=right, known=known):
            return known.setdefault(repr(given), right(*given))

        getattr(ch01, name)(note)
        echo = {name: lambda *given, known=known: known.get(repr(given), 0)}
        assert earned(outcomes("01", name, LocalStudent(echo))) == 0, name


def test_two_seeds_draw_different_inputs():
    for exercise in set(POINTS) - {"table_settings"}:
        every = [student(GOOD) for _ in SEEDS]
        for one, seed in zip(every, SEEDS, strict=True):
            outcomes("01", exercise, one, seed)
        assert len({repr(one.asked) for one in every}) == len(SEEDS), exercise


def test_a_chapter_asks_few_questions():
    one = student(GOOD)
    for exercise in POINTS:
        outcomes("01", exercise, one)
    assert len(one.asked) <= 40


def test_labels_hold_nothing_that_is_drawn():
    for exercise in POINTS:
        labels = {tuple(part.label for part in grade(exercise, CELLS[exercise], seed))
                  for seed in SEEDS}  # fmt: skip
        assert len(labels) == 1 and all(labels.pop())


def test_no_check_prints(capfd):
    for exercise in POINTS:
        grade(exercise, CELLS[exercise])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("exercise", POINTS)
def test_whatever_comes_back_is_a_verdict(exercise, value):
    assert earned(outcomes("01", exercise, Raw(value))) == 0


def test_the_formula_for_large_models_holds_for_counted_small_ones():
    for seed in SEEDS:
        for double in (False, True):
            for model in trusted._models(random.Random(seed), double):
                again = ch01.Quantised.computed(*model[:4])
                assert again.n_bytes == model.n_bytes


@pytest.mark.parametrize("number", range(40))
def test_every_draw_tells_the_mistakes_apart(number):
    """Cases to choose a method for: each kind does what its name says, for whatever seed."""
    cases = trusted.fit_cases(random.Random(number))
    chosen = {kind: ch01.choices(*case) for kind, case in cases.items()}
    right = {kind: options["right"][0] for kind, options in chosen.items()}
    assert set(cases) == {"tight", "tighter", "roomy", "overhead", "decimal", "nothing"}
    for kind in set(cases) - {"roomy"}:
        assert right[kind] not in chosen[kind]["activations"], kind
        assert kind == "tight" or right[kind] != right["tight"], kind
    assert right["overhead"] not in chosen["overhead"]["overhead"]
    assert right["decimal"] not in chosen["decimal"]["decimal"]
    assert right["nothing"] is None and not right["roomy"][1]


def test_dtypes_may_come_back_as_their_names():
    """torch dtypes cross the border as text."""
    code = "def table_settings():\n    return {'full': ({}, dict(dtype=torch.float32))}"
    found = grade("table_settings", code)
    assert earned(found) == 1, lost(found)
    assert torch.float32 == ch01._setting("full", "dtype", "torch.float32")
