"""nbgrader's steps, with this engine in the place of its execution.

    exporter    before anything is opened: what can't be opened without harm is moved aside
    sanitize    Repair: the submission in its source's form
    autograde   TrustedGrade: each graded cell says what the engine found, and its score

What follows (SaveAutoGrades, feedback, export) is nbgrader's own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbconvert.exporters import NotebookExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_output
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import NbGraderPreprocessor
from nbgrader.utils import compute_checksum

from autograder.classes import batch, classroom
from autograder.grading.repair import NOTES_ID, repair
from autograder.grading.result import Item, Result
from autograder.grading.submission import quarantine, timestamp

if TYPE_CHECKING:
    from nbgrader.converters import Autograde


class SubmissionExporter(NotebookExporter):
    """Opens notebooks for nbgrader's Autograde, its parent.

    Autograde makes its exporter after it has listed the submissions and before it touches one, and
    lets its errors pass. Its own hook comes too late for that (a time stamp has been opened), and
    its errors are only logged: so submissions are put in order here.
    """

    def __init__(self, config: Any = None, **named: Any):
        super().__init__(config=config, **named)
        assignments = getattr(self.parent, "assignments", {})
        for folder in sorted(assignments):
            try:
                assignments[folder] = _to_convert(self.parent, folder, assignments[folder])
            except (OSError, ValueError) as error:
                self.log.error("Skipping %r: %s", folder, error)
                del assignments[folder]


def _to_convert(converter: Autograde, folder: str, found: list[str]) -> list[str]:
    """The notebooks of a submission that nbgrader converts, once it is put in order.

    Raises OSError where something can't be moved aside: then nothing may be copied. Raises
    ValueError for a name of a student that nbgrader can't read back, and would stop at.
    """
    pattern = converter._format_source("(?P<assignment_id>.*)", "(?P<student_id>.*)", escape=True)
    if re.match(pattern, folder) is None or not folder.isprintable():
        raise ValueError("a student's id can't have such characters")
    if Path(folder).parent.is_symlink():  # to another student's, for all we know
        raise ValueError("the student's folder is a link, which is not followed")
    coursedir, chapter, student = converter.coursedir, Path(folder).name, Path(folder).parent.name
    root = Path(coursedir.root)
    quarantine(Path(folder), classroom.private(root) / "quarantine" / student / chapter, chapter)
    source = Path(coursedir.format_path(coursedir.source_directory, ".", chapter))
    expected = {path.name for path in source.glob("*.ipynb")}
    known = [path for path in found if Path(path).name in expected]
    if not known and expected == {f"{chapter}.ipynb"}:  # it had another name
        known = [os.path.join(folder, f"{chapter}.ipynb")]
    return [path for path in known or found if os.path.lexists(path)]


class Repair(NbGraderPreprocessor):
    """The submitted notebook in its source's form: see `autograder.grading.repair`."""

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
        marks = cell.metadata.get("nbgrader", {})
        if marks.get("solution") and not cell.source.strip():
            # To nbgrader, as good as untouched: nobody has to read it.
            marks["checksum"] = compute_checksum(cell)
        if cell.cell_type != "code":
            continue
        cell.outputs, cell.execution_count = [], None
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

    formgrader lists submissions that nobody has put in order yet: a pipe by that name would hold
    up the page for ever, and a wrong date would end it. nbgrader has no setting for this.
    """
    stock = CourseDirectory.get_existing_timestamp
    if getattr(stock, "safe", False):
        return

    def get_existing_timestamp(self: CourseDirectory, dest_path: str) -> Any:
        return timestamp(Path(dest_path, "timestamp.txt"))

    get_existing_timestamp.safe = True
    CourseDirectory.get_existing_timestamp = get_existing_timestamp
