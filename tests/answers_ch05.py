"""Right and typical wrong answers to chapter 05's exercises, each written once."""

import numpy as np
import torch
from peft import LoraConfig, TaskType
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from loralab import hardware, memory, recorded_runs
from loralab.checks import ch05 as check

COMPUTE = hardware.detect().compute_dtype
OTHER_SIZE = "bf16" if COMPUTE == torch.float32 else "fp32"
OTHER = torch.float16 if COMPUTE != torch.float16 else torch.float32


def quantised(**changed):
    settings = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=COMPUTE)  # fmt: skip
    return lambda: BitsAndBytesConfig(**settings | changed)


def found(model):
    head = model.get_output_embeddings()
    return {p.split(".")[-1] for p, m in model.named_modules()
            if isinstance(m, nn.Linear) and m is not head}  # fmt: skip


def by_loop(model):
    names = []
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if "Linear" in type(module).__name__ and name != "lm_head" and name not in names:
            names.append(name)
    return names


def by_list(model):
    head, names = model.get_output_embeddings(), []
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module is head:
            continue
        *_, last = path.split(".")
        if last not in names:
            names.append(last)
    return tuple(names)


def by_peft(model):
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    paths = _maybe_include_all_linear_layers(config, model).target_modules
    return {path.split(".")[-1] for path in paths}


def head_of(model):
    head = model.get_output_embeddings()
    return next(p.split(".")[-1] for p, m in model.named_modules() if m is head)


def every_path(model):
    return [p for p, m in model.named_modules() if isinstance(m, nn.Linear) and "head" not in p]


LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
MODEL = AutoModelForCausalLM.from_config(
    LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=64, pad_token_id=0)
)  # fmt: skip


def lora(**changed):
    settings = dict(r=8, lora_alpha=16, task_type="CAUSAL_LM")
    return lambda model: LoraConfig(**settings | {"target_modules": sorted(found(model))} | changed)


def example(language, english, translation):
    return {"prompt": language.prompt(english), "completion": " " + translation}


RIGHT_RUN = check.run_estimate()
ARCH = memory.describe("smollm2-135m")


def run(trainable=RIGHT_RUN.trainable, held_bytes=RIGHT_RUN.static):
    return lambda: {"trainable": trainable, "held_bytes": held_bytes}


def read(**changed):
    return lambda: READ | changed


READ = recorded_runs.conclusions(recorded_runs.recorded())

# The name of the function that each exercise asks for, where it is not the exercise's.
FUNCTIONS = {
    "quantization_config": "make_quantization_config",
    "lora_config": "make_lora_config",
    "predicted_run": "predicted",
}
# By exercise: functions as students write them.
RIGHT = {
    "format_example": [
        example,
        lambda la, e, t: dict(completion=" ".join(("", t)), prompt=f"{e}\n{la.name}:"),
        lambda la, e, t: {"prompt": la.prompt(e), "completion": " " + t, "english": e},
    ],
    "quantization_config": [
        quantised(), quantised(bnb_4bit_quant_storage=torch.uint8),
        quantised(bnb_4bit_compute_dtype=str(COMPUTE).removeprefix("torch.")),
    ],
    "linear_names": [found, by_list, by_peft, lambda model: dict.fromkeys(found(model)).keys()],
    "lora_config": [
        lora(), lora(target_modules="all-linear", lora_dropout=0.1), lora(lora_alpha=16.0),
        lora(lora_alpha=2 * 8**0.5, use_rslora=True), lora(task_type=TaskType.CAUSAL_LM),
    ],
    "predicted_run": [
        run(), run(torch.tensor(RIGHT_RUN.trainable), float(RIGHT_RUN.static) * 1.003),
        run(np.int64(RIGHT_RUN.trainable), np.float32(RIGHT_RUN.static)),
    ],
    "reading": [
        read(), lambda: dict(reversed(READ.items())),
        lambda: {key: np.bool_(value) for key, value in READ.items()},
    ],
}  # fmt: skip
# Right on the visible check's models only.
NEARLY = {"linear_names": [by_loop]}
WRONG = {
    "format_example": {
        "question": [lambda la, e, t: {"prompt": "", "completion": f"{la.prompt(e)} {t}"}],
        "answer_given": [lambda la, e, t: {"prompt": f"{la.prompt(e)} {t}", "completion": ""}],
        "no_space": [lambda la, e, t: {"prompt": la.prompt(e), "completion": t}],
        "extra": [lambda la, e, t: {"prompt": la.prompt(e), "completion": f" {t}\n"}],
        "one_text": [lambda la, e, t: {"text": f"{la.prompt(e)} {t}"}, lambda la, e, t: e + t],
        "other_prompt": [
            lambda la, e, t: {"prompt": e, "completion": " " + t},
            lambda la, e, t: {"prompt": f"Translate: {e}", "completion": " " + t},
            lambda la, e, t: {"prompt": la.prompt(e) + " ", "completion": " " + t},
        ],
        None: [lambda la, e, t: {"prompt": la.prompt(e), "completion": None},
               lambda la, e, t: None],
    },
    "quantization_config": {
        "fp4": [lambda: BitsAndBytesConfig(load_in_4bit=True),
                quantised(bnb_4bit_quant_type="fp4")],
        "unknown_type": [quantised(bnb_4bit_quant_type="NF4"), quantised(bnb_4bit_quant_type="nf")],
        "no_double": [quantised(bnb_4bit_use_double_quant=False)],
        "compute": [quantised(bnb_4bit_compute_dtype=OTHER)],
        "eight_bit": [lambda: BitsAndBytesConfig(load_in_8bit=True)],
        None: [lambda: {"load_in_4bit": True}, lambda: None],
    },
    "linear_names": {
        "head": [lambda m: found(m) | {head_of(m)}],
        "hard_coded": [lambda m: LLAMA,
                       lambda m: {n for n in found(m) if n.endswith("proj")}],
        "nothing": [lambda m: set(), lambda m: [
            p for p, x in m.named_modules() if type(x).__name__ == "Linear4bit"]],
        "attention_only": [lambda m: {n for n in found(m) if "mlp" not in n and n[0] in "qkvo"}],
        "paths": [every_path],
        "everything": [lambda m: {p.split(".")[-1] for p, _ in m.named_modules() if p}],
        None: [lambda m: "all-linear", lambda m: None],
    },
    "lora_config": {
        "alpha": [lora(lora_alpha=8), lora(lora_alpha=32), lora(use_rslora=True)],
        "rank": [lora(r=16, lora_alpha=32)],
        "targets": [lora(target_modules=["q_proj", "v_proj"]), lora(target_modules=None)],
        "task": [lora(task_type=None)],
        None: [lambda model: {"r": 8}, lambda model: None, lora(target_modules=".*_proj")],
    },
    "predicted_run": {
        "all_parameters": [run(ARCH.parameters + RIGHT_RUN.trainable), run(ARCH.parameters)],
        "compute": [run(held_bytes=memory.estimate("smollm2-135m", dtype=OTHER_SIZE).static)],
        "two_targets": [run(460_800)],
        "square": [run(7 * 30 * 8 * 2 * 576)],
        "embedding": [run(held_bytes=RIGHT_RUN.static
                          - ARCH.rest * (COMPUTE.itemsize - 0.5))],
        "constants": [run(held_bytes=RIGHT_RUN.static - RIGHT_RUN.held["constants"])],
        "weights_only": [run(held_bytes=RIGHT_RUN.static - RIGHT_RUN.held["gradients"]
                             - RIGHT_RUN.held["optimizer"])],
        "adapters_fp32": [run(held_bytes=memory.estimate(
            "smollm2-135m", dtype=COMPUTE, adapter_dtype="fp32").static)],
        "total": [run(held_bytes=memory.estimate("smollm2-135m", "qlora", **settings).total)
                  for settings in (dict(dtype=COMPUTE, adapter_dtype="bf16", rank=8),
                                   dict(dtype=COMPUTE, adapter_dtype="bf16", batch=8, seq=128,
                                        loss="trl", checkpointing=False), {})],
        "unit": [run(held_bytes=RIGHT_RUN.static / size) for size in (10**6, 2**20, 10**9, 2**30)]
                + [run(held_bytes=round(RIGHT_RUN.static / 10**6))],
        None: [run(held_bytes=RIGHT_RUN.static * 1.01), lambda: 2_442_240, lambda: None],
    },
    "reading": {
        "undecided": [lambda: {}, read(default=None), lambda: "yes"],
        **{key: [read(**{key: not value})] for key, value in READ.items()},
    },
}  # fmt: skip
