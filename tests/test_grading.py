"""Every chapter through nbgrader's own autograde with the real engine, the gradebook read back."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from autograder.authoring.release import chapters
from loralab.execution import seconds_for
from loralab.recorded_runs import REFERENCE
from loralab.training import ADAPTER_FILES
from tests.conftest import build
from tests.notebooks import cell_of

# What is handed in beside the notebook, where a chapter asks for it.
CAPSTONE = Path(__file__).parent / "adapters" / "capstone"
FILES = {"05": [REFERENCE / name for name in ADAPTER_FILES],
         "08": [CAPSTONE / name for name in ADAPTER_FILES]}


def test_the_solution_scores_everything(chapter, course):
    files = FILES.get(chapter.number, ())
    grades = course.grade(chapter.path, "solution", chapter.source, files)
    assert grades
    for cell, grade in grades.items():
        if grade.by_hand:
            assert grade.score is None, f"{cell}: an answer in words waits for a person"
        else:
            assert grade.score == grade.points, f"{cell}: {grade}"
    graded = course.graded_notebook(chapter.name, "solution")
    assert "About what you handed in" not in str(graded), "nothing had to be set right"
    said = {cell.id: output.text for cell in graded.cells if cell.cell_type == "code"
            for output in cell.outputs if output.output_type == "stream"}
    assert said == {cell: f"{grade.points:g} of {grade.points:g} points.\n"
                    for cell, grade in grades.items() if not grade.by_hand}


def test_the_untouched_student_copy_scores_nothing(chapter, course):
    grades = course.grade(chapter.path, "untouched", chapter.release)
    assert grades
    assert {cell: grade.score for cell, grade in grades.items() if grade.score != 0} == {}


def test_grading_again_gives_the_same(course):
    (path,) = chapters(["01"])
    first = course.grade(path, "again", _half_done(path))
    (course.root / ".grading" / "results").rename(course.root / ".grading" / "earlier")
    shown = course.graded_notebook(path.stem, "again")
    assert course.api.autograde(path.stem, "again", force=True)["success"]
    assert course.graded_notebook(path.stem, "again") == shown
    assert 0 < sum(grade.score or 0 for grade in first.values()) < sum(
        grade.points for grade in first.values())


def _half_done(path):
    chapter = build(path.stem)
    notebook = copy.deepcopy(chapter.release)
    cell_of(notebook, "lora_state_bytes").source = cell_of(
        chapter.source, "lora_state_bytes").source
    return notebook


OWN = '''# %% [markdown]
# ### Exercise 90.1 — write `square`

# %% exercise="square"
def square(x):
    ### BEGIN SOLUTION
    return x * x
    ### END SOLUTION

# %% check="square" points=2
assert square(2) == 4
### BEGIN HIDDEN TESTS
assert square(3) == 9, "a hidden word"
### END HIDDEN TESTS
'''


@pytest.mark.parametrize("answer, score", [("x ** 2", 2), ("4", 0), ("1 / 0", 0)])
def test_an_instructors_own_assignment_with_hidden_tests(course, tmp_path, answer, score):
    path = tmp_path / "90_own.py"
    path.write_text(OWN)
    course.release(path)
    released = (course.root / "release" / path.stem / f"{path.stem}.ipynb").read_text("utf-8")
    assert "a hidden word" not in released and "square(2) == 4" in released
    notebook = nbformat.reads(released, as_version=4)
    cell_of(notebook, "square").source = f"def square(x):\n    return {answer}"
    student = re.sub(r"\W", "", f"own{answer}")
    grades = course.grade(path, student, notebook)
    assert {name: grade.score for name, grade in grades.items()} == {"square-check": score}
    assert course.api.generate_feedback(path.stem, student)["success"]
    page = course.root / "feedback" / student / path.stem / f"{path.stem}.html"
    assert "a hidden word" not in page.read_text("utf-8")


@pytest.mark.usefixtures("chapter_environment")
def test_the_student_copy_stops_at_the_first_exercise_and_names_it(chapter, course, tmp_path):
    notebook = chapter.to_run(chapter.release)
    with pytest.raises(CellExecutionError) as caught:
        NotebookClient(notebook, kernel_name="python3", timeout_func=seconds_for,
                       config=course.api.config).execute(cwd=str(tmp_path))
    first = next(found for cell in notebook.cells
                 if (found := re.search(r"^### (Exercise [\d.]+) — ", cell.source, re.MULTILINE)))
    assert caught.value.ename == "NotImplementedError"
    assert caught.value.evalue.startswith(f"{first.group(1)}: ")
