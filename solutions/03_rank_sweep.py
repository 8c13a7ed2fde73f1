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
# # The rank sweep
#
# By the end you will have shown that the number of trainable parameters follows from the shapes of the layers and the rank alone, what a higher rank costs, and whether a difference between two settings is more than noise.
#
# You will be able to:
#
# - find the layers that LoRA can go into, in a model you have never seen;
# - read `LoraConfig`, argument by argument, with the defaults that act if you say nothing;
# - count, plot and predict trainable parameters, and tell which model a printed count comes from;
# - say what rank 64 costs in memory, in per cent;
# - keep the factor in front of B·A the same when you change the rank;
# - decide whether two settings differ, from a few runs of each.
#
# **About 75 minutes · 20 points · any computer.** No GPU and no network: models are built as shapes only, and the training runs of the last section are recorded ones.

# %%
try:
    from loralab import notebook
except ModuleNotFoundError:
    raise ImportError(
        "This kernel is not the course's. Start JupyterLab with `make lab` "
        "and choose the kernel 'Python 3 (ipykernel)'."
    ) from None
notebook.start("03")

import math
import statistics

import matplotlib.pyplot as plt
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from loralab import memory, plots, predictions, quiz, rank_sweep
from loralab.checks import ch03 as check

# %% tags=["parameters"]
MODEL = "llama-2-7b"  # for the question of memory: a model with a q_proj and a v_proj

# %% [markdown]
# ## 1. Where adapters can go
#
# LoRA goes into linear layers, and PEFT finds them by name. Every author names them anew. Here is one block of three models:

# %%
for name in ("gpt2", "llama-3.2-1b", "phi-3-mini-4k"):
    model = memory.build(name)  # shapes, no weights
    print(f"\n{name}: {type(model).__name__}")
    for path, part in model.named_modules():
        if ".0." in path and hasattr(part, "weight"):
            print(f"  {path:42}{type(part).__name__:13}weight {tuple(part.weight.shape)}")

# %% [markdown]
# *Is there always a `q_proj` and a `v_proj`?* In Llama there is. In GPT-2 query, key and value are one layer, `c_attn`, and so they are in Phi-3, where it is called `qkv_proj`. GPT-2's layers are not even `nn.Linear`: a `Conv1D` does the same multiplication, with its weight stored the other way round.
#
# And GPT-2 has two layers called `c_proj` in each block. A name is not enough to tell them apart; a path is.

# %% [markdown]
# ### Exercise 3.1 — write `find_targets`
#
# > Difficulty 3/5 · about 10 minutes · 4 points

# %% exercise="find_targets"
def find_targets(model: nn.Module) -> dict[str, tuple[int, int]]:
    """{path: (in, out)} of every nn.Linear and Conv1D, without the output head.

    in and out are the numbers of features that go into the layer and come out of it.
    For GPT-2 there are 48 paths, and "transformer.h.0.attn.c_attn" is (768, 2304).
    Roughly 8 lines.
    """
    ### BEGIN SOLUTION
    found = {}
    for path, module in model.named_modules():
        if module is model.get_output_embeddings():
            continue
        if isinstance(module, Conv1D):
            found[path] = tuple(module.weight.shape)
        elif isinstance(module, nn.Linear):
            found[path] = (module.in_features, module.out_features)
    return found
    ### END SOLUTION

# %% check="find_targets" points=4
check.find_targets(find_targets)

# %% [markdown] help="find_targets"

# %% [markdown]
# Try it on an architecture that this course has not mentioned. Which of its layers belong to attention?

# %%
unseen = check.small_model("codegen", hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
for path, shape in find_targets(unseen).items():
    print(f"{path:32}{shape}")

# %% [markdown]
# > **In short.** Look, never guess: `named_modules()` has the names. Classes say what is linear, and shapes say how large an adapter will be.

# %% [markdown]
# ## 2. LoraConfig, argument by argument
#
# What happens if you say nothing?

# %%
default = LoraConfig()
for name in ("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_rslora",
             "init_lora_weights", "fan_in_fan_out", "task_type"):
    print(f"{name:20}{getattr(default, name)}")

# %% [markdown]
# - `r`: the rank. A is r × in, B is out × r.
# - `lora_alpha`: what acts is α/r. The default is 8 whatever `r` is; so `r=64` alone makes the factor 1/8, where rank 8 has 1.
# - `lora_dropout`: zeroes part of the adapter's input while training.
# - `target_modules`: `None` takes PEFT's choice for architectures it knows (q and v for Llama, `c_attn` for GPT-2) and fails for others. `"all-linear"` takes every linear layer but the head. A name is compared with the last parts of each path.
# - `bias`: whether the layers' own biases are trained too.
# - `use_rslora`: divide by √r in place of r (section 6).
# - `init_lora_weights`: `True` makes A random and B zero, so that training starts from the base.
# - `fan_in_fan_out`: the weight is stored as in × out, as in `Conv1D`. PEFT finds out by itself, and warns.
# - `task_type`: which wrapper the model gets; `"CAUSAL_LM"` for language models.
#
# Many texts show this configuration with an output that it does not give. For Llama-3.2-1B with `r=8` on `q_proj` and `v_proj` they print "trainable params: 4,194,304 || all params: 1,239,863,296 || trainable%: 0.34". How many will PEFT count?

# %%
my_count = None  # trainable parameters

config = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=["q_proj", "v_proj"],
                    task_type="CAUSAL_LM")
wrapped = get_peft_model(memory.build("llama-3.2-1b"), config)
wrapped.print_trainable_parameters()
predictions.compare("trained", my_count, wrapped.get_nb_trainable_parameters()[0])

# %% [markdown]
# A fifth of what they print. Section 4 finds out where the other number comes from.
#
# > **In short.** Say `r`, `lora_alpha`, `target_modules` and `task_type`; leave the rest unless you know why. And run what you print.
#
# ## 3. Rank against parameters
#
# This is the exercise that the course grew from: load a model, apply LoRA with r = 4, 8, 16 and 32, print the number of trainable parameters for each, and plot rank against count.

# %% [markdown]
# ### Exercise 3.2 — write `trainable_counts`
#
# > Difficulty 2/5 · about 7 minutes · 3 points
#
# `get_peft_model` changes the model it is given, and complains about a changed one. So take a fresh one for every rank.

# %% exercise="trainable_counts"
def trainable_counts(make_model, settings: dict, ranks: list[int]) -> list[int]:
    """Trainable parameters at each rank, counted on a model that PEFT has wrapped.

    make_model(): a fresh base model. settings: further arguments of LoraConfig, such as
    {"target_modules": ["c_attn"]}. With these, GPT-2 at [4] gives [147456]. Roughly 6 lines.
    """
    ### BEGIN SOLUTION
    counts = []
    for r in ranks:
        wrapped = get_peft_model(make_model(), LoraConfig(r=r, **settings))
        counts.append(sum(p.numel() for p in wrapped.parameters() if p.requires_grad))
    return counts
    ### END SOLUTION

# %% check="trainable_counts" points=3
check.trainable_counts(trainable_counts)

# %% [markdown] help="trainable_counts"

# %% [markdown]
# ### Exercise 3.3 — draw `plot_counts`
#
# > Difficulty 1/5 · about 4 minutes · 2 points

# %% exercise="plot_counts"
def plot_counts(ranks: list[int], counts: list[int]) -> plt.Axes:
    """New axes with counts against ranks, as points or as a line; both axes labelled.

    plot_counts([4, 8], [100, 200]) goes from (4, 100) to (8, 200). Roughly 4 lines.
    """
    ### BEGIN SOLUTION
    figure, axes = plt.subplots(figsize=(6, 3.5))
    axes.plot(ranks, counts, "o-")
    axes.set(xlabel="rank r", ylabel="trainable parameters")
    return axes
    ### END SOLUTION

# %% check="plot_counts" points=2
check.plot_counts(plot_counts)

# %% [markdown] help="plot_counts"

# %%
RANKS = [4, 8, 16, 32]
counts = trainable_counts(check.gpt2, dict(target_modules=["c_attn"], fan_in_fan_out=True), RANKS)
for r, count in zip(RANKS, counts, strict=True):
    print(f"GPT-2, r = {r:2}: {count:9,} trainable parameters")
axes = plot_counts(RANKS, counts)
axes.set(xlim=0, ylim=0, xticks=RANKS)
plt.show()

# %% [markdown]
# *Alt text: trainable parameters of GPT-2 against rank: 147,456 at rank 4 to 1,179,648 at rank 32, on a straight line through the origin.*
#
# > **In short.** A straight line through the origin: twice the rank, twice the parameters.
#
# ## 4. The count, predicted
#
# A line through the origin has one number: its slope. It follows from the shapes.
#
# ### Exercise 3.4 — write `predict_count`
#
# > Difficulty 2/5 · about 4 minutes · 2 points

# %% exercise="predict_count"
def predict_count(shapes: list[tuple[int, int]], r: int) -> int:
    """Trainable parameters of rank r on layers of these (in, out) shapes.

    predict_count([(768, 2304)], 4) is 12288. Roughly 1 line.
    """
    ### BEGIN SOLUTION
    return sum(r * (n_in + n_out) for n_in, n_out in shapes)
    ### END SOLUTION

# %% check="predict_count" points=2
check.predict_count(predict_count)

# %% [markdown] help="predict_count"

# %% [markdown]
# ### Exercise 3.5 — write `models_with`
#
# > Difficulty 3/5 · about 8 minutes · 2 points
#
# Which model gives 4,194,304 at rank 8 on `q_proj` and `v_proj`? Write the search. `check.candidates()` has the shapes of seven models, as your `find_targets` gives them.

# %% exercise="models_with"
def models_with(models: dict, names: list[str], r: int, count: int) -> list[str]:
    """The models whose layers called by one of `names` have `count` parameters at rank r.

    models: {model: {path: (in, out)}}. A layer's name is the part of its path after the last
    dot. models_with({"toy": {"h.0.q_proj": (8, 4), "h.0.kq_proj": (8, 4)}}, ["q_proj"], 2, 24)
    is ["toy"]. Roughly 6 lines.
    """
    ### BEGIN SOLUTION
    found = []
    for model, layers in models.items():
        shapes = [shape for path, shape in layers.items() if path.split(".")[-1] in names]
        if predict_count(shapes, r) == count:
            found.append(model)
    return found
    ### END SOLUTION

# %% check="models_with" points=2
check.models_with(models_with)

# %% [markdown] help="models_with"

# %%
names = ["q_proj", "v_proj"]
print("4,194,304:", models_with(check.candidates(), names, 8, 4_194_304))
for model, layers in check.candidates().items():
    v_proj = next(shape for path, shape in layers.items() if path.endswith(".v_proj"))
    shapes = check.targeted(layers, names)
    print(f"{model:15}{len(shapes) // 2:3} blocks, v_proj {v_proj!s:14}"
          f"{predict_count(shapes, 8):10,.0f}")

# %% [markdown]
# Of these seven, only Llama-2-7B has the printed number: one model's count, under another's name. Its key and value layers are square; the newer models share each key and value head among several query heads (grouped-query attention), so their `v_proj` is narrower.
#
# Now everything at once: four models, two choices of layers, seven ranks.

# %%
curves = {}
for name in ("gpt2", "llama-3.2-1b", "llama-2-7b", "llama-2-13b"):
    layers = memory.describe(name).linear
    for choice, wanted in (("q and v (GPT-2: c_attn)", {"c_attn", "q_proj", "v_proj"}),
                           ("all linear", None)):
        shapes = [(one.inputs, one.outputs) for one in layers
                  if wanted is None or one.name in wanted]
        curves[name, choice] = [predict_count(shapes, r) for r in plots.RANKS]
plots.counts_by_rank(curves)
plt.show()

# %% [markdown]
# *Alt text: trainable parameters against rank on two logarithmic axes: eight parallel straight lines. From GPT-2's c_attn, 37 thousand at rank 1, to Llama-2-13B with all linear layers, 250 million at rank 64. Llama-2-7B on q and v passes through the marked point, rank 8 and 4,194,304.*
#
# All lines are parallel, because the count is proportional to r. What moves a line up is the model's size and the choice of layers: in Llama-2-7B, all linear layers have nearly five times as many parameters as q and v.
#
# > **In short.** r · Σ(in + out). Nothing else is in it: no α, no dropout, no data.
#
# ## 5. What a higher rank costs
#
# "Rank 64 uses much more memory than rank 8" is a common warning. Eight times the adapters: how many per cent more will the whole step need, for a 7B model in LoRA on q and v?
#
# ### Exercise 3.6 — write `extra_memory`
#
# > Difficulty 2/5 · about 5 minutes · 2 points

# %% exercise="extra_memory"
def extra_memory(model: str, method: str, targets, low: int, high: int) -> float:
    """Per cent that the peak of a step is higher at rank `high` than at rank `low`.

    memory.estimate(model, method, rank=8, targets=targets) is one step, and its peak .total;
    other settings keep their defaults. 12 GB after 10 GB are 20.0. Roughly 3 lines.
    """
    ### BEGIN SOLUTION
    small, large = (memory.estimate(model, method, rank=r, targets=targets).total
                    for r in (low, high))
    return 100 * (large / small - 1)
    ### END SOLUTION

# %% check="extra_memory" points=2
check.extra_memory(extra_memory)

# %% [markdown] help="extra_memory"

# %%
my_extra = None  # per cent, for LoRA on q and v

predictions.compare("r = 64 against 8", my_extra,
                    extra_memory(MODEL, "lora", ["q_proj", "v_proj"], 8, 64), "%")
for method in ("lora", "qlora"):
    for targets in (["q_proj", "v_proj"], "all-linear"):
        said = " and ".join(t[0] for t in targets) if isinstance(targets, list) else "all linear"
        print(f"  {plots.METHOD_NAMES[method]:6}{said:11}"
              f"{extra_memory(MODEL, method, targets, 8, 64):5.1f} % more")

# %% [markdown]
# From rank 8 to 64, q and v of Llama-2-7B get 29 million more parameters. At this peak each costs 12 bytes (itself and its two moments, in fp32; the gradients are not there yet): 0.35 GB more, on 13.9.
#
# *Then the warning is wrong?* For q and v it is. On every linear layer there are 140 million more, and the peak moves to where their gradients exist too: 2.2 GB. In QLoRA these stand beside a base that is 3.5 times smaller.
#
# > **In short.** What rank costs depends on how many layers carry adapters, and on what else is in memory.
#
# ## 6. α and the size of the update
#
# PEFT adds (α/r)·B·A, or with rsLoRA (α/√r)·B·A. Take one layer, fill B with random numbers as training might, keep α at 16, and raise the rank. What happens to the size of the update?

# %%
sizes = {False: [], True: []}
for use_rslora, norms in sizes.items():
    for r in plots.RANKS:
        torch.manual_seed(r)
        layer = get_peft_model(nn.Sequential(nn.Linear(512, 512)), LoraConfig(
            r=r, use_rslora=use_rslora, target_modules=["0"], lora_alpha=16)).base_model.model[0]
        nn.init.normal_(layer.lora_B["default"].weight, std=0.01)
        norms.append(layer.get_delta_weight("default").norm().item())
plots.update_by_rank(sizes)
plt.show()

# %% [markdown]
# *Alt text: the Frobenius norm of the update (the root of the sum of its squared entries) against rank, on logarithmic axes, with α = 16. Divided by r it falls, eightfold from rank 1 to rank 64; divided by the root of r it stays level.*
#
# B·A of random matrices grows with √r. Divided by r it shrinks like 1/√r; divided by √r it stays. So comparing ranks at one fixed α compares two things at once.
#
# *Is α not just another learning rate?* In part. α/r scales the gradients of A and B, but Adam divides that out: a step of B is as long for any α. What that step changes in the output is scaled by α/r. So fix a rule for α, such as α = 2r, and tune the learning rate.
#
# Keep two things apart: the factor α/r, and the size of (α/r)·B·A, which also depends on how B·A grows. Here you keep the factor.
#
# ### Exercise 3.7 — write `matching_alpha`
#
# > Difficulty 2/5 · about 5 minutes · 2 points

# %% exercise="matching_alpha"
def matching_alpha(r: int, alpha: float, new_r: int, use_rslora: bool) -> float:
    """The α for rank new_r that multiplies B·A by the same number as `alpha` does at rank r.

    matching_alpha(8, 16, 32, use_rslora=False) is 64.0. Roughly 2 lines.
    """
    ### BEGIN SOLUTION
    ratio = new_r / r
    return alpha * (math.sqrt(ratio) if use_rslora else ratio)
    ### END SOLUTION

# %% check="matching_alpha" points=2
check.matching_alpha(matching_alpha)

# %% [markdown] help="matching_alpha"

# %% [markdown]
# > **In short.** "α = 2r" keeps the factor at 2 for every rank; "α = 16" does not. With rsLoRA a fixed α keeps the size of a random B·A.
#
# ## 7. A difference, or noise?
#
# Does a higher rank help? Do more layers? Only training answers that, and training has noise. The task is chapter 05's: translate into a language that does not exist, made from a seed. SmolLM2-135M was trained on it for 160 steps, with adapters on all linear layers, and on q and v alone; at rank 42 these have as many parameters as rank 8 on all. α is 2r throughout. Accuracy is the share of 128 unseen sentences that are translated exactly.
#
# Two things make the comparison fair. Each setting has its *own learning rate*: 0.003 and 0.01 were tried, and more until the best had a worse one on either side, judged by the loss of the last steps. (No sentence comes twice, so that is a loss on unseen sentences.) And each was trained from *five seeds*, which decide the order of the data and the start of A.
#
# Will rank 64 beat rank 8? With as many parameters, will q and v do as well? Decide before you run the cell.

# %%
chosen = rank_sweep.chosen()
print(rank_sweep.table(chosen))
plots.accuracy_by_setting(chosen)
plt.show()

# %% [markdown]
# *Alt text: exact match for seven settings, five runs each. On all linear layers: rank 1 from 0.20 to 0.83, rank 4 from 0.07 to 0.97, rank 8 from 0.81 to 1.00, rank 16 from 0.64 to 0.98, rank 64 from 0.88 to 1.00. q and v at rank 8 and 42: never above 0.05.*
#
# *Two runs of rank 4 differ in the seed alone: one gets 7 % right, the other 97 %.* Whoever trains each setting once may pick a seed.

# %% [markdown]
# ### Exercise 3.8 — write `difference` and `verdict`
#
# > Difficulty 4/5 · about 12 minutes · 3 points
#
# From n runs of each setting, what can be said about the difference of their means? If a and b have equally many runs, none of which depends on another, roughly normal and equally scattered, its 95 % interval is
#
# > mean of a − mean of b ± t · √((variance of a + variance of b) / n)
#
# where a variance is of a setting's runs, divided by n − 1, and t is Student's factor for 2n − 2 degrees of freedom: `check.T95[2 * n - 2]`. With five runs it is 2.306; the familiar 1.96 is for very many.

# %% exercise="verdict"
def difference(a: list[float], b: list[float]) -> tuple[float, float]:
    """The 95 % interval (low, high) of mean(a) − mean(b); a and b are equally long.

    difference([0.5, 0.6, 0.7], [0.2, 0.3, 0.4]) is about (0.073, 0.527). Roughly 5 lines.
    """
    ### BEGIN SOLUTION
    n = len(a)
    middle = statistics.mean(a) - statistics.mean(b)
    error = math.sqrt((statistics.variance(a) + statistics.variance(b)) / n)
    half = check.T95[2 * n - 2] * error
    return middle - half, middle + half
    ### END SOLUTION


def verdict(a: list[float], b: list[float]) -> str:
    """"a" or "b", whichever the interval says is more accurate; else "neither".

    verdict([0.5, 0.6, 0.7], [0.2, 0.3, 0.4]) is "a". Roughly 4 lines.
    """
    ### BEGIN SOLUTION
    low, high = difference(a, b)
    if low > 0:
        return "a"
    return "b" if high < 0 else "neither"
    ### END SOLUTION

# %% check="verdict" points=3
check.verdict(difference, verdict)

# %% [markdown] help="verdict"

# %%
reference = "all linear layers, r = 8"
accuracy = {name: [run.accuracy for run in runs] for name, runs in chosen.items()}
for name, found in accuracy.items():
    if name != reference:
        low, high = difference(found, accuracy[reference])
        said = {"a": "better", "b": "worse", "neither": "no significant difference"}
        interval = f"{low:+.2f} to {high:+.2f}".replace("-", "−")
        print(f"{name:25}  against {reference}: {interval}  "
              f"{said[verdict(found, accuracy[reference])]}")

# %% [markdown]
# *Where* adapters sit matters most: with as many parameters, q and v hardly learn the language. Rank 1 is behind rank 8. From rank 4 on, no difference is larger than the noise. (None found is not none: rank 4 could be 0.62 behind.)
#
# The best learning rate falls from 0.01 at rank 1 to 0.001 at rank 64; rank 8's best, 0.003, left rank 64 with nothing right. *Whoever sweeps ranks at one learning rate measures the learning rate.*
#
# > **In short.** Tune each setting, repeat it, and look at the interval of the difference. If it holds 0, say so.
#
# ## 8. Self-check questions

# %%
quiz.show("03")

# %% [markdown]
# > **In short.** Each wrong answer is a mistake that somebody made. Read why.
#
# ---
# In this chapter you have:
#
# - **seen** that names differ by architecture, that counts are r · Σ(in + out), which model a printed count came from, what rank costs, and what five seeds can and can't show;
# - **used** `named_modules()`, `LoraConfig` and `get_peft_model` on models without weights, `memory.estimate`, and Student's t.
#
# The chapter's figure is the one of eight parallel lines in section 4.
#
# **Limitations.** Counts and memory hold for any data. The comparison of section 7 is of one small model on one made-up task, after 160 steps. Accuracy has a floor and a ceiling, so the runs of a setting are neither normal nor equally scattered; without the assumption of equal scatter (Welch's interval) rank 1 is behind rank 8 by 0.03 to 0.69. The grid of learning rates is coarse, and the seed that tuned them is one of the five. One run of rank 64 ran on a CPU in fp32.
#
# **Links**
#
# - [LoRA: Low-Rank Adaptation of Large Language Models](https://arxiv.org/abs/2106.09685) (Hu et al., 2021), section 7 on which matrices and which rank
# - [QLoRA: Efficient Finetuning of Quantized LLMs](https://arxiv.org/abs/2305.14314) (Dettmers et al., 2023), section 4 and figure 2 on all linear layers
# - [A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA](https://arxiv.org/abs/2312.03732) (Kalajdzievski, 2023)
# - [PEFT: LoRA](https://huggingface.co/docs/peft/package_reference/lora)
