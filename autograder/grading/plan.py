"""Which cells of a submission have to run before its answers can be asked for.

A cell that no graded function needs is left out: figures, training, one's own experiments. What is
needed is read off the code, never off metadata that the student could have changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from nbformat import NotebookNode

from autograder.grading.names import Names, names
from autograder.grading.repair import Repaired, asked
from loralab.execution import DEFAULT_SECONDS, seconds_for


def cells_to_run(repaired: Repaired, source: NotebookNode, wanted: Collection[str]) -> list[int]:
    """Indices, in order, of the cells of `repaired.notebook` that the answers need.

    wanted: the grade_ids of the solution cells to be asked, and of an instructor's own test cells.
    With one of those everything but long cells runs, as stock nbgrader would run it. A cell that
    the source gives more time than the default (`# %% timeout=`) is long: training.

    A name is what it is when the exercise's check is reached: cells below bind it only if none
    above does.
    """
    cells = repaired.notebook.cells
    released = {cell.id: cell for cell in source.cells if cell.cell_type == "code"}
    marks = {cell.id: cell.metadata.nbgrader for cell in source.cells
             if "nbgrader" in cell.metadata}
    place = {marks[cell.id].grade_id: index for index, cell in enumerate(cells) if cell.id in marks}
    tests = {one.grade_id for one in marks.values() if one.grade and not one.solution}

    asking: set[int] = set()
    others: dict[int, Names] = {}
    for index, cell in enumerate(cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        mark = marks.get(cell.id)
        if mark and mark.grade_id in wanted:
            asking.add(index)
        elif not (_long(released.get(cell.id)) or mark and (
                mark.grade_id in tests or f"{mark.grade_id}-check" in tests - set(wanted))):
            others[index] = names(cell.source)
    if tests & set(wanted):
        return sorted(asking | set(others))

    known = others | {index: names(cells[index].source) for index in asking}
    modules = frozenset().union(*(found.imports for found in known.values()))
    binders: dict[str, list[int]] = {}
    for index in sorted(known):
        found = known[index]
        # A released cell that calls a library does not change it; a student's own might.
        changed = (found.calls - modules if _untouched(cells[index], released)
                   else found.calls | found.touches)
        for name in found.binds | changed:
            binders.setdefault(name, []).append(index)

    # The index of the cell up to which each is needed.
    until: dict[int, int] = {}
    for index in asking:
        name = marks[cells[index].id].grade_id
        until[index] = place.get(f"{name}-check", len(cells))
    for index, found in others.items():
        if not found.clear and not _untouched(cells[index], released):
            until[index] = len(cells)
    todo = [(name, end) for index, end in until.items() for name in known[index].uses]
    todo += [(name, until[index]) for index in asking
             for name in asked(released[cells[index].id])]
    seen: set[tuple[str, int]] = set()
    while todo:
        if (wish := todo.pop()) in seen:
            continue
        seen.add(wish)
        name, end = wish
        everywhere = binders.get(name, [])
        for index in [one for one in everywhere if one < end] or everywhere:
            found = known[index]
            if until.get(index, -1) < end:
                until[index] = end
                todo += [(used, end) for used in found.uses]
            if name in found.deep:  # its functions have to be called
                todo += [(bound, end) for bound in found.binds]
    return sorted(until)


def _long(released: NotebookNode | None) -> bool:
    return released is not None and seconds_for(released) > DEFAULT_SECONDS


def _untouched(cell: NotebookNode, released: Mapping[str, NotebookNode]) -> bool:
    return cell.id in released and cell.source == released[cell.id].source
