"""The one writer: nbgrader's own converters, driven so that the gradebook is exactly nbgrader's."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import nbgrader.api
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.converters import Autograde, GenerateAssignment
from nbgrader.coursedir import CourseDirectory
from traitlets.config import Config, PyFileConfigLoader

from autograder.classes.classroom import private, settings
from autograder.authoring.release import quiet_log
from autograder.grading.result import Result
from loralab.errors import CourseError


TOLERANCE = 1e-6  # points


class Refused(RuntimeError):
    """nbgrader did not do what it was asked; the message holds its own words."""


@dataclass(frozen=True)
class Row:
    """One submission in the gradebook. `by_hand`: a person has to read some of it."""

    student: str
    score: float
    points: float
    by_hand: bool


@contextlib.contextmanager
def writing(root: Path) -> Iterator[Writer]:
    """The class's gradebook, for this process alone. Raises CourseError while another has it."""
    root = Path(root).resolve()
    settings(root)
    private(root).mkdir(mode=0o700, exist_ok=True)
    lock = filelock.FileLock(private(root) / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise CourseError(f"Another autograder is at work in {root}.",
                          "wait until it has ended, or stop it with Ctrl+C") from None
    try:
        with warnings.catch_warnings():
            # SQLAlchemy's words on how nbgrader uses it: nothing that an instructor can act on.
            warnings.filterwarnings("ignore", module=r"(nbgrader|sqlalchemy)\b")
            with _one_engine():
                yield Writer(root)
    finally:
        lock.release()


@contextlib.contextmanager
def _one_engine() -> Iterator[None]:
    """SQLAlchemy's engine for a database is made once, with the queries that it has compiled.

    nbgrader opens the gradebook nine times a submission, and would make another one each time.
    """
    stock = nbgrader.api.create_engine
    nbgrader.api.create_engine = functools.cache(stock)
    try:
        yield
    finally:
        nbgrader.api.create_engine = stock


def load_config(root: Path) -> Config:
    """nbgrader's configuration of a class folder: what its nbgrader_config.py says."""
    config = PyFileConfigLoader("nbgrader_config.py", path=str(root)).load_config()
    config.CourseDirectory.root = str(root)
    return config


class Writer:
    """nbgrader in a class folder. Made by `writing`; not for two processes at a time."""

    def __init__(self, root: Path):
        _find_alembic()
        self.root = root
        self._config = load_config(root)
        self._in_book: dict[str, set[str]] = {}

    def release(self, chapter: str) -> None:
        """generate_assignment: release/`chapter`, and the assignment in the gradebook."""
        self._run(GenerateAssignment, force=True, assignment_id=chapter)

    def autograde(self, chapter: str, student: str) -> None:
        """autograde, in place of an earlier one. Raises Refused with nbgrader's words."""
        self._run(Autograde, force=True, assignment_id=chapter, student_id=student)

    def nothing_handed_in(self, chapter: str, student: str) -> None:
        """Score 0 for a submission without its notebook, as nbgrader does for one of several."""
        with self._open() as book:
            book.update_or_create_student(student)
            submission = book.update_or_create_submission(chapter, student)
            for notebook in submission.notebooks:
                for grade in notebook.grades:
                    grade.auto_score, grade.needs_manual_grade = 0, False
            book.db.commit()

    def record(
        self, chapter: str, student: str, key: str, result: Result, force: bool = False
    ) -> bool:
        """Bring gradebook and autograded/ up to `result`, kept under `key`; whether it was needed.

        Raises Refused, also where nbgrader then has other scores than `result`.
        """
        mark = private(self.root) / "recorded" / chapter / student
        name = f"{chapter}.ipynb"
        handed_in = (self.root / "submitted" / student / chapter / name).is_file()
        if not force and _text(mark) == key and student in self._recorded(chapter) and (
                not handed_in or (self.root / "autograded" / student / chapter / name).exists()):
            return False
        # No mark while it is written: a run that is stopped there writes it again.
        mark.unlink(missing_ok=True)
        if handed_in:
            self.autograde(chapter, student)
            self._compare(chapter, student, result)
        else:
            self.nothing_handed_in(chapter, student)
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.write_text(key, "ascii")
        return True

    def _compare(self, chapter: str, student: str, result: Result) -> None:
        """nbgrader gives full marks for a cell that nobody ran: a wrong configuration shows."""
        with self._open() as book:
            grades = book.find_submission_notebook(chapter, chapter, student).grades
            found = {grade.name: grade.auto_score for grade in grades}
        wrong = [name for name, item in result.items.items() if name in found
                 and item.score is not None and abs((found[name] or 0) - item.score) > TOLERANCE]
        if wrong:
            raise Refused(
                f"its gradebook has other scores than the grader for {', '.join(wrong)}: does "
                "nbgrader_config.py set other preprocessors? Do not use these scores")

    def _recorded(self, chapter: str) -> set[str]:
        """Who has a submission in the gradebook; read once, since nobody else writes."""
        if chapter not in self._in_book:
            self._in_book[chapter] = {row.student for row in self.rows(chapter)}
        return self._in_book[chapter]

    def assignments(self) -> set[str]:
        with self._open() as book:
            return {assignment.name for assignment in book.assignments}

    def students(self) -> set[str]:
        with self._open() as book:
            return {student.id for student in book.students}

    def rows(self, chapter: str) -> list[Row]:
        """Every submission to `chapter`, by student."""
        with self._open() as book:
            try:
                found = book.submission_dicts(chapter)
            except MissingEntry:
                return []
            return sorted(
                (Row(row["student"], row["score"], row["max_score"], row["needs_manual_grade"])
                 for row in found), key=lambda row: row.student)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Gradebook]:
        place = CourseDirectory(config=self._config)
        with Gradebook(place.db_url, place.course_id) as book:
            yield book

    def _run(self, converter: type, force: bool, **where: str) -> None:
        log, said = quiet_log()
        place = CourseDirectory(config=self._config, **where)
        try:
            converter(coursedir=place, config=self._config, log=log, force=force).start()
        except (Exception, SystemExit) as error:
            words = _essence(said.getvalue()) or f"{type(error).__name__}: {error}"
            raise Refused(words) from error


def _essence(log: str) -> str:
    """What nbgrader's log says was wrong: the last error's line, without its traceback."""
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith((
        " ", "Traceback", "There was an error processing", "Please see the"))]
    return lines[-1].strip() if lines else ""


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, ValueError):
        return ""


def _find_alembic() -> None:
    """nbgrader starts `alembic` by name when it first makes a database."""
    if shutil.which("alembic") is None:
        beside = str(Path(sys.executable).parent)
        os.environ["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", os.defpath)])
