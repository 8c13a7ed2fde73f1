"""What the formulas need to know of a model: the sizes of its tensors.

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
from loralab.memory.vocabulary import dtype_of
from loralab.memory_names import ARCHITECTURES, nearest, unknown_model


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
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    settings = dict(ARCHITECTURES.get(str(model).lower()) or _read(model))
    if settings:
        try:
            return AutoConfig.for_model(settings.pop("model_type"), **settings)
        except (KeyError, ValueError, TypeError, StrictDataclassError) as error:
            said = " ".join(str(error).split())[:200]
            raise CourseError(
                f"{model}: transformers makes no model of it ({said}).",
                'A config.json needs a "model_type" that transformers knows, and sizes that fit.',
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

    if wrong := unknown_model(model):
        raise wrong
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # the hub's client raises of many kinds
        near = nearest(model.rsplit("/", 1)[-1].lower(), ARCHITECTURES)
        raise CourseError(
            f"{model!r} is no folder here, and the hub gave no configuration of it "
            f"({_first_line(error)}).",
            f"Without the hub these names work: {', '.join(near)}.",
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def build(
    model: str | Any, *, device: str = "meta", dtype: str | torch.dtype = "fp32"
) -> nn.Module:
    """The model with untrained weights; on `meta` (the default) with no weights at all.

    `model`: as in `configuration`. Raises CourseError.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    config = configuration(model)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _no_language_model(config)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype_of(dtype))


def _no_language_model(config: Any) -> CourseError:
    return CourseError(
        f"{config.model_type!r} is no language model of transformer blocks that reads text alone.",
        "Of one that reads images as well, give the text_config as a config.json of its own.",
    )


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
    if not hasattr(config, "num_attention_heads"):
        raise _no_language_model(config)
    heads = config.num_attention_heads
    mlp = getattr(config, "intermediate_size", None)
    length = getattr(config, "max_position_embeddings", None)
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
        length=length if length and length > 0 else 2**62,
        softcap=bool(getattr(config, "attn_logit_softcapping", None)),
    )
