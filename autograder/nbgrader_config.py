"""How nbgrader runs this course: releases that name their exercises, and the trusted engine.

`autograder init` makes a class folder whose own `nbgrader_config.py` calls `configure`.
"""

from __future__ import annotations

from nbgrader.converters import GenerateAssignment
from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    ClearHiddenTests,
    ClearSolutions,
    OverwriteCells,
    OverwriteKernelspec,
    SaveAutoGrades,
)

from autograder.classes import nbgrader_steps
from autograder.authoring.stubs import ClearSolutionsNamingExercises
from loralab import execution


def generate_preprocessors() -> list:
    """nbgrader's steps from source to release, with stubs that name their exercise."""
    stock = GenerateAssignment.preprocessors.default()
    return [ClearSolutionsNamingExercises if step is ClearSolutions else step for step in stock]


def configure(c) -> None:
    """Set this course's options on nbgrader's configuration `c`."""
    c.GenerateAssignment.preprocessors = generate_preprocessors()
    execution.configure(c)
    c.Autograde.exporter_class = nbgrader_steps.SubmissionExporter
    c.Autograde.sanitize_preprocessors = [
        nbgrader_steps.Repair, OverwriteKernelspec, OverwriteCells, CheckCellMetadata,
    ]
    c.Autograde.autograde_preprocessors = [
        # Stock nbgrader leaves hidden tests in what becomes the feedback (#917).
        nbgrader_steps.TrustedGrade, ClearHiddenTests, SaveAutoGrades, AssignLatePenalties,
        CheckCellMetadata,
    ]
    c.HTMLExporter.filters = {
        "strip_files_prefix": "autograder.classes.safe_html.strip_files_prefix_safely"}
    nbgrader_steps.read_timestamps_safely()
