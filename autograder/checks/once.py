"""Ask a student's function each question once, however many parts of a check want the answer."""

from __future__ import annotations

from collections.abc import Callable

from autograder.checks import Data, StudentError

# After one of these the next question would meet the same, and some cost many seconds each.
FOR_GOOD = {"missing", "unsolved", "slow", "died"}


def once(function: Callable[..., Data]) -> Callable[..., Data]:
    """`function`, remembering what it returned or how it failed for each set of arguments."""
    known: dict[str, Data | StudentError] = {}
    lost: list[StudentError] = []

    def ask(*positional: object, **named: object) -> Data:
        key = repr((positional, named))
        if key not in known:
            if lost:
                raise lost[0]
            try:
                known[key] = function(*positional, **named)
            except StudentError as error:
                known[key] = error
                lost.extend([error] if error.kind in FOR_GOOD else [])
        found = known[key]
        if isinstance(found, StudentError):
            raise found
        return found

    return ask
