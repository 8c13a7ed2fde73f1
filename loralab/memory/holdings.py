"""The tensors that a model holds, each with the component it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def tensors_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(component, tensor) for every weight, code, constant and adapter; a shared one once."""
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        kind = "adapters" if "lora_" in name else "weights" if state is None else "weights_4bit"
        yield kind, parameter.data
        for tensor in constants_in(state).values():
            yield "constants", tensor


def constants_in(state: Any) -> dict[str, torch.Tensor]:
    """What a bitsandbytes `QuantState` keeps: name -> tensor. Nothing for None."""
    if state is None:
        return {}
    found = {"absmax": state.absmax, "levels": state.code}
    if state.nested:
        found |= {
            "absmax of the absmax": state.state2.absmax,
            "offset of the absmax": state.offset,
            "levels of the absmax": state.state2.code,
        }
    return found
