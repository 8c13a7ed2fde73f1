# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # NF4 by hand
#
# By the end you will have shown that QLoRA's 4-bit format is a few lines of arithmetic: your codes for a layer of a real model are bitsandbytes' codes, all of them. And you will have measured when the format beats its rivals.
#
# You will be able to:
#
# - quantise weights in blocks, and say what one outlier costs;
# - build NF4's sixteen levels, and say what the paper's formula leaves open;
# - turn weights into codes, and codes into weights;
# - count the bits of a weight, with constants and double quantisation;
# - compare 4-bit formats fairly, by their error and by the model's loss;
# - build a layer whose gradient reaches the adapter only, and choose the dtype it computes in.
#
# **About 75 minutes · 20 points · any computer.** No GPU and no network are needed; the first cell may take half a minute. The weights are those of SmolLM2-135M-Instruct, stored in 4 bits once before (section 5); nothing is trained.

# %%
try:
    from loralab import notebook
except ModuleNotFoundError:
    raise ImportError(
        "This kernel is not the course's. Start JupyterLab with `make lab` "
        "and choose the kernel 'Python 3 (ipykernel)'."
    ) from None
notebook.start("04")

from statistics import NormalDist

import bitsandbytes.functional as bnb
import matplotlib.pyplot as plt
import torch
from torch import nn
from transformers import LlamaConfig

from loralab import base_model, four_bit, measure, memory, plots, predictions, quiz, rounding
from loralab.checks import ch04 as check

# %% tags=["parameters"]
LAYER = "model.layers.11.mlp.down_proj"  # any linear layer of the model
BLOCK = 64  # weights that share a constant
LOSSES = "recorded"  # "here" rounds the whole model again (minutes)

# %% [markdown]
# ## 1. A scale for every block
#
# Four bits tell 16 numbers apart. The plainest choice is whole numbers from −7 to 7 (15 numbers; one code stays unused so that both sides are alike), times a scale: the largest magnitude, **absmax**, becomes ±7, and every other weight goes to the nearest whole number. A code is read as code / 7 × absmax.
#
# Give a real layer one scale for all its weights. What share of them will get the code 0? Guess, then run the cell.

# %%
my_zeros = None  # per cent

model = base_model.load(dtype=torch.float32).eval()
weight = model.get_submodule(LAYER).weight.data.cpu()
codes = torch.round(weight / weight.abs().max() * 7)
print(f"{LAYER}: {tuple(weight.shape)}, {weight.numel():,} weights")
print(f"largest magnitude {weight.abs().max():.3f}, standard deviation {weight.std():.3f}")
zeros = 100 * (codes == 0).float().mean().item()
predictions.compare("weights with the code 0", my_zeros, zeros, "per cent")

# %% [markdown]
# One weight is 30 standard deviations large, and sets the step for 884,736: nearly all are closer to 0 than to one step. So weights are cut into **blocks** of neighbours, each with an absmax of its own. An outlier then spoils its own block only.
#
# ### Exercise 4.1 — write `absmax_quantize`
#
# > Difficulty 2/5 · about 7 minutes · 3 points

# %% exercise="absmax_quantize"
def absmax_quantize(weights: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of the weights, and one constant for each block of them.

    weights: (n,), fp32. A block is `block` neighbours; the last one may have fewer.
    Returns (codes, absmax): codes (n,), whole numbers from -7 to 7, the nearest to
    weight / absmax * 7; absmax (number of blocks,), fp32, the block's largest magnitude.
    A block of zeros gets the codes 0.
    absmax_quantize(torch.tensor([1.0, -4.0, 0.0, 7.0, 2.0]), 2) is the codes
    2, -7, 0, 7, 7 and the constants 4, 7, 2. Roughly 6 lines.
    """
    ### BEGIN SOLUTION
    n = len(weights)
    blocks = nn.functional.pad(weights, (0, -n % block)).reshape(-1, block)
    absmax = blocks.abs().amax(1)
    scale = absmax.clamp(min=1e-30)[:, None]  # 0 / 0 would be no number
    codes = torch.round(blocks / scale * 7)
    return codes.reshape(-1)[:n].to(torch.int8), absmax
    ### END SOLUTION

# %% check="absmax_quantize" points=3
check.absmax_quantize(absmax_quantize)

# %% [markdown] help="absmax_quantize"

# %%
def relative_error(original, other):  # norm of all differences / norm of the weights
    return (torch.linalg.norm(original - other) / torch.linalg.norm(original)).item()

row = weight.reshape(-1)
for block in (len(row), BLOCK):
    codes, absmax = absmax_quantize(row, block)
    back = codes / 7 * absmax.repeat_interleave(block)[: len(row)]
    print(f"blocks of {block:7,}: {len(absmax):6,} constants, "
          f"{(codes == 0).float().mean():5.1%} zeros, "
          f"relative error {relative_error(row, back):.1%}")

# %% [markdown]
# Fewer zeros, and a smaller **relative error**, ‖W − Ŵ‖/‖W‖.
#
# > **In short.** A code is a weight's place in its block's range. One scale for everything serves the largest weight and loses the others; small blocks keep an outlier among its neighbours.
#
# ## 2. Sixteen levels
#
# Weights look much like draws from a normal distribution: many near zero, few at the ends. Equal steps give every stretch of the range the same number of codes. The two outermost codes on each side are 4 of 15. What share of normal weights will use these four?

# %%
my_outer = None  # per cent

torch.manual_seed(0)
normal = torch.randn(2**18)
codes, _ = absmax_quantize(normal, 64)
outer = 100 * (codes.abs() >= 6).float().mean().item()
predictions.compare("weights with a code of ±6 or ±7", my_outer, outer, "per cent")
print(f"of these {outer:.1f}, the block's own absmax makes up {100 / 64:.1f}")

# %% [markdown]
# A quarter of the codes for a twentieth of the weights. Better to put levels where weights are. The QLoRA paper (section 3, equation 4) puts them at quantiles. With Q(p) the number below which a share p of normal draws lies, and i = 0 … 16:
#
# qᵢ = ½ (Q(i/17) + Q((i+1)/17)), then divided by the largest magnitude.
#
# Take that at its word, before the division:

# %%
edges = torch.special.ndtri(torch.arange(18, dtype=torch.float64) / 17)  # Q(0), Q(1/17) … Q(1)
literal = (edges[:-1] + edges[1:]) / 2
print("equation 4:  ", " ".join(f"{level:.3f}" for level in literal.tolist()))
table = bnb.get_4bit_type("nf4", device="cpu")  # what bitsandbytes uses
print("bitsandbytes:", " ".join(f"{level:.3f}" for level in table.tolist()))

# %% [markdown]
# The ends are infinite, and 15 numbers are left. The paper adds, in words, that zero has to be a level and that each side has its own quantiles. These details give its table:
#
# - Zero is a level; **8 are above it, 7 below**.
# - Both sides begin at the same probability, the **offset**: 1 minus the mean of 1/32 and 1/30 (half of 1/16, half of 1/15), about 0.968.
# - Above, the probabilities go from the offset to ½ in 8 equal steps. Q of each is a level, except at ½, where Q is 0. Below it is the same in 7 steps, with the sign turned.
# - All is divided by Q(offset): the ends are −1 and 1.
#
# ### Exercise 4.2 — write `nf_levels`
#
# > Difficulty 3/5 · about 10 minutes · 3 points
#
# Write it for any number of bits, with n = 2 ** bits levels: 8 becomes n/2, 7 becomes n/2 − 1, and 32 and 30 become 2n and 2n − 2.

# %% exercise="nf_levels"
def nf_levels(bits: int) -> list[float]:
    """The 2 ** bits levels of NormalFloat, ascending, from -1.0 to 1.0.

    nf_levels(2) is about [-1.0, 0.0, 0.436, 1.0]. Roughly 7 lines.
    """
    ### BEGIN SOLUTION
    quantile, half = NormalDist().inv_cdf, 2 ** (bits - 1)
    offset = 1 - (1 / (2 * 2**bits) + 1 / (2 * 2**bits - 2)) / 2

    def side(levels):  # outermost first
        return [quantile(offset + (0.5 - offset) * i / levels) for i in range(levels)]

    levels = [-one for one in side(half - 1)] + [0.0] + side(half)[::-1]
    return [one / levels[-1] for one in levels]
    ### END SOLUTION

# %% check="nf_levels" points=3
check.nf_levels(nf_levels)

# %% [markdown] help="nf_levels"

# %% [markdown]
# The 2e-07 in the check's line is rounding: bitsandbytes' offset has seven digits.
#
# > **In short.** NF4 has no sign and no exponent. It is a list of 16 levels, dense where normal weights are, with an exact zero and one more level above it than below.
#
# ## 3. The nearest level
#
# ### Exercise 4.3 — write `quantize` and `dequantize`
#
# > Difficulty 3/5 · about 10 minutes · 5 points
#
# As in exercise 4.1, but with any list of levels. The code is now a *place* in that list, from 0 to 15.

# %% exercise="quantize"
def quantize(
    weights: torch.Tensor, levels: torch.Tensor, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The place of the nearest level for each weight / absmax, and the constants.

    weights: (n,), fp32. levels: (16,) or fewer, fp32, ascending, 0 among them.
    Returns (codes, absmax): codes (n,), whole numbers from 0; absmax (number of blocks,),
    fp32. The last block may have fewer weights; in a block of zeros every weight gets
    the level 0. With the levels -1, 0, 0.3, 1 the weights 2.0, -5.0, 1.0 in one block
    have the codes 2, 0, 2 and the constant 5. Roughly 7 lines.
    """
    ### BEGIN SOLUTION
    n = len(weights)
    blocks = nn.functional.pad(weights, (0, -n % block)).reshape(-1, block)
    absmax = blocks.abs().amax(1)
    scaled = blocks / absmax.clamp(min=1e-30)[:, None]
    middles = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(scaled, middles)  # how many middles lie below
    return codes.reshape(-1)[:n].to(torch.uint8), absmax
    ### END SOLUTION


def dequantize(
    codes: torch.Tensor, absmax: torch.Tensor, levels: torch.Tensor, block: int
) -> torch.Tensor:
    """The weights (n,), fp32, that `quantize` gave these codes and constants. Roughly 2 lines.

    codes (n,): whole numbers of any integer dtype, `uint8` too.
    """
    ### BEGIN SOLUTION
    scales = absmax.repeat_interleave(block)[: len(codes)]
    return levels[codes.long()] * scales
    ### END SOLUTION

# %% check="quantize" points=5
check.quantize(quantize, dequantize)

# %% [markdown] help="quantize"

# %% [markdown]
# Now the layer, all of it, beside bitsandbytes. Two codes share a byte there, the first in its upper half; `four_bit.unpacked` takes them apart. How many of your codes will differ?

# %%
my_differences = None  # codes

packed, state = bnb.quantize_4bit(weight, quant_type="nf4", blocksize=64)
theirs = four_bit.unpacked(packed, weight.numel())
codes, absmax = quantize(row, table, 64)
print(f"byte 0 is {packed[0].item():#04x}, codes 0 and 1 are {theirs[:2].tolist()}")
differ = (codes != theirs).sum().item()
predictions.compare(f"of {len(theirs):,} codes differ", my_differences, differ, "codes")
back = dequantize(codes, absmax, table, 64).reshape(weight.shape)
print(f"weights that came back differ by {(back - bnb.dequantize_4bit(packed, state)).abs().max():g}")
print(f"error of the layer: {relative_error(weight, back):.2%}")

# %% [markdown]
# *And a weight exactly in the middle of two levels?* On the CPU bitsandbytes takes the lower one. What is exact depends on rounding (it multiplies by 1/absmax where you may divide); in this layer that decided no code.
#
# Which codes are in use now? Normal weights again, in equal steps and in NF4:

# %%
shares = {}
tables = {"absmax": torch.arange(-7, 8) / 7, "NF4": table}
for name, levels in tables.items():
    codes, _ = quantize(normal, levels, 64)
    shares[name] = torch.bincount(codes.long(), minlength=len(levels)) / len(codes)
at_offset = NormalDist().inv_cdf(1 - (1/32 + 1/30) / 2)
largest = normal.reshape(-1, 64).abs().amax(1).mean()
print(f"absmax, in standard deviations: NF4's offset {at_offset:.2f}, here {largest:.2f}")
plots.code_usage(shares, tables)
plt.show()

# %% [markdown]
# *Alt text: bars of the share of weights with each code, beside a line for equal shares. Equal steps: a bell, 15 per cent at zero and 1 at the ends. NF4: a flatter hill, 9 in the middle and 2 at the ends.*
#
# More evenly, yet not evenly. NF4's offset puts absmax at 1.85 standard deviations; of 64 normal weights the largest is at 2.6 on average. So the bell is narrower, in units of absmax, than the table expects, and the outer codes are used less.
#
# > **In short.** Quantising divides by the block's absmax and takes the nearest level. Dequantising looks the level up and multiplies. bitsandbytes does the same, and packs two codes into a byte.

# %% [markdown]
# ## 4. Block size and bits
#
# Three kinds of weights: normal ones, the same with one in a thousand made 20 times larger, and the layer.

# %%
outliers = normal.clone()
outliers[torch.randperm(len(outliers))[: len(outliers) // 1000]] *= 20
kinds = {"normal, 0.1 % outliers": outliers, "the layer": row, "normal": normal}
errors = {name: {} for name in kinds}
for name, weights in kinds.items():
    for block in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        back = dequantize(*quantize(weights, table, block), table, block)
        errors[name][block] = relative_error(weights, back)
plots.error_by_block(errors)
plt.show()

# %% [markdown]
# *Alt text: error against block size from 32 to 4,096, both axes logarithmic. For normal weights it rises slowly, from 9 to 11 per cent; for the layer from 9 to 14; with outliers steeply, from 10 to over 50.*
#
# *Then why not blocks of 32, or of 8?* Because of the constants. In fp32 each costs 32 bits. **Double quantisation** stores them in 8 bits, in blocks of 256 constants, and each *such* block has one constant in fp32.
#
# ### Exercise 4.4 — write `bits_per_weight`
#
# > Difficulty 2/5 · about 5 minutes · 3 points

# %% exercise="bits_per_weight"
def bits_per_weight(block: int, double: bool, constant_block: int = 256) -> float:
    """Bits that one weight takes: its 4-bit code and its share of the constants.

    block: weights in a block. double: whether constants are quantised, to 8 bits, in blocks
    of `constant_block`. What a layer has once, whatever its size (lookup tables, the constants'
    mean), is left out.
    bits_per_weight(128, False) is 4.25. Roughly 3 lines.
    """
    ### BEGIN SOLUTION
    if double:
        return 4 + 8 / block + 32 / (block * constant_block)
    return 4 + 32 / block
    ### END SOLUTION

# %% check="bits_per_weight" points=3
check.bits_per_weight(bits_per_weight)

# %% [markdown] help="bits_per_weight"

# %% [markdown]
# By how many per cent will double quantisation raise the layer's error?

# %%
my_rise = None  # per cent of the error

plain = relative_error(weight, bnb.dequantize_4bit(packed, state))
doubled, nested = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
both = relative_error(weight, bnb.dequantize_4bit(doubled, nested))
for name, double, error in (("fp32 constants", False, plain), ("8-bit constants", True, both)):
    print(f"{name:15}  {bits_per_weight(64, double):.3f} bits a weight, error {error:.3%}")
predictions.compare("rise of the error", my_rise, 100 * (both / plain - 1), "per cent")

# %% [markdown]
# Almost nothing. Constants are positive, so bitsandbytes subtracts their mean first; 8 bits do for the rest.
#
# How large is a model? Take a small Llama, quantised both ways. How much smaller will transformers' `get_memory_footprint()` be with double quantisation?

# %%
my_gap = None  # kB

config = LlamaConfig(vocab_size=2000, hidden_size=576, intermediate_size=1536,
                     num_hidden_layers=2, num_attention_heads=9, num_key_value_heads=3)
sizes = {}
for double in (False, True):
    small = four_bit.quantise(memory.build(config, device="cpu", dtype="bf16"), double_quant=double)
    held = measure.held(small)
    sizes[double] = small.get_memory_footprint()
    expected = (bits_per_weight(64, double) - 4) * 2 * held["weights_4bit"] / 8  # bytes
    print(f"double quantisation {double!s:5}: footprint {sizes[double] / 1e3:,.0f} kB, constants "
          f"counted {held['constants'] / 1e3:,.0f} kB, by exercise 4.4 {expected / 1e3:,.0f} kB")
predictions.compare("saved, by the footprint", my_gap, (sizes[False] - sizes[True]) / 1e3, "kB")

# %% [markdown]
# The footprint adds up parameters and buffers. Constants are neither: they hang on the weight as its `quant_state`. So it says the same for both, and too little for either. (Exercise 4.4 leaves out lookup tables: with double quantisation, about 1 KiB for each of 14 layers.)
#
# > **In short.** 4 + 32/64 = 4.5 bits a weight; with double quantisation 4 + 8/64 + 32/(64·256) ≈ 4.127. Blocks of 64 keep outliers apart at a price that double quantisation cuts to a quarter.
#
# ## 5. A fair rival
#
# *NF4 is better than what?* Two rivals, at the same bits a weight: bitsandbytes' default **FP4**, and section 1's symmetric **absmax**, whose 15 levels are equally far apart.

# %%
schemes = {
    "absmax": torch.arange(-7, 8) / 7,
    "FP4": bnb.get_4bit_type("fp4", device="cpu").unique(),  # sorted, each once
    "NF4": table,
}
for name, levels in schemes.items():
    print(f"{name:7}{len(levels)} levels:", " ".join(f"{level:.2f}" for level in levels.tolist()))

# %% [markdown]
# FP4 too has 15: it has a sign bit, and so a +0 and a −0.
#
# ### Exercise 4.5 — write `rank_schemes`
#
# > Difficulty 2/5 · about 5 minutes · 2 points
#
# Which is best, for given weights? Use your `quantize` and `dequantize`.

# %% exercise="rank_schemes"
def rank_schemes(
    weights: torch.Tensor, schemes: dict[str, torch.Tensor], block: int
) -> list[tuple[str, float]]:
    """(name, relative error) for every table of levels, the smallest error first.

    weights: (n,), fp32. The error is ‖W − Ŵ‖/‖W‖, Frobenius norms, a fraction such as 0.092.
    Roughly 5 lines.
    """
    ### BEGIN SOLUTION
    errors = {}
    for name, levels in schemes.items():
        back = dequantize(*quantize(weights, levels, block), levels, block)
        errors[name] = (torch.linalg.norm(weights - back) / torch.linalg.norm(weights)).item()
    return sorted(errors.items(), key=lambda pair: pair[1])
    ### END SOLUTION

# %% check="rank_schemes" points=2
check.rank_schemes(rank_schemes)

# %% [markdown] help="rank_schemes"

# %% [markdown]
# Now normal weights as a control, three layers, and one fresh from torch. On the fresh one, how large will NF4's error be beside absmax's?

# %%
my_fresh = None  # NF4's error / absmax's error, on the fresh layer

torch.manual_seed(0)
fresh = nn.Linear(1536, 576, bias=False).weight.data
paths = [LAYER, "model.layers.0.self_attn.q_proj", "model.layers.29.mlp.up_proj"]
data = {"normal": normal, **{path: model.get_submodule(path).weight.data.cpu() for path in paths},
        "a fresh nn.Linear": fresh}
for name, weights in data.items():
    ranking = rank_schemes(weights.reshape(-1), schemes, BLOCK)
    print(f"{name:32}", " · ".join(f"{scheme} {error:.3f}" for scheme, error in ranking))
last = dict(ranking)
predictions.compare("NF4 over absmax, fresh layer", my_fresh, last["NF4"] / last["absmax"], "times")

# %% [markdown]
# A fresh layer is *uniform*, so equal steps fit it best. NF4 fits weights that look normal, and trained ones do.
#
# *Is this model a fair judge?* Its weights came in llama.cpp's Q4_1: 16 values equally far apart, from the smallest to the largest of every 32 weights. Round them in that grid again:

# %%
for name, weights in (("normal", normal), (LAYER, weight)):
    again = rounding.rounded(weights, "min-max", block=32)
    print(f"{name:32} Q4_1's own grid: {relative_error(weights, again):.4f}")

# %% [markdown]
# Nearly no error on the layer: here Q4_1 would win by descent. So it is no rival here (and takes 5 bits a weight: two 16-bit constants for 32 weights). The others have other grids, and the control, never rounded, ranks them as the layers do.

# %%
scaled = (nn.functional.pad(row, (0, -len(row) % BLOCK)).reshape(-1, BLOCK))
scaled = (scaled / scaled.abs().amax(1, keepdim=True)).reshape(-1)[: len(row)]
ordered = {name: schemes[name] for name in ("NF4", "FP4", "absmax")}
plots.levels_over_weights(scaled, ordered, dict(rank_schemes(row, schemes, BLOCK)), name=LAYER)
plt.show()

# %% [markdown]
# *Alt text: a bell-shaped histogram of the layer's weights over their block's absmax, with spikes at −1 and 1. Below it the levels of each format: NF4's sixteen are dense in the middle (error 9.4 per cent), FP4's crowd at zero with gaps beside it (12.8), absmax's are equally far apart (11.6).*
#
# The spikes are the absmax of each block: a little over 1 in 64, because in Q4_1's grid two weights can tie. (The bumps just outside ±0.87 and ±0.73 are its trace too: one and two of its 15 steps from an end.)
#
# And the model's *loss*, when every linear layer is rounded? Guess how many times as much absmax adds as NF4.

# %%
my_ratio = None  # loss added by absmax / loss added by NF4

found = rounding.losses(LOSSES)
print(f"{found['source']}: {found['tokens']} tokens, {found['loss']:.3f} nats each as it is")
for name, (more, half) in found["added"].items():
    print(f"{name:7} error {found['errors'][name]:.1%}, adds {more:.3f} ± {half:.3f} to the loss")
for pair, (more, half) in found["apart"].items():
    print(f"{pair:13} {more:.3f} ± {half:.3f}, token by token")
ratio = found["added"]["absmax"][0] / found["added"]["NF4"][0]
predictions.compare("absmax over NF4", my_ratio, ratio, "times")

# %% [markdown]
# (On a text written for this course, in nats: natural-log units of loss. ± is a 95 % interval over its tokens.) Over all layers absmax's weights are a fifth further off than NF4's, and its loss rises about two and a half times as much. FP4's weights are further off still. Which of FP4 and absmax costs more loss is not decided by 695 tokens: the interval of their difference holds 0. That NF4 costs least is decided.
#
# > **In short.** On weights that look normal NF4 has the smallest error and costs the least loss; on uniform ones equal steps win. Compare at equal bits, and on weights that no rival has rounded before.
#
# ## 6. A QLoRA layer
#
# Codes are whole numbers: they have no gradient. Each forward pass of a QLoRA layer dequantises the weight, multiplies, forgets the weight, and adds the LoRA path of chapter 02: y = x Ŵᵀ + (α/r) · x Aᵀ Bᵀ. Gradients pass *through* Ŵ, to earlier layers; they stay only in A and B.
#
# ### Exercise 4.6 — write `QLoRALinear`
#
# > Difficulty 4/5 · about 12 minutes · 4 points

# %% exercise="qlora_layer"
class QLoRALinear(nn.Module):
    """A frozen 4-bit linear layer with a LoRA adapter. Roughly 12 lines in all.

    codes (out * in,), uint8; absmax (blocks,), fp32; levels (16,), fp32; block: as in
    `dequantize`. shape: (out, in). A (r, in), B (out, r): fp32 tensors, the adapter's start.
    Only A and B learn, and no weight of the full shape is kept in floats.
    """

    def __init__(self, codes, absmax, levels, block, shape, A, B, alpha):
        super().__init__()
        ### BEGIN SOLUTION
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax)
        self.register_buffer("levels", levels)
        self.block, self.shape = block, shape
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        self.scale = alpha / A.shape[0]
        ### END SOLUTION

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out), fp32."""
        ### BEGIN SOLUTION
        weight = dequantize(self.codes, self.absmax, self.levels, self.block).reshape(self.shape)
        return x @ weight.T + self.scale * (x @ self.A.T @ self.B.T)
        ### END SOLUTION

# %% check="qlora_layer" points=4
check.qlora_layer(QLoRALinear)

# %% [markdown] help="qlora_layer"

# %% [markdown]
# The last choice is the dtype in which the dequantised weight is multiplied, `bnb_4bit_compute_dtype`. Below, the layer gets its real input for a short text. Guess its largest output.

# %%
my_largest = None

seen = []
hook = model.get_submodule(LAYER).register_forward_pre_hook(lambda module, x: seen.append(x[0]))
with torch.no_grad():
    text = base_model.load_tokenizer()("The capital of Norway is Oslo.", return_tensors="pt")
    model(text.input_ids.to(model.device))
hook.remove()
x = seen[0][0].cpu()  # (tokens, in)
ours = dequantize(*quantize(row, table, 64), table, 64).reshape(weight.shape)
right = x @ ours.T
predictions.compare("largest output", my_largest, right.abs().max().item())
print("largest of each token:", ", ".join(f"{one:,.0f}" for one in right.abs().amax(1).tolist()))

def errors_of(right, given):
    later = relative_error(right[1:], given[1:])
    return f"error {relative_error(right, given):.5f}, without the first token {later:.5f}"

print("NF4:".ljust(24), errors_of(x @ weight.T, right))
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    given, larger = (((k * x).to(dtype) @ ours.to(dtype).T).float() for k in (1, 4))
    name = f"{str(dtype)[6:]} (to {torch.finfo(dtype).max:.1e}):".ljust(24)
    print(name, errors_of(right, given), f"· input × 4: largest {larger.abs().max():,.0f}")

# %% [markdown]
# fp16 is the more precise of the two 16-bit types, while it lasts: its largest number is 65,504, and at the first token this layer comes within a factor of three of it. Four times the input, and an output is infinite. bf16 has fp32's range with fewer digits. One huge output hides the rest; without the first token too, bf16's error is far below NF4's. So: bf16 where the GPU has it, fp16 where not, fp32 on a CPU.
#
# > **In short.** Dequantise, multiply, forget; add the adapter. The base is a constant that gradients pass through. Choose the compute dtype for its range first.
#
# ## 7. Self-check questions

# %%
quiz.show("04")

# %% [markdown]
# > **In short.** Each wrong answer is a mistake that somebody made. Read why.
#
# ---
# In this chapter you have:
#
# - **seen** what one outlier costs, where NF4's levels come from, 4.5 and 4.127 bits counted, a footprint that misses the constants, and a fair comparison that NF4 wins on trained weights and loses on uniform ones;
# - **used** your own quantiser beside bitsandbytes, code for code, and your own QLoRA layer beside bitsandbytes and PEFT.
#
# The chapter's figure is section 5's: sixteen levels under a real layer's weights.
#
# **Limitations.** One small model, rounded once before, and one text for the loss. Formats with two constants a block, such as Q4_1, or fitted to data (GPTQ, AWQ) are another comparison, at other bits and with more work.
#
# **Links**
#
# - [QLoRA: Efficient Finetuning of Quantized LLMs](https://arxiv.org/abs/2305.14314) (Dettmers et al., 2023): section 3, and the table of levels in appendix E
# - [NF4 Isn't Information Theoretically Optimal (and that's Good)](https://arxiv.org/abs/2306.06965) (Yoshida, 2023), on the offset and on what block size does to the levels
# - [bitsandbytes: 4-bit quantisation](https://huggingface.co/docs/bitsandbytes/main/en/reference/nn/linear4bit)
# - [8-bit Optimizers via Block-wise Quantization](https://arxiv.org/abs/2110.02861) (Dettmers et al., 2021), on blocks
# - [Massive Activations in Large Language Models](https://arxiv.org/abs/2402.17762) (Sun et al., 2024), on numbers such as section 6's
