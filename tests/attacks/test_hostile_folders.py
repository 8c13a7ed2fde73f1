"""Hostile folders in one class, through `autograder grade` and through `nbgrader autograde`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import sqlite3
import time
from html.parser import HTMLParser

import hostile
import nbformat
import pytest
from folders import FOLDERS, NAME, Place
from hostile import CHAPTER
from nbgrader.apps.api import NbGraderAPI

from autograder.authoring.release import chapters, to_text
from autograder.classes import class_folder, class_grading, gradebook
from autograder.sandbox import warm
# nbformat, on what it sets right in passing.
pytestmark = pytest.mark.filterwarnings("ignore")

FED_BACK = ("scripts", "odd_ids", "claimed", "odd_names", "version_of_odd_text", "odd_cells")

MESSY = """\
import sys
print("working", file=sys.stderr)
training_state_bytes = lambda n_params, precision, optimizer: n_params * (
    {"fp32": 8, "bf16": 4, "mixed": 8}[precision]
    + (0 if optimizer == "sgd" else 4 if precision == "bf16" else 8))
"""


@pytest.fixture(scope="module")
def honest(chapter):
    """The students' copy with 3 points' worth of work in it."""
    return hostile.notebook(chapter.release, chapter.source, hostile.Attack("none", "pass"))


@pytest.fixture(scope="module")
def ordinary(chapter, honest):
    """Submissions of people who mean no harm, by student, with what they earn."""
    messy = nbformat.reads(nbformat.writes(honest), as_version=4)
    messy.cells = [cell for cell in messy.cells[::-1]
                   if not cell.metadata.get("nbgrader", {}).get("grade")]
    for cell in messy.cells:
        if cell.metadata.get("nbgrader", {}).get("grade_id") == "training_state_bytes":
            cell.source, cell.metadata = MESSY, nbformat.NotebookNode()
            cell.id = "mine"
    messy.cells = [nbformat.v4.new_code_cell("%matplotlib inline\n!true"), *messy.cells]
    return {"ada": (honest, 3), "solution": (chapter.source, 20), "untouched": (chapter.release, 0),
            "messy": (messy, 7), "zoe": (honest, 3)}


def hand_in(root, honest, ordinary):
    for student, (notebook, _) in ordinary.items():
        folder = root / "submitted" / student / CHAPTER
        folder.mkdir(parents=True)
        (folder / NAME).write_text(to_text(notebook), "utf-8")
    for each in FOLDERS:
        folder = root / "submitted" / each.student / CHAPTER
        folder.mkdir(parents=True)
        each.fill(Place(folder, root, honest))
    # Whole folders that are links.
    (root / "submitted" / "thief").mkdir()
    (root / "submitted" / "thief" / CHAPTER).symlink_to(f"../solution/{CHAPTER}")
    (root / "submitted" / "pirate").symlink_to("solution")


def bytes_of(root) -> dict[str, str]:
    """Hashes of what no submission may change: the others' work, sources, the secret."""
    paths = [*(root / "source").rglob("*.ipynb"), root / ".grading" / "secret",
             *(root / "submitted" / name / CHAPTER / NAME for name in ("ada", "solution", "zoe"))]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def rows(root, student: str):
    """All that the gradebook holds of a student's grades, and of what can be earned."""
    with gradebook.writing(root) as writer, writer._open() as book:
        grades = sorted(
            (grade.name, grade.auto_score, grade.manual_score, grade.needs_manual_grade)
            for grade in book.find_submission_notebook(CHAPTER, CHAPTER, student).grades)
        points = sorted((cell.name, cell.max_score) for cell in
                        book.find_notebook(CHAPTER, CHAPTER).grade_cells)
    return grades, points


@pytest.fixture(scope="module")
def classes(sandbox, honest, ordinary, tmp_path_factory):
    """The same class twice: graded by our command, and by nbgrader's."""
    signal.alarm(0)
    kept, warm._SHARED = warm._SHARED, sandbox
    top = tmp_path_factory.mktemp("classes")
    ours, theirs = top / "ours", top / "theirs"
    class_folder.init(ours, sources=chapters([CHAPTER]))
    shutil.copytree(ours, theirs)
    for root in (ours, theirs):
        hand_in(root, honest, ordinary)
    before = [bytes_of(root) for root in (ours, theirs)]
    began = time.monotonic()
    # One who is graded first: what follows leaves it alone.
    with gradebook.writing(ours) as book:
        list(class_grading.grade(ours, book, class_grading.find(ours, student="ada"), workers=1))
    first = rows(ours, "ada")
    with gradebook.writing(ours) as book:
        work = class_grading.find(ours)
        steps = list(class_grading.grade(ours, book, work, workers=1))
        print(f"ours: {time.monotonic() - began:.1f} s")
    here = os.getcwd()
    os.chdir(theirs)
    try:
        api = NbGraderAPI(config=gradebook.load_config(theirs))
        said = api.autograde(CHAPTER, "*")
        feedback = [api.generate_feedback(CHAPTER, student) for student in FED_BACK]
    finally:
        os.chdir(here)
    print(f"with nbgrader: {time.monotonic() - began:.1f} s")
    yield {"ours": ours, "theirs": theirs, "before": before, "first": first, "steps": steps,
           "work": work, "said": said, "feedback": feedback}
    warm._SHARED = kept


@pytest.fixture
def root(request, classes):
    return classes[request.param]


both = pytest.mark.parametrize("root", ["ours", "theirs"], indirect=True)


def scores(root) -> dict[str, float]:
    with gradebook.writing(root) as book:
        return {row.student: row.score for row in book.rows(CHAPTER)}


def told(root, student: str) -> str:
    path = root / "autograded" / student / CHAPTER / NAME
    if not path.exists():
        return "nothing"
    notebook = nbformat.read(path, as_version=4)
    text = [cell.source for cell in notebook.cells[:1]]
    text += [output.get("text", "") for cell in notebook.cells if cell.cell_type == "code"
             for output in cell.outputs]
    return "\n".join(text).replace("\\", "")


@both
def test_everybody_gets_what_was_earned(root, ordinary):
    expected = {student: score for student, (_, score) in ordinary.items()}
    expected |= {each.student: each.score for each in FOLDERS}
    found = scores(root)
    assert "pirate" not in found and found.pop("thief", 0) == 0
    assert {name: score for name, score in found.items() if score != expected[name]} == {}
    assert set(found) == set(expected)


@both
def test_students_are_told_what_was_wrong(root):
    words = {each.student: told(root, each.student) for each in FOLDERS}
    silent = {each.student: words[each.student] for each in FOLDERS
              if not re.search(each.said, words[each.student])}
    assert silent == {}
    # In a few lines, whatever it was.
    assert max(map(len, words.values())) < 10_000


def test_nothing_failed(classes):
    assert [step.failure for step in classes["steps"] if step.failure] == []
    assert classes["work"].failures == []
    assert any("thief" in line for line in classes["work"].ignored)
    assert classes["said"]["success"], classes["said"]["log"]
    assert [one["log"] for one in classes["feedback"] if not one["success"]] == []


def test_nothing_else_was_changed(classes):
    assert [bytes_of(classes[name]) for name in ("ours", "theirs")] == classes["before"]
    assert rows(classes["ours"], "ada") == classes["first"]
    with sqlite3.connect(classes["ours"] / "gradebook.db") as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert base.execute("SELECT max(auto_score) FROM grade").fetchone() == (4,)


@both
def test_what_is_graded_holds_plain_files_only(root):
    for top in ("submitted", "autograded"):
        for folder, folders, files in os.walk(root / top):
            for name in files:
                path = os.path.join(folder, name)
                assert os.path.isfile(path) and not os.path.islink(path), path
                assert os.stat(path).st_size < 10**8 and os.stat(path).st_nlink == 1, path
    used = sum(path.stat().st_blocks * 512 for path in (root / ".grading").rglob("*")
               if path.is_file() and not path.is_symlink())
    assert used < 10**9  # no archive was unpacked


class Live(HTMLParser):
    """Collects what a browser would execute of a student's."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self._script = False

    def handle_starttag(self, tag, attributes):
        self._script = tag == "script"
        values = dict(attributes)
        self.found += [f"{tag} {name}" for name, value in values.items() if name.startswith("on")
                       or (name in ("src", "href") and "javascript:" in (value or ""))]
        self.found += [tag] if tag in ("iframe", "object", "embed", "base") else []

    def handle_data(self, text):
        if self._script and "owned" in text:
            self.found.append(text)

    def handle_endtag(self, tag):
        self._script = False


def test_feedback_carries_nothing_that_runs(classes):
    checked = 0
    for path in (classes["theirs"] / "feedback").rglob("*.html"):
        live = Live()
        live.feed(path.read_text("utf-8"))
        assert live.found == [], path
        checked += 1
    assert checked == len(FED_BACK)


def test_the_same_scores_both_ways(classes, ordinary):
    ours, theirs = (scores(classes[name]) for name in ("ours", "theirs"))
    for student, (_, score) in ordinary.items():
        assert ours[student] == theirs[student] == score
        assert rows(classes["ours"], student) == rows(classes["theirs"], student)
