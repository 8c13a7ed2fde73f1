"""What is graded: a chapter's source and release, and what students hand in of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from autograder.checks import checks_of
from autograder.authoring.markers import source_notebook
from autograder.authoring.release import SOLUTIONS, chapters, release_notebook, to_text

MEASURED = ("01", "05")


@dataclass(frozen=True)
class Chapter:
    """`name`: as in 01_memory_math. `points`: of all cells that are graded by machine."""

    name: str
    source: NotebookNode
    release: NotebookNode

    @property
    def number(self) -> str:
        return self.name[:2]

    @property
    def points(self) -> float:
        return sum(float(mark.points) for cell in self.source.cells
                   if (mark := cell.metadata.get("nbgrader", {})).get("grade")
                   and not mark.get("solution"))


@dataclass(frozen=True)
class Work:
    """One student's submission to a chapter: a notebook, and files beside it by relative path."""

    notebook: NotebookNode
    files: dict[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Into `folder`, which is named after the chapter."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{folder.name}.ipynb").write_text(to_text(self.notebook), "utf-8")
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@lru_cache
def chapter(number: str) -> Chapter:
    path = chapters([number])[0]
    source = source_notebook(path)
    return Chapter(path.stem, source, release_notebook(source, path.stem))


def measurable() -> list[str]:
    """The chapters of MEASURED that this engine can grade."""
    have = {path.stem[:2] for path in chapters(folder=SOLUTIONS)}
    return [number for number in MEASURED if number in have and _checked(number)]


def _checked(number: str) -> bool:
    try:
        return bool(checks_of(number))
    except ModuleNotFoundError:
        return False


def full(chapter: Chapter, files: dict[str, bytes] | None = None) -> Work:
    """The solution, handed in."""
    return Work(chapter.source, files or {})


def untouched(chapter: Chapter) -> Work:
    """The student copy as it was given out."""
    return Work(chapter.release)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)
