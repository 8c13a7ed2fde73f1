"""What is read at each stage of a run: CUDA's counters, or on a CPU the storages followed."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from loralab.memory.allocator import CachingAllocator
from loralab.memory.holdings import tensors_of
from loralab.memory.ledger import Ledger
from loralab.memory.storages import LiveStorages

Reading = dict[str, int | None]


class Cuda:
    """CUDA's caching allocator, and the whole device.

    A reading, in bytes: `allocated` and `reserved` now, the peak of each since the last reading,
    and `device_used`, which is all that is taken on the GPU, by whatever process.
    """

    counted_by = "torch.cuda"

    def __init__(self, device: torch.device):
        self.device = device
        self.used_before = _device_used_before()
        torch.cuda.set_device(device)
        torch.cuda.init()
        self.used_by_context = self._used()

    def read(self) -> Reading:
        torch.cuda.synchronize()
        found: Reading = {
            "allocated": torch.cuda.memory_allocated(),
            "peak_allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.memory_reserved(),
            "peak_reserved": torch.cuda.max_memory_reserved(),
            "device_used": self._used(),
        }
        torch.cuda.reset_peak_memory_stats()
        return found

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """CUDA counts by itself."""

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """What is in main memory is not counted in the first place."""

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        yield

    def at_the_end(self) -> Reading:
        """What no stage shows: cuBLAS's workspaces, found by giving them back.

        `used_by_process`: on the device now and not before this process began, or None where
        `nvidia-smi` cannot be asked.
        """
        gc.collect()
        torch.cuda.synchronize()
        before = self.used_before
        share = None if before is None else self._used() - before
        allocated = torch.cuda.memory_allocated()
        torch._C._cuda_clearCublasWorkspaces()
        return {
            "workspaces": allocated - torch.cuda.memory_allocated(),
            "device_used_before": before,
            "device_used_with_context": self.used_by_context,
            "used_by_process": share,
        }

    def _used(self) -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free


class Followed:
    """Storages followed from operation to operation; a CPU has no counter of its own.

    What a kernel takes for itself inside one operation is not seen. `allocator`: whose blocks are
    counted, by default just the bytes. `how` is passed on to `LiveStorages`.
    """

    counted_by = "followed storages"

    def __init__(self, allocator: CachingAllocator | None = None, **how: Any) -> None:
        self.ledger = Ledger(allocator)
        self.storages = LiveStorages(self.ledger, **how)

    def read(self) -> Reading:
        found: Reading = {"allocated": self.ledger.live, "peak_allocated": self.ledger.peak}
        self.ledger.forget_peak()
        return found

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were made while no operation was followed."""
        before = self.ledger.peak
        for tensor in tensors:
            self.storages.add(tensor)
        if self.ledger.peak > before:
            self.ledger.forget_peak()

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count these no more: beside a GPU they would be in main memory."""
        for tensor in tensors:
            self.storages.leave_out(tensor)

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        with self.storages:
            yield

    def at_the_end(self) -> Reading:
        return {}


def meter(device: torch.device) -> Cuda | Followed:
    return Cuda(device) if device.type == "cuda" else Followed()


def in_memory(model: nn.Module) -> Iterator[torch.Tensor]:
    """Everything that a model holds, buffers included."""
    for _, tensor in tensors_of(model):
        yield tensor
    yield from model.buffers()


def ask_nvidia_smi(what: str) -> str | None:
    """One value of the first visible GPU, or None where there is no `nvidia-smi`."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    try:
        said = subprocess.run(
            ["nvidia-smi", "-i", first, f"--query-gpu={what}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return (said.strip().splitlines() or [None])[0]


def _device_used_before() -> int | None:
    said = ask_nvidia_smi("memory.used")
    return int(said) * 2**20 if said and said.isdigit() else None
