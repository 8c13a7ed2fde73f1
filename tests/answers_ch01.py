"""Right and typical wrong answers to chapter 01's exercises, each written once.

Answers are source text; `run` gives the functions that it defines.
"""

from __future__ import annotations

import math
import re

import numpy as np
import torch

from loralab import memory
from loralab.checks import ch01
from loralab.paths import PROJECT

SOURCE = (PROJECT / "solutions" / "01_memory_math.py").read_text(encoding="utf-8")
CELLS = dict(re.findall(r'^# %% exercise="(\w+)"\n(.*?)(?=^# %%)', SOURCE, re.S | re.M))
ANSWERS = {
    "weight_bytes": ("weight_bytes", "in_gb", "in_gib"),
    "training_state_bytes": ("training_state_bytes",),
    "lora_state_bytes": ("lora_state_bytes",),
    "qlora_weight_bytes": ("qlora_weight_bytes",),
    "table_settings": ("table_settings",),
    "cheapest_fit": ("cheapest_fit",),
}


# What the chapter's first cell brings in.
IMPORTS = {"torch": torch, "np": np, "math": math, "memory": memory, "check": ch01}


def run(code: str, names: tuple[str, ...]) -> list:
    """The functions of these names that the code defines, with the notebook's imports."""
    space = dict(IMPORTS)
    exec(code, space)
    return [space[name] for name in names]


def solution(exercise: str) -> list:
    return run(CELLS[exercise], ANSWERS[exercise])


def stub_code(exercise: str) -> str:
    return re.sub(
        r"^( *)### BEGIN SOLUTION.*?### END SOLUTION", r"\1raise NotImplementedError('write it')",
        CELLS[exercise], flags=re.S | re.M,
    )  # fmt: skip


def stub(exercise: str) -> list:
    return run(stub_code(exercise), ANSWERS[exercise])


# --- other right answers -------------------------------------------------------------------------

RIGHT = {
    "weight_bytes": (
        """
SIZES = {torch.float64: 8, torch.float32: 4, torch.bfloat16: 2, torch.float16: 2, torch.int8: 1}
weight_bytes = lambda n_params, dtype: torch.tensor(n_params) * SIZES[dtype]
in_gb = lambda n: np.float64(n) / 1e9
in_gib = lambda n: torch.tensor(n, dtype=torch.float64) / 1024 ** 3
""",
        """
def weight_bytes(n, dtype):
    bits = torch.finfo(dtype).bits if dtype.is_floating_point else torch.iinfo(dtype).bits
    return n * bits / 8
def in_gb(n):
    for _ in range(3): n /= 1000
    return n
def in_gib(n):
    for _ in range(3): n /= 1024
    return n
""",
    ),
    "training_state_bytes": (
        """
TABLE = {("fp32", "adamw"): 16, ("fp32", "sgd"): 8, ("bf16", "adamw"): 8, ("bf16", "sgd"): 4,
         ("mixed", "adamw"): 16, ("mixed", "sgd"): 8}
def training_state_bytes(n, precision, optimizer):
    return np.int64(n) * TABLE[precision, optimizer]
""",
        """
def training_state_bytes(n_params, precision, optimizer):
    items = {"fp32": [4, 4], "bf16": [2, 2], "mixed": [2, 2, 4]}[precision]
    if optimizer == "adamw":
        items += [items[-1], items[-1]]
    return torch.tensor([float(n_params) * i for i in items], dtype=torch.float64).sum()
""",
    ),
    "lora_state_bytes": (
        """
def lora_state_bytes(n_base, n_adapter, base_dtype, adapter_dtype):
    size = lambda d: torch.empty(1, dtype=d).element_size()
    return float(n_base * size(base_dtype) + sum(n_adapter * size(adapter_dtype) for _ in range(4)))
""",
        """
def lora_state_bytes(a, b, c, d):
    return np.array([a * c.itemsize, b * d.itemsize, b * d.itemsize, 2 * b * d.itemsize]).sum()
""",
    ),
    "qlora_weight_bytes": (
        """
def qlora_weight_bytes(linear_sizes, n_rest, rest_dtype, double_quant):
    n = np.array(linear_sizes)
    blocks = -(-n // 64)
    constants = blocks + 4 * -(-blocks // 256) + 1092 if double_quant else 4 * blocks + 64
    total = (-(-n // 2) + constants).sum()
    return total + n_rest * rest_dtype.itemsize
""",
        """
def qlora_weight_bytes(linear_sizes, n_rest, rest_dtype, double_quant):
    total = torch.tensor(n_rest * rest_dtype.itemsize)
    while linear_sizes:
        blocks, incomplete = divmod(size := linear_sizes.pop(), 64)
        blocks += incomplete > 0
        total = total + (size + 1) // 2 + 4 * 16
        total = total + (blocks + (blocks + 255) // 256 * 4 + 4 + 1024 if double_quant else 4 * blocks)
    return total
""",
    ),
    "table_settings": (
        """
def table_settings():
    return {"qlora": [dict(seq=2048), dict(seq=4096)],
            "lora": [dict(seq=2048), dict(seq=2048, checkpointing=False)],
            "full": [{}, dict(dtype=torch.float32)]}
""",
        """
def table_settings():
    return {"full": (dict(targets="all-linear"), dict(targets="all-linear", optimizer="sgd")),
            "lora": (dict(batch=4, rank=16), dict(batch=4, rank=16, dtype="fp32")),
            "qlora": (dict(batch=2, seq=1280), dict(batch=8, seq=1280))}
""",
    ),
    "cheapest_fit": (
        """
def cheapest_fit(gpu_gib, model, batch, seq):
    fits = [[m, np.bool_(c)] for m, c in check.OPTIONS if memory.on_card(memory.estimate(
        model, m, batch=batch, seq=seq, checkpointing=c).total) <= gpu_gib * 2**30]
    return fits[0] if fits else None
""",
        """
def cheapest_fit(gpu_gib, model, batch, seq):
    for method in ("full", "lora", "qlora"):
        for ck in (0, 1):
            e = memory.estimate(model, method, batch=batch, seq=seq, checkpointing=bool(ck))
            if e.total / 2**30 * 1.1 + 1 < gpu_gib:
                return method, ck
""",
    ),
}


# Right numbers, taken from what would solve the exercise in one line.
NOT_BY_HAND = {
    "weight_bytes": """
def weight_bytes(n, dtype): return memory.on_card(n)
def in_gb(n): return n / memory.GB if memory.dtype_of("fp32") else 0
def in_gib(n): return n / memory.GiB if memory.dtype_of("fp32") else 0
""",
    "training_state_bytes": """
def training_state_bytes(n, precision, optimizer):
    from loralab.memory import optimizer_bytes
    return optimizer_bytes([n], optimizer, "fp32")
""",
    "lora_state_bytes": """
from peft import LoraConfig
def lora_state_bytes(*given): return LoraConfig(r=8)
""",
    "qlora_weight_bytes": """
def qlora_weight_bytes(linear_sizes, n_rest, rest_dtype, double_quant):
    return n_rest * rest_dtype.itemsize + sum(
        sum(memory.nf4_bytes(size, double_quant=double_quant)) for size in linear_sizes)
""",
}


# --- typical mistakes ----------------------------------------------------------------------------

GOOD_UNITS = "in_gb = lambda n: n / 1e9\nin_gib = lambda n: n / 2**30\n"
GOOD_WEIGHTS = "weight_bytes = lambda n, d: n * d.itemsize\n"
STATES = "def training_state_bytes(n, precision, optimizer):\n"
LORA = "def lora_state_bytes(nb, na, base, adapter):\n    b, a = nb * base.itemsize, na * adapter.itemsize\n"
NF4 = """
def qlora_weight_bytes(sizes, n_rest, dtype, double):
    rest = n_rest * dtype.itemsize
    blocks = [math.ceil(n / 64) for n in sizes]
    codes = sum(math.ceil(n / 2) for n in sizes)
    tables = len(sizes) * (64 + 1024 * double)
    nested = sum(4 * math.ceil(k / 256) + 4 for k in blocks) * double
    absmax = sum(blocks) * (1 if double else 4)
"""
SETTINGS = """
def table_settings():
    holds = dict(batch=5, seq=512)
    good = {"full": (holds, dict(holds, master_weights=True)),
            "lora": (holds, dict(holds, checkpointing=False)),
            "qlora": (holds, dict(holds, batch=32))}
"""
FIT = """
def cheapest_fit(gpu, model, batch, seq):
    def e(m, c): return memory.estimate(model, m, batch=batch, seq=seq, checkpointing=c)
    card = gpu * 2**30
    first = lambda needs: next((o for o in check.OPTIONS if needs(e(*o))), None)
"""

MUTANTS = [
    ("weight_bytes", "bits", "weight_bytes = lambda n, d: n * d.itemsize * 8\n" + GOOD_UNITS),
    ("weight_bytes", "one_size", "weight_bytes = lambda n, d: n * 4\n" + GOOD_UNITS),
    ("weight_bytes", "one_size", "weight_bytes = lambda n, d: n * 2\n" + GOOD_UNITS),
    ("weight_bytes", "gib", GOOD_WEIGHTS + "in_gb = in_gib = lambda n: n / 1024**3"),
    ("weight_bytes", "gib", GOOD_WEIGHTS + "in_gb = in_gib = lambda n: n / 1e9"),
    ("weight_bytes", "gib", GOOD_WEIGHTS + "in_gib = lambda n: n / 1e9\nin_gb = lambda n: n / 2**30"),
    ("weight_bytes", "thousand", GOOD_WEIGHTS + "in_gb = lambda n: n / 1e6\nin_gib = lambda n: n / 2**30"),
    ("weight_bytes", "thousand", GOOD_WEIGHTS + "in_gb = lambda n: n / 1e9\nin_gib = lambda n: n / 2**20"),
    # The sum that forgets one of its own items: 3 times the weights.
    ("training_state_bytes", "weights", STATES + "    return 3 * n * (4 if precision == 'fp32' else 2)"),
    ("training_state_bytes", "weights", STATES + "    b = 4 if precision == 'fp32' else 2\n    return n * b * (3 if optimizer == 'adamw' else 1)"),
    ("training_state_bytes", "master", STATES + "    b = 4 if precision == 'fp32' else 2\n    return n * b * (4 if optimizer == 'adamw' else 2)"),
    ("training_state_bytes", "master", STATES + "    b = 4 if precision == 'fp32' else 2\n    m = 2 if precision == 'bf16' else 4\n    return n * (2 * b + (2 * m if optimizer == 'adamw' else 0))"),
    ("training_state_bytes", "working", STATES + "    if precision == 'mixed': return n * (14 if optimizer == 'adamw' else 6)\n    return n * (4 if precision == 'fp32' else 2) * (4 if optimizer == 'adamw' else 2)"),
    ("training_state_bytes", "sgd", STATES + "    b = {'fp32': 16, 'bf16': 8, 'mixed': 16}[precision]\n    return n * b"),
    ("training_state_bytes", "sgd", STATES + "    k = 4 if optimizer == 'adamw' else 3\n    return n * k * {'fp32': 4, 'bf16': 2, 'mixed': 4}[precision]"),
    ("training_state_bytes", "fp32_moments", STATES + "    b = 4 if precision == 'fp32' else 2\n    m = 4 if precision == 'mixed' else 0\n    return n * (2 * b + m + (8 if optimizer == 'adamw' else 0))"),
    ("lora_state_bytes", "gradients", LORA + "    return 2 * b + 4 * a"),
    ("lora_state_bytes", "gradients", LORA + "    return b + nb * adapter.itemsize + 4 * a"),
    ("lora_state_bytes", "everything", LORA + "    return 4 * (a + b)"),
    ("lora_state_bytes", "everything", LORA + "    return 3 * b + 4 * a"),
    ("lora_state_bytes", "adapters", LORA + "    return b + 3 * a"),
    ("lora_state_bytes", "base", LORA + "    return 4 * a"),
    ("lora_state_bytes", "dtype", LORA + "    return b + 4 * na * base.itemsize"),
    ("lora_state_bytes", "dtype", LORA + "    return (nb + 4 * na) * adapter.itemsize"),
    ("qlora_weight_bytes", "all_4bit", NF4 + "    return (sum(sizes) + n_rest) / 2"),
    ("qlora_weight_bytes", "all_4bit", NF4 + "    return codes + n_rest // 2 + absmax + nested + tables"),
    ("qlora_weight_bytes", "all_4bit", NF4 + "    return codes + absmax + nested + tables"),
    ("qlora_weight_bytes", "absmax", NF4 + "    return codes + rest"),
    ("qlora_weight_bytes", "absmax", NF4 + "    return codes + rest + tables"),
    ("qlora_weight_bytes", "double", NF4 + "    return codes + rest + 4 * sum(blocks) + 64 * len(sizes)"),
    ("qlora_weight_bytes", "double", NF4 + "    return codes + rest + 4 * sum(blocks) + nested + tables if not double else codes + rest + 4 * sum(blocks)"),
    ("qlora_weight_bytes", "nested", NF4 + "    return codes + rest + absmax + tables"),
    ("qlora_weight_bytes", "nested", NF4 + "    return codes + rest + absmax + tables + max(0, nested - 4 * len(sizes))"),
    ("qlora_weight_bytes", "nested", NF4 + "    return codes + rest + absmax + 64 * len(sizes)"),
    ("qlora_weight_bytes", "floor", NF4.replace("math.ceil", "math.floor") + "    return codes + rest + absmax + nested + tables"),
    ("qlora_weight_bytes", "floor", NF4.replace("math.ceil(n / 64)", "n // 64") + "    return codes + rest + absmax + nested + tables"),
    ("qlora_weight_bytes", "floor", NF4.replace("math.ceil(n / 2)", "n // 2") + "    return codes + rest + absmax + nested + tables"),
    ("qlora_weight_bytes", "tables", NF4 + "    return codes + rest + absmax + nested"),
    ("qlora_weight_bytes", "tables", NF4 + "    return codes + rest + absmax + nested + 64 * len(sizes)"),
    ("qlora_weight_bytes", "pooled", NF4.replace("in sizes", "in [sum(sizes)]").replace("len(sizes)", "1") + "    return codes + rest + absmax + nested + tables"),
    ("qlora_weight_bytes", "pooled", NF4 + "    return codes + rest + absmax + nested + tables // len(sizes)"),
    ("table_settings", "sixteen", SETTINGS + "    return {**good, 'full': (dict(dtype='fp32'), {})}"),
    ("table_settings", "sixteen", SETTINGS + "    return {**good, 'full': (dict(master_weights=True), {})}"),
    ("table_settings", "low", SETTINGS + "    return {**good, 'lora': (dict(seq=512), dict(seq=4096))}"),
    ("table_settings", "low", SETTINGS + "    return {**good, 'full': (dict(optimizer='sgd'), {})}"),
    ("table_settings", "high", SETTINGS + "    return {**good, 'qlora': (dict(holds, checkpointing=False), holds)}"),
    ("table_settings", "high", SETTINGS + "    return {**good, 'lora': (dict(dtype='fp32'), holds)}"),
    ("table_settings", "two_changes", SETTINGS + "    return {**good, 'lora': (holds, dict(batch=16, seq=2048))}"),
    ("table_settings", "two_changes", SETTINGS + "    return {**good, 'lora': (holds, holds)}"),
    ("table_settings", "no_effect", SETTINGS + "    return {**good, 'qlora': (holds, dict(holds, rank=1))}"),
    ("table_settings", "unusual", SETTINGS + "    return {**good, 'qlora': (dict(seq=2), holds)}"),
    ("cheapest_fit", "activations", FIT + "    return first(lambda x: sum(x.held[n] for n in (\"weights\", \"weights_4bit\", \"constants\")) <= card)"),
    ("cheapest_fit", "activations", FIT + "    return first(lambda x: memory.on_card(x.static) <= card)"),
    ("cheapest_fit", "activations", FIT + "    return first(lambda x: x.static <= card)"),
    ("cheapest_fit", "overhead", FIT + "    return first(lambda x: x.total <= card)"),
    ("cheapest_fit", "overhead", FIT + "    return first(lambda x: 1.1 * x.total <= card)"),
    ("cheapest_fit", "decimal", FIT + "    return first(lambda x: memory.on_card(x.total) <= gpu * 1e9)"),
    ("cheapest_fit", "last", FIT + "    return next((o for o in check.OPTIONS[::-1] if memory.on_card(e(*o).total) <= card), None)"),
    ("cheapest_fit", "none", FIT + "    return first(lambda x: memory.on_card(x.total) <= card) or check.OPTIONS[-1]"),
]  # fmt: skip
