"""What others have measured, and the prediction at the settings that they state."""

from __future__ import annotations

import json
from typing import Any

from loralab.memory.formula import estimate
from loralab.paths import RECORDED


def published() -> list[dict[str, Any]]:
    """Published measurements of models of about 7B parameters, each with source and settings.

    Every row gains "predicted": the `Estimate` at the row's settings, or None where the source
    does not state enough of them.
    """
    return _recorded("rows")


def fully_stated_runs() -> list[dict[str, Any]]:
    """Six runs of smaller models whose every setting is known, with allocated and reserved peaks.

    `allocated_gib`, `reserved_gib`, and "predicted" as in `published`.
    """
    return _recorded("allocated_and_reserved")


def _recorded(which: str) -> list[dict[str, Any]]:
    rows = json.loads((RECORDED / "published_7b.json").read_text(encoding="utf-8"))[which]
    for row in rows:
        stated = row["settings"]
        row["predicted"] = estimate(row["model"], row["method"], **stated) if stated else None
    return rows
