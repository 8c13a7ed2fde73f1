"""A folder that a stranger filled is put in order, and read; nothing in it hangs or leads away."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from autograder.grading import submission
from autograder.grading.repair import repair
from autograder.grading.submission import (
    SubmissionError,
    notes_of,
    quarantine,
    read_notebook,
    read_submission,
    timestamp,
)
from tests.notebooks import small

NAME = "09_small"
BOOK = f"{NAME}.ipynb"
GOOD = nbformat.writes(new_notebook(cells=[new_code_cell("x = 1", id="one")]))


@pytest.fixture(autouse=True)
def never_hangs():
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "submitted" / "ada" / NAME
    made.mkdir(parents=True)
    (made / BOOK).write_text(GOOD)
    return made


@pytest.fixture
def aside(tmp_path) -> Path:
    return tmp_path / "aside"


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Folders ------------------------------------------------------------------------------------------


def test_a_plain_submission_is_left_as_it_is(folder, aside):
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "timestamp.txt").write_text("2026-03-04 05:06:07.123456 UTC")
    before = everything(folder)
    assert quarantine(folder, aside, NAME) == []
    assert everything(folder) == before and not aside.exists()
    assert (folder / BOOK).read_text() == GOOD
    found = read_submission(folder, NAME)
    assert found.notebook.cells[0].source == "x = 1"
    assert sorted(found.files) == ["adapter/adapter_config.json", "timestamp.txt"]


def pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def link_to_file(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "secret")


def link_to_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def link_to_nothing(path: Path, outside: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def link_to_itself(path: Path, outside: Path) -> None:
    path.symlink_to(path)


def hard_link(path: Path, outside: Path) -> None:
    os.link(outside / "secret", path)


def device(path: Path, outside: Path) -> None:
    if os.getuid():
        pytest.skip("needs root")
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("no devices here")


def listening(path: Path, outside: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket holds about a hundred characters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def sparse(path: Path, outside: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


STRANGE = [pipe, link_to_file, link_to_folder, link_to_nothing, link_to_itself, hard_link, device,
           listening, sparse]


@pytest.mark.parametrize("make", STRANGE)
@pytest.mark.parametrize("name", [BOOK, "timestamp.txt", "data.csv", "adapter/model.bin",
                                  "other.ipynb"])
def test_what_is_no_plain_file_is_moved_and_never_opened(folder, aside, tmp_path, make, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("a secret")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    make(path, outside)
    # Read as it lies there first: an error for the student, or it is not there.
    if name == BOOK:
        with pytest.raises(SubmissionError):
            read_submission(folder, NAME)
    else:
        assert name not in read_submission(folder, NAME).files
    notes = quarantine(folder, aside, NAME)
    assert notes[0].startswith(f"{name} is ") and notes[0].endswith("was left out.")
    assert len(notes) == 1 + (name == BOOK)
    assert not os.path.lexists(path) or name == BOOK
    assert (outside / "secret").read_text() == "a secret"
    read = read_submission(folder, NAME)
    assert "a secret" not in str(read.notebook)
    assert bool(read.notebook.cells) == (name != BOOK)
    # A second look finds nothing new, and remembers.
    assert quarantine(folder, aside, NAME) == notes == notes_of(folder, aside)


def test_a_folder_that_is_a_link_is_replaced(folder, aside, tmp_path):
    other = folder.with_name("other")
    folder.rename(other)
    folder.symlink_to(other)
    notes = quarantine(folder, aside, NAME)
    assert notes[0] == "The folder handed in was a link, which is not followed."
    assert not folder.is_symlink() and (other / BOOK).read_text() == GOOD
    assert read_submission(folder, NAME).notebook.cells == []


def test_a_notebook_that_is_a_folder(folder, aside):
    (folder / BOOK).unlink()
    (folder / BOOK).mkdir()
    notes = quarantine(folder, aside, NAME)
    assert notes == ["The notebook can't be read: Is a directory. It counts as empty."]
    assert read_submission(folder, NAME).notebook.cells == []


@pytest.mark.parametrize("name", [
    b"line\nbreak.txt", b"\xff\xfe.txt", b"back\\slash.txt", b"\x1b[31mred.txt",
    "\u202egpj.exe".encode(),
])
def test_names_that_can_not_be_written(folder, aside, name):
    (folder / os.fsdecode(name)).write_text("x")
    os.mkdir(os.fsencode(folder) + b"/d" + name)
    notes = quarantine(folder, aside, NAME)
    assert len(notes) == 2 and all(note.isprintable() for note in notes)
    assert everything(folder) == [BOOK]
    json.dumps(notes, ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("name", ["..data", "...", "-rf", "a b.csv", "größe.csv", "$(id).txt",
                                  "<b>.txt", ".hidden"])
def test_odd_names_that_can_be_written_stay(folder, aside, name):
    (folder / name).write_text("x")
    assert quarantine(folder, aside, NAME) == []
    assert name in read_submission(folder, NAME).files


def test_many_files(folder, aside):
    for number in range(700):
        (folder / f"{number:03}.txt").touch()
    notes = quarantine(folder, aside, NAME)
    assert len(notes) == 11 and "is one too many: it was left out." in notes[0]
    assert notes[-1] == "191 more files were left out."
    assert len(read_submission(folder, NAME).files) == 499


def test_many_files_that_are_called_alike(folder, aside):
    for number in range(600):
        (folder / ("+" * (number % 150 + 1) + "-" * (number // 150) + ".txt")).touch()
    quarantine(folder, aside, NAME)
    assert len(read_submission(folder, NAME).files) == 499


def test_the_notebook_is_read_however_many_files_are_before_it(folder, aside):
    for number in range(700):
        (folder / f"0{number:03}.txt").touch()
    assert read_submission(folder, NAME).notebook.cells
    quarantine(folder, aside, NAME)
    assert read_submission(folder, NAME).notebook.cells


def test_deep_folders(folder, aside):
    place = folder
    for _ in range(200):
        place = place / "d"
    place.mkdir(parents=True)
    (place / "x").touch()
    notes = quarantine(folder, aside, NAME)
    assert notes == ["d/d/d/d/d/d/d/d is nested too deeply, or oddly named: it was left out."]
    assert len(everything(folder)) == 8


def test_more_bytes_than_a_submission_may_have(folder, aside):
    for number in range(3):
        with open(folder / f"{number}.bin", "wb") as file:
            file.truncate(60 * 2**20)
    assert quarantine(folder, aside, NAME) == ["2.bin is one too many: it was left out."]


def test_a_notebook_by_another_name_is_taken_where_it_is_the_only_one(folder, aside):
    (folder / BOOK).rename(folder / "my (1).ipynb")
    with pytest.raises(SubmissionError, match="There is no notebook 09_small.ipynb"):
        read_submission(folder, NAME)
    assert quarantine(folder, aside, NAME) == [
        "The notebook my (1).ipynb was taken for 09_small.ipynb."]
    assert read_submission(folder, NAME).notebook.cells


def test_of_two_notebooks_by_other_names_none_is_guessed(folder, aside):
    (folder / BOOK).rename(folder / "a.ipynb")
    (folder / "b.ipynb").write_text(GOOD)
    assert quarantine(folder, aside, NAME) == []
    assert everything(folder) == ["a.ipynb", "b.ipynb"]


def test_an_empty_folder_stays_empty(folder, aside):
    (folder / BOOK).unlink()
    assert quarantine(folder, aside, NAME) == []
    assert everything(folder) == []


def test_notes_are_kept_for_a_submission_and_reset_by_the_next(folder, aside):
    (folder / "link").symlink_to("/etc/passwd")
    notes = quarantine(folder, aside, NAME)
    assert notes == ["link is a link: it was left out."]
    assert quarantine(folder, aside, NAME) == notes
    (folder / "second").symlink_to("/etc/passwd")
    assert quarantine(folder, aside, NAME) == [*notes, "second is a link: it was left out."]
    (folder / BOOK).write_text(GOOD.replace("x = 1", "x = 2"))
    assert notes_of(folder, aside) == [] == quarantine(folder, aside, NAME)
    (folder / "link").write_text("a file this time")
    assert notes_of(folder, aside) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"notes": 3}', '{"submission": 1, "notes": 3}'])
def test_damaged_notes_are_forgotten(folder, aside, text):
    aside.mkdir()
    (aside / "notes.json").write_text(text)
    assert quarantine(folder, aside, NAME) == []


# Time stamps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "2026-03-04 05:06:07.123456 UTC", "2026-03-04 05:06:07 UTC", "2026-03-04 05:06:07.1 CET",
    "2026-03-04 05:06:07.123456 +0100", "2026-03-04T05:06:07+01:00", "2026-03-04 05:06:07\n",
])
def test_time_stamps_that_nbgrader_writes_and_reads(folder, aside, text):
    (folder / "timestamp.txt").write_text(text)
    assert timestamp(folder / "timestamp.txt").year == 2026
    assert quarantine(folder, aside, NAME) == []


@pytest.mark.parametrize("content", [
    b"", b"soon", b"\xff\xfe", b"9" * 100, b"9" * 10_000, b"0001-01-01 00:00:00 +1200",
    b"9999-12-31 23:59:59 -1200", b"2026-13-45", b"x " * 3, b"1 2 " + b"9" * 50, b"\0",
])  # fmt: skip
def test_time_stamps_that_are_none(folder, aside, content):
    (folder / "timestamp.txt").write_bytes(content)
    assert timestamp(folder / "timestamp.txt") is None
    assert quarantine(folder, aside, NAME) == ["timestamp.txt is no time: it was left out."]


# Notebooks ----------------------------------------------------------------------------------------


def record(**changes):
    made = json.loads(GOOD) | changes
    return json.dumps({key: value for key, value in made.items() if value is not ...})


UNREADABLE = {
    "empty": ("", "no JSON"),
    "truncated": (GOOD[: len(GOOD) // 2], "no JSON"),
    "not JSON": ("x = 1", "no JSON"),
    "deep": ("[" * 100_000, "no JSON"),
    "deep and closed": ("[" * 50_000 + "]" * 50_000, "no JSON"),
    "a huge number": ('{"nbformat": ' + "4" * 10_000 + "}", "no JSON"),
    "a list": ("[]", "JSON, but no notebook"),
    "a number": ("3", "JSON, but no notebook"),
    "no format": (record(nbformat=...), "JSON, but no notebook"),
    "a format in words": (record(nbformat="4"), "JSON, but no notebook"),
    "true": (record(nbformat=True), "JSON, but no notebook"),
    "a format of lists": (record(nbformat=[4]), "JSON, but no notebook"),
    "version 2": (record(nbformat=2), "of format 2: save it as format 4"),
    "version 5": (record(nbformat=5), "of format 5: save it as format 4"),
    "version -1": (record(nbformat=-1), "of format -1"),
    "no cells": (record(cells=...), "has no cells"),
    "cells are no list": (record(cells={"0": {}}), "has no cells"),
    "cells are a text": (record(cells="x = 1"), "has no cells"),
    "far too many values": ("[" + "{}," * 3_100_000 + "{}]", "far too much"),
    "version 3 of nothing": (json.dumps({"nbformat": 3}), "old format"),
    "version 3 of nonsense": (json.dumps({"nbformat": 3, "nbformat_minor": 0,
                                          "worksheets": [{"cells": 3}]}), "old format"),
}


@pytest.mark.parametrize("text, said", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_an_unreadable_notebook_is_said_to_be_so(folder, aside, text, said):
    (folder / BOOK).write_text(text)
    with pytest.raises(SubmissionError, match=said) as caught:
        read_submission(folder, NAME)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 120
    assert quarantine(folder, aside, NAME) == [f"{caught.value} It counts as empty."]
    assert read_submission(folder, NAME).notebook.cells == []
    assert [path.name for path in aside.iterdir()] != []


@pytest.mark.parametrize("content", [GOOD.encode("utf-16"), b"\xff" + GOOD.encode(), b"\0" * 1000])
def test_a_notebook_in_another_encoding(folder, aside, content):
    (folder / BOOK).write_bytes(content)
    with pytest.raises(SubmissionError):
        read_submission(folder, NAME)
    assert len(quarantine(folder, aside, NAME)) == 1


def test_a_notebook_that_is_too_large(folder, aside):
    with open(folder / BOOK, "ab") as file:
        file.truncate(21 * 2**20)
    assert quarantine(folder, aside, NAME) == [
        f"{BOOK} is larger than 21 MB: it was left out.",
        f"There is no notebook {BOOK} in what was handed in."]


MENDED = {
    "a byte order mark": "\ufeff" + GOOD,
    "cells that are none": record(cells=[3, None, "x", [], *json.loads(GOOD)["cells"]]),
    "a cell without anything": record(cells=[{}, *json.loads(GOOD)["cells"]]),
    "an unknown kind": record(cells=[{"cell_type": "heading", "source": "h"},
                                     *json.loads(GOOD)["cells"]]),
    "half a character": GOOD.replace("x = 1", "x = 1  # \\ud800"),
    "metadata of lists": record(metadata=[1]),
    "a minor version of the future": record(nbformat_minor="five"),
    "the same id twice": record(cells=2 * json.loads(GOOD)["cells"]),
    "a grade_id that is none": GOOD.replace('"metadata": {}', '"metadata": {"nbgrader": [3]}', 1),
    "outputs of nonsense": GOOD.replace('"outputs": []', '"outputs": [{"output_type": 3}]'),
    "version 3": json.dumps({
        "nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}, "worksheets": [{"cells": [
            {"cell_type": "code", "input": ["x = 1"], "language": "python", "outputs": [],
             "collapsed": False, "metadata": {}}], "metadata": {}}]}),
}


@pytest.mark.parametrize("text", MENDED.values(), ids=MENDED.keys())
def test_a_notebook_that_only_we_can_read_is_written_anew_for_others(folder, aside, text):
    (folder / BOOK).write_text(text, "utf-8")
    before = read_submission(folder, NAME)
    assert [cell.source for cell in before.notebook.cells if cell.source.startswith("x = 1")]
    nbformat.validate(before.notebook)
    assert quarantine(folder, aside, NAME) == []
    after = nbformat.reads((folder / BOOK).read_text("utf-8"), as_version=4)
    nbformat.validate(after)
    assert [cell.source for cell in after.cells] == [
        cell.source for cell in before.notebook.cells]
    source, _ = small()
    assert repair(after, source) == repair(before.notebook, source)
    # Once is enough.
    text = (folder / BOOK).read_text("utf-8")
    assert quarantine(folder, aside, NAME) == []
    assert (folder / BOOK).read_text("utf-8") == text


def test_a_notebook_with_figures_and_smileys_is_left_as_it_is(folder, aside):
    cell = new_code_cell("print('\U0001f600')", outputs=[
        new_output("display_data", {"image/png": "iVBORw0KGgo="}),
        new_output("stream", text="\U0001f600")])
    notebook = new_notebook(cells=[cell])
    for text in (nbformat.writes(notebook), json.dumps(notebook)):
        (folder / BOOK).write_text(text, "utf-8")
        assert quarantine(folder, aside, NAME) == []
        assert (folder / BOOK).read_text("utf-8") == text
    assert "outputs" not in str(read_notebook(folder / BOOK).cells[0].outputs)


def test_values_that_are_no_numbers_do_not_matter(folder):
    (folder / BOOK).write_text(GOOD.replace('"metadata": {}', '"metadata": {"a": [NaN, 1e999]}'))
    assert read_submission(folder, NAME).notebook.cells[0].source == "x = 1"


def test_endless_notebooks_are_read_up_to_a_limit(folder, aside):
    (folder / BOOK).write_text(record(cells=[{"cell_type": "code", "source": "x"}] * 300_000))
    source, _ = small()
    found = read_submission(folder, NAME)
    assert len(found.notebook.cells) == submission.MAX_CELLS + 1
    assert "Only the first" in repair(found.notebook, source).notes[0]
    assert quarantine(folder, aside, NAME) == []
    assert (folder / BOOK).stat().st_size < 1_000_000


def test_reading_and_repair_agree_with_the_api(chapter, tmp_path):
    """A notebook handed to the engine as it is, and one read from a file, are the same."""
    for notebook in (chapter.release, chapter.source):
        path = tmp_path / BOOK
        path.write_text(nbformat.writes(notebook), "utf-8")
        assert repair(read_notebook(path), chapter.source) == repair(notebook, chapter.source)
