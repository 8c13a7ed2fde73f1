"""A submission is set right, whatever students, editors or strangers did to its cells."""

from __future__ import annotations

import copy
import json

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output, new_raw_cell

from autograder.grading import repair as module
from autograder.grading.names import names
from autograder.grading.repair import asked, released_text, repair
from tests.notebooks import cell_of, index_of, small, source_and_release

ANSWER = "def double(x):\n    return x + x"


def submission():
    """(source, the student copy with `double` solved)."""
    source, release = small()
    cell_of(release, "double").source = ANSWER
    return source, release


def repaired(submitted, source):
    """repair(), with what has to hold for everything that it gives."""
    before = copy.deepcopy(submitted), copy.deepcopy(source)
    found = repair(submitted, source)
    assert (submitted, source) == before, "an argument was changed"
    nbformat.validate(found.notebook)
    json.dumps(found.notebook).encode("utf-8")
    ids = [cell.id for cell in found.notebook.cells]
    assert len(set(ids)) == len(ids)
    released = [cell.id for cell in source.cells]
    assert [one for one in ids if one in released] == released, "in the source's order"
    for cell in found.notebook.cells:
        if cell.id not in released:
            assert cell.metadata == {}
        else:
            assert cell.metadata == cell_of(source, cell.id).metadata
        assert not cell.get("outputs") and cell.get("execution_count") is None
    again = repair(found.notebook, source)
    assert again.notebook == found.notebook and again.cells == found.cells
    for note in found.notes:
        assert len(note) < 200 and note.endswith(".") and "\n" not in note
        assert not note[0].islower() and note.isprintable()
    return found


def texts(found):
    return [cell.source for cell in found.notebook.cells]


# Nothing to repair --------------------------------------------------------------------------------


def test_the_student_copy_and_the_solution_give_no_notes(chapter):
    for notebook in (chapter.release, chapter.source):
        found = repaired(notebook, chapter.source)
        assert found.notes == ()
        assert all(text is not None for text in found.cells.values())
    assert found.notebook.cells == chapter.source.cells


def test_every_stub_is_known_as_one(chapter):
    for ours, theirs in zip(chapter.source.cells, chapter.release.cells, strict=True):
        if ours.metadata.get("nbgrader", {}).get("solution"):
            assert module._is_stub(theirs.source, ours)
            assert not module._is_stub(ours.source, ours)
            assert not module._is_stub(theirs.source + "\nx = 1", ours)
            assert ours.cell_type == "markdown" or asked(ours) == names(theirs.source).binds
        else:
            assert released_text(ours) == theirs.source


def test_a_stub_without_its_line_is_one_still():
    source, release = small()
    cell = cell_of(source, "double")
    stub = cell_of(release, "double").source
    assert module._is_stub(stub.replace("raise NotImplementedError", "# raise"), cell) is False
    assert module._is_stub("\n".join(stub.splitlines()[:-1]), cell)
    assert module._is_stub(stub.replace("\n", "\n\n") + "  \n", cell)


def test_stock_nbgraders_stubs_are_known():
    source, _ = small()
    cell = cell_of(source, "double")
    assert module._is_stub(
        'def double(x):\n    """Twice x."""\n    # YOUR CODE HERE\n    raise NotImplementedError()', cell)


# What students do ---------------------------------------------------------------------------------


def test_the_students_code_is_taken_and_the_rest_is_the_sources():
    source, submitted = submission()
    found = repaired(submitted, source)
    assert found.cells["double"] == ANSWER and found.notes == ()
    assert cell_of(found.notebook, "double-check") == cell_of(source, "double-check")


def test_ungraded_cells_are_the_students_to_change():
    source, submitted = submission()
    cell_of(submitted, "LANGUAGE").source = 'LANGUAGE = "ada"\nSTEPS = 3'
    cell_of(submitted, "The end.").source = "My own words."
    found = repaired(submitted, source)
    assert 'LANGUAGE = "ada"\nSTEPS = 3' in texts(found) and "My own words." in texts(found)
    assert found.notes == ()


def test_a_deleted_check_costs_nothing():
    source, submitted = submission()
    submitted.cells.remove(cell_of(submitted, "double-check"))
    found = repaired(submitted, source)
    assert cell_of(found.notebook, "double-check") == cell_of(source, "double-check")
    assert found.notes == (
        "The check double-check was missing and was put back. That costs nothing.",)


def test_a_deleted_solution_counts_as_not_solved():
    source, submitted = submission()
    submitted.cells.remove(cell_of(submitted, "double"))
    found = repaired(submitted, source)
    assert found.cells["double"] is None
    assert cell_of(found.notebook, "double").source == ""
    assert found.notes == ("The cell of double is missing or empty: it counts as not solved.",)


def test_deleted_ungraded_cells_are_one_note():
    source, submitted = submission()
    submitted.cells = [cell for cell in submitted.cells
                       if "nbgrader" in cell.metadata or cell.cell_type == "markdown"]
    found = repaired(submitted, source)
    assert "import math\nimport torch" in texts(found)
    assert found.notes == ("5 released cells were missing; they were put back. That costs nothing.",)


def test_deleted_text_is_no_note():
    source, submitted = submission()
    submitted.cells.remove(cell_of(submitted, "The end."))
    assert repaired(submitted, source).notes == ()


def test_an_edited_check_is_the_sources_again():
    source, submitted = submission()
    cell_of(submitted, "double-check").source = "pass"
    found = repaired(submitted, source)
    assert cell_of(found.notebook, "double-check").source == "assert double(2) == 4"
    assert found.notes == ("The check double-check was changed: the original was used.",)


def test_blanks_at_the_ends_of_a_check_are_no_change():
    source, submitted = submission()
    cell_of(submitted, "double-check").source += "  \n\n"
    assert repaired(submitted, source).notes == ()


def test_edited_points_flags_and_types_are_the_sources_again():
    source, submitted = submission()
    for name in ("double", "double-check", "half-check", "why"):
        cell_of(submitted, name).metadata.nbgrader.update(
            points=1000, solution=True, grade=True, locked=False, task=True, schema_version=99)
    cell_of(submitted, "double-check").cell_type = "markdown"
    found = repaired(submitted, source)
    assert found.cells["double"] == ANSWER and found.notes == ()


def test_a_copied_check_counts_once():
    source, submitted = submission()
    for _ in range(3):
        submitted.cells.append(copy.deepcopy(cell_of(submitted, "double-check")))
    found = repaired(submitted, source)
    assert texts(found).count("assert double(2) == 4") == 1
    assert found.notes == ("There were 4 cells of the check double-check: it counts once.",)


def test_a_copy_of_a_changed_check_is_not_reported_where_the_original_is_there():
    source, submitted = submission()
    extra = copy.deepcopy(cell_of(submitted, "double-check"))
    extra.source = "double(7)"
    submitted.cells.append(extra)
    assert repaired(submitted, source).notes == (
        "There were 2 cells of the check double-check: it counts once.",)


@pytest.mark.parametrize("first", [True, False])
def test_of_a_stub_and_a_copy_with_work_the_work_counts(first):
    source, submitted = submission()
    stub = cell_of(small()[1], "double")
    submitted.cells.insert(index_of(submitted, "double") + (not first), stub)
    found = repaired(submitted, source)
    assert found.cells["double"] == ANSWER
    assert found.notes == (
        "There were 2 cells for double: one of them counts, with work in it.",)


def test_a_split_cell_is_put_together():
    source, submitted = submission()
    cell = cell_of(submitted, "half")
    cell.source = "def half(x):\n    return x / 2"
    rest = copy.deepcopy(cell)
    rest.source, rest.id = "def third(x):\n    return x / 3", "other"
    submitted.cells.insert(index_of(submitted, "half") + 1, rest)
    found = repaired(submitted, source)
    assert found.cells["half"] == f"{cell.source}\n\n{rest.source}"
    assert found.notes == (
        "There were 2 cells for half: those with work in them were put together, in their order.",)


def test_of_two_versions_above_the_check_the_later_one_holds():
    source, submitted = submission()
    draft = copy.deepcopy(cell_of(submitted, "double"))
    draft.source = "def double(x):\n    return 0"
    submitted.cells.insert(index_of(submitted, "double"), draft)
    text = repaired(submitted, source).cells["double"]
    space = {}
    exec(text, space)
    assert space["double"](2) == 4


def test_a_draft_that_is_no_code_does_not_take_the_answer_with_it():
    source, submitted = submission()
    draft = copy.deepcopy(cell_of(submitted, "double"))
    draft.source = "def double(x):\n    return 2 *"
    submitted.cells.insert(index_of(submitted, "double"), draft)
    assert repaired(submitted, source).cells["double"] == ANSWER


def test_a_copy_below_the_check_is_an_experiment():
    source, submitted = submission()
    copied = copy.deepcopy(cell_of(submitted, "double"))
    copied.source = "def double(x):\n    return 'an experiment'"
    submitted.cells.insert(index_of(submitted, "double-check") + 1, copied)
    assert repaired(submitted, source).cells["double"] == ANSWER


def test_a_solution_written_beside_its_stub_is_found():
    source, submitted = small()[0], small()[1]
    submitted.cells.append(new_code_cell(ANSWER))
    found = repaired(submitted, source)
    assert found.cells["double"] == ANSWER
    assert texts(found).count(ANSWER) == 1


def test_a_solution_written_into_a_cell_of_its_own_is_found():
    source, submitted = submission()
    cell = cell_of(submitted, "double")
    submitted.cells.insert(0, new_code_cell("import numpy as np\n" + ANSWER))
    submitted.cells.remove(cell)
    found = repaired(submitted, source)
    assert found.cells["double"] == "import numpy as np\n" + ANSWER and found.notes == (
        "Cells were put back into their order.",)


@pytest.mark.parametrize("kind", ["markdown", "raw"])
def test_a_solution_that_is_no_code_cell_any_more_counts(kind):
    source, submitted = submission()
    cell_of(submitted, "double").cell_type = kind
    found = repaired(submitted, source)
    assert found.cells["double"] == ANSWER
    assert found.notes == ("The cell of double was no code cell any more: its text was taken as code.",)


@pytest.mark.parametrize("kind", ["markdown", "raw"])
def test_an_import_cell_that_was_switched_off_is_put_back(kind):
    source, submitted = submission()
    cell_of(submitted, "import math").cell_type = kind
    found = repaired(submitted, source)
    kinds = [cell.cell_type for cell in found.notebook.cells
             if cell.source == "import math\nimport torch"]
    assert kinds == [kind, "code"]
    assert found.notes == ("One released cell was missing; it was put back. That costs nothing.",)


def test_reordered_cells_are_put_back_and_reported():
    source, submitted = submission()
    submitted.cells.reverse()
    found = repaired(submitted, source)
    assert texts(found)[:2] == [cell.source for cell in source.cells[:2]]
    assert found.notes == ("Cells were put back into their order.",)
    assert found.cells["double"] == ANSWER


def test_own_cells_stay_where_they_were():
    source, submitted = submission()
    cells = submitted.cells
    cells.insert(index_of(submitted, "double"), new_code_cell("above = 1"))
    cells.insert(index_of(submitted, "double") + 1, new_markdown_cell("My note."))
    cells.insert(index_of(submitted, "double-check"), new_raw_cell("raw"))
    cells.insert(0, new_code_cell("first = 1"))
    cells.append(new_code_cell("last = 1"))
    cells.append(new_code_cell("  \n"))
    found = repaired(submitted, source)
    assert [cell.source for cell in found.notebook.cells] == [
        source_text(source, cell) for cell in cells[:-1]]
    assert [cell.cell_type for cell in found.notebook.cells if cell.source == "raw"] == ["raw"]
    assert found.notes == ()


def source_text(source, cell):
    mark = cell.metadata.get("nbgrader", {})
    return cell.source if mark.get("solution") or not mark else cell_of(source, mark.grade_id).source


def test_an_answer_in_words_is_found_by_its_place():
    source, submitted = submission()
    cell_of(submitted, "why").source = "Because."
    found = repaired(colab(submitted), source)
    assert found.cells["why"] == "Because." and found.notes == ()


def test_renamed_grade_ids_do_not_matter():
    source, submitted = submission()
    cell_of(submitted, "half").metadata.nbgrader.grade_id = "something"
    cell_of(submitted, "double-check").metadata.nbgrader.grade_id = "half-check-2"
    found = repaired(submitted, source)
    assert found.notes == () and found.cells["half"] is not None


def test_a_grade_id_that_wanders_changes_no_points():
    source, submitted = submission()
    cell = cell_of(submitted, "double")
    cell.metadata.nbgrader.grade_id = "half-check"
    repaired_ = repaired(submitted, source)
    assert cell_of(repaired_.notebook, "half-check") == cell_of(source, "half-check")


def test_a_locked_cell_is_the_sources():
    source, submitted = submission()
    for notebook in (source, submitted):
        cell_of(notebook, "factor = 2").metadata["nbgrader"] = NotebookNode(
            grade=False, solution=False, locked=True, grade_id="given", schema_version=3, task=False)
    cell_of(submitted, "factor = 2").source = "factor = 99"
    assert "factor = 2" in texts(repaired(submitted, source))


# What editors do ----------------------------------------------------------------------------------


def colab(notebook):
    """Metadata gone, ids new."""
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = NotebookNode(), f"colab{number}"
    return notebook


def old_format(notebook):
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        del cell["id"]
    return notebook


def vs_code(notebook):
    """Ids kept, metadata gone."""
    for cell in notebook.cells:
        cell.metadata = NotebookNode(vscode={"languageId": "python"})
    return notebook


@pytest.mark.parametrize("editor", [colab, old_format, vs_code])
def test_an_editor_that_drops_metadata_loses_nothing(editor):
    source, submitted = submission()
    cell_of(submitted, "LANGUAGE").source = 'LANGUAGE = "ada"\nSTEPS = 3'
    cell_of(submitted, "import math").source += "\nimport numpy as np"
    submitted.cells.insert(index_of(submitted, "double"), new_code_cell("helper = 1"))
    found = repaired(editor(submitted), source)
    assert found.cells["double"] == ANSWER and found.cells["half"] is not None
    assert 'LANGUAGE = "course"\nSTEPS = 3' not in texts(found)
    assert "import math\nimport torch\nimport numpy as np" in texts(found)
    parameters = next(cell for cell in found.notebook.cells if "LANGUAGE" in cell.source)
    assert parameters.source == 'LANGUAGE = "ada"\nSTEPS = 3'
    assert parameters.metadata == {"tags": ["parameters"]}
    assert found.notes == ()


@pytest.mark.parametrize("editor", [colab, old_format, vs_code])
def test_chapters_survive_an_editor_that_drops_metadata(chapter, editor):
    for notebook in (chapter.release, chapter.source):
        found = repair(editor(copy.deepcopy(notebook)), chapter.source)
        # What a cell without functions asks for can't be told from its text once it is solved.
        anonymous = {cell.metadata.nbgrader.grade_id for cell in chapter.source.cells
                     if cell.metadata.get("nbgrader", {}).get("solution") and not asked(cell)}
        for name, text in found.cells.items():
            if not (name in anonymous and editor is not vs_code):
                assert text == cell_of(notebook, name).source
        assert [note for note in found.notes if not any(name in note for name in anonymous)] == []


def test_a_hidden_test_is_found_without_metadata():
    source, release = source_and_release(
        "# %% [markdown]\n# ### Exercise 9.1 — f\n\n# %% exercise=\"f\"\ndef f():\n"
        "    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\n\n# %% check=\"f\" points=1\n"
        "assert f() == 1\n### BEGIN HIDDEN TESTS\nassert f() != 2\n### END HIDDEN TESTS\n")
    assert "HIDDEN" not in release.cells[-1].source
    for submitted in (release, colab(copy.deepcopy(release))):
        found = repaired(submitted, source)
        assert found.notes == () and len(found.notebook.cells) == len(source.cells)
        assert "assert f() != 2" in found.notebook.cells[-1].source


def test_pictures_pasted_into_an_answer_are_kept():
    source, submitted = submission()
    cell = cell_of(submitted, "why")
    cell.source = "See ![figure](attachment:figure.png)."
    cell.attachments = NotebookNode({
        "figure.png": {"image/png": "iVBORw0KGgo=\n"},
        "page.html": {"text/html": "PHNjcmlwdD4="},
        'x" onerror="alert(1)': {"image/png": "AAAA"},
        "bad.png": {"image/png": 'AAAA" onerror="alert(1)'},
        "svg.svg": {"image/svg+xml": "PHN2Zz4="}})
    found = repaired(submitted, source)
    assert cell_of(found.notebook, "why").attachments == {
        "figure.png": {"image/png": "iVBORw0KGgo="}}


# What strangers do --------------------------------------------------------------------------------


def hostile_cells():
    for source in ("x = 1", ["x = ", "1"], [1, None, {}], None, 3, {"a": 1}, "\ud800", "\0",
                   ["\ud800"] * 3):
        for kind in ("code", "markdown", "raw", "heading", None, 3, ["code"]):
            yield {"cell_type": kind, "source": source}
    for metadata in (None, 3, "x", [], {"nbgrader": 3}, {"nbgrader": {"grade_id": ["double"]}},
                     {"nbgrader": {"grade_id": {}}}, {"nbgrader": {}}, {"nbgrader": None},
                     {"tags": ["parameters"], "loralab": {"timeout": "x"}}):
        yield {"cell_type": "code", "source": "y = 1", "metadata": metadata}
    for name in ("", "a b", "x" * 1000, None, 3, ["double"], {"a": 1}, "../../etc", "double", "é",
                 "own", "\ud800", "double-check"):
        yield {"cell_type": "code", "source": "z = 1", "id": name, "metadata": {}}
    for attachments in (None, 3, [], {"a.png": 3}, {"a.png": {"image/png": 3}}, {3: {}}):
        yield {"cell_type": "markdown", "source": "picture", "attachments": attachments}
    yield {}
    yield {"cell_type": "code", "source": "w", "metadata": {}, "execution_count": "x",
           "outputs": [new_output("stream", name="stderr", text="no"), 3, {"output_type": "x"}]}
    yield {"cells": [], "cell_type": "worksheet"}


def test_no_cell_is_too_strange():
    source, submitted = submission()
    for number, cell in enumerate(hostile_cells()):
        submitted.cells.insert(2 * number % len(submitted.cells), NotebookNode(cell))
    submitted.cells += ["text", 3, None, ["x"]]
    found = repaired(submitted, source)
    assert found.cells["double"] == ANSWER


def test_ids_that_are_released_ones_do_not_collide():
    source, submitted = submission()
    for _ in range(30):
        submitted.cells.insert(0, NotebookNode(
            cell_type="markdown", source="mine", id=cell_of(source, "import math").id, metadata={}))
    found = repaired(submitted, source)
    assert texts(found).count("mine") == 30


def test_endless_notebooks_are_cut():
    source, submitted = submission()
    submitted.cells += [new_code_cell("x = 1") for _ in range(3000)]
    found = repaired(submitted, source)
    assert len(found.notebook.cells) < 2100
    assert found.notes == ("Only the first 2,000 cells of the notebook were read.",)


def test_endless_cells_are_left_out():
    source, submitted = submission()
    submitted.cells.insert(0, new_code_cell("# " + "x" * 200_000))
    submitted.cells.append(new_markdown_cell("x" * 200_000))
    found = repaired(submitted, source)
    assert found.notes == ("Cell 1 was left out: that is too much code.",)
    assert found.cells["double"] == ANSWER


def test_an_empty_notebook_has_nothing_solved():
    source, _ = small()
    found = repaired(nbformat.v4.new_notebook(), source)
    assert set(found.cells.values()) == {None}
    assert len(found.notes) == 6
