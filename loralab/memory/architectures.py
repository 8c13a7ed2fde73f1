"""Models by name, and what the formulas need to know of one: the sizes of its tensors.

Nothing here needs weights, a network or a GPU: a model is built from its configuration on torch's
`meta` device, where a tensor has a shape and a dtype but no data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loralab.errors import CourseError
from loralab.memory.vocabulary import dtype_of, nearest


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


_PHI_3 = {"pad_token_id": 32000, "eos_token_id": 32000}  # the defaults lie outside its vocabulary

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
    "qwen2.5-3b": _llama(2048, 11008, 36, 16, 2, 151936, True, 32768, "qwen2"),
    "qwen2.5-7b": _llama(3584, 18944, 28, 28, 4, 152064, False, 131072, "qwen2"),
    "gemma-2b": _llama(2048, 16384, 18, 8, 1, 256000, True, 8192, "gemma") | {"head_dim": 256},
    "gemma-7b": _llama(3072, 24576, 28, 16, 16, 256000, True, 8192, "gemma") | {"head_dim": 256},
    "gemma-2-2b": _llama(2304, 9216, 26, 8, 4, 256000, True, 8192, "gemma2") | {"head_dim": 256},
    "gemma-2-9b": _llama(3584, 14336, 42, 16, 8, 256000, True, 8192, "gemma2") | {"head_dim": 256},
    "phi-3-mini-4k": _llama(3072, 8192, 32, 32, 32, 32064, False, 4096, "phi3") | _PHI_3,
}


@dataclass(frozen=True)
class Linear:
    """One linear layer: its path and shape."""

    path: str
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs

    @property
    def name(self) -> str:
        """The last part of its path: what `target_modules` calls it."""
        return self.path.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Architecture:
    """What the formulas need to know of a model: the sizes of its tensors, and nothing else.

    `sizes`: parameters of each tensor, tied tensors once. `linear`: the layers that bitsandbytes
    quantises, which is every linear layer except the output `head`. `length`: tokens in the
    longest sequence. `softcap`: whether attention scores are capped (Gemma-2).
    """

    name: str
    family: str
    config: Any
    sizes: Mapping[str, int]
    linear: tuple[Linear, ...]
    head: Linear
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    embedding: int
    tied: bool
    length: int
    softcap: bool

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


def configuration(model: Any) -> Any:
    """The transformers configuration that `model` stands for.

    `model`: a name in `ARCHITECTURES`, a path of a `config.json` or of a folder with one, a hub
    id, or a configuration, which is returned as it is. Raises CourseError.
    """
    if not isinstance(model, str | Path):
        return model
    from transformers import AutoConfig

    settings = dict(ARCHITECTURES.get(str(model).lower()) or _read(model))
    if settings:
        try:
            return AutoConfig.for_model(settings.pop("model_type"), **settings)
        except (KeyError, ValueError, TypeError) as error:
            raise CourseError(
                f"{model}: transformers makes no model of it ({_first_line(error)}).",
                'A config.json needs a "model_type" that transformers knows.',
            ) from None
    return _from_hub(str(model))


def _read(model: str | Path) -> dict[str, Any]:
    """The settings in a `config.json`, or nothing where there is no such file."""
    path = Path(model).expanduser()
    if path.is_dir():
        path = path / "config.json"
    elif path.suffix != ".json":
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CourseError(
            f"{path} cannot be read as a configuration: {_first_line(error)}.",
            "Give a folder with a config.json, or the file itself.",
        ) from None
    if not isinstance(found, dict) or not found:
        raise CourseError(f"{path} is not a model's configuration.", "It should be one object.")
    # What it says of weights is of no use here, and their quantisation would be done twice.
    return {k: v for k, v in found.items() if k not in ("quantization_config", "auto_map")}


def _from_hub(model: str) -> Any:
    from transformers import AutoConfig

    near = nearest(model.rsplit("/", 1)[-1].lower(), ARCHITECTURES)
    if "/" in model:
        try:
            return AutoConfig.from_pretrained(model, trust_remote_code=False)
        except Exception as error:  # the hub's client raises of many kinds
            raise CourseError(
                f"{model!r} is no folder here, and the hub gave no configuration of it "
                f"({_first_line(error)}).",
                f"Without the hub these names work: {', '.join(near)}.",
            ) from None
    raise CourseError(
        f"Unknown model: {model!r}.",
        f"Use one of {', '.join(near)}; a folder or a config.json; or a hub id.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def build(
    model: str | Any, *, device: str = "meta", dtype: str | torch.dtype = "fp32"
) -> nn.Module:
    """The model with untrained weights; on `meta` (the default) with no weights at all.

    `model`: as in `configuration`.
    """
    from transformers import AutoModelForCausalLM

    config = configuration(model)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype_of(dtype))


def describe(model: str | Any) -> Architecture:
    """The `Architecture` of a model (not yet wrapped), or of what `configuration` takes."""
    if isinstance(model, Architecture):
        return model
    if isinstance(model, str):
        return _described(model.lower() if model.lower() in ARCHITECTURES else model)
    return _describe(model if isinstance(model, nn.Module) else build(model), "")


@lru_cache
def _described(name: str) -> Architecture:
    return _describe(build(name), name)


def _describe(model: nn.Module, name: str) -> Architecture:
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    linear, top = [], None
    for path, module in model.named_modules():
        if module is head:
            top = Linear(path, head.in_features, head.out_features)
        elif isinstance(module, Conv1D):  # GPT-2 stores its weights (in, out)
            linear.append(Linear(path, *module.weight.shape))
        elif isinstance(module, nn.Linear):
            linear.append(Linear(path, module.in_features, module.out_features))
    config = model.config
    heads = config.num_attention_heads
    mlp = getattr(config, "intermediate_size", None)
    return Architecture(
        name=name or type(model).__name__,
        family=config.model_type,
        config=config,
        sizes={n: p.numel() for n, p in model.named_parameters()},
        linear=tuple(linear),
        head=top,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate=mlp or 4 * config.hidden_size,
        vocab=config.vocab_size,
        embedding=embedding.weight.numel(),
        tied=head.weight is embedding.weight,
        length=getattr(config, "max_position_embeddings", None) or 2**62,
        softcap=bool(getattr(config, "attn_logit_softcapping", None)),
    )
