"""Two class folders with the same work in them: this engine's, and stock nbgrader's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

from nbgrader.api import Gradebook, MissingEntry
from nbgrader.converters import GenerateAssignment
from nbgrader.coursedir import CourseDirectory
from traitlets.config import PyFileConfigLoader

from autograder.classes import class_folder, cluster
from autograder.nbgrader_config import generate_preprocessors
from autograder.authoring.release import quiet_log, to_text
from loralab import paths
from tests.bench.handed_in import Chapter, Work

BIN = Path(sys.executable).parent
LONGEST_SECONDS = 3600

# Nothing but time limits that let the notebooks end, and the client that hears every answer:
# with nbgrader's own, about one notebook in forty stands still for a whole time limit.
STOCK_CONFIG = """\
from loralab import execution

c = get_config()
c.CourseDirectory.course_id = "bench"
execution.configure(c)
"""


class Failed(RuntimeError):
    """A command of the benchmark failed; the message holds what it said."""


def timed(line: list[str], cwd: Path, seconds: float = LONGEST_SECONDS) -> float:
    """Run a command; its wall time in seconds. Raises Failed."""
    began = time.perf_counter()
    try:
        done = subprocess.run(line, cwd=cwd, env=environment(), timeout=seconds,
                              capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(line)}: not done in {seconds:.0f} s") from None
    took = time.perf_counter() - began
    if done.returncode:
        raise Failed(f"{' '.join(line)}: {(done.stdout + done.stderr)[-2000:]}")
    return took


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": str(paths.PROJECT)}


class _Folder:
    """A class folder. `scores` are read from its gradebook."""

    def __init__(self, root: Path):
        self.root = root

    def put(self, student: str, chapter: Chapter, work: Work) -> None:
        work.write(self.root / "submitted" / student / chapter.name)

    def empty(self) -> None:
        """Take all submissions away. What the gradebook says of them stays."""
        for name in ("submitted", "autograded"):
            shutil.rmtree(self.root / name, ignore_errors=True)

    def scores(self, chapter: Chapter) -> dict[str, dict[str, float]]:
        """Student → graded code cell → score, of everyone in the gradebook."""
        found: dict[str, dict[str, float]] = {}
        with quiet_sql(), Gradebook(f"sqlite:///{self.root / 'gradebook.db'}") as book:
            try:
                submissions = book.assignment_submissions(chapter.name)
            except MissingEntry:
                return {}
            for submission in submissions:
                found[submission.student_id] = {
                    grade.name: grade.auto_score or 0.0
                    for notebook in submission.notebooks for grade in notebook.grades
                    if grade.cell.cell_type == "code"}
        return found


class Ours(_Folder):
    """A class folder as `autograder init` makes it."""

    def __init__(self, root: Path, chapters: list[Chapter]):
        super().__init__(root)
        from autograder.authoring.release import chapters as sources

        with quiet_sql():
            class_folder.init(root, sources=sources([one.number for one in chapters]))

    def grade(self, chapter: Chapter) -> float:
        """`autograder grade` of all that is there, as if never graded; seconds."""
        for name in ("results", "recorded"):
            shutil.rmtree(self.root / ".grading" / name, ignore_errors=True)
        return timed(self.command(chapter), self.root)

    def seconds_once_warm(self) -> float:
        """What one more submission took in the last run, once every worker had graded one.

        Of each part of the work, by the times at which its files were written: results, then
        the gradebook.
        """
        results = _written(self.root / ".grading" / "results")
        records = _written(self.root / ".grading" / "recorded")
        warm = min(cluster.cores(), len(results) - 1)
        return ((results[-1] - results[warm - 1]) / (len(results) - warm)
                + (records[-1] - records[0]) / (len(records) - 1))

    def command(self, chapter: Chapter) -> list[str]:
        return [sys.executable, "-c", "from autograder.cli import app; app()", "grade",
                "--class", str(self.root), chapter.number]


def _written(folder: Path) -> list[float]:
    return sorted(path.stat().st_mtime for path in folder.rglob("*") if path.is_file())


class Stock(_Folder):
    """nbgrader with its own steps: the released checks are the tests, in the student's kernel."""

    def __init__(self, root: Path, chapters: list[Chapter]):
        super().__init__(root)
        root.mkdir(parents=True, exist_ok=True)
        (root / "nbgrader_config.py").write_text(STOCK_CONFIG)
        for chapter in chapters:
            path = root / "source" / chapter.name / f"{chapter.name}.ipynb"
            path.parent.mkdir(parents=True)
            path.write_text(to_text(chapter.source), "utf-8")
            self._release(chapter)

    def _release(self, chapter: Chapter) -> None:
        config = PyFileConfigLoader("nbgrader_config.py", path=str(self.root)).load_config()
        config.CourseDirectory.root = str(self.root)
        config.CourseDirectory.assignment_id = chapter.name
        config.GenerateAssignment.preprocessors = generate_preprocessors()
        log, said = quiet_log()
        os.environ["PATH"] = environment()["PATH"]  # alembic is started by name
        with quiet_sql():
            GenerateAssignment(coursedir=CourseDirectory(config=config), config=config,
                               log=log).start()

    def command(self, chapter: Chapter) -> list[str]:
        return [str(BIN / "nbgrader"), "autograde", chapter.name, "--force"]

    def grade(self, chapter: Chapter) -> float:
        """`nbgrader autograde` of all that is there; seconds."""
        return timed(self.command(chapter), self.root)


class quiet_sql(warnings.catch_warnings):
    """Without SQLAlchemy's words on how nbgrader uses it."""

    def __enter__(self) -> object:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", module=r"(nbgrader|sqlalchemy)\b")
        return entered
