"""Small models of any kind, on which checks ask for names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loralab import memory


def small_model(kind: str, renamed: Mapping[str, str] | None = None, **sizes: int) -> Any:
    """A causal language model of transformers' `kind` on meta; `renamed`: layers, old to new name.

    `sizes` are settings of its configuration.
    """
    from transformers import AutoConfig

    model = memory.build(AutoConfig.for_model(kind, **sizes))
    for path in [path for path, _ in model.named_modules()]:
        above, _, last = path.rpartition(".")
        if last in (renamed or {}):
            parent = model.get_submodule(above)
            setattr(parent, renamed[last], getattr(parent, last))
            delattr(parent, last)
    return model
