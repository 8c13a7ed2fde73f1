"""work/: chapters arrive once, are never written over, and are packed as nbgrader expects."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from safetensors.numpy import save_file
from typer.testing import CliRunner

from loralab import paths, workspace
from loralab.cli import app
from loralab.errors import CourseError


def graded(source, grade_id, *, grade=False, solution=False, points=None, make=new_code_cell):
    mark = {"grade": grade, "grade_id": grade_id, "locked": grade and not solution,
            "schema_version": 3, "solution": solution, "task": False}
    if points:
        mark["points"] = points
    return make(source, metadata={"nbgrader": mark}, id=grade_id)


def chapter():
    return new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)"}},
        cells=[
            new_markdown_cell("# A chapter", id="top"),
            graded('def f():\n    raise NotImplementedError("Exercise 1.1: write f")',
                   "f", solution=True),
            graded("assert f() == 1", "f-check", grade=True, points=3),
            graded("YOUR ANSWER HERE", "explain", grade=True, solution=True, points=2,
                   make=new_markdown_cell),
        ],
    )


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course with three chapters and no work yet, in a folder with a space in its name."""
    project = tmp_path / "my course"
    for name in ("00_start_here", "01_memory_math", "05_qlora_training"):
        folder = project / "notebooks" / name
        folder.mkdir(parents=True)
        nbformat.write(chapter(), folder / f"{name}.ipynb")
    monkeypatch.setattr(paths, "PROJECT", project)
    monkeypatch.setattr(paths, "NOTEBOOKS", project / "notebooks")
    monkeypatch.setattr(paths, "WORK", project / "work")
    return project


@pytest.fixture
def work(course):
    workspace.copy_missing()
    return course / "work"


def edit(path, change):
    notebook = nbformat.read(path, 4)
    change({cell.id: cell for cell in notebook.cells}, notebook)
    nbformat.write(notebook, path)


OK = [new_output("stream", name="stdout", text="OK: exercise 1.1 (f)")]
NOT_YET = [new_output("error", ename="WrongAnswer", evalue="", traceback=["Not yet: exercise 1.1"])]


def solve(cells, notebook):
    cells["f"].source = "def f():\n    return 1"
    cells["f-check"].outputs = OK
    cells["explain"].source = "Because."


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


# Copying ------------------------------------------------------------------------------------------


def test_missing_chapters_are_copied_and_nothing_else_is_touched(course):
    assert workspace.copy_missing() == ["00_start_here", "01_memory_math", "05_qlora_training"]
    mine = course / "work" / "01_memory_math" / "01_memory_math.ipynb"
    mine.write_text("my work")
    (course / "notebooks" / "01_memory_math" / "01_memory_math.ipynb").write_text("a new edition")
    assert workspace.copy_missing() == []
    assert mine.read_text() == "my work"


def test_a_missing_notebook_comes_back_beside_the_work_in_its_folder(work):
    folder = work / "05_qlora_training"
    (folder / "adapter").mkdir()
    (folder / "05_qlora_training.ipynb").rename(folder / "mine.ipynb")
    assert workspace.copy_missing() == ["05_qlora_training"]
    assert {path.name for path in folder.iterdir()} == {
        "adapter", "mine.ipynb", "05_qlora_training.ipynb"}


def test_a_full_disk_leaves_nothing_half_written(course, monkeypatch):
    monkeypatch.setattr(shutil, "copyfile", no_space)
    with pytest.raises(CourseError, match="disk is full"):
        workspace.copy_missing()
    assert list((course / "work").iterdir()) == []


def test_a_real_full_disk(course, tmp_path):
    """/dev/full is Linux's device on which every write finds no space."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    name = "01_memory_math"
    source = course / "notebooks" / name / f"{name}.ipynb"

    def copy(src, dst, *, follow_symlinks=True):
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(source.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "copyfile", copy)
        with pytest.raises(CourseError) as caught:
            workspace.copy_missing()
    assert "Free some space" in caught.value.remedy
    assert list((course / "work").iterdir()) == []


def test_a_work_folder_that_cannot_be_written(course):
    (course / "work").write_text("a file in its place")
    with pytest.raises(CourseError, match="could not be written"):
        workspace.copy_missing()


# Starting over ------------------------------------------------------------------------------------


def test_reset_keeps_the_whole_old_folder(work):
    folder = work / "01_memory_math"
    (folder / "01_memory_math.ipynb").write_text("my work")
    (folder / "notes.txt").write_text("my notes")
    fresh = workspace.reset("1")
    assert fresh == folder / "01_memory_math.ipynb"
    assert "Exercise 1.1" in fresh.read_text()
    (old,) = workspace.kept("01")
    assert (old / "01_memory_math.ipynb").read_text() == "my work"
    assert (old / "notes.txt").read_text() == "my notes"
    assert not (folder / "notes.txt").exists()


def test_two_resets_in_one_second_keep_both(work):
    for text in ("first", "second"):
        (work / "01_memory_math" / "01_memory_math.ipynb").write_text(text)
        workspace.reset("01")
    texts = {(old / "01_memory_math.ipynb").read_text() for old in workspace.kept("01")}
    assert texts == {"first", "second"}


def test_a_full_disk_at_reset_leaves_the_work_where_it_is(work, monkeypatch):
    mine = work / "01_memory_math" / "01_memory_math.ipynb"
    mine.write_text("my work")
    monkeypatch.setattr(shutil, "copyfile", no_space)
    with pytest.raises(CourseError, match="Your work is untouched"):
        workspace.reset("01")
    assert mine.read_text() == "my work"
    assert workspace.kept("01") == []


def test_a_reset_that_fails_half_way_puts_the_work_back(work, monkeypatch):
    mine = work / "01_memory_math" / "01_memory_math.ipynb"
    mine.write_text("my work")
    rename = os.rename

    def second_fails(source, target):
        if ".copying-" in str(source):
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(CourseError):
        workspace.reset("01")
    assert mine.read_text() == "my work"
    assert workspace.kept("01") == []


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["1", "01", "01_memory_math", "memory_math",
                                   "01_memory_math.ipynb", "work/01_memory_math/"])
def test_a_chapter_goes_by_many_names(course, given):
    assert workspace.find(given) == "01_memory_math"


@pytest.mark.parametrize(("given", "meant"), [
    ("memory_maths", "01_memory_math"), ("01_memory", "01_memory_math"),
    ("qlora", "05_qlora_training"), ("6", "05_qlora_training"), ("2", "01_memory_math"),
])
def test_an_unknown_chapter_gets_the_nearest_ones(course, given, meant):
    with pytest.raises(CourseError) as caught:
        workspace.find(given)
    assert caught.value.remedy.startswith(f"Did you mean {meant}")


def test_a_name_like_none_gets_the_list(course):
    with pytest.raises(CourseError) as caught:
        workspace.find("zzz")
    assert caught.value.remedy == (
        "The chapters are: 00_start_here, 01_memory_math, 05_qlora_training.")


# Handing in ---------------------------------------------------------------------------------------


def test_the_archive_is_what_nbgrader_collects(work, tmp_path):
    path = work / "01_memory_math" / "01_memory_math.ipynb"
    edit(path, solve)
    (path.parent / "notes.txt").write_text("not handed in")
    archive = workspace.submit("01")
    assert archive == work / "submissions" / "01_memory_math.zip"
    student = tmp_path / "submitted" / "ada"
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(student)
        assert packed.namelist() == ["01_memory_math/01_memory_math.ipynb"]
    assert (student / "01_memory_math" / path.name).read_bytes() == path.read_bytes()
    assert workspace.look_over("01").complete


def test_what_is_open_is_named_and_packed_all_the_same(work):
    found = workspace.look_over("05")
    assert found.exercises == {"f": workspace.NOT_WRITTEN, "explain": workspace.NOT_ANSWERED}
    assert found.missing_files == ["adapter/adapter_config.json",
                                   "adapter/adapter_model.safetensors"]
    assert not found.complete
    with zipfile.ZipFile(workspace.submit("05")) as packed:
        assert packed.namelist() == ["05_qlora_training/05_qlora_training.ipynb"]


def test_the_adapter_goes_with_chapter_05(work):
    folder = work / "05_qlora_training"
    edit(folder / "05_qlora_training.ipynb", solve)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    save_file({"a": np.zeros(2, "float32")}, folder / "adapter" / "adapter_model.safetensors")
    (folder / "adapter" / "optimizer.pt").write_text("not handed in")
    assert workspace.look_over("05").complete
    with zipfile.ZipFile(workspace.submit("05")) as packed:
        assert sorted(packed.namelist()) == [
            "05_qlora_training/05_qlora_training.ipynb",
            "05_qlora_training/adapter/adapter_config.json",
            "05_qlora_training/adapter/adapter_model.safetensors",
        ]


@pytest.mark.parametrize(("config", "tensors", "says"), [
    ("{", None, "not readable JSON"), ("{}", b"", "damaged"), ("{}", b"\x10" * 40, "damaged"),
])
def test_a_damaged_adapter_is_noticed(work, config, tensors, says):
    folder = work / "05_qlora_training" / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(config)
    if tensors is None:
        save_file({"a": np.zeros(2, "float32")}, folder / "adapter_model.safetensors")
    else:
        (folder / "adapter_model.safetensors").write_bytes(tensors)
    assert any(says in wrong for wrong, _ in workspace.look_over("05").notes)


def test_a_stub_that_was_only_moved_around_is_still_a_stub(work):
    path = work / "01_memory_math" / "01_memory_math.ipynb"
    edit(path, lambda cells, _: cells["f"].update(source="# later\n" + cells["f"].source))
    assert workspace.look_over("01").exercises["f"] == workspace.NOT_WRITTEN


@pytest.mark.parametrize(("outputs", "counts", "state"), [
    (OK, (3, 4), workspace.PASSED), (OK, (None, None), workspace.PASSED),
    (NOT_YET, (3, 4), workspace.FAILED), (OK + NOT_YET, (3, 4), workspace.FAILED),
    ([], (3, None), workspace.NOT_RUN), ([], (None, None), workspace.NOT_RUN),
    # The answer's cell was run once more after its check.
    (OK, (5, 4), workspace.NOT_RUN), (NOT_YET, (5, 4), workspace.NOT_RUN),
])
def test_what_the_check_last_said_is_told(work, outputs, counts, state):
    path = work / "01_memory_math" / "01_memory_math.ipynb"

    def change(cells, notebook):
        solve(cells, notebook)
        cells["f-check"].outputs = outputs
        cells["f"].execution_count, cells["f-check"].execution_count = counts

    edit(path, change)
    found = workspace.look_over("01")
    assert found.exercises == {"f": state, "explain": workspace.WRITTEN}
    assert found.complete == (state == workspace.PASSED)


def test_a_stub_whose_check_failed_is_not_written(work):
    path = work / "01_memory_math" / "01_memory_math.ipynb"
    edit(path, lambda cells, _: cells["f-check"].update(outputs=NOT_YET))
    assert workspace.look_over("01").exercises["f"] == workspace.NOT_WRITTEN


def test_a_deleted_cell_is_noted_and_does_not_stop_the_packing(work):
    path = work / "01_memory_math" / "01_memory_math.ipynb"

    def delete(cells, notebook):
        notebook.cells = [cell for cell in notebook.cells if cell.id not in ("f", "f-check")]

    edit(path, delete)
    found = workspace.look_over("01")
    assert found.exercises["f"] == workspace.DELETED
    assert [wrong for wrong, _ in found.notes] == [
        "the cell f is missing", "the cell f-check is missing"]
    assert workspace.submit("01").exists()


def test_changed_flags_are_noted(work):
    path = work / "01_memory_math" / "01_memory_math.ipynb"
    edit(path, lambda cells, _: cells["f-check"].metadata.nbgrader.update(points=99))
    assert workspace.look_over("01").notes[0][0] == "the kind of the cell f-check was changed"


def test_another_kernel_is_noted(work):
    path = work / "01_memory_math" / "01_memory_math.ipynb"
    edit(path, lambda _, notebook: notebook.metadata.kernelspec.update(name="conda-base"))
    assert "conda-base" in workspace.look_over("01").notes[0][0]


def test_a_graded_cell_twice_is_refused(work):
    path = work / "01_memory_math" / "01_memory_math.ipynb"

    def copy_cell(cells, notebook):
        twin = cells["f-check"].copy()
        twin["id"] = "twin"
        notebook.cells.append(twin)

    edit(path, copy_cell)
    with pytest.raises(CourseError, match="more than once: f-check"):
        workspace.submit("01")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"cells": 3}', b"\xff\xfe"])
def test_a_damaged_notebook_is_refused_and_kept(work, content):
    path = work / "01_memory_math" / "01_memory_math.ipynb"
    path.write_bytes(content)
    with pytest.raises(CourseError, match="damaged"):
        workspace.submit("01")
    assert path.read_bytes() == content
    assert not (work / "submissions").exists()


def test_another_notebook_is_refused(work):
    nbformat.write(new_notebook(), work / "01_memory_math" / "01_memory_math.ipynb")
    with pytest.raises(CourseError, match="is it another notebook"):
        workspace.submit("01")


def test_no_notebook_is_refused(course):
    with pytest.raises(CourseError, match="no notebook"):
        workspace.submit("01")


def test_a_full_disk_at_submit_keeps_the_archive_before(work, monkeypatch):
    archive = workspace.submit("01")
    before = archive.read_bytes()
    monkeypatch.setattr(zipfile.ZipFile, "writestr", no_space)
    with pytest.raises(CourseError, match="disk is full"):
        workspace.submit("01")
    assert archive.read_bytes() == before
    assert list(archive.parent.iterdir()) == [archive]


# The command --------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_submit_says_what_is_in_it_and_what_is_open(work):
    done = run("submit", "05")
    assert done.exit_code == 0
    assert "f: not written yet" in done.output
    assert "adapter/adapter_config.json: missing: exercise 5.6" in done.output
    assert "work/submissions/05_qlora_training.zip" in done.output
    assert "Submit again" in done.output
    path = work / "01_memory_math" / "01_memory_math.ipynb"
    edit(path, solve)
    done = run("submit", "01").output
    assert "✓ f: its check passed" in done and "Everything is there" in done
    assert "checks the answers again, on other inputs" in done
    edit(path, lambda cells, _: cells["f-check"].update(outputs=NOT_YET))
    done = run("submit", "01").output
    assert "○ f: written, but its check failed when it last ran" in done
    assert "Everything is there" not in done


def test_reset_says_where_the_old_one_is(work):
    done = run("reset", "01")
    assert done.exit_code == 0
    (old,) = workspace.kept("01")
    assert f"work/{old.name}/" in done.output


def test_what_goes_wrong_is_two_lines_and_exit_code_1(work):
    done = run("submit", "memory")
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        "There is no chapter 'memory'.",
        "→ Did you mean 01_memory_math? The chapters are: 00_start_here, 01_memory_math, "
        "05_qlora_training.",
    ]
