"""Chapter 01's checks: right answers pass however written, and each typical mistake is named."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from answers_ch01 import ANSWERS, CELLS, MUTANTS, RIGHT, SOURCE, run, solution, stub

from loralab.checks import WrongAnswer, ch01, help_markdown
from loralab.paths import PROJECT


def check(exercise: str, answers: list) -> None:
    getattr(ch01, exercise)(*answers)


def test_every_exercise_has_points_and_they_are_twenty():
    points = dict(re.findall(r'check="(\w+)" points=(\d+)', SOURCE))
    assert set(points) == set(ch01.EXERCISES) == set(CELLS) == set(ANSWERS)
    assert sum(map(int, points.values())) == 20


@pytest.mark.parametrize("exercise", ANSWERS)
def test_the_solution_passes_with_one_line_and_no_noise(exercise, capfd):
    check(exercise, solution(exercise))
    out, err = capfd.readouterr()
    assert out.startswith(f"OK: exercise {ch01.EXERCISES[exercise].number}") and out.count("\n") == 1
    assert err == ""


@pytest.mark.parametrize("exercise", ANSWERS)
def test_the_stub_stays_a_not_implemented_error(exercise):
    with pytest.raises(NotImplementedError):
        check(exercise, stub(exercise))


@pytest.mark.parametrize("exercise", ANSWERS)
def test_help_has_every_hint_and_symptom(exercise):
    found = ch01.EXERCISES[exercise]
    text = help_markdown(found)
    assert text.count("<details>") == len(found.hints) + len(found.symptoms)


def test_checks_write_nothing_to_stderr_in_a_fresh_process():
    """nbgrader gives 0 to a check cell that writes to stderr, and some imports write there."""
    code = "from loralab.checks import ch01\n" + "\n".join(
        f"ch01._counted_lora(torch.{a}, torch.{b}); ch01._counted_nf4(((64, 64),), True)"
        for a, b in (("bfloat16", "float32"), ("float32", "float32"))
    )
    done = subprocess.run(
        [sys.executable, "-c", "import torch\n" + code],
        capture_output=True, text=True, cwd=PROJECT, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("exercise, code", [(e, c) for e, codes in RIGHT.items() for c in codes])
def test_other_right_answers_pass(exercise, code):
    check(exercise, run(code, ANSWERS[exercise]))


@pytest.mark.parametrize("exercise, symptom, code", MUTANTS)
def test_each_typical_mistake_is_named(exercise, symptom, code):
    with pytest.raises(WrongAnswer) as caught:
        check(exercise, run(code, ANSWERS[exercise]))
    found = ch01.EXERCISES[exercise].symptoms
    assert caught.value.symptom == found[symptom], str(caught.value)


def test_every_symptom_has_a_mutant():
    named = {(exercise, symptom) for exercise, symptom, _ in MUTANTS}
    assert named == {(e, s) for e, found in ch01.EXERCISES.items() for s in found.symptoms}


@pytest.mark.parametrize("exercise", ["training_state_bytes", "lora_state_bytes", "qlora_weight_bytes"])
def test_something_that_is_no_number_is_said_so(exercise):
    for given, said in ((None, "None .is there a `return`"), ("12 GB", "str"), ([1, 2], "list")):
        with pytest.raises(WrongAnswer, match=f"should be a number; it gave {said}"):
            check(exercise, [lambda *args, given=given: given])


@pytest.mark.parametrize(
    "given", [None, [], {}, {"full": 1, "lora": 2, "qlora": 3}, {"full": ({}, {})},
              {"full": ({}, {"bacth": 2}), "lora": ({}, {}), "qlora": ({}, {})}],
)  # fmt: skip
def test_malformed_settings_are_wrong_and_no_crash(given):
    with pytest.raises(WrongAnswer):
        ch01.table_settings(lambda: given)


@pytest.mark.parametrize("given", ["lora", 7, ("lora",), ("dora", True), ("lora", True, 1)])
def test_malformed_choices_are_wrong_and_no_crash(given):
    with pytest.raises(WrongAnswer):
        ch01.cheapest_fit(lambda *args: given)


def test_what_the_checks_count_is_what_the_chapter_teaches():
    """4 times the weights in one dtype; 16 bytes a parameter in mixed precision, no saving."""
    for precision, each in (("fp32", 16), ("bf16", 8), ("mixed", 16)):
        parameters, held = ch01._counted_step(precision, "adamw")
        assert held == each * parameters
