"""`autograder init`, `languages`, `doctor` and `install-kernel`: a class, and its machine."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from autograder.commands import ClassFolder, console
from loralab.errors import CourseError

# What a spreadsheet would compute instead of showing it.
FORMULA = ("=", "+", "-", "@")


def init(
    folder: Annotated[Path, typer.Argument(metavar="CLASS", help="The folder to make.")],
    personal: Annotated[
        bool, typer.Option("--personal", help="Every student gets a language of their own.")
    ] = False,
) -> None:
    """Make a class folder: secret, sources, nbgrader's configuration, gradebook.

    In a class folder that exists, only what is missing is made.
    """
    from autograder.classes import class_folder, gradebook
    from autograder.authoring.markers import SourceError

    try:
        root = class_folder.init(
            folder, personal,
            said=lambda line: console.print(f"[green]made[/]  {escape(line)}", soft_wrap=True))
    except (SourceError, gradebook.Refused) as error:
        raise CourseError(str(error), "nothing that was there is changed; mend the source and run "
                          "it again") from None
    console.print(f"\n{escape(str(root))} is ready. Next steps, and what must never be given away: "
                  f"{escape(str(root / 'README.md'))}", soft_wrap=True)
    if personal:
        console.print("Each student's language: autograder languages --class "
                      f"{escape(str(folder))}", soft_wrap=True)


def languages(
    student: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STUDENT]...", help="Ids; by default, all that the class knows."),
    ] = None,
    root: ClassFolder = Path(),
    table: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write them to a file instead.")
    ] = None,
) -> None:
    """Show each student's LANGUAGE for chapter 05, to be handed out."""
    from autograder.classes import classroom

    if not classroom.settings(root).personal:
        raise CourseError(
            "This class has no personal languages: every student chooses one.",
            f"set personal = true in {root / classroom.SETTINGS}, before chapter 05 is handed out")
    students = list(student or ()) or _known(root)
    if not students:
        raise CourseError("No student is known yet.", "name them: autograder languages ada bob")
    for name in students:
        if why := classroom.unusable(name):
            raise CourseError(f"{name!r} is no student's id: {why}.", "use nbgrader's ids")
    rows = [(name, classroom.language(root, name)) for name in students]
    if table is None:
        for name, language in rows:
            console.print(f'{escape(name)}  LANGUAGE = "{language}"', soft_wrap=True)
        return
    try:
        file = table.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise CourseError(f"{table} cannot be written: {error.strerror}.",
                          "name another file") from None
    with file:
        writer = csv.writer(file)
        writer.writerow(("student", "LANGUAGE"))
        writer.writerows((f"'{name}" if name.startswith(FORMULA) else name, language)
                         for name, language in rows)
    console.print(f"{len(rows)} languages in {escape(str(table))}. Give each student only "
                  "their own.", soft_wrap=True)


def _known(root: Path) -> list[str]:
    """Students in the gradebook, and those who have handed in something."""
    from autograder.classes import classroom, gradebook, tasks

    with gradebook.writing(root) as book:
        known = {name for name in book.students() if not classroom.unusable(name)}
    found, _ = tasks.submissions(root, tasks.chapters(root))
    return sorted(known | {each.student for each in found})


def doctor() -> None:
    """Say whether this machine can grade: one line an item, with the fix beside each failure."""
    from autograder import doctor as report
    from loralab.terminal import show_report

    show_report(report.checks())


def install_kernel(
    name: Annotated[str, typer.Option(help="The kernel's name.")] = "loralab-sandbox",
    prefix: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The environment that gets it; by default, this one."),
    ] = None,
) -> None:
    """Install a kernel that runs any notebook in the sandbox, for nbgrader and JupyterLab."""
    from autograder.sandbox import bubblewrap, provisioner

    try:
        bubblewrap.require()
    except bubblewrap.NoSandbox as error:
        raise CourseError(str(error), "autograder doctor says more") from None
    try:
        folder = provisioner.install(name, prefix or Path(sys.prefix))
    except (OSError, ValueError) as error:
        raise CourseError(f"The kernel cannot be installed: {error}",
                          "choose another --name, or a --prefix of yours") from None
    console.print(f"installed in {escape(str(folder))}", soft_wrap=True)
    console.print(f"nbgrader: c.ExecutePreprocessor.kernel_name = {name!r}; "
                  "JupyterLab: Kernel ▸ Change Kernel", soft_wrap=True)
