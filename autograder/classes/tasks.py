"""One submission as a task: found in the class folder, packed where it has to travel, graded.

Grading is a function of the task alone, wherever it runs.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import nbformat

from autograder.classes import classroom, keys
from autograder.checks import Personal
from autograder.grading.result import Item, Result
from loralab.errors import CourseError

# What one submission may take on its way to another machine.
MOST_BYTES_SENT = 200_000_000


@dataclass(frozen=True)
class Submitted:
    """A folder submitted/STUDENT/CHAPTER."""

    student: str
    chapter: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.student}/{self.chapter}"


@dataclass(frozen=True)
class Task:
    """All that grading one submission takes.

    key: of the result. source: the chapter's source notebook, as text. grader: `keys.grader()` of
    the machine that asks. sandbox: or "none", where the instructor said so. notes: what was set right before, for the student. folder: where the
    submission is; "" for a worker elsewhere, which gets `files` (by relative path) and the sizes
    of those that are too large to be sent.
    """

    key: str
    student: str
    chapter: str
    source: str
    seed: str
    personal: Personal
    grader: str
    sandbox: str = "bubblewrap"
    notes: tuple[str, ...] = ()
    folder: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    too_large: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.student}/{self.chapter}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Task:
        return cls(**{**record, "personal": Personal(**record["personal"]),
                      "notes": tuple(record["notes"])})


# What is there to grade ---------------------------------------------------------------------------


def chapters(root: Path, names: Sequence[str] = ()) -> list[str]:
    """The class's assignments named ("1", "01", "01_memory_math"), or all of them.

    Raises CourseError for a name that fits none.
    """
    every = sorted(path.name for path in (Path(root) / "source").glob("*")
                   if (path / f"{path.name}.ipynb").is_file())
    wanted: list[str] = []
    for name in names:
        fits = [chapter for chapter in every
                if chapter == name or classroom.number(chapter) == name.zfill(2)]
        if not fits:
            raise CourseError(f"This class has no chapter {name!r}.",
                              f"it has {', '.join(every) or 'none'}: `autograder init` adds those "
                              "that the course has")
        wanted += fits
    return list(dict.fromkeys(wanted)) or every


def submissions(
    root: Path, wanted: Iterable[str], student: str | None = None
) -> tuple[list[Submitted], list[str]]:
    """The submissions to the chapters `wanted`, and what was left out, in words."""
    top = Path(root) / "submitted"
    found: list[Submitted] = []
    ignored: list[str] = []
    names = sorted(os.listdir(top)) if top.is_dir() else []
    for name in names:
        if student not in (None, name) or not _is_folder(top / name):
            continue
        if why := classroom.unusable(name):
            ignored.append(f"submitted/{shown(name)} is no student's id: {why}")
            continue
        for chapter in wanted:
            folder = top / name / chapter
            if _is_folder(folder):
                found.append(Submitted(name, chapter, folder))
            elif os.path.lexists(folder):
                ignored.append(f"submitted/{name}/{chapter} is no folder")
    if student is not None and student not in names:
        ignored.append(f"submitted/{shown(student)} does not exist")
    return found, ignored


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def shown(text: str) -> str:
    """Text that a stranger may have chosen, for one line of a terminal."""
    return text if text.isprintable() else repr(text)[1:-1]


# One task -----------------------------------------------------------------------------------------


def task_of(root: Path, submitted: Submitted, notes: Sequence[str] = ()) -> Task:
    """The task of grading a submission. Raises OSError where its folder cannot be read."""
    chapter, student = submitted.chapter, submitted.student
    source = (Path(root) / "source" / chapter / f"{chapter}.ipynb").read_text("utf-8")
    seed = classroom.seed(root, chapter, student)
    personal = classroom.personal(root, chapter, student)
    key = keys.joined(
        keys.of_folder(submitted.folder), chapter, source, seed, personal.secret,
        personal.student, personal.language or "", keys.grader())
    return Task(key, student, chapter, source, seed, personal, keys.grader(), notes=tuple(notes),
                folder=str(submitted.folder))


def key_of(root: Path, chapter: str, student: str) -> str:
    """The key under which the result of a submission as it lies there is stored."""
    folder = Path(root) / "submitted" / student / chapter
    return task_of(root, Submitted(student, chapter, folder)).key


def packed(task: Task) -> Task:
    """`task` with its files' bytes in place of the folder, for a worker on another machine."""
    files, too_large, total = {}, {}, 0
    for name, path, size in keys.plain_files(Path(task.folder)):
        total += size
        if size > keys.LARGEST_READ_BYTES or total > MOST_BYTES_SENT:
            too_large[name] = size
        else:
            files[name] = keys.read_plain(path)
    return replace(task, folder="", files=files, too_large=too_large)


@contextlib.contextmanager
def _submission_folder(task: Task) -> Iterator[Path]:
    if task.folder:
        yield Path(task.folder)
        return
    with tempfile.TemporaryDirectory(prefix="loralab-submission-") as scratch:
        root = Path(scratch)
        for name in {**task.files, **task.too_large}:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(task.files.get(name, b""))
            if name in task.too_large:  # a hole of its size: judged there as it would be here
                os.truncate(path, task.too_large[name])
        yield root


def grade_one(task: Task) -> Result:
    """Grade one submission. A submission that cannot be read scores 0, and its student is told.

    Raises RuntimeError on a machine where another version grades, and what the engine raises.
    """
    from autograder.grading import engine
    from autograder.sandbox.unguarded import Unguarded
    from autograder.grading.submission import SubmissionError, read_submission

    if task.grader != keys.grader():
        raise RuntimeError("this worker has another version of the grader, or of its libraries")
    source = nbformat.reads(task.source, as_version=4)
    with _submission_folder(task) as folder:
        try:
            submission = read_submission(folder, task.chapter)
        except SubmissionError as error:
            return zeros(task, str(error))
        with Unguarded() if task.sandbox == "none" else contextlib.nullcontext() as sandbox:
            result = engine.grade(
                submission.notebook, classroom.number(task.chapter), task.seed, source=source,
                files=submission.files, personal=task.personal, sandbox=sandbox)
    return replace(result, notes=(*task.notes, *result.notes))


def zeros(task: Task, message: str) -> Result:
    """The result of a submission that cannot be read: no points, and why."""
    cells = nbformat.reads(task.source, as_version=4).cells
    graded = [cell.metadata.nbgrader for cell in cells
              if cell.metadata.get("nbgrader", {}).get("grade")]
    return Result(
        classroom.number(task.chapter), task.seed,
        {mark.grade_id: Item(float(mark.points), 0.0, (message,)) for mark in graded},
        notes=(*task.notes, message))
