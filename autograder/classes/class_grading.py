"""Grading a class folder: find what was submitted, grade it, bring the gradebook up to date."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autograder.classes import batch, classroom, tasks
from autograder.classes.gradebook import Refused, Writer
from autograder.grading.result import Result


@dataclass(frozen=True)
class Work:
    """What there is to do. ignored: what is no submission. failures: (submission, reason)."""

    chapters: list[str]
    tasks: list[tasks.Task]
    ignored: list[str]
    failures: list[tuple[str, str]]


@dataclass(frozen=True)
class Step:
    """One submission went one step further.

    bar: "grade" or "record"; what: graded, cached, failed; recorded, unchanged, refused. where:
    the submission. failure: the reason why it has no score from this run.
    """

    bar: str
    what: str
    where: str
    failure: str = ""


def find(
    root: Path, names: Sequence[str] = (), student: str | None = None,
    sandbox: str = "bubblewrap",
) -> Work:
    """The tasks in submitted/; what is not a plain file or folder is moved aside first.

    Raises CourseError.
    """
    from autograder.grading.submission import quarantine

    chapters = tasks.chapters(root, names)
    found, ignored = tasks.submissions(root, chapters, student)
    to_do, failures = [], []
    for each in found:
        aside = classroom.private(root) / "quarantine" / each.student / each.chapter
        try:
            notes = quarantine(each.folder, aside, each.chapter)
            to_do.append(replace(tasks.task_of(root, each, notes), sandbox=sandbox))
        except OSError as error:
            failures.append((str(each), f"it cannot be read: {error}"))
    return Work(chapters, to_do, ignored, failures)


def grade(
    root: Path,
    book: Writer,
    work: Work,
    *,
    force: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    by: Callable[[tasks.Task], Result] = tasks.grade_one,
) -> Iterator[Step]:
    """Grade, then record; a step for each. Close the generator to stop."""
    graded = []
    with contextlib.closing(batch.run(
        root, work.tasks, force=force, workers=workers, scheduler=scheduler, grade=by
    )) as outcomes:
        for outcome in outcomes:
            if outcome.result is not None:
                graded.append(outcome)
            what = ("failed" if outcome.result is None else
                    "cached" if outcome.cached else "graded")
            yield Step("grade", what, outcome.task.name, outcome.failure)
    for outcome in sorted(graded, key=lambda one: (one.task.chapter, one.task.student)):
        task = outcome.task
        try:
            changed = book.record(
                task.chapter, task.student, task.key, outcome.result, force)
        except Refused as error:
            yield Step("record", "refused", task.name, f"nbgrader refused it: {error}")
        else:
            yield Step("record", "recorded" if changed else "unchanged", task.name)
