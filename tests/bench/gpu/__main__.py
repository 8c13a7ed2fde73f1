"""`make bench-gpu`: measure the parts, or predict what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from loralab import base_model, paths
from loralab.measure import runs
from tests.bench.gpu import lists, report

OUT = paths.PROJECT / "build" / "bench" / "gpu"
MINUTES = 8


def bench(
    part: Annotated[list[str] | None, typer.Argument(help="Parts; all by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the JSON lines.")] = OUT,
    seconds: Annotated[float, typer.Option(
        help="Begin no run of a part that would not end in so many seconds.")] = MINUTES * 60,
    only: Annotated[list[str] | None, typer.Option(
        help="Runs whose settings hold this text, or another one of these.")] = None,
    predict: Annotated[bool, typer.Option(
        "--predict", help="Measure nothing: add predictions to what was measured.")] = False,
    record: Annotated[bool, typer.Option(
        "--record", help="Measure nothing: write page and README from what is recorded.")] = False,
    tiny: Annotated[str, typer.Option(
        help="For tests: this model in place of all, and the first runs of each part.")] = "",
) -> None:
    """Measure memory and speed on the GPU, one JSON line a run; goes on where it stopped."""
    out.mkdir(parents=True, exist_ok=True)
    unknown = sorted(set(part or ()) - set(lists.PARTS))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(lists.PARTS)}")
    if record:
        report.PAGE.write_text(report.page(), "utf-8")
        report.README.write_text(report.in_readme(report.README.read_text("utf-8")), "utf-8")
        raise typer.Exit()
    complete = True
    for name in part or lists.PARTS:
        file = out / f"{name}.jsonl"
        if predict:
            add_predictions(file)
            continue
        wanted = [given for given in lists.PARTS[name]()
                  if not only or any(text in json.dumps(given) for text in only)]
        if tiny:
            wanted = shrunk(wanted, tiny)
        for left, found in runs.measure(wanted, file, _one(name, tiny), seconds=seconds):
            complete = complete and found is not None
            print(f"{name}: {_said(found)} ({left} left)", flush=True)
    raise typer.Exit(0 if complete else 3)


def _one(part: str, tiny: str) -> Callable[[Mapping[str, Any], float | None], dict[str, Any]]:
    if part in ("training", "speed"):
        from tests.bench.gpu import training

        return lambda given, left: training.run(given, tiny or base_model.EMBEDDED)
    from loralab.measure.run import run

    return lambda given, left: run(given, steps=4, predict=False)


def shrunk(wanted: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """Runs that a CPU does in seconds: the given model, short texts, one run of each kind."""
    found: dict[str, dict[str, Any]] = {}
    for given in wanted:
        small = dict(given)
        if "model" in small:
            small |= {"model": model, "seq": 32, "batch": 1}
            small["optimizer"] = small.get("optimizer", "adamw").replace("paged_", "")
            small["rank"] = min(small.get("rank", 8), 8)
            if isinstance(small.get("targets"), list):
                small["targets"] = ["q_proj", "v_proj"]
        if small.get("packing"):
            small["max_length"] = 64
        if "chapter" in small:
            small["chapter"] = "00_start_here"  # the others ask for more than such a model can
        kind = str([small.get(name) for name in ("method", "int8", "run", "chapter", "train",
                                                 "generate", "trainer", "packing")])
        found.setdefault(kind, small)
    return list(found.values())


def add_predictions(file: Path) -> None:
    """Write formula and simulation, with their errors, beside every measured run that has none."""
    from loralab.measure.run import predictions, settings_of

    records = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for record in records:
        given = record["given"]
        if record["status"] != "ok" or "model" not in given or given.get("int8"):
            continue
        if "predicted" not in record:
            capability = record["environment"].get("compute_capability")
            record["predicted"] = predictions(settings_of(given), record["measured"], capability)
            print(given, record["predicted"].get("error"), flush=True)
            file.write_text("".join(json.dumps(one) + "\n" for one in records), "utf-8")


def _said(record: dict[str, Any] | None) -> str:
    if record is None:
        return "the time is over"
    measured = record.get("measured") or {}
    peak = measured.get("peak_allocated")
    said = [record["status"], record.get("reason", ""), f"{record['seconds']} s",
            f"{peak / 1e9:.2f} GB" if peak else "",
            f"{measured['tokens_per_second']} tokens/s" if "tokens_per_second" in measured else ""]
    return f"{record.get('given', record.get('settings', ''))} " + ", ".join(filter(None, said))


if __name__ == "__main__":
    typer.run(bench)
