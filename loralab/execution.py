"""How notebooks of the course are executed: by Validate, nbgrader, papermill and the tests.

`configure` sets both parts on a traitlets configuration: a time limit of its own for each cell, and
a Jupyter client that does not sleep through a kernel's answer. nbclient waits for a cell's reply on
the same socket on which it answers widgets. When both happen at once, ZeroMQ's wake-up is used up
by the sending, and the reply that is already there is found only when the whole time limit is
over: about one cell in twenty that draws into a widget stood still that long. Looking again every
half second finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from queue import Empty
from time import monotonic
from typing import Any

from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from traitlets import Type

LOOK_AGAIN_SECONDS = 0.5
# nbgrader's own 30 s is too short for a first `import torch` on a busy machine.
DEFAULT_SECONDS = 120


def seconds_for(cell: Mapping[str, Any]) -> int:
    """Seconds that `cell` may take: its own limit (metadata loralab.timeout), else the default."""
    return int(cell["metadata"].get("loralab", {}).get("timeout", DEFAULT_SECONDS))


class AttentiveChannel(AsyncZMQSocketChannel):
    """Waits as long as it is told to, in short turns."""

    async def get_msg(self, timeout: float | None = None) -> dict[str, Any]:
        """The next message. Raises queue.Empty after `timeout` seconds; None waits for ever."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            left = LOOK_AGAIN_SECONDS if deadline is None else deadline - monotonic()
            try:
                return await super().get_msg(timeout=max(0.0, min(left, LOOK_AGAIN_SECONDS)))
            except Empty:
                if deadline is not None and monotonic() >= deadline:
                    raise


class AttentiveKernelClient(AsyncKernelClient):
    shell_channel_class = Type(AttentiveChannel)


def configure(c: Any) -> None:
    """Set time limits and client on nbgrader's or nbconvert's configuration `c`."""
    c.Execute.timeout_func = seconds_for
    c.AsyncKernelManager.client_class = "loralab.execution.AttentiveKernelClient"
