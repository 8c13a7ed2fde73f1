"""Hostile folders: what a student might hand in beside a notebook, or in its place.

Each fills a folder that exists. Where a notebook is asked for, it is one in which 3 points are
earned honestly.
"""

from __future__ import annotations

import copy
import io
import json
import os
import socket
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from hostile import CHAPTER

NAME = f"{CHAPTER}.ipynb"
SCRIPT = "<script>alert('owned')</script>"


@dataclass(frozen=True)
class Folder:
    """A hostile submission: what it earns, and a pattern in what its student is told."""

    student: str
    fill: Callable[[Place], None]
    score: float
    said: str = ""


@dataclass(frozen=True)
class Place:
    """A folder to be filled, in the class at `root`, and the honest notebook."""

    folder: Path
    root: Path
    honest: nbformat.NotebookNode

    @property
    def path(self) -> Path:
        return self.folder / NAME

    def write(self, notebook=None, **changed) -> None:
        record = copy.deepcopy(dict(notebook or self.honest))
        record.update(changed)
        self.path.write_text(json.dumps(record))

    def cells(self):
        return copy.deepcopy(self.honest.cells)


FOLDERS: list[Folder] = []


def folder(score: float, said: str = "", student: str = ""):
    def add(fill: Callable[[Place], None]):
        FOLDERS.append(Folder(student or fill.__name__, fill, score, said))
        return fill

    return add


def beside(act: Callable[[Place], None], said: str = "left out"):
    """The honest notebook, and what `act` puts beside it."""

    def fill(place: Place) -> None:
        place.write()
        act(place)

    FOLDERS.append(Folder(act.__name__, fill, 3, said))
    return act


# In the notebook's place -----------------------------------------------------------------------------


@folder(0, "no plain file")
def pipe(place):
    os.mkfifo(place.path)


@folder(0, "is a link")
def link_to_gradebook(place):
    place.path.symlink_to(place.root / "gradebook.db")


@folder(0, "is a link")
def link_to_another(place):
    place.path.symlink_to(f"../../ada/{CHAPTER}/{NAME}")


@folder(0, "is a link")
def link_to_itself(place):
    place.path.symlink_to(NAME)


@folder(0, "is a link to a file elsewhere")
def hard_link_to_gradebook(place):
    os.link(place.root / "gradebook.db", place.path)


@folder(0, "can't be read|no plain file|directory")
def a_folder(place):
    place.path.mkdir()
    (place.path / "inner.ipynb").write_text("{}")


@folder(0, "no JSON")
def empty(place):
    place.path.write_text("")


@folder(0, "no JSON")
def truncated(place):
    place.write()
    text = place.path.read_text()
    place.path.write_text(text[: len(text) // 2])


@folder(0, "not a text in UTF-8")
def binary(place):
    place.path.write_bytes(os.urandom(5000))


@folder(0, "no JSON")
def nested(place):
    place.path.write_text("[" * 10**6)


@folder(0, "is missing or empty")
def nested_less(place):
    place.path.write_text('{"nbformat": 4, "cells": ' + "[" * 800 + "]" * 800 + "}")


@folder(0, "no notebook")
def a_list(place):
    place.path.write_text("[1, 2]")


@folder(0, "format 5")
def version_5(place):
    place.write(nbformat=5)


@folder(0, "no notebook")
def version_of_odd_text(place):
    place.path.write_text('{"nbformat": "\\ud800<script>\\n\\u202e", "cells": []}')


@folder(0, "old format")
def version_3_without_anything(place):
    place.path.write_text('{"nbformat": 3, "worksheets": [{"cells": [5]}]}')


@folder(0, "larger than 21 MB")
def enormous(place):
    with open(place.path, "w") as file:
        file.write('{"nbformat": 4, "cells": [], "metadata": {"x": "')
        for _ in range(25):
            file.write("x" * 10**6)
        file.write('"}}')


@folder(0, "larger than 21 MB")
def sparse(place):
    place.path.touch()
    os.truncate(place.path, 10**12)


# Notebooks that are almost right ---------------------------------------------------------------------


@folder(3)
def version_3(place):
    nbformat.write(nbformat.convert(copy.deepcopy(place.honest), 3), place.path, version=3)


@folder(3)
def without_ids(place):
    cells = place.cells()
    for cell in cells:
        del cell["id"]
    place.write(cells=cells, nbformat_minor=4)


@folder(3)
def odd_ids(place):
    cells = place.cells()
    cells += [nbformat.v4.new_markdown_cell("*", id="about-what-you-handed-in"),
              nbformat.v4.new_markdown_cell("*", id="about-what-you-handed-in")]
    for cell, name in zip(cells, ("", "a b", SCRIPT, "x" * 500, 5, None, ["a"])):
        cell["id"] = name
    cells[40]["id"] = cells[41]["id"] = cells[42]["id"]
    place.write(cells=cells)


for number, minor in enumerate(("x", None, 99)):
    FOLDERS.append(Folder(f"odd_minor_{number}",
                          lambda place, minor=minor: place.write(nbformat_minor=minor), 3))


@folder(3)
def odd_metadata(place):
    metadata = {"kernelspec": {"name": "../../evil", "language": "bash", "display_name": SCRIPT},
                "language_info": "python", "celltoolbar": 5, "nbgrader": [], "widgets": "x"}
    place.write(metadata=metadata)


@folder(3)
def no_metadata(place):
    record = dict(place.honest)
    del record["metadata"], record["nbformat_minor"]
    place.path.write_text(json.dumps(record))


@folder(3)
def odd_cells(place):
    cells = place.cells()
    cells[0:0] = [{}, 5, None, [], "cell", {"cell_type": "code"}, {"cell_type": "raw", "source": {}},
                  {"cell_type": "heading", "source": ["a", 5, None], "metadata": []},
                  {"cell_type": ["code"], "source": "1\u0000\ud800", "outputs": 7},
                  {"cell_type": "code", "source": "x = 1", "outputs": [{"output_type": SCRIPT}],
                   "execution_count": {}, "metadata": {"nbgrader": {"grade_id": ["a"], "points": {}}}}]
    place.write(cells=cells)


@folder(3)
def edited_points(place):
    cells = place.cells()
    for cell in cells:
        if marks := cell["metadata"].get("nbgrader"):
            marks.update(points=1000, grade=True, solution=True, locked=False, task=True,
                         schema_version=99, cell_type="markdown")
    place.write(cells=cells)


@folder(3)
def edited_names(place):
    cells = place.cells()
    for cell in cells:
        marks = cell["metadata"].get("nbgrader", {})
        if marks.get("grade_id", "").endswith("-check"):
            marks["grade_id"] = "weight_bytes-check"
            cell["source"] = "4.0"
    place.write(cells=cells)


@folder(3)
def edited_types(place):
    cells = place.cells()
    for cell in cells:
        cell["cell_type"] = "markdown" if cell["cell_type"] == "code" else "code"
    place.write(cells=cells)


@folder(3, "There were 2 cells")
def duplicated(place):
    cells = place.cells()
    place.write(cells=[copy.deepcopy(cell) for cell in cells for _ in range(
        2 if cell["metadata"].get("nbgrader") else 1)])


@folder(3, "missing or empty: it counts as not solved")
def deleted(place):
    place.write(cells=[cell for cell in place.cells()
                       if cell["metadata"].get("nbgrader", {}).get("grade_id") == "weight_bytes"])


@folder(3)
def claimed(place):
    cells = place.cells()
    for cell in cells:
        if cell["cell_type"] == "code":
            cell["outputs"] = [nbformat.v4.new_output(
                "execute_result", data={"text/plain": "100.0", "text/html": SCRIPT})]
        cell["metadata"].setdefault("nbgrader", {})["score"] = 100
    place.write(cells=cells)


@folder(3)
def scripts(place):
    cells = place.cells()
    hostile = (SCRIPT, f'<img src=x onerror="alert(1)">{SCRIPT}', "[x](javascript:alert(1))",
               "<svg onload=alert(1)>", "<iframe src='javascript:alert(1)'></iframe>")
    cells += [nbformat.v4.new_markdown_cell(text) for text in hostile]
    cells += [nbformat.v4.new_raw_cell(SCRIPT), nbformat.v4.new_code_cell(SCRIPT)]
    for cell in cells:
        if cell["metadata"].get("nbgrader", {}).get("solution") and cell["cell_type"] == "markdown":
            cell["source"] = SCRIPT
    place.write(cells=cells)


@folder(3, student="=1+cmd|' -C calc'!A0")
def formula(place):
    place.write()


# Beside the notebook ----------------------------------------------------------------------------------


@beside
def pipe_for_a_time(place):
    os.mkfifo(place.folder / "timestamp.txt")


for number, text in enumerate(("yesterday", "9" * 100, "2020-W01-1")):
    def wrong_time(place, text=text):
        place.write()
        (place.folder / "timestamp.txt").write_text(text, "latin-1")

    FOLDERS.append(Folder(f"wrong_time_{number}", wrong_time, 3))


@beside
def links(place):
    for name, target in {"secret": place.root / ".grading" / "secret", "up": "../..", "self": "self",
                         "book": place.root / "gradebook.db", "other": f"../../ada/{CHAPTER}",
                         "gone": "/nowhere", "passwd": "/etc/passwd"}.items():
        (place.folder / name).symlink_to(target)
    os.link(place.root / "gradebook.db", place.folder / "gradebook.db")
    os.link(place.root / ".grading" / "secret", place.folder / "key")


@beside
def devices(place):
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(place.folder)  # a socket's path is short
        try:
            one.bind("socket")
        finally:
            os.chdir(here)
    os.mkfifo(place.folder / "pipe")
    try:
        os.mknod(place.folder / "zero", 0o20666, os.makedev(1, 5))
        os.mknod(place.folder / "disk", 0o60666, os.makedev(254, 0))
    except PermissionError:
        pass


@beside
def huge_holes(place):
    for name in ("terabyte.bin", "model.safetensors", "other.ipynb"):
        (place.folder / name).touch()
        os.truncate(place.folder / name, 10**12)


@beside
def many_files(place):
    for number in range(10_000):
        # Names that are all alike once they are made plain.
        (place.folder / (chr(0x2600 + number // 100) + chr(0x2600 + number % 100))).touch()


@beside
def many_folders(place):
    for number in range(3_000):
        (place.folder / f"{number}" / "inner").mkdir(parents=True)


@beside
def deep(place):
    at = place.folder
    for _ in range(200):
        at = at / "deep"
    at.mkdir(parents=True)
    (at / "file").touch()


@beside
def odd_names(place):
    folder = os.fsencode(place.folder)
    for name in (b"new\nline", "bidi\u202egpj.exe".encode(), b"\xff\xfe", b"x" * 255, b"...", b"..\\..\\x",
                 b"-rf", b"\x1b[31m", b"$(touch x)", SCRIPT.replace("/", "_").encode(), b"~", b" ",
                 b"con.txt", b"a\\b"):
        open(folder + b"/" + name, "w").close()
    os.mkdir(folder + b"/\xff")


@beside
def bomb(place):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10**8))
    with zipfile.ZipFile(place.folder / "bomb.zip", "w") as archive:
        for number in range(100):
            archive.writestr(f"{number}.zip", inner.getvalue())
    (place.folder / "link").symlink_to("bomb.zip")


@beside
def second_notebook(place):
    (place.folder / "other.ipynb").write_text("[" * 10**6)
    (place.folder / "link").symlink_to("other.ipynb")
