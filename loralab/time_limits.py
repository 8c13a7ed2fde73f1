"""How long a cell may run when nbgrader or papermill executes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# nbgrader's own 30 s is too short for a first `import torch` on a busy machine.
DEFAULT_SECONDS = 120


def seconds_for(cell: Mapping[str, Any]) -> int:
    """Seconds that `cell` may take: its own limit (metadata loralab.timeout), else the default."""
    return int(cell["metadata"].get("loralab", {}).get("timeout", DEFAULT_SECONDS))
