"""The set-up cell of every chapter: one hardware line, one plot style, clear messages.

When something goes wrong that a student can mend, the cell shows what happened and what to do in
place of a traceback. It stays an error: papermill, nbgrader and "Run All" see the same exception,
by its own name, and stop where they would have stopped.
"""

from __future__ import annotations

import ast
import difflib
import errno
import json
import linecache
import sys
import traceback
from collections.abc import Iterable
from types import TracebackType

from IPython.core.getipython import get_ipython

from . import hardware, paths, plots

KEPT = "What you wrote is safe in the notebook, and finished training runs are in the cache."


def start(chapter: str) -> None:
    """Prepare the running notebook for `chapter` ("01"): style, messages, one hardware line.

    Running it again does no harm. Outside a notebook it only sets the style and prints.
    """
    plots.use_style()
    shell = get_ipython()
    if shell is not None:
        _install_messages(shell, chapter)
    print(hardware.describe())


def _install_messages(shell, chapter: str) -> None:
    """Have IPython show our message for each error that `explain` knows."""

    def show(shell, kind, error, trace, tb_offset=None):
        lines = explain(error, chapter, shell.user_ns)
        if lines:
            # IPython's own protocol: the error is shown by these lines, and otherwise unchanged.
            error._render_traceback_ = lambda: lines
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset, running_compiled_code=True)
        if lines and _out_of_memory(error):
            _let_go_of(trace)

    shell.set_custom_exc((Exception, KeyboardInterrupt), show)


def explain(error: BaseException, chapter: str, names: Iterable[str] = ()) -> list[str] | None:
    """The lines that say what went wrong and what to do; None where the traceback says it better.

    `names` are those that exist in the notebook now, for the nearest spelling.
    """
    if hasattr(error, "_render_traceback_"):
        return None
    if isinstance(error, KeyboardInterrupt):
        return [
            "Stopped before it was done.",
            "→ Run the cell again when you like. A training run that was stopped begins anew; "
            "finished ones are in the cache.",
        ]
    if isinstance(error, NameError) and not isinstance(error, UnboundLocalError):
        return _explain_name(error, chapter, names)
    if isinstance(error, NotImplementedError) and str(error).startswith("Exercise "):
        frames = traceback.extract_tb(error.__traceback__)
        if frames and frames[-1].name == "<module>":
            remedy = "→ Replace this cell's `raise` line by your own, and run the cell again."
        else:
            remedy = ("→ Replace its `raise` line by your own, run that cell, then run this one "
                      "again.")
        return [f"Not written yet. {error}", remedy]
    if _out_of_memory(error):
        where = "The GPU" if "cuda" in str(error).lower() else "This computer"
        return [
            f"{where} ran out of memory.",
            "→ Make it smaller in the parameters cell (batch size first, then sequence length), "
            "close other notebooks that are running, then Kernel ▸ Restart Kernel and Run up to "
            "Selected Cell.",
            f"  {KEPT}",
        ]
    if _disk_full(error):
        return [
            "The disk is full: nothing more could be written.",
            "→ Free some space, save the notebook, and run this cell again. The course's cache, "
            f"{paths.cache()}, may be deleted: what is needed of it is made again.",
            "  Do not close the notebook before it could be saved; what was saved is untouched.",
        ]
    return None


def _explain_name(error: NameError, chapter: str, names: Iterable[str]) -> list[str]:
    name = error.name or ""
    where = _line_of(error)
    heading = made_under(name, chapter)
    if heading is not None:
        under = f", under “{heading}”" if heading else ""
        return [
            f"`{name}` does not exist yet{where}.",
            f"→ A cell of this chapter makes it{under}: run the cells above first, in order "
            "(Run ▸ Run All Above Selected Cell).",
        ]
    near = difflib.get_close_matches(name, [n for n in names if not n.startswith("_")], n=1)
    if near:
        remedy = f"→ Did you mean `{near[0]}`? If not: run the cells above first, in order."
    else:
        remedy = "→ Check its spelling; if a cell above makes it, run the cells above first."
    return [f"`{name}` does not exist{where}.", remedy]


def made_under(name: str, chapter: str) -> str | None:
    """The heading above the cell of `chapter` that makes `name`; None if no cell does.

    Read from the chapter as it was handed out, where every name that a cell needs has its place.
    """
    heading = ""
    for cell in _cells(chapter):
        if cell["cell_type"] == "markdown":
            for line in "".join(cell["source"]).splitlines():
                if line.startswith("#"):
                    heading = line.lstrip("#").strip().replace("`", "")
        elif cell["cell_type"] == "code" and name in _names_made("".join(cell["source"])):
            return heading
    return None


def _cells(chapter: str) -> list[dict]:
    for path in sorted(paths.NOTEBOOKS.glob(f"{chapter}_*/{chapter}_*.ipynb")):
        try:
            return json.loads(path.read_text("utf-8"))["cells"]
        except (OSError, ValueError, KeyError):
            return []
    return []


def _names_made(source: str) -> set[str]:
    """Names that running `source` makes at its top level, blocks such as `try` included."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return set()
    made: set[str] = set()
    nodes: list[ast.AST] = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            made.add(node.name)
            continue
        if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            made |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
        nodes.extend(ast.iter_child_nodes(node))
    return made


def _line_of(error: BaseException) -> str:
    """Where in the student's own code it happened: the line itself, if it can be had."""
    frames = traceback.extract_tb(error.__traceback__)
    # A cell's file name is made up by the kernel; every file of the course or a library exists.
    own = [frame for frame in frames if "ipykernel" in frame.filename or "<ipython" in frame.filename]
    if not own:
        return ""
    line = linecache.getline(own[-1].filename, own[-1].lineno or 0).strip()
    return f" (line {own[-1].lineno}: `{line}`)" if line else ""


def _out_of_memory(error: BaseException) -> bool:
    """MemoryError, torch's own error, and the RuntimeErrors that stand for it on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "defaultcpuallocator", "not enough memory")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def _disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # Libraries written in Rust or C++ report it in words.
    return "no space left on device" in str(error).lower()


def _let_go_of(trace: TracebackType | None) -> None:
    """Free what the failed cell still held, so that a smaller attempt has room."""
    traceback.clear_frames(trace)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
