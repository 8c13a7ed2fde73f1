"""The runs behind "does a higher rank help?": chapter 05's task at several ranks and targets.

Each configuration is trained at its own best learning rate: learning rates half a decade apart are
tried with the first seed until the best has a worse neighbour on either side, then the other seeds
are trained at the best. `loralab record --sweep` trains them all (half an hour on a GPU, a day on
two CPU cores; it goes on where it stopped) and rewrites `recorded/rank_sweep.json`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from filelock import FileLock

from loralab import paths, training
from loralab.training import Run, RunConfig

RECORDS = paths.RECORDED / "rank_sweep.json"
BASE = RunConfig(method="lora", test_size=128)  # with chapter 05's steps
ATTENTION = ("q_proj", "v_proj")
SEEDS = (0, 1, 2, 3, 4)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
START = (2, 3)  # places in RATES where tuning begins
T95 = 2.776  # Student's t for a two-sided 95 % interval, four degrees of freedom
LATEST = 3  # entries of the loss's history that a learning rate is judged by

CONFIGURATIONS: dict[str, RunConfig] = {
    **{f"all linear layers, r = {r}": replace(BASE, r=r, lora_alpha=2 * r)
       for r in (1, 4, 8, 16, 64)},
    "q and v, r = 8": replace(BASE, targets=ATTENTION),
    # As many parameters as rank 8 on all linear layers.
    "q and v, r = 42": replace(BASE, targets=ATTENTION, r=42, lora_alpha=84),
}  # fmt: skip


def recorded() -> list[Run]:
    """Every recorded run, tuning included, in the order of the configurations."""
    if not RECORDS.exists():
        return []
    return [Run.from_json(record) for record in json.loads(RECORDS.read_text("utf-8"))]


def name_of(config: RunConfig) -> str:
    """The name of the configuration that a run is of, whatever its learning rate and seed."""
    plain = replace(config, learning_rate=BASE.learning_rate, seed=BASE.seed)
    return next(name for name, known in CONFIGURATIONS.items() if known == plain)


def last_loss(run: Run) -> float:
    """Nats per token over the run's last steps.

    No sentence is trained on twice, so this is a loss on sentences that the model had not seen.
    A run that diverged has an infinite one.
    """
    latest = [loss for _, loss in run.history[-LATEST:]]
    mean = sum(latest) / len(latest)
    return mean if math.isfinite(mean) else math.inf


def tuned(runs: Sequence[Run]) -> float:
    """The learning rate at which a configuration's first seed ended with the lowest loss."""
    first = [run for run in runs if run.config.seed == SEEDS[0]]
    return min(first, key=last_loss).config.learning_rate


def next_rate(runs: Sequence[Run]) -> float | None:
    """The learning rate to try next with the first seed; None once the best has both neighbours."""
    tried = {run.config.learning_rate for run in runs if run.config.seed == SEEDS[0]}
    missing = [RATES[place] for place in START if RATES[place] not in tried]
    if not missing:
        best = RATES.index(tuned(runs))
        missing = [rate for rate in RATES[max(0, best - 1) : best + 2] if rate not in tried]
    return missing[0] if missing else None


def next_run(name: str, runs: Sequence[Run]) -> RunConfig | None:
    """What is to be trained next of a configuration of which there are `runs`; None when done."""
    plain = CONFIGURATIONS[name]
    if (rate := next_rate(runs)) is not None:
        return replace(plain, learning_rate=rate)
    there = {run.config.seed for run in runs}
    for seed in SEEDS:
        if seed not in there:
            return replace(plain, learning_rate=tuned(runs), seed=seed)
    return None


def chosen() -> dict[str, list[Run]]:
    """The recorded runs of each configuration at its tuned learning rate, one for each seed.

    A configuration that is not finished is left out.
    """
    found: dict[str, list[Run]] = {}
    for run in recorded():
        found.setdefault(name_of(run.config), []).append(run)
    return {
        name: [run for run in runs if run.config.learning_rate == tuned(runs)]
        for name, runs in found.items() if next_run(name, runs) is None
    }


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of five runs (Student's t, four degrees of freedom).

    Raises ValueError for another number of runs.
    """
    if len(values) != len(SEEDS):
        raise ValueError(f"{len(values)} runs, where {len(SEEDS)} are expected")
    half = T95 * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def table(found: Mapping[str, Sequence[Run]]) -> str:
    """The configurations as aligned text: parameters trained, tuned learning rate, and for each
    seed the accuracy; the mean loss of the last steps."""
    heads = ("layers and rank", "trained", "rate", "exact match", "last loss")
    lines = ["{:25}{:>8}  {:>6}  {:30}{}".format(*heads)]
    for name, runs in found.items():
        accuracies = "  ".join(f"{run.accuracy:.2f}" for run in runs)
        loss = statistics.mean(last_loss(run) for run in runs)
        lines.append(f"{name:25}{runs[0].trainable / 1e6:6.2f} M  "
                     f"{runs[0].config.learning_rate:6g}  {accuracies:30}{loss:9.2f}")
    machines = sorted({run.machine for runs in found.values() for run in runs})
    return "\n".join([*lines, f"measured on: {'; '.join(machines)}"])


def record(names: Sequence[str] = ()) -> Iterator[tuple[str, Run]]:
    """Train what is missing of the named configurations, and write each run down at once.

    One configuration after the other: its learning rates, then its further seeds. Several
    processes may share the work, each with names of its own.
    """
    for name in names or CONFIGURATIONS:
        while (config := next_run(name, _of(name))) is not None:
            yield name, _train(config)


def _of(name: str) -> list[Run]:
    return [run for run in recorded() if name_of(run.config) == name]


def _train(config: RunConfig) -> Run:
    run = training.run(config, progress=False)
    with FileLock(str(paths.cache() / "rank_sweep.lock")):
        runs = {one.config: one for one in [*recorded(), run]}
        places = list(CONFIGURATIONS)
        ordered = sorted(runs.values(), key=lambda one: (
            places.index(name_of(one.config)), one.config.seed, one.config.learning_rate
        ))  # fmt: skip
        RECORDS.write_text(
            json.dumps([one.to_json() for one in ordered], indent=1) + "\n", "utf-8")
    return run
