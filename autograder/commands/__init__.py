"""The commands of `autograder`, one module a kind of work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loralab import paths

console = Console(highlight=False)

Chapters = Annotated[
    list[str] | None,
    typer.Argument(metavar="CHAPTER", help="01, or 01_memory_math; all if none is named."),
]
ClassFolder = Annotated[
    Path, typer.Option("--class", metavar="DIR", help="The class folder; by default, this one."),
]


def short(path: Path) -> str:
    """A path as it is shown: within the project without its folder."""
    return str(path.relative_to(paths.PROJECT) if path.is_relative_to(paths.PROJECT) else path)
