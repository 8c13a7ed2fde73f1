"""Runs that the course measured on a GPU, to hold a prediction against.

`make bench-gpu` measured them; `recorded/gpu/` has one JSON line a run, with device and versions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from loralab.memory.result import GB, Estimate
from loralab.paths import RECORDED

FOLDER = RECORDED / "gpu"
PARTS = ("table", "rank", "predictions")
# How far apart two runs are: a number counts by how often it has to be doubled, anything else one
# way or the other.
DOUBLED = {"tokens": 1.0, "rank": 0.3}
OTHER = {"checkpointing": 2.0, "dtype": 2.0, "attention": 1.0, "loss": 0.7, "optimizer": 0.7,
         "autocast": 0.7, "targets": 0.6, "kbit_prep": 0.5, "adapter_dtype": 0.3,
         "double_quant": 0.2, "dropout": 0.2}  # fmt: skip


@dataclass(frozen=True)
class GpuRun:
    """One measured run. `allocated`, `reserved`: bytes at the peak of the steps after the first.
    `settings`: in the words of `loralab.memory.settings`. `differs`: setting -> (this run's,
    the one that it is held against)."""

    settings: Mapping[str, Any]
    allocated: int
    reserved: int
    simulated: int
    formula: int
    gpu: str
    differs: Mapping[str, tuple[Any, Any]]

    def __str__(self) -> str:
        at = f"{self.settings['model']}, {self.settings['method']}"
        said = (f"measured on an {self.gpu}: {self.allocated / GB:.2f} GB allocated, "
                f"{self.reserved / GB:.2f} reserved ({at}; predicted {self.formula / GB:.2f})")
        if not self.differs:
            return said
        return said + "; differs in " + ", ".join(
            f"{name} {_said(theirs)} (here {_said(here)})"
            for name, (theirs, here) in self.differs.items())


def gpu_runs() -> list[GpuRun]:
    """Every measured run whose memory is predicted too."""
    return [_run(record, {}) for record in _records()]


def gpu_rows() -> list[dict[str, Any]]:
    """The same runs in the form of `memory.measurements()`."""
    return [{"group": "this course", "method": run.settings["method"], "memory": "allocated",
             "bytes": run.allocated, "simulated": run.simulated, "formula": run.formula}
            for run in gpu_runs()]


def nearest(predicted: Estimate) -> GpuRun | None:
    """The measured run of the same method whose settings are nearest to a prediction's.

    One of the same model if there is one, otherwise of the nearest size. None where no run of the
    method was measured.
    """
    here = predicted.settings
    some = [r for r in _records() if r["settings"]["method"] == here["method"]]
    same = [r for r in some if r["settings"]["model"] == here["model"]]
    if not some:
        return None

    def apart(record: Mapping[str, Any]) -> float:
        held = sum(record["predicted"]["held"].values())
        size = 0 if same else abs(math.log2(held / predicted.static))
        return distance(record["settings"], here) + 4 * size

    found = min(same or some, key=apart)
    names = ["model", "batch", "seq", "rank", *OTHER]
    theirs = found["settings"]
    return _run(found, {name: (theirs[name], here[name]) for name in names
                        if name in theirs and name in here and theirs[name] != here[name]})


def trained_on_gpu(name: str) -> str:
    """What the run of that name in `recorded_runs.GRID` took on a GPU, or that it was not run."""
    for line in (FOLDER / "training.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        if record["given"].get("run") == name and record["status"] == "ok":
            found = record["measured"]
            return (f"measured on an {record['environment']['gpu']}: "
                    f"{found['peak_bytes'] / 1e6:.0f} MB at the peak of a step, "
                    f"exact match {found['accuracy']:.2f}, {found['seconds']:.0f} s")
    return "not measured on a GPU yet"


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """How far apart two settings are, by `DOUBLED` and `OTHER`."""
    found = sum(weight for name, weight in OTHER.items() if one.get(name) != other.get(name))
    for name, weight in DOUBLED.items():
        a, b = (s["batch"] * s["seq"] if name == "tokens" else s.get(name, 1) for s in (one, other))
        found += weight * abs(math.log2(a / b))
    return found


@lru_cache(maxsize=1)
def _records() -> list[dict[str, Any]]:
    lines = [line for part in PARTS
             for line in (FOLDER / f"{part}.jsonl").read_text("utf-8").splitlines()]
    records = [json.loads(line) for line in lines if line]
    return [r for r in records if r["status"] == "ok" and "predicted" in r]


def _run(record: Mapping[str, Any], differs: Mapping[str, tuple[Any, Any]]) -> GpuRun:
    measured, predicted = record["measured"], record["predicted"]
    return GpuRun(
        settings=record["settings"],
        allocated=measured["peak_allocated"],
        reserved=measured["peak_reserved"],
        simulated=predicted["simulation"],
        formula=predicted["formula"],
        gpu=record["environment"]["gpu"],
        differs=differs,
    )


def _said(value: Any) -> str:
    return f"{value:,}" if type(value) is int else str(value)
