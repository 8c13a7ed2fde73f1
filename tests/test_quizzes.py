"""The self-check questions: every option explained, no position or length that gives it away."""

from __future__ import annotations

import json
import re
from collections import Counter

import nbformat
import pytest
from nbclient import NotebookClient

from loralab import paths, quiz

FILES = sorted((paths.PACKAGE / "quizzes").glob("ch*.json"))
CHAPTERS = [path.stem.removeprefix("ch") for path in FILES]


def correct(question: dict) -> list[int]:
    return [i for i, answer in enumerate(question["answers"]) if answer["correct"]]


def visible(text: str) -> str:
    return re.sub(r"<[^>]+>", "", text)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_question_is_complete(chapter):
    questions = quiz.questions(chapter)
    assert len(questions) >= 3
    for name, question in questions.items():
        assert question["question"].strip() and question["type"] == "multiple_choice", name
        assert len(question["answers"]) >= 3, name
        assert len(correct(question)) == 1, name
        texts = [answer["answer"] for answer in question["answers"]]
        assert len(set(texts)) == len(texts), name
        assert "$" not in json.dumps(question), f"{name}: formulas are not typeset offline"
        assert "`" not in json.dumps(question), f"{name}: Markdown is not; write <code>"
        for answer in question["answers"]:
            assert len(answer["feedback"]) > 20, (name, answer["answer"])
        feedback = [answer["feedback"] for answer in question["answers"]]
        assert len(set(feedback)) == len(feedback), name


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_correct_positions_are_balanced(chapter):
    """Over a chapter no position is right more often than its share, rounded up."""
    questions = quiz.questions(chapter).values()
    options = min(len(question["answers"]) for question in questions)
    counts = Counter(correct(question)[0] for question in questions)
    assert max(counts.values()) <= -(-len(questions) // options), counts


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_longest_option_is_not_the_right_one_by_habit(chapter):
    questions = list(quiz.questions(chapter).values())
    longest = 0
    for question in questions:
        lengths = [len(visible(answer["answer"])) for answer in question["answers"]]
        right = lengths[correct(question)[0]]
        longest += right == max(lengths) and lengths.count(right) == 1
    assert longest <= len(questions) / 2


def test_every_chapter_that_shows_a_quiz_has_one(chapter):
    shown = re.findall(r'quiz\.show\("(\d\d)"((?:,\s*"\w+")*)', chapter.text)
    assert shown, "a chapter has self-check questions"
    named: set[str] = set()
    for number, names in shown:
        assert number == chapter.number
        found = set(re.findall(r'"(\w+)"', names)) or set(quiz.questions(number))
        assert found <= set(quiz.questions(number))
        named |= found
    assert named == set(quiz.questions(chapter.number)), "a question that is never shown"


def test_an_unknown_question_is_named():
    with pytest.raises(ValueError, match="has no question"):
        quiz.show(CHAPTERS[0], "no_such_question")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_it_shows_without_network_and_without_a_value(chapter):
    """Questions and script are in the output itself, and nothing reads as a cell's value."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(
        f"import socket\ndef no(*a, **k): raise OSError('network')\nsocket.create_connection = no\n"
        f"from loralab import quiz\nquiz.show({chapter!r})")])
    NotebookClient(book, kernel_name="python3", timeout=120).execute()
    outputs = book.cells[0].outputs
    assert [output.output_type for output in outputs] == ["display_data", "display_data"]
    html, script = outputs[0].data, outputs[1].data["application/javascript"]
    assert html["text/html"].count("<div") == html["text/html"].count("</div>")
    for question in quiz.questions(chapter).values():
        assert json.dumps(question["question"]) in script
        assert visible(question["answers"][0]["answer"]) in html["text/plain"]
    assert "</" not in html["text/plain"]
    assert not re.search(r"fetch\(|<script[^>]+src=|@import", html["text/html"])
    assert "fetch(" not in script
    assert script.startswith("(function () {\nvar MathJax;"), "else it loads MathJax from a CDN"
