"""Chapter 00's visible check: right answers pass however written, each mistake is named."""

import pytest
from answers_ch00 import RIGHT, WRONG

from loralab.checks import WrongAnswer, ch00
from loralab.checks import ch00 as check


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass_with_one_line(name, capsys):
    check.low_rank_parameters(RIGHT[name])
    out, err = capsys.readouterr()
    assert out.startswith("OK: exercise 0.1") and out.count("\n") == 1 and err == ""


@pytest.mark.parametrize("symptom, answer", [(s, a) for s, every in WRONG.items() for a in every])
def test_wrong_answers_are_named_by_their_symptom(symptom, answer):
    with pytest.raises(WrongAnswer) as caught:
        check.low_rank_parameters(answer)
    expected = ch00.LOW_RANK_PARAMETERS.symptoms[symptom] if symptom else None
    assert caught.value.symptom is expected


def test_every_symptom_has_its_wrong_answer():
    assert set(ch00.LOW_RANK_PARAMETERS.symptoms) == set(WRONG) - {None}


def test_the_stub_is_not_an_answer():
    def stub(*shape):
        raise NotImplementedError("Exercise 0.1: write low_rank_parameters")

    with pytest.raises(NotImplementedError, match="Exercise 0.1"):
        check.low_rank_parameters(stub)
