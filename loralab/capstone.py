"""The capstone's budget, its yardstick, and how a plan becomes a run.

A plan is a dict of settings (`SETTINGS`) and of predictions (`PREDICTIONS`). Its memory is
predicted for one and the same step on every computer, `YARDSTICK`, so that the plans of a class
can be compared, whatever each was trained on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from loralab import memory, training
from loralab.tasks.sql import Shop
from loralab.training import Run, RunConfig

MODEL = "smollm2-135m"  # the embedded model's name in `loralab.memory`
SHOP = Shop("course")  # the task: questions about its table, to SQL
SEQ = 56  # tokens: no question with its query is longer
# A step on a CPU as the course trains: fp32 beside the 4-bit layers, no checkpointing, TRL's loss.
YARDSTICK: Mapping[str, Any] = {
    "dtype": "fp32", "compute_dtype": "fp32", "seq": SEQ, "checkpointing": False, "loss": "trl",
}  # fmt: skip

SETTINGS = ("method", "r", "lora_alpha", "targets", "learning_rate", "steps", "batch_size")
PREDICTIONS = ("trainable", "peak_gib", "minutes", "accuracy")


@dataclass(frozen=True)
class Budget:
    """At most so many trained parameters, GiB of predicted peak (`YARDSTICK`), and minutes of
    training; at least this share of unseen questions right."""

    trainable: int = 650_000
    peak_gib: float = 0.5
    minutes: float = 10
    accuracy: float = 0.8


BUDGET = Budget()


def broken(run: Run) -> list[str]:
    """Which limits of the budget a run breaks: "parameters", "memory" (by the yardstick, not as
    measured), "time" (as it took where it was made)."""
    config = run.config
    peak = memory.estimate(MODEL, config.method, rank=config.r, targets=config.targets,
                           batch=config.batch_size, **YARDSTICK).total  # fmt: skip
    limits = {
        "parameters": run.trainable > BUDGET.trainable,
        "memory": peak > BUDGET.peak_gib * memory.GiB,
        "time": run.seconds > BUDGET.minutes * 60,
    }
    return [limit for limit, over in limits.items() if over]


def run_config(plan: Mapping[str, Any], seed: int = 0) -> RunConfig:
    """The run that a plan's settings describe; `seed`: its luck, in the order and the start.

    Raises KeyError for a setting that the plan lacks.
    """
    chosen = {name: plan[name] for name in SETTINGS}
    if not isinstance(chosen["targets"], str):
        chosen["targets"] = tuple(chosen["targets"])
    return RunConfig(**chosen, task="sql", task_seed=SHOP.seed, seed=seed, test_size=64)


def seconds_per_step(config: RunConfig, steps: int = 2) -> float:
    """Seconds that a step of this run takes on this computer, by training `steps` of them."""
    from loralab.quiet import quiet

    trainer = training.build_trainer(replace(config, steps=steps + 1), progress=False)
    ends: list[float] = []
    trainer.add_callback(_noting(ends))
    with quiet():
        trainer.train()
    return (ends[-1] - ends[0]) / steps  # the first step also makes what the others reuse


def _noting(ends: list[float]) -> Any:
    from transformers import TrainerCallback

    class Noting(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append(time.perf_counter())

    return Noting()
