"""What the tests of the release pipeline share: every chapter, built once a session.

A chapter that needs parameters (fewer training steps) or environment variables to be tested
has them in PARAMETERS and ENVIRONMENT, by its number.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # Before torch is imported, here and in what tests start: the cores are shared.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
from xdist.scheduler import LoadScopeScheduling

from autograder.authoring.execute import with_parameters
from autograder.authoring.markers import source_notebook
from autograder.authoring.release import chapters, release_notebook
from course import Course


# The suite runs in two processes (pyproject.toml); a file's tests share what they build, so
# one process has all of them. Files that wait for the same training, listen on the same port, or
# fill the same folder run in one process too.
TOGETHER = {
    "test_chapters": "chapters", "test_grading": "chapters", "browser": "chapters",
    "attacks": "attacks", "test_bench": "attacks",
}  # fmt: skip


class Together(LoadScopeScheduling):
    """Parts out the tests by file, or by what TOGETHER names."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        name = file.removeprefix("tests/").partition("/")[0].removesuffix(".py")
        return TOGETHER.get(name, file)


def pytest_xdist_make_scheduler(config, log):
    return Together(config, log)


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
