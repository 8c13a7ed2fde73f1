"""`autograder leaderboard`: a page with the class's capstone adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from autograder.commands import ClassFolder, console
from loralab.errors import CourseError

PAGE = "leaderboard.html"


def leaderboard(
    root: ClassFolder = Path(),
    names: Annotated[
        bool, typer.Option("--names", help="Real names on the page, in place of pseudonyms.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"The page; by default, {PAGE} in the class folder."),
    ] = None,
) -> None:
    """Write a page with the class's graded capstone adapters, and show who is who."""
    from autograder.classes import classroom
    from autograder.classes import leaderboard as board_of

    root = root.resolve()
    course = classroom.settings(root).course_id
    board = board_of.read(root, names=names)
    path = out or root / PAGE
    try:
        path.write_text(board_of.page(board, course), "utf-8")
    except OSError as error:
        raise CourseError(f"{path} cannot be written: {error.strerror}.",
                          "name another file") from None
    _show(board, board_of.places(board.entries))
    for said, students in (("no adapter that could be tried", board.without),
                           ("not graded as it is now", board.ungraded)):
        if students:
            console.print(f"[yellow]{said}[/]  {escape(', '.join(students))}", soft_wrap=True)
    if board.ungraded:
        console.print("Grade them: autograder grade 08")
    kind = "REAL NAMES" if names else "pseudonyms"
    count = len(board.entries)
    console.print(f"{count} adapter{'' if count == 1 else 's'}, with {kind}, in "
                  f"{escape(str(path))}",
                  soft_wrap=True)


def _show(board, places) -> None:
    """For the instructor's eyes: whose adapter each is."""
    table = Table("place", "student", "on the page", "right", "parameters", "GiB", box=SIMPLE)
    for index in (0, 3, 4, 5):
        table.columns[index].justify = "right"
    for index in (1, 2):
        table.columns[index].overflow = "fold"  # cut short, two students could look alike
    for place, one in zip(places, board.entries, strict=True):
        peak = "–" if one.peak_gib is None else f"{one.peak_gib:.3f}"
        table.add_row(str(place), escape(one.student), escape(one.name), f"{one.accuracy:.2f}",
                      f"{one.trainable:,}", peak)
    if board.entries:
        console.print(table)
