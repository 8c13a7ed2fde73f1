"""Every chapter through nbgrader's own autograde, with the real engine and the gradebook read back."""

from __future__ import annotations

import re

import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from loralab import recorded_runs
from loralab.execution import seconds_for

pytestmark = pytest.mark.usefixtures("chapter_environment")


def test_the_solution_scores_everything(chapter, course):
    # Chapter 05's training is not repeated: what it made is handed in.
    adapter = recorded_runs.REFERENCE if chapter.number == "05" else None
    course.hand_in(chapter.name, "solution", chapter.source, adapter)
    grades = course.autograde(chapter.name, "solution")
    assert grades
    for cell, grade in grades.items():
        if grade.by_hand:
            assert grade.score is None, f"{cell}: an answer in words waits for a person"
        else:
            assert grade.score == grade.points, f"{cell}: {grade}"
    shown = course.graded_notebook(chapter.name, "solution")
    assert "about-what-you-handed-in" not in [cell.id for cell in shown.cells]


def test_the_untouched_student_copy_scores_nothing(chapter, course):
    course.hand_in(chapter.name, "untouched", chapter.release)
    grades = course.autograde(chapter.name, "untouched")
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
