"""`autograder`: what an instructor types."""

from __future__ import annotations

import typer

from autograder.commands import building, classes, grading, leaderboard
from loralab.terminal import Commands

app = typer.Typer(
    cls=Commands,
    help="Build, run and grade the course's notebooks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for command in (building.release, building.execute, classes.init, grading.grade,
                classes.languages, leaderboard.leaderboard, classes.doctor):
    app.command()(command)
app.command("install-kernel")(classes.install_kernel)
