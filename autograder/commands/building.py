"""`autograder release` and `autograder execute`: from the sources to notebooks."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from autograder.commands import Chapters, console, short


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
    from autograder.authoring import release as step
    from autograder.authoring.markers import SourceError

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
            console.print(f"[yellow]no source gives[/] {short(path)}: delete it", soft_wrap=True)
        if check and (stale or leftover):
            console.print("\nRun [bold]autograder release[/] and commit what it writes.")
            raise typer.Exit(1)
        if bundle:
            files = step.bundle_files()
            path = step.write_bundle(files)
            console.print(f"[green]bundle[/]   {short(path)} ({len(files)} files, "
                          f"{path.stat().st_size / 1e6:.2f} MB)", soft_wrap=True)
    except SourceError as error:
        console.print(f"[red]cannot build[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None


def _report(built, check: bool) -> None:
    if built.same:
        console.print(f"same     {short(built.path)}", soft_wrap=True)
    elif check:
        console.print(f"[red]differs[/]  {short(built.path)}", soft_wrap=True)
        console.print(escape(built.difference()), soft_wrap=True)
    else:
        console.print(f"[green]written[/]  {short(built.path)}", soft_wrap=True)


def execute(
    chapter: Chapters = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME=VALUE",
                     help="Injected into each chapter that has it, as often as needed."),
    ] = None,
) -> None:
    """Run the solutions; notebooks, HTML pages and timings go to build/executed/."""
    from autograder.authoring import execute as step
    from autograder.authoring import release as build
    from autograder.authoring.markers import SourceError, source_notebook

    try:
        sources = build.chapters(chapter or ())
        parameters = _parameters(parameter or ())
        known = set().union(*(step.parameter_names(source_notebook(path)) for path in sources))
    except SourceError as error:
        console.print(f"[red]cannot run[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None
    if unknown := set(parameters) - known:
        raise typer.BadParameter(f"no chapter has {sorted(unknown)}; they have {sorted(known)}")

    with console.status("starting") as status:
        outcomes = step.run_all(
            sources, parameters, started=lambda name: status.update(f"running {name}"))
    console.print(_timings(outcomes))
    for outcome in outcomes:
        if outcome.failure:
            _explain(outcome)
    console.print(f"notebooks, pages and timings.json are in {short(step.EXECUTED)}/")
    if any(outcome.failure for outcome in outcomes):
        raise typer.Exit(1)


def _parameters(given) -> dict[str, object]:
    from autograder.authoring.execute import parameter_value

    pairs = [text.partition("=") for text in given]
    if bad := [name for name, equals, _ in pairs if not equals or not name.isidentifier()]:
        raise typer.BadParameter(f"write -p NAME=VALUE, not {' '.join(bad)!r}")
    return {name: parameter_value(value) for name, _, value in pairs}


def _timings(outcomes) -> Table:
    table = Table("chapter", "result", "seconds", "slowest cell", "parameters", box=SIMPLE)
    table.columns[2].justify = "right"
    for outcome in outcomes:
        slow = outcome.slowest
        table.add_row(
            outcome.chapter,
            "[red]failed[/]" if outcome.failure else "[green]ran[/]",
            f"{outcome.seconds:.1f}",
            f"{slow.seconds:.1f} s: cell {slow.index}, {escape(slow.line[:32])}" if slow else "",
            escape(" ".join(f"{k}={v!r}" for k, v in outcome.parameters.items())),
        )
    return table


def _explain(outcome) -> None:
    failure = outcome.failure
    console.print(
        f"[red]failed[/]   {outcome.chapter}, cell {escape(failure.cell)} (index {failure.index}): "
        f"[bold]{failure.name}[/]: {escape(failure.message)}", soft_wrap=True)
    console.print(escape("\n".join("    " + line for line in failure.source.splitlines()[:12])),
                  style="dim", soft_wrap=True)
    if failure.trace:
        console.print(escape(failure.trace), soft_wrap=True)
