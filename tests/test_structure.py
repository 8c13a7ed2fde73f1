"""Chapters keep the course's countable rules of style."""

from __future__ import annotations

import re
import statistics

MAX_CELLS, MAX_WORDS, MEDIAN_LINES = 60, 2000, 10
QUIET = re.compile(r"^> Difficulty [1-5]/5 · about (\d+) minutes? · (\d+(?:\.\d+)?) points?$",
                   re.MULTILINE)
EXERCISE = re.compile(r"^### Exercise (\d+\.\d+) — \w.+$", re.MULTILINE)


def cells(notebook, kind):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def open_text(notebook) -> str:
    """What a reader reads through: no code blocks, no addresses, no help that is folded away."""
    text = "\n".join(cell.source for cell in cells(notebook, "markdown"))
    text = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", text)


def graded(notebook) -> dict[str, float]:
    """grade_id of the exercise → points, checks and hand-graded cells alike."""
    return {
        cell.metadata.nbgrader.grade_id.removesuffix("-check"): float(cell.metadata.nbgrader.points)
        for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade")
    }


def test_short_enough_and_half_of_it_prose(chapter):
    notebook = chapter.release
    assert len(notebook.cells) <= MAX_CELLS
    assert len(cells(notebook, "markdown")) * 2 >= len(notebook.cells)
    words = len(re.findall(r"\w[\w'’.,%-]*", open_text(notebook)))
    assert words <= MAX_WORDS, f"{words} words"


def test_code_cells_are_small(chapter):
    lines = [len(cell.source.splitlines()) for cell in cells(chapter.source, "code")]
    assert statistics.median(lines) <= MEDIAN_LINES


def test_one_title_claim_goals_minutes_points_and_hardware_on_the_first_screen(chapter):
    every = "\n".join(cell.source for cell in cells(chapter.release, "markdown"))
    assert len(re.findall(r"^# ", re.sub(r"```.*?```", "", every, flags=re.DOTALL), re.M)) == 1
    first = []
    for cell in chapter.release.cells:
        if cell.cell_type != "markdown":
            break
        first.append(cell.source)
    screen = "\n".join(first)
    assert screen.startswith("# ")
    assert "By the end you will have shown that" in screen
    assert 4 <= len(re.findall(r"^[-*] ", screen, re.MULTILINE)) <= 7
    assert re.search(r"\d+ minutes", screen) and re.search(r"\d+ points", screen)
    assert re.search(r"GPU|CPU|computer|laptop", screen)


def test_points_agree(chapter):
    """The quiet block's points are the check's, and all of them the chapter's."""
    points = graded(chapter.release)
    stated = float(re.search(r"(\d+) points", chapter.release.cells[0].source).group(1))
    assert sum(points.values()) == stated
    said: dict[str, float] = {}
    current = None
    for cell in chapter.release.cells:
        if cell.cell_type == "markdown" and (found := EXERCISE.findall(cell.source)):
            current = found[-1]
            quiet = QUIET.search(cell.source)
            assert quiet, f"exercise {current} has no line 'Difficulty …' under its heading"
            said[current] = float(quiet.group(2))
        if cell.metadata.get("nbgrader", {}).get("grade"):
            assert current, f"{cell.id} is graded, and no exercise heading is above it"
            said[current] -= float(cell.metadata.nbgrader.points)
    assert said and not any(said.values()), f"points said minus points given: {said}"


def test_exercises_are_numbered_in_order(chapter):
    numbers = EXERCISE.findall("\n".join(c.source for c in cells(chapter.release, "markdown")))
    assert numbers == [f"{int(chapter.number)}.{i}" for i in range(1, len(numbers) + 1)]


def test_every_exercise_has_a_check_and_help_and_a_docstring(chapter):
    nbgrader = [c.metadata.nbgrader for c in chapter.source.cells if "nbgrader" in c.metadata]
    checks = {m.grade_id for m in nbgrader if m.grade and not m.solution}
    for cell in chapter.source.cells:
        meta = cell.metadata.get("nbgrader", {})
        if meta.get("solution") and not meta.get("grade"):
            assert f"{meta['grade_id']}-check" in checks, f"{meta['grade_id']} has no check"
            outside = re.sub(r"### BEGIN SOLUTION.*?### END SOLUTION", "", cell.source, flags=re.S)
            if "def " in outside:
                assert '"""' in outside, f"{meta['grade_id']}: a stub needs a docstring"
    assert len(re.findall(r"^# %% \[markdown\].*\bhelp=", chapter.text, re.M)) == sum(
        1 for m in nbgrader if m.solution and not m.grade)


def test_sections_are_numbered_and_end_in_a_box(chapter):
    sections: list[list[str]] = []
    for cell in cells(chapter.release, "markdown"):
        for line in cell.source.splitlines():
            if line.startswith("## "):
                sections.append([line])
            elif sections and line.startswith("> ") and "Difficulty" not in line:
                sections[-1].append(line)
    numbered = [s for s in sections if re.match(r"## \d+\. ", s[0])]
    assert [int(re.match(r"## (\d+)", s[0]).group(1)) for s in numbered] == list(
        range(1, len(numbered) + 1))
    assert [s[0] for s in numbered if len(s) == 1] == []


def test_the_set_up_cell_comes_first_and_the_parameters_right_after_it(chapter):
    code = cells(chapter.release, "code")
    assert f'notebook.start("{chapter.number}")' in code[0].source
    assert "This kernel is not the course's" in code[0].source
    assert "parameters" in code[1].metadata.get("tags", [])


def test_every_drawn_figure_has_alt_text_under_it(chapter):
    """By the source; test_grading looks at the figures that really appear."""
    following = dict(zip([c.id for c in chapter.release.cells], chapter.release.cells[1:]))
    for cell in cells(chapter.release, "code"):
        if "plt.show(" in cell.source:
            assert following[cell.id].source.lstrip().startswith("*Alt text:"), cell.source


def test_it_ends_with_what_was_seen_and_used_and_three_to_six_links(chapter):
    markdown = cells(chapter.release, "markdown")
    end = "\n".join(cell.source for cell in markdown[-4:])
    assert "In this chapter you have" in end
    assert re.search(r"\bseen\b", end) and re.search(r"\bused\b", end)
    assert 3 <= len(re.findall(r"\]\(https?://", end)) <= 6


def test_cells_end_without_a_stray_value_in_checks(chapter):
    """nbgrader reads a value that a check cell shows as a score."""
    for cell in cells(chapter.source, "code"):
        meta = cell.metadata.get("nbgrader", {})
        if meta.get("grade") and not meta.get("solution"):
            assert cell.source.startswith("check."), cell.source
