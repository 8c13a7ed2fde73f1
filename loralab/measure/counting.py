"""Count what a model and its optimizer hold, and what autograd keeps, in bytes."""

from __future__ import annotations

import torch
from torch import nn

from loralab.memory.holdings import constants_in, tensors_of


def held(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, int]:
    """Bytes that a real model and its optimizer hold now, by component, each storage once.

    The witness for the formulas: it adds up tensors and knows nothing of architectures. Counts
    quantisation constants, which transformers' `get_memory_footprint()` leaves out. Buffers
    (rotary frequencies, a few hundred bytes) are not counted, nor are optimizer states in another
    memory than their parameter's.
    """
    counted = dict.fromkeys(
        ("weights", "weights_4bit", "constants", "adapters", "gradients", "optimizer"), 0
    )
    seen: set[int] = set()

    def add(kind: str, tensor: torch.Tensor | None) -> None:
        if tensor is not None and tensor.untyped_storage()._cdata not in seen:
            seen.add(tensor.untyped_storage()._cdata)
            counted[kind] += tensor.untyped_storage().nbytes()

    for kind, tensor in tensors_of(model):
        add(kind, tensor)
    for parameter in model.parameters():
        add("gradients", parameter.grad)
    for parameter, state in (optimizer.state.items() if optimizer else ()):
        for value in state.values():
            if torch.is_tensor(value) and value.device == parameter.device:
                add("optimizer", value)
    return counted


def constants_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    """What bitsandbytes keeps beside one 4-bit layer's codes: name -> tensor."""
    return constants_in(layer.weight.quant_state)


def saved_for_backward(model: nn.Module, batch: int, seq: int) -> int:
    """Bytes that autograd keeps between the forward and the backward pass of a real model.

    Runs one forward pass on random tokens. Parameters are not counted, nor is the loss.
    """
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    tokens = torch.randint(model.config.vocab_size, (batch, seq))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=tokens, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def trainable(model: nn.Module) -> int:
    """Number of parameters that receive gradients."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
