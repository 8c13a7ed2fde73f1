"""Names: of dtypes, and the nearest valid ones for a name that is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import torch

from loralab.errors import CourseError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """The torch dtype called "fp32", "bf16" or "fp16" (a torch dtype is returned as it is)."""
    return name if isinstance(name, torch.dtype) else DTYPES[one_of(name, DTYPES, "dtype")]


def name_of(dtype: torch.dtype) -> str:
    """The short name of a torch dtype."""
    return next((k for k, v in DTYPES.items() if v == dtype), str(dtype).removeprefix("torch."))


def one_of(name: Any, known: Iterable[str], what: str) -> str:
    """`name`, if it is known. Raises CourseError with the nearest names otherwise."""
    known = list(known)
    if name in known:
        return name
    near = nearest(str(name), known)
    raise CourseError(f"Unknown {what}: {name!r}.", f"Use one of: {', '.join(near)}.")


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The names most like `name`; all of them where they are few or none is like it."""
    known = list(known)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.3)
    return near if near and len(known) > 6 else known
