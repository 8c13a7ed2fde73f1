"""Many submissions: graded wherever there are cores, kept as they come.

Results lie in .grading/results/ under the hash of all that they depend on, so that a run can be
stopped at any point and goes on where it was.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autograder.classes import classroom, cluster
from autograder.grading.result import Result
from autograder.grading.submission import notes_of
from autograder.classes.tasks import Submitted, Task, grade_one, packed, task_of
from loralab.errors import CourseError


@dataclass(frozen=True)
class Outcome:
    """What came of a task: a result, or the reason why there is none."""

    task: Task
    result: Result | None
    failure: str = ""
    cached: bool = False


# Kept results -------------------------------------------------------------------------------------


def _result_path(root: Path, key: str) -> Path:
    return classroom.private(root) / "results" / f"{key}.json"


def stored_result(root: Path, key: str) -> Result | None:
    """The result kept under `key`; None where there is none, or a damaged one."""
    try:
        return Result.from_json(_result_path(root, key).read_text("utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def store(root: Path, key: str, result: Result) -> None:
    """Keep `result`: whole or not at all."""
    path = _result_path(root, key)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, result.to_json())


def write_whole(path: Path, text: str) -> None:
    """Write a file that only its owner reads; whoever looks sees the old text or the new one."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def result_of(
    root: Path, chapter: str, student: str, grade: Callable[[Task], Result] = grade_one
) -> Result:
    """The result of submitted/STUDENT/CHAPTER as it lies there: the kept one, else graded now.

    For nbgrader's own commands, which so give the scores that `autograder grade` gives.
    """
    folder = Path(root) / "submitted" / student / chapter
    aside = classroom.private(root) / "quarantine" / student / chapter
    task = task_of(root, Submitted(student, chapter, folder), notes_of(folder, aside))
    kept = stored_result(root, task.key)
    if kept is None:
        kept = grade(task)
        store(root, task.key, kept)
    return kept


# All of them --------------------------------------------------------------------------------------


def run(
    root: Path,
    tasks: Sequence[Task],
    *,
    force: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    grade: Callable[[Task], Result] = grade_one,
) -> Iterator[Outcome]:
    """Grade `tasks`, or take their kept results; each is kept before it is yielded.

    `workers`: processes, by default one a core; with 1, or for one task, this process does it.
    Close the generator to stop: nothing but what was running is lost. `grade` is a module's
    function, of this signature.
    """
    left = []
    for task in tasks:
        kept = None if force else stored_result(root, task.key)
        if kept is not None:
            yield Outcome(task, kept, cached=True)
        else:
            left.append(task)
    if not left:
        return
    workers = min(workers or cluster.cores(), len(left))
    spread = _here if workers == 1 and scheduler is None else _spread
    with contextlib.closing(spread(left, grade, workers, scheduler)) as outcomes:
        for outcome in outcomes:
            if outcome.result is not None:
                store(root, outcome.task.key, outcome.result)
            yield outcome


def _outcome(task: Task, answer: str | None, failure: str = "") -> Outcome:
    record = json.loads(answer) if answer is not None else {"failure": failure}
    if "failure" in record:
        return Outcome(task, None, record["failure"])
    return Outcome(task, Result.from_json(record["result"]))


def _here(tasks, grade, workers, scheduler) -> Iterator[Outcome]:
    for task in tasks:
        yield _outcome(task, _answer(grade, task.to_dict()))


def _spread(tasks, grade, workers, scheduler) -> Iterator[Outcome]:
    inputs = (_sent(task) if scheduler else task.to_dict() for task in tasks)
    call = functools.partial(_answer, grade)
    with contextlib.closing(
        cluster.answers(call, inputs, workers=workers, scheduler=scheduler)
    ) as answers:
        for answer in answers:
            yield _outcome(tasks[answer.index], answer.text, answer.failure)


def _sent(task: Task) -> dict[str, Any]:
    try:
        return packed(task).to_dict()
    except OSError as error:
        return {"failure": _said(error)}


def _answer(call: Callable[[Task], Result], record: Mapping[str, Any]) -> str:
    """`call` on a worker. Errors come back as text: no object of theirs is unpickled here."""
    if "failure" in record:  # it could not even be sent
        return json.dumps(record)
    try:
        return json.dumps({"result": call(Task.from_dict(record)).to_json()})
    except (Exception, SystemExit) as error:
        return json.dumps({"failure": _said(error)})


def _said(error: BaseException) -> str:
    if isinstance(error, CourseError):
        return f"{error.message} → {error.remedy}"
    return f"{type(error).__name__}: {str(error).strip()[:500]}"
