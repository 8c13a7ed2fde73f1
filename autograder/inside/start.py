"""Starts the warm process: `python start.py MODULE …`."""

from __future__ import annotations

import os
import socket
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "packages")]

import bridge  # noqa: E402, F401  (the kernels find it loaded)
import warm  # noqa: E402

warm.serve(socket.socket(fileno=os.dup(0)), sys.argv[1:])
