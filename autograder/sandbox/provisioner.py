"""Jupyter's extension point for starting kernels: one that starts them in the sandbox.

A kernelspec that names the provisioner `loralab-sandbox` works with everything that starts
kernels: nbgrader, papermill, nbclient, JupyterLab. Each kernel has a sandbox of its own; the files
beside the notebook are copied in, and nothing comes out but messages. How much it prints is not
limited: who starts the kernel reads it, and papermill and nbclient keep all of it in memory.
(`autograder.grading` reads nothing that is printed.)
"""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.provisioning import KernelProvisionerBase

from autograder.sandbox.warm import BARE, Limits, Sandbox, Started

NAME = "loralab-sandbox"
# Of what lies beside a notebook. More is no assignment but somebody's home.
MAX_FILES, MAX_BYTES = 500, 128 * 2**20


class SandboxProvisioner(KernelProvisionerBase):
    """Starts one kernel in a sandbox of its own. Raises NoSandbox where there can be none."""

    _sandbox: Sandbox | None = None
    _started: Started | None = None

    @property
    def has_process(self) -> bool:
        return self._started is not None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        folder = Path(kwargs.get("cwd") or ".")
        self._sandbox = await asyncio.to_thread(Sandbox, BARE)
        self._started = await asyncio.to_thread(
            self._sandbox.start, Limits(wall_seconds=24 * 3600, cpu_seconds=24 * 3600),
            beside(folder))
        kwargs = await super().pre_launch(cmd=[], **kwargs)
        return kwargs

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        started = self._started
        if started is None or started.ended:
            raise RuntimeError(f"the kernel did not start: {started.ended if started else ''}")
        connection = dict(started.connection)
        connection["key"] = str(connection["key"]).encode()
        return connection

    async def poll(self) -> int | None:
        if self._started is None or self._started.ended:
            return 1
        return None

    async def wait(self) -> int | None:
        while await self.poll() is None:
            await asyncio.sleep(0.1)
        return 1

    async def send_signal(self, signum: int) -> None:
        # An interrupt goes as a message (interrupt_mode); a signal can only mean the end.
        if signum in (signal.SIGKILL, signal.SIGTERM):
            await self.kill()

    async def kill(self, restart: bool = False) -> None:
        if self._sandbox is not None:
            await asyncio.to_thread(self._sandbox.close)
        if self._started is not None:
            self._started.ended = self._started.ended or "stopped"

    async def terminate(self, restart: bool = False) -> None:
        await self.kill(restart)

    async def cleanup(self, restart: bool = False) -> None:
        await self.kill(restart)


def beside(folder: Path) -> dict[str, Path]:
    """The plain files in `folder`, by relative path; none at all where they are too many."""
    found: dict[str, Path] = {}
    size = 0
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        size += path.stat().st_size
        if len(found) == MAX_FILES or size > MAX_BYTES:
            return {}
        found[str(path.relative_to(folder))] = path
    return found


def install(name: str, prefix: Path) -> Path:
    """Write the kernelspec `name` below `prefix` (an environment's folder); its folder."""
    import tempfile

    spec = {
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3 (sandbox)",
        "language": "python",
        "interrupt_mode": "message",
        "metadata": {"kernel_provisioner": {"provisioner_name": NAME}, "debugger": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel.json").write_text(json.dumps(spec, indent=1) + "\n")
        return Path(KernelSpecManager().install_kernel_spec(folder, name, prefix=str(prefix)))
