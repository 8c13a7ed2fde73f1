"""Where a GPU differs from the CPU that a step is simulated on: attention, scratch, workspaces.

`scaled_dot_product_attention` picks one of three kernels by hardware, dtype, mask and heads. What
it picks decides what is kept for backward, so here each is called by its name.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import nn

aten = torch.ops.aten

# PyTorch's ":4096:2:16:8": what cuBLAS gets for each handle on GPUs before Hopper.
# The forward pass and autograd's own thread have a handle each.
CUBLAS_WORKSPACES = 2 * (2 * 4096 + 8 * 16) * 1024


PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}


def cublas_workspaces(compute_capability: str | None = None) -> int:
    """Bytes of cuBLAS's workspaces on a GPU of that capability ("9.0"): 32 MiB a handle from
    Hopper on. Without one, the GPUs before it."""
    if compute_capability and float(compute_capability) >= 9:
        return 2 * 32 * 2**20
    return CUBLAS_WORKSPACES


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
    # `_scaled_dot_product_attention_math` in PyTorch's attention.cpp, written out so that its
    # dropout is a GPU's too. Names live as long as they do there.
    query, key, value = _as_autocast(query, key, value)
    wide_query, wide_key, wide_value = (states.float() for states in (query, key, value))
    root = (scaling or query.shape[-1] ** -0.5) ** 0.5
    scaled = wide_query * root
    shut = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril().logical_not()
    shut = torch.zeros_like(shut, dtype=scaled.dtype).masked_fill_(shut, -1e38)
    keys, values = wide_key, wide_value
    if (groups := query.shape[1] // key.shape[1]) > 1:
        keys, values = (states.repeat_interleave(groups, dim=1) for states in (keys, values))
    with torch.autocast("cpu", enabled=False):
        shares = (scaled @ (keys.transpose(-2, -1) * root)).add_(shut)
        shares = nn.functional.dropout(aten._safe_softmax(shares, -1), dropout)
        beside = shares.to(query.dtype)  # returned as well, to a caller who lets it go
        made = (shares @ values).to(query.dtype)
    del beside
    return made.transpose(1, 2).contiguous(), None


_CALLS = {"sdpa-flash": _flash, "sdpa-efficient": _efficient, "sdpa-math": _math}


def _as_autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Attention is one of the operations that autocast casts for."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors)


@contextlib.contextmanager
def seen_as_autocast(on: bool) -> Iterator[None]:
    """PEFT asks whether CUDA's autocast is on, where a CPU's tensors go by the CPU's.

    For forward and backward: a checkpoint that runs a block again restores the CPU's alone.
    """
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", on)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before)


# AT_FORALL_FP32 and its variants in PyTorch's autocast_mode.h, as far as models call them.
_IN_FP32 = (
    "acos", "asin", "binary_cross_entropy_with_logits", "cosh", "cosine_similarity", "cumprod",
    "cumsum", "exp", "expm1", "group_norm", "kl_div", "l1_loss", "layer_norm", "log", "log10",
    "log1p", "log2", "log_softmax", "logsumexp", "mse_loss", "nll_loss", "norm", "pow", "__pow__",
    "prod", "reciprocal", "rsqrt", "sinh", "smooth_l1_loss", "softmax", "softplus", "sum", "tan",
)  # fmt: skip


@contextlib.contextmanager
def functions_of_a_gpu() -> Iterator[None]:
    """Functions do what they do on a GPU where a CPU differs: dropout, and autocast's to fp32."""
    with contextlib.ExitStack() as stack:
        for home in (torch, torch.Tensor, nn.functional):
            wide = {name: _wide(getattr(home, name)) for name in _IN_FP32 if hasattr(home, name)}
            stack.enter_context(mock.patch.multiple(home, **wide))
        stack.enter_context(mock.patch.object(nn.functional, "dropout", _dropout))
        yield


def _wide(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its tensors in fp32 where CUDA's autocast is on; the CPU's has not all."""

    @functools.wraps(function)
    def called(*given: Any, **named: Any) -> Any:
        if torch.is_autocast_enabled("cuda"):
            given = tuple(map(_fp32, given))
            named = {name: _fp32(value) for name, value in named.items()}
        return function(*given, **named)

    return called


def _fp32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """The values and a mask of one byte each. A CPU's mask is wider."""
    return torch.native_dropout(input, p, True)[0] if training and p else input


def hidden_bytes(function: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Bytes that a CUDA kernel takes for itself while an operation runs."""
    scratch = _SCRATCH.get(function)
    return scratch(*arguments, **named) if scratch else 0


def _flash_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any
) -> int:
    """`mha_bwd` in PyTorch's flash_api.cpp: dq in fp32, one number a row, dk and dv a query head.
    """
    batch, heads, length, size = query.shape
    rows = batch * heads * (-(-length // 128) * 128)
    found = rows * 4 * (-(-size // 32) * 32) + rows * 4
    if key.shape[1] != heads:
        found += 2 * batch * heads * key.shape[2] * size * query.element_size()
    return found


def _gemm_4bit(
    a: torch.Tensor, b: torch.Tensor, shape: Any, *_: Any, absmax_8bit: torch.Tensor | None = None,
    **__: Any,
) -> int:
    """bitsandbytes turns the whole weight back into 16 bits before it multiplies.

    With double quantisation it has the constants in fp32 before that, twice for the offset's sake.
    (Its fused kernel takes no more than some hundred tokens, by GPU and shape.)
    """
    scales = 2 * 4 * absmax_8bit.numel() if absmax_8bit is not None else 0
    return shape[0] * shape[1] * a.element_size() + scales


def _softmax_backward(gradient: torch.Tensor, output: torch.Tensor, *_: Any, **__: Any) -> int:
    """`softmax_backward_cuda_out` in PyTorch's SoftMax.cu multiplies the two before its kernel."""
    size = torch.result_type(gradient, output).itemsize
    return gradient.numel() * size


_SCRATCH = {
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._softmax_backward_data.default: _softmax_backward,
}


def register_bitsandbytes() -> None:
    """Know the scratch memory of bitsandbytes' operations, which exist once it is imported."""
    import bitsandbytes  # noqa: F401

    PRODUCTS.add(torch.ops.bitsandbytes.gemm_4bit.default)
    _SCRATCH[torch.ops.bitsandbytes.gemm_4bit.default] = _gemm_4bit
