"""Every hostile notebook through the real engine, in one warm sandbox, an honest one after each."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import secrets
import tempfile
import time

import hostile
import pytest
from below import below
from hostile import ATTACKS, CANARY, HONEST, HONEST_POINTS

from autograder.checks import Personal, StudentError, checks_of
from autograder.grading import engine, kernel
from autograder.grading.plan import cells_to_run
from autograder.grading.repair import repair
from autograder.sandbox.warm import Limits

MB = 2**20
SMALL = Limits(wall_seconds=25, cpu_seconds=20, memory_bytes=1000 * MB, disk_bytes=16 * MB,
               processes=64)
BY_HAND = {"weight_bytes-check", "training_state_bytes-check", "lora_state_bytes-check",
           "qlora_weight_bytes-check", "table_settings-check", "cheapest_fit-check"}


@pytest.fixture
def impatient(monkeypatch):
    """Hanging costs seconds, not minutes, while this is set."""

    def set_to(call: float, cell: float):
        monkeypatch.setattr(kernel, "CALL_SECONDS", call)
        monkeypatch.setattr(engine, "CELL_SECONDS", cell)

    yield set_to


@pytest.fixture
def proofs(monkeypatch):
    """What the attacked process says of itself when its grading ends: text of each proof."""
    said: list[str] = []
    wanted: list[str] = []
    close = kernel.Kernel.close

    def closing(self):
        if wanted:
            try:
                content = self._request("", {"proof": wanted[0]}, 4)
                said.append(str(content["user_expressions"]["proof"]))
            except (StudentError, LookupError) as error:
                said.append(repr(error))
        close(self)

    monkeypatch.setattr(kernel.Kernel, "close", closing)
    return wanted, said


def word() -> str:
    return CANARY + secrets.token_hex(16)


def graded(notebook, chapter, sandbox, limits=SMALL):
    """The result, with secrets that nobody inside may find."""
    return engine.grade(
        notebook, "01", word(), source=chapter.source, sandbox=sandbox, limits=limits,
        personal=Personal(secret=word(), student=word()))


def solved(chapter):
    """The solution, with a text that must not be found by those who come after."""
    made = chapter.source.copy()
    for cell in made.cells:
        if cell.cell_type == "code" and "def weight_bytes" in cell.source:
            cell.source += f"\nmine = '{word()}'\n"
    return made


def told(result) -> str:
    return "\n".join([*result.notes, *(line for item in result.items.values()
                                       for line in item.messages)])


@pytest.fixture(scope="module")
def baseline(sandbox, chapter):
    """The sandbox's own processes, after a first grading."""
    result = graded(solved(chapter), chapter, sandbox)
    assert result.score == 20, told(result)
    assert set(result.items) >= BY_HAND
    return settled(sandbox, 0)


def ours() -> list[str]:
    """What lies among the temporary files, without what torch keeps there."""
    return [name for name in os.listdir(tempfile.gettempdir()) if "inductor" not in name]


def settled(sandbox, most: int) -> int:
    until = time.monotonic() + 5
    while len(below(sandbox)) > (most or 2) and time.monotonic() < until:
        time.sleep(0.02)
    return len(below(sandbox))


def test_each_attack_has_a_name_and_a_way_to_see_it_act():
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert [attack.name for attack in ATTACKS if not (attack.proof or attack.said)] == []


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_earns_nothing_and_harms_nobody(
    attack, sandbox, chapter, canaries, baseline, proofs, impatient
):
    doors = f"PORTS, ABSTRACT = [{canaries.port}], {canaries.abstract!r}\n"
    attack = dataclasses.replace(attack, code=doors + attack.code)
    notebook = hostile.notebook(chapter.release, chapter.source, attack)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    wanted, said = proofs
    wanted.extend([attack.proof] if attack.proof else [])
    if "too long" in attack.said:
        impatient(2, 3)
    result = graded(notebook, chapter, sandbox)
    wanted.clear()
    impatient(20, 60)
    # However it behaves, it does not hold up the batch, nor fill the grader's memory.
    assert time.monotonic() - began < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 700 * 1024

    # No more than the honest part, and no less unless it ruined its own process.
    scores = {name: item.score for name, item in result.items.items() if item.score}
    assert set(scores) <= {f"{HONEST}-check"}, told(result)
    if not attack.spoils:
        assert result.score == HONEST_POINTS, told(result)
    assert 0 <= result.score <= HONEST_POINTS
    assert "<script>" not in told(result)
    assert all(part not in told(result) for part in ("full marks", CANARY))

    # It did act.
    acted = attack.proof and any("'True'" in one for one in said)
    assert acted or attack.said and re.search(attack.said, told(result)), (said, told(result))

    # Nothing is left, nothing was touched, and the next one gets what is due.
    assert settled(sandbox, baseline) == baseline
    assert list(sandbox._exchange.iterdir()) == []
    assert ours() == [sandbox._exchange.name]
    canaries.assert_untouched()
    assert sandbox.alive
    honest = graded(solved(chapter), chapter, sandbox)
    assert honest.score == 20, told(honest)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_no_attack_is_left_out_by_the_planner(attack, chapter):
    notebook = hostile.notebook(chapter.release, chapter.source, attack)
    repaired = repair(notebook, chapter.source)
    planned = cells_to_run(repaired, chapter.source, set(checks_of("01")))
    ran = [repaired.notebook.cells[index].source for index in planned]
    assert any(attack.code in code for code in ran) == ("too much code" not in attack.said)
