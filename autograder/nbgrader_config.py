"""How nbgrader runs this course. In a course folder's own `nbgrader_config.py`:

    from autograder.nbgrader_config import configure
    configure(get_config())

This file itself, linked or copied there, does the same.
"""

from __future__ import annotations

from nbformat import NotebookNode
from nbgrader.converters import GenerateAssignment
from nbgrader.preprocessors import ClearSolutions

from autograder.stubs import ClearSolutionsNamingExercises

# nbgrader's own 30 s is too short for a first `import torch` on a busy machine.
DEFAULT_TIMEOUT = 120


def timeout_of(cell: NotebookNode) -> int:
    """Seconds that `cell` may take: its own limit (`# %% timeout=900`), else the default."""
    return int(cell.metadata.get("loralab", {}).get("timeout", DEFAULT_TIMEOUT))


def generate_preprocessors() -> list:
    """nbgrader's steps from source to release, with stubs that name their exercise."""
    stock = GenerateAssignment.preprocessors.default()
    return [ClearSolutionsNamingExercises if step is ClearSolutions else step for step in stock]


def configure(c) -> None:
    """Set this course's options on nbgrader's configuration `c`."""
    c.GenerateAssignment.preprocessors = generate_preprocessors()
    c.Execute.timeout_func = timeout_of
    c.AsyncKernelManager.client_class = "autograder.kernel_client.AttentiveKernelClient"


if "get_config" in globals():  # only while nbgrader reads this file as its configuration
    configure(get_config())  # noqa: F821
