"""Align a submitted notebook with the one that was released.

Students copy cells, split them, delete them, drag them about, and other editors drop metadata. What
counts is found again here; points, flags, checks and test cells are always the source's own.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_raw_cell

from autograder.grading.names import names

SOLUTION = re.compile(
    r"^([ \t]*)### BEGIN SOLUTION.*?^[ \t]*### END SOLUTION[^\n]*$", re.MULTILINE | re.DOTALL)
HIDDEN = re.compile(
    r"^[ \t]*### BEGIN HIDDEN TESTS.*?^[ \t]*### END HIDDEN TESTS[^\n]*$\n?",
    re.MULTILINE | re.DOTALL)
# What stands where a solution stood: ours, and stock nbgrader's.
STUB = re.compile(r"\s*(raise NotImplementedError\(|# YOUR CODE HERE\s*$|YOUR ANSWER HERE\s*$)")
# The cell that tells a student what was set right, once it is graded.
NOTES_ID = "about-what-you-handed-in"
# What is beyond these is no work on the exercises, and would be parsed for minutes.
MAX_CELLS = 2_000
MAX_CODE, MAX_CODE_IN_ALL = 100_000, 2_000_000  # characters of one cell, of all together
PICTURES = {"image/png", "image/jpeg", "image/gif"}
_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


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


@dataclass(frozen=True)
class _Given:
    """What is believed of a submitted cell. claimed: the grade_id that its metadata has."""

    kind: str
    text: str
    id: str
    claimed: str | None
    pictures: dict[str, dict[str, str]] = field(default_factory=dict)


def repair(submitted: NotebookNode, source: NotebookNode) -> Repaired:
    """See `Repaired`. Takes any v4 notebook; neither argument is changed."""
    notes: list[str] = []
    given = _given(submitted, source, notes)
    places = _match(given, source)
    owner = {index: name for name, indices in places.items() for index in indices}

    # The student's own cells, by the released cell that they followed ("" for the top).
    own: dict[str, list[_Given]] = {}
    after = ""
    for index, cell in enumerate(given):
        if index in owner:
            after = owner[index]
        elif cell.text.strip() or cell.pictures:
            own.setdefault(after, []).append(cell)

    cells: list[NotebookNode] = []
    texts: dict[str, str | None] = {}
    missing = 0
    add_own = _adder(cells, {cell.id for cell in source.cells} | {NOTES_ID})
    add_own(own.get("", []))
    for released in source.cells:
        cell = copy.deepcopy(released)
        indices = places.get(released.id, [])
        marks = released.metadata.get("nbgrader", {})
        if marks.get("solution"):
            chosen = _answer(released, given, places, notes)
            cell.source = "\n\n".join(one.text for one in chosen)
            texts[marks.grade_id] = cell.source if chosen else None
            _give_pictures(cell, chosen)
        elif marks.get("grade"):
            _look_at_check(released, [given[index] for index in indices], notes)
        elif indices and not marks:
            # What is not graded is the student's to change: parameters, imports.
            cell.source = given[indices[0]].text
            _give_pictures(cell, [given[indices[0]]])
        elif not marks and cell.cell_type == "code":
            missing += 1
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        cells.append(cell)
        add_own(own.get(released.id, []))

    if missing:
        notes.append("One released cell was missing; it was put back. That costs nothing."
                     if missing == 1 else
                     f"{missing} released cells were missing; they were put back. "
                     "That costs nothing.")
    order = [places[cell.id][0] for cell in source.cells
             if cell.cell_type == "code" and places.get(cell.id)]
    if order != sorted(order):
        notes.append("Cells were put back into their order.")
    notebook = copy.deepcopy(source)
    notebook.cells = cells
    return Repaired(notebook, texts, tuple(dict.fromkeys(notes)))


def released_text(cell: NotebookNode) -> str:
    """What students got of a source's cell: stubs for solutions, no hidden tests."""
    if cell.metadata.get("nbgrader", {}).get("solution"):
        stub = "raise NotImplementedError()" if cell.cell_type == "code" else "YOUR ANSWER HERE"
        found, count = SOLUTION.subn(rf"\g<1>{stub}", cell.source)
        return found if count else stub
    return HIDDEN.sub("", cell.source)


def asked(cell: NotebookNode) -> frozenset[str]:
    """The names that a source's solution cell asks the student to define."""
    return names(released_text(cell)).binds if cell.cell_type == "code" else frozenset()


# Reading what was handed in -----------------------------------------------------------------------


def _given(submitted: NotebookNode, source: NotebookNode, notes: list[str]) -> list[_Given]:
    known = {cell.metadata.nbgrader.grade_id for cell in source.cells
             if "nbgrader" in cell.metadata}
    found, total = [], 0
    for number, cell in enumerate(submitted.cells[:MAX_CELLS], 1):
        one = _believed(cell, known)
        size = len(one.text) if one.kind == "code" else 0
        if size > MAX_CODE or total + size > MAX_CODE_IN_ALL:
            notes.append(f"Cell {number} was left out: that is too much code.")
            one = replace(one, text="")
        else:
            total += size
        found.append(one)
    if len(submitted.cells) > MAX_CELLS:
        notes.append(f"Only the first {MAX_CELLS:,} cells of the notebook were read.")
    return found


def _believed(cell: object, known: set[str]) -> _Given:
    cell = cell if isinstance(cell, dict) else {}
    source = cell.get("source", "")
    text = "".join(map(str, source)) if isinstance(source, list) else str(source)
    # A lone surrogate could not be written to any file.
    text = text.encode("utf-8", "replace").decode("utf-8")
    kind = cell.get("cell_type")
    metadata = cell.get("metadata")
    marks = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    claimed = marks.get("grade_id") if isinstance(marks, dict) else None
    return _Given(
        kind if kind in ("code", "raw") else "markdown", text, str(cell.get("id", ""))[:64],
        claimed if isinstance(claimed, str) and claimed in known else None,
        pictures_of(cell.get("attachments")))


def pictures_of(attachments: object) -> dict[str, dict[str, str]]:
    """Those of a cell's attachments that can only be pictures."""
    found = {}
    for name, bundle in attachments.items() if isinstance(attachments, dict) else ():
        if isinstance(bundle, dict) and re.fullmatch(r"[\w. ()-]{1,100}", str(name)):
            kept = {kind: "".join(data.split()) for kind, data in bundle.items()
                    if kind in PICTURES and isinstance(data, str)
                    and re.fullmatch(r"[A-Za-z0-9+/\s]+=*\s*", data)}
            if kept:
                found[str(name)] = kept
    return found


# Which is which -----------------------------------------------------------------------------------


def _match(given: list[_Given], source: NotebookNode) -> dict[str, list[int]]:
    """id of a released cell → indices of the submitted cells that are it, in their order.

    By grade_id, by cell id, by unchanged text, and by the names that it defines. A cell that is not
    graded is one cell of its own kind; further ones are the student's own.
    """
    places: dict[str, list[int]] = {}
    taken: set[int] = set()

    def take(released: NotebookNode, indices: Iterable[int]) -> None:
        marks = "nbgrader" in released.metadata
        left = [index for index in indices if index not in taken
                and (marks or given[index].kind == released.cell_type)]
        for index in left if marks else left[:1]:
            taken.add(index)
            places.setdefault(released.id, []).append(index)

    by_claim = _grouped((cell.claimed, index) for index, cell in enumerate(given))
    for released in source.cells:
        if marks := released.metadata.get("nbgrader"):
            take(released, by_claim.get(marks.grade_id, []))
    unclaimed = [(index, cell) for index, cell in enumerate(given) if cell.claimed is None]
    by_id = _grouped((cell.id, index) for index, cell in unclaimed)
    for released in source.cells:
        if released.id not in places:
            take(released, by_id.get(released.id, []))
    by_text = _grouped((_stripped(cell.text), index) for index, cell in unclaimed)
    for released in source.cells:
        if released.id not in places and (text := _stripped(released_text(released))):
            take(released, by_text.get(text, [])[:1])
    binds = {index: names(cell.text).binds for index, cell in enumerate(given)
             if index not in taken and cell.kind == "code"}
    for released in source.cells:
        if released.id in places or released.cell_type != "code" or _is_check(released):
            continue
        if wanted := asked(released) if _is_solution(released) else names(released.source).binds:
            take(released, [index for index, bound in binds.items() if wanted <= bound])
    # A stub that was left as it is, and the function in a cell beside it.
    for released in source.cells:
        if _is_solution(released) and all(
            _is_stub(given[index].text, released) for index in places.get(released.id, [])
        ) and (wanted := asked(released)):
            take(released, [index for index, bound in binds.items() if wanted <= bound])
    if all(cell.claimed is None for cell in given):
        _match_by_place(given, source, places, take)
    return places


def _match_by_place(
    given: list[_Given], source: NotebookNode, places: dict[str, list[int]],
    take: Callable[[NotebookNode, Iterable[int]], None],
) -> None:
    """Where all metadata is lost: an answer in words is what stands between its neighbours."""
    taken = {index for indices in places.values() for index in indices}
    for number, released in enumerate(source.cells):
        if released.id in places or not _is_solution(released):
            continue
        above = [places[cell.id][-1] for cell in source.cells[:number] if cell.id in places]
        below = [places[cell.id][0] for cell in source.cells[number:] if cell.id in places]
        gap = range(above[-1] + 1 if above else 0, below[0] if below else len(given))
        left = [index for index in gap if index not in taken and given[index].text.strip()
                and given[index].kind == released.cell_type]
        taken.update(left[:1])
        take(released, left[:1])


def _grouped(pairs: Iterable[tuple[str | None, int]]) -> dict[str | None, list[int]]:
    found: dict[str | None, list[int]] = {}
    for key, index in pairs:
        found.setdefault(key, []).append(index)
    return found


def _stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _is_solution(cell: NotebookNode) -> bool:
    return bool(cell.metadata.get("nbgrader", {}).get("solution"))


def _is_check(cell: NotebookNode) -> bool:
    return "nbgrader" in cell.metadata and not _is_solution(cell)


# What the student is told -------------------------------------------------------------------------


def _answer(
    released: NotebookNode, given: list[_Given], places: dict[str, list[int]], notes: list[str]
) -> list[_Given]:
    """The student's cells for a solution cell, in their order; none where it is missing.

    Several of one name: a cell that was split, or a copy. Run one after the other they do what
    they did for the student, up to the check.
    """
    name = released.metadata.nbgrader.grade_id
    indices = [index for index in sorted(places.get(released.id, []))
               if given[index].text.strip() or given[index].pictures]
    if not indices:
        notes.append(f"The cell of {name} is missing or empty: it counts as not solved.")
        return []
    chosen = [index for index in indices if not _is_stub(given[index].text, released)]
    check = places.get(f"{name}-check", [])
    chosen = [index for index in chosen if check and index < check[0]] or chosen or indices[:1]
    if len(chosen) > 1 and released.cell_type == "code":
        # A draft that is no code would take the others with it.
        chosen = [index for index in chosen if names(given[index].text).binds] or chosen
    if len(indices) > 1:
        notes.append(
            f"There were {len(indices)} cells for {name}: "
            + ("those with work in them were put together, in their order."
               if len(chosen) > 1 else "one of them counts, with work in it."))
    found = [given[index] for index in chosen]
    if released.cell_type == "code" and any(cell.kind != "code" for cell in found):
        notes.append(f"The cell of {name} was no code cell any more: its text was taken as code.")
    return found


def _is_stub(text: str, released: NotebookNode) -> bool:
    """Whether `text` is what was released of a solution cell, with nothing written into it."""
    return _worked_lines(text) == _worked_lines(released_text(released))


def _worked_lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip() and not STUB.match(line)]


def _look_at_check(released: NotebookNode, found: list[_Given], notes: list[str]) -> None:
    name = released.metadata.nbgrader.grade_id
    if not found:
        notes.append(f"The check {name} was missing and was put back. That costs nothing.")
    elif all(_stripped(cell.text) not in (
            _stripped(released_text(released)), _stripped(released.source)) for cell in found):
        notes.append(f"The check {name} was changed: the original was used.")
    elif len(found) > 1:
        notes.append(f"There were {len(found)} cells of the check {name}: it counts once.")


# Writing ------------------------------------------------------------------------------------------


def _give_pictures(cell: NotebookNode, found: list[_Given]) -> None:
    pictures = {name: kept for one in found for name, kept in one.pictures.items()}
    if pictures and cell.cell_type == "markdown":
        cell.attachments = NotebookNode(pictures)


def _adder(cells: list[NotebookNode], used: set[str]) -> Callable[[list[_Given]], None]:
    """A function that appends the student's own cells, under ids that no other cell has."""
    make = {"code": new_code_cell, "markdown": new_markdown_cell, "raw": new_raw_cell}

    def add(own: list[_Given]) -> None:
        for given in own:
            name = given.id if _ID.fullmatch(given.id) else "own"
            number, unique = 1, name
            while unique in used:
                number += 1
                unique = f"{name[:56]}-{number}"
            used.add(unique)
            cell = make[given.kind](given.text, id=unique)
            _give_pictures(cell, [given])
            cells.append(cell)

    return add
