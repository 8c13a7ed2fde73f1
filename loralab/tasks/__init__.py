"""Training tasks made offline from a seed.

Each task gives `Pair`s of prompt and completion, split so that no test prompt is ever a training
prompt, whatever seed draws it.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Pair(NamedTuple):
    """What goes into the model, and what should come out."""

    source: str
    target: str


# A fifth of all possible sources is held out; half of that is kept for examinations.
_SHARES = {"train": range(0, 8), "test": range(8, 9), "exam": range(9, 10)}


def in_split(source: str, split: str) -> bool:
    """Whether this source belongs to `split`: "train", "test" or "exam".

    Decided by the text alone, so that two draws with any two seeds never mix splits.
    """
    return hashlib.sha256(source.encode()).digest()[0] % 10 in _SHARES[split]
