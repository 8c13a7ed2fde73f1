"""Follow every tensor storage from the operation that makes it until it is freed."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loralab.memory.ledger import Told


class LiveStorages(TorchDispatchMode):
    """Tells a ledger or a trace of the storages that operations make, and when each is freed.

    `kind` is what new storages are put down to; the caller changes it as the program goes on.
    `hidden(function, arguments, named)` says how many bytes an operation's kernel takes inside,
    which no tensor shows.
    """

    def __init__(
        self,
        told: Told,
        *,
        kind: str = "temporary",
        hidden: Callable[..., int] = lambda function, arguments, named: 0,
    ):
        super().__init__()
        self.told, self.kind, self.hidden = told, kind, hidden
        self._known: dict[int, tuple[int, str] | None] = {}  # number and kind; None: left out
        self._last = 0

    def add(
        self, tensor: torch.Tensor, kind: str | None = None, function: object = None
    ) -> None:
        """Count a tensor's storage, or put it down to another kind if it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            # What a finalizer calls stays alive until then, and with it all that it knows of.
            weakref.finalize(storage, _freed, weakref.ref(self), key)
            kind = kind or self.kind
            number = self._next()
            self.told.made(number, storage.nbytes(), kind, function)
            self._known[key] = number, kind
        elif kind is not None and (known := self._known[key]) is not None and known[1] != kind:
            self.told.renamed(known[0], kind)
            self._known[key] = known[0], kind

    def leave_out(self, tensor: torch.Tensor) -> None:
        """Take a counted tensor's storage off for good: it is in another memory."""
        key = tensor.untyped_storage()._cdata
        if (known := self._known[key]) is not None:
            self.told.freed(known[0])
        self._known[key] = None

    def forget(self, key: int) -> None:
        """A storage is freed."""
        if (known := self._known.pop(key)) is not None:
            self.told.freed(known[0])

    def _next(self) -> int:
        self._last += 1
        return self._last

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.prim.device.default:  # more than half of all calls
            return args[0].device
        kwargs = kwargs or {}
        scratch = None
        if inside := self.hidden(function, args, kwargs):
            scratch = self._next()
            self.told.made(scratch, inside, self.kind, function)
        result = function(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                self.add(leaf, function=function)
        if scratch is not None:
            self.told.freed(scratch)
        return result


def _freed(storages: weakref.ref[LiveStorages], key: int) -> None:
    if (found := storages()) is not None:
        found.forget(key)
