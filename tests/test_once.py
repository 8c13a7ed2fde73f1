"""A question is asked once, and two questions that differ are two."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autograder.checks import Code, StudentError
from autograder.checks.once import once

LONG = torch.zeros(5000)
PAIRS = [
    (torch.tensor(1.0), torch.tensor(1.0 + 1e-6)),
    (LONG, LONG.index_fill(0, torch.tensor([2500]), 1.0)),
    (torch.zeros(2, 3), torch.zeros(3, 2)),
    (torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)),
    (torch.tensor([]), torch.tensor([], dtype=torch.int64)),
    (np.arange(5000.0), np.arange(5000.0) * (1 + 1e-12)),
    ([torch.tensor(0.1)], [torch.tensor(0.1 + 1e-7)]),
    ({"x": LONG}, {"x": LONG + 1e-9}),
    (Code("torch.float16"), torch.float16),
    (1, 1.0),
    (1, True),
    ("1", 1),
]


@pytest.mark.parametrize("one, other", PAIRS)
def test_questions_that_differ_are_both_asked(one, other):
    asked = []
    ask = once(lambda given: asked.append(given) or len(asked))
    assert [ask(one), ask(other), ask(one), ask(other)] == [1, 2, 1, 2]


def test_names_of_arguments_are_part_of_the_question():
    ask = once(lambda **given: sorted(given))
    assert (ask(a=1), ask(b=1)) == (["a"], ["b"])


def test_a_failure_is_remembered_too():
    asked = []

    def fail(given):
        asked.append(given)
        raise StudentError("raised", "ValueError")

    ask = once(fail)
    for _ in range(2):
        with pytest.raises(StudentError):
            ask(1)
    assert asked == [1]
