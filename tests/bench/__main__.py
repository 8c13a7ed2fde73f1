"""`make bench`: seconds per submission, and the attack matrix; `--speed` or `--attacks` for one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autograder.authoring.release import BUILD
from tests.attacks import hostile
from tests.bench import attacks, report
from tests.bench import speed as clock
from tests.bench.handed_in import measurable

PLACE = BUILD / "bench"
RECORDED = Path(__file__).parent / "results"
console = Console(highlight=False)


def bench(
    speed: Annotated[bool, typer.Option("--speed", help="Only seconds per submission.")] = False,
    attack: Annotated[bool, typer.Option("--attacks", help="Only the attack matrix.")] = False,
    students: Annotated[
        int, typer.Option(min=4, help="Submissions in each run of `autograder grade`.")
    ] = 24,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions of every timing.")] = 3,
    chapter: Annotated[
        list[str] | None, typer.Option(help="Chapters to time: 01, 05.")
    ] = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="Graders to attack: ours, nbgrader, otter.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write tests/bench/results/ too.")
    ] = False,
) -> None:
    """Compare this engine with stock nbgrader, and with otter-grader under attack."""
    both = speed == attack
    right = True
    if speed or both:
        right = _speed(chapter or measurable(), students, repeat, record)
    if attack or both:
        _attacks(engine or list(report.NAMES), record)
    if not right:
        console.print("[red]Scores differ from what they have to be: see the table.[/]")
        raise typer.Exit(1)


def _speed(chapters: list[str], students: int, repeat: int, record: bool) -> bool:
    before = os.getloadavg()[0]
    turns, first = clock.measure(PLACE / "speed", chapters, students, repeat, console.print)
    clock.write(PLACE / "speed.json", turns, first)
    lines = clock.lines(turns)
    _publish("speed", "Seconds per submission", report.SPEED_HEAD,
             report.speed_rows(lines, spreads=True), report.speed_notes(turns, first), [], before,
             record, short=report.speed_rows(lines, spreads=False))
    return all(one.right for one in lines)


def _attacks(engines: list[str], record: bool) -> None:
    before = os.getloadavg()[0]
    outcomes, missing = attacks.matrix(
        PLACE / "attacks", hostile.ATTACKS, engines, console.print)
    attacks.write(PLACE / "attacks.json", outcomes, missing)
    head, rows = report.attack_rows(outcomes, missing)
    _publish("attacks", "Attacks", head, rows, report.attack_notes(missing),
             report.attack_summary(outcomes), before, record)


def _publish(
    name: str, title: str, head: list[str], rows: list[list[str]], notes: list[str],
    first: list[str], load: float, record: bool, short: list[list[str]] | None = None,
) -> None:
    """On the terminal (`short`, if given, in place of `rows`), and as Markdown."""
    command = " ".join(["make bench", *([f'ARGS="{" ".join(sys.argv[1:])}"'] if sys.argv[1:]
                                        else [])])
    measured = report.where(command, (load, os.getloadavg()[0]))
    report.show(console, title, head, short or rows, [*first, *notes, measured])
    text = report.markdown(title, first, head, rows, [*notes, measured])
    for folder in [PLACE, *([RECORDED] if record else [])]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(text, "utf-8")


if __name__ == "__main__":
    typer.run(bench)
