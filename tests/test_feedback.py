"""What nbgrader's gradebook and feedback say of a result: its scores, messages and notes."""

from __future__ import annotations

import copy
import html
import os
import re
import signal

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from nbgrader.apps.api import NbGraderAPI
from nbgrader.converters import Autograde
from nbgrader.coursedir import CourseDirectory

from autograder.classes import batch, class_folder, gradebook, nbgrader_steps
from autograder.grading.result import Item, Result
from tests.notebooks import SMALL, cell_of, index_of, small

NAME = "09_small"
HIDDEN = ('assert half(4) == 2\n### BEGIN HIDDEN TESTS\nassert half(8) == 4  # a secret\n'
          "### END HIDDEN TESTS\n")
SOURCE = SMALL.replace("assert half(4) == 2\n", HIDDEN)
POINTS = {"double-check": 2.0, "half-check": 3.0}


class Class:
    """A class folder whose results are given, not computed."""

    def __init__(self, root):
        path = root / "solutions" / f"{NAME}.py"
        path.parent.mkdir()
        path.write_text(SOURCE)
        self.root = class_folder.init(root / "class", sources=[path])
        self.config = gradebook.load_config(self.root)
        self.api = NbGraderAPI(config=self.config)
        self.results: dict[str, Result] = {}
        self.release = nbformat.read(self.root / "release" / NAME / f"{NAME}.ipynb", 4)

    def submit(self, student, notebook):
        folder = self.root / "submitted" / student / NAME
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{NAME}.ipynb").write_text(nbformat.writes(notebook), "utf-8")
        return folder

    def grade(self, student, notebook=None, double=2.0, half=3.0, messages=("Fine.",), notes=()):
        """Through nbgrader's API, with this as the engine's result."""
        if notebook is not None:
            self.submit(student, notebook)
        self.results[student] = Result("09", "seed", {
            "double-check": Item(2.0, double, tuple(messages)),
            "half-check": Item(3.0, half, tuple(messages)), "why": Item(1.0, None)}, tuple(notes))
        done = self.api.autograde(NAME, student)
        assert done["success"], done.get("error") or done.get("log")
        return self.scores(student)

    def scores(self, student):
        with self.api.gradebook as book:
            found = book.find_submission_notebook(NAME, NAME, student)
            return {grade.name: grade.auto_score for grade in found.grades}

    def waiting(self, student):
        with self.api.gradebook as book:
            found = book.find_submission_notebook(NAME, NAME, student)
            return {grade.name for grade in found.grades if grade.needs_manual_grade}

    def graded(self, student):
        path = self.root / "autograded" / student / NAME / f"{NAME}.ipynb"
        return nbformat.read(path, as_version=4)

    def feedback(self, student):
        done = self.api.generate_feedback(NAME, student)
        assert done["success"], done.get("error") or done.get("log")
        return (self.root / "feedback" / student / NAME / f"{NAME}.html").read_text("utf-8")


@pytest.fixture(scope="module")
def small_class(tmp_path_factory):
    return Class(tmp_path_factory.mktemp("small"))


@pytest.fixture
def course(small_class, monkeypatch):
    def result_of(root, chapter, student):
        assert (root, chapter) == (small_class.root, NAME)
        return small_class.results[student]

    monkeypatch.setattr(batch, "result_of", result_of)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(120)
    yield small_class
    signal.alarm(0)


def solved(course):
    notebook = copy.deepcopy(course.release)
    cell_of(notebook, "double").source = "def double(x):\n    return x + x"
    return notebook


# Scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double, half", [(2.0, 3.0), (0.0, 0.0), (0.5, 1.333333), (2.0, 0.0)])
def test_the_gradebook_has_the_results_scores(course, double, half):
    student = f"s{double}-{half}".replace(".", "")
    assert course.grade(student, solved(course), double, half) == {
        "double-check": double, "half-check": half, "why": 0}


def test_a_graded_cell_shows_one_message_and_one_number(course):
    course.grade("outputs", solved(course), 1.5, 3.0, ("1.5 of 2 points.", "half: no."))
    notebook = course.graded("outputs")
    said, number = cell_of(notebook, "double-check").outputs
    assert (said.output_type, said.name, said.text) == (
        "stream", "stdout", "1.5 of 2 points.\nhalf: no.\n")
    assert (number.output_type, number.data) == ("execute_result", {"text/plain": "1.5"})
    assert [cell.id for cell in notebook.cells if cell.get("outputs")] == list(POINTS)


def test_an_item_that_the_engine_does_not_know_scores_nothing(course):
    course.submit("unknown", solved(course))
    course.results["unknown"] = Result("09", "seed", {})
    assert course.api.autograde(NAME, "unknown")["success"]
    assert course.scores("unknown") == {"double-check": 0, "half-check": 0, "why": 0}
    shown = cell_of(course.graded("unknown"), "half-check").outputs[0].text
    assert shown == "This cell was not graded.\n"


def test_an_answer_in_words_waits_for_a_person(course):
    course.grade("silent", solved(course))
    assert course.waiting("silent") == set()
    notebook = solved(course)
    cell_of(notebook, "why").source = "Because."
    assert course.grade("words", notebook)["why"] is None
    assert course.waiting("words") == {"why"}


def test_a_score_that_a_person_gave_stays(course):
    notebook = solved(course)
    cell_of(notebook, "why").source = "Because."
    course.grade("kept", notebook)
    with course.api.gradebook as book:
        book.find_grade("why", NAME, NAME, "kept").manual_score = 0.5
        book.db.commit()
    course.grade("kept", None, half=1.0)
    with course.api.gradebook as book:
        grade = book.find_grade("why", NAME, NAME, "kept")
        assert (grade.manual_score, grade.score) == (0.5, 0.5)
        assert book.find_grade("half-check", NAME, NAME, "kept").score == 1.0


# What was handed in -------------------------------------------------------------------------------


def test_a_deleted_check_is_put_back_and_scored(course):
    notebook = solved(course)
    notebook.cells = [cell for cell in notebook.cells
                      if cell.metadata.get("nbgrader", {}).get("grade_id") not in POINTS]
    assert course.grade("deleted", notebook) == POINTS | {"why": 0}
    assert cell_of(course.graded("deleted"), "double-check").source == "assert double(2) == 4"


def test_edited_points_and_checks_do_not_pay(course):
    notebook = solved(course)
    cell_of(notebook, "double-check").metadata.nbgrader.points = 1000
    cell_of(notebook, "double-check").source = "1000"
    cell_of(notebook, "half-check").metadata.nbgrader.update(solution=True, grade=False)
    cell_of(notebook, "why").metadata.nbgrader.update(schema_version=1, cell_type="code")
    assert course.grade("edited", notebook) == POINTS | {"why": 0}
    graded = course.graded("edited")
    assert cell_of(graded, "double-check").source == "assert double(2) == 4"
    assert cell_of(graded, "double-check").metadata.nbgrader.points == 2


def test_one_submission_never_stops_the_others(course):
    """nbgrader's issue 1083: a copied test cell ended the run for every later student."""
    copied = solved(course)
    copied.cells.append(copy.deepcopy(cell_of(copied, "double-check")))
    old = solved(course)
    for cell in old.cells:
        if "nbgrader" in cell.metadata:
            cell.metadata.nbgrader.schema_version = 0
    course.submit("m1-copied", copied)
    course.submit("m2-old", old)
    course.submit("m3-good", solved(course))
    pipe = course.submit("m4-pipe", solved(course))
    (pipe / f"{NAME}.ipynb").unlink()
    os.mkfifo(pipe / f"{NAME}.ipynb")
    os.mkfifo(pipe / "timestamp.txt")
    link = course.submit("m5-link", solved(course))
    (link / "data.csv").symlink_to("/etc/passwd")
    (link / "timestamp.txt").write_text("0001-01-01 00:00:00 +1200")
    damaged = course.submit("m6-damaged", solved(course))
    (damaged / f"{NAME}.ipynb").write_text("{")
    mark = course.submit("m7-mark", solved(course))
    path = mark / f"{NAME}.ipynb"
    path.write_text("\ufeff" + path.read_text("utf-8"), "utf-8")
    renamed = course.submit("m8-renamed", solved(course))
    (renamed / f"{NAME}.ipynb").rename(renamed / f"{NAME} (1).ipynb")
    late = course.submit("m9-good", solved(course))
    (late / "timestamp.txt").write_text("2026-03-04 05:06:07.123456 UTC")
    students = sorted(path.name for path in (course.root / "submitted").glob("m*"))
    for student in students:
        course.results[student] = Result("09", "seed", {
            name: Item(points, points, ("Fine.",)) for name, points in POINTS.items()})
    place = CourseDirectory(config=course.config, assignment_id=NAME, student_id="m*")
    Autograde(coursedir=place, config=course.config).start()
    for student in students:
        assert course.scores(student) == POINTS | {"why": 0}, student
    with course.api.gradebook as book:
        assert book.find_submission(NAME, "m9-good").timestamp.year == 2026
    assert not list((course.root / "autograded").rglob("data.csv"))
    assert (course.root / ".grading" / "quarantine" / "m5-link" / NAME).is_dir()


def test_a_stranger_metadata_does_not_stop_it(course):
    notebook = solved(course)
    notebook.metadata = {"kernelspec": {"name": "bash", "display_name": "x", "language": "bash"},
                         "language_info": {"name": "perl"}, "celltoolbar": 3}
    notebook.cells.insert(0, new_code_cell("x", metadata={"nbgrader": {
        "grade": True, "solution": False, "grade_id": "mine", "points": 50, "locked": True,
        "schema_version": 3, "task": False}}))
    assert course.grade("stranger", notebook) == POINTS | {"why": 0}
    assert course.graded("stranger").metadata.kernelspec.name == "python3"


# Words --------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> [x](javascript:alert(3)) $\\href{a}{b}$ `c`"


def test_notes_come_first_and_as_plain_words(course):
    note = f"{EVIL} was left out."
    course.grade("notes", solved(course), notes=("Cells were put back.", note))
    cell = course.graded("notes").cells[0]
    assert cell.cell_type == "markdown"
    assert cell.source.startswith("**About what you handed in**\n\n- Cells were put back\\.\n- ") or (
        cell.source.startswith("**About what you handed in**\n\n- Cells were put back.\n- "))
    assert "<script" not in cell.source and "<img" not in cell.source


def test_without_notes_there_is_no_such_cell(course):
    course.grade("none", solved(course))
    assert "About what you handed in" not in str(course.graded("none"))


def test_grading_again_does_not_pile_up_notes(course):
    course.grade("again", solved(course), notes=("A note.",))
    course.grade("again", None, notes=("A note.",))
    assert str(course.graded("again")).count("About what you handed in") == 1


def test_feedback_shows_messages_and_notes_and_no_html_of_theirs(course):
    notebook = solved(course)
    notebook.cells.insert(index_of(notebook, "half"), new_markdown_cell("My own note."))
    course.grade("feedback", notebook, 1.0, 0.0, ("1 of 2 points.", f"half: {EVIL}"),
                 notes=(f"The file {EVIL} was left out.",))
    page = course.feedback("feedback")
    assert "<script>alert(1)" not in page and "<img src=x" not in page
    assert 'href="javascript' not in page
    words = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert "1 of 2 points." in words and "About what you handed in" in words
    assert words.count("<script>alert(1)</script>") >= 3  # as words, in two cells and the note
    assert "My own note." in words


# The parts ----------------------------------------------------------------------------------------


def test_show_changes_no_source_and_leaves_other_cells_bare():
    source, _ = small()
    before = [cell.source for cell in source.cells]
    for cell in source.cells:
        if cell.cell_type == "code":
            cell.outputs = [new_output("stream", text="old")]
    nbgrader_steps.show(source, Result("09", "s", {
        "double-check": Item(2.0, 1.0, ("1 of 2 points.",)), "why": Item(1.0, None)}))
    assert [cell.source for cell in source.cells] == before
    assert not cell_of(source, "double").outputs and not cell_of(source, "import math").outputs
    nbformat.validate(source)
