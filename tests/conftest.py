"""What the tests of the release pipeline share: every chapter, built once a session.

A chapter that needs parameters (fewer training steps) or environment variables to be tested
has them in PARAMETERS and ENVIRONMENT, by its number.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from autograder.authoring.execute import with_parameters
from autograder.authoring.markers import source_notebook
from autograder.authoring.release import chapters, release_notebook
from course import Course


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


@pytest.fixture(scope="session")
def course(tmp_path_factory) -> Course:
    return Course(tmp_path_factory.mktemp("course") / "class")


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
