"""`loralab`: what a student types."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.markup import escape

from loralab import memory_command, paths
from loralab.errors import CourseError
from loralab.terminal import Commands, complain, console, show, show_report

app = typer.Typer(
    cls=Commands,
    help="The LoRA Lab course: open it, check the computer, start a chapter over, hand it in; "
    "and predict the memory of a training step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Chapter = Annotated[str, typer.Argument(metavar="CHAPTER", help="01, or 01_memory_math.")]


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(
    context: typer.Context,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the address.")
    ] = False,
) -> None:
    """Open the course in JupyterLab. Further arguments go to JupyterLab (--port=9000)."""
    from loralab import base_model, workspace
    from loralab import lab as jupyter

    copied = workspace.copy_missing()
    if copied:
        console.print(f"Copied to work/: {', '.join(copied)}")
    try:
        base_model.ensure()
    except CourseError as error:
        # The first chapters need no model; who has no network today can begin.
        show(error, "yellow")
        complain.print("Chapters that train a model wait for it; the others work now.")
    console.print("Opening JupyterLab; Ctrl+C twice in this window ends it.")
    jupyter.start((["--no-browser"] if no_browser else []) + context.args)


@app.command()
def doctor() -> None:
    """Check this computer: one line an item, with the fix beside each failure."""
    show_report()


@app.command()
def reset(chapter: Chapter) -> None:
    """Start a chapter over. The old one is kept beside the fresh copy."""
    from loralab import workspace

    before = workspace.kept(chapter)
    fresh = workspace.reset(chapter)
    console.print(f"Fresh copy: {_short(fresh)}")
    for old in workspace.kept(chapter):
        if old not in before:
            console.print(f"Your old one: {_short(old)}/")
    console.print("If it is open in JupyterLab: File ▸ Reload Notebook from Disk.")


@app.command()
def submit(chapter: Chapter) -> None:
    """Look a chapter over and pack it for handing in."""
    from loralab import workspace

    found = workspace.look_over(chapter)
    archive = workspace.pack(found)
    console.print(f"[bold]{found.chapter}[/], saved {_ago(found.notebook.stat().st_mtime)}")
    for grade_id, state in found.exercises.items():
        _line(state in workspace.DONE, grade_id, state)
    for name in found.missing_files:
        _line(False, name, f"missing: exercise {workspace.SAVED_IN[found.chapter[:2]]} saves it")
    for wrong, remedy in found.notes:
        _line(False, "note", f"{wrong} → {remedy}")
    console.print(f"\nPacked in [bold]{_short(archive)}[/]:")
    for name, path in found.files.items():
        console.print(f"  {escape(name)}  ({_size(path.stat().st_size)})")
    if found.complete:
        console.print("\nEverything is there. Hand this file in.")
    else:
        console.print("\nIt can be handed in as it is, but what is open may cost points. "
                      "Submit again when you have done more.")
    console.print("Grading checks the answers again, on other inputs.")


app.command("memory", cls=memory_command.Command)(memory_command.memory)


@app.command()
def record(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Names of runs; all by default.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Chapter 03's runs over ranks and targets.")
    ] = False,
) -> None:
    """Train the runs that chapters compare, and write what they gave into the records."""
    from loralab import rank_sweep, recorded_runs

    known = rank_sweep.CONFIGURATIONS if sweep else recorded_runs.GRID
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise CourseError(
            f"No run is called {', '.join(unknown)}.", f"There are: {'; '.join(known)}."
        )
    if sweep:
        for name, run in rank_sweep.record(names or ()):
            console.print(f"{name}, learning rate {run.config.learning_rate:g}, seed "
                          f"{run.config.seed}: {run.accuracy:.2f} in {run.seconds:.0f} s")
        return
    for run in recorded_runs.record(names or list(recorded_runs.GRID)):
        console.print(f"{run.config.method} r={run.config.r}: {run.accuracy:.2f} "
                      f"in {run.seconds:.0f} s")


@app.command(context_settings={
    "allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": [],
})  # fmt: skip
def measure(context: typer.Context) -> None:
    """Train a few steps with random weights, and write down the memory that they took."""
    from loralab.measure import command

    raise typer.Exit(command.main(context.args))


def _line(ok: bool, name: str, state: str) -> None:
    mark = "[green]✓[/]" if ok else "[yellow]○[/]"
    console.print(f"  {mark} {escape(name)}: {escape(state)}")


def _short(path: Any) -> str:
    inside = path.is_relative_to(paths.PROJECT)
    return escape(str(path.relative_to(paths.PROJECT) if inside else path))


def _size(count: int) -> str:
    if count < 1_000_000:
        return f"{max(count, 1000) / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB"


def _ago(moment: float) -> str:
    """How long ago a file was saved: work that was not saved is not handed in."""
    seconds = max(0, time.time() - moment)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


if __name__ == "__main__":
    app()
