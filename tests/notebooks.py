"""Small assignments and submissions, for tests of the intake; no kernel, no chapter."""

from __future__ import annotations

import copy

from nbformat import NotebookNode
from nbformat.v4 import new_notebook

from autograder.authoring.markers import expand
from autograder.authoring.release import release_notebook

SMALL = '''\
# %% [markdown]
# # Small
# ### Exercise 9.1 — write `double`

# %%
import math
import torch

# %% tags=["parameters"]
LANGUAGE = "course"
STEPS = 3

# %%
factor = 2

# %% exercise="double"
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    return factor * x
    ### END SOLUTION

# %% check="double" points=2
assert double(2) == 4

# %%
print(double(21))

# %% timeout=900
model = [double(step) for step in range(STEPS)]

# %% [markdown]
# ### Exercise 9.2 — write `half` and `third`

# %% exercise="half"
def half(x):
    ### BEGIN SOLUTION
    return x / 2
    ### END SOLUTION


def third(x):
    ### BEGIN SOLUTION
    return x / 3
    ### END SOLUTION

# %% check="half" points=3
assert half(4) == 2
assert third(6) == 2

# %% [markdown] manual="why" points=1
# ### BEGIN SOLUTION
# Because of the one reason that is written here.
# ### END SOLUTION

# %% [markdown]
# The end.
'''


def source_and_release(text: str = SMALL) -> tuple[NotebookNode, NotebookNode]:
    """The source notebook that `text` describes, and what students get of it."""
    source = expand(text, lambda grade_id: "help")
    return source, release_notebook(source, "09_small")


def small() -> tuple[NotebookNode, NotebookNode]:
    source, release = _SMALL
    return copy.deepcopy(source), copy.deepcopy(release)


_SMALL = source_and_release()


def cell_of(notebook: NotebookNode, name: str) -> NotebookNode:
    """The cell of that grade_id or id, or else the first with that text in it."""
    for cell in notebook.cells:
        if name in (cell.get("id"), cell.metadata.get("nbgrader", {}).get("grade_id")):
            return cell
    return next(cell for cell in notebook.cells if name in cell.source)


def index_of(notebook: NotebookNode, name: str) -> int:
    wanted = cell_of(notebook, name)
    return next(index for index, cell in enumerate(notebook.cells) if cell is wanted)


def with_cells(*cells: NotebookNode) -> NotebookNode:
    return new_notebook(cells=list(cells))
