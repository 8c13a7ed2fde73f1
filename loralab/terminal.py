"""What both command lines share: errors as two lines, reports in colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from loralab.errors import CourseError

if TYPE_CHECKING:
    from loralab.doctor import Looks

console = Console(highlight=False, soft_wrap=True)
complain = Console(stderr=True, highlight=False, soft_wrap=True)


class Commands(TyperGroup):
    """Shows a `CourseError` as its two lines, with exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CourseError as error:
            show(error, "red")
            raise typer.Exit(1) from None


def show(error: CourseError, colour: str) -> None:
    complain.print(f"[{colour}]{escape(error.message)}[/]")
    complain.print(f"→ {escape(error.remedy)}")


def show_report(looks: Looks | None = None) -> None:
    """A doctor's report, one line an item. Raises typer.Exit(1) where something needs mending."""
    from loralab import doctor  # torch, not for every command

    with console.status("looking"):
        items = doctor.report(looks)
    for item in items:
        colour = "green" if item.ok else "red"
        mark, line = str(item)[:7], str(item)[7:]
        console.print(f"[{colour}]{escape(mark)}[/]{escape(line)}")
    console.print(doctor.summary(items))
    if not all(item.ok for item in items):
        raise typer.Exit(1)
