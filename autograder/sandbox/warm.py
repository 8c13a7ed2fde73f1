"""The grader's end of the warm process: starts it, asks it for kernels, hears how they end."""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from autograder.sandbox import bubblewrap

# What the course's notebooks import. A kernel forked from here has them.
MODULES = (
    "numpy", "torch", "matplotlib.pyplot", "transformers", "transformers.models.llama",
    "transformers.models.llama.modeling_llama", "peft", "bitsandbytes", "trl",
    "trl.trainer.sft_trainer", "datasets",
    "ipywidgets", "ipykernel.kernelapp", "matplotlib_inline.backend_inline", "IPython.core.pylabtools",
    "loralab.base_model", "loralab.capstone", "loralab.evaluation", "loralab.four_bit", "loralab.hardware",
    "loralab.low_rank", "loralab.measure", "loralab.memory", "loralab.notebook", "loralab.plots",
    "loralab.predictions", "loralab.quiz", "loralab.rank_sweep", "loralab.recorded_runs",
    "loralab.rounding", "loralab.tasks.language", "loralab.tasks.sql", "loralab.training",
    *(f"loralab.checks.ch0{chapter}" for chapter in range(9)),
    # Small models of these kinds are what functions of chapters 02, 03 and 05 are asked about.
    *(f"transformers.models.{kind}.modeling_{kind}" for kind in (
        "biogpt", "codegen", "gpt2", "gpt_neox", "mistral", "olmo", "openai", "opt", "persimmon",
        "phi", "qwen2", "xglm")),
)  # fmt: skip
BARE = ("ipykernel.kernelapp",)
PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
START_SECONDS = 180  # a first import of torch on a busy machine
FIRST_UID = 64000  # where the grader is root, kernels are strangers to it and to each other


@dataclass(frozen=True)
class Limits:
    """What one submission may use, in all its processes together.

    wall_seconds, cpu_seconds: from the kernel's start (CPU: of any one process). memory_bytes:
    beside what it shares with the warm process. disk_bytes: of each of its private folders.
    processes: threads count.
    """

    wall_seconds: int = 300
    cpu_seconds: int = 240
    memory_bytes: int = 4 * 2**30
    disk_bytes: int = 256 * 2**20
    processes: int = 96


@dataclass
class Started:
    """A running kernel. `ended` is None while it runs, else why it does not."""

    name: str
    folder: Path
    connection: dict[str, object]
    ready: threading.Event
    ended: str | None = None


class Sandbox:
    """One bubblewrap sandbox with its warm process. Use it in a `with`, or close() it.

    Raises NoSandbox where this machine can't isolate.
    """

    def __init__(self, modules: Iterable[str] = MODULES):
        # Short: the path of a Unix socket holds about a hundred characters.
        self._exchange = Path(tempfile.mkdtemp(prefix="lora-"))
        self._exchange.chmod(0o711)
        self._kernels: dict[str, Started] = {}
        # The grader's other processes have sandboxes too: kernels of the same number would be one
        # user, and share its limits.
        self._count = secrets.randbelow(1000)
        self._lock = threading.Lock()
        self._warm, self._answered = False, threading.Event()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        self._errors = tempfile.TemporaryFile()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    bubblewrap.command(self._exchange, list(modules)),
                    stdin=theirs, stdout=subprocess.DEVNULL, stderr=self._errors, env={},
                )
            except Exception:
                shutil.rmtree(self._exchange, ignore_errors=True)
                raise
        threading.Thread(target=self._listen, daemon=True).start()
        if not (self._answered.wait(START_SECONDS) and self._warm):
            self._process.kill()
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read(1 << 16).decode("utf-8", "replace")[-500:]
            self.close()
            raise bubblewrap.refusal(said or "it did not start")

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def start(self, limits: Limits = Limits(), files: Mapping[str, Path] | None = None) -> Started:
        """A fresh kernel. `files`: copied into its working folder, by relative path.

        Returns when its sockets are there; `ended` is set where it could not start.
        """
        with self._lock:
            self._count += 1
            name = f"k{self._count}"
        folder = self._exchange / name
        folder.mkdir()
        root = os.getuid() == 0
        uid = FIRST_UID + self._count % 1000 if root else os.getuid()
        for relative, source in (files or {}).items():
            target = folder / "files" / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target, follow_symlinks=False)
        if root:
            os.chown(folder, uid, uid)
        connection = {
            "transport": "ipc", "ip": str(folder / "kernel"), "key": secrets.token_hex(16),
            "signature_scheme": "hmac-sha256", **dict(zip(PORTS, range(1, 6), strict=True)),
        }  # fmt: skip
        kernel = Started(name, folder, connection, threading.Event())
        self._kernels[name] = kernel
        request = {"start": name, "uid": uid, "limits": asdict(limits), "files": bool(files),
                   "private": bubblewrap.private(),
                   "connection": connection | {"ip": f"{bubblewrap.SOCKETS}/kernel"}}
        try:
            self._control.send(json.dumps(request).encode())
        except OSError:
            kernel.ended = "sandbox"
        else:
            if not kernel.ready.wait(START_SECONDS):
                self.stop(kernel)
        return kernel

    def stop(self, kernel: Started) -> None:
        """End a kernel and all that it started; its folder is removed."""
        if kernel.ended is None:
            try:
                self._control.send(json.dumps({"stop": kernel.name}).encode())
            except OSError:
                pass
        self._kernels.pop(kernel.name, None)
        shutil.rmtree(kernel.folder, ignore_errors=True)

    def close(self) -> None:
        """End every kernel and the sandbox."""
        self._control.close()
        self._process.kill()  # bubblewrap's processes die with it
        self._process.wait()
        self._errors.close()
        shutil.rmtree(self._exchange, ignore_errors=True)

    def _listen(self) -> None:
        while True:
            try:
                message = self._control.recv(1 << 16)
            except OSError:
                message = b""
            if not message:
                break
            said = json.loads(message)
            if "warm" in said:
                self._warm = True
                self._answered.set()
            elif kernel := self._kernels.get(said["id"]):
                kernel.ended = said.get("ended", kernel.ended)
                kernel.ready.set()
        for kernel in list(self._kernels.values()):
            kernel.ended = kernel.ended or "sandbox"
            kernel.ready.set()
        self._answered.set()


_SHARED: Sandbox | None = None


def shared() -> Sandbox:
    """The sandbox that this process keeps warm, started at the first call.

    Raises NoSandbox.
    """
    global _SHARED
    if _SHARED is None or not _SHARED.alive:
        _SHARED = Sandbox()
        atexit.register(_SHARED.close)
    return _SHARED
