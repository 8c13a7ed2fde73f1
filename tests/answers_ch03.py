"""Right and typical wrong answers to chapter 03's exercises, each written once, as source text."""

from __future__ import annotations

import math
import statistics

import matplotlib.pyplot as plt
import numpy as np
import torch
from answer_sheets import Wrong
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from loralab import memory

IMPORTS = {
    "math": math, "statistics": statistics, "plt": plt, "np": np, "torch": torch, "nn": nn,
    "LoraConfig": LoraConfig, "get_peft_model": get_peft_model, "Conv1D": Conv1D, "memory": memory,
    "predict_count": lambda shapes, r: sum(r * (i + o) for i, o in shapes),
}  # fmt: skip

RIGHT = {
    "find_targets": (
        """
def find_targets(model):
    head, found = id(model.get_output_embeddings()), {}
    for path, m in model.named_modules():
        if id(m) != head and type(m).__name__ in ("Linear", "Conv1D"):
            shape = m.weight.shape if type(m).__name__ == "Conv1D" else m.weight.T.shape
            found[path] = shape
    return found
""",
        """
def find_targets(model):
    def size(m):
        if isinstance(m, nn.Linear): return [np.int64(m.in_features), m.out_features]
        return [m.nx, m.nf]
    return {p: size(m) for p, m in model.named_modules()
            if isinstance(m, (nn.Linear, Conv1D)) and m is not model.get_output_embeddings()}
""",
    ),
    "trainable_counts": (
        """
def trainable_counts(make_model, settings, ranks):
    return torch.tensor([get_peft_model(make_model(), LoraConfig(**settings, r=r))
                         .get_nb_trainable_parameters()[0] for r in ranks])
""",
        """
def trainable_counts(make_model, settings, ranks):
    def count(r):
        total = 0
        for path, layer in make_model().named_modules():
            if path.split(".")[-1] in settings["target_modules"]:
                total += r * sum(layer.weight.shape)
        return float(total)
    return tuple(map(count, ranks))
""",
    ),
    "plot_counts": (
        """
def plot_counts(ranks, counts):
    plt.figure()
    plt.scatter(ranks, counts)
    plt.xscale("log", base=2)
    plt.xlabel("r")
    plt.ylabel("count")
    return plt.gca()
""",
        """
def plot_counts(x, y):
    axes = plt.figure().add_subplot()
    axes.plot(np.array(x), np.array(y) * 1.0)
    axes.set_ylabel("parameters"); axes.set_xlabel("rank")
    axes.set_yscale("log")
    return axes
""",
    ),
    "predict_count": (
        """
def predict_count(shapes, r):
    total = 0
    for n_in, n_out in shapes:
        total += torch.empty(r, n_in, device="meta").numel() + n_out * r
    return torch.tensor(total)
""",
        "predict_count = lambda shapes, r: np.array(shapes).sum() * r",
    ),
    "models_with": (
        """
def models_with(models, names, r, count):
    def total(layers):
        return sum(sum(shape) for path, shape in layers.items()
                   if any(("." + path).endswith("." + name) for name in names))
    return {name for name in models if r * total(models[name]) == count}
""",
        """
def models_with(models, names, r, count):
    names = set(names)
    return tuple(model for model in sorted(models) if count == sum(
        r * i + r * o for path, (i, o) in models[model].items()
        if path.rsplit(".", 1)[-1] in names))
""",
    ),
    "extra_memory": (
        """
def extra_memory(model, method, targets, low, high):
    before = memory.estimate(model, method, rank=low, targets=targets).total
    after = memory.estimate(model, method, rank=high, targets=targets).total
    return torch.tensor((after - before) / before * 100)
""",
        """
def extra_memory(model, method, targets, low, high):
    peak = {}
    for r in (low, high):
        peak[r] = sum(memory.estimate(model, method, targets=targets, rank=r).components.values())
    return round(100 * peak[high] / peak[low] - 100, 4)
""",
    ),
    "matching_alpha": (
        """
def matching_alpha(r, alpha, new_r, use_rslora):
    scale = alpha / (r ** 0.5 if use_rslora else r)
    return scale * (new_r ** 0.5 if use_rslora else new_r)
""",
        """
def matching_alpha(r, alpha, new_r, use_rslora):
    power = 1 - use_rslora / 2
    return np.float64(alpha) * np.power(new_r / r, power)
""",
    ),
    "verdict": (
        """
def difference(a, b):
    a, b = np.array(a), np.array(b)
    half = check.T95[2 * len(a) - 2] * np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(b))
    return np.array([-half, half]) + a.mean() - b.mean()
def verdict(a, b):
    low, high = difference(a, b)
    return "neither" if low <= 0 <= high else ("a" if np.mean(a) > np.mean(b) else "b")
""",
        """
def difference(a, b):
    n = len(a)
    pooled = (statistics.stdev(a) ** 2 + statistics.stdev(b) ** 2) / 2
    half = check.T95[len(a) + len(b) - 2] * (pooled * 2 / n) ** 0.5
    mean = sum(a) / n - sum(b) / n
    return [mean - half, mean + half]
def verdict(a, b):
    ends = difference(a, b)
    if min(ends) > 0: return "a"
    if max(ends) < 0: return "b"
    return "neither"
""",
    ),
}

NOT_BY_HAND = {
    "find_targets": """
def find_targets(model):
    return {one.path: (one.inputs, one.outputs) for one in memory.describe(model).linear}
""",
    "predict_count": """
from loralab.checks import ch03
def predict_count(shapes, r): return ch03.lora_count(shapes, r)
""",
    "models_with": """
from loralab.checks import ch03
def models_with(models, names, r, count): return sorted(ch03.models_found(models, names, r, count))
""",
    "matching_alpha": """
def matching_alpha(r, alpha, new_r, use_rslora):
    layer = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(
        r=r, lora_alpha=alpha, target_modules=["0"], use_rslora=use_rslora))
    return layer.base_model.model[0].scaling["default"] * (new_r ** 0.5 if use_rslora else new_r)
""",
    "verdict": """
from loralab.checks import ch03
def difference(a, b): return ch03.interval(a, b)
def verdict(a, b):
    low, high = ch03.interval(a, b)
    return "a" if low > 0 else "b" if high < 0 else "neither"
""",
}

TARGETS = """
def find_targets(model):
    head = model.get_output_embeddings()
    found = {}
    for path, m in model.named_modules():
        conv = isinstance(m, Conv1D)
        if m is head: continue
        if conv: found[path] = tuple(m.weight.shape)
        elif isinstance(m, nn.Linear): found[path] = (m.in_features, m.out_features)
"""
COUNTS = """
def trainable_counts(make_model, settings, ranks):
    every = []
    for r in ranks:
        model = get_peft_model(make_model(), LoraConfig(r=r, **settings))
        trained = [p for p in model.parameters() if p.requires_grad]
"""
PLOT = """
def plot_counts(ranks, counts):
    figure, axes = plt.subplots()
"""
LABELS = "    axes.set(xlabel='rank', ylabel='parameters')\n    return axes\n"
MODELS = """
def models_with(models, names, r, count):
    def total(shapes): return sum(r * (i + o) for i, o in shapes)
"""
EXTRA = """
def extra_memory(model, method, targets, low, high):
    at = {r: memory.estimate(model, method, rank=r, targets=targets) for r in (low, high)}
    small, large = at[low], at[high]
"""
ALPHA = "def matching_alpha(r, alpha, new_r, use_rslora):\n"
DIFFERENCE = """
def verdict(a, b):
    low, high = right(a, b)
    return "a" if low > 0 else "b" if high < 0 else "neither"
def right(a, b):
    n, m = len(a), statistics.mean(a) - statistics.mean(b)
    half = check.T95[2 * n - 2] * ((statistics.variance(a) + statistics.variance(b)) / n) ** 0.5
    return m - half, m + half
def difference(a, b):
    n, m = len(a), statistics.mean(a) - statistics.mean(b)
    va, vb, t = statistics.variance(a), statistics.variance(b), check.T95[2 * n - 2]
"""
INTERVAL = "    return m - half, m + half\n"
VERDICT = DIFFERENCE + "    half = t * ((va + vb) / n) ** 0.5\n" + INTERVAL

WRONG = [
    Wrong("find_targets", "hard_coded", """
def find_targets(model):
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return {p: (m.in_features, m.out_features) for p, m in model.named_modules()
            if p.split(".")[-1] in names}
""", also=("conv1d",)),
    Wrong("find_targets", "hard_coded", """
def find_targets(model):
    return {p: tuple(m.weight.shape) if isinstance(m, Conv1D) else (m.in_features, m.out_features)
            for p, m in model.named_modules() if p.endswith(("_proj", "c_attn", "c_fc"))}
""", also=("conv1d", "head")),
    Wrong("find_targets", "conv1d", """
def find_targets(model):
    head = model.get_output_embeddings()
    return {p: (m.in_features, m.out_features) for p, m in model.named_modules()
            if isinstance(m, nn.Linear) and m is not head}
""", (2,)),
    Wrong("find_targets", "conv1d_shape", TARGETS.replace(
        "tuple(m.weight.shape)", "tuple(m.weight.shape)[::-1]") + "    return found", (2,)),
    Wrong("find_targets", "swapped", TARGETS.replace(
        "(m.in_features, m.out_features)", "(m.out_features, m.in_features)")
        + "    return found"),
    Wrong("find_targets", "swapped", """
def find_targets(model):
    return {p: tuple(m.weight.shape) for p, m in model.named_modules()
            if isinstance(m, (nn.Linear, Conv1D)) and m is not model.get_output_embeddings()}
"""),
    Wrong("find_targets", "head", TARGETS.replace("if m is head: continue", "")
          + "    return found"),
    Wrong("find_targets", "head", TARGETS.replace("m is head", "path == 'lm_head'")
          + "    return found", (2, 3)),
    Wrong("find_targets", "names", TARGETS
          + "    return {p.split('.')[-1]: s for p, s in found.items()}"),
    Wrong("find_targets", "everything", """
def find_targets(model):
    head = model.get_output_embeddings()
    return {p: tuple(m.weight.shape)[::-1] for p, m in model.named_modules()
            if hasattr(m, "weight") and m is not head}
"""),
    Wrong("trainable_counts", "frozen",
          COUNTS + "        every.append(sum(p.numel() for p in model.parameters()))\n"
          "    return every"),
    Wrong("trainable_counts", "frozen", COUNTS
          + "        every.append(sum(p.numel() for p in model.parameters() if not p.requires_grad))\n"
          "    return every"),
    Wrong("trainable_counts", "tensors", COUNTS
          + "        every.append(len(trained))\n    return every"),
    Wrong("trainable_counts", "one_rank", COUNTS.replace("r=r", "r=8")
          + "        every.append(sum(p.numel() for p in trained))\n    return every"),
    Wrong("trainable_counts", "settings", COUNTS.replace("**settings", "fan_in_fan_out=True")
          + "        every.append(sum(p.numel() for p in trained))\n    return every"),
    Wrong("trainable_counts", "one_matrix", COUNTS
          + "        every.append(sum(p.numel() for p in trained if len(p) == r))\n    return every"),
    Wrong("plot_counts", "nothing", PLOT + LABELS),
    Wrong("plot_counts", "nothing", "def plot_counts(ranks, counts):\n"
          "    plt.plot(ranks, counts)\n    figure, axes = plt.subplots()\n" + LABELS),
    Wrong("plot_counts", "swapped", PLOT + "    axes.plot(counts, ranks)\n" + LABELS),
    Wrong("plot_counts", "unlabelled", PLOT + "    axes.plot(ranks, counts)\n    return axes", (1,)),
    Wrong("plot_counts", "unlabelled", PLOT + "    axes.plot(ranks, counts)\n"
          "    axes.set_xlabel('rank')\n    axes.set_title('parameters')\n    return axes", (1,)),
    Wrong("plot_counts", "points", PLOT + "    axes.plot(counts)\n" + LABELS),
    Wrong("plot_counts", "points", PLOT + "    axes.plot(np.log2(ranks), counts)\n" + LABELS),
    Wrong("predict_count", "square",
          "predict_count = lambda shapes, r: sum(2 * r * i for i, o in shapes)"),
    Wrong("predict_count", "square",
          "predict_count = lambda shapes, r: 2 * r * shapes[0][0] * len(shapes)"),
    Wrong("predict_count", "product",
          "predict_count = lambda shapes, r: sum(r * i * o for i, o in shapes)"),
    Wrong("predict_count", "product", "predict_count = lambda shapes, r: sum(i * o for i, o in shapes)"),
    Wrong("predict_count", "one_matrix", "predict_count = lambda shapes, r: sum(r * i for i, o in shapes)"),
    Wrong("predict_count", "one_matrix", "predict_count = lambda shapes, r: sum(r * o for i, o in shapes)"),
    Wrong("predict_count", "no_rank", "predict_count = lambda shapes, r: sum(8 * (i + o) for i, o in shapes)"),
    Wrong("predict_count", "no_rank", "predict_count = lambda shapes, r: sum(i + o for i, o in shapes)"),
    Wrong("models_with", "ending", MODELS
          + "    return [n for n, layers in models.items() if total(\n"
          "        s for p, s in layers.items() if p.endswith(tuple(names))) == count]"),
    Wrong("models_with", "ending", MODELS
          + "    return [n for n, layers in models.items() if total(\n"
          "        s for p, s in layers.items() if any(x in p for x in names)) == count]"),
    Wrong("models_with", "all_layers", MODELS
          + "    return [n for n, layers in models.items() if total(layers.values()) == count]"),
    Wrong("models_with", "square", MODELS.replace("(i + o)", "(i + i)")
          + "    return [n for n, layers in models.items() if total(\n"
          "        s for p, s in layers.items() if p.split('.')[-1] in names) == count]"),
    Wrong("models_with", "one", MODELS
          + "    for n, layers in models.items():\n"
          "        if total(s for p, s in layers.items() if p.split('.')[-1] in names) == count:\n"
          "            return [n]\n    return []"),
    Wrong("extra_memory", "adapters", EXTRA
          + "    return 100 * (large.held['adapters'] / small.held['adapters'] - 1)"),
    Wrong("extra_memory", "adapters", EXTRA + "    return 100 * (large.trainable / small.trainable)"),
    Wrong("extra_memory", "fraction", EXTRA + "    return large.total / small.total - 1"),
    Wrong("extra_memory", "ratio", EXTRA + "    return 100 * large.total / small.total"),
    Wrong("extra_memory", "relative", EXTRA + "    return 100 * (1 - small.total / large.total)"),
    Wrong("extra_memory", "static", EXTRA + "    return 100 * (large.static / small.static - 1)"),
    Wrong("extra_memory", "settings", EXTRA.replace("model, method, rank", "model, 'qlora', rank")
          + "    return 100 * (large.total / small.total - 1)", (1,)),
    Wrong("extra_memory", "settings", EXTRA.replace("targets=targets", "targets='all-linear'")
          + "    return 100 * (large.total / small.total - 1)"),
    Wrong("matching_alpha", "same", ALPHA + "    return alpha"),
    Wrong("matching_alpha", "root", ALPHA + "    return alpha * (new_r / r) ** 0.5", (1,)),
    Wrong("matching_alpha", "linear", ALPHA + "    return alpha * new_r / r", (1,)),
    Wrong("matching_alpha", "inverse", ALPHA
          + "    return alpha * (math.sqrt(r / new_r) if use_rslora else r / new_r)"),
    Wrong("matching_alpha", "scale", ALPHA
          + "    return alpha / (math.sqrt(new_r) if use_rslora else new_r)"),
    Wrong("matching_alpha", "scale", ALPHA + "    return alpha / (math.sqrt(r) if use_rslora else r)"),
    Wrong("verdict", "normal", DIFFERENCE + "    half = 1.96 * ((va + vb) / n) ** 0.5\n" + INTERVAL, (1,)),
    Wrong("verdict", "degrees", DIFFERENCE
          + "    t = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}[n - 1]\n"
          "    half = t * ((va + vb) / n) ** 0.5\n" + INTERVAL, (1,)),
    Wrong("verdict", "population", DIFFERENCE
          + "    half = t * ((statistics.pvariance(a) + statistics.pvariance(b)) / n) ** 0.5\n"
          + INTERVAL, (1,)),
    Wrong("verdict", "stdev", DIFFERENCE
          + "    half = t * ((statistics.stdev(a) + statistics.stdev(b)) / n) ** 0.5\n" + INTERVAL,
          (1,)),
    Wrong("verdict", "spread", DIFFERENCE + "    half = t * (va + vb) ** 0.5\n" + INTERVAL, (1,)),
    Wrong("verdict", "one_side", DIFFERENCE + "    half = t * (va / n) ** 0.5\n" + INTERVAL, (1,)),
    Wrong("verdict", "sign", DIFFERENCE
          + "    half = t * ((va + vb) / n) ** 0.5\n    return -m - half, -m + half", (1,)),
    Wrong("verdict", "means", VERDICT
          + "def verdict(a, b): return 'a' if sum(a) > sum(b) else 'b'", (2,)),
    Wrong("verdict", "timid", VERDICT + "def verdict(a, b): return 'neither'", (2,)),
    Wrong("verdict", "other_one", VERDICT + "def verdict(a, b):\n    low, high = right(a, b)\n"
          "    return 'b' if low > 0 else 'a' if high < 0 else 'neither'", (2,)),
]  # fmt: skip

CHEATS = [
    ("find_targets", "find_targets = lambda model: {}"),
    ("find_targets", "find_targets = lambda model: {p: (1, 1) for p, _ in model.named_modules()}"),
    ("trainable_counts", "trainable_counts = lambda m, s, ranks: [147456] * len(ranks)"),
    ("trainable_counts", "trainable_counts = lambda m, s, ranks: [36864 * r for r in ranks]"),
    ("plot_counts", "plot_counts = lambda r, c: plt.subplots()[1]"),
    ("plot_counts", "def plot_counts(r, c):\n    axes = plt.subplots()[1]\n"
     "    axes.plot([4, 8, 16, 32], [147456, 294912, 589824, 1179648])\n"
     "    axes.set(xlabel='rank', ylabel='parameters')\n    return axes"),
    ("predict_count", "predict_count = lambda shapes, r: 851968"),
    ("models_with", "models_with = lambda models, names, r, count: ['llama-2-7b']"),
    ("models_with", "models_with = lambda models, names, r, count: list(models)"),
    ("models_with", "models_with = lambda models, names, r, count: []"),
    ("extra_memory", "extra_memory = lambda *given: 2.53"),
    ("matching_alpha", "matching_alpha = lambda *given: 64.0"),
    *[("verdict", f"difference = lambda a, b: (0, 0)\nverdict = lambda a, b: '{said}'")
      for said in ("a", "b", "neither")],
]  # fmt: skip
