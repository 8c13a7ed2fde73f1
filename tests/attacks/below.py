"""The processes of a sandbox, as the tests count them."""

from __future__ import annotations

import psutil

from autograder.sandbox.warm import Sandbox


def below(sandbox: Sandbox) -> list[psutil.Process]:
    return psutil.Process(sandbox._process.pid).children(recursive=True)
