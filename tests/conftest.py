"""What the tests of the release pipeline share: every chapter, built once a session.

A chapter that needs parameters (fewer training steps) or environment variables to be tested
has them in PARAMETERS and ENVIRONMENT, by its number.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbgrader.apps.api import NbGraderAPI
from traitlets.config import PyFileConfigLoader

from autograder.authoring.execute import with_parameters
from autograder.authoring.markers import source_notebook
from autograder.authoring.release import chapters, release_notebook, to_text


def pytest_configure(config):
    # nbgrader's own, on the SQLAlchemy that it supports.
    config.addinivalue_line("filterwarnings", "ignore:Object of type <Submitted")


# Kernels, alembic and jupyter are started by name: those of this environment are meant.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

SOURCES = chapters()
NAMES = [path.stem for path in SOURCES]

# Injected into a chapter's parameters cell wherever a test runs it.
PARAMETERS: dict[str, dict[str, object]] = {}
# Set while a chapter's kernel runs.
ENVIRONMENT: dict[str, dict[str, str]] = {}


@pytest.fixture(scope="session")
def parameters() -> dict[str, object]:
    """All of PARAMETERS: what papermill injects, each chapter taking those that it has."""
    return {name: value for chosen in PARAMETERS.values() for name, value in chosen.items()}


class Grade(NamedTuple):
    """One graded cell in the gradebook. `score` is None where a person has to give it."""

    score: float | None
    points: float
    by_hand: bool


class Chapter:
    """One chapter as the tests see it: its source, both notebooks, and how it is to be run."""

    def __init__(self, path: Path):
        self.path, self.name, self.number = path, path.stem, path.stem[:2]
        self.text = path.read_text("utf-8")
        self.source = source_notebook(path)
        self.release = release_notebook(self.source, self.name)
        self.environment = ENVIRONMENT.get(self.number, {})

    def to_run(self, notebook):
        """`notebook` with this chapter's test parameters injected."""
        return with_parameters(notebook, PARAMETERS.get(self.number, {}))


_built: dict[str, Chapter] = {}


def build(name: str) -> Chapter:
    """The chapter of that name, built once."""
    if name not in _built:
        _built[name] = Chapter(next(path for path in SOURCES if path.stem == name))
    return _built[name]


@pytest.fixture(params=NAMES)
def chapter(request) -> Chapter:
    """Each chapter in solutions/."""
    return build(request.param)


@pytest.fixture
def chapter_environment(request, monkeypatch) -> None:
    """The environment that this test's chapter wants."""
    for name, value in request.getfixturevalue("chapter").environment.items():
        monkeypatch.setenv(name, value)


class Course:
    """An nbgrader course folder with every chapter released, and its gradebook."""

    def __init__(self, root: Path):
        self.root = root
        (root / "nbgrader_config.py").write_text(
            "from autograder.nbgrader_config import configure\nconfigure(get_config())\n")
        config = PyFileConfigLoader("nbgrader_config.py", path=str(root)).load_config()
        config.CourseDirectory.root = str(root)
        config.CourseDirectory.course_id = "lora-lab"
        config.CourseDirectory.db_url = f"sqlite:///{root / 'gradebook.db'}"
        self.api = NbGraderAPI(config=config)

    def release(self, chapter: Chapter) -> None:
        """nbgrader's generate_assignment, this time with its database."""
        _write(chapter.source, self.root / "source" / chapter.name)
        _succeed(self.api.generate_assignment(chapter.name))

    def grade(self, chapter: Chapter, student: str, notebook) -> dict[str, Grade]:
        """nbgrader's autograde of `notebook` as `student`'s work: cell → what the gradebook says."""
        if not (self.root / "source" / chapter.name).exists():
            self.release(chapter)
        _write(chapter.to_run(notebook), self.root / "submitted" / student / chapter.name)
        _succeed(self.api.autograde(chapter.name, student))
        with self.api.gradebook as gradebook:
            found = gradebook.find_submission_notebook(chapter.name, chapter.name, student)
            return {
                grade.name: Grade(grade.auto_score, grade.max_score, grade.needs_manual_grade)
                for grade in found.grades
            }

    def graded_notebook(self, chapter: Chapter, student: str):
        """The notebook with the outputs that autograde gave it."""
        path = self.root / "autograded" / student / chapter.name / f"{chapter.name}.ipynb"
        return nbformat.read(path, as_version=4)


def _write(notebook, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{folder.name}.ipynb").write_text(to_text(notebook), "utf-8")


def _succeed(result: dict) -> None:
    assert result["success"], result.get("error") or result.get("log")


@pytest.fixture(scope="session")
def course(tmp_path_factory) -> Course:
    return Course(tmp_path_factory.mktemp("course"))


@pytest.fixture
def alarm():
    """Fails a test that hangs, also inside a system call."""

    def ring(*_):
        raise TimeoutError("this test hung")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
