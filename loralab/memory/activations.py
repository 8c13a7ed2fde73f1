"""What forward keeps for backward, in closed form: it grows with the tokens in a batch.

For the blocks of transformers' Llama, Mistral, Qwen2, Phi-3, Gemma-2 and GPT-2; each term names the
tensors that autograd keeps. Other blocks of Llama's style come close.
"""

from __future__ import annotations

import torch

from loralab.memory.architectures import Linear
from loralab.memory.held import FP32, trained_sizes
from loralab.memory.settings import Settings

INT64 = 8  # bytes


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
        # gelu, written out: x, tanh(...), x / 2 and 1 + tanh(...). CUDA's autocast raises x to the
        # third power in fp32, and all but x / 2 follow.
        kept += (product + 3 * _activated(s)) * arch.intermediate
    else:
        # Norms keep their input in fp32 and one number; trained, the normalised values as well.
        gemma = arch.family == "gemma2"  # multiplies by its weights in fp32
        norms = 4 if gemma else 2
        kept = norms * (FP32 * width + FP32)
        kept += norms * (FP32 if gemma else stream) * width if s.method == "full" else 0
        # act(gate) * up keeps gate, act(gate) and up.
        kept += product * 3 * arch.intermediate
    return kept + _attention_bytes(s) + _input_bytes(s)


def _activated(s: Settings) -> int:
    """Bytes of a number that the MLP's activation function gives."""
    return FP32 if s.arch.family == "gpt2" and s.autocast else s.product.itemsize


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


def _cast_for_attention(s: Settings) -> bool:
    """Whether queries and keys reach attention in fp32 and autocast casts them there.

    Rotary embeddings multiply by numbers of the hidden states' dtype; GPT-2 has none.
    """
    if s.arch.family == "gpt2":
        return s.product != s.attended
    return s.stream != s.attended


def _views_bytes(s: Settings) -> float:
    """What a fused projection adds for each token: a kept view keeps all of what it views.

    GPT-2's queries are a view of it, and so are Phi-3's values; where there is a cache, keys and
    values are copies. Under autocast from fp32 all three are.
    """
    if _cast_for_attention(s):
        return 0
    cached = not s.checkpointing and s.loss == "hf"
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
        if layer.path.endswith("mlp.c_proj") and _activated(s) == FP32:
            given = torch.float32
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
    return tail + copies + arch.layers * (block + _cache_beside(s)), block


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


def _cache_beside(s: Settings) -> float:
    """Of a block's cached keys and values those that are beside what attention keeps.

    The attention kernel keeps the cached tensors themselves, if it neither casts nor repeats nor
    scales them.
    """
    repeated = s.arch.kv_heads != s.arch.heads and s.kernel != "sdpa-flash"
    copied = _cast_for_attention(s) or s.kernel == "sdpa-math" or repeated
    return cached_bytes(s) / s.arch.layers if copied else 0


def cached_bytes(s: Settings) -> float:
    """Keys and values of all blocks that `outputs` holds in a plain loop.

    A model makes this cache in training too, unless one says no: the trainers of transformers and
    of TRL do, and a model with checkpointing does by itself.
    """
    if s.loss != "hf" or s.checkpointing:
        return 0
    size = max(s.stream.itemsize, s.attended.itemsize)
    return 2 * s.tokens * s.arch.layers * s.arch.kv_heads * s.arch.head_dim * size


def backward_bytes(s: Settings) -> float:
    """Temporary bytes in the backward pass of one block, beside what it keeps.

    The MLP comes first: gradients of its wide tensors and of the hidden states. Then attention,
    which writes two gradients of all scores if it keeps them, and CUDA's softmax their product
    with the shares besides; by then the MLP has let its own go.
    In QLoRA one layer's codes are turned back into the compute dtype at a time.
    """
    arch = s.arch
    wide, narrow = arch.intermediate * _activated(s), arch.hidden * s.stream.itemsize
    found = s.tokens * 2 * (wide + narrow)
    if s.method == "qlora":
        found += max(layer.weights for layer in arch.linear) * s.compute.itemsize
    if s.kernel in ("sdpa-math", "eager"):
        gone = s.attended.itemsize % FP32 if s.kernel == "eager" else 0  # the shares' cast
        if arch.family == "gpt2":
            gone = FP32  # the shares that dropout left
        softmax = s.attended.itemsize if arch.family == "gpt2" and not s.autocast else FP32
        if s.kernel == "sdpa-math":
            softmax = FP32
        scores = s.tokens * arch.heads * s.seq * (2 * FP32 - gone + softmax)
        mlp = (4 if arch.family == "gpt2" else 3) * wide + _input_bytes(s, "mlp")
        found = max(found, scores - s.tokens * (mlp + FP32 * arch.hidden))
    return found
