"""The runs that chapters compare: which they are, and what they gave when they were recorded.

`loralab record` trains every one of them again (about an hour on two CPU cores; minutes on a GPU)
and rewrites `recorded/runs.json` and the reference adapter. A chapter shows a record with the
machine and the versions that made it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from loralab import paths, training
from loralab.training import Run, RunConfig

RUNS = paths.RECORDED / "runs.json"
REFERENCE = paths.RECORDED / "reference_adapter"

MAIN = RunConfig()  # QLoRA, rank 8 on every linear layer: what chapter 05 trains
ATTENTION = ("q_proj", "v_proj")
# Full fine-tuning moves every weight, so each may move less.
GRID: dict[str, RunConfig] = {
    "QLoRA": MAIN,
    "QLoRA, another seed": replace(MAIN, seed=1),
    "LoRA": replace(MAIN, method="lora"),
    "LoRA, another seed": replace(MAIN, method="lora", seed=1),
    "full fine-tuning": replace(MAIN, method="full", learning_rate=2e-4),
    "QLoRA, shuffled labels": replace(MAIN, shuffle_labels=True),
    "QLoRA, rank 1": replace(MAIN, r=1, lora_alpha=2),
    "QLoRA, rank 1, learning rate 1e-2": replace(MAIN, r=1, lora_alpha=2, learning_rate=1e-2),
    "QLoRA, q and v, rank 42": replace(MAIN, targets=ATTENTION, r=42, lora_alpha=84),
    "QLoRA, learning rate 2e-5": replace(MAIN, learning_rate=2e-5),
    "QLoRA, SQL": replace(MAIN, task="sql", steps=40, test_size=48),
}


def recorded() -> dict[str, Run]:
    """Every recorded run by its name in `GRID`."""
    records = json.loads(RUNS.read_text("utf-8"))
    return {
        name: Run.from_json(record, REFERENCE if name == "QLoRA" else None)
        for name, record in records.items()
    }


def runs(names: list[str], how: str = "recorded") -> dict[str, Run]:
    """The named runs: `how="recorded"` reads what is recorded, "train" trains them here.

    Either way nothing trains twice: finished runs stay in the cache.
    """
    if how == "train":
        return {name: training.run(GRID[name]) for name in names}
    found = recorded()
    return {name: found[name] for name in names}


def record(names: list[str]) -> Iterator[Run]:
    """Train the named runs and write each to the records as soon as it is finished."""
    for name in names:
        run = training.run(GRID[name], progress=False)
        records = json.loads(RUNS.read_text("utf-8")) if RUNS.exists() else {}
        records[name] = run.to_json()
        ordered = {known: records[known] for known in GRID if known in records}
        paths.RECORDED.mkdir(exist_ok=True)
        RUNS.write_text(json.dumps(ordered, indent=1) + "\n", "utf-8")
        if name == "QLoRA":
            REFERENCE.mkdir(exist_ok=True)
            for file in training.ADAPTER_FILES:
                shutil.copyfile(run.adapter / file, REFERENCE / file)
        yield run


def adapter(folder: str | Path = "../05_qlora_training/adapter") -> Path:
    """The student's own adapter in `folder`, or the course's reference adapter where there is none.

    Prints which of the two it is.
    """
    own = Path(folder)
    if all((own / name).is_file() for name in training.ADAPTER_FILES):
        print(f"Your own adapter, from {own}.")
        return own
    print(f"There is no adapter of yours in {own}: the course's reference adapter stands in.")
    return REFERENCE


def conclusions(found: dict[str, Run]) -> dict[str, bool]:
    """What the runs say about the four statements of exercise 5.7.

    `where`: at equal parameters, every run with all linear layers beats q and v alone. `default`:
    SFTConfig's default learning rate learns the task in these steps. `control`: shuffled pairs
    teach next to nothing. `quantised`: the means of LoRA and QLoRA are further apart than two
    seeds of one method, so that these rows would show a cost of quantisation.
    """
    accuracy = {name: run.accuracy for name, run in found.items()}
    lora = [accuracy["LoRA"], accuracy["LoRA, another seed"]]
    qlora = [accuracy["QLoRA"], accuracy["QLoRA, another seed"]]
    gap = abs(sum(lora) - sum(qlora)) / 2
    spread = max(max(lora) - min(lora), max(qlora) - min(qlora))
    return {
        "where": min(qlora) > accuracy["QLoRA, q and v, rank 42"],
        "default": accuracy["QLoRA, learning rate 2e-5"] > 0.05,
        "control": accuracy["QLoRA, shuffled labels"] < 0.05,
        "quantised": gap > spread,
    }


def table(found: dict[str, Run]) -> str:
    """The runs as aligned text: parameters trained, bytes held after a step, the step's peak,
    seconds of training, first and last loss, accuracy."""
    rows = [("run", "trained", "held", "peak", "training", "loss", "right")]
    for name, run in found.items():
        rows.append(
            (
                name,
                f"{run.trainable / 1e6:.2f} M",
                f"{sum(run.held_bytes.values()) / 1e6:.0f} MB",
                f"{run.peak_bytes / 1e6:.0f} MB",
                f"{run.seconds:.0f} s",
                f"{run.history[0][1]:.1f} → {run.history[-1][1]:.2f}",
                f"{run.accuracy:.2f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if i else cell.ljust(width)
                  for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    machines = sorted({run.machine for run in found.values()})
    return "\n".join([*lines, f"measured on: {'; '.join(machines)}"])
