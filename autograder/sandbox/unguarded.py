"""Kernels without walls, for `--sandbox none`: on a machine that has no sandbox, for work that
its instructor trusts.

Student code runs with the rights of whoever grades. Scores are still computed outside it; but it
can read, change and send away whatever that person can.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from autograder.sandbox import bubblewrap
from autograder.sandbox.warm import PORTS, START_SECONDS, Limits, Started
from loralab import paths

WARNING = (
    "NO SANDBOX. Student code now runs with your rights: it can read your files, change grades "
    "and use the network. Grade only work that you have read."
)


class Unguarded:
    """In the place of `autograder.sandbox.warm.Sandbox`. Of the limits only wall time holds."""

    alive = True

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="lora-"))
        self._processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Unguarded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, limits: Limits = Limits(), files: Mapping[str, Path] | None = None) -> Started:
        """See `Sandbox.start`."""
        name = f"k{secrets.token_hex(4)}"
        folder = self._folder / name
        work = folder / "work"
        work.mkdir(parents=True)
        for relative, source in (files or {}).items():
            target = work / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target, follow_symlinks=False)
        connection = {
            "transport": "ipc", "ip": str(folder / "kernel"), "key": secrets.token_hex(16),
            "signature_scheme": "hmac-sha256", **dict(zip(PORTS, range(1, 6), strict=True)),
        }  # fmt: skip
        kernel = Started(name, folder, connection, threading.Event())
        environment = bubblewrap.environment() | {
            "HOME": str(work), "TMPDIR": str(folder), "MPLCONFIGDIR": str(folder / "matplotlib"),
            "LORALAB_CACHE": str(paths.cache()),
        }
        self._processes[name] = process = subprocess.Popen(
            [sys.executable, *bubblewrap.ALONE, str(bubblewrap.INSIDE / "alone.py"),
             json.dumps(connection)],
            cwd=work, env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        threading.Thread(target=self._watch, args=(kernel, process, limits), daemon=True).start()
        until = time.monotonic() + START_SECONDS
        while not all((folder / f"kernel-{number}").exists() for number in range(1, 6)):
            if kernel.ended or time.monotonic() > until:
                self.stop(kernel)
                kernel.ended = kernel.ended or "failed"
                break
            time.sleep(0.05)
        return kernel

    def _watch(self, kernel: Started, process: subprocess.Popen, limits: Limits) -> None:
        try:
            process.wait(limits.wall_seconds)
            kernel.ended = kernel.ended or "exited"
        except subprocess.TimeoutExpired:
            kernel.ended = "time"
            self.stop(kernel)

    def stop(self, kernel: Started) -> None:
        """End a kernel's process group, and remove its folder. What left the group lives on."""
        process = self._processes.pop(kernel.name, None)
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(kernel.folder, ignore_errors=True)

    def close(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
