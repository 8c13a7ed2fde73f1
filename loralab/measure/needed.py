"""What a run needs beside torch and transformers, asked for only by the runs that need it."""

from __future__ import annotations

import importlib.util

from loralab.errors import CourseError


class Unsupported(CourseError):
    """These settings cannot be measured here: a package is missing, or the device lacks a kernel.
    """


def needed(package: str, what: str) -> None:
    """Raises Unsupported where the package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise Unsupported(f"{what} needs {package}, which is not installed.",
                          f"pip install {package}")
