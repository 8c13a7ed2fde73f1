"""What a student sees when a cell fails, through a real kernel: a clear message, still an error."""

import errno
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from loralab import notebook

CHAPTER = {
    "cells": [
        {"cell_type": "markdown", "source": ["## 2. Weights\n", "\n", "### The `table`"]},
        {"cell_type": "code", "source": ["try:\n", "    table = {}\n", "finally:\n", "    pass"]},
    ]
}
SET_UP = """
from pathlib import Path
from loralab import notebook, paths
paths.NOTEBOOKS = Path({folder!r})
notebook.start("01")
"""
# What the cell does → the exception's own name, and what the message must say.
FAILURES = {
    "out of order": ("print(table)", "NameError",
                     ["`table` does not exist yet (line 1: `print(table)`)", "under “The table”",
                      "run the cells above first"]),
    "misspelt": ("my_result = 1\nmy_resutl", "NameError", ["Did you mean `my_result`?"]),
    "unknown": ("def f():\n    return qqqq\n\nf()", "NameError",
                ["line 2: `return qqqq`", "if a cell above makes it"]),
    "no memory": ("raise MemoryError()", "MemoryError",
                  ["This computer ran out of memory", "batch size", "is safe"]),
    "no memory, torch": (
        "import torch\ntorch.empty(2**52)", "RuntimeError", ["This computer ran out of memory"]),
    "no memory, GPU": (
        "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')",
        "OutOfMemoryError", ["The GPU ran out of memory", "Restart Kernel"]),
    "disk full": ("import errno\nraise OSError(errno.ENOSPC, 'No space left on device')", "OSError",
                  ["The disk is full", "Free some space"]),
    "disk full, truly": ("with open('/dev/full', 'w') as file:\n    file.write('x')", "OSError",
                         ["The disk is full"]),
    "disk full, Rust": ("class SafetensorError(Exception): pass\n"
                        "raise SafetensorError('I/O error: No space left on device (os error 28)')",
                        "SafetensorError", ["The disk is full"]),
    "course error": ("from loralab.errors import CourseError\n"
                     "raise CourseError('No model.', 'Run make lab.')", "CourseError",
                     ["No model.", "→ Run make lab."]),
    "stopped": ("raise KeyboardInterrupt", "KeyboardInterrupt",
                ["Stopped before it was done", "begins anew"]),
    "unsolved": (
        "def f():\n    raise NotImplementedError('Exercise 1.1: write f')\n\nf()",
        "NotImplementedError",
        ["Not written yet. Exercise 1.1: write f", "run that cell, then run this one again"]),
    "unsolved, in its own cell": (
        "raise NotImplementedError('Exercise 5.6: save it')", "NotImplementedError",
        ["Not written yet. Exercise 5.6: save it", "this cell's `raise` line", "run the cell again"]),
}
UNTOUCHED = {
    "another error": ("1 / 0", "ZeroDivisionError"),
    "another RuntimeError": ("raise RuntimeError('size mismatch')", "RuntimeError"),
    "another OSError": ("open('/nowhere/at/all')", "FileNotFoundError"),
    "a syntax error": ("def f(:", "SyntaxError"),
    "a chained name": ("raise ValueError('x') from None", "ValueError"),
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Every failing cell, run one after the other in one kernel: name → its error output."""
    folder = tmp_path_factory.mktemp("messages")
    (folder / "01_small").mkdir()
    (folder / "01_small" / "01_small.ipynb").write_text(json.dumps(CHAPTER))
    cells = {"set up": SET_UP.format(folder=str(folder))}
    cells |= {name: case[0] for name, case in (FAILURES | UNTOUCHED).items()}
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in cells.values()])
    NotebookClient(book, kernel_name="python3", allow_errors=True, timeout=120).execute(
        cwd=str(folder))
    return dict(zip(cells, [cell.outputs for cell in book.cells], strict=True))


def error_of(outputs):
    errors = [output for output in outputs if output.output_type == "error"]
    assert len(errors) == 1, outputs
    return errors[0]


def text_of(error):
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))


def test_set_up_prints_one_line_of_hardware_and_nothing_on_stderr(outputs):
    assert [(output.output_type, output.get("name")) for output in outputs["set up"]] == [
        ("stream", "stdout")]
    assert outputs["set up"][0].text.count("\n") == 1


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.skipif(
        "/dev/full" in FAILURES[name][0] and not Path("/dev/full").exists(),
        reason="only Linux has a device that is always full")) for name in FAILURES])
def test_the_message_is_clear_and_the_cell_stays_an_error(outputs, name):
    error = error_of(outputs[name])
    text = text_of(error)
    assert error.ename == FAILURES[name][1]
    for part in FAILURES[name][2]:
        assert part in text
    assert "Traceback" not in text and "ipykernel" not in text
    assert len(text.splitlines()) <= 3


@pytest.mark.parametrize("name", UNTOUCHED)
def test_other_errors_keep_their_traceback(outputs, name):
    error = error_of(outputs[name])
    assert error.ename == UNTOUCHED[name][1]
    assert "→" not in text_of(error).replace("---->", "")


def test_execution_stops_at_the_error_as_without_us(tmp_path):
    from nbclient.exceptions import CellExecutionError

    book = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell(source) for source in
        (SET_UP.format(folder=str(tmp_path)), "raise MemoryError()", "after = True")])
    with pytest.raises(CellExecutionError) as caught:
        NotebookClient(book, kernel_name="python3", timeout=120).execute(cwd=str(tmp_path))
    assert caught.value.ename == "MemoryError"
    assert book.cells[2].execution_count is None


def test_an_out_of_memory_cell_lets_go_of_what_it_held(tmp_path):
    """Else a smaller attempt in the same kernel would find no room."""
    source = ("import gc, weakref\nclass Big: pass\nseen = []\n"
              "def fill():\n    big = Big(); seen.append(weakref.ref(big)); raise MemoryError()\n"
              "fill()")
    book = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell(text) for text in
        (SET_UP.format(folder=str(tmp_path)), source, "gc.collect(); print(seen[0]() is None)")])
    NotebookClient(book, kernel_name="python3", allow_errors=True, timeout=120).execute(
        cwd=str(tmp_path))
    assert book.cells[2].outputs[0].text == "True\n"


def test_names_are_found_where_a_chapter_makes_them():
    source = "import numpy as np\nfrom a import b, c as d\nx, (y, *z) = 1, (2, 3)\n" \
             "for i in x:\n    j = i\ndef f():\n    inner = 1\nwith o() as w: pass\n" \
             "k = [m for m in x]"
    assert notebook._names_made(source) == {"np", "b", "d", "x", "y", "z", "i", "j", "f", "w", "k"}
    assert notebook._names_made("%magic") == set()


def test_a_quota_counts_as_a_full_disk():
    assert "disk is full" in notebook.explain(OSError(errno.EDQUOT, "quota"), "01")[0]
