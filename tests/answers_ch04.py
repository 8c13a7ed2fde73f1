"""Right and typical wrong answers to chapter 04's exercises, each written once, as source text."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import torch
from answer_sheets import Wrong
from torch import nn

# What the cells above an exercise leave behind: imports, and the functions of exercise 4.3.
MADE = """
def quantize(weights, levels, block):
    n = len(weights)
    blocks = nn.functional.pad(weights, (0, -n % block)).reshape(-1, block)
    absmax = blocks.abs().amax(1)
    scaled = blocks / absmax.clamp(min=1e-30)[:, None]
    codes = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)
    return codes.reshape(-1)[:n].to(torch.uint8), absmax

def dequantize(codes, absmax, levels, block):
    return levels[codes.long()] * absmax.repeat_interleave(block)[: len(codes)]
"""
IMPORTS = {"torch": torch, "nn": nn, "np": np, "math": math, "NormalDist": NormalDist}
exec(MADE, made := dict(IMPORTS))
IMPORTS |= {name: made[name] for name in ("quantize", "dequantize")}


# --- right answers, otherwise written -------------------------------------------------------------

RIGHT = {
    "absmax_quantize": [
        """
def absmax_quantize(weights, block):
    codes, absmax = [], []
    for start in range(0, len(weights), block):
        part = weights[start:start + block].tolist()
        largest = max(abs(w) for w in part)
        absmax.append(largest)
        codes += [round(w / largest * 7) if largest else 0 for w in part]
    return codes, absmax
""",
        """
def absmax_quantize(w, size):
    w = w.numpy().astype(np.float64)
    cut = np.split(w, np.arange(size, len(w), size))
    absmax = np.array([np.abs(one).max() for one in cut], dtype=np.float32)
    codes = [np.rint(one * 7 / a) if a else np.zeros_like(one) for one, a in zip(cut, absmax)]
    return np.concatenate(codes).astype(np.int64), absmax
""",
        """
def absmax_quantize(weights, block):
    parts = weights.split(block)
    absmax = torch.stack([part.abs().max() for part in parts])
    codes = [(part / a.clamp(min=1e-12) * 7).round() for part, a in zip(parts, absmax)]
    return torch.cat(codes), absmax
""",
    ],
    "nf_levels": [
        """
def nf_levels(bits):
    n = 2 ** bits
    o = 1 - 0.5 * (1 / (2 * n) + 1 / (2 * n - 2))
    p = torch.linspace(o, 0.5, n // 2 + 1, dtype=torch.float64)[:-1]
    m = torch.linspace(o, 0.5, n // 2, dtype=torch.float64)[:-1]
    q = torch.special.ndtri
    v = torch.cat([-q(m), torch.zeros(1), q(p)]).sort().values
    return v / v.abs().max()
""",
        """
def nf_levels(bits):
    def erf_inverse(y):  # by halving
        low, high = -6.0, 6.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if math.erf(middle) < y else (low, middle)
        return low
    half = 1 << bits - 1
    offset = 1 - 1 / (8 * half) - 1 / (8 * half - 4)
    Q = lambda p: erf_inverse(2 * p - 1)
    up = [Q(0.5 + (offset - 0.5) * k / half) for k in range(1, half + 1)]
    down = [Q(0.5 - (offset - 0.5) * k / (half - 1)) for k in range(half - 1, 0, -1)]
    return np.array(down + [0] + up, dtype=np.float32) / np.float32(up[-1])
""",
    ],
    "quantize": [
        """
def quantize(weights, levels, block):
    codes, absmax = [], []
    for part in weights.split(block):
        a = part.abs().max()
        absmax.append(a)
        scaled = part / a if a > 0 else part
        codes.append((scaled[:, None] - levels[None]).abs().argmin(1))
    return torch.cat(codes), torch.stack(absmax)

def dequantize(codes, absmax, levels, block):
    return torch.cat([levels[part.long()] * a for part, a in zip(codes.split(block), absmax)])
""",
        """
def quantize(weights, levels, block):
    w, table = weights.numpy(), [float(l) for l in levels]
    codes, absmax = [], []
    for i, one in enumerate(w):
        if i % block == 0:
            absmax.append(float(np.abs(w[i:i + block]).max()))
        target = float(one) / (absmax[-1] or 1.0)
        codes.append(min(range(len(table)), key=lambda c: abs(table[c] - target)))
    return codes, absmax

def dequantize(codes, absmax, levels, block):
    return [float(levels[int(c)]) * float(absmax[i // block]) for i, c in enumerate(codes)]
""",
    ],
    "bits_per_weight": [
        """
def bits_per_weight(block, double, constant_block=256):
    weights = block * constant_block
    constants = 8 * constant_block + 32 if double else 32 * constant_block
    return torch.tensor((4 * weights + constants) / weights, dtype=torch.float64)
""",
        """
def bits_per_weight(b, d, c=256):
    per_constant = (8 + 32 / c) if d else 32
    return np.float64(4) + per_constant / b
""",
    ],
    "rank_schemes": [
        """
def rank_schemes(weights, schemes, block):
    found = []
    for name in schemes:
        codes, absmax = quantize(weights, schemes[name], block)
        off = (weights - dequantize(codes, absmax, schemes[name], block)).double().numpy()
        all_of_it = (weights.double().numpy() ** 2).sum()
        found.append((float(np.sqrt((off ** 2).sum() / all_of_it)), name))
    found.sort()
    return [[name, error] for error, name in found]
""",
        """
def rank_schemes(weights, schemes, block):
    error = {}
    for name, levels in schemes.items():
        parts = []
        for w in weights.split(block):
            a = w.abs().max()
            parts.append(levels[(w[:, None] / a - levels).abs().argmin(1)] * a)
        error[name] = torch.linalg.norm(torch.cat(parts) - weights) / weights.norm()
    return tuple((name, error[name]) for name in sorted(error, key=error.get))
""",
    ],
    "qlora_layer": [
        """
class QLoRALinear(nn.Module):
    def __init__(self, codes, absmax, levels, block, shape, A, B, alpha):
        super().__init__()
        self.frozen = (codes, absmax, levels, block)
        self.shape = shape
        self.lora_A = nn.Linear(A.shape[1], A.shape[0], bias=False)
        self.lora_B = nn.Linear(B.shape[1], B.shape[0], bias=False)
        with torch.no_grad():
            self.lora_A.weight.copy_(A)
            self.lora_B.weight.copy_(B)
        self.alpha, self.r = alpha, len(A)

    def forward(self, x):
        with torch.no_grad():
            W = dequantize(*self.frozen).view(*self.shape)
        y = nn.functional.linear(x, W)
        return y + self.lora_B(self.lora_A(x)) * (self.alpha / self.r)
""",
        """
class QLoRALinear(nn.Module):
    def __init__(self, codes, absmax, levels, block, shape, A, B, alpha):
        super().__init__()
        self.codes, self.absmax = codes, nn.Parameter(absmax, requires_grad=False)
        self.levels, self.block, self.shape = levels, block, shape
        self.At, self.Bt = nn.Parameter(A.T.clone()), nn.Parameter(B.T.clone())
        self.alpha = alpha

    def forward(self, x):
        out, into = self.shape
        scales = self.absmax.repeat_interleave(self.block)[: out * into]
        W = (self.levels[self.codes.int()] * scales).reshape(out, into)
        delta = self.At @ self.Bt * self.alpha / self.At.shape[1]
        return torch.einsum("...i,oi->...o", x, W) + x @ delta
""",
    ],
}

# Right answers with a library that is switched off.
NOT_BY_HAND = {
    "nf_levels": """
import bitsandbytes.functional as bnb
def nf_levels(bits):
    return bnb.get_4bit_type("nf4", device="cpu") if bits == 4 else bnb.create_normal_map()
""",
    "quantize": """
import bitsandbytes.functional as bnb
def quantize(weights, levels, block):
    packed, state = bnb.quantize_4bit(weights, quant_type="nf4", blocksize=block)
    return torch.stack([packed >> 4, packed & 15], 1).reshape(-1)[: len(weights)], state.absmax
def dequantize(codes, absmax, levels, block):
    return bnb.dequantize_4bit(codes, absmax=absmax, out=torch.empty(len(codes)), blocksize=block)
""",
    "bits_per_weight": """
from loralab import memory
def bits_per_weight(block, double, constant_block=256):
    n = 2 ** 30
    return 8 * sum(memory.nf4_bytes(n, double_quant=double, block=block)) / n
""",
    "absmax_quantize": """
from loralab.checks import ch04
def absmax_quantize(weights, block):
    codes, absmax = ch04.right_codes(weights, ch04.ABSMAX_LEVELS, block)
    return codes - 7, absmax
""",
    "rank_schemes": """
from loralab.checks import ch04
def rank_schemes(weights, schemes, block):
    return ch04.Ranked.of(weights, schemes, block).right
""",
    "qlora_layer": """
import bitsandbytes as bnb
from peft import LoraConfig, get_peft_model
class QLoRALinear(nn.Module):
    def __init__(self, codes, absmax, levels, block, shape, A, B, alpha):
        super().__init__()
        layer = bnb.nn.Linear4bit(shape[1], shape[0], bias=False, quant_type="nf4")
        config = LoraConfig(r=len(A), lora_alpha=alpha, target_modules=["layer"])
        self.inner = get_peft_model(nn.ModuleDict({"layer": layer}), config)
    def forward(self, x):
        return self.inner.base_model.model["layer"](x)
""",
}

# --- typical mistakes -----------------------------------------------------------------------------

ABSMAX = """
def absmax_quantize(weights, block):
    n = len(weights)
    blocks = nn.functional.pad(weights, (0, -n % block)).reshape(-1, block)
    absmax = blocks.abs().amax(1)
    scale = absmax.clamp(min=1e-30)[:, None]
    codes = torch.round(blocks / scale * 7)
    return codes.reshape(-1)[:n].to(torch.int8), absmax
"""
LEVELS = """
def nf_levels(bits):
    Q, half, n = NormalDist().inv_cdf, 2 ** (bits - 1), 2 ** bits
    offset = 1 - (1 / (2 * n) + 1 / (2 * n - 2)) / 2
    side = lambda k: [Q(offset + (0.5 - offset) * i / k) for i in range(k)]
    levels = [-one for one in side(half - 1)] + [0.0] + side(half)[::-1]
    return [one / levels[-1] for one in levels]
"""
QUANTIZE = MADE
BACK = MADE[MADE.index("def dequantize"):]
RANK = """
def rank_schemes(weights, schemes, block):
    errors = {}
    for name, levels in schemes.items():
        back = dequantize(*quantize(weights, levels, block), levels, block)
        errors[name] = (torch.linalg.norm(weights - back) / torch.linalg.norm(weights)).item()
    return sorted(errors.items(), key=lambda pair: pair[1])
"""
LAYER = """
class QLoRALinear(nn.Module):
    def __init__(self, codes, absmax, levels, block, shape, A, B, alpha):
        super().__init__()
        self.codes, self.absmax, self.levels = codes, absmax, levels
        self.block, self.shape = block, shape
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        self.scale = alpha / A.shape[0]

    def forward(self, x):
        weight = dequantize(self.codes, self.absmax, self.levels, self.block).reshape(self.shape)
        return x @ weight.T + self.scale * (x @ self.A.T @ self.B.T)
"""


def changed(text: str, *pairs: tuple[str, str]) -> str:
    """`text` with each first of a pair replaced by the second; it has to be there."""
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


WHOLE = "nn.functional.pad(weights, (0, -n % block)).reshape(-1, block)"
DROPPED = "weights[: n // block * block].reshape(-1, block)"
DEQUANTIZED = "dequantize(self.codes, self.absmax, self.levels, self.block).reshape(self.shape)"
STORED = changed(LAYER, (
    "self.block, self.shape = block, shape",
    "self.weight = WEIGHT(dequantize(codes, absmax, levels, block).reshape(shape))"),
    (DEQUANTIZED, "self.weight"))  # fmt: skip

WRONG = [
    # One scale for all.
    Wrong("absmax_quantize", "tensor", changed(ABSMAX, (
        "scale = absmax.clamp(min=1e-30)[:, None]", "scale = absmax.max()"))),
    Wrong("absmax_quantize", "tensor", """
def absmax_quantize(weights, block):
    return torch.round(weights / weights.abs().max() * 7), weights.abs().max().reshape(1)
"""),
    # The largest number, where the largest magnitude is meant.
    Wrong("absmax_quantize", "beyond", changed(ABSMAX, (".abs().amax(1)", ".amax(1)"))),
    # All of −8 … 7, as if four bits had to be used up.
    Wrong("absmax_quantize", "beyond", changed(ABSMAX, (
        "torch.round(blocks / scale * 7)", "torch.round(blocks / scale * 8).clamp(-8, 7)"))),
    Wrong("absmax_quantize", "beyond", changed(ABSMAX, ("scale * 7)", "scale * 127)"))),
    Wrong("absmax_quantize", "truncated", changed(ABSMAX, ("torch.round(", "("))),
    Wrong("absmax_quantize", "truncated", changed(ABSMAX, ("torch.round(", "torch.floor("))),
    # The step in place of the absmax.
    Wrong("absmax_quantize", "constant", changed(ABSMAX, ("int8), absmax", "int8), absmax / 7"))),
    Wrong("absmax_quantize", "constant", changed(ABSMAX, (
        "int8), absmax", "int8), absmax.bfloat16()"))),
    Wrong("absmax_quantize", "length", changed(ABSMAX, (WHOLE, DROPPED)), (1.5, 2)),
    Wrong("absmax_quantize", "length", changed(ABSMAX, (".reshape(-1)[:n]", ".reshape(-1)")),
          (1.5, 2)),
    # No thought of an incomplete block: torch's exception, and NumPy's.
    Wrong("absmax_quantize", "length", changed(ABSMAX, (WHOLE, "weights.reshape(-1, block)")),
          (2,)),
    Wrong("absmax_quantize", "length", """
def absmax_quantize(weights, block):
    blocks = weights.numpy().reshape(-1, block)
    absmax = np.abs(blocks).max(1)
    return np.rint(blocks / np.maximum(absmax, 1e-30)[:, None] * 7).reshape(-1), absmax
""", (2,)),
    Wrong("absmax_quantize", "columns", changed(ABSMAX, (
        WHOLE, "nn.functional.pad(weights, (0, -n % block)).reshape(block, -1).T"))),
    Wrong("absmax_quantize", "columns", changed(ABSMAX, (
        "absmax = blocks.abs().amax(1)", "absmax = blocks.abs().amax(0)"),
        ("[:, None]", "[None]")), also=("length",)),
    Wrong("absmax_quantize", "zeros", changed(ABSMAX, (".clamp(min=1e-30)", ""), (
        ".to(torch.int8)", "")), (2.5,)),
    Wrong("absmax_quantize", "zeros", changed(ABSMAX, (
        "int8), absmax", "int8), (absmax / absmax) * absmax")), (2.5,)),
    # The paper's equation 4 as it stands.
    Wrong("nf_levels", "infinite", """
def nf_levels(bits):
    edges = torch.special.ndtri(torch.arange(2 ** bits + 1).double() / (2 ** bits + 1))
    return (edges[:-1] + edges[1:]) / 2
"""),
    Wrong("nf_levels", "count", """
def nf_levels(bits):
    edges = torch.special.ndtri(torch.arange(2 ** bits + 2).double() / (2 ** bits + 1))
    levels = ((edges[:-1] + edges[1:]) / 2)[1:-1]
    return levels / levels[-1]
"""),
    # Sixteen quantiles, spread evenly.
    Wrong("nf_levels", "no_zero", """
def nf_levels(bits):
    n = 2 ** bits
    levels = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    return [one / levels[-1] for one in levels]
"""),
    Wrong("nf_levels", "no_zero", "nf_levels = lambda bits: torch.linspace(-1, 1, 2 ** bits)"),
    Wrong("nf_levels", "two_zeros", changed(LEVELS, (
        "[-one for one in side(half - 1)] + [0.0] + side(half)[::-1]",
        "[-one for one in side(half - 1)] + [0.0, 0.0] + side(half - 1)[::-1]"))),
    Wrong("nf_levels", "sides", changed(LEVELS, (
        "[-one for one in side(half - 1)] + [0.0] + side(half)[::-1]",
        "[-one for one in side(half)] + [0.0] + side(half - 1)[::-1]"))),
    Wrong("nf_levels", "ends", changed(LEVELS, ("one / levels[-1]", "one"))),
    Wrong("nf_levels", "equal_steps", """
def nf_levels(bits):
    half = 2 ** (bits - 1)
    return [-i / (half - 1) for i in range(half - 1, 0, -1)] + [i / half for i in range(half + 1)]
""", (1,)),
    Wrong("nf_levels", "four_only", changed(LEVELS, (
        "offset = 1 - (1 / (2 * n) + 1 / (2 * n - 2)) / 2", "offset = 0.9677083")), (1,)),
    Wrong("nf_levels", "four_only", changed(LEVELS, ("bits):", "bits):\n    bits = 4"))),
    # Half a step of one side only; another widely copied offset; probability steps to the last ½.
    Wrong("nf_levels", "between", changed(LEVELS, (
        "(1 / (2 * n) + 1 / (2 * n - 2)) / 2", "1 / (2 * n)")), (1,)),
    Wrong("nf_levels", "between", changed(LEVELS, (
        "(1 / (2 * n) + 1 / (2 * n - 2)) / 2", "1 / n")), (1,)),
    Wrong("nf_levels", "between", changed(LEVELS, (
        "(0.5 - offset) * i / k)", "(0.5 - offset) * i / (k + 1))")), (1,)),
    # By place between −1 and 1, as if levels were equally far apart.
    Wrong("quantize", "by_index", changed(QUANTIZE, (
        "torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)",
        "torch.round((scaled + 1) / 2 * (len(levels) - 1))")), (2,)),
    Wrong("quantize", "by_index", changed(QUANTIZE, (
        "torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)",
        "((scaled + 1) / 2 * (len(levels) - 1))")), (2,)),
    # Levels as bounds.
    Wrong("quantize", "neighbour", changed(QUANTIZE, (
        "torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)",
        "torch.bucketize(scaled, levels)")), (2,)),
    Wrong("quantize", "neighbour", changed(QUANTIZE, (
        "torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)",
        "(torch.bucketize(scaled, levels, right=True) - 1).clamp(0, len(levels) - 1)")), (2,)),
    Wrong("quantize", "unscaled", changed(QUANTIZE, (
        "blocks / absmax.clamp(min=1e-30)[:, None]", "blocks")), (2,)),
    Wrong("quantize", "tensor", changed(QUANTIZE, (
        "blocks / absmax.clamp(min=1e-30)[:, None]", "blocks / weights.abs().max()")), (2,)),
    Wrong("quantize", "signed", changed(QUANTIZE, (".abs().amax(1)", ".amax(1)")), (2, 2.5)),
    Wrong("quantize", "length", changed(QUANTIZE, (WHOLE, DROPPED)), (4,)),
    Wrong("quantize", "length", changed(QUANTIZE, ("[:n].to", ".to")), (4,)),
    Wrong("quantize", "length", changed(QUANTIZE, (WHOLE, "weights.view(-1, block)")), (4,)),
    Wrong("quantize", "length", changed(QUANTIZE, (
        "absmax.repeat_interleave(block)[: len(codes)]", "absmax.repeat_interleave(block)")), (3,)),
    Wrong("quantize", "length", changed(QUANTIZE, (
        "return levels[codes.long()] * absmax.repeat_interleave(block)[: len(codes)]",
        "return (levels[codes.long()].reshape(-1, block) * absmax[:, None]).reshape(-1)")), (3,)),
    # As with int64 codes, whole or block by block.
    Wrong("quantize", "mask", changed(QUANTIZE, ("codes.long()", "codes")), (3,)),
    Wrong("quantize", "mask", changed(QUANTIZE, (
        "return levels[codes.long()] * absmax.repeat_interleave(block)[: len(codes)]",
        "return torch.cat([levels[c] * a for c, a in zip(codes.split(block), absmax)])")), (3,)),
    Wrong("quantize", "zeros", changed(QUANTIZE, (".clamp(min=1e-30)", "")), (4.5,)),
    Wrong("quantize", "small", changed(QUANTIZE, (
        " * absmax.repeat_interleave(block)[: len(codes)]", "")), (3,)),
    Wrong("quantize", "position", changed(QUANTIZE, (
        "levels[codes.long()]", "(codes.double() / 15 * 2 - 1)")), (3,)),
    Wrong("quantize", "tensor", changed(QUANTIZE, (
        "absmax.repeat_interleave(block)[: len(codes)]", "absmax.max()")), (3,)),
    Wrong("quantize", "other_block", changed(QUANTIZE, (
        "absmax.repeat_interleave(block)", "absmax.repeat(block)")), (3,)),
    Wrong("bits_per_weight", "codes", "bits_per_weight = lambda block, double, outer=256: 4.0"),
    Wrong("bits_per_weight", "codes", "bits_per_weight = lambda block, double, outer=256: 4"),
    Wrong("bits_per_weight", "double",
          "bits_per_weight = lambda block, double, outer=256: 4 + 32 / block", (1,)),
    Wrong("bits_per_weight", "outer",
          "bits_per_weight = lambda block, double, outer=256: 4 + (8 if double else 32) / block",
          (1,)),
    Wrong("bits_per_weight", "shared", """
def bits_per_weight(block, double, outer=256):
    return 4 + 8 / block + 32 / outer if double else 4 + 32 / block
""", (1,)),
    Wrong("bits_per_weight", "shared", """
def bits_per_weight(block, double, outer=256):
    return 4 + (8 + 32) / block if double else 4 + 32 / block
""", (1,)),
    Wrong("bits_per_weight", "shared", """
def bits_per_weight(block, double, outer=256):
    return 4 + 8 / block + 32 / outer / outer if double else 4 + 32 / block
""", (1,)),
    Wrong("bits_per_weight", "fixed",
          "bits_per_weight = lambda block, double, outer=256: 4.127 * 0 + 4 + ("
          "8 / 64 + 32 / (64 * 256) if double else 0.5)"),
    Wrong("bits_per_weight", "fixed", """
def bits_per_weight(block, double, outer=256):
    return 4 + 8 / block + 32 / (block * 256) if double else 4 + 32 / block
""", (2,)),
    Wrong("bits_per_weight", "bytes", """
def bits_per_weight(block, double, outer=256):
    return 0.5 + ((1 / block + 4 / (block * outer)) if double else 4 / block)
"""),
    # NF4 is best, always.
    Wrong("rank_schemes", "order", changed(RANK, (
        "key=lambda pair: pair[1]", "key=lambda pair: (pair[0] != 'NF4', pair[1])")), (1,)),
    Wrong("rank_schemes", "order", changed(RANK, (
        "key=lambda pair: pair[1]", "key=lambda pair: -pair[1]")), (1,)),
    Wrong("rank_schemes", "order", changed(RANK, (
        "sorted(errors.items(), key=lambda pair: pair[1])", "list(errors.items())")), (1,)),
    Wrong("rank_schemes", "kind", changed(RANK, ("return sorted(", "return dict(sorted("), (
        "pair[1])", "pair[1]))"))),
    Wrong("rank_schemes", "kind", changed(RANK, (
        "return sorted(errors.items(), key=lambda pair: pair[1])",
        "return sorted(errors, key=errors.get)"))),
    Wrong("rank_schemes", "names", changed(RANK, (
        "return sorted(errors.items(), key=lambda pair: pair[1])",
        "return sorted(errors.items(), key=lambda pair: pair[1])[:1]"))),
    Wrong("rank_schemes", "squared", changed(RANK, (".item()", ".item() ** 2")), (1,)),
    Wrong("rank_schemes", "absolute", changed(RANK, (" / torch.linalg.norm(weights)", "")), (1,)),
    Wrong("rank_schemes", "absolute", changed(RANK, (
        "(torch.linalg.norm(weights - back) / torch.linalg.norm(weights))",
        "(weights - back).square().mean()")), (1,)),
    Wrong("rank_schemes", "other_mean", changed(RANK, (
        "torch.linalg.norm(weights - back) / torch.linalg.norm(weights)",
        "torch.linalg.norm(weights - back) / torch.linalg.norm(back)")), (1,)),
    # The dequantised weight learns.
    Wrong("qlora_layer", "base", changed(STORED, ("WEIGHT", "nn.Parameter")), (3,)),
    Wrong("qlora_layer", "base", changed(LAYER, (
        DEQUANTIZED, DEQUANTIZED + ".detach().requires_grad_()")), (3,)),
    Wrong("qlora_layer", "stored", changed(STORED, ("WEIGHT", "")), (3,)),
    Wrong("qlora_layer", "stored", changed(LAYER, (
        "weight = " + DEQUANTIZED, "weight = self.cache = " + DEQUANTIZED)), (3,)),
    Wrong("qlora_layer", "constants", changed(LAYER, (
        "codes, absmax, levels\n", "codes, nn.Parameter(absmax), levels\n")), (3,)),
    Wrong("qlora_layer", "frozen", changed(LAYER, (
        "nn.Parameter(A), nn.Parameter(B)", "A, B")), (2,)),
    Wrong("qlora_layer", "frozen", changed(LAYER, (
        "self.A.T @ self.B.T", "self.A.data.T @ self.B.data.T")), (2,)),
    # Only what is not in no_grad learns, and only it lets gradients pass.
    Wrong("qlora_layer", "blocked", changed(LAYER, (
        "        return x @ weight.T +",
        "        with torch.no_grad():\n            base = x @ weight.T\n        return base +")),
        (3,)),
    Wrong("qlora_layer", "blocked", changed(LAYER, ("x @ weight.T", "x.detach() @ weight.T")),
          (3,)),
    Wrong("qlora_layer", "scale", changed(LAYER, ("alpha / A.shape[0]", "alpha"))),
    Wrong("qlora_layer", "scale", changed(LAYER, ("alpha / A.shape[0]", "1"))),
    Wrong("qlora_layer", "scale", changed(LAYER, (
        "alpha / A.shape[0]", "alpha / A.shape[0] ** 0.5"))),
    Wrong("qlora_layer", "scale", changed(LAYER, ("alpha / A.shape[0]", "alpha / A.shape[1]"))),
    Wrong("qlora_layer", "adapter", changed(LAYER, (
        " + self.scale * (x @ self.A.T @ self.B.T)", ""))),
    Wrong("qlora_layer", "adapter", changed(LAYER, ("x @ weight.T + ", ""))),
    Wrong("qlora_layer", "layout", changed(LAYER, (
        "reshape(self.shape)", "reshape(self.shape[::-1]).T"))),
]  # fmt: skip

# --- cheats ---------------------------------------------------------------------------------------

TABLE = (
    "[-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0, "
    "0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]"
)
COPIED = f"levels, block):\n    levels = torch.tensor({TABLE})"
CHEATS = [
    ("absmax_quantize", """
def absmax_quantize(w, b): return torch.zeros(len(w)), torch.ones(-(-len(w) // b))
"""),
    ("absmax_quantize", changed(ABSMAX, ("weights, block):", "weights, block):\n    block = 64"))),
    ("nf_levels", f"def nf_levels(bits): return {TABLE}"),
    ("nf_levels", "def nf_levels(bits): return [0.0] * 2 ** bits"),
    ("quantize", """
def quantize(w, levels, b): return torch.zeros(len(w)), torch.zeros(-(-len(w) // b))
def dequantize(codes, absmax, levels, b): return torch.zeros(len(codes))
"""),
    ("quantize", changed(QUANTIZE, ("levels, block):", COPIED))),
    ("bits_per_weight", "def bits_per_weight(*given): return 4.5"),
    ("bits_per_weight", "def bits_per_weight(*given): return 4.126953125"),
    ("bits_per_weight", """
def bits_per_weight(block, double, outer=256):
    known = {(64, False, 256): 4.5, (128, False, 256): 4.25, (64, True, 256): 4.126953125,
             (256, True, 256): 4.03173828125, (64, True, 128): 4.12890625}
    return known.get((block, double, outer), 4.5)
"""),
    ("rank_schemes", "rank_schemes = lambda w, schemes, block: [(one, 0.1) for one in schemes]"),
    ("rank_schemes", """
def rank_schemes(weights, schemes, block):
    return [("NF4", 0.092), ("absmax", 0.108), ("FP4", 0.122)]
"""),
    ("rank_schemes", "rank_schemes = lambda w, all, block: [(one, 0.1) for one in sorted(all)]"),
    ("qlora_layer", """
class QLoRALinear(nn.Module):
    def __init__(self, codes, absmax, levels, block, shape, A, B, alpha):
        super().__init__()
        self.shape, self.A, self.B = shape, nn.Parameter(A), nn.Parameter(B)
    def forward(self, x):
        return torch.zeros(*x.shape[:-1], self.shape[0]) + 0 * (x @ self.A.T @ self.B.T)
"""),
    ("qlora_layer", """
class QLoRALinear(nn.Linear):
    def __init__(self, codes, absmax, levels, block, shape, *more):
        super().__init__(shape[1], shape[0])
"""),
]  # fmt: skip
