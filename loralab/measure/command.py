"""The command `loralab measure`, also `python -m loralab.measure`, which needs no Typer."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loralab.errors import CourseError
from loralab.measure import runs

LIMIT = 1800  # seconds for a run in a process of its own


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one run or a list; JSON lines on stdout or into a file. Returns the exit status."""
    parser = parser_of()
    chosen = vars(parser.parse_args(arguments))
    own = {name: chosen.pop(name) for name in
           ("given", "runs", "out", "seconds", "limit", "in_process", "steps", "device", "predict")}
    try:
        if own["runs"] and chosen:
            raise CourseError("--runs brings its own settings.", "Leave the others away.")
        if own["runs"] and not own["out"]:
            raise CourseError("--runs needs a file for what it finds.", "Add --out FILE.")
        if own["given"] is not None:
            runs.end_with_parent()
            chosen = json.loads(own["given"])
        if not own["runs"] and "model" not in chosen:
            raise CourseError("Nothing to measure.", "Give --model, or --runs FILE --out FILE.")
        return _measure(chosen, own)
    except CourseError as error:
        print(f"{error.message}\n→ {error.remedy}", file=sys.stderr)
        return 1


def parser_of() -> argparse.ArgumentParser:
    """Settings by the names that `loralab.memory.settings` gives them, and what is of runs."""
    from loralab.memory.settings import settings

    parser = argparse.ArgumentParser(
        prog="loralab measure", argument_default=argparse.SUPPRESS, allow_abbrev=False,
        description="Train a model with random weights for a few steps, and write down as one JSON "
        "line what it took, beside what `loralab memory` predicts.",
    )  # fmt: skip
    of_step = parser.add_argument_group("settings, as in `loralab memory`")
    for name, parameter in inspect.signature(settings).parameters.items():
        flag, default = f"--{name.replace('_', '-')}", parameter.default
        if "bool" in parameter.annotation:
            of_step.add_argument(flag, action=argparse.BooleanOptionalAction)
        else:
            kind = type(default) if isinstance(default, int | float) else str
            of_step.add_argument(flag, type=kind, metavar=name.upper())
    of_run = parser.add_argument_group("runs")
    add = of_run.add_argument
    add("--steps", type=int, default=3, help="training steps, 2 or more (3)")
    add("--device", default=None, choices=("cuda", "cpu"),
        help="cuda where there is one, else cpu")
    add("--no-predict", dest="predict", action="store_false", default=True,
        help="measure only; predictions take some seconds a run")
    add("--runs", type=Path, default=None, metavar="FILE",
        help="settings as JSON lines; those that --out holds already are passed by")
    add("--out", type=Path, default=None, metavar="FILE", help="append what is found to this file")
    add("--seconds", type=float, default=None, metavar="N",
        help="begin no run that would not end within N seconds from now")
    add("--limit", type=float, default=LIMIT, metavar="N",
        help=f"end a run of --runs after N seconds ({LIMIT})")
    add("--in-process", action="store_true", default=False,
        help="measure a list in this process, one run after the other")
    add("--given", default=None, help=argparse.SUPPRESS)
    return parser


def _measure(chosen: dict[str, Any], own: dict[str, Any]) -> int:
    if own["runs"] is None:
        from loralab.measure.run import run

        record = run(chosen, steps=own["steps"], device=own["device"], predict=own["predict"])
        print(json.dumps(record))
        if own["out"]:
            runs.append(own["out"], chosen, record)
        return 0
    complete = True
    for left, record in runs.measure(
        runs.read(own["runs"]), own["out"], _one(own), seconds=own["seconds"]
    ):
        complete = record is not None
        said = line_of(record) if complete else "The time is over."
        print(f"{said} ({left} left)", file=sys.stderr, flush=True)
    return 0 if complete else 3


def _one(own: dict[str, Any]) -> Any:
    """What measures one run of a list: here, or in a process of its own."""
    if own["in_process"]:
        from loralab.measure.run import run

        return lambda given, left: run(
            given, steps=own["steps"], device=own["device"], predict=own["predict"])
    options = ["--steps", str(own["steps"])]
    options += ["--device", own["device"]] if own["device"] else []
    options += [] if own["predict"] else ["--no-predict"]
    return lambda given, left: runs.in_own_process(
        given, left, options=options, limit=own["limit"])


def line_of(record: dict[str, Any]) -> str:
    """A record in one line for a person."""
    settings = record["settings"]
    model = settings.get("model")
    model = model.get("model_type", "?") if isinstance(model, dict) else model
    said = f"{model} {settings.get('method', '')} seq={settings.get('seq')}: {record['status']}"
    if "reason" in record:
        return f"{said}: {record['reason']}"
    said += f", {record['measured']['peak_allocated'] / 1e9:.2f} GB"
    errors = record.get("predicted", {}).get("error", {})
    for view in ("formula", "simulation"):
        if errors.get(view) is not None:
            said += f", {view} {errors[view]:+.2%}"
    return said
