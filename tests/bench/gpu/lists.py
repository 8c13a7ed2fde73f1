"""The runs of each part, as plain settings."""

from __future__ import annotations

import random
from typing import Any

Given = dict[str, Any]

LESSON = {"model": "llama-2-7b", "rank": 8, "alpha": 32, "targets": ["q_proj", "v_proj"]}
METHODS: dict[str, Given] = {
    "full, bf16": {"method": "full"},
    "full, mixed precision": {"method": "full", "dtype": "fp32", "autocast": True},
    "LoRA, bf16": {"method": "lora"},
    "LoRA, int8": {"method": "lora", "int8": True},
    "QLoRA": {"method": "qlora"},
}
DRAWN = 72
MODELS = ("smollm2-135m", "gpt2-large", "llama-3.2-1b", "qwen2.5-7b", "llama-2-13b")
ATTENTION = {"gpt2-large": ["c_attn"]}
CHOICES: dict[str, list[Any]] = {
    "batch": [1, 2, 4],
    "seq": [256, 512, 1000, 2048],
    "checkpointing": [True, False],
    "loss": ["hf", "trainer", "trl"],
    "optimizer": ["adamw", "adamw_foreach", "adamw_8bit", "paged_adamw_8bit", "sgd"],
    "autocast": [True, False],
    "attention": ["auto", "auto", "auto", "sdpa-math", "eager"],
}
ADAPTER_CHOICES: dict[str, list[Any]] = {
    "rank": [4, 16, 64, 256],
    "targets": ["all-linear", "attention"],
    "adapter_dtype": ["fp32", "bf16"],
    "dropout": [0.0, 0.0, 0.1],
}
QLORA_CHOICES: dict[str, list[Any]] = {"double_quant": [True, False], "kbit_prep": [True, False]}


def table() -> list[Given]:
    """The lesson's methods on a 7B model, at two lengths, with and without checkpointing."""
    return [
        {**({} if name.startswith("full") else LESSON), "model": LESSON["model"], **chosen,
         "loss": "trainer", "batch": 1, "seq": seq, "checkpointing": checkpointing}
        for name, chosen in METHODS.items() for seq in (512, 2048) for checkpointing in (True, False)
    ]  # fmt: skip


def name_of(given: Given) -> str:
    """The method's name in the table."""
    chosen = {key: given[key] for key in ("method", "dtype", "autocast", "int8") if key in given}
    return next(name for name, method in METHODS.items() if method == chosen)


def predictions() -> list[Given]:
    """Drawn from all that can be chosen, the same ones each time; every model under every method.

    Full fine-tuning is drawn for the models up to 1B only: for 13B it needs more than a GPU has.
    """
    draw, found = random.Random(7), []
    for number in range(DRAWN):
        model = MODELS[number % len(MODELS)]
        large = model in MODELS[3:]
        methods = ("lora", "qlora") if large else ("full", "lora", "qlora")
        chosen: Given = {"model": model, "method": methods[number // len(MODELS) % len(methods)]}
        chosen |= {name: draw.choice(values) for name, values in CHOICES.items()}
        if large and chosen["attention"] in ("eager", "sdpa-math"):
            chosen["seq"] = min(chosen["seq"], 512)  # they keep heads x length x length numbers
        if model == "gpt2-large":
            chosen["seq"] = min(chosen["seq"], 1000)  # of 1024 that it knows
        if chosen["method"] == "full":
            chosen["dtype"] = draw.choice(["bf16", "fp32"])
        else:
            chosen |= {name: draw.choice(values) for name, values in ADAPTER_CHOICES.items()}
            if chosen["targets"] == "attention":
                chosen["targets"] = ATTENTION.get(model, ["q_proj", "v_proj"])
            if model == "smollm2-135m":
                chosen["rank"] = min(chosen["rank"], 64)  # its v_proj is 192 x 576
        if chosen["method"] == "qlora":
            chosen |= {name: draw.choice(values) for name, values in QLORA_CHOICES.items()}
        found.append(chosen)
    return found


def rank() -> list[Given]:
    """Rank 8 against 64, for LoRA and QLoRA, on q and v and on all linear layers."""
    return [
        {"model": "llama-2-7b", "method": method, "rank": r, "targets": targets,
         "loss": "trainer", "batch": 1, "seq": 512}
        for method in ("lora", "qlora") for targets in (["q_proj", "v_proj"], "all-linear")
        for r in (8, 64)
    ]  # fmt: skip


def training() -> list[Given]:
    """Chapter 05's three methods at its own settings, and the two chapters that train."""
    return [{"run": name} for name in ("QLoRA", "LoRA", "full fine-tuning")] + [
        {"chapter": "05_qlora_training"}, {"chapter": "08_capstone"}]


def speed() -> list[Given]:
    """The course's training cell, TRL's defaults, faster settings; then generation.

    `trainer`: "course" (`loralab.training.sft_config`) or "defaults" (TRL's own). What else is
    named replaces one setting of it.
    """
    course = {"trainer": "course"}
    return [
        *({"train": method, **course} for method in ("qlora", "lora")),
        *({"train": method, "trainer": "defaults"} for method in ("qlora", "lora")),
        {"train": "lora", **course, "optim": "adamw_torch"},
        {"train": "lora", **course, "per_device_train_batch_size": 64},
        {"train": "qlora", **course, "per_device_train_batch_size": 64},
        {"train": "lora", **course, "packing": True, "max_length": 1024},
        {"train": "lora", **course, "attn_implementation": "eager"},
        *({"generate": how, "batch": batch}
          for how in ("base", "LoRA", "LoRA, merged", "QLoRA") for batch in (1, 16)),
    ]  # fmt: skip


PARTS = {"table": table, "predictions": predictions, "rank": rank, "training": training,
         "speed": speed}  # fmt: skip
