"""bitsandbytes' 4-bit layers: made from a model's own, kept right on every CPU."""

from __future__ import annotations

import torch
from torch import nn

from loralab import memory


def quantise(model: nn.Module, *, double_quant: bool = True, quant_type: str = "nf4") -> nn.Module:
    """Replace the linear layers of a model on the CPU by bitsandbytes' 4-bit layers, in place.

    For small models built in a notebook. Real ones are quantised by `from_pretrained`, which
    stores the same bytes.
    """
    import bitsandbytes as bnb
    from transformers.pytorch_utils import Conv1D

    for path in [layer.path for layer in memory.describe(model).linear]:
        old = model.get_submodule(path)
        weight = old.weight.data.T.contiguous() if isinstance(old, Conv1D) else old.weight.data
        new = bnb.nn.Linear4bit(
            weight.shape[1], weight.shape[0], bias=old.bias is not None,
            compute_dtype=weight.dtype, compress_statistics=double_quant, quant_type=quant_type,
        )  # fmt: skip
        new.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, quant_type=quant_type, compress_statistics=double_quant
        )
        if old.bias is not None:
            new.bias = nn.Parameter(old.bias.data, requires_grad=False)
        new = new.to("cpu")
        model.set_submodule(path, new)
    keep_weights_intact(model)
    return model.requires_grad_(False)


def keep_weights_intact(model: nn.Module) -> None:
    """Stop 4-bit layers from repacking their weights on CPUs with AVX512-BF16.

    There, bitsandbytes 0.50.2 packs a layer's weight anew at the first evaluation and never
    restores it: gradients after an evaluation are wrong, and so is a merge. With this the results
    are bit for bit those of a CPU without that instruction set.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def unpacked(packed: torch.Tensor, n: int) -> torch.Tensor:
    """The first `n` codes (uint8, 0 to 15) of bitsandbytes' bytes.

    Two share a byte; the first of them is its upper half.
    """
    row = packed.reshape(-1).view(torch.uint8)
    return torch.stack([row >> 4, row & 15], dim=1).reshape(-1)[:n]
