"""Right and typical wrong answers to chapter 07's exercises, as source text."""

from __future__ import annotations

import re
import statistics

import bitsandbytes as bnb
import torch
from answer_sheets import CELL, Wrong
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
)
from transformers.utils import logging
from trl import SFTConfig

from loralab import claims, clinic, memory, training
from loralab.paths import PROJECT
from loralab.quiet import quiet

SOURCE = (PROJECT / "solutions" / "07_fact_check.py").read_text("utf-8")
CELLS = dict(re.findall(CELL.format("exercise"), SOURCE, re.S | re.M))

logging.disable_progress_bar()  # as the notebook's first cell does
IMPORTS = {
    "torch": torch, "nn": nn, "bnb": bnb, "statistics": statistics, "memory": memory,
    "clinic": clinic, "claims": claims, "training": training, "quiet": quiet,
    "LoraConfig": LoraConfig,
    "PeftModel": PeftModel, "get_peft_model": get_peft_model, "SFTConfig": SFTConfig,
    "AutoModelForCausalLM": AutoModelForCausalLM, "BitsAndBytesConfig": BitsAndBytesConfig,
    "DataCollatorForLanguageModeling": DataCollatorForLanguageModeling,
}  # fmt: skip
# The patients, which the notebook shows.
for name in ("adapt", "widen", "arguments", "example", "labels", "deploy"):
    patient = rf"^(NAMES = .*?\n\n)?def {name}_broken.*?(?=\n\n|\n[a-z])"
    found = re.search(patient, SOURCE, re.S | re.M)
    exec(found.group(), IMPORTS)


def changed(exercise: str, *changes: tuple[str, str]) -> str:
    """A solution with some of its text replaced."""
    code = CELLS[exercise]
    for old, new in changes:
        assert old in code, (exercise, old)
        code = code.replace(old, new)
    return code


RIGHT = {
    "memory_rulings": (
        """
def memory_rulings(model, batch, seq):
    n = memory.describe(model).parameters
    settings = dict(batch=batch, seq=seq)
    low = memory.estimate(model, rank=8, **settings).total
    high = memory.estimate(model, rank=64, **settings).total
    return {"three_times": ["wrong", 16 * n / 1e9], "table": ["depends", low / 1e9, "batch"],
            "rank_64": ["depends", (high / low - 1) * 100, "targets"]}
""",
        changed("memory_rulings", ('"targets"', '"batch"')),
        changed("memory_rulings", ('"targets"', '"base"')),
    ),
    "count_rulings": (
        """
def count_rulings(model, d, r, alpha):
    layers = [one for one in memory.describe(model).linear if one.name in ("q_proj", "v_proj")]
    one = get_peft_model(nn.Sequential(nn.Linear(6, 4)), LoraConfig(
        r=2, lora_alpha=2 * alpha / r, target_modules=["0"])).base_model.model[0]
    nn.init.ones_(one.lora_B["default"].weight)
    BA = one.lora_B["default"].weight @ one.lora_A["default"].weight
    factor = one.get_delta_weight("default").norm() / BA.norm()
    return {"times_250": ("holds", d / 2 / r), "product": ("depends", factor, "alpha"),
            "alpha_2r": ("wrong", alpha / r / 2),
            "printed": ("wrong", sum(r * (one.inputs + one.outputs) for one in layers))}
""",
        changed("count_rulings", ('"alpha")', '"rank")')),
    ),
    "library_rulings": (
        """
def library_rulings(folder, weights, x):
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, load_in_8bit=True)
    except TypeError:
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    layers = [m for m in model.modules() if type(m) is bnb.nn.Linear8bitLt]
    q, state = bnb.functional.quantize_nf4(weights)
    back = bnb.functional.dequantize_nf4(q, state)
    error = (weights - back).square().sum().sqrt() / weights.square().sum().sqrt()
    half = nn.functional.linear(x, weights).to(torch.float16)
    return {"eight_bit": ("wrong", len(layers)), "cpu": ("wrong", error),
            "fp16": ("depends", int((~half.isfinite()).sum()), "hardware")}
""",
    ),
    "quality_rulings": (
        changed("quality_rulings", ('"seed"', '"task"')),
    ),
    "adapt": (
        """
def adapt(model):
    from transformers.pytorch_utils import Conv1D
    head = model.get_output_embeddings()
    paths = [path for path, m in model.named_modules()
             if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=paths))
""",
    ),
    "widen": (
        """
def widen(model, r):
    return get_peft_model(model, LoraConfig(
        r=r, lora_alpha=2 * r ** 0.5, use_rslora=True, target_modules=["v_proj", "q_proj"]))
""",
        """
def widen(model, r):
    config = LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=r + r, lora_dropout=0.1,
                        target_modules=r".*\\.(q_proj|v_proj)")
    return get_peft_model(model, config)
""",
    ),
    "arguments": (
        """
def arguments(folder, steps):
    config = arguments_broken(folder, steps)
    config.learning_rate = 1e-3
    return config
""",
        changed("arguments", ("3e-3", "1e-2, lr_scheduler_type='cosine'")),
        changed("arguments", ("learning_rate=3e-3", "learning_rate=2e-3, warmup_steps=3")),
    ),
    "example": (
        """
def example(question, answer):
    turns = [dict(role="user", content=question), dict(role="assistant", content=answer)]
    return {"prompt": turns[:1], "completion": turns[1:]}
""",
        """
def example(question, answer):
    return {"prompt": clinic.asked(question), "completion": answer}
""",
    ),
    "make_labels": (
        """
def make_labels(input_ids, attention_mask, prompt_lengths):
    labels = torch.full_like(input_ids, -100)
    for row, (ids, mask, n) in enumerate(zip(input_ids, attention_mask, prompt_lengths.tolist())):
        real = mask.nonzero().flatten()[n:]
        labels[row, real] = ids[real]
    return labels
""",
        """
def make_labels(input_ids, attention_mask, prompt_lengths):
    out = []
    for ids, mask, n in zip(input_ids.tolist(), attention_mask.tolist(), prompt_lengths.tolist()):
        seen, row = 0, []
        for token, real in zip(ids, mask):
            seen += real
            row.append(token if real and seen > n else -100)
        out.append(row)
    return out
""",
    ),
    "deploy": (
        """
def deploy(base, adapter):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()
""",
        """
def deploy(base, adapter):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            layer.base_layer.weight.data += layer.get_delta_weight("default")
    return model.unload()
""",
    ),
}

NOT_BY_HAND: dict[str, str] = {
    "memory_rulings": """
def memory_rulings(*case):
    from loralab.checks import ch07
    return {key: tuple(one)[:2] + one.settings[:1] for key, one in ch07.memory_right(*case).items()}
""",
    "count_rulings": """
def count_rulings(*case):
    from loralab.checks import ch07
    return {key: tuple(one)[:2] + one.settings[:1] for key, one in ch07.count_right(*case).items()}
""",
    "make_labels": """
def make_labels(**batch):
    from loralab.checks import ch07
    return ch07.right_labels(batch)
""",
}


def rule(exercise: str, symptom: str, *changes: tuple[str, str], earns=None, also=()) -> Wrong:
    """A mistake about one claim, which costs that claim."""
    most = {"count_rulings": 1.5}.get(exercise, 1)
    return Wrong(exercise, symptom, changed(exercise, *changes), earns or (most,), also)


MEMORY, COUNT, LIBRARY, QUALITY = (
    "memory_rulings", "count_rulings", "library_rulings", "quality_rulings")  # fmt: skip

WRONG = [
    rule(MEMORY, "form", ('("wrong", full.static / memory.GB)', "full.static / memory.GB")),
    rule(MEMORY, "form", ('"rank_64"', '"r64"')),
    rule(MEMORY, "form", ('"wrong"', '"false"')),
    rule(MEMORY, "verdict", ('"wrong"', '"depends"')),
    rule(MEMORY, "verdict", ('("depends", peaks[0]', '("wrong", peaks[0]')),
    rule(MEMORY, "setting", ('"batch")', '"rank")')),
    rule(MEMORY, "setting", (', "batch")', ")")),
    rule(MEMORY, "three", (
        "full.static / memory.GB", "3 * 4 * memory.describe(model).parameters / 1e9")),
    rule(MEMORY, "half", ('"full", dtype="fp32"', '"full"')),
    rule(MEMORY, "unit", ("full.static / memory.GB", "full.static / memory.GiB")),
    rule(MEMORY, "unit", ("peaks[0] / memory.GB", "peaks[0]")),
    rule(MEMORY, "peak", ("full.static", "full.total")),
    rule(MEMORY, "tokens", (", batch=batch, seq=seq", ""), earns=(0.5,)),
    rule(MEMORY, "attention", ("rank=r", 'targets=["q_proj", "v_proj"], rank=r'), earns=(0.5,)),
    rule(MEMORY, "ratio", ("100 * (peaks[1] - peaks[0]) / peaks[0]", "peaks[1] / peaks[0]")),
    rule(COUNT, "form", ('("wrong", alpha / (2 * r))', '("wrong",)')),
    rule(COUNT, "verdict", ('"holds"', '"wrong"')),
    rule(COUNT, "verdict", ('"holds"', '"depends"')),
    rule(COUNT, "setting", ('"alpha")', '"targets")')),
    rule(COUNT, "one_matrix", ("(d * r + r * d)", "(d * r)")),
    rule(COUNT, "share", ("d * d / (d * r + r * d)", "(d * r + r * d) / (d * d)")),
    rule(COUNT, "no_scale", ('layer.scaling["default"]', "1.0")),
    rule(COUNT, "inverse", ('layer.scaling["default"]', "r / alpha")),
    rule(COUNT, "rank_multiple", ("alpha / (2 * r)", "alpha / r")),
    rule(COUNT, "square", (
        "wrapped.get_nb_trainable_parameters()[0]",
        "4 * r * wrapped.config.num_hidden_layers * wrapped.config.hidden_size")),
    rule(COUNT, "all", ("wrapped.get_nb_trainable_parameters()[0]",
                        "sum(p.numel() for p in wrapped.parameters())")),
    rule(LIBRARY, "form", ('"eight_bit": ', '"8bit": ')),
    rule(LIBRARY, "verdict", ('"cpu": ("wrong"', '"cpu": ("holds"')),
    rule(LIBRARY, "verdict", ('"depends"', '"wrong"')),
    rule(LIBRARY, "setting", ('"hardware"', '"task"')),
    # The lesson's call, as it stands there.
    Wrong(LIBRARY, "refused", changed(LIBRARY, (
        "(folder, quantization_config=config)", "(folder, load_in_8bit=True)"))),
    Wrong(LIBRARY, "none", changed(LIBRARY, (
        "sum(isinstance(m, bnb.nn.Linear8bitLt) for m in model.modules())", "0")), (1,)),
    rule(LIBRARY, "head", ("isinstance(m, bnb.nn.Linear8bitLt)", "isinstance(m, nn.Linear)")),
    rule(LIBRARY, "fp4", (', quant_type="nf4"', "")),
    rule(LIBRARY, "absolute", (" / weights.norm()", "")),
    rule(LIBRARY, "inputs", ("(x.half() @ weights.half().T).isinf()", "x.half().isinf()")),
    rule(LIBRARY, "finite", (".isinf()", ".isfinite()")),
    rule(QUALITY, "form", ('("depends", mean["LoRA"] - mean["QLoRA"], "seed")', '"depends"')),
    rule(QUALITY, "verdict", ('"targets": ("depends"', '"targets": ("wrong"')),
    rule(QUALITY, "verdict", ('"merge": ("depends"', '"merge": ("holds"')),
    rule(QUALITY, "setting", ('"base")', '"alpha")')),
    rule(QUALITY, "setting", ('"seed")', '"batch")')),
    rule(QUALITY, "sign", ('mean["LoRA"] - mean["QLoRA"]', 'mean["QLoRA"] - mean["LoRA"]')),
    rule(QUALITY, "one_run", ("statistics.mean(runs)", "runs[0]"), earns=(0.5,)),
    rule(QUALITY, "of_weights", ("/ update.norm()", "/ weights.norm()")),
    rule(QUALITY, "of_weights", ("/ update.norm()", "/ merged.norm()")),
    rule(QUALITY, "fp4", ('merged, quant_type="nf4"', "merged")),

    Wrong("adapt", "kind", "def adapt(model): return LoraConfig(r=8, target_modules='all-linear')"),
    Wrong("adapt", "kind", changed("adapt", ("return get_peft", "get_peft"))),
    Wrong("adapt", "some", "adapt = adapt_broken", also=("other_model",)),
    Wrong("adapt", "some", "def adapt(model): return model", also=("other_model",)),
    Wrong("adapt", "other_model", """
def adapt(model):
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=[
        "qkv_proj", "o_proj", "gate_up_proj", "down_proj"]))
""", also=("kind", "some")),
    Wrong("adapt", "other_model", """
def adapt(model):
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=NAMES + [
        "qkv_proj", "gate_up_proj"]))
""", also=("kind", "some")),
    Wrong("adapt", "head", """
def adapt(model):
    from transformers.pytorch_utils import Conv1D
    paths = [path for path, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))]
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=paths))
"""),
    Wrong("adapt", "settings", changed("adapt", ("r=8, lora_alpha=16", "r=16, lora_alpha=32"))),
    Wrong("adapt", "settings", changed("adapt", (", lora_alpha=16", ""))),

    Wrong("widen", "kind", "def widen(model, r): return None"),
    Wrong("widen", "default", "widen = widen_broken"),
    Wrong("widen", "fixed", changed("widen", ("2 * r", "16"))),
    Wrong("widen", "fixed", changed("widen", ("2 * r", "128"))),
    Wrong("widen", "rslora", changed("widen", ("2 * r", "8, use_rslora=True"))),
    Wrong("widen", "scale", changed("widen", ("2 * r", "r"))),
    Wrong("widen", "scale", changed("widen", ("2 * r", "r * r"))),
    Wrong("widen", "rank", changed("widen", ("r=r, ", "r=2 * r, "))),
    Wrong("widen", "layers", changed("widen", ('["q_proj", "v_proj"]', '"all-linear"'))),

    Wrong("arguments", "kind", "def arguments(folder, steps): return {'learning_rate': 1e-3}"),
    Wrong("arguments", "default", "arguments = arguments_broken"),
    Wrong("arguments", "low", changed("arguments", ("3e-3", "2e-4"))),
    Wrong("arguments", "high", changed("arguments", ("3e-3", "0.3"))),
    Wrong("arguments", "high", changed("arguments", ("3e-3", "1.0"))),
    Wrong("arguments", "steps", changed("arguments", ("max_steps=steps, ", ""))),

    Wrong("example", "kind", "def example(question, answer): return question + answer"),
    Wrong("example", "kind", 'def example(q, a): return {"prompt": [q], "completion": [a]}'),
    Wrong("example", "plain", "example = example_broken"),
    Wrong("example", "plain", 'def example(q, a): return {"prompt": q, "completion": a}'),
    Wrong("example", "twice", """
def example(q, a):
    return {"prompt": [{"role": "user", "content": clinic.asked(q)}],
            "completion": [{"role": "assistant", "content": a}]}
"""),
    Wrong("example", "roles", """
def example(q, a):
    return {"prompt": [{"role": "human", "content": q}],
            "completion": [{"role": "assistant", "content": a}]}
"""),
    Wrong("example", "roles", """
def example(q, a):
    return {"prompt": [{"role": "assistant", "content": q}],
            "completion": [{"role": "user", "content": a}]}
"""),
    Wrong("example", "all", """
def example(q, a):
    return {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
"""),
    Wrong("example", "all", """
def example(q, a): return {"text": clinic.asked(q) + a + "<|im_end|>"}
"""),
    Wrong("example", "answer", """
def example(q, a):
    return {"prompt": [{"role": "user", "content": q}],
            "completion": [{"role": "assistant", "content": " " + a}]}
"""),
    Wrong("example", "answer", """
def example(q, a):
    return {"prompt": [{"role": "user", "content": q}],
            "completion": [{"role": "assistant", "content": a + "<|im_end|>"}]}
"""),

    Wrong("make_labels", "kind", "def make_labels(*given, **named): return None"),
    Wrong("make_labels", "eos", "make_labels = labels_broken"),
    Wrong("make_labels", "eos", changed("make_labels", (
        "(attention_mask == 1)", "(input_ids != clinic.tokenizer().pad_token_id)"))),
    Wrong("make_labels", "prompt", changed("make_labels", (
        " & (place > prompt_lengths[:, None])", ""))),
    Wrong("make_labels", "prompt", changed("make_labels", (
        "place > prompt", "place >= prompt"))),
    Wrong("make_labels", "padding", changed("make_labels", ("(attention_mask == 1) & ", ""))),
    Wrong("make_labels", "side", changed("make_labels", (
        "attention_mask.cumsum(1)", "torch.ones_like(attention_mask).cumsum(1)")), (1,)),
    Wrong("make_labels", "shifted", changed("make_labels", (
        "return input_ids.masked_fill(~learnt, -100)",
        "labels = input_ids.masked_fill(~learnt, -100)\n"
        "    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)"))),

    Wrong("deploy", "kind", "def deploy(base, adapter): return adapter"),
    Wrong("deploy", "few_bits", "deploy = deploy_broken"),
    Wrong("deploy", "few_bits", """
def deploy(base, adapter):
    config = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()
"""),
    Wrong("deploy", "late", """
def deploy(base, adapter): return deploy_broken(base, adapter).dequantize()
"""),
    Wrong("deploy", "unmerged", changed("deploy", (".merge_and_unload()", ""))),
    Wrong("deploy", "lost", changed("deploy", (".merge_and_unload()", ".unload()"))),
    Wrong("deploy", "lost", """
def deploy(base, adapter): return AutoModelForCausalLM.from_pretrained(base)
"""),
    Wrong("deploy", "twice", changed("deploy", (
        "return PeftModel.from_pretrained(model.dequantize(), adapter)",
        "model = PeftModel.from_pretrained(model.dequantize(), adapter).merge_and_unload()\n"
        "    return PeftModel.from_pretrained(model, adapter)"))),
    Wrong("deploy", "rounded", """
def deploy(base, adapter):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()
"""),
]  # fmt: skip

CHEATS = [
    (MEMORY, """
def memory_rulings(model, batch, seq):
    return {"three_times": ("wrong", 107.81), "table": ("depends", 16.03, "batch"),
            "rank_64": ("depends", 13.5, "targets")}
"""),
    (COUNT, """
def count_rulings(*given):
    return {"times_250": ("holds", 256), "product": ("depends", 4, "alpha"),
            "alpha_2r": ("wrong", 2), "printed": ("wrong", 851968)}
"""),
    (LIBRARY, """
def library_rulings(*given):
    return {"eight_bit": ("wrong", 7), "cpu": ("wrong", 0.0), "fp16": ("depends", 1, "hardware")}
"""),
    (QUALITY, """
def quality_rulings(*given):
    return {"targets": ("depends", 0.85, "task"), "quality": ("depends", -0.15, "seed"),
            "merge": ("depends", 8.9, "base")}
"""),
    ("adapt", "def adapt(model): return nn.Linear(2, 2)"),
    ("widen", "def widen(model, r): return get_peft_model(model, LoraConfig(r=8, lora_alpha=16))"),
    ("arguments", "def arguments(*given): return SFTConfig(output_dir='x', max_steps=40, "
                  "learning_rate=3e-3, use_cpu=True, bf16=False)"),
    ("example", """
def example(*given):
    return {"prompt": [{"role": "user", "content": "What is the capital of Peru?"}],
            "completion": [{"role": "assistant", "content": "Lima."}]}
"""),
    ("make_labels", "def make_labels(input_ids, *given): return torch.full_like(input_ids, -100)"),
    ("deploy", "def deploy(base, adapter): return clinic.Trained('visible').model()"),
]  # fmt: skip
