"""Predictions: written down before a measurement, compared after it, never graded."""

from __future__ import annotations

import math


def compare(name: str, predicted: object, measured: float, unit: str = "") -> None:
    """Print one row: the prediction, the measurement, and how far apart they are.

    `predicted=None` is allowed: an unwritten prediction never stops a notebook.
    The percentage is of the measured value.
    """
    print(row(name, predicted, measured, unit))


def row(name: str, predicted: object, measured: float, unit: str = "") -> str:
    """The row that `compare` prints."""
    measured = float(measured)
    found = f"measured {_show(measured, unit)}"
    if predicted is None:
        return f"{name}: no prediction written · {found}"
    try:
        number = float(predicted)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        return f"{name}: your prediction {predicted!r} is not a number · {found}"
    return f"{name}: you predicted {_show(number, unit)} · {found} · {_verdict(number, measured, unit)}"


def _verdict(predicted: float, measured: float, unit: str) -> str:
    if math.isclose(predicted, measured, rel_tol=1e-9):
        return "exactly right"
    if measured == 0:
        return "off by everything: the measured value is 0"
    if predicted == 0:
        return f"off by {_show(abs(measured), unit)}"
    off = (predicted - measured) / abs(measured)
    return f"off by {abs(off):.1%}, too {'high' if off > 0 else 'low'}".replace("%", " %")


def _show(number: float, unit: str) -> str:
    whole = number.is_integer() or abs(number) >= 1000
    text = f"{number:,.0f}" if whole else f"{number:,.4g}"
    return f"{text} {unit}".strip()
