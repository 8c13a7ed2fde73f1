"""A class folder as the tests see it: nbgrader's own commands, with the gradebook read back."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode
from nbgrader.apps.api import NbGraderAPI

from autograder.authoring.release import to_text
from autograder.classes import class_folder, gradebook


class Grade(NamedTuple):
    """One graded cell in the gradebook. `score` is None where a person has to give it."""

    score: float | None
    points: float
    by_hand: bool


class Course:
    """A class of its own, made by `autograder init`; by default with every chapter."""

    def __init__(self, root: Path, sources: Iterable[Path] | None = None):
        self.root = class_folder.init(root, sources=sources)
        self.api = NbGraderAPI(config=gradebook.load_config(self.root))

    def hand_in(
        self, chapter: str, student: str, notebook: NotebookNode, adapter: Path | None = None
    ) -> Path:
        """Put a notebook where submissions are; the folder."""
        folder = self.root / "submitted" / student / chapter
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{chapter}.ipynb").write_text(to_text(notebook), "utf-8")
        if adapter is not None:
            shutil.copytree(adapter, folder / "adapter", dirs_exist_ok=True)
        return folder

    def autograde(self, chapter: str, student: str) -> dict[str, Grade]:
        """nbgrader's autograde of a submission: cell → what the gradebook says then."""
        result = self.api.autograde(chapter, student)
        assert result["success"], result.get("error") or result.get("log")
        with self.api.gradebook as book:
            found = book.find_submission_notebook(chapter, chapter, student)
            return {grade.name: Grade(grade.auto_score, grade.max_score, grade.needs_manual_grade)
                    for grade in found.grades}

    def graded_notebook(self, chapter: str, student: str) -> NotebookNode:
        """The notebook with the outputs that autograde gave it."""
        path = self.root / "autograded" / student / chapter / f"{chapter}.ipynb"
        return nbformat.read(path, as_version=4)
