"""A training step written down, to be played as often as a training repeats it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from loralab.memory.ledger import Ledger

Event = tuple[Any, ...]  # the name of a method of `Ledger`, and what it is given
AGAIN = 1 << 40  # added to a storage's number whenever the step that makes it is played again


class Trace:
    """What a `Ledger` would be told, in parts that have names.

    `where(function)` is kept with each storage made: where in the program it is, and the function
    that makes it. `parts`: events by the name of their part.
    """

    def __init__(self, where: Callable[[Any], Any]):
        self.parts: dict[str, list[Event]] = {}
        self.where, self.repeats_after, self._last = where, 0, 0

    def begin(self, part: str, *, repeats: bool = False) -> None:
        """What follows belongs to that part. `repeats`: storages made from here on are made anew
        each time that their part is played; those before are there once."""
        self._now = self.parts.setdefault(part, [])
        if repeats:
            self.repeats_after = self._last

    def made(self, number: int, n_bytes: int, kind: str, where: Any = None) -> None:
        self._last = number
        self._now.append(("made", number, n_bytes, kind, self.where(where)))

    def renamed(self, number: int, kind: str) -> None:
        self._now.append(("renamed", number, kind))

    def freed(self, number: int) -> None:
        self._now.append(("freed", number))

    def cache_emptied(self) -> None:
        self._now.append(("cache_emptied",))

    def play(self, events: Iterable[Event], ledger: Ledger, time: int = 0) -> None:
        """Tell a ledger of these events; `time`: how often the step has been played before."""
        for name, *given in events:
            if given and given[0] > self.repeats_after:
                given[0] += time * AGAIN
            getattr(ledger, name)(*given)
