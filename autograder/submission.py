"""Reading what was handed in: a folder that a stranger filled.

Nothing is opened before it is known to be a plain file, nothing is followed, nothing is read past
its limit, and whatever is wrong becomes a sentence for the student.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import nbformat
from nbformat import NotebookNode

MAX_NOTEBOOK = 20 * 2**20  # bytes; outputs with many figures take a few million
MAX_FILE = 64 * 2**20
MAX_TOTAL = 128 * 2**20
MAX_FILES = 500  # folders count
MAX_DEPTH = 8
MAX_NOTES = 20


class SubmissionError(Exception):
    """A submission that can't be read. The message is for the student."""


@dataclass(frozen=True)
class Submission:
    """A notebook (v4, as valid as it has to be for `repair`) and what was handed in with it.

    files: by relative path; notebooks are not among them.
    """

    notebook: NotebookNode
    files: Mapping[str, Path]


def read_submission(folder: Path, name: str) -> Submission:
    """The submission in `folder`, whose notebook should be `name`.ipynb.

    Raises SubmissionError. What is no plain file is ignored.
    """
    found = {relative: path for relative, path, why in _entries(folder, name) if not why}
    if (path := found.get(f"{name}.ipynb")) is None:
        raise SubmissionError(f"There is no notebook {name}.ipynb in what was handed in.")
    files = {relative: path for relative, path in found.items() if not relative.endswith(".ipynb")}
    return Submission(read_notebook(path), files)


def read_notebook(path: Path) -> NotebookNode:
    """The notebook in a plain file, upgraded to v4; its cells are dicts, and no more is promised.

    Raises SubmissionError.
    """
    try:
        text = read_plain(path, MAX_NOTEBOOK).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SubmissionError("The notebook is not a text in UTF-8.") from None
    except OSError as error:
        raise SubmissionError(f"The notebook can't be read: {error.strerror or error}.") from None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise SubmissionError(
            "The notebook is no JSON: its file is damaged or was cut off. Hand it in again."
        ) from None
    if not isinstance(record, dict):
        raise SubmissionError("The file is JSON, but no notebook.")
    major = record.get("nbformat")
    if major not in (3, 4):
        said = f" {major}" if type(major) is int and abs(major) < 1000 else " unknown to us"
        raise SubmissionError(f"This is a notebook of format{said}: save it as format 4.")
    try:
        notebook = nbformat.from_dict(record)
        if major == 3:
            notebook = nbformat.convert(notebook, 4)
    except Exception:  # whatever an upgrade of nonsense raises
        raise SubmissionError("The notebook is of an old format and can't be upgraded.") from None
    cells = notebook.get("cells")
    if not isinstance(cells, list):
        raise SubmissionError("The notebook has no cells.")
    made = nbformat.v4.new_notebook()
    made.cells = [cell for cell in cells if isinstance(cell, dict)]
    return made


def _is_valid(path: Path) -> bool:
    """Whether nbgrader will be able to open a notebook that `read_notebook` can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nbformat.validate(nbformat.reads(path.read_text("utf-8-sig"), as_version=4))
    except Exception:  # whatever nonsense makes it raise
        return False
    return True


def _valid(notebook: NotebookNode) -> NotebookNode:
    """A notebook of the same cells: their kind, text, name and grade_id, and nothing else."""
    made = nbformat.v4.new_notebook()
    taken: set[str] = set()
    for cell in notebook.cells:
        metadata, source = cell.get("metadata"), cell.get("source", "")
        text = "".join(map(str, source)) if isinstance(source, list) else str(source)
        kind = cell.get("cell_type")
        new = {"code": nbformat.v4.new_code_cell, "raw": nbformat.v4.new_raw_cell}.get(
            kind if isinstance(kind, str) else "", nbformat.v4.new_markdown_cell)
        one = new(text.encode("utf-8", "replace").decode("utf-8"))
        name, marks = cell.get("id"), metadata.get("nbgrader") if isinstance(metadata, dict) else {}
        if isinstance(name, str) and re.fullmatch(r"[\w-]{1,64}", name, re.ASCII) and name not in taken:
            one.id = name
        taken.add(one.id)
        if isinstance(marks, dict) and isinstance(marks.get("grade_id"), str):
            one.metadata["nbgrader"] = {"grade_id": marks["grade_id"]}
        made.cells.append(one)
    return made


def read_plain(path: Path, limit: int) -> bytes:
    """A regular file's bytes. OSError for anything else, and for more than `limit` bytes."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError("it is no plain file")
        with open(handle, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(handle)
    if len(content) > limit:
        raise OSError(f"it is larger than {limit / 1e6:.0f} MB")
    return content


# Putting a folder in order before others open it ------------------------------------------------


def quarantine(folder: Path, aside: Path, name: str) -> list[str]:
    """Leave in `folder` only what can be opened without harm; the rest is moved to `aside`.

    Links, pipes, devices, files too large or too many, a time stamp that is none. An unreadable
    `name`.ipynb makes way for an empty one, so that its student gets 0 and a word instead of an
    error; where it is missing, the only notebook there takes its name. Returns all that was set right in this submission, this time or before,
    for the student. Raises OSError where the folder itself can't be read.
    """
    moved: list[str] = []
    numbers = itertools.count(1)
    for place in (folder.parent, folder):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            _move(place, aside, "folder", numbers)
            moved.append("The folder handed in was a link, which is not followed.")
    folder.mkdir(parents=True, exist_ok=True)
    for relative, path, why in list(_entries(folder, name)):
        if not why and relative == "timestamp.txt" and not _is_timestamp(path):
            why = "is no time"
        if why and os.path.lexists(path):
            _move(path, aside, relative, numbers)
            moved.append(f"{_shown(relative)} {why}: it was left out.")
    path = folder / f"{name}.ipynb"
    others = sorted(folder.glob("*.ipynb"))
    if not os.path.lexists(path) and len(others) == 1:
        os.rename(others[0], path)
        moved.append(f"The notebook {_shown(others[0].name)} was taken for {name}.ipynb.")
    if len(moved) > MAX_NOTES:
        moved = [*moved[:MAX_NOTES], f"And so were {len(moved) - MAX_NOTES} more."]
    try:
        if moved and not os.path.lexists(path):
            raise SubmissionError("So there is no notebook that can be graded.")
        if os.path.lexists(path):
            notebook = read_notebook(path)
            if not _is_valid(path):
                _move(path, aside, path.name, numbers)
                path.write_text(nbformat.writes(_valid(notebook)), "utf-8")
                moved.append("The notebook's file was damaged in places, and was set right.")
    except SubmissionError as error:
        if os.path.lexists(path):
            _move(path, aside, path.name, numbers)
        path.write_text(nbformat.writes(nbformat.v4.new_notebook()), "utf-8")
        moved.append(f"{error} It counts as empty.")
    return _remembered(folder, aside, moved)


def _remembered(folder: Path, aside: Path, notes: list[str]) -> list[str]:
    """`notes`, after those kept for the same notebook. A new one starts afresh."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.ipynb")):
        try:
            digest.update(read_plain(path, MAX_NOTEBOOK))
        except OSError:
            pass
    kept = aside / "notes.json"
    try:
        before = json.loads(kept.read_text("utf-8"))
        old = before["notes"] if before["notebook"] == digest.hexdigest() else []
    except (OSError, ValueError, KeyError, TypeError):
        old = []
    together = list(dict.fromkeys([*old, *notes]))
    if notes:
        aside.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"notebook": digest.hexdigest(), "notes": together}), "utf-8")
    return together


def _move(path: Path, aside: Path, relative: str, numbers: Iterator[int]) -> None:
    """Rename, never copy: a pipe or a link stays what it is and is not opened."""
    aside.mkdir(mode=0o700, parents=True, exist_ok=True)
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in relative)
    while os.path.lexists(target := aside / f"{next(numbers)}-{plain[-60:]}"):
        pass
    os.rename(path, target)


def _is_timestamp(path: Path) -> bool:
    try:
        text = read_plain(path, 200).decode("ascii").strip()
        datetime.fromisoformat(text.removesuffix("UTC").strip())
    except (OSError, ValueError):
        return False
    return True


def _entries(folder: Path, name: str) -> Iterator[tuple[str, Path, str]]:
    """(relative path, path, why it can't be taken or "") of everything in `folder` but folders.

    The notebook `name` is first: it is never one too many.
    """
    todo = [(Path(folder), "", 1)]
    count = total = 0
    while todo:
        place, prefix, depth = todo.pop()
        with os.scandir(place) as entries:
            inside = sorted(entries, key=lambda one: (one.name != f"{name}.ipynb", one.name))
        for entry in inside:
            relative, path = f"{prefix}{entry.name}", Path(entry.path)
            found = entry.stat(follow_symlinks=False)
            count += 1
            if stat.S_ISDIR(found.st_mode):
                if depth == MAX_DEPTH or not _utterable(entry.name):
                    yield relative, path, "is nested too deeply, or oddly named"
                elif count > MAX_FILES:
                    yield relative, path, "is one too many"
                else:
                    todo.append((path, f"{relative}/", depth + 1))
                continue
            why = _why_not(entry.name, found)
            total += 0 if why else found.st_size
            if not why and (count > MAX_FILES or total > MAX_TOTAL):
                why = "is one too many"
            yield relative, path, why


def _why_not(name: str, found: os.stat_result) -> str:
    if stat.S_ISLNK(found.st_mode):
        return "is a link"
    if not stat.S_ISREG(found.st_mode):
        return "is no plain file"
    if found.st_nlink > 1:
        return "is a link to a file elsewhere"
    limit = MAX_NOTEBOOK if name.endswith(".ipynb") else MAX_FILE
    if found.st_size > limit:
        return f"is larger than {limit / 1e6:.0f} MB"
    if not _utterable(name):
        return "has a name that can't be written"
    return ""


def _utterable(name: str) -> bool:
    """Whether a name can be printed and written anywhere. Bytes that are no UTF-8 can't."""
    return name.isprintable() and "\\" not in name


def _shown(text: str) -> str:
    """A stranger's file name, for one line of a message."""
    return (text if text.isprintable() else ascii(text))[:80]
