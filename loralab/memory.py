"""How many bytes does training hold? Closed formulas, one for each component.

Nothing here needs weights, a network or a GPU: architectures are built from their configuration
on torch's `meta` device, where a tensor has a shape and a dtype but no data.

    estimate("llama-2-7b", "qlora", rank=8, batch=1, seq=512)

The static part (weights, quantisation constants, adapters, gradients, optimizer states) is exact
to the byte; `held` counts the same things on a real model. Activations and logits are closed forms
whose assumptions stand in the docstrings. All sizes are bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from html import escape
from typing import Any

import torch
from torch import nn

from loralab.errors import CourseError
from loralab.paths import RECORDED

GB = 10**9
GiB = 2**30

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
METHODS = ("full", "lora", "qlora")
OPTIMIZERS = ("adamw", "adamw_8bit", "sgd")


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """The torch dtype called "fp32", "bf16" or "fp16" (a torch dtype is returned as it is)."""
    if isinstance(name, torch.dtype):
        return name
    return _one_of(name, DTYPES, "dtype")


# --- architectures -------------------------------------------------------------------------------


def _llama(hidden, intermediate, layers, heads, kv_heads, vocab, tied, length, family="llama"):
    return {
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": length,
    }


def _gpt2(hidden, layers, heads):
    return {"model_type": "gpt2", "n_embd": hidden, "n_layer": layers, "n_head": heads}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, 49152, True, 8192),
    "smollm2-360m": _llama(960, 2560, 32, 15, 5, 49152, True, 8192),
    "smollm2-1.7b": _llama(2048, 8192, 24, 32, 32, 49152, True, 8192),
    "tinyllama-1.1b": _llama(2048, 5632, 22, 32, 4, 32000, False, 2048),
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, 8, 128256, True, 131072),
    "llama-3.2-3b": _llama(3072, 8192, 28, 24, 8, 128256, True, 131072),
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32, 32000, False, 4096),
    "llama-2-13b": _llama(5120, 13824, 40, 40, 40, 32000, False, 4096),
    "llama-2-70b": _llama(8192, 28672, 80, 64, 8, 32000, False, 4096),
    "llama-3.1-8b": _llama(4096, 14336, 32, 32, 8, 128256, False, 131072),
    "llama-3.1-70b": _llama(8192, 28672, 80, 64, 8, 128256, False, 131072),
    "mistral-7b": _llama(4096, 14336, 32, 32, 8, 32000, False, 32768, "mistral"),
    "qwen2.5-0.5b": _llama(896, 4864, 24, 14, 2, 151936, True, 32768, "qwen2"),
    "qwen2.5-1.5b": _llama(1536, 8960, 28, 12, 2, 151936, True, 131072, "qwen2"),
    "qwen2.5-7b": _llama(3584, 18944, 28, 28, 4, 152064, False, 131072, "qwen2"),
}


@dataclass(frozen=True)
class Linear:
    """One linear layer that 4-bit quantisation replaces: its path and shape."""

    path: str
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Architecture:
    """What the formulas need to know of a model: the sizes of its tensors, and nothing else.

    `sizes`: parameters of each tensor, tied tensors once. `linear`: the layers that bitsandbytes
    quantises, which is every linear layer except the output head.
    """

    name: str
    sizes: Mapping[str, int]
    linear: tuple[Linear, ...]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    embedding: int
    tied: bool

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(self.sizes.values())

    @property
    def quantisable(self) -> int:
        """Parameters in the linear layers, which 4-bit quantisation stores in 4 bits."""
        return sum(layer.weights for layer in self.linear)

    @property
    def rest(self) -> int:
        """Parameters that stay unquantised: embedding, norms, biases, and the head unless tied."""
        return self.parameters - self.quantisable


def build(
    model: str | Any, *, device: str = "meta", dtype: str | torch.dtype = "fp32"
) -> nn.Module:
    """The model with untrained weights; on `meta` (the default) with no weights at all.

    `model`: a name in `ARCHITECTURES` or a transformers configuration.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = model
    if isinstance(model, str):
        settings = dict(_one_of(model.lower(), ARCHITECTURES, "model"))
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype_of(dtype))


def describe(model: str | Any) -> Architecture:
    """The `Architecture` of a name, a transformers configuration or a model (not yet wrapped)."""
    if isinstance(model, Architecture):
        return model
    if isinstance(model, str):
        return _described(model.lower())
    return _describe(model if isinstance(model, nn.Module) else build(model), "")


@lru_cache
def _described(name: str) -> Architecture:
    return _describe(build(name), name)


def _describe(model: nn.Module, name: str) -> Architecture:
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    linear = []
    for path, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, Conv1D):  # GPT-2 stores its weights (in, out)
            linear.append(Linear(path, *module.weight.shape))
        elif type(module) is nn.Linear:
            linear.append(Linear(path, module.in_features, module.out_features))
    config = model.config
    heads = config.num_attention_heads
    mlp = getattr(config, "intermediate_size", None)
    return Architecture(
        name=name or type(model).__name__,
        sizes={n: p.numel() for n, p in model.named_parameters()},
        linear=tuple(linear),
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate=mlp or 4 * config.hidden_size,
        vocab=config.vocab_size,
        embedding=embedding.weight.numel(),
        tied=head.weight is embedding.weight,
    )


# --- formulas: what does not depend on the data --------------------------------------------------


def nf4_bytes(n_weights: int, *, double_quant: bool = True, block: int = 64) -> tuple[int, int]:
    """(bytes of the 4-bit codes, bytes of the constants) of one layer, as bitsandbytes stores it.

    Two codes share a byte. Each block of 64 weights has its largest magnitude (absmax) beside it,
    in fp32; with double quantisation in 8 bits, with one fp32 absmax for every 256 of those and
    one fp32 offset. Each layer also carries its lookup tables: 16 levels, and 256 for the 8-bit
    constants. Dettmers et al. 2023 (QLoRA), section 3; bitsandbytes `quantize_4bit`.
    """
    codes = math.ceil(n_weights / 2)
    blocks = math.ceil(n_weights / block)
    levels = 16 * 4
    if not double_quant:
        return codes, blocks * 4 + levels
    return codes, blocks * 1 + math.ceil(blocks / 256) * 4 + 4 + levels + 256 * 4


def targeted(arch: Architecture, targets: str | Iterable[str] = "all-linear") -> list[Linear]:
    """The linear layers that get an adapter: all of them, or those whose last name is given."""
    if isinstance(targets, str) and targets == "all-linear":
        return list(arch.linear)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    for name in wanted:
        if not any(_ends_with(layer.path, name) for layer in arch.linear):
            there = sorted({layer.path.rsplit(".", 1)[-1] for layer in arch.linear})
            raise CourseError(
                f"{arch.name} has no linear layer called {name!r}.",
                f'Its linear layers are {", ".join(there)}; or say targets="all-linear".',
            )
    return [layer for layer in arch.linear if any(_ends_with(layer.path, n) for n in wanted)]


def lora_sizes(
    arch: Architecture, rank: int = 8, targets: str | Iterable[str] = "all-linear"
) -> list[int]:
    """Parameters of each adapter tensor: A is (rank, in), B is (out, rank), for every target.

    Hu et al. 2021 (LoRA), section 4.1.
    """
    return [
        size
        for layer in targeted(arch, targets)
        for size in (rank * layer.inputs, layer.outputs * rank)
    ]


def optimizer_bytes(sizes: Iterable[int], optimizer: str, dtype: str | torch.dtype) -> int:
    """Bytes of the optimizer's states after its first step, for trained tensors of these sizes.

    "adamw" (torch): two moments in the parameter's dtype, and a step counter (fp32) a tensor.
    "adamw_8bit" (bitsandbytes): two 8-bit moments, an fp32 absmax for every 256 of each, and two
    tables of 256 levels in all; tensors under 4,096 parameters keep two fp32 moments.
    (transformers' Trainer keeps embeddings' moments in fp32: not counted so here.)
    "sgd" without momentum: nothing.
    """
    _one_of(optimizer, {name: None for name in OPTIMIZERS}, "optimizer")
    sizes = list(sizes)
    if optimizer == "sgd":
        return 0
    if optimizer == "adamw":
        return sum(2 * n * dtype_of(dtype).itemsize + 4 for n in sizes)
    large = [n for n in sizes if n >= 4096]
    states = sum(2 * (n + 4 * math.ceil(n / 256)) for n in large)
    return states + (2 * 256 * 4 if large else 0) + sum(2 * n * 4 for n in sizes if n < 4096)


# --- formulas: what grows with the batch ---------------------------------------------------------


def block_bytes_per_token(
    arch: Architecture,
    method: str,
    compute: torch.dtype,
    adapter: torch.dtype = torch.float32,
    rank: int = 8,
    targets: str | Iterable[str] = "all-linear",
) -> float:
    """Bytes that one transformer block saves for its backward pass, for each token.

    Counts the tensors that autograd keeps in transformers' Llama block (RMSNorm in fp32, fused
    attention, gated MLP, no dropout), and agrees with a count of them on small models. Other
    attention kernels, dropout and autocast keep more. For blocks of another style, such as
    GPT-2's, take it as a rough guide.
    """
    c, a = compute.itemsize, adapter.itemsize
    attention = arch.heads * arch.head_dim
    key_value = arch.kv_heads * arch.head_dim
    mlp = arch.intermediate

    # Two norms: each keeps its input in fp32 and one number a token.
    saved = 2 * (4 * arch.hidden + 4)
    # Fused attention: queries, keys, values, its output, and one number for each head.
    saved += c * (2 * attention + 2 * key_value) + 4 * arch.heads
    # act(gate) * up keeps gate, act(gate) and up.
    saved += c * 3 * mlp

    # A linear layer whose weight is trained keeps its input. So does an adapter beside it.
    if method == "full":
        # Normalised values for the norms' own weights; inputs of q/k/v and of gate/up; of down.
        return saved + c * (2 * arch.hidden + 2 * arch.hidden + mlp)
    first_block = [t for t in targeted(arch, targets) if ".0." in t.path]
    saved += sum(a * rank for _ in first_block)
    if adapter != compute:
        # PEFT casts the input to the adapter's dtype, once for every adapter.
        return saved + sum(a * layer.inputs for layer in first_block)
    names = {layer.path.rsplit(".", 1)[-1] for layer in first_block}
    saved += c * arch.hidden * bool(names & {"q_proj", "k_proj", "v_proj", "c_attn"})
    saved += c * arch.hidden * bool(names & {"gate_proj", "up_proj", "c_fc"})
    return saved + c * mlp * ("down_proj" in names)


def activation_bytes(
    arch: Architecture,
    tokens: int,
    method: str,
    *,
    compute: torch.dtype,
    adapter: torch.dtype = torch.float32,
    rank: int = 8,
    targets: str | Iterable[str] = "all-linear",
    checkpointing: bool = True,
) -> tuple[int, int]:
    """(bytes kept from forward to backward, bytes of one block recomputed in backward).

    With checkpointing only each block's input is kept; a block's saved tensors are made again
    when backward reaches it. Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """
    block = tokens * block_bytes_per_token(arch, method, compute, adapter, rank, targets)
    if not checkpointing:
        return round(arch.layers * block), 0
    return arch.layers * tokens * arch.hidden * compute.itemsize, round(block)


def loss_bytes(arch: Architecture, tokens: int, compute: torch.dtype, loss: str = "logits") -> int:
    """Bytes alive at the loss's peak.

    "logits" (transformers): the logits in the compute dtype, then in backward their
    log-probabilities and two gradients in fp32: vocabulary x (compute + 12) bytes a token.
    "chunked" (TRL's SFTTrainer): logits never exist; one tile of at most 4096 tokens x 32768 words,
    and a gradient of the last hidden state in fp32.
    """
    _one_of(loss, {"logits": None, "chunked": None}, "loss")
    if loss == "logits":
        return tokens * arch.vocab * (compute.itemsize + 12)
    tile = min(tokens, 4096) * min(arch.vocab, 32768) * compute.itemsize
    return tile + tokens * arch.hidden * 4


# --- the estimate --------------------------------------------------------------------------------

LABELS = {
    "weights": "weights, unquantised",
    "weights_4bit": "weights, 4-bit codes",
    "constants": "quantisation constants",
    "master": "fp32 master copy",
    "adapters": "adapters",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
    "temporary": "logits, or one recomputed block",
}


@dataclass(frozen=True)
class Estimate:
    """Bytes by component, and the settings they hold under.

    `total` adds all components as if they were alive at the same moment. Gradients grow while
    activations are freed, so for full fine-tuning it is a little high; for LoRA and QLoRA the
    gradients are too small to matter. It is what PyTorch calls *allocated* memory: the allocator
    holds more (*reserved*), and the CUDA context is on top of both.
    """

    weights: int = 0
    weights_4bit: int = 0
    constants: int = 0
    master: int = 0
    adapters: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    temporary: int = 0
    trainable: int = 0
    parameters: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def components(self) -> dict[str, int]:
        """Bytes by component, in the order they are stacked."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in LABELS}

    @property
    def static(self) -> int:
        """Bytes that do not depend on batch or length."""
        return self.total - self.activations - self.temporary

    @property
    def total(self) -> int:
        return sum(self.components.values())

    def __repr__(self) -> str:
        parts = ", ".join(f"{k} {v / GiB:.2f}" for k, v in self.components.items() if v)
        return f"Estimate({self.total / GiB:.2f} GiB: {parts})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{LABELS[name]}</td><td>{size / GiB:,.3f}</td>"
            f"<td>{size / self.total:.1%}</td></tr>"
            for name, size in self.components.items()
            if size
        )
        said = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return (
            "<table><thead><tr><th style='text-align:left'>component</th><th>GiB</th>"
            f"<th>share</th></tr></thead><tbody>{rows}</tbody><tfoot><tr>"
            f"<th style='text-align:left'>total (= {self.total / GB:,.2f} GB)</th>"
            f"<th>{self.total / GiB:,.3f}</th><th></th></tr></tfoot></table>"
            f"<small>{escape(said)}</small>"
        )


def estimate(
    model: str | Any,
    method: str = "qlora",
    *,
    dtype: str | torch.dtype = "bf16",
    adapter_dtype: str | torch.dtype = "fp32",
    compute_dtype: str | torch.dtype | None = None,
    master_weights: bool = False,
    optimizer: str = "adamw",
    rank: int = 8,
    targets: str | Iterable[str] = "all-linear",
    double_quant: bool = True,
    batch: int = 1,
    seq: int = 512,
    checkpointing: bool = True,
    loss: str = "logits",
) -> Estimate:
    """Bytes held by one training step, by component.

    `model`: a name in `ARCHITECTURES`, a transformers configuration, or a model.
    `method`: "full", "lora" or "qlora".
    `dtype`: of the weights; for QLoRA of those that stay unquantised.
    `adapter_dtype`: of the adapters, their gradients and states (PEFT's default is fp32).
    `compute_dtype`: of activations and logits; `dtype` when None.
    `master_weights`: full fine-tuning in mixed precision: an fp32 copy of the weights, which the
    optimizer updates, and fp32 states beside it.
    `optimizer`: "adamw", "adamw_8bit" or "sgd". `loss`: "logits" or "chunked" (see `loss_bytes`).
    `batch` sequences of `seq` tokens each, padding included.

    Raises CourseError for an unknown model, method, optimizer, dtype or target.
    """
    _one_of(method, {name: None for name in METHODS}, "method")
    arch = describe(model)
    dtype, adapter = dtype_of(dtype), dtype_of(adapter_dtype)
    compute = dtype if compute_dtype is None else dtype_of(compute_dtype)
    settings = {"model": arch.name, "method": method, "dtype": _name(dtype)}
    part: dict[str, int] = {}

    if method == "full":
        trained = list(arch.sizes.values())
        trained_dtype, state_dtype = dtype, torch.float32 if master_weights else dtype
        part["weights"] = arch.parameters * dtype.itemsize
        part["master"] = arch.parameters * 4 if master_weights else 0
        settings["master_weights"] = master_weights
    else:
        trained = lora_sizes(arch, rank, targets)
        trained_dtype = state_dtype = adapter
        part["weights"] = arch.parameters * dtype.itemsize
        part["adapters"] = sum(trained) * adapter.itemsize
        said = targets if isinstance(targets, str) else ",".join(targets)
        settings |= {"adapter_dtype": _name(adapter), "rank": rank, "targets": said}
    if method == "qlora":
        stored = [nf4_bytes(layer.weights, double_quant=double_quant) for layer in arch.linear]
        part["weights"] = arch.rest * dtype.itemsize
        part["weights_4bit"] = sum(codes for codes, _ in stored)
        part["constants"] = sum(constants for _, constants in stored)
        settings["double_quant"] = double_quant

    part["gradients"] = sum(trained) * trained_dtype.itemsize
    part["optimizer"] = optimizer_bytes(trained, optimizer, state_dtype)

    tokens = batch * seq
    part["activations"], block = activation_bytes(
        arch, tokens, method, compute=compute, adapter=adapter, rank=rank,
        targets=targets, checkpointing=checkpointing,
    )  # fmt: skip
    if method == "qlora":
        # Backward turns one layer's codes back into the compute dtype at a time.
        block += max(layer.weights for layer in arch.linear) * compute.itemsize
    # The loss is over before backward recomputes the first block: never both.
    part["temporary"] = max(loss_bytes(arch, tokens, compute, loss), block)
    settings |= {
        "compute_dtype": _name(compute), "optimizer": optimizer, "batch": batch, "seq": seq,
        "checkpointing": checkpointing, "loss": loss,
    }  # fmt: skip
    added = 0 if method == "full" else sum(trained)
    return Estimate(
        **part, trainable=sum(trained), parameters=arch.parameters + added, settings=settings
    )


def on_card(n_bytes: float) -> float:
    """Bytes that a card needs for `n_bytes` of allocated memory: 1.1 x that, and 1 GiB.

    The caching allocator reserves more than it hands out: 1.04 to 1.25 times as much, 1.11 on
    average, in the six runs of `recorded/published_7b.json` that report both. The CUDA context
    takes 0.5 to 1.3 GB more.
    """
    return 1.1 * n_bytes + GiB


# --- what others have measured -------------------------------------------------------------------


def published() -> list[dict[str, Any]]:
    """Published measurements of models of about 7B parameters, each with source and settings.

    Every row gains "predicted": the `Estimate` at the row's settings, or None where the source
    does not state enough of them.
    """
    return _recorded("rows")


def fully_stated_runs() -> list[dict[str, Any]]:
    """Six runs of smaller models whose every setting is known, with allocated and reserved peaks.

    `allocated_gib`, `reserved_gib`, and "predicted" as in `published`.
    """
    return _recorded("allocated_and_reserved")


def _recorded(which: str) -> list[dict[str, Any]]:
    rows = json.loads((RECORDED / "published_7b.json").read_text(encoding="utf-8"))[which]
    for row in rows:
        stated = row["settings"]
        row["predicted"] = estimate(row["model"], row["method"], **stated) if stated else None
    return rows


# --- small print ---------------------------------------------------------------------------------


def _one_of(name: Any, table: Mapping[str, Any], what: str) -> Any:
    if name not in table:
        import difflib

        near = list(table)
        if len(near) > 4:
            near = difflib.get_close_matches(str(name), near, n=3, cutoff=0.3) or near
        raise CourseError(f"Unknown {what}: {name!r}.", f"Use one of: {', '.join(near)}.")
    return table[name]


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith("." + name)


def _name(dtype: torch.dtype) -> str:
    return next((k for k, v in DTYPES.items() if v == dtype), str(dtype))
