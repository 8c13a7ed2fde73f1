"""Chapter 05's trusted checks: points for behaviour on drawn models and languages."""

import os
import random
import re
import subprocess
import sys

import pytest
import torch
from answers_ch05 import COMPUTE, FUNCTIONS, NEARLY, RIGHT, WRONG, found
from local_student import LocalStudent
from trusting import HOSTILE, SEEDS, Raw, earned, lost, outcomes, points_of, total

from autograder.checks import ch05 as trusted
from autograder.checks import checks_of
from loralab import hardware, recorded_runs
from loralab.checks import ch05 as check
from loralab.paths import PROJECT
from loralab.tasks.language import Language

# Graded by its files alone.
POINTS = {name: p for name, p in points_of("05").items() if name != "trained_adapter"}
SOURCE = (PROJECT / "solutions" / "05_qlora_training.py").read_text("utf-8")
CELLS = dict(re.findall(r'^# %% exercise="(\w+)"\n(.*?)(?=^# %%)', SOURCE, re.S | re.M))


@pytest.fixture(autouse=True)
def grading_hardware(monkeypatch):
    """These students run on this machine, not in the sandbox."""
    monkeypatch.setattr(trusted, "COMPUTE", COMPUTE)


def imports():
    from peft import LoraConfig
    from torch import nn
    from transformers import BitsAndBytesConfig

    from loralab import memory

    return {"torch": torch, "nn": nn, "memory": memory, "here": hardware.detect(),
            "Language": Language, "BitsAndBytesConfig": BitsAndBytesConfig,
            "LoraConfig": LoraConfig}  # fmt: skip


def solved(stub: str = "") -> LocalStudent:
    """The solution's cells, with `stub` left unsolved."""
    cells = {name: CELLS[name] for name in POINTS}
    if stub:
        cells[stub] = re.sub(
            r"^( *)### BEGIN SOLUTION.*?### END SOLUTION", r"\1raise NotImplementedError",
            CELLS[stub], flags=re.S | re.M)  # fmt: skip
    return LocalStudent.of("\n".join(cells.values()), **imports())


def grade(exercise, answer, seed="a"):
    return outcomes("05", exercise, LocalStudent({FUNCTIONS.get(exercise, exercise): answer}), seed)


def test_every_exercise_of_the_chapter_has_a_trusted_check():
    assert set(POINTS) <= set(checks_of("05")) <= set(check.EXERCISES)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("exercise", POINTS)
def test_the_solution_earns_all_points(exercise, seed):
    given = outcomes("05", exercise, solved(), seed)
    assert earned(given) == total(given) == POINTS[exercise], lost(given)


@pytest.mark.parametrize("exercise", POINTS)
def test_the_stub_earns_nothing(exercise):
    given = outcomes("05", exercise, solved(stub=exercise))
    assert {one.error.kind for one in given} == {"unsolved"}


@pytest.mark.parametrize("exercise, answer", [(e, a) for e, every in RIGHT.items() for a in every])
def test_other_right_answers_earn_all_points(exercise, answer):
    for seed in SEEDS:
        given = grade(exercise, answer, seed)
        assert earned(given) == total(given), lost(given)


# What each mistake still earns, where it is not nothing.
PARTIAL = {
    ("format_example", "no_space"): {1},
    ("format_example", "extra"): {1},
    ("format_example", "other_prompt"): {2},
    ("quantization_config", "fp4"): {0, 1},
    ("quantization_config", "unknown_type"): {1},
    ("quantization_config", "no_double"): {2},
    ("quantization_config", "compute"): {2},
    ("lora_config", "alpha"): {2},
    ("lora_config", "rank"): {2},
    ("lora_config", "targets"): {2},
    ("lora_config", "task"): {2},
    **{("predicted_run", key): {2} for key in check.EXERCISES["predicted_run"].symptoms},
    **{("reading", key): {2} for key in check.conclusions()},
    ("reading", "undecided"): {0, 2},
}
# Two mistakes in one answer, a part for each.
ALSO = {("quantization_config", "fp4"): {"no_double"}}


@pytest.mark.parametrize(
    "exercise, symptom, answer",
    [(n, s, a) for n, by in WRONG.items() for s, every in by.items() if s for a in every],
)
def test_each_typical_mistake_costs_its_points_and_is_named(exercise, symptom, answer):
    table = check.EXERCISES[exercise].symptoms
    for seed in SEEDS:
        given = grade(exercise, answer, seed)
        assert earned(given) in PARTIAL.get((exercise, symptom), {0}), lost(given)
        named = [one.symptom for one in given if one.error]
        assert named[0] is table[symptom], lost(given)
        also = {table[key].sees for key in ALSO.get((exercise, symptom), ())}
        assert {s.sees for s in named} <= {table[symptom].sees, *also}, lost(given)


@pytest.mark.parametrize(
    "exercise, answer", [(n, a) for n, by in WRONG.items() for a in by.get(None, ())]
)
def test_other_mistakes_cost_points_without_a_name(exercise, answer):
    given = grade(exercise, answer)
    assert earned(given) < total(given)
    assert {one.symptom for one in given if one.error} <= {None}


def test_a_head_that_is_known_by_name_is_not_found_in_every_model():
    (by_name,) = NEARLY["linear_names"]
    given = grade("linear_names", by_name)
    assert earned(given) == 2
    assert given[-1].symptom is check.EXERCISES["linear_names"].symptoms["head"]


def read(where, default, control, quantised):
    return lambda: dict(where=where, default=default, control=control, quantised=quantised)


@pytest.mark.parametrize(
    "exercise, answer",
    [
        ("reading", read(True, True, True, True)),
        ("reading", read(False, False, False, False)),
        ("reading", lambda: {key: not value for key, value in check.conclusions().items()}),
        ("linear_names", lambda model: {"dense", "fc1", "fc2", "q_proj", "k_proj", "v_proj"}),
        ("format_example", lambda language, english, translation: {"prompt": "", "completion": ""}),
        ("lora_config", lambda model: __import__("peft").LoraConfig()),
        ("quantization_config", lambda: __import__("transformers").BitsAndBytesConfig()),
        ("predicted_run", lambda: {"trainable": 0, "held_bytes": 0}),
    ],
)  # fmt: skip
def test_defaults_and_constants_earn_nothing(exercise, answer):
    for seed in SEEDS:
        given = grade(exercise, answer, seed)
        assert earned(given) == 0, lost(given)


def test_guessing_truths_earns_one_point_of_four_on_average():
    every = [read(*(bool(n >> bit & 1) for bit in range(4))) for n in range(16)]
    assert sum(earned(grade("reading", one)) for one in every) == 16


def test_each_pair_of_statements_has_a_true_and_a_false_one():
    """The scoring leans on it; a new recording could change it."""
    right = recorded_runs.conclusions(recorded_runs.recorded())
    assert sorted(key for pair in trusted.PAIRS for key in pair) == sorted(right)
    assert all({right[key] for key in pair} == {True, False} for pair in trusted.PAIRS)


def test_the_sentences_of_the_visible_check_earn_nothing():
    known = {}

    def note(language, english, translation):
        known[english] = {"prompt": language.prompt(english), "completion": f" {translation}"}
        return known[english]

    check.format_example(note)
    given = grade("format_example", lambda la, e, t: known.get(e, {"prompt": "", "completion": ""}))
    assert earned(given) == 0


def test_two_seeds_draw_different_inputs():
    for exercise in ("format_example", "linear_names", "lora_config"):
        every = [solved() for _ in SEEDS]
        for one, seed in zip(every, SEEDS, strict=True):
            outcomes("05", exercise, one, seed)
        assert len({repr(one.asked) for one in every}) == len(SEEDS), exercise


def test_a_chapter_asks_few_questions():
    one = solved()
    for exercise in POINTS:
        outcomes("05", exercise, one)
    assert len(one.asked) <= 40


def test_labels_hold_nothing_that_is_drawn():
    for exercise in POINTS:
        labels = {tuple(part.label for part in outcomes("05", exercise, solved(), seed))
                  for seed in SEEDS}  # fmt: skip
        assert len(labels) == 1 and all(labels.pop())


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("exercise", POINTS)
def test_whatever_comes_back_is_a_verdict(exercise, value):
    assert earned(outcomes("05", exercise, Raw(value))) == 0


KINDS = {"like": trusted.LIKE_LLAMA, "fused": trusted.FUSED, "otherwise": trusted.OTHERWISE}
LLAMAS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("group, kind", [(g, kind) for g, every in KINDS.items() for kind in every])
def test_every_kind_of_model_is_what_its_group_says(group, kind, capfd):
    """Built outside as in the student's process, without a word; and names can't be guessed."""
    _, given, layers = trusted._case(random.Random(0), kind)
    assert found(eval(given.text)) == layers.linear
    if group == "like":
        assert layers.linear == LLAMAS
    else:
        assert layers.linear - LLAMAS
        assert not all(name.endswith("proj") for name in layers.linear)
    assert capfd.readouterr() == ("", "")


def test_made_up_names_are_those_of_the_draw():
    cases = [trusted._made_up(random.Random(seed)) for seed in SEEDS]
    for _, given, layers in cases:
        assert found(eval(given.text)) == layers.linear and len(layers.linear) == 6
        assert layers.head != "lm_head"
    assert not frozenset.intersection(*(layers.linear for _, _, layers in cases))


def test_the_compute_dtype_is_that_of_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.undo()
    code = "from loralab import hardware; print(hardware.detect().compute_dtype)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, cwd=PROJECT, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == str(trusted.COMPUTE), done.stderr
