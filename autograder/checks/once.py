"""Ask a student's function each question once, however many parts of a check want the answer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from hashlib import sha256

import numpy as np
import torch

from autograder.checks import Data, StudentError

# After one of these the next question would meet the same, and some cost many seconds each.
FOR_GOOD = {"missing", "unsolved", "slow", "died"}


def once(function: Callable[..., Data]) -> Callable[..., Data]:
    """`function`, remembering what it returned or how it failed for each set of arguments."""
    known: dict[Hashable, Data | StudentError] = {}
    lost: list[StudentError] = []

    def ask(*positional: object, **named: object) -> Data:
        key = _key((positional, named))
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


def _key(given: object) -> Hashable:
    """Equal for equal arguments only: the repr of an array leaves digits and entries out."""
    if isinstance(given, torch.Tensor):
        flat = given.detach().cpu().contiguous().reshape(-1)
        return str(given.dtype), given.shape, sha256(flat.view(torch.uint8).numpy()).digest()
    if isinstance(given, np.ndarray):
        return str(given.dtype), given.shape, sha256(np.ascontiguousarray(given)).digest()
    if isinstance(given, Mapping):
        return tuple((str(name), _key(one)) for name, one in given.items())
    if isinstance(given, list | tuple):
        return tuple(map(_key, given))
    return repr(given)
