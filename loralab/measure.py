"""Count what a model and its training really hold, in bytes."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from loralab.memory.holdings import constants_in, tensors_of
from loralab.memory.storages import LiveStorages

if TYPE_CHECKING:
    from transformers import Trainer


def held(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, int]:
    """Bytes that a real model and its optimizer hold now, by component, each storage once.

    The witness for the formulas: it adds up tensors and knows nothing of architectures. Counts
    quantisation constants, which transformers' `get_memory_footprint()` leaves out. Buffers
    (rotary frequencies, a few hundred bytes) are not counted.
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
    for state in (optimizer.state.values() if optimizer else ()):
        for value in state.values():
            if torch.is_tensor(value):
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


@dataclass
class Peak:
    """The most that was alive at once inside a `peak()` block, in bytes."""

    bytes: int = 0
    before: int = 0


@contextlib.contextmanager
def peak(model: torch.nn.Module) -> Iterator[Peak]:
    """Measure the peak of tensor memory inside the block, in bytes.

    On CUDA it is the allocator's own counter, `torch.cuda.max_memory_allocated`. On a CPU, which
    has no such counter, every storage is followed from the operation that makes it until it is
    freed, starting from what `model` holds; what a kernel uses inside one operation is not seen.
    """
    gc.collect()
    found = Peak()
    if next(model.parameters()).is_cuda:
        torch.cuda.reset_peak_memory_stats()
        found.before = torch.cuda.memory_allocated()
        yield found
        found.bytes = torch.cuda.max_memory_allocated()
        return
    storages = LiveStorages()
    for kind, tensor in tensors_of(model):
        storages.add(tensor, kind)
    found.before = storages.live
    for buffer in model.buffers():
        storages.add(buffer)
    storages.forget_peak()
    try:
        with storages:
            yield found
    finally:
        found.bytes = storages.peak


def trainable(model: torch.nn.Module) -> int:
    """Number of parameters that receive gradients."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def training_step_peak(trainer: "Trainer") -> Peak:
    """The peak of one training step (forward, backward, optimizer), in bytes.

    The step has a learning rate of zero: it changes no weight.
    """
    with peak(trainer.model) as found:
        _step_without_effect(trainer)
    trainer.model.zero_grad(set_to_none=True)
    return found


def held_after_step(trainer: "Trainer") -> dict[str, int]:
    """What model, gradients and optimizer hold after a training step, in bytes by component."""
    optimizer = _step_without_effect(trainer)
    bytes_by = held(trainer.model, optimizer)
    trainer.model.zero_grad(set_to_none=True)
    return bytes_by


def _step_without_effect(trainer: "Trainer") -> torch.optim.Optimizer:
    """One step of AdamW on the trainer's first batch with a learning rate of zero."""
    model = trainer.model
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    was_training = model.training
    model.train()
    model.zero_grad(set_to_none=True)
    trainer.compute_loss(model, batch).backward()
    optimizer.step()
    model.train(was_training)
    return optimizer
