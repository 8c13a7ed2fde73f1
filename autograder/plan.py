"""Which cells of a submission have to run before its answers can be asked for.

A cell that no graded function needs is left out: figures, training, one's own experiments. What is
needed is read off the code, never off metadata that the student could have changed.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
from collections.abc import Collection
from dataclasses import dataclass

from nbformat import NotebookNode

from autograder.repair import MAX_CODE, Repaired
from loralab.execution import DEFAULT_SECONDS, seconds_for

_BUILTINS = frozenset(dir(builtins))
# A line of IPython's own. Its transformers take a minute for a cell made to that end.
_MAGIC = re.compile(r"^([ \t]*)[%!?].*$", re.MULTILINE)
# Names that reach every other one: what such a cell does can't be read off it.
_REACHING = {"globals", "locals", "vars", "exec", "eval", "get_ipython", "__import__"}


@dataclass(frozen=True)
class Names:
    """What a cell's top level `binds` or changes, and what it `uses` of others'.

    clear: False where the code could do anything, or is none.
    """

    binds: frozenset[str]
    uses: frozenset[str]
    clear: bool = True


def names(code: str) -> Names:
    """The global names that `code` binds and uses; functions' local ones are not among them."""
    plain = True
    read = _read(code)
    if read is None:
        plain, read = False, _read(_MAGIC.sub(r"\1pass", code))
    if read is None:
        return Names(frozenset(), frozenset(), clear=False)
    tree, table = read
    binds, uses = set(), set()
    tables = [table]
    while tables:
        one = tables.pop()
        tables += one.get_children()
        top = one.get_type() == "module"
        for symbol in one.get_symbols():
            if not (top or symbol.is_global()):
                continue
            if symbol.is_assigned() or symbol.is_imported():
                binds.add(symbol.get_name())
            if symbol.is_referenced():
                uses.add(symbol.get_name())
    starred = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
                  for node in ast.walk(tree))
    binds |= _changed(tree)
    return Names(frozenset(binds), frozenset(uses - _BUILTINS),
                 clear=plain and not starred and not uses & _REACHING)


def _read(code: str) -> tuple[ast.Module, symtable.SymbolTable] | None:
    """`code` parsed; None where it is no plain Python, or too long to be looked into."""
    try:
        if len(code) <= MAX_CODE:
            return ast.parse(code), symtable.symtable(code, "cell", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    return None


def _changed(tree: ast.Module) -> set[str]:
    """Names whose objects the top level changes in place: `table["x"] = 1`, `module.x = 1`, and
    a method called for its effect alone (`found.append(1)`)."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            found.add(_root(node))
    for statement in tree.body:
        if (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
                and isinstance(statement.value.func, ast.Attribute)):
            found.add(_root(statement.value.func))
    return found - {""}


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def cells_to_run(repaired: Repaired, source: NotebookNode, wanted: Collection[str]) -> list[int]:
    """Indices, in order, of the cells of `repaired.notebook` that the answers need.

    wanted: the grade_ids of the solution cells to be asked, and of an instructor's own test cells.
    With one of those everything but long cells runs, as stock nbgrader would run it. A cell that
    the source gives more time than the default (`# %% timeout=`) is long: training.
    """
    cells = repaired.notebook.cells
    released = {cell.id: cell for cell in source.cells if cell.cell_type == "code"}
    long = {name for name, cell in released.items() if seconds_for(cell) > DEFAULT_SECONDS}
    graded = {name: cell.metadata.nbgrader for name, cell in released.items()
              if "nbgrader" in cell.metadata}
    tests = {one.grade_id for one in graded.values() if one.grade and not one.solution}
    everything = bool(tests & set(wanted))

    candidates: dict[int, Names] = {}
    needed: set[int] = set()
    for index, cell in enumerate(cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        marks = graded.get(cell.id)
        name = marks.grade_id if marks else None
        if name in wanted:
            needed.add(index)
        elif cell.id in long or (marks and marks.grade and not marks.solution):
            continue
        elif everything:
            needed.add(index)
        elif not (marks and marks.solution and marks.grade):
            found = names(cell.source)
            # A released cell that nobody touched hides nothing.
            untouched = cell.id in released and cell.source == released[cell.id].source
            if found.clear or untouched:
                candidates[index] = found
            else:
                needed.add(index)
    if everything:
        return sorted(needed)

    waiting = list(needed)
    while waiting:
        uses = names(cells[waiting.pop()].source).uses
        for index in [i for i, found in candidates.items() if found.binds & uses]:
            del candidates[index]
            needed.add(index)
            waiting.append(index)
    return sorted(needed)
