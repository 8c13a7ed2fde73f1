"""Self-check questions, shown where a chapter asks for them. They earn no points.

The questions of chapter NN are in `loralab/quizzes/chNN.json`: a name for each, and jupyterquiz's
own question format, in plain text and HTML, with feedback for every option. They live in the package so that a notebook's
file never holds an answer; jupyterquiz embeds them, script and all, in the cell's output, so that
they work without a network.
"""

from __future__ import annotations

import json
import re

import jupyterquiz
from IPython.display import display
from IPython.utils.capture import capture_output

from . import paths

# White text on each of these has a contrast of at least 4.5 : 1; the two outcomes differ in
# lightness as well as in hue.
COLOURS = {
    "--jq-multiple-choice-bg": "#2b4a6f",
    "--jq-many-choice-bg": "#2b4a6f",
    "--jq-mc-button-bg": "#fafafa",
    "--jq-mc-button-border": "#c4ccd6",
    "--jq-correct-color": "#00664b",
    "--jq-incorrect-color": "#b04a00",
}

SCRIPT = "application/javascript"
# Where jupyterquiz sees JupyterLab's MathJax it replaces it by one that it fetches from a CDN.
# Here it sees none: our questions are plain text and HTML, without formulas.
OFFLINE = "(function () {\nvar MathJax;\n%s\n})();"


def questions(chapter: str) -> dict[str, dict]:
    """The questions of a chapter ("01") by name, in the order in which they are asked."""
    return json.loads((paths.PACKAGE / "quizzes" / f"ch{chapter}.json").read_text("utf-8"))


def show(chapter: str, *names: str) -> None:
    """Show a chapter's questions: all of them, or those named, in the order given.

    Raises ValueError for a name that the chapter does not have.
    """
    available = questions(chapter)
    unknown = [name for name in names if name not in available]
    if unknown:
        raise ValueError(f"chapter {chapter} has no question {unknown}; it has {list(available)}")
    asked = [available[name] for name in names or available]
    with capture_output() as captured:
        jupyterquiz.display_quiz(
            asked,
            # The file's order is the one whose correct positions are balanced.
            shuffle_answers=False,
            colors=COLOURS,
            max_width=800,
        )
    for output in captured.outputs:
        data = dict(output.data)
        if "text/html" in data:
            # jupyterquiz leaves its <div> open, which swallows the rest of an exported page.
            data |= {"text/html": data["text/html"] + "</div>", "text/plain": as_text(asked)}
        if SCRIPT in data:
            data[SCRIPT] = OFFLINE % data[SCRIPT]
        display(data, raw=True)


def as_text(asked: list[dict]) -> str:
    """The questions and their options, for readers that run no JavaScript."""
    text = "\n\n".join(
        "\n".join([question["question"], *(f"  ( ) {a['answer']}" for a in question["answers"])])
        for question in asked
    )
    return re.sub(r"</?\w+>", "", text)
