"""Small models for the tests: one of each family that the formulas know, and one that reads text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Grouped-query attention; no size is a multiple of 64, and tensors lie on both sides of the
# 4,096 parameters from which on bitsandbytes quantises their states.
_LLAMA = {
    "model_type": "llama", "vocab_size": 500, "hidden_size": 96, "intermediate_size": 200,
    "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "tie_word_embeddings": True, "max_position_embeddings": 128,
}  # fmt: skip
_NO_DROPOUT = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}

TINY: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 96, "n_layer": 3, "n_head": 6, "vocab_size": 500,
             "n_positions": 128, **_NO_DROPOUT},
    "llama": _LLAMA,
    "qwen2": _LLAMA | {"model_type": "qwen2", "tie_word_embeddings": False},
    "gemma2": _LLAMA | {"model_type": "gemma2", "head_dim": 16},
    "phi3": _LLAMA | {"model_type": "phi3", "tie_word_embeddings": False, "pad_token_id": 0,
                      "bos_token_id": 1, "eos_token_id": 2},
}  # fmt: skip


def with_tokenizer(folder: Path) -> str:
    """A Llama of two narrow layers with the embedded model's tokenizer, saved in `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from loralab import base_model

    base_model.load_tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
            bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )  # fmt: skip
    ).save_pretrained(folder)
    return str(folder)
