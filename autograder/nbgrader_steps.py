"""nbgrader's steps, with this engine in the place of its execution.

    pre-convert hook   what can't be opened without harm is moved aside
    sanitize           Repair: the submission in its source's form
    autograde          TrustedGrade: each graded cell says what the engine found, and its score

What follows (SaveAutoGrades, feedback, export) is nbgrader's own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_output
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import NbGraderPreprocessor

from autograder import batch, classroom
from autograder.repair import NOTES_ID, repair
from autograder.result import Item, Result
from autograder.submission import quarantine, read_plain


def put_in_order(assignment: str, student: str, notebooks: list[str]) -> None:
    """nbgrader's hook before a submission is opened. `notebooks`: the paths it found there.

    assignment and student are patterns, "*" for all; so only the paths are looked at.
    """
    for folder in {Path(path).parent for path in notebooks}:
        root = Path(os.getcwd())  # nbgrader works from the class folder
        chapter, student = folder.name, folder.parent.name
        aside = classroom.private(root) / "quarantine" / student / chapter
        quarantine(folder, aside, chapter)


class Repair(NbGraderPreprocessor):
    """The submitted notebook in its source's form: see `autograder.repair`."""

    def preprocess(self, nb: NotebookNode, resources: dict[str, Any]):
        where = resources["nbgrader"]
        path = _root(self) / "source" / where["assignment"] / f"{where['notebook']}.ipynb"
        source = nbformat.read(path, as_version=4)
        return repair(nb, source).notebook, resources


class TrustedGrade(NbGraderPreprocessor):
    """Puts the engine's messages and scores where SaveAutoGrades looks for them.

    Whatever else the cells show is gone: a score can only come from here.
    """

    def preprocess(self, nb: NotebookNode, resources: dict[str, Any]):
        where = resources["nbgrader"]
        result = batch.result_of(_root(self), where["assignment"], where["student"])
        show(nb, result)
        return nb, resources


def show(notebook: NotebookNode, result: Result) -> None:
    """Write a result into the notebook that it belongs to, in place."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs, cell.execution_count = [], None
        marks = cell.metadata.get("nbgrader", {})
        item = result.items.get(marks.get("grade_id"))
        if marks.get("grade") and not marks.get("solution"):
            cell.outputs = _outputs(item or Item(0.0, 0.0, ("This cell was not graded.",)))
    if result.notes:
        lines = "\n".join(f"- {_escaped(note)}" for note in result.notes)
        notebook.cells.insert(0, new_markdown_cell(
            f"**About what you handed in**\n\n{lines}", id=NOTES_ID))


def _outputs(item: Item) -> list[NotebookNode]:
    said = "\n".join(item.messages) + "\n"
    # nbgrader takes the score from the first result, as text.
    return [new_output("stream", name="stdout", text=said),
            new_output("execute_result", data={"text/plain": repr(float(item.score or 0.0))},
                       execution_count=None)]


def _escaped(text: str) -> str:
    """Words that may quote a student, as plain text in Markdown and HTML."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+-!|~$" else {"<": "&lt;", ">": "&gt;",
                   "&": "&amp;", "\n": " "}.get(c, c) for c in text)


def _root(step: NbGraderPreprocessor) -> Path:
    """The class folder: a step's exporter belongs to a converter, which knows it."""
    return Path(step.parent.parent.coursedir.root)


def read_timestamps_safely() -> None:
    """Make nbgrader read a submission's timestamp.txt only where it is a plain file.

    It opens that file before any hook is called: a pipe by that name would hold it up for ever,
    and a wrong date ends the run. nbgrader has no setting for this.
    """
    stock = CourseDirectory.get_existing_timestamp
    if getattr(stock, "safe", False):
        return

    def get_existing_timestamp(self: CourseDirectory, dest_path: str) -> Any:
        from nbgrader.utils import parse_utc

        try:
            return parse_utc(
                read_plain(Path(dest_path, "timestamp.txt"), 200).decode("ascii").strip())
        except (OSError, ValueError, OverflowError):
            return None

    get_existing_timestamp.safe = True
    CourseDirectory.get_existing_timestamp = get_existing_timestamp
