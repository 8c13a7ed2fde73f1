"""Names of dtypes."""

from __future__ import annotations

import torch

from loralab import memory_names
from loralab.memory_names import one_of

DTYPES = {short: getattr(torch, name) for short, name in memory_names.DTYPES.items()}


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """The torch dtype called "fp32", "bf16" or "fp16" (a torch dtype is returned as it is)."""
    return name if isinstance(name, torch.dtype) else DTYPES[one_of(name, DTYPES, "dtype")]


def name_of(dtype: torch.dtype) -> str:
    """The short name of a torch dtype."""
    return next((k for k, v in DTYPES.items() if v == dtype), str(dtype).removeprefix("torch."))
