"""Align a submitted notebook with the one that was released.

Students copy cells, delete them, drag them about, and other editors drop metadata. What counts is
found again here; points, flags, checks and test cells are always the source's own.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

SOLUTION = re.compile(r"^[ \t]*### BEGIN SOLUTION.*?^[ \t]*### END SOLUTION[^\n]*$\n?",
                      re.MULTILINE | re.DOTALL)
# The cell that tells a student what was set right, once graded.
NOTES_ID = "about-what-you-handed-in"
# What is beyond these is no work on the exercises, and would be parsed for minutes.
MAX_CELLS = 2_000
MAX_CODE, MAX_CODE_IN_ALL = 100_000, 2_000_000  # characters of one cell, of all together


@dataclass(frozen=True)
class Repaired:
    """A submission in the source's form.

    notebook: the source's cells in their order, with the student's code in its solution cells and
    the student's own cells where they stood; no outputs. cells: the student's text by grade_id;
    None where it is missing. notes: what was set right, for the student.
    """

    notebook: NotebookNode
    cells: dict[str, str | None]
    notes: tuple[str, ...] = ()


def repair(submitted: NotebookNode, source: NotebookNode) -> Repaired:
    """See `Repaired`. Takes any v4 notebook; neither argument is changed."""
    notes: list[str] = []
    given = [_plain(cell) for cell in submitted.cells[:MAX_CELLS]]
    if len(submitted.cells) > MAX_CELLS:
        notes.append(f"Only the first {MAX_CELLS:,} cells of the notebook were read.")
    _cut(given, notes)
    places = _match(given, source)
    owner = {index: name for name, indices in places.items() for index in indices}

    cells: list[NotebookNode] = []
    texts: dict[str, str | None] = {}
    # The student's own cells, by the released cell that they followed ("" for the top).
    own: dict[str, list[NotebookNode]] = {}
    after = ""
    for index, cell in enumerate(given):
        if index in owner:
            after = owner[index]
        elif cell.source.strip():
            own.setdefault(after, []).append(cell)

    used = {cell.id for cell in source.cells} | {NOTES_ID}
    add_own = _adder(cells, used)
    add_own(own.pop("", []))
    for released in source.cells:
        cell = copy.deepcopy(released)
        found = [given[index] for index in places.get(released.id, [])]
        marks = released.metadata.get("nbgrader", {})
        if marks.get("solution"):
            text = _answer(released, found, notes)
            texts[marks.grade_id] = text
            cell.source = text or ""
        elif marks.get("grade"):
            _look_at_check(released, found, notes)
        elif found:
            # What is not graded is the student's to change: parameters, imports.
            cell.source = found[0].source if released.cell_type == "code" else cell.source
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if not marks and not found and cell.cell_type == "code":
            # Deleted by the student; its imports may be needed all the same.
            notes.append(f"A deleted cell was put back: {_first_line(cell)}")
        cells.append(cell)
        add_own(own.pop(released.id, []))

    order = [places[cell.id][0] for cell in source.cells
             if cell.cell_type == "code" and places.get(cell.id)]
    if order != sorted(order):
        notes.append("Cells were put back into their order.")
    notebook = copy.deepcopy(source)
    notebook.cells = cells
    return Repaired(notebook, texts, tuple(dict.fromkeys(notes)))


def _plain(cell: NotebookNode) -> NotebookNode:
    """A copy with text, id, and the grade_id that it claims; nothing else of the student's."""
    source = cell.get("source", "")
    text = "".join(map(str, source)) if isinstance(source, list) else str(source)
    # A lone surrogate could not be written to any file.
    text = text.encode("utf-8", "replace").decode("utf-8")
    made = new_code_cell if cell.get("cell_type") == "code" else new_markdown_cell
    plain = made(text)
    # Whether there is one, and which letters it has, depends on who saved the notebook.
    plain.id = str(cell.get("id", ""))[:64]
    metadata = cell.get("metadata")
    marks = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    claimed = marks.get("grade_id") if isinstance(marks, dict) else None
    plain.metadata["claimed"] = claimed if isinstance(claimed, str) else None
    plain.metadata["kind"] = str(cell.get("cell_type"))
    return plain


def _cut(given: list[NotebookNode], notes: list[str]) -> None:
    """Empty code cells that are too long, and those after too much code in all."""
    total = 0
    for number, cell in enumerate(given, 1):
        size = len(cell.source) if cell.cell_type == "code" else 0
        if size > MAX_CODE or total + size > MAX_CODE_IN_ALL:
            cell.source = ""
            notes.append(f"Cell {number} was left out: that is too much code.")
        else:
            total += size


def _match(given: list[NotebookNode], source: NotebookNode) -> dict[str, list[int]]:
    """id of a released cell → indices of the submitted cells that are it, best first.

    By grade_id, by cell id, by unchanged text, and for a solution by what it defines.
    """
    places: dict[str, list[int]] = {}
    taken: set[int] = set()

    def take(name: str, indices: Iterable[int]) -> None:
        for index in indices:
            if index not in taken:
                taken.add(index)
                places.setdefault(name, []).append(index)

    for released in source.cells:
        if marks := released.metadata.get("nbgrader"):
            take(released.id, [i for i, cell in enumerate(given)
                               if cell.metadata.claimed == marks.grade_id])
    for released in source.cells:
        if released.id not in places:
            take(released.id, [i for i, cell in enumerate(given)
                               if cell.id == released.id and cell.metadata.claimed is None])
    by_text: dict[str, list[int]] = {}
    for index, cell in enumerate(given):
        by_text.setdefault(cell.source.strip(), []).append(index)
    for released in source.cells:
        if released.id not in places and released.source.strip():
            take(released.id, by_text.get(released.source.strip(), [])[:1])
    missing = [cell for cell in source.cells if cell.id not in places
               and cell.metadata.get("nbgrader", {}).get("solution")]
    defined = {index: _defined(cell.source) for index, cell in enumerate(given)
               if missing and index not in taken}
    for released in missing:
        wanted = _defined(released.source)
        take(released.id, [i for i, names in defined.items() if wanted and wanted <= names])
    return places


def _answer(
    released: NotebookNode, found: list[NotebookNode], notes: list[str]
) -> str | None:
    """The student's text of a solution cell, or None if there is none."""
    name = released.metadata.nbgrader.grade_id
    if not found:
        notes.append(f"The cell of {name} is missing: it counts as not solved.")
        return None
    worked_on = [cell for cell in found if not _is_stub(cell.source, released.source)]
    chosen = (worked_on or found)[0]
    if len(found) > 1:
        notes.append(f"There are {len(found)} cells named {name}: the first with work in it counts.")
    if chosen.metadata.kind != "code" and released.cell_type == "code":
        notes.append(f"The cell of {name} was no code cell any more: its text was taken as code.")
    return chosen.source


def _is_stub(text: str, solution: str) -> bool:
    """Whether `text` is what was released: the solution with its region replaced by one line."""
    kept = [line for line in SOLUTION.sub("", solution).splitlines() if line.strip()]
    lines = [line for line in text.splitlines()
             if line.strip() and not line.strip().startswith("raise NotImplementedError(")]
    return lines == kept


def _look_at_check(
    released: NotebookNode, found: list[NotebookNode], notes: list[str]
) -> None:
    name = released.metadata.nbgrader.grade_id
    if not found:
        notes.append(f"The check {name} was missing and was put back. That costs nothing.")
    elif released.source.strip() != found[0].source.strip() and "HIDDEN" not in released.source:
        notes.append(f"The check {name} was changed: the original was used.")
    elif len(found) > 1:
        notes.append(f"There are {len(found)} cells named {name}: it counts once.")


def _defined(code: str) -> set[str]:
    """Functions and classes that a cell defines at its top level."""
    if len(code) > MAX_CODE:
        return set()
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(re.findall(r"^def (\w+)", code, re.MULTILINE))
    return {node.name for node in body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}


def _adder(cells: list[NotebookNode], used: set[str]):
    """A function that appends the student's own cells, under ids that no other cell has."""

    def add(own: list[NotebookNode]) -> None:
        for cell in own:
            name = cell.id if re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell.id) else "own"
            number = 1
            unique = name
            while unique in used:
                number += 1
                unique = f"{name[:56]}-{number}"
            used.add(unique)
            cell.id = unique
            cell.metadata.clear()
            cells.append(cell)

    return add


def _first_line(cell: NotebookNode) -> str:
    return cell.source.strip().split("\n")[0][:60]
