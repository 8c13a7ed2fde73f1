"""The names that a cell's code binds, changes and uses, read off it without running it.

A stranger's code: no size or depth of it takes long, and none of it raises.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

MAX_CODE = 20_000  # characters; what is longer is not looked into

# Names that reach every other one: what such a cell does can't be read off it.
_REACHING = {"globals", "locals", "vars", "exec", "eval", "get_ipython", "__import__"}
# Builtins that change nothing that they are given.
_HARMLESS = frozenset(dir(builtins)) - {"setattr", "delattr"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)

# IPython's own lines: %magic, !command, name?, and those that assign. Only tried on what is not
# Python, since a text may have such lines too.
_CELL_MAGIC = re.compile(r"\A\s*%%.*")
_ASSIGNED = re.compile(r"^([\w., \t\[\]'\"]+=[ \t]*)[%!].*", re.MULTILINE)
_LINE = re.compile(r"^([ \t]*)(?:[%!?].*|\S.*\?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Names:
    """What code does to global names, by itself or through the functions that it defines.

    binds: those that it binds, or whose object it changes in place. imports: those of `binds` that
    it imports. calls: those of which a method is called for its effect alone (`found.append(1)`).
    touches: those that a call gets or belongs to, and may change. deep: those that its functions
    change when they are called. uses: those that it needs. clear: False where it could do
    anything, or is none.
    """

    binds: frozenset[str] = frozenset()
    imports: frozenset[str] = frozenset()
    calls: frozenset[str] = frozenset()
    touches: frozenset[str] = frozenset()
    deep: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()
    clear: bool = True


@lru_cache(maxsize=1024)  # source cells come back with every submission
def names(code: str) -> Names:
    """See `Names`. Functions' local names are not among them."""
    if len(code) > MAX_CODE or (parsed := _parsed(code)) is None:
        code = code[:MAX_CODE]
        return Names(uses=frozenset(re.findall(r"[^\W\d]\w*", code)), clear=False)
    tree, table, plain = parsed
    binds, imports, deep, uses = set(), set(), set(), set()
    tables = [table]
    while tables:
        one = tables.pop()
        tables += one.get_children()
        top = one.get_type() == "module"
        for symbol in one.get_symbols():
            if not (top or symbol.is_global()):
                continue
            if symbol.is_assigned() or symbol.is_imported():
                (binds if top else deep).add(symbol.get_name())
            if symbol.is_imported():
                imports.add(symbol.get_name())
            if symbol.is_referenced():
                uses.add(symbol.get_name())
    calls, touches = set(), set()
    for node, inside in _nodes(tree):
        (deep if inside else binds).update(_stored(node))
        (deep if inside else calls).update(_called_for_effect(node))
        if not inside:
            touches |= _touched(node)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and (
                not inside or node.target.id in deep):  # no reference to Python's own tables
            uses.add(node.target.id)
    reaching = bool(uses & _REACHING)
    if reaching:  # names may be in texts: eval("f"), globals()["f"]
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                uses.update(re.findall(r"[^\W\d]\w*", node.value))
    starred = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
                  for node in ast.walk(tree))
    return Names(
        *map(frozenset, (binds | deep, imports, calls, touches, deep, uses)),
        clear=plain and not starred and not reaching)


def _parsed(code: str) -> tuple[ast.Module, symtable.SymbolTable, bool] | None:
    """Tree, table, and whether it is plain Python; None for what is no code."""
    for text, plain in ((code, True), (_without_magic(code), False)):
        try:
            return ast.parse(text), symtable.symtable(text, "cell", "exec"), plain
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            pass
    return None


def _without_magic(code: str) -> str:
    """`code` with IPython's own lines replaced by Python that binds the same names."""
    return _LINE.sub(r"\1pass", _ASSIGNED.sub(r"\1None", _CELL_MAGIC.sub("", code)))


def _nodes(tree: ast.Module) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it is inside a function, which runs only when it is called."""
    todo: list[tuple[ast.AST, bool]] = [(tree, False)]
    while todo:
        node, inside = todo.pop()
        yield node, inside
        inside = inside or isinstance(node, _FUNCTIONS)
        todo += [(child, inside) for child in ast.iter_child_nodes(node)]


def _stored(node: ast.AST) -> set[str]:
    """`table["x"] = 1`, `module.x = 1`, `del table["x"]`."""
    if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
        return {_root(node)} - {""}
    return set()


def _called_for_effect(node: ast.AST) -> set[str]:
    """`found.append(1)`: nobody takes what it returns."""
    if not isinstance(node, ast.Expr):
        return set()
    call = node.value.value if isinstance(node.value, ast.Await) else node.value
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
        return {_root(call.func)} - {""}
    return set()


def _touched(node: ast.AST) -> set[str]:
    """What a call gets, and the object or function that it is a call of."""
    if not isinstance(node, ast.Call):
        return set()
    if isinstance(node.func, ast.Name) and node.func.id in _HARMLESS:
        return set()
    given = [node.func, *node.args, *(keyword.value for keyword in node.keywords)]
    return {_root(one.value if isinstance(one, ast.Starred) else one) for one in given} - {""}


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
