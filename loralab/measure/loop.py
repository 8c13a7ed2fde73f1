"""A training loop with the real optimizer, loss and attention kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

from loralab.measure.needed import Unsupported, needed
from loralab.memory.settings import Settings


def optimizer_of(settings: Settings, model: nn.Module, device: torch.device) -> Any:
    """The optimizer that the settings name, over what is trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate = 1e-5
    if "8bit" not in settings.optimizer:
        if settings.optimizer == "sgd":
            return torch.optim.SGD(trained, lr=rate, foreach=True)
        fused = settings.optimizer == "adamw"
        return torch.optim.AdamW(trained, lr=rate, fused=fused, foreach=not fused)
    needed("bitsandbytes", f"the optimizer {settings.optimizer!r}")
    import bitsandbytes as bnb

    if settings.optimizer == "adamw_8bit":
        return bnb.optim.AdamW8bit(trained, lr=rate)
    if device.type != "cuda":
        raise Unsupported("Paged optimizer states need CUDA's unified memory.",
                          "Use adamw_8bit, or a GPU.")
    return bnb.optim.PagedAdamW8bit(trained, lr=rate)


def counters(optimizer: Any, settings: Settings) -> list[torch.Tensor]:
    """The step counters that would be in main memory if the model were on a GPU."""
    if settings.optimizer != "adamw_foreach":
        return []
    found = (state.get("step") for state in optimizer.state.values())
    return [counter for counter in found if torch.is_tensor(counter)]


def train(
    model: nn.Module, optimizer: Any, settings: Settings, tokens: torch.Tensor,
    labels: torch.Tensor, steps: int, reached: Callable[[int, str], None],
) -> None:  # fmt: skip
    """`steps` training steps on the same tokens; `reached(step, where)` is called in each of them
    after "forward", "backward" and "step".

    The losses differ in what they keep: with "hf", a plain loop, `outputs` lives until the next
    step has made its own; "trainer" lets it go before backward; "trl" never has logits.
    """
    arguments = {"fused_lm_head": True} if settings.loss == "trl" else {}
    kind = tokens.device.type
    autocast = torch.autocast(kind, dtype=settings.compute, enabled=settings.autocast)
    with attention(settings):
        for step in range(steps):
            with autocast:
                outputs = model(input_ids=tokens, labels=labels, **arguments)
            loss = outputs.loss
            if settings.loss != "hf":
                del outputs
            reached(step, "forward")
            loss.backward()
            reached(step, "backward")
            optimizer.step()
            reached(step, "step")
            optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def attention(settings: Settings) -> Iterator[None]:
    """Hold `scaled_dot_product_attention` to one kernel."""
    kernel = settings.kernel
    if kernel == "eager":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers.integrations import sdpa_attention

    backend = {"sdpa-flash": SDPBackend.FLASH_ATTENTION, "sdpa-math": SDPBackend.MATH,
               "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION}[kernel]
    with contextlib.ExitStack() as stack:
        if kernel == "sdpa-efficient":  # takes no grouped heads: repeat them, as with a mask
            stack.enter_context(
                mock.patch.object(sdpa_attention, "use_gqa_in_sdpa", lambda *_, **__: False)
            )
        stack.enter_context(sdpa_kernel(backend))
        yield
