"""Reading what was handed in: a folder that a stranger filled.

Nothing is opened before it is known to be a plain file, nothing is followed, nothing is read past
its limit, and whatever is wrong becomes a sentence for the student.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_raw_cell

from autograder.grading.repair import MAX_CELLS, pictures_of

MAX_NOTEBOOK = 20 * 2**20  # bytes; outputs with many figures take a few million
MAX_VALUES = 3_000_000  # brackets and commas: a text of these alone takes fifty times its size
MAX_FILE = 64 * 2**20
MAX_TOTAL = 128 * 2**20
MAX_FILES = 500  # folders count too
MAX_DEPTH = 8
MAX_NOTES = 10  # on files, for one submission


_NUMBERS = itertools.count(1)  # of what is moved aside


class SubmissionError(Exception):
    """A submission that can't be read. The message is for the student."""


@dataclass(frozen=True)
class Submission:
    """A notebook (v4, valid, without outputs) and what was handed in with it.

    files: by relative path; notebooks are not among them.
    """

    notebook: NotebookNode
    files: Mapping[str, Path]


def read_submission(folder: Path, name: str) -> Submission:
    """The submission in `folder`, whose notebook should be `name`.ipynb.

    Raises SubmissionError. What is no plain file is ignored.
    """
    found = {relative: path for relative, path, why in _entries(folder) if not why}
    if (path := found.get(f"{name}.ipynb")) is None:
        raise SubmissionError(f"There is no notebook {name}.ipynb in what was handed in.")
    files = {relative: path for relative, path in found.items() if not relative.endswith(".ipynb")}
    return Submission(read_notebook(path), files)


def read_notebook(path: Path) -> NotebookNode:
    """The notebook in a plain file as a valid v4 one, without outputs; see `_cell`.

    Raises SubmissionError.
    """
    return _parsed(_text(path))


def _text(path: Path) -> str:
    try:
        return read_plain(path, MAX_NOTEBOOK).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SubmissionError("The notebook is not a text in UTF-8.") from None
    except OSError as error:
        raise SubmissionError(f"The notebook can't be read: {error.strerror or error}.") from None


def _parsed(text: str) -> NotebookNode:
    if sum(map(text.count, "[{,")) > MAX_VALUES:
        raise SubmissionError("The notebook holds far too much: clear its outputs.")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise SubmissionError(
            "The notebook is no JSON: its file is damaged or was cut off. Hand it in again."
        ) from None
    major = record.get("nbformat") if isinstance(record, dict) else None
    if type(major) is not int:
        raise SubmissionError("The file is JSON, but no notebook.")
    try:
        if major == 3:
            record = nbformat.convert(nbformat.from_dict(record), 4)
    except Exception:  # whatever an upgrade of nonsense raises
        raise SubmissionError("The notebook is of an old format and can't be upgraded.") from None
    if major not in (3, 4):
        raise SubmissionError(f"This is a notebook of format {major}: save it as format 4.")
    cells = record.get("cells")
    if not isinstance(cells, list):
        raise SubmissionError("The notebook has no cells.")
    made = nbformat.v4.new_notebook()
    used: set[str] = set()
    made.cells = [_cell(cell, number, used) for number, cell in enumerate(cells[:MAX_CELLS + 1], 1)
                  if isinstance(cell, dict)]
    return made


def _cell(cell: dict, number: int, used: set[str]) -> NotebookNode:
    """A valid cell with what `repair` looks at: kind, text, id, grade_id, pictures."""
    kind = cell.get("cell_type")
    source = cell.get("source", "")
    text = "".join(map(str, source)) if isinstance(source, list) else str(source)
    name = cell.get("id")
    if not (isinstance(name, str) and re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name)) or name in used:
        name = f"submitted-{number}"
    used.add(name)
    make = {"code": new_code_cell, "raw": new_raw_cell}.get(str(kind), new_markdown_cell)
    # A lone surrogate could not be written to any file.
    made = make(text.encode("utf-8", "replace").decode("utf-8"), id=name)
    metadata = cell.get("metadata")
    marks = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    claimed = marks.get("grade_id") if isinstance(marks, dict) else None
    if isinstance(claimed, str) and claimed.isprintable() and len(claimed) < 200:
        made.metadata["nbgrader"] = NotebookNode(grade_id=claimed)
    if pictures := pictures_of(cell.get("attachments")):
        made.attachments = nbformat.from_dict(pictures)
    return made


def read_plain(path: Path, limit: int) -> bytes:
    """A regular file's bytes. OSError for anything else, and for more than `limit` bytes."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no plain file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"it is larger than {limit / 1e6:.0f} MB")
    return content


# Putting a folder in order before others open it ------------------------------------------------


def quarantine(folder: Path, aside: Path, name: str) -> list[str]:
    """Leave in `folder` only what can be opened without harm; the rest is moved to `aside`.

    Links, pipes, devices, files too large or too many, a time stamp that is none. An unreadable
    `name`.ipynb makes way for an empty one, so that its student gets 0 and a word instead of an
    error; one that others could not open (a byte order mark, cells that are none) for one that
    they can; where it is missing, the only notebook there takes its name. Returns all that was set
    right in this submission, this time or before, for the student. Raises OSError where the folder
    itself can't be read.
    """
    folder, moved = Path(folder), []
    if folder.is_symlink() or not folder.is_dir():
        _move(folder, aside, "folder")
        folder.mkdir()
        moved.append("The folder handed in was a link, which is not followed.")
    for relative, path, why in list(_entries(folder)):
        if not why and relative == "timestamp.txt" and timestamp(path) is None:
            why = "is no time"
        if why and os.path.lexists(path):
            _move(path, aside, relative)
            moved.append(f"{_shown(relative)} {why}: it was left out.")
    if len(moved) > MAX_NOTES:
        moved[MAX_NOTES:] = [f"{len(moved) - MAX_NOTES:,} more files were left out."]
    path = folder / f"{name}.ipynb"
    others = sorted(folder.glob("*.ipynb"))
    if not os.path.lexists(path) and len(others) == 1 and others[0].is_file():
        os.rename(others[0], path)
        moved.append(f"The notebook {_shown(others[0].name)} was taken for {name}.ipynb.")
    if os.path.lexists(path):
        moved += _make_readable(path, aside)
    elif moved:
        _write(nbformat.v4.new_notebook(), path)
        moved.append(f"There is no notebook {name}.ipynb in what was handed in.")
    return _remembered(folder, aside, moved)


def _make_readable(path: Path, aside: Path) -> list[str]:
    """Replace a notebook that nbgrader could not open; what its student is told."""
    try:
        text = _text(path)
        notebook = _parsed(text)
    except SubmissionError as error:
        _move(path, aside, path.name)
        _write(nbformat.v4.new_notebook(), path)
        return [f"{error} It counts as empty."]
    if not _opens_anywhere(path, text):
        _move(path, aside, path.name)
        _write(notebook, path)
    return []


def _opens_anywhere(path: Path, text: str) -> bool:
    """Whether stock nbformat opens a notebook, and soon: valid, and not endless."""
    record = json.loads(text)
    try:
        if "\\ud" in text.lower():  # half a pair can't be written again
            json.dumps(record, ensure_ascii=False).encode("utf-8")
        return (not path.read_bytes().startswith(codecs.BOM_UTF8)
                and record["nbformat"] == 4 and len(record["cells"]) <= MAX_CELLS
                and nbformat.validator.isvalid(record))
    except Exception:  # whatever a validator makes of nonsense
        return False


def _write(notebook: NotebookNode, path: Path) -> None:
    path.write_text(nbformat.writes(notebook), "utf-8")


def notes_of(folder: Path, aside: Path) -> list[str]:
    """What `quarantine` set right in the submission that lies in `folder` now."""
    try:
        kept = json.loads((aside / "notes.json").read_text("utf-8"))
        return list(kept["notes"]) if kept["submission"] == _digest(folder) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _remembered(folder: Path, aside: Path, notes: list[str]) -> list[str]:
    """`notes`, after those kept for the same submission. A new one starts afresh."""
    together = list(dict.fromkeys([*notes_of(folder, aside), *notes]))
    if notes:
        aside.mkdir(mode=0o700, parents=True, exist_ok=True)
        (aside / "notes.json").write_text(
            json.dumps({"submission": _digest(folder), "notes": together}), "utf-8")
    return together


def _digest(folder: Path) -> str:
    """Of the notebooks, and the names and sizes of what else was handed in."""
    digest = hashlib.sha256()
    for relative, path, why in _entries(folder):
        if why:
            continue
        digest.update(os.fsencode(relative) + f"\n{path.stat().st_size}\n".encode())
        if relative.endswith(".ipynb"):
            try:
                digest.update(read_plain(path, MAX_NOTEBOOK))
            except OSError:
                pass
    return digest.hexdigest()


def _move(path: Path, aside: Path, relative: str) -> None:
    """Rename, never copy: a pipe or a link stays what it is and is not opened."""
    aside.mkdir(mode=0o700, parents=True, exist_ok=True)
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in relative)[-100:]
    # Ten thousand names may look alike once they are plain: no counting up from one for each.
    while os.path.lexists(target := aside / f"{next(_NUMBERS)}-{plain}"):
        pass
    os.rename(path, target)


def timestamp(path: Path) -> datetime | None:
    """The time (UTC, without zone) in a plain file, as nbgrader reads it; None for none."""
    from nbgrader.utils import parse_utc

    try:
        return parse_utc(read_plain(path, 200).decode("ascii").strip())
    except (OSError, ValueError, OverflowError, TypeError, AttributeError):
        return None


def _entries(folder: Path) -> Iterator[tuple[str, Path, str]]:
    """(relative path, path, why it can't be taken or "") of everything in `folder` but folders."""
    todo = [(Path(folder), "", 1)]
    count = total = 0
    while todo:
        place, prefix, depth = todo.pop()
        try:
            with os.scandir(place) as entries:
                # Notebooks first: they are taken whatever else there is.
                inside = sorted(entries, key=lambda one: (not one.name.endswith(".ipynb"), one.name))
        except PermissionError:
            if not prefix:
                raise
            yield prefix.rstrip("/"), place, "can't be read"
            continue
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
