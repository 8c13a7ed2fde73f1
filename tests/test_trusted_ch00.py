"""Chapter 00's trusted check: points for behaviour on drawn shapes, and no other way to them."""

import pytest
from answers_ch00 import RIGHT, WRONG
from local_student import LocalStudent
from trusting import HOSTILE, SEEDS, Raw, earned, lost, outcomes, points_of, total

from loralab.checks import ch00 as check

NAME = "low_rank_parameters"


def grade(answer, seed="a"):
    return outcomes("00", NAME, LocalStudent({NAME: answer}), seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_earn_all_points(name, seed):
    found = grade(RIGHT[name], seed)
    assert earned(found) == total(found) == points_of("00")[NAME], lost(found)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("symptom, answer", [(s, a) for s, every in WRONG.items() for a in every])
def test_each_mistake_costs_all_of_it_and_is_named(symptom, answer, seed):
    found = grade(answer, seed)
    expected = check.LOW_RANK_PARAMETERS.symptoms[symptom] if symptom else None
    assert earned(found) == 0
    assert {one.symptom for one in found} == {expected}


def test_one_side_counted_right_earns_one_of_two_points():
    found = grade(lambda i, o, r: r * (i + o) if i >= o else 2 * r * i)
    assert earned(found) == 1


def test_the_shapes_of_the_visible_check_earn_nothing():
    known = {(3, 5, 2): 16, (2048, 512, 8): 20480, (4096, 4096, 8): 65536, (7, 7, 1): 14}
    assert earned(grade(lambda *shape: known.get(shape, 0))) == 0


def test_the_stub_earns_nothing():
    def stub(*shape):
        raise NotImplementedError

    assert {one.error.kind for one in grade(stub)} == {"unsolved"}


def test_two_seeds_draw_different_shapes():
    students = [LocalStudent({NAME: RIGHT["formula"]}) for _ in SEEDS]
    for student, seed in zip(students, SEEDS, strict=True):
        outcomes("00", NAME, student, seed)
    assert len({repr(student.asked) for student in students}) == len(SEEDS)


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:30])
def test_whatever_comes_back_is_a_verdict(value):
    assert earned(outcomes("00", NAME, Raw(value))) == 0
