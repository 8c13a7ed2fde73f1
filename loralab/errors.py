"""Errors that a user can do something about."""

from __future__ import annotations


class CourseError(RuntimeError):
    """Something is wrong that the user can mend: what happened, and what to do.

    Notebooks and the command line show these two lines and no traceback.
    """

    def __init__(self, message: str, remedy: str):
        super().__init__(f"{message}\n→ {remedy}")
        self.message, self.remedy = message, remedy

    def _render_traceback_(self) -> list[str]:
        return [self.message, f"→ {self.remedy}"]
