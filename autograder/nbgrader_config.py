"""How nbgrader runs this course. In a course folder's own `nbgrader_config.py`:

    from autograder.nbgrader_config import configure
    configure(get_config())

This file itself, linked or copied there, does the same.
"""

from __future__ import annotations

from nbgrader.converters import GenerateAssignment
from nbgrader.preprocessors import ClearSolutions

from autograder.stubs import ClearSolutionsNamingExercises
from loralab import execution


def generate_preprocessors() -> list:
    """nbgrader's steps from source to release, with stubs that name their exercise."""
    stock = GenerateAssignment.preprocessors.default()
    return [ClearSolutionsNamingExercises if step is ClearSolutions else step for step in stock]


def configure(c) -> None:
    """Set this course's options on nbgrader's configuration `c`."""
    c.GenerateAssignment.preprocessors = generate_preprocessors()
    execution.configure(c)


if "get_config" in globals():  # only while nbgrader reads this file as its configuration
    configure(get_config())  # noqa: F821
