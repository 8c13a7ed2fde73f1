"""What can be changed about a training step so that it needs less memory, the cheapest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from loralab.memory.architectures import Linear
from loralab.memory.settings import Settings
from loralab.memory_names import LOSSES

COSTS = {  # the cheapest first
    "nothing": "the same training, as fast",
    "time": "the same training, slower",
    "rounding": "coarser optimizer states, constants, norms or adapters",
    "learning": "less is trained, or on shorter texts",
    "weights": "coarser weights",
}
Values = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A kind of change. `costs`: of `COSTS`, the dearest last. `levels`: the settings to change,
    the mildest first."""

    costs: tuple[str, ...]
    levels: tuple[Values, ...]

    @property
    def names(self) -> set[str]:
        """The settings that it changes."""
        return {name for level in self.levels for name in level}


def possible(step: Settings, given: Mapping[str, Any]) -> list[Change]:
    """The changes that can be made to a step. The table is the order: the cheapest first, by
    what the user gives up (`COSTS`); it is a judgement, not a measurement.

    `given`: the settings that were asked for; what was not follows the loss.
    """
    quantised, adapters = step.method == "qlora", step.method != "full"
    single = step.dtype == torch.float32
    slow_kernel = step.attention not in ("auto", "sdpa-flash") and not step.arch.softcap
    coarser = (quantised and step.adapter == torch.float32 and "adapter_dtype" not in given) or (
        step.stream == torch.float32 and not step.autocast and "autocast" not in given)
    trl = [{"loss": "trl"}] if step.loss != "trl" else []
    states = ("adamw_8bit", "paged_adamw_8bit")
    table = [
        ("nothing", [{"attention": "auto"}] if slow_kernel else []),
        ("nothing", [{"optimizer": "adamw"}] if step.optimizer == "adamw_foreach" else []),
        ("nothing", [{"loss": "trainer"}] if step.loss == next(iter(LOSSES)) else []),
        ("nothing", [] if coarser else trl),
        ("time", [] if step.checkpointing else [{"checkpointing": True}]),
        ("time", [{"batch": n} for n in range(step.batch - 1, 0, -1) if step.batch % n == 0]),
        ("rounding", [{"optimizer": "adamw_8bit"}] if step.optimizer.startswith("adamw")
         and step.optimizer not in states else []),
        ("time rounding", [{"optimizer": "paged_adamw_8bit"}] if "adamw" in step.optimizer
         and step.optimizer != states[1] else []),
        ("rounding", [{"double_quant": True}] if quantised and not step.double_quant else []),
        ("rounding", [{"kbit_prep": False}] if step.kbit_prep else []),
        ("rounding", [{"adapter_dtype": "bf16"}]
         if adapters and step.adapter == torch.float32 else []),
        ("rounding", trl if coarser else []),
        ("learning", [{"dropout": 0.0}] if adapters and step.dropout else []),
        ("learning", _lower_ranks(step) if adapters else []),
        ("learning", _fewer_targets(step) if adapters else []),
        ("learning", [{"seq": n} for n in _halves(step.seq, max(128, step.seq // 4))]),
        ("learning", [] if adapters else [{"method": "lora"}]),
        ("weights", [{"autocast": True}] if single and not step.autocast else []),
        ("weights", [{"dtype": "bf16"}] if single else []),
        ("weights", [{"master_weights": False}] if step.master_weights else []),
        ("weights" if adapters else "learning weights",
         [] if quantised else [{"method": "qlora"}]),
    ]
    return [Change(tuple(costs.split()), tuple(levels)) for costs, levels in table if levels]


def _halves(value: int, least: int) -> Iterator[int]:
    while (value := value // 2) >= least:
        yield value


def _lower_ranks(step: Settings) -> list[Values]:
    """Half the rank, a quarter, ... with as much of alpha, so that the update keeps its scale."""
    return [{"rank": n, "alpha": max(1, step.alpha * n // step.rank)}
            for n in _halves(step.rank, 4)]


def _fewer_targets(step: Settings) -> list[Values]:
    """Adapters on attention only; then on queries and values only, as LoRA's paper has them."""
    attention = [layer for layer in step.adapted if _in_attention(layer)]
    some = [layer for layer in attention if layer.name in ("q_proj", "v_proj")]
    outside = {layer.name for layer in step.arch.linear if not _in_attention(layer)}
    levels, before = [], len(step.adapted)
    for kept in (attention, some):
        if kept and len(kept) < before:
            before = len(kept)
            # GPT-2's c_proj is also the MLP's: there "attn.c_proj" is meant.
            names = (".".join(layer.path.split(".")[-2:]) if layer.name in outside else layer.name
                     for layer in kept)
            levels.append({"targets": ",".join(dict.fromkeys(names))})
    return levels


def _in_attention(layer: Linear) -> bool:
    return "att" in layer.path.rsplit(".", 1)[0]
