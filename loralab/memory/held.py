"""What training holds from backward to the next step, in closed form and exact to the byte.

Weights, quantisation constants, adapters, gradients and optimizer states do not depend on the
batch. `loralab.measure.held` counts the same things on a real model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from loralab.memory.architectures import Architecture, Linear
from loralab.memory.result import HELD
from loralab.memory.settings import OPTIMIZERS, Settings, targeted
from loralab.memory.vocabulary import dtype_of
from loralab.memory_names import one_of

FP32 = 4  # bytes


def nf4_bytes(n_weights: int, *, double_quant: bool = True, block: int = 64) -> tuple[int, int]:
    """(bytes of the 4-bit codes, bytes of the constants) of one layer, as bitsandbytes stores it.

    Two codes share a byte. Each block of 64 weights has its largest magnitude (absmax) beside it,
    in fp32; with double quantisation in 8 bits, with one fp32 absmax for every 256 of those and
    one fp32 offset. Each layer also carries its lookup tables: 16 levels, and 256 for the 8-bit
    constants. Dettmers et al. 2023 (QLoRA), section 3; bitsandbytes `quantize_4bit`.
    """
    codes = math.ceil(n_weights / 2)
    blocks = math.ceil(n_weights / block)
    levels = 16 * FP32
    if not double_quant:
        return codes, blocks * FP32 + levels
    return codes, blocks + math.ceil(blocks / 256) * FP32 + FP32 + levels + 256 * FP32


def lora_sizes(
    arch: Architecture, rank: int = 8, targets: str | Iterable[str] = "all-linear"
) -> list[int]:
    """Parameters of each adapter tensor: A is (rank, in), B is (out, rank), for every target.

    Hu et al. 2021 (LoRA), section 4.1.
    """
    return _adapter_sizes(targeted(arch, targets), rank)


def _adapter_sizes(layers: Iterable[Linear], rank: int) -> list[int]:
    return [size for layer in layers for size in (rank * layer.inputs, layer.outputs * rank)]


def optimizer_bytes(sizes: Iterable[int], optimizer: str, dtype: str | torch.dtype) -> int:
    """Bytes of the optimizer's states after its first step, for trained tensors of these sizes.

    "adamw" (torch): two moments in the parameter's dtype, and a step counter (fp32) a tensor.
    "adamw_foreach" is the same with its counters on the CPU.
    "adamw_8bit" (bitsandbytes): two 8-bit moments, an fp32 absmax for every 256 of each, and two
    tables of 256 levels in all; tensors under 4,096 parameters keep two fp32 moments. Paged, the
    moments of tensors from 100,000 parameters on lie in memory that PyTorch does not count.
    (transformers' Trainer keeps embeddings' moments in fp32: not counted so here.)
    "sgd" without momentum: nothing.
    """
    one_of(optimizer, OPTIMIZERS, "optimizer")
    sizes = list(sizes)
    if optimizer == "sgd":
        return 0
    if "8bit" not in optimizer:
        counter = FP32 if optimizer == "adamw" else 0  # unfused, it is on the CPU
        return sum(2 * n * dtype_of(dtype).itemsize + counter for n in sizes)
    large = [n for n in sizes if n >= 4096]
    paged = optimizer.startswith("paged")
    moments = sum(2 * n for n in large if not (paged and n >= 100_000))
    scales = sum(2 * FP32 * math.ceil(n / 256) for n in large)
    tables = 2 * 256 * FP32 if large else 0
    return moments + scales + tables + sum(2 * n * FP32 for n in sizes if n < 4096)


def trained_sizes(s: Settings) -> list[int]:
    """Parameters of each tensor that is trained."""
    if s.method == "full":
        return list(s.arch.sizes.values())
    return _adapter_sizes(s.adapted, s.rank)


def held_bytes(s: Settings) -> dict[str, int]:
    """What is held from backward to the next step, by the names in `HELD`."""
    arch, trained = s.arch, trained_sizes(s)
    held = dict.fromkeys(HELD, 0)
    trained_dtype = s.dtype if s.method == "full" else s.adapter
    state_dtype = torch.float32 if s.master_weights else trained_dtype
    held["weights"] = arch.parameters * s.dtype.itemsize
    if s.method == "qlora":
        stored = [nf4_bytes(layer.weights, double_quant=s.double_quant) for layer in arch.linear]
        # A 4-bit layer casts its bias to the compute dtype, for good, when it first runs.
        biases = sum(arch.sizes.get(f"{layer.path}.bias", 0) for layer in arch.linear)
        held["weights"] = (arch.rest - biases) * s.unquantised.itemsize
        held["weights"] += biases * s.compute.itemsize
        held["weights_4bit"] = sum(codes for codes, _ in stored)
        held["constants"] = sum(constants for _, constants in stored)
    if s.method != "full":
        held["adapters"] = sum(trained) * s.adapter.itemsize
    if s.master_weights:
        held["master"] = arch.parameters * FP32
    held["gradients"] = sum(trained) * trained_dtype.itemsize
    held["optimizer"] = optimizer_bytes(trained, s.optimizer, state_dtype)
    return held
