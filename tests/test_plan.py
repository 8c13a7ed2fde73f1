"""Which cells of a submission run: those that its answers need, and no others."""

from __future__ import annotations

import time

import pytest
from nbformat.v4 import new_code_cell

from autograder.checks import checks_of
from autograder.grading.names import MAX_CODE, names
from autograder.grading.plan import cells_to_run
from autograder.grading.repair import repair
from tests.notebooks import cell_of, index_of, small, source_and_release

# What a cell's code does to names -----------------------------------------------------------------


@pytest.mark.parametrize("code, bound", [
    ("import torch", {"torch"}),
    ("import os.path", {"os"}),
    ("import numpy as np", {"np"}),
    ("from math import ceil, floor as down", {"ceil", "down"}),
    ("def f(a, b=1):\n    c = 2\n    return c", {"f"}),
    ("async def f(): pass", {"f"}),
    ("class A:\n    x = 1\n    def f(self): pass", {"A"}),
    ("a = b = 1; c, (d, *e) = 1, (2, 3)", {"a", "b", "c", "d", "e"}),
    ("n: int = 3", {"n"}),
    ("n += 1", {"n"}),
    ("print(n := 10)", {"n"}),
    ("[last := x for x in range(3)]", {"last"}),
    ("for i, j in []: k = 1", {"i", "j", "k"}),
    ("with open('f') as f, a as (b, c): pass", {"f", "b", "c"}),
    ("try: pass\nexcept E as error: pass", {"error"}),
    ("match x:\n    case [a, *b]: pass\n    case {'k': c, **d}: pass\n    case P() as e: pass",
     {"a", "b", "c", "d", "e"}),
    ("def f():\n    global g\n    g = 1", {"f", "g"}),
    ("def f():\n    def inside():\n        global g\n        g = 1", {"f", "g"}),
    ("del x", {"x"}),
    ("double = lambda x: 2 * x", {"double"}),
    ("if True:\n    import a\nelse:\n    b = 1", {"a", "b"}),
    ("sum = 3", {"sum"}),
    ("%%time\nx = 1", {"x"}),
    ("%matplotlib inline\nx = 1", {"x"}),
    ("files = !ls\ny = 2", {"files", "y"}),
    ("x = %timeit -o 1", {"x"}),
])  # fmt: skip
def test_a_cell_binds(code, bound):
    assert names(code).binds == bound


@pytest.mark.parametrize("code, changed", [
    ('table["x"] = 1', "table"), ("x.y = 1", "x"), ("x.y[0].z += 1", "x"), ("del x[0]", "x"),
    ("for x.y in []: pass", "x"), ("a, x[0] = 1, 2", "x"), ("with c as x.y: pass", "x"),
])
def test_a_cell_changes_an_object_in_place(code, changed):
    assert changed in names(code).binds


@pytest.mark.parametrize("code, changed", [
    ("found.append(1)", "found"), ("np.random.seed(0)", "np"), ("sys.path.append('x')", "sys"),
    ("for x in xs:\n    found.append(x)", "found"), ("if xs: found.clear()", "found"),
    ("with lock:\n    found.append(1)", "found"), ("await found.put(1)", "found"),
])
def test_a_method_is_called_for_its_effect(code, changed):
    assert changed in names(code).calls


@pytest.mark.parametrize("code, touched", [
    ("random.shuffle(found)", "found"), ("fill(table)", "table"), ("fill(a, into=table)", "table"),
    ("last = found.pop()", "found"), ("setattr(x, 'y', 1)", "x"), ("fill(*parts)", "parts"),
    ("nn.init.zeros_(layer.weight)", "layer"),
])
def test_a_call_may_change_what_it_gets(code, touched):
    assert touched in names(code).touches


def test_printing_touches_nothing():
    assert names("print(x, len(y))").touches == set()


def test_what_a_function_does_is_deep():
    found = names("def add(x):\n    found.append(x)\n    table[x] = 1\n    out.name = 2")
    assert {"found", "table", "out"} <= found.deep
    assert found.calls == set() == found.touches


@pytest.mark.parametrize("code, used", [
    ("def f():\n    return helper(1)", "helper"),
    ("def f():\n    def g():\n        return helper\n    return g", "helper"),
    ("@cached\ndef f(): pass", "cached"),
    ("def f(x=limit): pass", "limit"),
    ("def f(x: Kind) -> Other: pass", "Kind"),
    ("def f(x: Kind) -> Other: pass", "Other"),
    ("print(f'{value:{width}}')", "width"),
    ("[g(x) for x in xs if keep(x)]", "keep"),
    ("class A(Base): pass", "Base"),
    ("class A:\n    def f(self): return helper", "helper"),
    ("n += 1", "n"),
    ("x.y = 1", "x"),
    ("def f(): return sum([1])", "sum"),
    ("%%time\nhelper(1)", "helper"),
    ("eval('helper(1)')", "helper"),
    ("def f(): return globals()['helper'](1)", "helper"),
])
def test_a_cell_uses(code, used):
    assert used in names(code).uses


def test_local_names_do_not_count():
    found = names("def f(a):\n    b = a\n    c = [d for d in b]\n    return lambda e: e + c")
    assert found.binds == {"f"} and found.uses == set()


@pytest.mark.parametrize("code", [
    "!pip install x", "%matplotlib inline", "%%time\nx = 1", "x = !ls", "torch?", "%%bash\necho $x",
    "from math import *", "exec('x = 1')", "globals()['x'] = 1", "def f(): return eval('x')",
    "get_ipython().run_line_magic('time', '1')", "def f(:", "x = 1\n  y = 2", "\0", "\ud800",
    "vars()['x'] = 1", "x" * (MAX_CODE + 1), "(" * 3000, "-" * 20_000 + "1", "x" + ".a" * 20_000,
    "not " * 20_000 + "x", "if x:\n" * 200, "1" * 5000, "[" * 90 + "]" * 90 + "(",
])  # fmt: skip
def test_what_can_not_be_read_is_not_clear(code):
    start = time.monotonic()
    if code[-3:] in (".a.", "x.a", ".a") or code.startswith(("-", "not", "1", "x.")):
        names(code)  # read or not, it raises nothing
    else:
        assert not names(code).clear
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("code", [
    " " * 19_000 + "(", "x=" * 9_000 + "!", "? " * 9_000 + "(", "%\n" * 9_000, "a?\n" * 6_000,
    "%%" * 9_000, "x = " + "[0], " * 3_900 + "(", "lambda: " * 2_400 + "1", "a;" * 9_900,
    "\n".join(f"def f{number}(): 0" for number in range(1200)), "?" * 10_000_000,
])
def test_no_cell_takes_long_to_read(code):
    start = time.process_time()
    names(code)
    assert time.process_time() - start < 5


# Which cells run ----------------------------------------------------------------------------------


def plan(source, submitted, wanted=("double", "half")):
    """The texts of the cells that run."""
    repaired = repair(submitted, source)
    return [repaired.notebook.cells[index].source
            for index in cells_to_run(repaired, source, wanted)]


def starts(found):
    return [text.split("\n")[0] for text in found]


def solved():
    """(source, a submission that is the source's solutions)."""
    source, _ = small()
    return source, small()[0]


def insert(notebook, before, code):
    notebook.cells.insert(index_of(notebook, before), new_code_cell(code))


def test_the_solution_runs_with_what_it_uses_alone():
    source, submitted = solved()
    assert starts(plan(source, submitted)) == ["factor = 2", "def double(x):", "def half(x):"]
    assert starts(plan(source, submitted, {"half"})) == ["def half(x):"]
    assert plan(source, submitted, set()) == []


def test_a_missing_import_cell_runs_where_it_is_put_back():
    source, submitted = solved()
    cell_of(submitted, "double").source = "def double(x):\n    return math.ldexp(x, 1)"
    del submitted.cells[index_of(submitted, "import math")]
    assert starts(plan(source, submitted)) == ["import math", "def double(x):", "def half(x):"]


def test_an_edited_import_cell_runs_with_its_edit():
    source, submitted = solved()
    cell_of(submitted, "import math").source += "\nimport numpy as np"
    cell_of(submitted, "double").source = "def double(x):\n    return np.add(x, x)"
    assert "import numpy as np" in plan(source, submitted)[0]


@pytest.mark.parametrize("before", ["import math", "half", "The end."])
def test_a_helper_runs_wherever_it_was_added(before):
    source, submitted = solved()
    cell_of(submitted, "double").source = "def double(x):\n    return helper(x)"
    insert(submitted, before, "offset = 0")
    insert(submitted, before, "def helper(x):\n    return 2 * x + offset")
    found = starts(plan(source, submitted))
    assert "offset = 0" in found and "def helper(x):" in found


def test_a_helper_may_be_called_like_a_builtin():
    source, submitted = solved()
    cell_of(submitted, "double").source = "def double(x):\n    return sum(x, x)"
    insert(submitted, "double", "def sum(a, b):\n    return a + b")
    assert "def sum(a, b):" in starts(plan(source, submitted))


@pytest.mark.parametrize("change", [
    'table["x"] = 1', "table.x = 1", "table.append(1)", "for i in range(3):\n    table.append(i)",
    "random.shuffle(table)", "del table[0]", "last = table.pop()",
])
def test_changes_of_an_object_run_with_it(change):
    source, submitted = solved()
    cell_of(submitted, "double").source = "def double(x):\n    return table[x]"
    insert(submitted, "double", "table = [0, 2]")
    insert(submitted, "double", change)
    assert change in plan(source, submitted)


def test_changes_through_a_function_run_with_it():
    source, submitted = solved()
    cell_of(submitted, "double").source = "def double(x):\n    return found[x]"
    insert(submitted, "double", "found = []\ndef add(x):\n    found.append(x)")
    insert(submitted, "double", "add(3)")
    assert "add(3)" in plan(source, submitted)


@pytest.mark.parametrize("code", ["np.random.seed(0)", "sys.path.append('.')"])
def test_a_students_call_of_a_library_may_change_it(code):
    source, submitted = solved()
    name = code.split(".")[0]
    cell_of(submitted, "double").source = f"def double(x):\n    return {name}.f(x)"
    insert(submitted, "double", code)
    assert code in plan(source, submitted)


@pytest.mark.parametrize("code", [
    "!pip list", "%matplotlib inline", "from helpers import *", "exec('x = 1')",
    "globals()['y'] = 2", "def f(:",
])
def test_what_can_not_be_read_runs(code):
    source, submitted = solved()
    insert(submitted, "double", code)
    assert code in plan(source, submitted)


def test_an_unchanged_released_cell_runs_only_where_it_is_needed():
    text = ("# %%\n!pip list\n\n# %%\nfrom math import *\n\n# %%\ngraph = vars()\n\n"
            "# %% [markdown]\n# ### Exercise 9.1 — f\n\n# %% exercise=\"f\"\ndef f():\n"
            "    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\n\n"
            "# %% check=\"f\" points=1\nf()\n")
    source, release = source_and_release(text)
    assert starts(plan(source, source, {"f"})) == ["def f():"]
    cell_of(release, "graph").source += " "
    assert starts(plan(source, release, {"f"})) == ["graph = vars() ", "def f():"]


def test_one_needs_what_cell_magic_hides():
    source, submitted = solved()
    cell_of(submitted, "double").source = "%%time\ndef double(x):\n    return torch.add(x, x)"
    assert starts(plan(source, submitted)) == ["import math", "%%time", "def half(x):"]


def test_experiments_and_figures_do_not_run():
    source, submitted = solved()
    insert(submitted, "half", "losses = train(model)")
    insert(submitted, "half", "print(double(3))")
    insert(submitted, "half", "plt.plot(losses)\nplt.show()")
    assert starts(plan(source, submitted)) == ["factor = 2", "def double(x):", "def half(x):"]


def test_the_last_definition_above_the_check_counts():
    source, submitted = solved()
    insert(submitted, "double-check", "def double(x):\n    return x + x")
    assert starts(plan(source, submitted)) == [
        "factor = 2", "def double(x):", "def double(x):", "def half(x):"]


def test_a_definition_below_the_check_is_a_later_experiment():
    source, submitted = solved()
    insert(submitted, "print(double", "def double(x):\n    return 'an experiment'")
    insert(submitted, "print(double", "factor = 99")
    found = plan(source, submitted)
    assert starts(found) == ["factor = 2", "def double(x):", "def half(x):"]
    assert "experiment" not in "".join(found)


def test_what_a_later_exercise_needs_runs_though_it_is_below_an_earlier_check():
    source, submitted = solved()
    cell_of(submitted, "half").source = (
        "def half(x):\n    return x / factor\ndef third(x):\n    return x / 3")
    insert(submitted, "print(double", "factor = 2.0")
    assert "factor = 2.0" in plan(source, submitted)


def test_a_solution_in_a_cell_beside_its_stub_counts():
    source, _ = small()
    for before in ("double", "double-check", "half", "The end."):
        submitted = small()[1]
        insert(submitted, before, "def double(x):\n    return x + x")
        assert "def double(x):\n    return x + x" in plan(source, submitted)
        assert repair(submitted, source).cells["double"] == "def double(x):\n    return x + x"


def test_a_solution_in_two_cells_counts():
    source, submitted = solved()
    cell_of(submitted, "half").source = "def half(x):\n    return x / 2"
    insert(submitted, "half-check", "def third(x):\n    return x / 3")
    found = plan(source, submitted)
    assert found[-2:] == ["def half(x):\n    return x / 2", "def third(x):\n    return x / 3"]


def test_a_solution_may_call_a_function_in_an_extra_cell():
    source, submitted = solved()
    cell_of(submitted, "double").source = "def double(x):\n    return mine(x)"
    insert(submitted, "double", "def mine(x):\n    return math.ldexp(x, 1)")
    assert starts(plan(source, submitted)) == [
        "import math", "def mine(x):", "def double(x):", "def half(x):"]


def test_long_cells_never_run_whatever_a_submission_says():
    source, submitted = solved()
    cell_of(submitted, "double").source = "def double(x):\n    return model[x]"
    cell_of(submitted, "factor = 2").metadata["loralab"] = {"timeout": 10_000}
    found = plan(source, submitted)
    assert starts(found) == ["def double(x):", "def half(x):"]
    long = next(cell for cell in submitted.cells if "loralab" in cell.metadata
                and "model" in cell.source)
    del long.metadata["loralab"]
    assert plan(source, submitted) == found


def test_an_own_cell_in_place_of_a_long_one_runs():
    source, submitted = solved()
    cell_of(submitted, "double").source = "def double(x):\n    return model[x]"
    insert(submitted, "The end.", "model = [0, 2, 4]")
    assert "model = [0, 2, 4]" in plan(source, submitted)


@pytest.mark.parametrize("wanted", [{"double", "half", "half-check"}, {"double", "half-check"}])
def test_with_an_instructors_own_tests_everything_but_long_cells_runs(wanted):
    source, submitted = solved()
    insert(submitted, "half", "print('mine')")
    repaired = repair(submitted, source)
    found = cells_to_run(repaired, source, wanted)
    cells = [repaired.notebook.cells[index] for index in found]
    assert found == sorted(found)
    assert starts(cell.source for cell in cells) == [
        "import math", 'LANGUAGE = "course"', "factor = 2", "def double(x):",
        "print(double(21))", "print('mine')", "def half(x):", "assert half(4) == 2"]


def test_cells_of_an_exercise_that_is_not_asked_do_not_run():
    text = ("# %%\nimport training\n\n# %% [markdown]\n# ### Exercise 9.1 — f\n\n"
            "# %% exercise=\"f\"\ndef f():\n"
            "    ### BEGIN SOLUTION\n    return training\n    ### END SOLUTION\n\n"
            "# %% check=\"f\" points=1\nf()\n\n"
            "# %% exercise=\"saved\"\n### BEGIN SOLUTION\ntraining.save('adapter')\n"
            "### END SOLUTION\n\n# %% check=\"saved\" points=1\ntraining.look('adapter')\n")
    source, _ = source_and_release(text)
    assert starts(plan(source, source, {"f"})) == ["import training", "def f():"]


def test_many_cells_that_all_need_each_other_take_no_time():
    source, submitted = solved()
    every = ", ".join(f"n{i}" for i in range(120))
    for number in range(1500):
        insert(submitted, "half", f"{every} = {every}  # {number}")
    cell_of(submitted, "double").source = f"def double(x):\n    return {every}"
    start = time.monotonic()
    plan(source, submitted)
    assert time.monotonic() - start < 15


# The course's own chapters ------------------------------------------------------------------------

# The first lines of the cells that run for the solution, beside the solution cells themselves.
NEEDED = {
    "00": [],
    "01": ["try:"],  # imports
    "05": ["try:"],
    "08": ["try:"],
}
LATER = {"01": "weight_bytes", "05": "format_example"}


def wanted_of(chapter):
    checks = checks_of(chapter.number)
    marks = [cell.metadata.get("nbgrader", {}) for cell in chapter.source.cells]
    exercises = [mark.grade_id for mark in marks
                 if mark.get("solution") and not mark.get("grade")]
    return [name for name in exercises if name not in checks or checks[name].runs
            if name != "trained_adapter"]  # an artifact


def test_exactly_these_cells_of_a_chapter_run(chapter):
    wanted = wanted_of(chapter)
    assert wanted
    for submitted in (chapter.source, chapter.release):
        repaired = repair(submitted, chapter.source)
        found = [repaired.notebook.cells[index]
                 for index in cells_to_run(repaired, chapter.source, wanted)]
        needed = [cell for cell in found if cell.id not in wanted]
        assert {cell.id for cell in found} >= set(wanted)
        assert not [cell.id for cell in found if "loralab" in cell.metadata]
        if submitted is chapter.source and chapter.number in NEEDED:
            assert starts(cell.source for cell in needed) == NEEDED[chapter.number]
        assert len(needed) <= 3
