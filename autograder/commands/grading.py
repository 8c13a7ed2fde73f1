"""`autograder grade`: the submissions of a class folder, into its gradebook."""

from __future__ import annotations

import contextlib
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from autograder.commands import Chapters, ClassFolder, console
from loralab.errors import CourseError


class Sandboxes(StrEnum):
    bubblewrap = "bubblewrap"
    none = "none"


def grade(
    chapter: Chapters = None,
    root: ClassFolder = Path(),
    student: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this student's work.")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A Dask scheduler: tls://host:8786, tcp://host:8786."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine; by default, one a core.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Grade again what has been graded.")
    ] = False,
    sandbox: Annotated[
        Sandboxes, typer.Option(help="`none` runs student code with YOUR rights.")
    ] = Sandboxes.bubblewrap,
) -> None:
    """Grade submitted/STUDENT/CHAPTER. Can be stopped (Ctrl+C) and started again at any point."""
    from autograder.classes import class_grading, gradebook, tasks

    root = root.resolve()
    if sandbox == Sandboxes.none:
        from autograder.sandbox.unguarded import WARNING

        console.print(Panel(WARNING, style="bold white on red"))
    try:
        with gradebook.writing(root) as book:
            with console.status("looking"):
                work = class_grading.find(root, chapter or (), student, sandbox.value)
            for line in work.ignored:
                console.print(f"[yellow]ignored[/]  {escape(line)}", soft_wrap=True)
            if not work.tasks and not work.failures:
                console.print("Nothing is there to grade: "
                              f"{escape(str(root))}/submitted/STUDENT/CHAPTER", soft_wrap=True)
                return
            if scheduler is None and sandbox != Sandboxes.none:
                _need_sandbox()
            failures = _grade(class_grading.grade(
                root, book, work, force=force, workers=workers, scheduler=scheduler), work)
            rows = {name: book.rows(name) for name in work.chapters}
    except KeyboardInterrupt:
        console.print("\nStopped. What is graded is kept; the same command goes on from here.")
        raise typer.Exit(130) from None
    for name, found in rows.items():
        if found:
            _show_scores(name, found)
    for where, why in failures:
        console.print(f"[red]not graded[/]  {escape(where)}: "
                      f"{escape(tasks.shown(why))}", soft_wrap=True)
    _what_next([name for name, found in rows.items() if found], rows)
    if failures:
        raise typer.Exit(1)


def _need_sandbox() -> None:
    """Say once, before anything is graded, what each submission would fail of."""
    from autograder.sandbox import bubblewrap

    try:
        bubblewrap.require()
    except bubblewrap.NoSandbox as error:
        raise CourseError(str(error), "autograder doctor says more") from None


def _grade(steps, work) -> list[tuple[str, str]]:
    """Go through the steps under a progress bar; (submission, reason) for each that failed."""
    failures = list(work.failures)
    counts: Counter[str] = Counter()
    left = len(work.tasks)
    with contextlib.closing(steps), Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[counts]}"), console=console,
    ) as progress:
        bars = {
            "grade": progress.add_task("grading", total=left, counts=""),
            "record": progress.add_task("gradebook", total=left, counts=""),
        }
        for step in steps:
            counts[step.what] += 1
            if step.failure:
                failures.append((step.where, step.failure))
                left -= step.bar == "grade"
                progress.update(bars["record"], total=left)
            shown = ("graded", "cached", "failed") if step.bar == "grade" else (
                "recorded", "unchanged", "refused")
            progress.update(
                bars[step.bar], advance=1,
                counts=", ".join(f"{counts[name]} {name}" for name in shown if counts[name]))
    return failures


def _show_scores(chapter: str, rows) -> None:
    table = Table("student", "score", "of", "", title=chapter, box=SIMPLE, title_justify="left")
    for column in table.columns[1:3]:
        column.justify = "right"
    for row in rows:
        table.add_row(escape(row.student), f"{row.score:g}", f"{row.points:g}",
                      "answers to read" if row.by_hand else "")
    if len(rows) > 1:
        mean = sum(row.score for row in rows) / len(rows)
        table.add_section()
        table.add_row("mean", f"{mean:.1f}", f"{rows[0].points:g}", "")
    console.print(table)


def _what_next(chapters: list[str], rows) -> None:
    if not chapters:
        return
    console.print("Next, in the class folder:")
    if any(row.by_hand for found in rows.values() for row in found):
        console.print("  jupyter lab                         Nbgrader ▸ Formgrader: read the answers in words")
    for name in chapters:
        console.print(f"  nbgrader generate_feedback {name}")
    console.print("  nbgrader export                     the grades as a table")
