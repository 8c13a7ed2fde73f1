"""How many bytes does training hold? Closed formulas, one for each component.

    estimate("llama-2-7b", "qlora", rank=8, batch=1, seq=512)

What is held between two steps (weights, quantisation constants, adapters, gradients, optimizer
states) is exact to the byte; `loralab.measure.held` counts the same things on a real model. What
grows with the batch is counted for transformers' Llama-style and GPT-2 blocks; the docstrings name
what is kept, and `loralab.memory.simulate` runs the step itself. All sizes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from loralab.memory import kernels
from loralab.memory.architectures import Architecture, Linear, describe
from loralab.memory.result import HELD, LABELS, Estimate
from loralab.memory.settings import OPTIMIZERS, Settings, chosen, targeted
from loralab.memory.vocabulary import dtype_of, one_of

FP32 = 4  # bytes
INT64 = 8


def estimate(model: Any, method: str = "qlora", **given: Any) -> Estimate:
    """Bytes at the peak of one training step, by component.

    `model`: a name in `ARCHITECTURES`, a path of a config.json or of a folder with one, a hub id,
    a transformers configuration, or a model. `method`: "full", "lora" or "qlora". Further settings
    and their defaults are those of `loralab.memory.settings`:

    dtype="bf16" of the weights; adapter_dtype; compute_dtype; autocast; kbit_prep=False;
    master_weights=False (an fp32 copy that the optimizer updates); optimizer="adamw" (of
    `OPTIMIZERS`); rank=8; alpha=16; dropout=0.0; targets="all-linear"; double_quant=True; batch=1
    sequences of seq=512 tokens, padding included; checkpointing=True; loss="hf" (of `LOSSES`);
    attention="auto" (of `ATTENTION`).

    The peak is the fullest of three moments: the loss's backward pass, when all activations are
    alive and no gradient is; a block's backward pass; the optimizer's step. Raises CourseError for
    settings that do not exist or cannot train.
    """
    step = chosen(model, method, given)
    held, trained = held_bytes(step), sum(trained_sizes(step))
    at, alive = max(moments(step, held), key=lambda moment: sum(moment[1].values()))
    return Estimate(
        components={name: round(alive.get(name, 0)) for name in LABELS},
        held={name: held.get(name, 0) for name in HELD},
        peak_at=at,
        by="formula",
        trainable=trained,
        parameters=step.arch.parameters + (0 if method == "full" else trained),
        settings=step.described(),
    )


# --- what does not depend on the data ------------------------------------------------------------


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
        held["weights"] = arch.rest * s.unquantised.itemsize
        held["weights_4bit"] = sum(codes for codes, _ in stored)
        held["constants"] = sum(constants for _, constants in stored)
    if s.method != "full":
        held["adapters"] = sum(trained) * s.adapter.itemsize
    if s.master_weights:
        held["master"] = arch.parameters * FP32
    held["gradients"] = sum(trained) * trained_dtype.itemsize
    held["optimizer"] = optimizer_bytes(trained, s.optimizer, state_dtype)
    return held


# --- what grows with the batch -------------------------------------------------------------------


def block_bytes_per_token(s: Settings) -> float:
    """Bytes that one transformer block keeps for its backward pass, for each token.

    Llama-style blocks (RMSNorm in fp32, gated MLP; Llama, Mistral, Qwen2, Phi-3, and Gemma-2 with
    its four norms) and GPT-2's. Agrees with what autograd keeps on small real models.
    """
    arch, width = s.arch, s.arch.hidden
    stream, product = s.stream.itemsize, s.product.itemsize
    if arch.family == "gpt2":
        # Two LayerNorms keep their input, a mean and a deviation; two dropouts a mask.
        kept = 2 * (s.normed.itemsize * width + 2 * FP32) + 2 * width
        # gelu, written out: x, tanh(...), x / 2 and 1 + tanh(...).
        kept += product * 4 * arch.intermediate
    else:
        # Norms keep their input in fp32 and one number; trained, the normalised values as well.
        gemma = arch.family == "gemma2"  # multiplies by its weights in fp32
        norms = 4 if gemma else 2
        kept = norms * (FP32 * width + FP32)
        kept += norms * (FP32 if gemma else stream) * width if s.method == "full" else 0
        # act(gate) * up keeps gate, act(gate) and up.
        kept += product * 3 * arch.intermediate
    return kept + _attention_bytes(s) + _input_bytes(s)


def _attention_bytes(s: Settings) -> float:
    """What the attention kernel keeps, for each token."""
    arch = s.arch
    all_heads, grouped = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    size = s.attended.itemsize
    if s.kernel == "sdpa-flash":  # queries, keys, values, output, one number a head
        return size * (2 * all_heads + 2 * grouped) + FP32 * arch.heads + _views_bytes(s)
    if s.kernel == "sdpa-efficient":  # the same, keys and values repeated for every head
        return size * 4 * all_heads + FP32 * arch.heads + _views_bytes(s)
    scores = arch.heads * s.seq
    dropout = arch.family == "gpt2"  # of the probabilities: those left, and a mask
    if s.kernel == "sdpa-math":  # in fp32, with the probabilities
        return FP32 * (3 * all_heads + scores) + (scores * (FP32 + 1) if dropout else 0)
    softmax = FP32 if s.autocast or not dropout else size  # GPT-2 leaves its dtype to autocast
    kept = size * 3 * all_heads + scores * softmax
    if dropout:
        return kept + scores * (size + 1)
    if arch.softcap:  # tanh's result
        kept += scores * size
    return kept + (scores * size if size != softmax else 0)


def _views_bytes(s: Settings) -> float:
    """What a fused projection adds for each token: a kept view keeps all of what it views.

    GPT-2's queries are a view of it, and so are Phi-3's values; where there is a cache, keys and
    values are copies. Under autocast from fp32 all three are.
    """
    if s.stream != s.attended:
        return 0
    cached = not s.checkpointing and s.loss != "trl"
    copied = {"gpt2": 2 if cached else 0, "phi3": 0 if cached else 2}.get(s.arch.family, 0)
    return copied * s.arch.heads * s.arch.head_dim * s.product.itemsize


def _input_bytes(s: Settings, within: str = "") -> float:
    """Inputs that linear layers and adapters of one block keep, for each token.

    `within`: count only layers in whose path this is.
    """
    product = s.product
    attention_in = {"q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn"}
    mlp_in = {"gate_proj", "up_proj", "gate_up_proj", "c_fc"}
    first = [layer for layer in s.arch.linear if _block_of(layer) == 0 and within in layer.path]
    adapted = {layer.path for layer in s.adapted}
    kept = 0.0
    shared: set[str] = set()
    for layer in first:
        group = ("attention" if layer.name in attention_in else
                 "mlp" if layer.name in mlp_in else layer.path)
        given = s.normed if group in ("attention", "mlp") else product
        if layer.path.endswith(("o_proj", "attn.c_proj")):
            given = s.attended
        cast = False
        if s.method == "full":
            wanted = s.compute if s.autocast else given
        elif layer.path in adapted:
            # On a 16-bit layer PEFT casts to the adapter's dtype even if autocast casts again.
            cast = s.method == "lora" and s.adapter != given
            wanted = s.compute if s.autocast else s.adapter
            kept += s.rank * wanted.itemsize
            if s.dropout:
                kept += layer.inputs * (wanted.itemsize + 1)  # dropped values, and a mask
                continue
        else:
            continue
        if cast or wanted != given:  # cast for each of them
            kept += layer.inputs * wanted.itemsize
        elif group not in shared:
            shared.add(group)
            # Two of the attention kernels keep their output already.
            fused = s.kernel in ("sdpa-flash", "sdpa-efficient")
            if not (fused and layer.path.endswith(("o_proj", "attn.c_proj"))):
                kept += layer.inputs * given.itemsize
    return kept


def _block_of(layer: Linear) -> int:
    return next((int(part) for part in layer.path.split(".") if part.isdigit()), -1)


def activation_bytes(s: Settings) -> tuple[float, float]:
    """(bytes kept from forward to backward, bytes that one block keeps).

    With checkpointing only each block's input is kept; a block's tensors are made again when
    backward reaches it. Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """
    arch = s.arch
    block = s.tokens * block_bytes_per_token(s)
    # The last norm, and the head's input if the head is trained; the ids and labels.
    tail = s.tokens * (FP32 * arch.hidden + FP32 + 3 * INT64)
    if s.method == "full":
        tail += s.tokens * arch.hidden * 2 * s.stream.itemsize
    copies = _cast_bytes(s)
    if s.checkpointing:
        kept = arch.layers * s.tokens * arch.hidden * s.stream.itemsize
        return tail + kept, block + copies / arch.layers
    return tail + copies + arch.layers * (block + _cache_bytes(s)), block


def _cast_bytes(s: Settings) -> float:
    """Copies of weights in the compute dtype, which autocast makes and backward needs."""
    if not s.autocast:
        return 0
    copies = 0
    if s.method != "qlora" and s.dtype != s.compute:
        copies = s.arch.quantisable
    if s.method != "full" and s.adapter != s.compute:
        copies += sum(trained_sizes(s))
    return copies * s.compute.itemsize


def _cache_bytes(s: Settings) -> float:
    """Keys and values of a block that `outputs` holds in a plain loop, where they are copies.

    A model makes its cache in training too, unless checkpointing turns it off. The attention
    kernel keeps the cached tensors themselves, if it neither casts nor repeats nor scales them.
    """
    grouped = s.arch.kv_heads != s.arch.heads
    cast = s.autocast and s.stream != s.compute
    own = cast or s.kernel == "sdpa-math" or (grouped and s.kernel != "sdpa-flash")
    if s.loss != "hf" or not own:
        return 0
    size = max(s.stream.itemsize, s.attended.itemsize)
    return 2 * s.tokens * s.arch.kv_heads * s.arch.head_dim * size


def loss_bytes(s: Settings) -> float:
    """Bytes of logits and loss when backward is at the loss.

    "hf": the logits, their log-probabilities and two gradients in fp32: vocabulary x
    (logits + 12) bytes a token. "trainer" has let the logits themselves go. "trl" never has them:
    one tile of at most 4096 tokens x 32768 words, the hidden states and two gradients of them; for
    a trained head also its gradient, in fp32 and then in its own dtype.
    """
    arch, weight = s.arch, s.unquantised
    size = s.attended.itemsize
    cast = s.compute.itemsize if s.autocast and weight != s.compute else 0  # of the head's weight
    if s.loss == "trl":
        compute = (s.compute if s.autocast else s.stream).itemsize
        tile = min(s.tokens, 4096) * min(arch.vocab, 32768) * compute
        hidden = s.tokens * arch.hidden * (2 * s.stream.itemsize + FP32)
        if s.method == "full":
            extra = weight.itemsize if weight != torch.float32 else 0
            hidden += arch.vocab * arch.hidden * (FP32 + extra)
        if s.autocast and s.stream != s.compute:  # of a tile's tokens
            hidden += min(s.tokens, 4096) * arch.hidden * compute
        # Of a tile's words, and of the tile before.
        return tile + hidden + cast * min(arch.vocab, 2 * 32768) * arch.hidden
    logits = s.tokens * arch.vocab * (3 * FP32 + (size if s.loss == "hf" else 0))
    if arch.softcap:
        logits += s.tokens * arch.vocab * size
    return logits + cast * arch.vocab * arch.hidden


def backward_bytes(s: Settings) -> float:
    """Temporary bytes in the backward pass of one block, beside what it keeps.

    The MLP comes first: gradients of its wide tensors and of the hidden states. Then attention,
    which writes two gradients of all scores if it keeps them; by then the MLP has let its own go.
    In QLoRA one layer's codes are turned back into the compute dtype at a time.
    """
    arch = s.arch
    found = s.tokens * 2 * (arch.intermediate * s.product.itemsize + arch.hidden * s.stream.itemsize)
    if s.method == "qlora":
        found += max(layer.weights for layer in arch.linear) * s.compute.itemsize
    if s.kernel in ("sdpa-math", "eager"):
        scores = s.tokens * arch.heads * s.seq * 2 * FP32
        mlp = 3 * arch.intermediate * s.product.itemsize + _input_bytes(s, "mlp")
        found = max(found, scores - s.tokens * (mlp + FP32 * arch.hidden))
    return found


def step_bytes(s: Settings) -> int:
    """Temporary bytes of the optimizer's step: unfused AdamW takes the root of all states."""
    if s.optimizer != "adamw_foreach":
        return 0
    return sum(trained_sizes(s)) * (s.dtype if s.method == "full" else s.adapter).itemsize


# --- the fullest moment --------------------------------------------------------------------------


def moments(s: Settings, held: dict[str, int]) -> list[tuple[str, dict[str, float]]]:
    """(when, bytes by component) at each moment that may be the peak."""
    kept, block = activation_bytes(s)
    layers = s.arch.layers
    always = held | {"workspace": kernels.CUBLAS_WORKSPACES}
    before = always | {"gradients": 0}
    head = s.arch.embedding * s.dtype.itemsize if s.method == "full" else 0
    again = block if s.checkpointing else 0
    during = backward_bytes(s)
    return [
        ("in the backward pass of the loss",
         before | {"activations": kept, "logits": loss_bytes(s)}),
        ("in the backward pass of the last block",
         before | {"gradients": head, "activations": kept, "temporary": again + during}),
        ("in the backward pass of the first block",
         always | {"gradients": held["gradients"] - head, "activations": kept / layers,
                   "temporary": again + during + (head if s.arch.tied else 0)}),
        ("in the backward pass of the embedding",
         always | {"temporary": 2 * head if s.arch.tied else 0}),
        ("in the optimizer's step", always | {"temporary": step_bytes(s)}),
    ]  # fmt: skip


__all__ = ["describe", "estimate", "lora_sizes", "nf4_bytes", "optimizer_bytes"]
