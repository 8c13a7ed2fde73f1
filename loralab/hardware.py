"""What this machine computes with. Detected, never toggled."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Hardware:
    """`device`: "cuda" or "cpu"; `memory_bytes`: of the GPU, or of the machine."""

    device: str
    name: str
    compute_dtype: "torch.dtype"
    memory_bytes: int


def detect() -> Hardware:
    """The GPU if torch sees one, else the CPU.

    bf16 only where the GPU has it in hardware, else fp16; fp32 on a CPU.
    """
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        properties = torch.cuda.get_device_properties(0)
        dtype = torch.bfloat16 if native else torch.float16
        return Hardware("cuda", properties.name, dtype, properties.total_memory)
    import psutil

    return Hardware("cpu", platform.processor() or platform.machine(), torch.float32,
                    psutil.virtual_memory().total)


def describe() -> str:
    """The hardware in one line, as the chapters print it."""
    here = detect()
    gib = here.memory_bytes / 1024**3
    dtype = str(here.compute_dtype).removeprefix("torch.")
    import torch

    where = here.name if here.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{where}, {gib:.0f} GiB, compute in {dtype}"
