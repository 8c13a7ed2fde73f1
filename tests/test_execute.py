"""Running the solutions: outputs, pages and timings, and what is said when a cell fails."""

from __future__ import annotations

import json

import nbformat
import pytest

from autograder.authoring import execute
from autograder.authoring.markers import expand

CHAPTER = """\
# %% [markdown]
# # Small
#
# <details><summary>Hint</summary>
#
# Folded away.
#
# </details>

# %% tags=["parameters"]
STEPS = 3
RATE: float = 1e-3

# %%
open("made.txt", "w").write("x")
print("steps", STEPS)
"""


@pytest.fixture
def run(tmp_path):
    def run_source(text: str, **parameters):
        source = tmp_path / "09_small.py"
        source.write_text(text)
        return execute.run_all([source], parameters, tmp_path / "executed")[0]

    run_source.folder = tmp_path / "executed"
    return run_source


def test_a_run_leaves_a_notebook_a_page_and_its_timings(run):
    outcome = run(CHAPTER, STEPS=5, UNKNOWN=1)
    assert outcome.failure is None and outcome.parameters == {"STEPS": 5}
    notebook = nbformat.read(run.folder / "09_small.ipynb", as_version=4)
    assert notebook.cells[-1].outputs[0].text == "steps 5\n"
    assert notebook.metadata.papermill.input_path == "solutions/09_small.py"
    assert (run.folder / "09_small" / "made.txt").exists(), "it runs in a folder of its own"
    page = (run.folder / "09_small.html").read_text("utf-8")
    assert "steps 5" in page
    assert page.index("Folded away") < page.index("</details>"), "help stays folded"
    record = json.loads((run.folder / "timings.json").read_text("utf-8"))[0]
    assert record["chapter"] == "09_small" and record["failure"] is None
    assert [cell["line"] for cell in record["cells"]] == [
        "STEPS = 3", 'open("made.txt", "w").write("x")']
    assert [cell["index"] for cell in record["cells"]] == [1, 2]


@pytest.mark.parametrize("cell, name, said", [
    ('\n# %%\nraise ValueError("no such thing")\n', "ValueError", "no such thing"),
    ("\n# %% timeout=1\nimport time; time.sleep(30)\n", "CellTimeoutError", "its 1 s"),
    ("\n# %%\nimport os; os._exit(1)\n", "DeadKernelError", "kernel died"),
])
def test_a_failing_cell_is_named(run, cell, name, said):
    outcome = run(CHAPTER + cell + "\n# %%\nprint('after')\n", STEPS=5)
    failure = outcome.failure
    notebook = expand(CHAPTER + cell, lambda grade_id: "")
    assert (failure.index, failure.cell) == (3, notebook.cells[3].id)
    assert failure.name == name and said in failure.message
    assert (run.folder / "09_small.html").exists(), "a page of a failed run helps to mend it"
    assert json.loads((run.folder / "timings.json").read_text("utf-8"))[0]["failure"]["index"] == 3


def test_widgets_do_not_make_a_cell_stand_still(run):
    """With Jupyter's own client about one such cell in twenty waits for its whole time limit."""
    cell = "\n# %%\n@interact(b=(1, 5))\ndef draw(b=3):\n" \
           "    for i in range(6):\n        print(b, i, flush=True)\n"
    outcome = run("# %%\nfrom ipywidgets import interact\n" + 30 * cell)
    assert outcome.failure is None
    assert outcome.slowest.seconds < 30


def test_timings_of_other_chapters_stay(tmp_path):
    path = tmp_path / "timings.json"
    execute.write_timings([execute.Outcome("01_a", 1.0, {}), execute.Outcome("02_b", 2.0, {})], path)
    execute.write_timings([execute.Outcome("01_a", 9.0, {})], path)
    assert [(r["chapter"], r["seconds"]) for r in json.loads(path.read_text())] == [
        ("01_a", 9.0), ("02_b", 2.0)]


def test_parameters_are_read_as_python_where_they_are():
    assert [execute.parameter_value(text) for text in ("30", "1e-3", "True", "gpt2", "[1, 2]")] == [
        30, 1e-3, True, "gpt2", [1, 2]]
    assert execute.parameter_names(expand(CHAPTER, lambda g: "")) == {"STEPS", "RATE"}
