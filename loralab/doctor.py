"""The environment report: one line an item, with the fix beside each failure."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loralab import base_model, four_bit, hardware, paths
from loralab.errors import CourseError
from loralab.quiet import quiet

LOCK = paths.PROJECT / "requirements.lock"
OLDEST_PYTHON = (3, 11)
DISK_NEEDED_GB = 2
# Full fine-tuning of the embedded model in fp32 with Adam: 16 bytes for 135 million parameters,
# the libraries, and room for activations.
MEMORY_NEEDED_GIB = 4


@dataclass(frozen=True)
class Item:
    """One line of the report. `fix` says what to do; empty where `ok`."""

    name: str
    ok: bool
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{'[OK]' if self.ok else '[FAIL]':<7}{self.name}: {self.detail}"
        return f"{line} → {self.fix}" if self.fix else line


Looks = Mapping[str, Callable[[], Item]]


def report(looks: Looks | None = None) -> list[Item]:
    """Look at everything that the course needs, or at what `looks` names.

    Never raises: what breaks is a failed item.
    """
    return [_safely(name, look) for name, look in (ITEMS if looks is None else looks).items()]


def print_report() -> None:
    """Print the report, one line an item, and how it ended."""
    items = report()
    for item in items:
        print(item)
    print(summary(items))


def summary(items: list[Item]) -> str:
    """The line that closes the report."""
    failed = sum(not item.ok for item in items)
    if not failed:
        return "Everything is ready."
    return f"{failed} of {len(items)} need{'s' if failed == 1 else ''} mending: see above."


def _safely(name: str, look: Callable[[], Item]) -> Item:
    try:
        return look()
    except CourseError as error:
        return Item(name, False, error.message, error.remedy)
    except Exception as error:  # the report must come to its end
        said = str(error).strip().splitlines() or [""]
        return Item(name, False, f"{type(error).__name__}: {said[0][:160]}",
                    "run `make lab` again; it mends the environment")


def _python() -> Item:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= OLDEST_PYTHON:
        return Item("Python", True, version)
    return Item("Python", False, f"{version}; the course needs 3.11 or newer",
                "make lab PYTHON=/path/to/python3.12")


def _environment() -> Item:
    """The interpreter of this kernel (or terminal) is the one that `make lab` made."""
    name, ours = "environment", paths.PROJECT / ".venv"
    here = Path(sys.prefix)
    if ours.is_dir() and here.resolve() != ours.resolve():
        return Item(name, False, f"this is {here}, not the course's {ours}",
                    "start with `make lab` and choose Kernel ▸ Change Kernel ▸ "
                    "Python 3 (ipykernel)")
    return Item(name, True, str(here))


def locked_versions(text: str) -> dict[str, str]:
    """name → version of every line of a lock that holds on this platform."""
    from packaging.requirements import Requirement

    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    pins = [Requirement(line) for line in lines if line]
    return {
        pin.name: next(iter(pin.specifier)).version
        for pin in pins if pin.marker is None or pin.marker.evaluate()
    }


def differences(locked: dict[str, str]) -> list[str]:
    """What is installed otherwise than locked, in words. A build's suffix (+cpu) is no difference."""
    found = []
    for name, version in locked.items():
        try:
            here = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is missing")
            continue
        if here != version:
            found.append(f"{name} {here} instead of {version}")
    return found


def _packages() -> Item:
    name = "packages"
    if not LOCK.exists():
        return Item(name, False, "requirements.lock is not beside the package",
                    "install the course from its own folder: `make lab`")
    locked = locked_versions(LOCK.read_text("utf-8"))
    wrong = differences(locked)
    if not wrong:
        return Item(name, True, f"all {len(locked)} as locked")
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    if os.environ.get("PYTHONPATH"):
        return Item(name, False, ", ".join(wrong[:3]) + more,
                    "PYTHONPATH puts other packages first: unset it and start again; "
                    "if that does not help: rm -r .venv && make lab")
    fix = "rm -r .venv && make lab"
    if os.environ.get("CONDA_PREFIX") and not (paths.PROJECT / ".venv").is_dir():
        fix = "conda env update -f environment.yml --prune"
    return Item(name, False, ", ".join(wrong[:3]) + more, fix)


def _torch() -> Item:
    import torch

    line = hardware.describe().removeprefix("Hardware: ")
    detail = f"{torch.__version__} on {line}"
    # Not a failure: every chapter runs on a CPU.
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        why = "this torch is built for CPUs" if torch.version.cuda is None else (
            f"its driver is older than CUDA {torch.version.cuda} needs, or it is hidden")
        detail += f"; there is an NVIDIA GPU, but torch cannot use it ({why})"
    return Item("torch", True, detail)


def _bitsandbytes() -> Item:
    """A 4-bit layer computes what its dequantised weight says."""
    import torch

    here = hardware.detect()
    with quiet(), torch.no_grad():
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(
            64, 64, bias=False, compute_dtype=here.compute_dtype, quant_type="nf4"
        ).to(here.device)
        four_bit.keep_weights_intact(layer)
        x = torch.ones(4, 64, dtype=here.compute_dtype, device=here.device)
        weight = bitsandbytes.functional.dequantize_4bit(
            layer.weight.data, layer.weight.quant_state).to(here.compute_dtype)
        right = torch.allclose(layer(x), x @ weight.T, atol=0.05, rtol=0.05)
    if right:
        return Item("bitsandbytes", True,
                    f"{bitsandbytes.__version__}, a 4-bit layer computes on {here.device}")
    return Item("bitsandbytes", False, f"a 4-bit layer computes wrongly on {here.device}",
                "rm -r .venv && make lab; without it chapter 05 cannot be trusted on this computer")


def _base_model() -> Item:
    if base_model.is_ready():
        return Item("base model", True, f"{base_model.NAME} in {base_model.folder()}")
    return Item("base model", False, "not fetched yet, or damaged",
                "make lab (with a network, once; 93 MB)")


def _disk() -> Item:
    """Room where the work is and where the cache is: often the same disk."""
    free = min(shutil.disk_usage(_existing(p)).free for p in (paths.WORK, paths.cache())) / 1e9
    if free >= DISK_NEEDED_GB:
        return Item("disk", True, f"{free:.0f} GB free")
    return Item("disk", False, f"{free:.1f} GB free; the course needs {DISK_NEEDED_GB} GB",
                f"free some space, or set LORALAB_CACHE to a larger disk (now {paths.cache()})")


def _memory() -> Item:
    import psutil

    total = hardware.machine_memory_bytes() / hardware.GIB
    available = min(psutil.virtual_memory().available / hardware.GIB, total)
    detail = f"{available:.1f} of {total:.1f} GiB available"
    if available >= MEMORY_NEEDED_GIB:
        return Item("memory", True, detail)
    return Item("memory", False, f"{detail}; chapter 05 wants {MEMORY_NEEDED_GIB} GiB",
                "close other programs and notebooks (Kernel ▸ Shut Down All Kernels)")


def _work_folder() -> Item:
    return _writable("work folder", paths.WORK, "give yourself the right to write there")


def _cache_folder() -> Item:
    return _writable("cache", paths.cache(),
                     "give yourself the right to write there, or set LORALAB_CACHE to a folder "
                     "of yours")


def _writable(name: str, folder: Path, fix: str) -> Item:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return Item(name, False, f"{folder} cannot be written: {error.strerror}", fix)
    return Item(name, True, f"{folder} can be written")


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


ITEMS: dict[str, Callable[[], Item]] = {
    "Python": _python,
    "environment": _environment,
    "packages": _packages,
    "torch": _torch,
    "bitsandbytes": _bitsandbytes,
    "base model": _base_model,
    "disk": _disk,
    "memory": _memory,
    "work folder": _work_folder,
    "cache": _cache_folder,
}
