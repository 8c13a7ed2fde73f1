"""The engine on small submissions, in the real sandbox: fair, clear, and the same each time."""

from __future__ import annotations

import copy
import time
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import autograder
from autograder.grading import engine, kernel
from autograder.checks import Part, Personal, StudentError, TrustedCheck
from autograder.grading.result import Item, Result
from autograder.sandbox.warm import BARE, Limits, Sandbox
from loralab.checks import Exercise, Symptom
from tests.notebooks import cell_of, index_of, small, source_and_release

HALF = Exercise("half", "9.2", hints=("Think.",), symptoms={
    "double": Symptom("My number is too large.", "You multiply.")})


def double(student, draw, personal):
    ask = student.function("double")
    drawn = [draw.randrange(10**6) for _ in range(3)]

    def check() -> None:
        for number in drawn:
            if ask(number) != 2 * number:
                raise HALF.wrong(f"for {number} it is {2 * number}")

    return [Part(1.0, check)]


def half(student, draw, personal):
    number = 2 * draw.randrange(10**6)

    def check_half() -> None:
        answer = student.function("half")(number)
        if answer == 2 * number:
            raise HALF.wrong(f"it is {number // 2}", "double")
        if answer != number / 2:
            raise HALF.wrong(f"it is {number // 2}")

    def check_third() -> None:
        if abs(student.function("third")(number) - number / 3) > 1e-9:
            raise HALF.wrong(f"it is {number / 3}")

    return [Part(2.0, check_half, "half"), Part(1.0, check_third, "third")]


CHECKS = {"double": TrustedCheck("double", double), "half": TrustedCheck("half", half)}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox((*BARE, "torch")) as sandbox:  # what the side door itself imports
        yield sandbox


@pytest.fixture
def grade(sandbox, monkeypatch):
    """grade(notebook, …) of the small assignment, with the checks above."""
    monkeypatch.setattr(engine, "checks_of", lambda chapter: CHECKS)
    monkeypatch.setattr(engine, "CELL_SECONDS", 3)
    monkeypatch.setattr(kernel, "CALL_SECONDS", 6)

    def graded(notebook, seed="seed", source=None, **more) -> Result:
        return engine.grade(notebook, "09", seed, source=source or small()[0], sandbox=sandbox,
                            **more)

    return graded


def work(**answers):
    """The student copy with these cells replaced."""
    _, release = small()
    for name, text in answers.items():
        cell_of(release, name).source = text
    return release


def insert(notebook, before, code):
    notebook.cells.insert(index_of(notebook, before), new_code_cell(code))
    return notebook


def scores(result):
    return {name: item.score for name, item in result.items.items()}


DOUBLE = "def double(x):\n    return factor * x"
HALVES = "def half(x):\n    return x / 2\ndef third(x):\n    return x / 3"


def test_full_partial_and_no_points(grade):
    assert scores(grade(small()[0])) == {"double-check": 2, "half-check": 3, "why": None}
    partly = grade(work(half=HALVES.replace("x / 3", "x / 4"), double=DOUBLE))
    assert scores(partly) == {"double-check": 2, "half-check": 2, "why": None}
    assert partly.score == 4
    untouched = grade(work())
    assert scores(untouched) == {"double-check": 0, "half-check": 0, "why": None}
    assert untouched.items["half-check"].messages == ("0 of 3 points.", "Not solved yet.")
    assert untouched.notes == ()


def test_the_messages_say_what_is_wrong_and_nothing_hidden(grade):
    found = grade(work(half="def half(x):\n    return 2 * x\ndef third(x):\n    return 0 / 0"))
    assert found.items["half-check"].messages == (
        "0 of 3 points.",
        "half: My number is too large. (Below the check there is help of that name.)",
        "third: your code raised ZeroDivisionError.")
    found = grade(work(double="def double(x):\n    return 3"))
    assert found.items["double-check"].messages == (
        "0 of 2 points.", "Wrong for inputs other than those of the check that you see.")
    missing = grade(work(half="def haf(x):\n    return x / 2\ndef third(x):\n    return x / 3"))
    assert missing.items["half-check"].messages == (
        "1 of 3 points.", "There is no half after your cells ran.")
    odd = grade(work(double="def double(x):\n    return object()"))
    assert odd.items["double-check"].messages[1] == (
        "What came back is no number, text, list, dict or tensor of usable size.")


def test_every_reason_is_a_sentence():
    for kind in ("missing", "unsolved", "raised", "masked", "slow", "died", "unreadable"):
        for name in ("", "memory", "processes", "time", "output", "exited"):
            said = engine.explain(StudentError(kind, name))
            assert said.endswith(".") and said[0].islower() and len(said) < 100


def test_the_same_seed_gives_the_same_result_and_another_draws_others(grade, monkeypatch):
    drawn = []
    monkeypatch.setattr(engine, "checks_of", lambda chapter: {
        "double": TrustedCheck("double", lambda student, draw, personal: (
            drawn.append(draw.random()), double(student, draw, personal))[1]),
        "half": CHECKS["half"]})
    lucky = work(double="import random\nluck = random.random()\n"
                        "def double(x):\n    return 2 * x if luck < 0.5 else 0", half=HALVES)
    results = [grade(lucky, seed) for seed in ("a", "a", "b")]
    assert drawn[0] == drawn[1] != drawn[2]
    first, second, _ = [(one.items, one.notes, one.seed) for one in results]
    assert first == second
    items = [one.items["double-check"] for one in results]
    assert items.count(items[0]) == len(items), "luck is the same each time"


def test_an_exercise_draws_the_same_whatever_happens_to_the_others(grade):
    # With this answer the score depends on what is drawn.
    guess = work(half="def half(x):\n    return x / 2 if x > 10**6 else 0\n"
                      "def third(x):\n    return 0")
    for seed in "abcd":
        alone = grade(guess, seed).items["half-check"]
        other = copy.deepcopy(guess)
        cell_of(other, "double").source = DOUBLE
        assert grade(other, seed).items["half-check"] == alone


def test_a_cell_that_raises_costs_what_it_would_have_made(grade):
    notebook = insert(work(double=DOUBLE, half=HALVES.replace("/ 2", "/ two")), "half",
                      "one = 1\ntwo = one / 0")
    found = grade(notebook)
    assert scores(found) == {"double-check": 2, "half-check": 1, "why": None}
    assert found.notes == ("The cell that starts with 'one = 1' raised ZeroDivisionError.",)


def test_a_solution_that_is_no_code_is_said_to_be_so(grade):
    found = grade(work(double=DOUBLE, half=HALVES + "\ndef ("))
    assert scores(found) == {"double-check": 2, "half-check": 0, "why": None}
    assert found.notes == ("The cell of half raised SyntaxError.",)


def test_an_exception_of_a_students_own_is_not_named(grade):
    notebook = work(double=DOUBLE, half="class FullMarks(Exception): pass\nraise FullMarks")
    assert grade(notebook).notes == ("The cell of half raised an exception.",)


def test_no_word_about_cells_that_raised_where_nothing_was_lost(grade):
    notebook = insert(small()[0], "half", "%time 1 / 0")
    assert grade(notebook).notes == ()


def test_a_cell_that_hangs_costs_no_other_exercise(grade):
    notebook = insert(work(double=DOUBLE, half=HALVES), "double", "eval('1')\nwhile True: pass")
    start = time.monotonic()
    found = grade(notebook)
    assert scores(found) == {"double-check": 2, "half-check": 3, "why": None}
    assert found.notes == ("The cell that starts with \"eval('1')\" was left out: it took too long.",)
    assert time.monotonic() - start < 30


def test_functions_that_hang_or_die_cost_no_other_exercise(grade):
    notebook = work(double="def double(x):\n    while True: pass",
                    half="import os\ndef half(x):\n    os._exit(1)\ndef third(x):\n    return x / 3")
    found = grade(notebook)
    assert scores(found) == {"double-check": 0, "half-check": 1, "why": None}
    assert found.items["double-check"].messages == ("0 of 2 points.", "It took too long.")
    assert found.items["half-check"].messages[1] == "Your code ended its own process."


@pytest.mark.parametrize("code", [
    "import sys\nsys.exit()", "exit()", "quit", "quit()", "raise KeyboardInterrupt",
    "raise SystemExit(3)", "import os\nos._exit(0)", "import os, signal\nos.kill(os.getpid(), 9)",
    "get_ipython().kernel.do_shutdown(False)", "import os\nos.close(0), os.close(1), os.close(2)",
])
def test_a_cell_that_ends_things_costs_no_other(grade, code):
    notebook = insert(work(double=DOUBLE, half=HALVES), "double", f"# {'%'}\n{code}\neval('1')")
    assert scores(grade(notebook)) == {"double-check": 2, "half-check": 3, "why": None}


def test_many_cells_that_die_cost_no_exercise(grade):
    notebook = work(double=DOUBLE, half=HALVES)
    for _ in range(6):
        insert(notebook, "double", "eval('__import__(\"os\")._exit(1)')")
    found = grade(notebook)
    assert scores(found) == {"double-check": 2, "half-check": 3, "why": None}
    assert len(set(found.notes)) >= 1


def test_a_submission_has_so_much_time_in_all(grade):
    notebook = work(double=DOUBLE, half=HALVES)
    for number in range(30):
        insert(notebook, "double", f"eval('1')\nwhile {number + 1}: pass")
    start = time.monotonic()
    found = grade(notebook, limits=Limits(wall_seconds=8))
    assert time.monotonic() - start < 20
    assert scores(found) == {"double-check": 0, "half-check": 0, "why": None}
    assert "took too long" in found.items["half-check"].messages[1] or (
        "more time than it may" in found.items["half-check"].messages[1])


def test_noise_costs_nothing(grade):
    noise = ("import sys, warnings\nprint('0.0', file=sys.stderr)\nwarnings.warn('no')\n"
             "print(float('nan'))\n-1")
    notebook = work(double=noise + "\n" + DOUBLE.replace("return", "print('0'); return"),
                    half=HALVES)
    assert scores(grade(notebook)) == {"double-check": 2, "half-check": 3, "why": None}


def test_a_check_that_fails_on_an_answer_costs_its_part_alone(grade, monkeypatch, caplog):
    def unlucky(student, draw, personal):
        return [Part(1, lambda: None), Part(1, lambda: len(3), "the rest")]

    def broken(student, draw, personal):
        raise KeyError("a hidden value")

    monkeypatch.setattr(engine, "checks_of", lambda chapter: {
        "double": TrustedCheck("double", unlucky), "half": TrustedCheck("half", broken)})
    found = grade(small()[0])
    assert scores(found) == {"double-check": 1, "half-check": 0, "why": None}
    assert found.items["double-check"].messages[1] == (
        "the rest: what came back could not be compared (TypeError).")
    assert "hidden" not in found.to_json()
    assert "could not be carried out" in caplog.text


def test_a_kernel_that_never_starts_is_the_graders_fault(grade, sandbox, monkeypatch):
    def start(limits, files):
        return SimpleNamespace(ended="failed: no room", connection={}, name="k", folder=None)

    monkeypatch.setattr(sandbox, "start", start)
    monkeypatch.setattr(sandbox, "stop", lambda started: None)
    with pytest.raises(engine.NotGraded, match="no kernel started"):
        grade(small()[0])


def test_files_and_parameters_are_the_students(grade, monkeypatch, tmp_path):
    seen = {}

    def look(student, draw, personal):
        seen.update(files=dict(student.files), parameters=dict(student.parameters),
                    personal=personal, read=student.value("text"))
        return [Part(1, lambda: None)]

    monkeypatch.setattr(engine, "checks_of", lambda chapter: {
        "double": TrustedCheck("double", look), "half": CHECKS["half"]})
    (tmp_path / "f").write_text("content")
    notebook = insert(work(double=DOUBLE), "double-check", "text = eval('open(\"d/f\").read()')")
    cell_of(notebook, "LANGUAGE").source = (
        'LANGUAGE: str = "ada"\nSTEPS = RATE = -3\nOTHER = open("x")\nMANY = [1, 2]\nNO = None')
    personal = Personal("secret", "ada", "class-1")
    grade(notebook, files={"d/f": tmp_path / "f"}, personal=personal)
    assert seen == {
        "files": {"d/f": tmp_path / "f"}, "personal": personal, "read": "content",
        "parameters": {"LANGUAGE": "ada", "STEPS": -3, "RATE": -3, "NO": None}}


# An instructor's own hidden tests -----------------------------------------------------------------

OWN = '''\
# %% [markdown]
# ### Exercise 9.1 — write `square`

# %%
offset = 0

# %% exercise="square"
def square(x):
    ### BEGIN SOLUTION
    return x * x + offset
    ### END SOLUTION

# %% check="square" points=2
assert square(2) == 4
### BEGIN HIDDEN TESTS
assert square(3) == 9
### END HIDDEN TESTS

# %% exercise="cube"
def cube(x):
    ### BEGIN SOLUTION
    return x * square(x)
    ### END SOLUTION

# %% check="cube" points=1
assert cube(3) == 27
'''


@pytest.fixture
def own(sandbox, monkeypatch):
    monkeypatch.setattr(engine, "CELL_SECONDS", 3)
    source, release = source_and_release(OWN)

    def graded(**answers):
        notebook = copy.deepcopy(release)
        for name, text in answers.items():
            cell_of(notebook, name).source = text
        return engine.grade(notebook, "own", "seed", source=source, sandbox=sandbox)

    return graded


def test_own_hidden_tests_are_run_in_the_sandbox(own):
    right = dict(square="def square(x):\n    return x ** 2", cube="def cube(x):\n    return x ** 3")
    found = own(**right)
    assert scores(found) == {"square-check": 2, "cube-check": 1} and found.notes == ()
    guessed = own(**right | {"square": "def square(x):\n    return 4"})
    assert scores(guessed) == {"square-check": 0, "cube-check": 1}
    assert guessed.items["square-check"].messages == (
        "0 of 2 points.", "The test raised AssertionError.")
    assert scores(own()) == {"square-check": 0, "cube-check": 0}


@pytest.mark.parametrize("end", ["while True: pass", "import os; os._exit(0)"])
def test_a_test_that_hangs_or_dies_costs_no_other(own, end):
    found = own(square=f"def square(x):\n    {end}", cube="def cube(x):\n    return x ** 3")
    assert scores(found) == {"square-check": 0, "cube-check": 1}
    assert found.items["square-check"].messages[1] in (
        "It took too long.", "Your code ended its own process.")


# The plain interface ------------------------------------------------------------------------------


def test_a_result_survives_json():
    result = Result("01", "seed", {
        "a-check": Item(2.0, 1.5, ("1.5 of 2 points.", "ä \U0001f600 <b>")), "why": Item(1.0, None)},
        ("A note.",), {"cells": 0.1}, {"torch": "2"})
    again = Result.from_json(result.to_json())
    assert again == result and again.to_json() == result.to_json()
    assert result.score == 1.5
    for text in ("", "[]", "{}", '{"items": 3}', result.to_json()[:-20]):
        with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
            Result.from_json(text)


def test_the_plain_interface_takes_a_notebook_a_chapter_and_a_seed(chapter, tmp_path):
    if not engine.checks_of(chapter.number):
        pytest.skip("no trusted checks of this chapter yet")
    notebook = nbformat.reads(nbformat.writes(chapter.source), as_version=4)
    files = {}
    result = autograder.grade(notebook, chapter.number, "seed", files=files)
    assert result.chapter == chapter.number and result.notes == ()
    assert set(result.versions) >= {"torch", "peft", "nbgrader"} and result.timings
    for name, item in result.items.items():
        if name != "trained_adapter-check":  # its adapter was not handed in
            assert item.score in (None, item.points), (name, item)
    untouched = autograder.grade(chapter.release, chapter.number, "seed")
    assert untouched.score == 0 and untouched.notes == ()
    empty = autograder.grade(new_notebook(), chapter.number, "seed")
    assert empty.score == 0
