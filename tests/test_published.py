"""Predictions against what others have measured; nothing in the predictions was fitted to these."""

from __future__ import annotations

import json
import re
import statistics

import pytest

from loralab import memory
from loralab.memory import compare
from loralab.memory.published import MEASURED, left_out, versions
from loralab.paths import PROJECT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

ROWS = memory.measurements()
PREDICTABLE = [row for row in ROWS if row["settings"]]
RUNS = memory.fully_stated_runs()
PEFT = [row for row in PREDICTABLE if row["group"] == "PEFT"]


def named(row):
    return row["id"]


# --- the stored predictions ----------------------------------------------------------------------


@pytest.mark.parametrize("row", PREDICTABLE, ids=named)
def test_the_formula_gives_what_is_stored(row):
    settings = row["settings"]
    assert memory.estimate(row["model"], row["method"], **settings).total == row["formula"]
    if "at_least" in row:
        low = memory.estimate(row["model"], row["method"], **settings | row["at_least"])
        assert low.total == row["formula_at_least"]


@pytest.mark.parametrize("run", RUNS, ids=named)
def test_fully_stated_runs_are_predicted_within_one_per_cent(run):
    """RTX 4080, allocated memory, every setting known: simulation and formula."""
    again = memory.simulate(run["model"], run["method"], **run["settings"]).total
    assert again == pytest.approx(run["simulated"], rel=0.001)
    assert again == pytest.approx(run["bytes"], rel=0.01)
    assert run["predicted"].total == run["formula"] == pytest.approx(run["bytes"], rel=0.01)
    assert memory.on_card(again) > run["reserved_bytes"]


@pytest.mark.parametrize("row", PEFT, ids=named)
def test_reserved_memory_of_pefts_runs_is_in_the_stated_range(row):
    """Their longest batch is not stated: from four of the mean length to four of the cap."""
    low, high = memory.reserved_range(row)
    assert low < row["bytes"] < high


def test_one_length_puts_all_of_pefts_runs_in_the_range():
    """They saw the same batches, so one length has to do for all; 640 tokens is the middle."""
    assert len(PEFT) == 4
    for row in PEFT:
        found = memory.simulate(row["model"], row["method"], **row["settings"] | {"seq": 640})
        low, high = found.reserved_range
        assert low < row["bytes"] < high, row["id"]


def test_the_versions_that_predicted_are_recorded():
    assert set(versions()) == set(compare.LIBRARIES) and all(versions().values())


# --- the rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_every_row_has_its_source_and_its_reason(row):
    assert row["source"] and row["said"] and row["group"]
    assert row["memory"] in ("allocated", "reserved", "device", "not stated")
    for name, taken in row.get("assumed", {}).items():
        assert row["settings"][name] == taken
    if row["settings"] is None:
        assert row["simulated"] is row["formula"] is None
        assert row["reason"]
    elif max(abs(compare.error(row, by)) for by in ("formula", "simulated")) > 0.05:
        assert row["reason"]


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_bytes_are_the_reported_figure(row):
    number, unit = row["reported"].split()[-2:] if not row.get("out_of_memory") else ("80", "GB")
    scale = {"GB": memory.GB, "GiB": memory.GiB, "bytes": 1}[unit]
    assert row["bytes"] == pytest.approx(float(number) * scale, rel=1e-6)


def test_every_collected_figure_is_a_row_or_counted():
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    collected = [row for row in ROWS if not row.get("added")]
    assert len(collected) + sum(left_out().values()) == 203


def test_the_chapters_rows():
    rows = memory.published()
    assert [row["id"] for row in rows] == [
        "F1", "F2", "F3", "L1", "L2", "L3", "Q1", "Q2", "Q3", "Q4"]  # fmt: skip
    assert {row["method"] for row in rows} == set(memory.METHODS)
    for row in rows:
        assert row["label"]
        assert (row["predicted"] is None) == (row["settings"] is None)


def test_the_rows_are_one_a_line():
    text = MEASURED.read_text("utf-8")
    assert text.count("\n  {") == len(json.loads(text)["rows"])


# --- what texts say of them ----------------------------------------------------------------------


def test_what_the_text_says_about_reserved_memory():
    ratios = [run["reserved_gib"] / run["allocated_gib"] for run in RUNS]
    low, high, mean = min(ratios), max(ratios), statistics.mean(ratios)
    assert memory.result.RESERVED == (round(low, 2), round(high, 2))
    said = " ".join(memory.on_card.__doc__.split())
    assert f"{low:.2f} to {high:.2f} times as much, {mean:.2f} on average" in said
    assert len(RUNS) == 15 and "fifteen runs" in said


def test_what_the_readme_says():
    text = (PROJECT / "README.md").read_text("utf-8")
    section = text.split("### How good are the predictions?")[1].split("\n## ")[0]
    for name, by in (("simulation", "simulated"), ("formula", "formula")):
        mean, worst = compare.spread(RUNS, by)
        assert f"| {name} | {mean:.2%} | {worst:.2%} |".replace("%", " %") in section
    ours = f"{len(PREDICTABLE)} published runs and {len(memory.gpu_runs())} of our own"
    assert ours in section and f"All {len(ROWS)} rows" in section
    assert f"The other {len(PREDICTABLE) - len(RUNS)} are" in section
    lora, four_bit = (
        [row for row in PREDICTABLE if (row["group"], row["method"]) == ("LitGPT", method)]
        for method in ("lora", "qlora")
    )
    worst = compare.spread(lora, "simulated")[1]
    assert f"{len(lora)} LoRA runs are predicted within {100 * worst:.1f} %" in section
    errors = [-100 * compare.error(row) for row in four_bit]
    spread = f"{min(errors):.0f} to {max(errors):.0f} %"
    assert f"{len(four_bit)} runs in 4 bits the prediction is {spread} too low" in section
    assert len(section.splitlines()) < 36
    for link in re.findall(r"\]\(([^)]+)\)", section):
        assert (PROJECT / link).is_file()


def test_the_table_is_in_step():
    again = "run: python -m loralab.memory.compare --stored"
    assert compare.TABLE.read_text("utf-8") == compare.table(), again


def test_the_figure_is_drawn(tmp_path):
    compare.draw(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 30_000
    assert compare.FIGURE.is_file()
