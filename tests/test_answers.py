"""Every chapter's answers against its checks, the visible and the trusted ones.

Right answers pass however they are written, a stub earns nothing, and each typical mistake loses
its points and is named by its symptom in both places.
"""

from __future__ import annotations

import pytest
from answer_sheets import CHAPTERS, Wrong, each, sheet
from trusting import HOSTILE, SEEDS, Raw, earned, lost, outcomes, total

from autograder.checks import checks_of
from loralab.checks import WrongAnswer, help_markdown

EXERCISES = each("points")


def grade(chapter: str, exercise: str, code: str, seed: str = "a"):
    return outcomes(chapter, exercise, sheet(chapter).student(code), seed)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_exercise_has_points_symptoms_and_a_trusted_check(chapter):
    one = sheet(chapter)
    assert set(one.points) == set(one.cells) == set(one.check_cells) == set(one.exercises)
    assert set(one.points) == set(checks_of(chapter)) - set(one.by_file)
    for exercise in one.check.EXERCISES.values():
        text = help_markdown(exercise)
        assert text.count("<details>") == len(exercise.hints) + len(exercise.symptoms)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_symptom_has_a_wrong_answer(chapter):
    one = sheet(chapter)
    named = {(wrong.exercise, wrong.symptom) for wrong in one.wrong}
    assert named == {(e, s) for e, known in one.exercises.items() for s in known.symptoms}


# --- the visible checks --------------------------------------------------------------------------


@pytest.mark.parametrize("chapter, item", EXERCISES)
def test_the_solution_passes_with_one_line_and_no_noise(chapter, item, capfd):
    one, exercise = sheet(chapter), item[0]
    one.run_visible_check(exercise, one.cells[exercise])
    out, err = capfd.readouterr()
    number = one.check.EXERCISES[exercise].number
    assert out.startswith(f"OK: exercise {number}") and out.count("\n") == 1 and err == ""


@pytest.mark.parametrize("chapter, item", EXERCISES)
def test_the_stub_stays_a_not_implemented_error(chapter, item):
    one = sheet(chapter)
    with pytest.raises(NotImplementedError):
        one.run_visible_check(item[0], one.stub(item[0]))


@pytest.mark.parametrize("chapter, answer", each("right"))
def test_other_right_answers_pass(chapter, answer):
    sheet(chapter).run_visible_check(*answer)


@pytest.mark.parametrize("chapter, wrong", each("wrong"))
def test_each_typical_mistake_is_named(chapter, wrong: Wrong):
    one = sheet(chapter)
    with pytest.raises(WrongAnswer) as caught:
        one.run_visible_check(wrong.exercise, wrong.code)
    expected = one.check.EXERCISES[wrong.exercise].symptoms[wrong.symptom]
    assert caught.value.symptom == expected, str(caught.value)


# --- the trusted checks --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("chapter, item", EXERCISES)
def test_the_solution_earns_all_points(chapter, item, seed):
    exercise, points = item
    found = grade(chapter, exercise, sheet(chapter).cells[exercise], seed)
    assert earned(found) == total(found) == points, lost(found)


@pytest.mark.parametrize("chapter, item", EXERCISES)
def test_the_stub_earns_nothing(chapter, item):
    found = grade(chapter, item[0], sheet(chapter).stub(item[0]))
    assert {one.error.kind for one in found} == {"unsolved"}


@pytest.mark.parametrize("chapter, answer", each("right"))
def test_other_right_answers_earn_all_points(chapter, answer):
    for seed in SEEDS:
        found = grade(chapter, *answer, seed)
        assert earned(found) == total(found), lost(found)


@pytest.mark.parametrize("chapter, answer", each("not_by_hand"))
def test_a_library_that_solves_it_is_switched_off(chapter, answer):
    found = grade(chapter, *answer)
    assert earned(found) == 0
    assert {one.error.kind for one in found} == {"masked"}


@pytest.mark.parametrize("chapter, wrong", each("wrong"))
def test_each_typical_mistake_costs_its_points_and_is_named(chapter, wrong: Wrong):
    symptoms = sheet(chapter).check.EXERCISES[wrong.exercise].symptoms
    for seed in SEEDS:
        found = grade(chapter, wrong.exercise, wrong.code, seed)
        assert earned(found) in wrong.earns, lost(found)
        assert earned(found) < total(found)
        named = [one.symptom for one in found if one.error]
        assert named[0] == symptoms[wrong.symptom], lost(found)
        allowed = {symptoms[key].sees for key in (wrong.symptom, *wrong.also)}
        assert {s.sees for s in named if s} <= allowed, lost(found)


@pytest.mark.parametrize("chapter, cheat", each("cheats"))
def test_whoever_ignores_the_arguments_earns_nothing(chapter, cheat):
    for seed in SEEDS:
        found = grade(chapter, *cheat, seed)
        assert earned(found) == 0, lost(found)


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("chapter, item", EXERCISES)
def test_whatever_comes_back_is_a_verdict(chapter, item, value):
    assert earned(outcomes(chapter, item[0], Raw(value))) == 0


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_labels_hold_nothing_that_is_drawn(chapter):
    one = sheet(chapter)
    for exercise, code in one.cells.items():
        labels = {tuple(part.label for part in grade(chapter, exercise, code, seed))
                  for seed in SEEDS}  # fmt: skip
        assert len(labels) == 1 and all(labels.pop()), exercise


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_asks_few_questions(chapter):
    student = sheet(chapter).student("\n".join(sheet(chapter).cells.values()))
    for exercise in sheet(chapter).points:
        outcomes(chapter, exercise, student)
    assert len(student.asked) <= 60


@pytest.mark.parametrize("chapter, item", EXERCISES)
def test_no_trusted_check_prints(chapter, item, capfd):
    grade(chapter, item[0], sheet(chapter).cells[item[0]])
    assert capfd.readouterr() == ("", "")
