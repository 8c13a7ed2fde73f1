"""What others have measured, and what formula and simulation predict at the settings they state.

The measurements are facts with their sources (`recorded/published_memory.json`). The predictions
beside them are stored by `python -m loralab.memory.compare`, with the versions that gave them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from loralab.memory.formula import estimate
from loralab.memory.result import RESERVED, GiB
from loralab.paths import RECORDED

MEASURED = RECORDED / "published_memory.json"
PREDICTED = RECORDED / "published_predictions.json"


def measurements() -> list[dict[str, Any]]:
    """Every published measurement, each with source, settings and the stored predictions.

    Rows gain "formula" and "simulated": bytes of allocated memory, and "simulated_reserved"; None
    where the source does not state enough (then "settings" is None and "reason" says what is
    missing). Where a setting is
    only an upper bound, "at_least" has the lower one, and "formula_at_least" and
    "simulated_at_least" are the predictions there.
    """
    return _rows(lambda row: True)


def published() -> list[dict[str, Any]]:
    """Published measurements of models of about 7B parameters, each with source and settings.

    As in `measurements`; every row also gains "predicted": the `Estimate` at the row's settings,
    or None where the source does not state enough of them.
    """
    rows = _rows(lambda row: row.get("chapter"))
    return _estimated(sorted(rows, key=lambda row: row["id"]))


def fully_stated_runs() -> list[dict[str, Any]]:
    """Fifteen runs whose every setting is known, with allocated and reserved peaks.

    As in `published`, with `allocated_gib` and `reserved_gib`.
    """
    rows = _estimated(_rows(lambda row: row.get("fully_stated")))
    for row in rows:
        row["allocated_gib"], row["reserved_gib"] = row["bytes"] / GiB, row["reserved_bytes"] / GiB
    return rows


def left_out() -> dict[str, int]:
    """How many of the collected figures are not among the rows, by why."""
    return json.loads(MEASURED.read_text("utf-8"))["left_out"]


def versions() -> dict[str, str]:
    """The libraries that gave the stored predictions."""
    return json.loads(PREDICTED.read_text("utf-8"))["versions"]


def reserved_range(row: Mapping[str, Any]) -> tuple[int, int]:
    """From where to where a row's reserved memory is expected, in bytes, by its simulation.

    Where a setting is only known to lie between two bounds, from the low end of one to the high
    end of the other.
    """
    low, high = RESERVED
    return (
        round(low * row.get("simulated_at_least", row["simulated"])),
        round(high * row["simulated"]),
    )


def measured_rows() -> list[dict[str, Any]]:
    """The measurements alone, as they are stored."""
    return json.loads(MEASURED.read_text("utf-8"))["rows"]


def _rows(wanted: Callable[[Mapping[str, Any]], Any]) -> list[dict[str, Any]]:
    predictions = json.loads(PREDICTED.read_text("utf-8"))["rows"]
    nothing = {"formula": None, "simulated": None, "simulated_reserved": None}
    return [row | predictions.get(row["id"], nothing) for row in measured_rows() if wanted(row)]


def _estimated(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        stated = row["settings"]
        row["predicted"] = estimate(row["model"], row["method"], **stated) if stated else None
    return rows
