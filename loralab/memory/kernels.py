"""Where a GPU differs from the CPU that a step is simulated on: attention, scratch, workspaces.

`scaled_dot_product_attention` picks one of three kernels by hardware, dtype, mask and heads. What
it picks decides what is kept for backward, so here each is called by its name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

aten = torch.ops.aten

# PyTorch's ":4096:2:16:8": what cuBLAS gets for each handle on GPUs before Hopper; there, 32 MiB.
# The forward pass and autograd's own thread have a handle each.
CUBLAS_WORKSPACES = 2 * (2 * 4096 + 8 * 16) * 1024


def use(model: nn.Module, kernel: str) -> None:
    """Make a transformers model run its attention as `kernel`, "eager" or a name in `_CALLS`."""
    from transformers import AttentionInterface

    if kernel in _CALLS:
        AttentionInterface.register(kernel, _CALLS[kernel])
    model.config._attn_implementation = kernel


def _flash(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
           mask: Any, dropout: float = 0.0, scaling: float | None = None, **rest: Any) -> Any:
    # Takes grouped heads as they are.
    query, key, value = _as_autocast(query, key, value)
    made = aten._scaled_dot_product_flash_attention(query, key, value, dropout, True, scale=scaling)
    return made[0].transpose(1, 2).contiguous(), None


def _efficient(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               mask: Any, dropout: float = 0.0, scaling: float | None = None, **rest: Any) -> Any:
    from transformers.integrations.sdpa_attention import repeat_kv

    groups = getattr(module, "num_key_value_groups", 1)
    query, key, value = _as_autocast(query, repeat_kv(key, groups), repeat_kv(value, groups))
    made = aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True, dropout, True, scale=scaling
    )
    return made[0].transpose(1, 2).contiguous(), None


def _math(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
          mask: Any, dropout: float = 0.0, scaling: float | None = None, **rest: Any) -> Any:
    query, key, value = _as_autocast(query, key, value)
    made = aten._scaled_dot_product_attention_math(
        query, key, value, None, dropout, True, scale=scaling,
        enable_gqa=getattr(module, "num_key_value_groups", 1) > 1,
    )  # fmt: skip
    return made[0].transpose(1, 2).contiguous(), None


_CALLS = {"sdpa-flash": _flash, "sdpa-efficient": _efficient, "sdpa-math": _math}


def _as_autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Attention is one of the operations that autocast casts for."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors)


@contextlib.contextmanager
def autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """CUDA's autocast, without CUDA: PEFT asks whether that is on, the tensors are a CPU's."""
    if dtype is None:
        yield
        return
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        with torch.autocast("cpu", dtype=dtype):
            yield
    finally:
        torch.set_autocast_enabled("cuda", before)


def hidden_bytes(function: Any, arguments: tuple[Any, ...]) -> int:
    """Bytes that a CUDA kernel takes for itself while an operation runs."""
    scratch = _SCRATCH.get(function)
    return scratch(*arguments) if scratch else 0


def _flash_backward(gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any) -> int:
    """`mha_bwd` in PyTorch's flash_api.cpp: dq in fp32, one number a row, dk and dv a query head.
    """
    batch, heads, length, size = query.shape
    rows = batch * heads * (-(-length // 128) * 128)
    found = rows * 4 * (-(-size // 32) * 32) + rows * 4
    if key.shape[1] != heads:
        found += 2 * batch * heads * key.shape[2] * size * query.element_size()
    return found


def _gemm_4bit(a: torch.Tensor, b: torch.Tensor, shape: Any, *_: Any, **__: Any) -> int:
    """bitsandbytes turns the whole weight back into 16 bits before it multiplies."""
    return shape[0] * shape[1] * a.element_size()


_SCRATCH = {aten._scaled_dot_product_flash_attention_backward.default: _flash_backward}


def register_bitsandbytes() -> None:
    """Know the scratch memory of bitsandbytes' operations, which exist once it is imported."""
    import bitsandbytes  # noqa: F401

    _SCRATCH[torch.ops.bitsandbytes.gemm_4bit.default] = _gemm_4bit
