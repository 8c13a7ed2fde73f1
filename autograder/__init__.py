"""LoRA Lab's autograder: what instructors run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autograder.grading.engine import grade

__all__ = ["grade"]


def __getattr__(name: str) -> Any:
    # The engine brings torch along; `autograder --help` needs none of it.
    if name == "grade":
        from autograder.grading.engine import grade

        return grade
    raise AttributeError(name)
