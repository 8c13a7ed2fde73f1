"""The real optimizers, made to run on tensors without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

PAGED_FROM = 100_000  # bitsandbytes: states of smaller tensors are ordinary ones


class Torch:
    """An optimizer of torch's."""

    def __init__(self, made: torch.optim.Optimizer, *, steps_on_gpu: bool):
        self.made, self.steps_on_gpu = made, steps_on_gpu

    def step(self) -> None:
        self.made.step()

    def states(self) -> list[torch.Tensor]:
        """What it keeps in the GPU's memory."""
        outside = {id(counter) for counter in self.in_main_memory()}
        return [value for state in self.made.state.values() for value in state.values()
                if isinstance(value, torch.Tensor) and id(value) not in outside]

    def in_main_memory(self) -> list[torch.Tensor]:
        """Step counters, unless it is fused."""
        found = [] if self.steps_on_gpu else [s.get("step") for s in self.made.state.values()]
        return [counter for counter in found if isinstance(counter, torch.Tensor)]


class EightBit:
    """bitsandbytes' AdamW8bit: its own states; a step makes nothing that lasts."""

    def __init__(self, trained: Sequence[torch.nn.Parameter], *, paged: bool):
        import bitsandbytes as bnb

        with unset_fake_temporarily():  # its tables of levels have values
            self.made: Any = bnb.optim.AdamW8bit(list(trained))
        ordinary = self.made.get_state_buffer

        def buffer(parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            if paged and parameter.numel() >= PAGED_FROM:  # memory that PyTorch does not count
                return torch.empty(parameter.shape, dtype=dtype, device="meta")
            return ordinary(parameter, dtype)

        self.made.get_state_buffer = buffer

    def step(self) -> None:
        for at, group in enumerate(self.made.param_groups):
            for place, parameter in enumerate(group["params"]):
                if not self.made.state[parameter]:
                    self.made.init_state(group, parameter, at, place)

    def states(self) -> list[torch.Tensor]:
        return [value for state in self.made.state.values() for value in state.values()
                if isinstance(value, torch.Tensor) and value.device.type != "meta"]

    def in_main_memory(self) -> list[torch.Tensor]:
        """Nothing that was counted: paged states were left out when they were made."""
        return []


def of(name: str, trained: Sequence[torch.nn.Parameter]) -> Torch | EightBit:
    """The optimizer that `name`, of `settings.OPTIMIZERS`, stands for."""
    if name in ("adamw_8bit", "paged_adamw_8bit"):
        return EightBit(trained, paged=name.startswith("paged"))
    if name == "sgd":
        return Torch(torch.optim.SGD(trained, foreach=True), steps_on_gpu=False)
    fused = name == "adamw"
    made = torch.optim.AdamW(trained, fused=fused, foreach=not fused)
    return Torch(made, steps_on_gpu=fused)
