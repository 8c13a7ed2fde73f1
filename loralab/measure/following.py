"""Follow the memory of a piece of training, and of one step of a real trainer."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from loralab.measure.counting import held
from loralab.memory.holdings import tensors_of
from loralab.memory.ledger import Ledger
from loralab.memory.storages import LiveStorages

if TYPE_CHECKING:
    from transformers import Trainer


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
    ledger = Ledger()
    storages = LiveStorages(ledger)
    for kind, tensor in tensors_of(model):
        storages.add(tensor, kind)
    found.before = ledger.live
    for buffer in model.buffers():
        storages.add(buffer)
    ledger.forget_peak()
    try:
        with storages:
            yield found
    finally:
        found.bytes = ledger.peak


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
