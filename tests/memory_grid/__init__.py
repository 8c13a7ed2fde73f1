"""Formula against simulation, over a grid of settings. `results.json` holds what was simulated."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loralab import memory
from loralab.memory import simulation
from loralab.memory.allocator import CachingAllocator
from loralab.memory.settings import chosen

RESULTS = Path(__file__).with_name("results.json")
TABLE = Path(__file__).with_name("results.md")
SIZE = 280
MODELS = ["gpt2", "gpt2-large", "smollm2-135m", "tinyllama-1.1b", "llama-3.2-1b", "llama-2-7b",
          "llama-3.1-8b", "mistral-7b", "qwen2.5-0.5b", "qwen2.5-7b", "gemma-2-2b",
          "phi-3-mini-4k", "llama-2-13b"]  # fmt: skip
CHOICES: dict[str, list[Any]] = {
    "method": ["full", "lora", "qlora"],
    "dtype": ["bf16", "bf16", "fp32"],
    "batch": [1, 2, 4, 8],
    "seq": [256, 512, 1024],
    "checkpointing": [True, False],
    "loss": ["hf", "trainer", "trl"],
    "optimizer": ["adamw", "adamw_foreach", "adamw_8bit", "paged_adamw_8bit", "sgd"],
    "autocast": [True, False],
    "attention": ["auto", "auto", "auto", "sdpa-math", "eager"],
}
ADAPTER_CHOICES: dict[str, list[Any]] = {
    "rank": [1, 8, 64],
    "targets": ["all-linear", "all-linear", "attention"],
    "adapter_dtype": ["fp32", "bf16"],
    "dropout": [0.0, 0.0, 0.1],
}
QLORA_CHOICES: dict[str, list[Any]] = {"double_quant": [True, False], "kbit_prep": [True, False]}
ATTENTION = {"gpt2": ["c_attn"], "phi3": ["qkv_proj", "o_proj"]}


@dataclass(frozen=True)
class Row:
    """`simulated`: bytes at the peak; `tensors`: the same if every block were as large as its
    tensor, which is what the formula adds up."""

    settings: dict[str, Any]
    simulated: int
    tensors: int

    @property
    def formula(self) -> memory.Estimate:
        return memory.estimate(**self.settings)

    @property
    def error(self) -> float:
        """Of the formula, as a share of the tensors that were simulated."""
        return self.formula.total / self.tensors - 1

    @property
    def beside_blocks(self) -> float:
        """Of the formula, as a share of the blocks that were simulated."""
        return self.formula.total / self.simulated - 1

    def __str__(self) -> str:
        said = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.error:+.1%} of {self.tensors / memory.GiB:.2f} GiB: {said}"


def settings() -> Iterator[dict[str, Any]]:
    """Drawn from all combinations, the same ones each time."""
    draw = random.Random(4)
    for number in range(SIZE):
        drawn: dict[str, Any] = {"model": MODELS[number % len(MODELS)]}
        drawn |= {name: draw.choice(values) for name, values in CHOICES.items()}
        family = memory.describe(drawn["model"]).family
        if drawn["method"] != "full":
            drawn |= {name: draw.choice(values) for name, values in ADAPTER_CHOICES.items()}
            if drawn["targets"] == "attention":
                drawn["targets"] = ATTENTION.get(family, ["q_proj", "k_proj", "v_proj", "o_proj"])
        if drawn["method"] == "qlora":
            drawn |= {name: draw.choice(values) for name, values in QLORA_CHOICES.items()}
        if family == "gemma2":
            drawn["attention"] = "auto"
        yield drawn


def simulated(settings: dict[str, Any]) -> Row:
    """The simulation's answer, played to the allocator and to none."""
    given = dict(settings)
    step = chosen(given.pop("model"), given.pop("method"), given)
    trace = simulation.recorded(step)
    blocks, tensors = (simulation.played(trace, allocator=allocator)
                       for allocator in (CachingAllocator(), None))
    return Row(settings, sum(blocks.by.values()), sum(tensors.by.values()))


def write(rows: Iterable[Row]) -> None:
    lines = [json.dumps(asdict(row)) for row in rows]
    RESULTS.write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")


def table(rows: list[Row]) -> str:
    """How far formula and simulation are apart, and the ten worst settings, as Markdown."""
    errors = sorted(abs(row.error) for row in rows)
    blocks = sorted(abs(row.beside_blocks) for row in rows)
    within = {limit: sum(error < limit for error in errors) for limit in (0.001, 0.01, 0.05)}
    said = ", ".join(f"{count} within {limit:.1%}" for limit, count in within.items())
    lines = [
        "# Formula against simulation", "",
        f"{len(rows)} settings, drawn from all that can be chosen: {said}. Median "
        f"{errors[len(errors) // 2]:.2%}, largest {errors[-1]:.1%}. Made by "
        "`python -m tests.memory_grid`.", "",
        "That is of what tensors take. The allocator's blocks can be larger: beside them the "
        f"formula is off by {blocks[len(blocks) // 2]:.2%} in the median and {blocks[-1]:.1%} at most.", "",
        "The ten that are furthest apart:", "",
        "| error | simulated | settings |", "|---|---|---|",
    ]  # fmt: skip
    for row in worst(rows):
        size = row.tensors / memory.GiB
        said = ", ".join(f"{k}={v}" for k, v in row.settings.items())
        lines.append(f"| {row.error:+.1%} | {size:.2f} GiB | {said} |")
    return "\n".join(lines) + "\n"


def read() -> list[Row]:
    return [Row(**record) for record in json.loads(RESULTS.read_text("utf-8"))]


def worst(rows: Iterable[Row], count: int = 10) -> list[Row]:
    return sorted(rows, key=lambda row: abs(row.error), reverse=True)[:count]
