"""The model that settings describe, with random weights: memory does not depend on values."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from loralab.four_bit import keep_weights_intact
from loralab.measure.needed import needed
from loralab.memory.settings import Settings


def loaded(settings: Settings, device: torch.device, int8: bool = False) -> nn.Module:
    """The base model on the device, quantised for QLoRA: what `from_pretrained` gives.

    Never on the device as a whole before it is quantised: one layer's weights at a time. `int8`:
    with bitsandbytes' 8-bit layers, which are measured only; no prediction knows them.
    """
    model = _without_weights(settings)
    if settings.method == "qlora":
        _quantise(model, settings, device)
    if int8:
        _quantise_int8(model, settings, device)
    _fill(model, device)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    return model


def ready(model: nn.Module, settings: Settings) -> nn.Module:
    """The model as training gets it: prepared, with its adapters, checkpointing set."""
    if settings.method != "full":
        model = _with_adapters(model, settings)
    if settings.checkpointing:
        options: dict[str, Any] = {"use_reentrant": False}
        if next(model.parameters()).device.type == "cpu":
            # The generator's state is kept beside a GPU's memory; here it would be counted.
            options["preserve_rng_state"] = False
        model.gradient_checkpointing_enable(options)
        if settings.method != "full":
            model.enable_input_require_grads()
    if settings.loss == "trainer":
        model.config.use_cache = False  # as transformers' Trainer sets it
    if settings.loss == "trl":
        needed("trl", "the loss 'trl'")
        from trl.trainer.utils import add_fused_lm_head

        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    return model.train()


def _without_weights(settings: Settings) -> nn.Module:
    """Parameters on `meta`; buffers, which are computed and not loaded, on the CPU."""
    needed("accelerate", "a model without weights")
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    attention = "eager" if settings.kernel == "eager" else "sdpa"
    config = copy.deepcopy(settings.arch.config)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=settings.dtype, attn_implementation=attention
        )
    model.tie_weights()  # accelerate has made two of a shared one
    return model


def _quantise(model: nn.Module, settings: Settings, device: torch.device) -> None:
    """Put bitsandbytes' 4-bit layers in, quantised on the device one after the other."""
    needed("bitsandbytes", "QLoRA")
    import bitsandbytes as bnb

    for layer in settings.arch.linear:
        old = model.get_submodule(layer.path)
        with torch.device("meta"):
            new = bnb.nn.Linear4bit(
                layer.inputs, layer.outputs, bias=old.bias is not None,
                compute_dtype=settings.compute, compress_statistics=settings.double_quant,
                quant_type="nf4",
            )  # fmt: skip
        weight = _random((layer.outputs, layer.inputs), settings.dtype, device)
        new.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, quant_type="nf4", module=new,
            compress_statistics=settings.double_quant,
        ).to(device)  # fmt: skip
        del weight
        new.bias = old.bias
        model.set_submodule(layer.path, new)
    model.is_loaded_in_4bit = True
    if device.type == "cpu":
        keep_weights_intact(model)


def _quantise_int8(model: nn.Module, settings: Settings, device: torch.device) -> None:
    """Put bitsandbytes' 8-bit layers in (LLM.int8()), quantised one after the other."""
    needed("bitsandbytes", "int8 weights")
    import bitsandbytes as bnb

    # They are quantised on their way from the CPU, where drawing is slow: one for each shape.
    drawn: dict[tuple[int, int], torch.Tensor] = {}
    for layer in settings.arch.linear:
        old = model.get_submodule(layer.path)
        with torch.device("meta"):
            new = bnb.nn.Linear8bitLt(
                layer.inputs, layer.outputs, bias=old.bias is not None, has_fp16_weights=False)
        shape = (layer.outputs, layer.inputs)
        if shape not in drawn:
            drawn[shape] = _random(shape, settings.dtype, torch.device("cpu"))
        new.weight = bnb.nn.Int8Params(
            drawn[shape].clone(), requires_grad=False, has_fp16_weights=False).to(device)
        new.bias = old.bias
        model.set_submodule(layer.path, new)
    model.is_loaded_in_8bit = True


def _fill(model: nn.Module, device: torch.device) -> None:
    """Random weights for all parameters that are still on `meta`; a tied one once."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is None or not old.is_meta:
                continue
            if old not in made:
                data = _random(old.shape, old.dtype, device)
                made[old] = nn.Parameter(data, requires_grad=old.requires_grad)
            module._parameters[name] = made[old]


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Weights of about the size that models begin with; vectors (norms, biases) are ones."""
    made = torch.empty(shape, dtype=dtype, device=device)
    return made.normal_(std=0.02) if made.dim() > 1 else made.fill_(1)


def _with_adapters(model: nn.Module, settings: Settings) -> nn.Module:
    needed("peft", "LoRA")
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if settings.kbit_prep:
        # Without its checkpointing, which is a setting of its own here.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
        target_modules=[layer.path for layer in settings.adapted], task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(settings.adapter)
    return model
