"""Follow every tensor storage from the operation that makes it until it is freed."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA_BLOCK = 512  # PyTorch's CUDA allocator hands out multiples of this many bytes


@dataclass(frozen=True)
class Highest:
    """The fullest moment: bytes, bytes by kind, and what `where` said of it."""

    bytes: int
    by: Counter[str]
    at: Any


class LiveStorages(TorchDispatchMode):
    """Adds up the storages that operations make, by kind, and takes them off when they are freed.

    `block`: sizes are rounded up to multiples of this many bytes. `live` and `peak` are bytes;
    `live_by` and `peak_by` are the same by kind. `kind` is what new storages are put down to; the
    caller changes it as the program goes on. `hidden(function, arguments, named)` says how many
    bytes an operation's kernel takes inside, which no tensor shows. `where()` is asked at every new
    peak.
    """

    def __init__(
        self,
        *,
        block: int = 1,
        kind: str = "temporary",
        hidden: Callable[..., int] = lambda function, arguments, named: 0,
        where: Callable[[object], object] = lambda function: None,
    ):
        super().__init__()
        self.block, self.kind, self.hidden, self.where = block, kind, hidden, where
        self.live, self.live_by = 0, Counter()
        self.peak, self.peak_by, self.peak_at = 0, Counter(), None
        self._kinds: dict[int, tuple[str, int]] = {}

    def forget_peak(self) -> None:
        """From here on, the peak is that of what follows."""
        self.peak, self.peak_by, self.peak_at = self.live, Counter(self.live_by), None

    def highest(self) -> Highest:
        """The fullest moment so far."""
        return Highest(self.peak, Counter(self.peak_by), self.peak_at)

    def consider(self, moment: Highest, more_by: Mapping[str, int]) -> None:
        """Make an earlier moment the peak if it is, with what was alive then beside `moment`."""
        full = moment.bytes + sum(more_by.values())
        if full > self.peak:
            self.peak, self.peak_by, self.peak_at = full, moment.by + Counter(more_by), moment.at

    def add(self, tensor: torch.Tensor, kind: str | None = None) -> None:
        """Count a tensor's storage, or put it down to another kind if it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._kinds.get(key)
        if known is None:
            size = -(-storage.nbytes() // self.block) * self.block
            # What a finalizer calls stays alive until then, and with it all that it knows of.
            weakref.finalize(storage, _freed, weakref.ref(self), key)
            self.live += size
        elif kind is None or kind == known[0]:
            return
        else:
            size = known[1]
            self.live_by[known[0]] -= size
        kind = kind or self.kind
        self._kinds[key] = kind, size
        self.live_by[kind] += size

    def leave_out(self, tensor: torch.Tensor) -> None:
        """Take a counted tensor's storage off for good: it is in another memory."""
        key = tensor.untyped_storage()._cdata
        kind, size = self._kinds[key]
        self._kinds[key] = kind, 0
        self.live -= size
        self.live_by[kind] -= size

    def forget(self, key: int) -> None:
        """A storage is freed."""
        kind, size = self._kinds.pop(key)
        self.live -= size
        self.live_by[kind] -= size

    def _look(self, function: object, inside: int) -> None:
        if self.live + inside > self.peak:
            self.peak = self.live + inside
            self.peak_by = Counter(self.live_by)
            self.peak_by[self.kind] += inside
            self.peak_at = self.where(function)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.prim.device.default:  # more than half of all calls
            return args[0].device
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                self.add(leaf)
        self._look(function, self.hidden(function, args, kwargs))
        return result


def _freed(storages: weakref.ref[LiveStorages], key: int) -> None:
    if (found := storages()) is not None:
        found.forget(key)
