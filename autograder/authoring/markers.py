"""From a chapter's source (jupytext percent) to the notebook that nbgrader works on.

A source says what a cell is for in one short marker; this module writes out what nbgrader needs:

    # %% exercise="weight_bytes"                 the student writes this (a solution cell)
    # %% check="weight_bytes" points=3           grades it automatically
    # %% manual="explain_x" points=2             written by the student, graded by hand
    # %% [markdown] help="weight_bytes"          replaced by the exercise's hints and symptoms
    # %% timeout=900                             seconds that this cell may take
    # %% tags=["parameters"]                     any tags, alone or beside the others

Everything here is a pure function: the same source gives the same bytes everywhere.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
# What a kernel would write, without the version that differs between machines.
LANGUAGE_INFO = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}
MARKERS = {"exercise", "check", "manual", "points", "help", "timeout"}
# Cell metadata that a source may set itself. Anything else is a typing mistake or a leak.
PLAIN = {"tags", "jupyter"}
JUPYTEXT_OWN = {"lines_to_next_cell", "lines_to_end_of_cell_marker", "cell_marker"}
GRADE_ID = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,55}")

HelpFor = Callable[[str], str]


class SourceError(ValueError):
    """A chapter's source says something that can't be built; the message names file and cell."""


def source_notebook(path: Path) -> NotebookNode:
    """The notebook of a chapter's source, solutions included, ready for nbgrader or papermill.

    `path` is `solutions/NN_name.py`. Raises SourceError where a marker is wrong.
    """
    path = Path(path)
    try:
        return expand(path.read_text("utf-8"), help_of_chapter(path.stem[:2]))
    except SourceError as error:
        raise SourceError(f"{path.name}: {error}") from None


def help_of_chapter(chapter: str) -> HelpFor:
    """The function that gives the help text for a grade_id of `chapter` ("01")."""

    def help_for(grade_id: str) -> str:
        from loralab.checks import help_markdown

        name = f"loralab.checks.ch{chapter}"
        try:
            exercises = importlib.import_module(name).EXERCISES
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise SourceError(f"help={grade_id!r} needs {name}, which does not exist") from None
        if grade_id not in exercises:
            raise SourceError(f"help={grade_id!r}: {name}.EXERCISES has only {list(exercises)}")
        return help_markdown(exercises[grade_id])

    return help_for


def expand(source: str, help_for: HelpFor) -> NotebookNode:
    """The notebook that `source` (jupytext percent text) describes, markers written out."""
    read = jupytext.reads(source, fmt="py:percent")
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": dict(KERNELSPEC), "language_info": dict(LANGUAGE_INFO)},
    )
    notebook.nbformat_minor = 5
    notebook.cells = [_expand_cell(cell, help_for) for cell in read.cells]
    _give_ids(notebook.cells)
    nbformat.validate(notebook)
    return notebook


def _expand_cell(cell: NotebookNode, help_for: HelpFor) -> NotebookNode:
    found = {key: value for key, value in cell.metadata.items() if key not in JUPYTEXT_OWN}
    unknown = set(found) - MARKERS - PLAIN
    if unknown:
        raise SourceError(f"unknown marker {sorted(unknown)} {_first_line(cell)}")
    kinds = [kind for kind in ("exercise", "check", "manual", "help") if kind in found]
    if len(kinds) > 1:
        raise SourceError(f"a cell is one of {kinds}, not several {_first_line(cell)}")
    kind = kinds[0] if kinds else None
    if ("points" in found) != (kind in ("check", "manual")):
        raise SourceError(f"points= belongs to check= and manual=, and they need it "
                          f"{_first_line(cell)}")

    metadata = {key: found[key] for key in sorted(PLAIN & set(found))}
    if "timeout" in found:
        metadata["loralab"] = {"timeout": int(found["timeout"])}
    source = cell.source
    if kind == "help":
        if cell.cell_type != "markdown" or source.strip():
            raise SourceError(f"help={found['help']!r} marks an empty [markdown] cell")
        source = help_for(found["help"])
    elif kind is not None:
        metadata["nbgrader"] = _nbgrader(kind, found[kind], found.get("points"), cell)

    new = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
    if cell.cell_type not in ("code", "markdown"):
        raise SourceError(f"a {cell.cell_type} cell has no place in a chapter {_first_line(cell)}")
    return new(source, metadata=metadata)


def _nbgrader(kind: str, name: str, points: float | None, cell: NotebookNode) -> dict:
    if not GRADE_ID.fullmatch(str(name)):
        raise SourceError(f"{kind}={name!r}: use a letter, then letters, digits, - and _")
    if kind in ("exercise", "check") and cell.cell_type != "code":
        raise SourceError(f"{kind}={name!r} marks a code cell")
    common = {"schema_version": 3, "task": False}
    if kind == "exercise":
        flags = {"grade": False, "solution": True, "locked": False, "grade_id": name}
    elif kind == "check":
        flags = {"grade": True, "solution": False, "locked": True, "grade_id": f"{name}-check",
                 "points": points}
    else:
        flags = {"grade": True, "solution": True, "locked": False, "grade_id": name,
                 "points": points}
    return common | flags


def _give_ids(cells: list[NotebookNode]) -> None:
    """Set each cell's id: its grade_id, else a hash of its type and source.

    jupytext's ids are random. Cells alike get -2, -3 … in their order.
    """
    seen: dict[str, int] = {}
    grade_ids: set[str] = set()
    for cell in cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if name in grade_ids:
            raise SourceError(f"two cells have the grade_id {name!r}")
        if name:
            grade_ids.add(name)
        else:
            name = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[name] = seen.get(name, 0) + 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"


def _first_line(cell: NotebookNode) -> str:
    return f"in the cell that starts with {cell.source.split(chr(10))[0]!r}"
