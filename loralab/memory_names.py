"""The names that `loralab.memory` takes: of models, methods, optimizers, losses and kernels.

Nothing here imports torch, so that the command line answers a wrong name at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loralab.errors import CourseError

METHODS = ("full", "lora", "qlora")
OPTIMIZERS = {
    "adamw": "torch.optim.AdamW, fused: the default of transformers' Trainer",
    "adamw_foreach": "torch.optim.AdamW as torch chooses on a GPU: temporary copies at each step",
    "adamw_8bit": "bitsandbytes AdamW8bit",
    "paged_adamw_8bit": "bitsandbytes PagedAdamW8bit: states of large tensors in paged memory",
    "sgd": "torch.optim.SGD without momentum",
}
OTHER_NAMES = {  # transformers' names for the same
    "adamw_torch_fused": "adamw", "adamw_torch": "adamw_foreach", "adamw_bnb_8bit": "adamw_8bit",
}  # fmt: skip
LOSSES = {
    "hf": "a plain loop, `outputs = model(...); outputs.loss.backward()`: the logits stay",
    "trainer": "transformers' Trainer: the logits are let go before backward",
    "trl": "TRL's SFTTrainer: the logits never exist as a whole",
}
ATTENTION = {
    "auto": "what PyTorch chooses on a GPU of compute capability 8.0 or more",
    "sdpa-flash": "16-bit only; keeps queries, keys, values and output",
    "sdpa-efficient": "like flash, with keys and values repeated for every head",
    "sdpa-math": "keeps heads x length x length numbers a layer",
    "eager": "transformers' own: keeps several times heads x length x length",
}
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # what torch calls them


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


def one_of(name: Any, known: Iterable[str], what: str) -> str:
    """`name`, if it is known. Raises CourseError with the nearest names otherwise."""
    known = list(known)
    if name in known:
        return name
    near = nearest(str(name), known)
    raise CourseError(f"Unknown {what}: {name!r}.", f"Use one of: {', '.join(near)}.")


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The names most like `name`; all of them where they are few or none is like it."""
    known = list(known)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.3)
    return near if near and len(known) > 6 else known


def unknown_model(model: str) -> CourseError | None:
    """What is wrong with a name that is neither known, nor a path here, nor may be a hub id."""
    if model.lower() in ARCHITECTURES or "/" in model or Path(model).suffix == ".json":
        return None
    if Path(model).expanduser().is_dir():
        return None
    near = nearest(model.lower(), ARCHITECTURES)
    return CourseError(
        f"Unknown model: {model!r}.",
        f"Use one of {', '.join(near)}; a folder or a config.json; or a hub id.",
    )


_KNOWN = {
    "method": METHODS, "optimizer": (*OPTIMIZERS, *OTHER_NAMES), "loss": LOSSES,
    "attention": ATTENTION, "dtype": DTYPES, "adapter_dtype": DTYPES, "compute_dtype": DTYPES,
}  # fmt: skip


def check(setting: str, value: Any) -> None:
    """Raises CourseError for a value that is no name of that setting, as far as names tell."""
    if setting == "model" and (wrong := unknown_model(value)):
        raise wrong
    if setting in _KNOWN:
        one_of(value, _KNOWN[setting], setting.replace("_dtype", " dtype"))
