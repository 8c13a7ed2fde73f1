"""Storages as they are made and freed, counted by kind, with the fullest moment."""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

from loralab.memory.allocator import CachingAllocator, ExactAllocator


class Told(Protocol):
    """Who hears of every storage, by a number of its own, in the order of what happens."""

    def made(self, number: int, n_bytes: int, kind: str, where: Any = None) -> None: ...
    def renamed(self, number: int, kind: str) -> None: ...
    def freed(self, number: int) -> None: ...


class Ledger:
    """`live` and `peak`: bytes of the blocks that an allocator hands out, by default of just the
    bytes asked for. `live_by`, `peak_by`: the same by kind. `peak_at`: the `where` of the storage
    that made the peak.
    """

    def __init__(self, allocator: ExactAllocator | CachingAllocator | None = None):
        self.allocator = allocator or ExactAllocator()
        self.live_by: Counter[str] = Counter()
        self.peak, self.peak_by, self.peak_at = 0, Counter(), None
        self._blocks: dict[int, tuple[Any, str]] = {}

    @property
    def live(self) -> int:
        return self.allocator.allocated

    def made(self, number: int, n_bytes: int, kind: str, where: Any = None) -> None:
        """A storage is made: it is put down to a kind."""
        block = self.allocator.take(n_bytes)
        self._blocks[number] = block, kind
        self.live_by[kind] += block.size
        if self.live > self.peak:
            self.peak, self.peak_by, self.peak_at = self.live, Counter(self.live_by), where

    def renamed(self, number: int, kind: str) -> None:
        """A storage is put down to another kind."""
        block, before = self._blocks[number]
        self._blocks[number] = block, kind
        self.live_by[before] -= block.size
        self.live_by[kind] += block.size

    def freed(self, number: int) -> None:
        block, kind = self._blocks.pop(number)
        self.live_by[kind] -= block.size
        self.allocator.give_back(block)

    def cache_emptied(self) -> None:
        """`torch.cuda.empty_cache()` was called."""
        self.allocator.release_unused()

    def forget_peak(self) -> None:
        """From here on, the peak is that of what follows."""
        self.peak, self.peak_by, self.peak_at = self.live, Counter(self.live_by), None
