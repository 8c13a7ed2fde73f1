"""nbgrader's own autograde through our steps, with an engine that is made up here."""

from __future__ import annotations

import copy
import json
import os

import nbformat
import pytest
from course import Course

from autograder.classes import batch, nbgrader_steps
from autograder.authoring.markers import expand
from autograder.authoring.release import to_text
from autograder.grading.repair import repair
from autograder.grading.result import Item, Result
from autograder.grading.submission import SubmissionError, quarantine, read_submission

NAME = "07_small"
SOURCE = '''# %% [markdown]
# ### Exercise 7.1 — write `double`

# %% exercise="double"
def double(x):
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

# %% check="double" points=3
assert double(2) == 4
### BEGIN HIDDEN TESTS
assert double(21) == 42, "hidden"
### END HIDDEN TESTS

# %% [markdown]
# ### Exercise 7.2 — write `half`

# %% exercise="half"
def half(x):
    ### BEGIN SOLUTION
    return x / 2
    ### END SOLUTION

# %% check="half" points=2
assert half(2) == 1

# %% [markdown]
# ### Exercise 7.3 — explain it

# %% [markdown] manual="explain" points=4
### BEGIN SOLUTION
# Because.
### END SOLUTION
'''


@pytest.fixture(autouse=True)
def nothing_hangs(alarm):
    """A FIFO that is opened waits for ever: that fails here after a while."""


@pytest.fixture(scope="module")
def source():
    return expand(SOURCE, lambda name: "")


@pytest.fixture(scope="module")
def empty_course(tmp_path_factory, source):
    """A course folder with one assignment, and its gradebook."""
    return made(tmp_path_factory.mktemp("small"), {NAME: {NAME: source}})


def made(root, assignments) -> Course:
    course = Course(root, sources=())
    for assignment, notebooks in assignments.items():
        folder = root / "source" / assignment
        folder.mkdir(parents=True)
        for name, notebook in notebooks.items():
            (folder / f"{name}.ipynb").write_text(to_text(notebook), "utf-8")
        result = course.api.generate_assignment(assignment)
        assert result["success"], result["log"]
    return course


@pytest.fixture
def course(empty_course, engine):
    """The course without submissions of other tests."""
    import shutil

    for folder in ("submitted", "autograded", ".grading", "feedback"):
        shutil.rmtree(empty_course.root / folder, ignore_errors=True)
    return empty_course


def graded(notebook, source) -> Result:
    """A made-up engine: half of an exercise's points for a cell that is there, all for `2 *`."""
    found = repair(notebook, source)
    items = {}
    for cell in source.cells:
        mark = cell.metadata.get("nbgrader", {})
        if mark.get("grade"):
            text = found.cells.get(mark.grade_id.removesuffix("-check")) or ""
            share = 1 if "return 2" in text else 0.5 if "pass" in text else 0
            items[mark.grade_id] = Item(mark.points, None) if mark.solution else Item(
                mark.points, mark.points * share, (f"{mark.points * share:g} of {mark.points:g}",))
    return Result("07", "seed", items, tuple(found.notes))


@pytest.fixture
def engine(monkeypatch):
    """In place of the batch and the engine."""

    def result_of(root, chapter, student):
        source = nbformat.read(root / "source" / chapter / f"{chapter}.ipynb", as_version=4)
        try:
            found = read_submission(root / "submitted" / student / chapter, chapter)
        except SubmissionError as error:
            nothing = graded(nbformat.v4.new_notebook(), source)
            return Result("07", "seed", {
                name: Item(item.points, 0.0, (str(error),)) for name, item in nothing.items.items()
            }, (str(error),))
        return graded(found.notebook, source)

    monkeypatch.setattr(batch, "result_of", result_of)


@pytest.fixture
def work(course):
    return nbformat.read(course.root / "release" / NAME / f"{NAME}.ipynb", as_version=4)


def solved(work):
    work = copy.deepcopy(work)
    cell(work, "double").source = "def double(x):\n    return 2 * x"
    cell(work, "half").source = "def half(x):\n    pass"
    return work


def cell(notebook, name):
    return next(cell for cell in notebook.cells
                if cell.metadata.get("nbgrader", {}).get("grade_id") == name)


def hand_in(course, student, notebook):
    if notebook is not None:
        return course.hand_in(NAME, student, notebook)
    folder = course.root / "submitted" / student / NAME
    folder.mkdir(parents=True)
    return folder


def autograde(course, student="*"):
    """nbgrader's `autograde`, all at once as its command does, or for one student."""
    from nbgrader.converters import Autograde
    from nbgrader.coursedir import CourseDirectory

    coursedir = CourseDirectory(config=course.api.config, assignment_id=NAME, student_id=student)
    Autograde(coursedir=coursedir, config=course.api.config, force=False).start()


def scores(course, student, assignment=NAME, notebook=NAME):
    with course.api.gradebook as gradebook:
        found = gradebook.find_submission_notebook(notebook, assignment, student)
        return {grade.name: (grade.auto_score, grade.needs_manual_grade) for grade in found.grades}


def shown(course, student, name="double-check"):
    path = course.root / "autograded" / student / NAME / f"{NAME}.ipynb"
    return cell(nbformat.read(path, as_version=4), name)


FULL = {"double-check": (3.0, False), "half-check": (1.0, False), "explain": (0.0, False)}
NOTHING = {"double-check": (0.0, False), "half-check": (0.0, False), "explain": (0.0, False)}


# One submission -----------------------------------------------------------------------------------


def test_scores_and_messages_are_recorded(course, work):
    notebook = solved(work)
    cell(notebook, "explain").source = "I think so."
    hand_in(course, "ada", notebook)
    autograde(course)
    assert scores(course, "ada") == FULL | {"explain": (None, True)}
    outputs = shown(course, "ada").outputs
    assert [output.output_type for output in outputs] == ["stream", "execute_result"]
    assert outputs[0].name == "stdout" and outputs[0].text == "3 of 3\n"
    assert outputs[1].data == {"text/plain": "3.0"}


def test_untouched_work_scores_nothing(course, work):
    hand_in(course, "ada", work)
    autograde(course)
    assert scores(course, "ada") == NOTHING


def test_hidden_tests_are_not_in_what_students_get_back(course, work):
    hand_in(course, "ada", solved(work))
    autograde(course)
    result = course.api.generate_feedback(NAME, "ada")
    assert result["success"], result["log"]
    assert shown(course, "ada").source == "assert double(2) == 4"
    page = (course.root / "feedback" / "ada" / NAME / f"{NAME}.html").read_text("utf-8")
    assert "3 of 3" in page and "hidden" not in page.split("<body")[1].lower()


def output(kind, **fields):
    return nbformat.v4.new_output(kind, **fields)


@pytest.mark.parametrize("forged", [
    [output("execute_result", data={"text/plain": "3.0"})],
    [output("stream", name="stderr", text="a warning")],
    [output("error", ename="E", evalue="", traceback=[])],
    *([output("execute_result", data={"text/plain": text})]
      for text in ("nan", "tensor(0.)", "-1", "inf", "False", "1e9"))])
def test_nbgraders_traps_give_neither_points_nor_penalties(course, work, forged):
    notebook = solved(work)
    for one in notebook.cells:
        if one.cell_type == "code":
            one.outputs = forged
    cell(notebook, "half").source = "def half(x): raise"
    hand_in(course, "ada", notebook)
    autograde(course)
    assert scores(course, "ada") == FULL | {"half-check": (0.0, False)}


def test_edited_copied_and_deleted_cells_do_not_pay(course, work):
    for one in work.cells:
        if mark := one.metadata.get("nbgrader"):
            mark.points = 100
            mark.grade = not mark.grade
    work.cells += [copy.deepcopy(one) for one in work.cells]
    work.cells = [one for one in work.cells if one.id != "half"]
    for number, one in enumerate(work.cells):
        one.id = f"id{number}"
    hand_in(course, "ada", work)
    autograde(course)
    assert scores(course, "ada") == NOTHING


# Several, some of them hostile --------------------------------------------------------------------


def truncated(folder, text):
    (folder / f"{NAME}.ipynb").write_text(text[:-50])


def nested(folder, text):
    (folder / f"{NAME}.ipynb").write_text('{"cells": ' + "[" * 10**6)


def fifo(folder, text):
    (folder / f"{NAME}.ipynb").unlink()
    os.mkfifo(folder / f"{NAME}.ipynb")


def link(folder, text):
    (folder / f"{NAME}.ipynb").unlink()
    (folder / f"{NAME}.ipynb").symlink_to(folder.parents[2] / "source" / NAME / f"{NAME}.ipynb")


def hard_link(folder, text):
    (folder / f"{NAME}.ipynb").unlink()
    os.link(folder.parents[2] / "source" / NAME / f"{NAME}.ipynb", folder / f"{NAME}.ipynb")


def linked_folder(folder, text):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.symlink_to(folder.parents[2] / "source" / NAME)


def sparse(folder, text):
    with open(folder / f"{NAME}.ipynb", "wb") as file:
        file.truncate(2**40)


def folder_of_that_name(folder, text):
    (folder / f"{NAME}.ipynb").unlink()
    (folder / f"{NAME}.ipynb").mkdir()


BROKEN = [truncated, nested, fifo, link, hard_link, linked_folder, sparse, folder_of_that_name]


def fifo_beside(folder, text):
    os.mkfifo(folder / "data")


def fifo_time(folder, text):
    os.mkfifo(folder / "timestamp.txt")


def odd_time(folder, text):
    (folder / "timestamp.txt").write_text("\x00" * 100)


def huge_beside(folder, text):
    with open(folder / "data.bin", "wb") as file:
        file.truncate(2**40)


def other_name(folder, text):
    (folder / f"{NAME}.ipynb").rename(folder / f"{NAME} (1).ipynb")


def unknown_notebooks(folder, text):
    os.mkfifo(folder / "other.ipynb")
    (folder / "more.ipynb").write_text("{")


def cells_of_any_kind(folder, text):
    raw = json.loads(text)
    raw["cells"] += [None, 7, {}, {"cell_type": "code", "source": None, "outputs": "x"}]
    raw["metadata"] = "none"
    for one in raw["cells"][:3]:
        one.pop("outputs", None)
        one["attachments"] = 3
    (folder / f"{NAME}.ipynb").write_text("\ufeff" + json.dumps(raw), "utf-8")


def version_3(folder, text):
    cells = nbformat.reads(text, as_version=4).cells
    old = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [
        {**one, "input": one.source} if one.cell_type == "code" else one for one in cells]}]}
    for one in old["worksheets"][0]["cells"]:
        if "input" in one:
            del one["source"]
    (folder / f"{NAME}.ipynb").write_text(json.dumps(old))


HARMLESS = [fifo_beside, fifo_time, odd_time, huge_beside, other_name, unknown_notebooks,
            version_3, cells_of_any_kind]


def test_a_batch_goes_on(course, work):
    """One run, as `nbgrader autograde` makes it for everyone at once."""
    text = to_text(solved(work))
    for how in [*BROKEN, *HARMLESS]:
        how(hand_in(course, how.__name__, solved(work)), text)
    hand_in(course, "nobody", None)
    for student in ("ada", "zoe"):
        hand_in(course, student, solved(work))
    autograde(course)
    for student in ("ada", "zoe", *(how.__name__ for how in HARMLESS)):
        assert scores(course, student) == FULL, student
    for how in BROKEN:
        student = how.__name__
        assert scores(course, student) == NOTHING, student
        assert "return 2" not in "".join(
            path.read_text("utf-8") for path in (course.root / "autograded" / student).rglob("*.ipynb"))
    for path in (course.root / "autograded").rglob("*"):
        assert not path.is_symlink() and (path.is_dir() or path.is_file())
        assert path.stat().st_size < 10**6


def test_a_pipe_in_place_of_a_time_after_a_first_run(course, work):
    """nbgrader opens a new submission's time before it calls any hook."""
    folder = hand_in(course, "ada", solved(work))
    (folder / "timestamp.txt").write_text("2030-01-01 00:00:00 UTC")
    autograde(course)
    (folder / "timestamp.txt").unlink()
    os.mkfifo(folder / "timestamp.txt")
    autograde(course)
    assert scores(course, "ada") == FULL


def test_one_that_cannot_be_moved_aside_is_skipped(course, work, monkeypatch):
    def refuse(folder, to, name):
        if "eve" in str(folder):
            raise OSError("read-only")
        return quarantine(folder, to, name)

    monkeypatch.setattr(nbgrader_steps, "quarantine", refuse)
    os.mkfifo(hand_in(course, "eve", solved(work)) / "pipe")
    hand_in(course, "zoe", solved(work))
    autograde(course)
    assert scores(course, "zoe") == FULL
    assert not (course.root / "autograded" / "eve").exists()


def test_odd_names_of_students_do_not_stop_the_batch(course, work):
    hand_in(course, "line\nbreak", solved(work))
    hand_in(course, "zoe", solved(work))
    autograde(course)
    assert scores(course, "zoe") == FULL


def test_an_engine_that_fails_for_one_grades_the_others(course, work, monkeypatch):
    whole = batch.result_of

    def failing(root, chapter, student):
        if student == "eve":
            raise RuntimeError("no answer")
        return whole(root, chapter, student)

    monkeypatch.setattr(batch, "result_of", failing)
    for student in ("ada", "eve", "zoe"):
        hand_in(course, student, solved(work))
    with pytest.raises(Exception, match="errors"):
        autograde(course)
    assert scores(course, "ada") == scores(course, "zoe") == FULL
    assert not (course.root / "autograded" / "eve" / NAME).exists()
