"""Weights as they come back from 4 bits, and what that does to a model's loss.

Fast enough for the layers of a whole model. Chapter 04 has students write the same by hand.
`python -m loralab.rounding` measures the recorded losses again and stores them.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loralab import base_model, hardware, paths

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCHEMES = ("NF4", "FP4", "absmax")
# The text in it was written for this course: no model has it by heart.
RECORDED = paths.PACKAGE / "recorded" / "rounding_losses.json"


def rounded(weight: torch.Tensor, scheme: str, block: int = 64) -> torch.Tensor:
    """`weight` stored in 4 bits and read again: fp32, its own shape.

    "NF4" and "FP4" are bitsandbytes' (block: 32, 64 … 4096). "absmax" is symmetric: whole numbers
    from -7 to 7 times the block's largest magnitude / 7. "min-max" is asymmetric: 16 values equally
    far apart, from the block's smallest to its largest weight, as in llama.cpp's Q4_1. For these
    two the weights have to fill their blocks. Raises ValueError for any other scheme.
    """
    if scheme in ("NF4", "FP4"):
        import bitsandbytes.functional as bnb

        packed, state = bnb.quantize_4bit(
            weight.float(), quant_type=scheme.lower(), blocksize=block
        )
        return bnb.dequantize_4bit(packed, state)
    blocks = weight.float().reshape(-1, block)
    if scheme == "absmax":
        low, step = 0.0, blocks.abs().amax(1, keepdim=True) / 7
    elif scheme == "min-max":
        low = blocks.amin(1, keepdim=True)
        step = (blocks.amax(1, keepdim=True) - low) / 15
    else:
        raise ValueError(f"scheme {scheme!r}: one of {(*SCHEMES, 'min-max')}")
    codes = ((blocks - low) / step.clamp(min=torch.finfo(torch.float32).tiny)).round_()
    return codes.mul_(step).add_(low).reshape(weight.shape)


def linear_layers(model: PreTrainedModel) -> list[nn.Linear]:
    """The linear layers of a Llama's blocks: what QLoRA stores in 4 bits."""
    return [one for one in model.model.layers.modules() if isinstance(one, nn.Linear)]


@contextmanager
def rounded_layers(model: PreTrainedModel, scheme: str, block: int = 64) -> Iterator[int]:
    """While this holds, every linear layer of a Llama's blocks is rounded.

    Gives the number of weights that are. Afterwards the model is what it was.
    """
    layers = linear_layers(model)
    before = [layer.weight.data for layer in layers]
    try:
        for layer in layers:
            layer.weight.data = rounded(layer.weight.data, scheme, block).to(layer.weight.dtype)
        yield sum(weight.numel() for weight in before)
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.weight.data = weight


@torch.no_grad()
def token_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str
) -> torch.Tensor:
    """The loss (nats) of every token of `text` but the first, from one forward pass."""
    tokens = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
    logits = model(input_ids=tokens).logits[0, :-1].float()
    return nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none").cpu()


def measured_losses(text: str) -> dict[str, Any]:
    """The loss of the embedded model on `text`, and what each scheme adds to it.

    {"tokens": n, "loss": nats a token, "errors": {scheme: relative error of all rounded weights},
    "added": {scheme: [mean, half of its 95 % interval]}, "apart": {"FP4 − NF4": the same of their
    difference, …}}. Each interval is of differences token by token: the formats are tried on the
    same text, so their own intervals, side by side, do not tell them apart. Takes a few minutes on
    two cores.
    """
    model = base_model.load(dtype=torch.float32).eval()
    tokenizer = base_model.load_tokenizer()
    before = token_losses(model, tokenizer, text)
    errors, more = {}, {}
    for scheme in SCHEMES:
        original = [layer.weight.data for layer in linear_layers(model)]
        with rounded_layers(model, scheme):
            more[scheme] = token_losses(model, tokenizer, text) - before
            pairs = zip(original, linear_layers(model), strict=True)
            off = sum((one - layer.weight.data).double().square().sum() for one, layer in pairs)
        errors[scheme] = (off / sum(one.double().square().sum() for one in original)).sqrt().item()
    return {
        "tokens": len(before),
        "loss": before.mean().item(),
        "errors": errors,
        "added": {scheme: _interval(one) for scheme, one in more.items()},
        "apart": {f"{worse} − {better}": _interval(more[worse] - more[better])
                  for better, worse in itertools.combinations(SCHEMES, 2)},
    }  # fmt: skip


def _interval(differences: torch.Tensor) -> list[float]:
    """[mean, half of its 95 % interval]."""
    half = 1.96 * differences.std().item() / math.sqrt(len(differences))
    return [differences.mean().item(), half]


def losses(how: str = "recorded") -> dict[str, Any]:
    """`measured_losses` of the recorded text, "recorded" or measured "here", with its "source"."""
    recorded = json.loads(RECORDED.read_text("utf-8"))
    if how == "recorded":
        versions = ", ".join(f"{name} {one}" for name, one in recorded["versions"].items())
        return {**recorded["found"], "source": f"recorded ({recorded['machine']}; {versions})"}
    if how == "here":
        return {**measured_losses(recorded["text"]), "source": "measured here"}
    raise ValueError(f'losses are "recorded", or measured "here"; not {how!r}')


def record() -> None:
    """Measure the recorded text again on this machine and store what was found."""
    import transformers

    recorded = json.loads(RECORDED.read_text("utf-8"))
    recorded["found"] = measured_losses(recorded["text"])
    recorded["machine"] = f"{hardware.detect().device}, {platform.machine()}"
    recorded["versions"] = {one.__name__: one.__version__ for one in (torch, transformers)}
    RECORDED.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    record()
