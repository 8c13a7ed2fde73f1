"""Right and typical wrong answers to chapter 06's exercises, each written once, as source text."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import torch
from answer_sheets import Wrong
from peft import PeftModel

from loralab.quiet import quiet

IMPORTS = {"torch": torch, "np": np, "statistics": statistics, "time": time, "Path": Path,
           "PeftModel": PeftModel, "quiet": quiet}  # fmt: skip


def changed(text: str, *pairs: tuple[str, str]) -> str:
    """`text` with each first of a pair replaced by the second; it has to be there."""
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


# --- right answers, otherwise written -------------------------------------------------------------

RIGHT = {
    "merge_adapter": [
        """
def merge(base, folder, dtype):
    with quiet():
        if base.is_quantized if hasattr(base, "is_quantized") else False:
            base = base.dequantize()
        model = PeftModel.from_pretrained(base.to(torch.float32), str(folder))
        model.merge_adapter()
        return model.unload().to(dtype)
""",
        # By hand, from the file.
        """
from safetensors.torch import load_file
import json
def merge(base, folder, dtype):
    with quiet():
        base = base.dequantize(torch.float32) if getattr(base, "is_quantized", None) else base
    settings = json.loads(Path(folder, "adapter_config.json").read_text())
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    base = base.float()
    for name, A in tensors.items():
        if "lora_A" in name:
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            B = tensors[name.replace("lora_A", "lora_B")].float()
            base.get_submodule(path).weight.data += (
                settings["lora_alpha"] / settings["r"] * B @ A.float())
    return base.to(dtype)
""",
    ],
    "rank_merges": [
        """
def rank_merges(hits, reference):
    first = np.array(hits[reference], dtype=float)
    found = []
    for name, row in hits.items():
        d = first - np.array(row)
        found.append((name, np.mean(row), d.mean() > 1.96 * d.std(ddof=1) / np.sqrt(len(d))))
    return sorted(found, key=lambda one: one[1])[::-1]
""",
        """
def rank_merges(hits, reference):
    n, rows = len(hits[reference]), []
    for name in sorted(hits, key=lambda name: -sum(hits[name])):
        d = [a - b for a, b in zip(hits[reference], hits[name])]
        m, s = statistics.fmean(d), statistics.stdev(d)
        rows.append([name, sum(hits[name]) / n, m - 1.96 * s / n ** 0.5 > 0])
    return tuple(rows)
""",
    ],
    "moved_codes": [
        """
def moved(codes, absmax, update, levels, block):
    found = []
    for i, code in enumerate(codes.tolist()):
        target = levels[code] + update[i] / absmax[i // block]
        found.append(int((levels - target).abs().argmin()) != code)
    return found
""",
        # By half of the gap in the update's direction.
        """
def moved(codes, absmax, update, levels, block):
    far = torch.tensor([float("inf")])
    up = torch.cat([levels.diff(), far])[codes.long()]
    down = torch.cat([far, levels.diff()])[codes.long()]
    gap = torch.where(update > 0, up, down) * absmax.repeat_interleave(block)[: len(codes)]
    return (update.abs() > gap / 2).float().numpy()
""",
    ],
    "disk_bytes": [
        """
def disk_bytes(parameters, shapes, r, tasks, dtype):
    adapter = 0
    for out, inner in shapes:
        adapter += torch.empty(r, inner, dtype=dtype, device="meta").nbytes
        adapter += torch.empty(out, r, dtype=dtype, device="meta").nbytes
    base = parameters * torch.finfo(dtype).bits // 8
    return {"separate": base + adapter * tasks, "merged": base * tasks}
""",
    ],
    "seconds_per_call": [
        """
def seconds_per_call(run, synchronise, clock, warm_up=2, repeats=5):
    times = []
    for i in range(warm_up + repeats):
        synchronise()
        start = clock(); run(); synchronise(); times.append(clock() - start)
    return float(np.median(times[warm_up:]))
""",
        # The wait at the end of one call is the wait before the next.
        """
def seconds_per_call(run, synchronise, clock, warm_up=2, repeats=5):
    for _ in range(warm_up):
        run()
    synchronise()
    marks = [clock()]
    for _ in range(repeats):
        run()
        synchronise()
        marks.append(clock())
    return sorted(b - a for a, b in zip(marks, marks[1:]))[repeats // 2]
""",
    ],
    "combine": [
        """
def combine(adapters, weights):
    As, Bs = [], []
    for (A, B, scale), weight in zip(adapters, weights):
        As.append(A)
        Bs.append(weight * scale * B)
    return torch.vstack(As), torch.hstack(Bs)
""",
        # The sum, cut to the rank that it can have.
        """
def combine(adapters, weights):
    total = sum(w * s * (B.double() @ A.double()) for (A, B, s), w in zip(adapters, weights))
    U, S, V = torch.linalg.svd(total, full_matrices=False)
    R = sum(A.shape[0] for A, _, _ in adapters)
    return V[:R], U[:, :R] * S[:R]
""",
        """
def combine(adapters, weights):
    A = np.concatenate([np.sqrt(abs(w) * s) * A.numpy() for (A, _, s), w in zip(adapters, weights)])
    B = np.concatenate([np.sign(w) * np.sqrt(abs(w) * s) * B.numpy()
                        for (_, B, s), w in zip(adapters, weights)], axis=1)
    return A, B
""",
    ],
}

NOT_BY_HAND = {
    "combine": """
from loralab.checks import ch06
def combine(adapters, weights):
    total = ch06.Mixture(tuple(map(tuple, adapters)), tuple(weights)).right()
    return total, torch.eye(len(total)).double()
""",
    "moved_codes": """
from loralab.checks import ch06
def moved(codes, absmax, update, levels, block):
    return ch06.Coded(codes, absmax, update, levels, block).right()
""",
    "disk_bytes": """
from loralab.checks import ch06
def disk_bytes(parameters, shapes, r, tasks, dtype):
    one = ch06.Stored(parameters, tuple(map(tuple, shapes)), r, tasks, str(dtype)[6:])
    return dict(zip(("merged", "separate"), one.right()))
""",
    "rank_merges": """
from loralab.checks import ch06
def rank_merges(hits, reference):
    return [(name, sum(one) / len(one), ch06._lower(hits[reference], one) > 0)
            for name, one in hits.items()]
""",
}

# --- typical mistakes -----------------------------------------------------------------------------

MERGE = """
def merge(base, folder, dtype):
    with quiet():
        if getattr(base, "is_quantized", False):
            base = base.dequantize(dtype=torch.float32)
        wrapped = PeftModel.from_pretrained(base.float(), folder)
        return wrapped.merge_and_unload().to(dtype)
"""
RANK = """
def rank_merges(hits, reference):
    rows = []
    for name, found in hits.items():
        apart = torch.tensor(hits[reference]).float() - torch.tensor(found).float()
        low = apart.mean() - 1.96 * apart.std() / len(apart) ** 0.5
        rows.append((name, sum(found) / len(found), bool(low > 0)))
    return sorted(rows, key=lambda row: -row[1])
"""
MOVED = """
def moved(codes, absmax, update, levels, block):
    scales = absmax.repeat_interleave(block)[: len(codes)]
    sums = levels[codes.long()] + update / scales
    nearest = torch.bucketize(sums, (levels[1:] + levels[:-1]) / 2)
    return nearest != codes
"""
GAPS = """
def moved(codes, absmax, update, levels, block):
    far = torch.tensor([float("inf")])
    scales = absmax.repeat_interleave(block)[: len(codes)]
    gaps = levels.diff()
    up, down = torch.cat([gaps, far])[codes.long()], torch.cat([far, gaps])[codes.long()]
    ahead = torch.where(update > 0, up, down)
    return update.abs() > ahead * scales / 2
"""
DISK = """
def disk_bytes(parameters, shapes, r, tasks, dtype):
    pairs = sum(r * (n_out + n_in) for n_out, n_in in shapes)
    size = dtype.itemsize
    return {"merged": tasks * parameters * size, "separate": (parameters + tasks * pairs) * size}
"""
SECONDS = """
def seconds_per_call(run, synchronise, clock, warm_up=2, repeats=5):
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(repeats):
        synchronise()
        began = clock()
        run()
        synchronise()
        times.append(clock() - began)
    return statistics.median(times)
"""
COMBINE = """
def combine(adapters, weights):
    A = torch.cat([w * scale * A for (A, _, scale), w in zip(adapters, weights, strict=True)])
    B = torch.cat([B for _, B, _ in adapters], dim=1)
    return A, B
"""
ADDED = """
def combine(adapters, weights):
    A = sum(w * s * A for (A, _, s), w in zip(adapters, weights))
    B = sum(B for _, B, _ in adapters)
    return A, B
"""
PEFTS_LINEAR = """
def combine(adapters, weights):
    A = sum((1 if w > 0 else -1) * abs(w * s) ** 0.5 * A for (A, _, s), w in zip(adapters, weights))
    B = sum(abs(w * s) ** 0.5 * B for (_, B, s), w in zip(adapters, weights))
    return A, B
"""
# What the mistakes about a loop's total give.
LOOP = """
def seconds_per_call(run, synchronise, clock, warm_up=2, repeats=5):
    for _ in range(warm_up):
        run()
    synchronise()
    began = clock()
    for _ in range(repeats):
        run()
    synchronise()
    return (clock() - began) / repeats
"""

WRONG = [
    Wrong("merge_adapter", "wrapped", changed(MERGE, (
        "return wrapped.merge_and_unload().to(dtype)",
        "wrapped.merge_adapter()\n        return wrapped.to(dtype)"))),
    Wrong("merge_adapter", "wrapped", changed(MERGE, ("wrapped.merge_and_unload()", "wrapped"))),
    Wrong("merge_adapter", "lost", changed(MERGE, ("merge_and_unload", "unload"))),
    # What most tutorials do.
    Wrong("merge_adapter", "four_bit", changed(MERGE, (
        "        wrapped = PeftModel.from_pretrained(base.float(), folder)\n"
        "        return wrapped.merge_and_unload().to(dtype)",
        "            return PeftModel.from_pretrained(base, folder).merge_and_unload()\n"
        "        wrapped = PeftModel.from_pretrained(base.float(), folder)\n"
        "        return wrapped.merge_and_unload().to(dtype)"),
        ("            base = base.dequantize(dtype=torch.float32)\n", "")), (2,)),
    # The adapter in the dtype of the result, before it is added.
    Wrong("merge_adapter", "early", changed(MERGE, (
        "wrapped.merge_and_unload().to(dtype)", "wrapped.to(dtype).merge_and_unload()")), (1, 2)),
    Wrong("merge_adapter", "early", changed(MERGE, (
        "base.float()", "base.to(torch.bfloat16)"), (
        "wrapped.merge_and_unload()", "wrapped.to(torch.bfloat16).merge_and_unload()"))),
    Wrong("merge_adapter", "dtype", changed(MERGE, (".to(dtype)", "")), (1, 2)),
    Wrong("merge_adapter", "dtype", changed(MERGE, (".to(dtype)", ".half()"))),

    Wrong("rank_merges", "order", changed(RANK, ("-row[1]", "row[1]")), (1,)),
    Wrong("rank_merges", "order", changed(RANK, ("-row[1]", "row[0]")), (1,)),
    Wrong("rank_merges", "order", changed(RANK, (
        "sorted(rows, key=lambda row: -row[1])", "rows")), (1,)),
    Wrong("rank_merges", "accuracy", changed(RANK, (
        "sum(found) / len(found)", "100 * sum(found) / len(found)"))),
    Wrong("rank_merges", "accuracy", changed(RANK, ("sum(found) / len(found)", "sum(found)"))),
    # The bare difference.
    Wrong("rank_merges", "any_gap", changed(RANK, (
        "bool(low > 0)", "bool(apart.mean() > 0)")), (1,)),
    Wrong("rank_merges", "any_gap", changed(RANK, (
        "len(apart) ** 0.5", "len(apart)")), (1,)),
    # s with n under it.
    Wrong("rank_merges", "any_gap", changed(RANK, (
        "apart.std()", "apart.std(correction=0)")), (1,)),
    # Two intervals that must not overlap; the standard deviation for the standard error.
    Wrong("rank_merges", "unpaired", """
def rank_merges(hits, reference):
    def interval(row):
        p, n = sum(row) / len(row), len(row)
        half = 1.96 * (p * (1 - p) / n) ** 0.5
        return p - half, p + half
    low = interval(hits[reference])[0]
    rows = [(name, sum(row) / len(row), interval(row)[1] < low) for name, row in hits.items()]
    return sorted(rows, key=lambda row: -row[1])
""", (1,)),
    Wrong("rank_merges", "unpaired", changed(RANK, (" / len(apart) ** 0.5", "")), (1,)),
    Wrong("rank_merges", "better", changed(RANK, (
        "bool(low > 0)", "bool(abs(apart.mean()) > apart.mean() - low)")), (1,)),
    Wrong("rank_merges", "better", changed(RANK, ("bool(low > 0)", "not low > 0")), (1,)),
    Wrong("rank_merges", "kind", changed(RANK, (
        "return sorted(rows, key=lambda row: -row[1])",
        "return {row[0]: row[1] for row in rows}"))),
    Wrong("rank_merges", "kind", changed(RANK, (", bool(low > 0)))", "))"))),

    Wrong("moved_codes", "any_update", """
def moved(codes, absmax, update, levels, block): return update != 0
"""),
    Wrong("moved_codes", "whole_step", changed(GAPS, (" / 2", ""))),
    # Compared with the levels themselves.
    Wrong("moved_codes", "whole_step", changed(MOVED, (
        "(levels[1:] + levels[:-1]) / 2", "levels"))),
    Wrong("moved_codes", "unscaled", changed(MOVED, ("update / scales", "update"))),
    Wrong("moved_codes", "unscaled", changed(GAPS, (" * scales", ""))),
    Wrong("moved_codes", "unscaled", """
def moved(codes, absmax, update, levels, block):
    scales = absmax.repeat_interleave(block)[: len(codes)]
    apart = (levels[codes.long()] * scales + update)[:, None] - levels[None]
    return apart.abs().argmin(1) != codes
"""),
    # As if levels were equally far apart.
    Wrong("moved_codes", "one_step", """
def moved(codes, absmax, update, levels, block):
    scales = absmax.repeat_interleave(block)[: len(codes)]
    return (update / scales).abs() > levels.diff().mean() / 2
"""),
    Wrong("moved_codes", "direction", changed(GAPS, (
        "torch.where(update > 0, up, down)", "torch.minimum(up, down)"))),
    Wrong("moved_codes", "direction", changed(GAPS, ("torch.where(update > 0, up, down)", "up"), (
        "update.abs()", "update"))),
    Wrong("moved_codes", "length", changed(MOVED, (
        "return nearest != codes", "return (nearest != codes).float().mean()"))),
    Wrong("moved_codes", "length", changed(MOVED, ("[: len(codes)]", "")), (2,)),
    Wrong("moved_codes", "length", """
def moved(codes, absmax, update, levels, block):
    sums = levels[codes.long()].view(-1, block) + update.view(-1, block) / absmax[:, None]
    return (torch.bucketize(sums, (levels[1:] + levels[:-1]) / 2) != codes.view(-1, block)).view(-1)
""", (2,)),

    Wrong("disk_bytes", "one_task", changed(DISK, ("tasks * parameters", "parameters")), (1,)),
    Wrong("disk_bytes", "one_task", changed(DISK, ("tasks * pairs", "pairs")), (1,)),
    Wrong("disk_bytes", "no_base", changed(DISK, ("parameters + ", "")), (1,)),
    Wrong("disk_bytes", "many_bases", changed(DISK, (
        "(parameters + tasks * pairs)", "tasks * (parameters + pairs)")), (1,)),
    Wrong("disk_bytes", "square", changed(DISK, ("n_out + n_in", "2 * n_in")), (1,)),
    Wrong("disk_bytes", "square", changed(DISK, ("n_out + n_in", "2 * n_out")), (1,)),
    Wrong("disk_bytes", "full_update", changed(DISK, ("r * (n_out + n_in)", "n_out * n_in")), (1,)),
    Wrong("disk_bytes", "merged_adapter", changed(DISK, (
        '"merged": tasks * parameters', '"merged": tasks * (parameters + pairs)')), (1,)),
    Wrong("disk_bytes", "one_layer", changed(DISK, (
        "sum(r * (n_out + n_in) for n_out, n_in in shapes)", "r * sum(shapes[0])")), (1,)),
    Wrong("disk_bytes", "parameters", changed(DISK, ("dtype.itemsize", "1"))),
    Wrong("disk_bytes", "bits", changed(DISK, ("dtype.itemsize", "torch.finfo(dtype).bits"))),

    Wrong("seconds_per_call", "launch", changed(SECONDS, ("synchronise()", "pass"))),
    # Waits before, not after.
    Wrong("seconds_per_call", "launch", changed(SECONDS, (
        "        run()\n        synchronise()\n", "        run()\n"))),
    Wrong("seconds_per_call", "pending", changed(LOOP, (
        "        run()\n    synchronise()\n    began", "        run()\n    began"))),
    # The median hides the wait in a device whose calls all take the same time.
    Wrong("seconds_per_call", "pending", changed(SECONDS, (
        "        synchronise()\n        began", "        began")), (1,)),
    Wrong("seconds_per_call", "warm_up", changed(SECONDS, ("range(warm_up)", "range(0)"), (
        "statistics.median(times)", "statistics.fmean(times)")), (1,)),
    Wrong("seconds_per_call", "mean", changed(SECONDS, ("statistics.median", "statistics.fmean")),
          (1,)),
    Wrong("seconds_per_call", "mean", LOOP, (1,)),
    Wrong("seconds_per_call", "fastest", changed(SECONDS, ("statistics.median", "min")), (1,)),
    Wrong("seconds_per_call", "fastest", changed(SECONDS, ("statistics.median", "max")), (1,)),
    Wrong("seconds_per_call", "total", changed(SECONDS, ("statistics.median", "sum"))),
    Wrong("seconds_per_call", "total", changed(LOOP, (" / repeats", ""))),

    Wrong("combine", "cross", ADDED, also=("shape",)),
    Wrong("combine", "cross", PEFTS_LINEAR, also=("shape",)),
    # Adds where ranks differ.
    Wrong("combine", "shape", """
def combine(adapters, weights):
    if len({A.shape[0] for A, _, _ in adapters}) > 1:
        return ADD(adapters, weights)
    A = torch.cat([w * s * A for (A, _, s), w in zip(adapters, weights)])
    return A, torch.cat([B for _, B, _ in adapters], dim=1)
def ADD(adapters, weights):
    return sum(A for A, _, _ in adapters), sum(B for _, B, _ in adapters)
""", (1,)),
    Wrong("combine", "scale", changed(COMBINE, ("w * scale * A", "w * A"))),
    Wrong("combine", "weight", changed(COMBINE, ("w * scale * A", "scale * A"))),
    Wrong("combine", "weight", changed(COMBINE, (
        "torch.cat([B for _, B, _ in adapters], dim=1)",
        "torch.cat([w * B for (_, B, _), w in zip(adapters, weights)], dim=1)"))),
    Wrong("combine", "weight", changed(COMBINE, ("w * scale * A", "abs(w) * scale * A")), (1,)),
    # The root of a negative weight.
    Wrong("combine", "weight", """
def combine(adapters, weights):
    roots = [(w * s) ** 0.5 for (_, _, s), w in zip(adapters, weights)]
    A = torch.cat([f * A for (A, _, _), f in zip(adapters, roots)])
    return A, torch.cat([f * B for (_, B, _), f in zip(adapters, roots)], dim=1)
""", (1,)),
    Wrong("combine", "rank", """
def combine(adapters, weights):
    total = sum(w * s * (B @ A) for (A, B, s), w in zip(adapters, weights))
    return total, torch.eye(len(total))
""", (2,)),
]  # fmt: skip

# --- cheats ---------------------------------------------------------------------------------------

CHEATS = [
    ("merge_adapter", "def merge(base, folder, dtype): return None"),
    ("merge_adapter", "def merge(base, folder, dtype): return base"),
    ("rank_merges", "def rank_merges(hits, reference): return []"),
    ("rank_merges", """
def rank_merges(hits, reference): return [(name, 0.83, name != reference) for name in hits]
"""),
    ("moved_codes", """
def moved(codes, absmax, update, levels, block): return torch.zeros(len(codes), dtype=bool)
"""),
    ("moved_codes", """
def moved(codes, absmax, update, levels, block): return torch.ones(len(codes), dtype=bool)
"""),
    ("disk_bytes", "disk_bytes = lambda *given: {'merged': 269_000_000, 'separate': 274_000_000}"),
    ("seconds_per_call", "def seconds_per_call(*given): return 0.05"),
    ("seconds_per_call", "def seconds_per_call(*given): return 0.0"),
    ("combine", "def combine(adapters, weights): return adapters[0][:2]"),
    ("combine", "def combine(adapters, weights): return torch.zeros(2, 9), torch.zeros(12, 2)"),
]  # fmt: skip
