"""What this machine computes with. Detected, never toggled."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 1024**3


def _leave_one_gpu_visible() -> None:
    """The course trains on one GPU. TRL refuses two of them without a launcher.

    Works until torch first touches CUDA; a choice that names one GPU is kept.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = chosen.split(",")[0]


_leave_one_gpu_visible()


@dataclass(frozen=True)
class Hardware:
    """`device`: "cuda" or "cpu"; `memory_bytes`: of the GPU, or of the machine."""

    device: str
    name: str
    compute_dtype: "torch.dtype"
    memory_bytes: int


def detect() -> Hardware:
    """The GPU if torch sees one, else the CPU (on a Mac too).

    bf16 only where the GPU has it in hardware, else fp16 (a T4); fp32 on a CPU.
    """
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        gpu = torch.cuda.get_device_properties(0)
        return Hardware(
            "cuda", gpu.name, torch.bfloat16 if native else torch.float16, gpu.total_memory
        )
    return Hardware("cpu", _processor(), torch.float32, machine_memory_bytes())


def describe() -> str:
    """One line for a person: device, memory in GiB, and the type that it computes in."""
    found = detect()
    dtype = str(found.compute_dtype).removeprefix("torch.")
    cores = "" if found.device == "cuda" else f"{_cores()} cores, "
    return (
        f"Hardware: {found.device.upper()} ({found.name}), {cores}"
        f"{found.memory_bytes / GIB:.1f} GiB memory, computes in {dtype}"
    )


def machine_memory_bytes() -> int:
    """Main memory that this process may use: the machine's, or its container's limit."""
    import psutil

    total = psutil.virtual_memory().total
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _cores() -> int:
    # Not os.cpu_count(): a container or a scheduler may allow fewer.
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _processor() -> str:
    """The processor's name in words, as far as the system tells."""
    found = ""
    try:
        if platform.system() == "Darwin":
            found = subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"],
                capture_output=True, text=True, timeout=5,
            ).stdout
        else:
            match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
            found = match.group(1) if match else ""
    except (OSError, subprocess.SubprocessError):
        pass
    return " ".join(found.split()) or platform.machine()
