"""Every chapter through nbgrader's own autograde, with the gradebook read back."""

from __future__ import annotations

import re

import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from loralab.execution import seconds_for

pytestmark = pytest.mark.usefixtures("chapter_environment")


def test_the_solution_scores_everything(chapter, course):
    grades = course.grade(chapter, "solution", chapter.source)
    assert grades
    for cell, grade in grades.items():
        if grade.by_hand:
            assert grade.score is None, f"{cell}: an answer in words waits for a person"
        else:
            assert grade.score == grade.points, f"{cell}: {grade}"
    executed = course.graded_notebook(chapter, "solution")
    errors = {cell.id: output.evalue for cell in executed.cells if cell.cell_type == "code"
              for output in cell.outputs if output.output_type == "error"}
    assert errors == {}
    assert_figures_have_alt_text(executed)


def assert_figures_have_alt_text(executed) -> None:
    for cell, following in zip(executed.cells, executed.cells[1:] + [None], strict=True):
        if cell.cell_type == "code" and any("image/png" in output.get("data", {})
                                            for output in cell.outputs):
            assert following is not None and following.cell_type == "markdown", cell.source
            assert following.source.lstrip().startswith("*Alt text:"), cell.source


def test_the_untouched_student_copy_scores_nothing(chapter, course):
    grades = course.grade(chapter, "untouched", chapter.release)
    assert grades
    assert {cell: grade.score for cell, grade in grades.items() if grade.score != 0} == {}


def test_the_student_copy_stops_at_the_first_exercise_and_names_it(chapter, course, tmp_path):
    notebook = chapter.to_run(chapter.release)
    with pytest.raises(CellExecutionError) as caught:
        NotebookClient(notebook, kernel_name="python3", timeout_func=seconds_for,
                       config=course.api.config).execute(cwd=str(tmp_path))
    first = next(found for cell in notebook.cells
                 if (found := re.search(r"^### (Exercise [\d.]+) — ", cell.source, re.MULTILINE)))
    assert caught.value.ename == "NotImplementedError"
    assert caught.value.evalue.startswith(f"{first.group(1)}: ")
