"""Count what a model and its training really hold, in bytes."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from transformers import Trainer

COMPONENTS = (
    "4-bit weights",
    "quantisation constants",
    "other weights",
    "adapters",
    "gradients",
    "optimizer states",
)


def held(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, int]:
    """Bytes held now, by component (the keys are `COMPONENTS`).

    Every storage is counted once, so tied weights are too. The quantisation constants are those of
    bitsandbytes' `quant_state` (absmax, its nested constants, code tables, offset), which
    `model.get_memory_footprint()` does not see. "adapters" are the trainable parameters of a model
    that has frozen ones.
    """
    seen: set[int] = set()

    def take(*tensors: torch.Tensor | None) -> int:
        total = 0
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta":
                continue
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        return total

    parameters = list(model.parameters())
    some_frozen = any(not parameter.requires_grad for parameter in parameters)
    bytes_by = dict.fromkeys(COMPONENTS, 0)
    for parameter in parameters:
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            bytes_by["4-bit weights"] += take(parameter.data)
            nested = state.state2
            constants = [state.absmax, state.code, state.offset]
            constants += [nested.absmax, nested.code] if nested else []
            bytes_by["quantisation constants"] += take(*constants)
        elif parameter.requires_grad and some_frozen:
            bytes_by["adapters"] += take(parameter.data)
        else:
            bytes_by["other weights"] += take(parameter.data)
        bytes_by["gradients"] += take(parameter.grad)
    bytes_by["other weights"] += take(*model.buffers())
    if optimizer is not None:
        states = tree_leaves([dict(state) for state in optimizer.state.values()])
        bytes_by["optimizer states"] += take(*states)
    return bytes_by


@dataclass
class Peak:
    """The most that was alive at once inside a `peak()` block, in bytes."""

    bytes: int = 0
    before: int = 0


class _LiveStorages(TorchDispatchMode):
    """Adds up the storages that operations make, and takes them off when they are freed."""

    def __init__(self, peak: Peak):
        super().__init__()
        self.peak, self.live, self.known = peak, 0, set()

    def count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak.bytes = max(self.peak.bytes, self.live)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                self.count(leaf)
        return result


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
    mode = _LiveStorages(found)
    found.before = found.bytes = mode.live = sum(held(model).values())
    # What the model already holds is in the sum: an operation that returns it adds nothing.
    mode.known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    with mode:
        yield found


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
