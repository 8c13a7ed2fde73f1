"""What was measured, as Markdown. Every part says so where a run is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from loralab import paths
from loralab.memory import GB
from tests.bench.gpu import lists

RECORDED = paths.RECORDED / "gpu"
PAGE = Path(__file__).parents[1] / "results" / "gpu.md"
MISSING = "not measured yet"
GOALS = {"simulation": 0.01, "formula": 0.05}
README = paths.PROJECT / "README.md"
BEGIN, END = "<!-- made by python -m tests.bench.gpu --record -->", "<!-- end -->"
NEAR = 0.05  # for what the simulation says of reserved memory, which has no goal
WORST = 10
LESSON = {"full, bf16": "~56 GB", "LoRA, bf16": "~16 GB", "QLoRA": "~6 GB"}
Record = dict[str, Any]


def read(part: str, folder: Path = RECORDED) -> list[Record]:
    """A part's records in the order of its list; runs that were not measured are left out."""
    file = folder / f"{part}.jsonl"
    if not file.exists():
        return []
    found = {key(record["given"]): record for record in map(json.loads, _lines(file))}
    return [found[key(given)] for given in lists.PARTS[part]() if key(given) in found]


def key(given: Any) -> str:
    return json.dumps(given, sort_keys=True)


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text("utf-8").splitlines() if line.strip()]


def page(folder: Path = RECORDED) -> str:
    """Everything, as one page."""
    parts = {name: read(name, folder) for name in lists.PARTS}
    measured = [record for records in parts.values() for record in records]
    return "\n".join([
        "# Measured on a GPU", "",
        "Made by `make bench-gpu` (parts: " + ", ".join(
            f"{name} {len(records)} of {len(lists.PARTS[name]())} runs"
            for name, records in parts.items()) + "). " + where(measured), "",
        "Models have random weights, which memory does not depend on; the parts training and "
        "speed use the embedded model. *Allocated* is `torch.cuda.max_memory_allocated` of the "
        "steps after the first; *device* is all that is taken on the GPU, the CUDA context "
        "included.", "",
        "## The lesson's table", "", *lesson_table(parts["table"]), "",
        "## Predictions", "", *prediction_lines(predicted(parts)), "",
        "## What a higher rank costs", "", *rank_table(parts["rank"]), "",
        "## Chapters 05 and 08", "", *training_table(parts["training"]), "",
        "## Speed", "", *speed_tables(parts["speed"]), "",
    ])  # fmt: skip


def where(records: Iterable[Record]) -> str:
    """The devices and versions that the records come from."""
    found = {}
    for record in records:
        env = record["environment"]
        said = [f"{name} {env[name]}" for name in
                ("torch", "transformers", "peft", "bitsandbytes", "trl") if env.get(name)]
        found[f"{env.get('gpu', env['device'])}, driver {env.get('driver')}, CUDA "
              f"{env.get('cuda')}, {', '.join(said)}"] = None
    return f"Measured on: {'; '.join(found)}." if found else f"{MISSING.capitalize()}."


def table_of(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


# --- the lesson's table --------------------------------------------------------------------------


def lesson_table(records: list[Record]) -> list[str]:
    """Each method at two lengths, with and without checkpointing: GB allocated, GB on the device,
    tokens per second."""
    found = {(lists.name_of(r["given"]), r["given"]["seq"], r["given"]["checkpointing"]): r
             for r in records}  # fmt: skip
    columns = [(seq, kept) for seq in (512, 2048) for kept in (True, False)]
    head = ["Llama-2-7B, batch 1", "the lesson", *(
        f"{seq:,} tokens{', checkpointing' if kept else ''}" for seq, kept in columns)]
    rows = [
        [name, LESSON.get(name, ""), *(_cell(found.get((name, *column))) for column in columns)]
        for name in lists.METHODS
    ]  # fmt: skip
    return [*table_of(head, rows), "",
            "Each cell: GB allocated · GB on the device · tokens per second. Rank 8 on q and v; "
            "AdamW; the logits as transformers' Trainer keeps them. A GB is 10⁹ bytes."]


def _cell(record: Record | None) -> str:
    if record is None or record["status"] != "ok":
        return record["status"] if record else MISSING
    found = record["measured"]
    return (f"{found['peak_allocated'] / GB:.1f} · {device_peak(record) / GB:.1f} · "
            f"{found['tokens_per_second']:,.0f}")


def device_peak(record: Record) -> int:
    """The most that was taken on the whole device at a stage's end, bytes."""
    return max(stage["device_used"] for stage in record["measured"]["stages"].values())


# --- predictions ---------------------------------------------------------------------------------


def predicted(parts: dict[str, list[Record]]) -> list[Record]:
    """All measured runs that were predicted too."""
    return [r for name in ("table", "rank", "predictions") for r in parts[name]
            if r["status"] == "ok" and "predicted" in r]


def error_of(record: Record, view: str) -> float | None:
    """(predicted - measured) / measured of the allocated peak, or with "reserved" of that; None
    where it is not predicted."""
    return record["predicted"]["error"].get(view)


def accuracy_table(records: list[Record]) -> list[str]:
    """How far the predictions are off, by view."""
    rows = []
    for view, goal in (GOALS | {"reserved": NEAR}).items():
        errors = sorted(abs(e) for r in records if (e := error_of(r, view)) is not None)
        rows.append([
            {"reserved": "simulation, *reserved*"}.get(view, view), str(errors.count(0.0)),
            f"{median(errors):.3%}", f"{errors[int(0.95 * (len(errors) - 1))]:.2%}",
            f"{errors[-1]:.2%}",
            f"{sum(e < goal for e in errors) / len(errors):.0%} within {goal:.0%}",
        ])  # fmt: skip
    return table_of([f"{len(records)} runs", "exact", "median error", "95 % are within", "worst",
                     ""], [[cell.replace("%", " %") for cell in row] for row in rows])


def in_readme(text: str) -> str:
    """The README with its table of predictions on a GPU as the records have it."""
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    table = accuracy_table(predicted({name: read(name) for name in lists.PARTS}))
    return "\n".join([before + BEGIN, *table, END + after])


def prediction_lines(records: list[Record]) -> list[str]:
    """How far the predictions are off, and the runs that are furthest off."""
    if not records:
        return [f"{MISSING.capitalize()}."]
    models = sorted({str(r["given"]["model"]) for r in records})
    worst = {view: sorted((r for r in records if error_of(r, view) is not None),
                          key=lambda r: -abs(error_of(r, view)))[:WORST] for view in GOALS}
    shown = [[view, f"{error_of(r, view):+.2%}", f"{r['measured']['peak_allocated'] / GB:.2f}",
              _said(r["given"])] for view in GOALS for r in worst[view]]
    return [
        f"{len(records)} runs of {', '.join(models)}: predicted against measured peak of "
        "allocated memory, and of what the allocator reserved.", "",
        *accuracy_table(records), "",
        "*Exact*: to a millionth. The goal is 95 % of the runs within 1 % for the simulation, within "
        "5 % for the formula.", "",
        "The simulation plays what a step makes and frees to a copy of PyTorch's caching allocator "
        "(`loralab/memory/allocator.py`). The allocator hands out a cached block that is up to "
        "1 MiB too large as it is, and counts the block: that is 120 MiB of a 13B model's weights "
        "alone, and most of what the formula misses where a small model keeps many tensors of a "
        "few MiB. In what order blocks come back decides how they can be joined; where the "
        "simulation is off, a GPU's order was another.", "",
        f"The {WORST} that are furthest off, of each view:", "",
        *table_of(["", "error", "GB", "settings"], shown),
    ]


def _said(given: Record) -> str:
    return ", ".join(f"{name}={'+'.join(value) if isinstance(value, list) else value}"
                     for name, value in given.items())


# --- rank, training, speed -----------------------------------------------------------------------


def rank_table(records: list[Record]) -> list[str]:
    found = {(r["given"]["method"], str(r["given"]["targets"]), r["given"]["rank"]): r
             for r in records}
    rows = []
    for method in ("lora", "qlora"):
        for targets in (["q_proj", "v_proj"], "all-linear"):
            few, many = (found.get((method, str(targets), r)) for r in (8, 64))
            if few is None or many is None:
                rows.append([f"{method}, {targets}", *[MISSING] * 4])
                continue
            small, large = (r["measured"]["peak_allocated"] for r in (few, many))
            foreseen = [r.get("predicted", {}).get("simulation") for r in (few, many)]
            extra = f"{foreseen[1] / foreseen[0] - 1:+.1%}" if all(foreseen) else MISSING
            name = "q and v" if isinstance(targets, list) else "all linear layers"
            rows.append([f"{method}, {name}", f"{small / GB:.2f}", f"{large / GB:.2f}",
                         f"{large / small - 1:+.1%}", extra])
    return [*table_of(["Llama-2-7B, 1 × 512 tokens", "rank 8, GB", "rank 64, GB", "measured",
                       "simulated"], rows)]


def training_table(records: list[Record]) -> list[str]:
    found = {r["given"].get("run") or r["given"]["chapter"]: r for r in records}
    rows = []
    for given in lists.training():
        name = given.get("run") or given["chapter"]
        record = found.get(name)
        if record is None or record["status"] != "ok":
            rows.append([name, *[record["status"] if record else MISSING] * 4])
        elif "run" in given:
            m = record["measured"]
            rows.append([name, f"{m['accuracy']:.2f}", f"{m['seconds']:.0f}",
                         f"{m['peaks']['allocated'] / 1e6:.0f}",
                         f"{m['peaks']['reserved'] / 1e6:.0f}"])
        else:
            rows.append([f"{name}, papermill", "", f"{record['measured']['seconds']:.0f}", "", ""])
    return table_of(["", "exact match", "seconds", "MB allocated", "MB reserved"], rows)


def speed_tables(records: list[Record]) -> list[str]:
    found = {key(r["given"]): r for r in records}

    def rows(wanted: str, name: Callable[[Record], str], cells: Callable[[Record], list[str]],
             width: int) -> list[list[str]]:  # fmt: skip
        made = []
        for given in lists.speed():
            if wanted in given:
                r = found.get(key(given))
                ok = r is not None and r["status"] == "ok"
                said = r["status"] if r else MISSING
                made.append([name(given), *(cells(r["measured"]) if ok else [said] * width)])
        return made

    def training_name(given: Record) -> str:
        rest = {k: v for k, v in given.items() if k not in ("train", "trainer")}
        kind = {"course": "the course's cell", "defaults": "TRL's defaults"}[given["trainer"]]
        return ", ".join([given["train"], kind, *(f"{k}={v}" for k, v in rest.items())])

    return [
        *table_of(["training, embedded model", "tokens a step", "ms a step", "tokens/s",
                   "MB allocated"],
                  rows("train", training_name, lambda m: [
                      f"{m['tokens_per_step']:,.0f}", f"{m['seconds_per_step'] * 1e3:.0f}",
                      f"{m['tokens_per_second']:,.0f}",
                      f"{m['peaks'].get('allocated', 0) / 1e6:,.0f}"], 4)), "",
        *table_of(["generation, embedded model", "tokens/s"],
                  rows("generate", lambda g: f"{g['generate']}, batch {g['batch']}",
                       lambda m: [f"{m['tokens_per_second']:,.0f}"], 1)), "",
        "Tokens are real ones, padding left out.",
    ]
