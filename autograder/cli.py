"""`autograder`: what an instructor types."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    help="Build, run and grade the course's notebooks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)

Chapters = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CHAPTER]...", help="01, or 01_memory_math; all if none is named."),
]


@app.callback()
def _group() -> None:
    """Keeps `release` a subcommand however many commands there are."""


@app.command()
def release(
    chapter: Chapters = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where notebooks/ is out of date.")
    ] = False,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="Also make the archive that students get.")
    ] = False,
) -> None:
    """Build notebooks/ from solutions/: what students get, without the solutions."""
    from autograder import release as step
    from autograder.markers import SourceError

    try:
        sources = step.chapters(chapter or ())
        stale = 0
        for source in sources:
            built = step.build(source)
            stale += not built.same
            _report(built, check)
            if not check and not built.same:
                step.write(built)
        leftover = [] if chapter else step.orphans()
        for path in leftover:
            console.print(f"[yellow]no source gives[/] {_short(path)}: delete it", soft_wrap=True)
        if check and (stale or leftover):
            console.print("\nRun [bold]autograder release[/] and commit what it writes.")
            raise typer.Exit(1)
        if bundle:
            path = step.write_bundle(step.bundle_files())
            console.print(f"bundle   {_short(path)} ({path.stat().st_size / 1e6:.1f} MB)")
    except SourceError as error:
        console.print(f"[red]cannot build[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None


def _report(built, check: bool) -> None:
    if built.same:
        console.print(f"same     {_short(built.path)}", soft_wrap=True)
    elif check:
        console.print(f"[red]differs[/]  {_short(built.path)}", soft_wrap=True)
        console.print(escape(built.difference()), soft_wrap=True)
    else:
        console.print(f"[green]written[/]  {_short(built.path)}", soft_wrap=True)


def _short(path) -> str:
    from loralab import paths

    return str(path.relative_to(paths.PROJECT) if path.is_relative_to(paths.PROJECT) else path)
