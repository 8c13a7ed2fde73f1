"""`autograder leaderboard`: graded results alone, pseudonyms by default, nothing that runs."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autograder.authoring.release import chapters, to_text
from autograder.classes import batch, class_folder, classroom, leaderboard, tasks
from autograder.cli import app
from autograder.grading.result import Item, Result
from loralab.capstone import BUDGET
from loralab.plots.pareto import Point, accuracy_by_cost, front
from tests.notebooks import small

HOSTILE = "<img src=x onerror=alert(1)>"
QUOTED = "\"' onload=alert(2) &amp; $x^2$"
CHAPTER = "08_capstone"
# student → what the trusted check measured
CLASS = {
    "adaline": {"trainable": 305_280, "accuracy": 0.75, "peak_gib": 0.380},
    "bela": {"trainable": 305_280, "accuracy": 0.75, "peak_gib": 0.380},  # adaline's equal
    "chen": {"trainable": 380_160, "accuracy": 0.90625, "peak_gib": 0.361},
    "dana": {"trainable": 460_800, "accuracy": 0.0, "peak_gib": 0.348},
    HOSTILE: {"trainable": 2_442_240, "accuracy": 0.953125, "peak_gib": 0.599},
    QUOTED: {"trainable": 190_080, "accuracy": 0.5},  # not what was planned
    "emil": {},  # without an adapter
}


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    return class_folder.init(tmp_path_factory.mktemp("board") / "class", sources=chapters(["08"]))


@pytest.fixture
def room(empty, tmp_path) -> Path:
    """A class in which all of CLASS handed in and were graded, and gaia was not."""
    root = shutil.copytree(empty, tmp_path / "class")
    for student, measured in CLASS.items():
        hand_in(root, student)
        keep(root, student, measured)
    hand_in(root, "gaia")
    return root


def hand_in(root: Path, student: str) -> Path:
    folder = root / "submitted" / student / CHAPTER
    folder.mkdir(parents=True)
    (folder / f"{CHAPTER}.ipynb").write_text(to_text(small()[1]), "utf-8")
    return folder


def keep(root: Path, student: str, measured: dict[str, float]) -> None:
    item = Item(8.0, 5.0, ("5 of 8 points.",), measured)
    result = Result("08", "seed", {"trained_adapter-check": item, "report": Item(4.0, None)})
    batch.store(root, tasks.key_of(root, CHAPTER, student), result)


def command(*arguments: object):
    return CliRunner().invoke(app, ["leaderboard", *map(str, arguments)])


class Page(HTMLParser):
    """Tags with their attributes, and the cells of the table's rows."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data


# --- what is on it --------------------------------------------------------------------------------


def test_the_page_has_each_adapter_best_first_with_equal_places(room):
    assert command("--class", room).exit_code == 0
    page = Page((room / "leaderboard.html").read_text("utf-8"))
    header, *rows = page.rows
    assert header == ["row", "place", "name", "right", "parameters", "predicted GiB", "budget",
                      "Pareto front"]  # fmt: skip
    assert [(row[1], *row[3:]) for row in rows] == [
        ("1", "95 %", "2,442,240", "0.599", "not kept", "parameters, memory"),
        ("2", "91 %", "380,160", "0.361", "kept", "parameters, memory"),
        ("3", "75 %", "305,280", "0.380", "kept", "parameters"),
        ("3", "75 %", "305,280", "0.380", "kept", "parameters"),
        ("5", "50 %", "190,080", "–", "–", "parameters"),
        ("6", "0 %", "460,800", "0.348", "kept", "memory"),
    ]
    assert [row[0] for row in rows] == list("123456")


def test_who_has_no_adapter_or_no_grade_is_counted_not_named(room):
    done = command("--class", room)
    text = (room / "leaderboard.html").read_text("utf-8")
    assert "1 handed in no adapter" in text and "1 handed in work that is not graded" in text
    assert "emil" not in text and "gaia" not in text
    assert "emil" in done.output and "gaia" in done.output and "autograder grade 08" in done.output


def test_work_that_changed_since_it_was_graded_is_not_graded(room):
    (room / "submitted" / "chen" / CHAPTER / "adapter.txt").write_text("another one")
    board = leaderboard.read(room)
    assert "chen" in board.ungraded and "chen" not in {one.student for one in board.entries}


def test_a_damaged_result_and_one_of_an_older_grader_count_as_none(room):
    folder = classroom.private(room) / "results"
    (folder / f"{tasks.key_of(room, CHAPTER, 'adaline')}.json").write_text("{")
    assert "adaline" in leaderboard.read(room).ungraded
    record = json.loads(Result("08", "s", {"a": Item(1.0, 1.0)}).to_json())
    del record["items"]["a"]["measured"]
    assert Result.from_json(json.dumps(record)).items["a"].measured == {}


def test_a_class_in_which_nobody_handed_in_has_a_page_too(empty):
    done = command("--class", empty)
    assert done.exit_code == 0 and "0 adapters" in done.output
    assert "No adapter has been graded yet" in (empty / "leaderboard.html").read_text("utf-8")


def test_one_adapter_and_none_with_a_plan(empty, tmp_path):
    one = leaderboard.Entry("a", "a", 1000, 0.5)
    text = leaderboard.page(leaderboard.Board((one,), (), ()), "x")
    page = Page(text)
    assert len(page.rows) == 2 and sum(tag == "img" for tag, _ in page.tags) == 2
    assert "1 adapter as a point, with its row; on the Pareto front: row 1." in text
    assert "0 adapters as points, with their rows." in text


def test_who_is_who_shows_ids_in_full(empty, tmp_path):
    root = shutil.copytree(empty, tmp_path / "class")
    students = [f"a-department-of-a-university-and-more-{number}" for number in (1, 2)]
    for student in students:
        hand_in(root, student)
        keep(root, student, CLASS["chen"])
    said = command("--class", root).output
    assert "…" not in said and "2 adapters" in said
    header = next(line for line in said.splitlines() if "on the page" in line)
    column = slice(header.index("student"), header.index("on the page"))
    shown = "".join(line[column].strip() for line in said.splitlines())
    assert all(student in shown for student in students)


# --- names ----------------------------------------------------------------------------------------


def test_names_are_pseudonyms_that_stay_and_that_another_class_gives_otherwise(room, empty):
    command("--class", room)
    first = (room / "leaderboard.html").read_text("utf-8")
    for student in CLASS:
        assert student not in first
    shown = {row[2] for row in Page(first).rows[1:]}
    assert shown == {classroom.pseudonym(room, one) for one, found in CLASS.items() if found}
    assert all(re.fullmatch(r"[a-z]+ [a-z]+ \d{4}", name) for name in shown)
    command("--class", room)
    assert (room / "leaderboard.html").read_text("utf-8") == first, "the same bytes again"
    other = classroom.pseudonym(room, "adaline")
    (classroom.private(room) / "secret").write_text("ab" * 32)
    assert classroom.pseudonym(room, "adaline") != other


def test_pseudonyms_rarely_meet(room):
    names = {classroom.pseudonym(room, f"student {number}") for number in range(300)}
    assert len(names) >= 299
    assert len(set(classroom.ADJECTIVES)) == len(classroom.ADJECTIVES) == 32
    assert len(set(classroom.ANIMALS)) == len(classroom.ANIMALS) == 32


def test_real_names_are_shown_as_text_whatever_they_are(room):
    done = command("--class", room, "--names")
    assert "REAL NAMES" in done.output
    text = (room / "leaderboard.html").read_text("utf-8")
    page = Page(text)
    assert {row[2] for row in page.rows[1:]} == {one for one, found in CLASS.items() if found}
    assert HOSTILE not in text and "&lt;img src=x" in text
    assert [found for tag, found in page.tags if tag == "img" and "onerror" in found] == []


# --- what it can do -------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [False, True])
def test_the_page_runs_nothing_and_asks_no_network(room, names):
    command("--class", room, *(["--names"] if names else []))
    text = (room / "leaderboard.html").read_text("utf-8")
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "link", "form", "base", "svg", "a"}
    assert not [one for _, found in page.tags for one in found if one.startswith("on")]
    policy = next(found for tag, found in page.tags
                  if found.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    pictures = [found["src"] for tag, found in page.tags if tag == "img"]
    assert len(pictures) == 2 and all(found["alt"] for tag, found in page.tags if tag == "img")
    for picture in pictures:
        svg = base64.b64decode(picture.removeprefix("data:image/svg+xml;base64,")).decode()
        assert "<script" not in svg and HOSTILE not in svg and "onerror" not in svg
    assert "http" not in re.sub(r'src="data:[^"]+"|http-equiv', "", text)


def test_outside_a_class_folder_and_without_a_place_for_the_page(tmp_path, empty):
    said = command("--class", tmp_path)
    assert said.exit_code == 1 and "autograder init" in said.output
    said = command("--class", empty, "--out", tmp_path / "no" / "page.html")
    assert said.exit_code == 1 and "cannot be written" in said.output
    assert command("--class", empty, "--out", tmp_path / "page.html").exit_code == 0
    assert (tmp_path / "page.html").exists()


# --- the front ------------------------------------------------------------------------------------


def test_the_front_is_who_nobody_beats():
    assert front([]) == []
    assert front([(1, 0.5)]) == [0]
    assert front([(2, 0.9), (1, 0.5), (1.5, 0.5), (3, 0.9)]) == [1, 0]
    assert front([(1, 0.5), (1, 0.5)]) == [0, 1], "equals do not beat each other"
    assert front([(1, 0.5), (1, 0.6)]) == [1]
    assert front([(5, 0.0)]) == [0]


def test_the_figure_draws_all_points_and_one_place_once():
    points = [Point(1e5, 0.5, "1"), Point(1e5, 0.5, "2"), Point(1e6, 0.4, "3"),
              Point(3e5, 0.9, "$x", mine=True)]  # fmt: skip
    figure = accuracy_by_cost(points, "trainable", limit=BUDGET.trainable, title="x")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert sorted(text.get_text() for text in axes.texts) == ["$x", "1 · 2", "3"]
    assert sum(len(one.get_offsets()) for one in axes.collections) == len(points) + 1
    figure.canvas.draw()
    assert accuracy_by_cost([], "peak_gib").axes[0].get_xscale() == "linear"


def test_a_label_does_not_cross_the_budgets_line():
    cheap, planned = Point(305_280, 0.5, "3"), Point(610_560, 0.95, "yours", mine=True)
    dear = Point(2_442_240, 0.9, "chapter 05")
    figure = accuracy_by_cost([cheap, planned, dear], "trainable", limit=BUDGET.trainable)
    figure.canvas.draw()
    (axes,) = figure.axes
    edge = axes.transData.transform((BUDGET.trainable, 0))[0]
    for text in axes.texts:
        box = text.get_window_extent()
        assert not box.x0 < edge < box.x1, text.get_text()
