"""papermill runs every solution from top to bottom; notebooks, pages and timings stay in build/."""

from __future__ import annotations

import nbformat
import pytest

from autograder.authoring import execute
from autograder.authoring.release import chapters

EXECUTED = execute.EXECUTED
NAMES = [path.stem for path in chapters()]


@pytest.fixture(scope="module")
def outcomes(parameters):
    return {one.chapter: one for one in execute.run_all(chapters(), parameters, EXECUTED)}


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs(name, outcomes):
    assert outcomes[name].failure is None, outcomes[name].failure


@pytest.mark.parametrize("name", NAMES)
def test_the_page_holds_every_figure(name, outcomes):
    notebook = nbformat.read(EXECUTED / f"{name}.ipynb", as_version=4)
    figures = sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells if cell.cell_type == "code"
        for output in cell.outputs
    )  # fmt: skip
    shown = sum("plt.show()" in cell.source for cell in notebook.cells)
    assert figures >= max(shown, 1)
    assert (EXECUTED / f"{name}.html").read_text("utf-8").count('src="data:image/png') == figures


@pytest.mark.parametrize("name", NAMES)
def test_students_see_no_noise(name, outcomes):
    """Nothing on stderr: no warning, no stray progress bar."""
    notebook = nbformat.read(EXECUTED / f"{name}.ipynb", as_version=4)
    noise = [
        output.text
        for cell in notebook.cells if cell.cell_type == "code"
        for output in cell.outputs if output.get("name") == "stderr"
    ]  # fmt: skip
    assert noise == []


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_its_text(name, outcomes):
    cells = nbformat.read(EXECUTED / f"{name}.ipynb", as_version=4).cells
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if cell.cell_type == "code" and any("image/png" in output.get("data", {})
                                            for output in cell.outputs):
            assert following is not None and following.cell_type == "markdown", cell.source
            assert following.source.lstrip().startswith("*Alt text:"), cell.source
