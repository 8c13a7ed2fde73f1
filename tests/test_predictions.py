"""A prediction beside its measurement, in one row."""

import math

import pytest
import torch

from loralab import predictions


@pytest.mark.parametrize("predicted, measured, unit, row", [
    (12, 13.5, "GB", "w: you predicted 12 GB · measured 13.5 GB · off by 11.1 %, too low"),
    (50, 40, "", "w: you predicted 50 · measured 40 · off by 25.0 %, too high"),
    (65536, 65536, "parameters",
     "w: you predicted 65,536 parameters · measured 65,536 parameters · exactly right"),
    (None, 13.5, "GB", "w: no prediction written · measured 13.5 GB"),
    ("3 GB", 13.5, "GB", "w: your prediction '3 GB' is not a number · measured 13.5 GB"),
    (math.inf, 1, "s", "w: your prediction inf is not a number · measured 1 s"),
    (torch.tensor(2.0), torch.tensor(4.0), "s",
     "w: you predicted 2 s · measured 4 s · off by 50.0 %, too low"),
    (1, 0, "s", "w: you predicted 1 s · measured 0 s · off by everything: the measured value is 0"),
    (0, 0.004893, "s", "w: you predicted 0 s · measured 0.004893 s · off by 0.004893 s"),
    (None, 22518.4, "", "w: no prediction written · measured 22,518"),
    (0, 0, "s", "w: you predicted 0 s · measured 0 s · exactly right"),
    (-1, -2, "", "w: you predicted -1 · measured -2 · off by 50.0 %, too high"),
])
def test_one_row(predicted, measured, unit, row, capsys):
    predictions.compare("w", predicted, measured, unit)
    assert capsys.readouterr().out == row + "\n"
