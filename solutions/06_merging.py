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
# # Merging and serving
#
# By the end you will have shown that an adapter which works can be lost by merging it into the very base it was trained on, why, and into which base to merge it instead.
#
# You will be able to:
#
# - merge an adapter into a 16-bit base and into a 4-bit one, and say to which tolerance it is the same model;
# - compare four ways to serve it by what they can do, and tell a loss from chance;
# - explain a 4-bit merge by the update's size against the quantisation step;
# - count bytes on disk, and time a call without fooling yourself;
# - combine adapters, and know when PEFT's `linear` does not;
# - export a model that a server loads without PEFT.
#
# **About 60 minutes · 15 points · any computer.** No GPU is needed, and nothing is trained: the chapter uses your adapter of chapter 05, or the course's where you have none.

# %%
try:
    from loralab import notebook
except ModuleNotFoundError:
    raise ImportError(
        "This kernel is not the course's. Start JupyterLab with `make lab` "
        "and choose the kernel 'Python 3 (ipykernel)'."
    ) from None
notebook.start("06")

import statistics
import tempfile
import time
from pathlib import Path

import bitsandbytes.functional as bnb
import matplotlib.pyplot as plt
import torch
from peft import PeftModel

from loralab import base_model, evaluation, four_bit, hardware, measure, memory, merging, plots
from loralab import predictions, quiz, recorded_runs, training
from loralab.checks import ch06 as check
from loralab.quiet import quiet
from loralab.tasks.language import Language
from loralab.tasks.sql import Shop

here = hardware.detect()

# %% tags=["parameters"]
ADAPTER = "../05_qlora_training/adapter"  # the folder that you handed in with chapter 05
LANGUAGE = "course"  # the language that your adapter learnt
SENTENCES = 48  # held-out sentences that every way is tried on
LAYER = "model.layers.11.mlp.down_proj"  # any linear layer of the model

# %% [markdown]
# ## 1. One model, two forms
#
# Chapter 05 left two things: a base in 4 bits, and an adapter beside its weights. First, that pair as it was trained.

# %% timeout=600
folder = recorded_runs.adapter(ADAPTER)
language = Language(LANGUAGE if folder != recorded_runs.REFERENCE else "course")
held_out = [{"prompt": language.prompt(english), "completion": f" {translation}"}
            for english, translation in language.pairs(SENTENCES, "test")]
tokenizer = base_model.load_tokenizer()
base = base_model.load(quantization_config=training.nf4_config()).eval()
z_base = merging.answer_logits(base, tokenizer, held_out[:8])
unmerged = merging.on_base(base, folder)
z_unmerged = merging.answer_logits(unmerged, tokenizer, held_out[:8])
print(f"logits of {len(z_base)} tokens; the adapter moves them by "
      f"{(z_unmerged - z_base).square().mean().sqrt():.1f} (root mean square)")

# %% [markdown]
# Every adapted layer does two things: x Ŵᵀ, and (α/r) · x Aᵀ Bᵀ. `merge_and_unload()` adds (α/r) · B A to the weight, as you did in exercise 2.7, and takes PEFT's wrapper off. What is left is a plain model.
#
# Into which weight, though? A 4-bit layer has no number to add to. Its codes can be turned back first: `model.dequantize(dtype=...)` makes plain layers that hold Ŵ, the very weights that the adapter saw in training.
#
# ### Exercise 6.1 — write `merge`
#
# > Difficulty 2/5 · about 7 minutes · 3 points

# %% exercise="merge_adapter"
def merge(base, folder: str | Path, dtype: torch.dtype):
    """The base with the adapter of `folder` in its weights: a plain model in `dtype`.

    base: a model of transformers in fp32, in bf16, or in bitsandbytes' 4 bits (only
    then it has `is_quantized`: `getattr(base, "is_quantized", False)`); it may be used up.
    Add in fp32, and round once, at the end.
    `with quiet():` keeps the libraries' remarks off the screen. Roughly 5 lines.
    """
    ### BEGIN SOLUTION
    with quiet():
        if getattr(base, "is_quantized", False):
            base = base.dequantize(dtype=torch.float32)
        wrapped = PeftModel.from_pretrained(base.float(), folder)
        return wrapped.merge_and_unload().to(dtype)
    ### END SOLUTION

# %% check="merge_adapter" points=3
check.merge_adapter(merge)

# %% [markdown] help="merge_adapter"

# %% [markdown]
# Is the merged model the same? A useful scale for a logit error is what the adapter itself does to the logits: ‖z − z_unmerged‖ / ‖z_unmerged − z_base‖, over all logits of the held-out answers. 0 is the trained model; 1 is as wrong as having no adapter.
#
# Merge into the dequantised base. What error do you expect if the sum is kept in fp32, and in bf16?

# %% timeout=600
my_fp32, my_bf16 = None, None  # share of the adapter's effect

merged = merge(base_model.load(quantization_config=training.nf4_config()), folder, torch.float32)
for dtype, guess, tolerance in ((torch.float32, my_fp32, 1e-4), (torch.bfloat16, my_bf16, 2e-2)):
    merged = merged.to(dtype).to(here.compute_dtype).eval()  # stored so, computed as usual here
    z = merging.answer_logits(merged, tokenizer, held_out[:8])
    error = merging.share_of_effect(z_base, z_unmerged, z)
    predictions.compare(f"logit error, {str(dtype)[6:]}", guess, error)
    print(f"  within a tolerance of {tolerance:g}: {error < tolerance}")

# %% [markdown]
# Not zero, even in fp32: x Ŵᵀ + x ΔWᵀ and x (Ŵ + ΔW)ᵀ add the same numbers in another order, thirty blocks deep. In bf16 each *weight* is rounded to eight binary digits, and that is thousands of times coarser. Both tolerances are far below the effect that they must not hide. (On a GPU that computes in bf16 expect the second figure in both rows.)
#
# > **In short.** Dequantise, add in fp32, cast last. State a tolerance with its dtype, and relative to the adapter's effect.

# %% [markdown]
# ## 2. Four ways to serve it
#
# *Why dequantise at all? The base was published in 16 bits.* Then these are your choices: leave the adapter beside the 4-bit base; merge into that base dequantised; merge into the 16-bit base; or call `merge_and_unload()` on the 4-bit model as it is, which most tutorials do.
#
# Write down how many of 100 sentences each will get right.

# %% timeout=900
guesses = None, None, None, None  # sentences of 100: for each way, in the order above
my_right = dict(zip(merging.WAYS, guesses, strict=True))
models, hits, errors = {}, {}, {}
for way, fresh in merging.bases().items():
    if way in (merging.UNMERGED, merging.DEQUANTISED):
        model = unmerged if way == merging.UNMERGED else merged  # both from above
    elif way == merging.IN_PLACE:
        model, warning = merging.merged_in_place(fresh(), folder)
    else:
        model = merge(fresh(), folder, torch.bfloat16).to(here.compute_dtype)
    models[way] = model.eval()
    z = merging.answer_logits(model, tokenizer, held_out[:8])
    errors[way] = merging.share_of_effect(z_base, z_unmerged, z)
    hits[way] = evaluation.exact_match(model, tokenizer, held_out)
    predictions.compare(way, my_right[way], 100 * sum(hits[way]) / SENTENCES, "of 100")
print("PEFT, in place:", warning)

# %% [markdown]
# "Different generations" is one way to say it. Before you explain, decide what these numbers carry: how many sentences apart is a difference, and how many are luck?
#
# All ways were tried on the *same* sentences. So take the difference sentence by sentence (reference − other: 1, 0 or −1), its mean m and its standard deviation s. If m − 1.96 · s/√n is above 0, the other way is worse by more than chance.
#
# ### Exercise 6.2 — write `rank_merges`
#
# > Difficulty 2/5 · about 6 minutes · 2 points

# %% exercise="rank_merges"
def rank_merges(hits: dict[str, list[bool]], reference: str) -> list[tuple[str, float, bool]]:
    """(name, accuracy, worse) for every way, the highest accuracy first.

    hits: for each name whether each of n sentences was right, the same sentences in the same
    order. worse: whether it is worse than `reference` by more than chance, as above. The
    reference itself is not. s has n − 1 under it, as in torch and `statistics.stdev`.
    Roughly 6 lines.
    """
    ### BEGIN SOLUTION
    rows = []
    for name, found in hits.items():
        apart = torch.tensor(hits[reference]).float() - torch.tensor(found).float()
        low = apart.mean() - 1.96 * apart.std() / len(apart) ** 0.5
        rows.append((name, sum(found) / len(found), bool(low > 0)))
    return sorted(rows, key=lambda row: -row[1])
    ### END SOLUTION

# %% check="rank_merges" points=2
check.rank_merges(rank_merges)

# %% [markdown] help="rank_merges"

# %%
for way, accuracy, worse in rank_merges(hits, merging.UNMERGED):
    verdict = "worse than unmerged" if worse else "no difference shown"
    print(f"{way:28}{accuracy:.2f}  logit error {errors[way]:<6.2g} {verdict}")
plots.merges(hits, errors)
plt.show()

# %% [markdown]
# *Alt text: two panels, four rows. Exact match: unmerged and merged into the dequantised base are equally high, the 16-bit base is lower, the 4-bit base is at or near zero. Logit error on a log axis: a few thousandths for the dequantised base, a fifth of the adapter's effect for the 16-bit base, about three quarters for the 4-bit base.*
#
# *Is the 16-bit base worse because of one unlucky adapter?* Or is it worse as a base? Here are the course's adapter, trained on the 4-bit base (QLoRA), on more sentences, and another, trained on the 16-bit base (LoRA).

# %%
for name, found in merging.recorded().items():
    home = merging.SIXTEEN if name == "LoRA" else merging.DEQUANTISED
    print(f"{name}, recorded, {len(found['hits'][home])} sentences; against '{home}':")
    for way, accuracy, worse in rank_merges(found["hits"], home):
        print(f"   {way:28}{accuracy:.2f}  {'worse' if worse else ''}")

# %% [markdown]
# Each adapter is at its best on the base that it was trained on, and worse by more than chance on the other. Training made base *and* adapter right together, so the adapter also makes up for the rounding of *its* base. Merged in place, neither adapter is left. (The LoRA adapter had 100 steps instead of 160, and knows less: compare rows within each block.)
#
# > **In short.** An adapter corrects the base that it was trained on, its rounding errors included. Merge a QLoRA adapter into the *dequantised* base; compare on the same sentences.

# %% [markdown]
# ## 3. Half a step
#
# Why does the 4-bit merge fail? After it, every weight is stored as one of 16 levels times its block's absmax (chapter 04). Before it, each weight already stands *on* a level. So the sum gets another code only if the update carries it beyond the **middle** between its level and the next one in that direction.
#
# Guess: which share of the codes does the adapter move?
#
# ### Exercise 6.3 — write `moved`
#
# > Difficulty 3/5 · about 8 minutes · 3 points

# %% exercise="moved_codes"
def moved(codes: torch.Tensor, absmax: torch.Tensor, update: torch.Tensor,
          levels: torch.Tensor, block: int) -> torch.Tensor:
    """Whether the code of weight + update is another one: (n,), True or False.

    codes (n,): uint8, places in `levels` (index with `codes.long()`); absmax (blocks,),
    fp32: it is to stay as it is; update (n,), fp32; levels: ascending, from -1 to 1. The last
    block may be incomplete.
    With levels -1, 0, 1, absmax 4 and code 1, an update of 1.9 moves nothing, one of 2.1
    moves it to code 2. Roughly 4 lines.
    """
    ### BEGIN SOLUTION
    scales = absmax.repeat_interleave(block)[: len(codes)]
    sums = levels[codes.long()] + update / scales
    nearest = torch.bucketize(sums, (levels[1:] + levels[:-1]) / 2)
    return nearest != codes
    ### END SOLUTION

# %% check="moved_codes" points=3
check.moved_codes(moved)

# %% [markdown] help="moved_codes"

# %%
my_share = None  # per cent of the codes

adapted = dict(unmerged.named_modules())[f"base_model.model.{LAYER}"]
update = adapted.get_delta_weight("default").float().cpu()
stored, state = adapted.base_layer.weight.data, adapted.base_layer.weight.quant_state
W = bnb.dequantize_4bit(stored, state).float().cpu()
codes = four_bit.unpacked(stored.cpu(), W.numel())
absmax = (bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset).cpu()
levels = bnb.get_4bit_type("nf4", device="cpu")
share = 100 * moved(codes, absmax, update.reshape(-1), levels, 64).float().mean().item()
predictions.compare("codes that move", my_share, share, "per cent")

# %% [markdown]
# Now ask bitsandbytes itself: quantise W + ΔW as the merge does, read it back, subtract W. That is the update that *arrives*.

# %%
packed, new = bnb.quantize_4bit(W + update, quant_type="nf4", compress_statistics=True)
arrived = bnb.dequantize_4bit(packed, new) - W
changed = (four_bit.unpacked(packed, W.numel()) != codes).float().mean()
print(f"‖ΔW‖ / ‖W‖ = {update.norm() / W.norm():.1%}, and NF4's own error is about 9 %")
print(f"codes that changed: {changed:.1%}")
print(f"‖arrived − ΔW‖ / ‖ΔW‖ = {(arrived - update).norm() / update.norm():.0%}")

# %%
gaps = torch.cat([levels.diff()[:1], levels.diff(), levels.diff()[-1:]])
nearer = torch.minimum(gaps[:-1], gaps[1:])[codes.long()] / 2 * absmax.repeat_interleave(64)
plots.updates_against_steps(update.reshape(-1), nearer, name=LAYER)
plt.show()

# %% [markdown]
# *Alt text: two histograms on a log axis. The update's sizes are spread around a median of 0.005. Half the way to the nearer level lies in a narrow hill around 0.026, five times as much. Only the update's right end reaches into the hill.*
#
# The update is real, and it is smaller than the step: nearly every weight falls back onto the level that it came from. The few that move jump a whole step, far more than they were asked to. What arrives is about as wrong as nothing. (Slightly more codes change than you counted: where a block's largest weight has an update, its absmax changes, and so does every level of that block.)
#
# Training did not run into this: A and B stand beside the codes, in 16 bits.
#
# > **In short.** 4 bits can store W, or W + ΔW rounded, but not a change that is smaller than half a step.

# %% [markdown]
# ## 4. Bytes and milliseconds
#
# Which way is the smallest and the fastest? That depends on how many tasks you serve.
#
# ### Exercise 6.4 — write `disk_bytes`
#
# > Difficulty 1/5 · about 4 minutes · 2 points

# %% exercise="disk_bytes"
def disk_bytes(parameters: int, shapes: list[tuple[int, int]], r: int, tasks: int,
               dtype: torch.dtype) -> dict[str, int]:
    """Bytes of all weights on disk, everything in `dtype`, for `tasks` fine-tuned versions.

    parameters: of the base. shapes: (out, in) of every layer with an adapter of rank r.
    "merged": each version a whole model. "separate": one base, an adapter for each version.
    File headers are left out. Roughly 3 lines.
    """
    ### BEGIN SOLUTION
    pairs = sum(r * (n_out + n_in) for n_out, n_in in shapes)
    size = dtype.itemsize
    return {"merged": tasks * parameters * size, "separate": (parameters + tasks * pairs) * size}
    ### END SOLUTION

# %% check="disk_bytes" points=2
check.disk_bytes(disk_bytes)

# %% [markdown] help="disk_bytes"

# %%
my_megabytes = None  # the adapter's file

arch, rank = memory.describe("smollm2-135m"), unmerged.peft_config["default"].r
shapes = [(layer.outputs, layer.inputs) for layer in arch.linear]
file = Path(folder, "adapter_model.safetensors").stat().st_size
predictions.compare("your adapter's file", my_megabytes, file / 1e6, "MB")
for tasks in (1, 10):
    found = disk_bytes(arch.parameters, shapes, rank, tasks, torch.bfloat16)
    print(f"{tasks:2} tasks in bf16: merged {found['merged'] / 1e6:,.0f} MB, "
          f"one base and adapters {found['separate'] / 1e6:,.0f} MB")

# %% [markdown]
# TRL kept the adapters of a 4-bit base in bf16; in fp32, as LoRA's are, the file is twice as large, about 10 MB.
#
# Now time. The lesson that chapter 07 checks calls serving unmerged a mistake, for the adapter's overhead. How large is it? A clock lies in three ways: a GPU returns before the work is done, first calls are slow, and something else may run in between. So: warm up, wait before *each* reading of the clock, repeat, take the median.
#
# ### Exercise 6.5 — write `seconds_per_call`
#
# > Difficulty 2/5 · about 5 minutes · 2 points

# %% exercise="seconds_per_call"
def seconds_per_call(run, synchronise, clock, warm_up: int = 2, repeats: int = 5) -> float:
    """The median time of `repeats` calls of run(), in seconds, after `warm_up` untimed ones.

    run() may return while its work goes on; synchronise() returns when all work is done;
    clock() gives the time in seconds. Roughly 8 lines.
    """
    ### BEGIN SOLUTION
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
    ### END SOLUTION

# %% check="seconds_per_call" points=2
check.seconds_per_call(seconds_per_call)

# %% [markdown] help="seconds_per_call"

# %% timeout=600
wait = torch.cuda.synchronize if here.device == "cuda" else lambda: None
token = torch.tensor([[tokenizer.eos_token_id]], device=here.device)  # one token, as when writing
rounds = {way: [] for way in models}
for _ in range(3):  # in turns: a busy moment meets all of them
    for way, model in models.items():
        with torch.no_grad():
            one = seconds_per_call(lambda: model(input_ids=token), wait, time.perf_counter, 1, 3)
        rounds[way].append(1000 * one)
milliseconds = {way: statistics.median(found) for way, found in rounds.items()}

# %% [markdown]
# Bytes on disk, with everything that is not quantised in bf16. The four ways side by side:

# %%
held = measure.held(models[merging.IN_PLACE])
quantised = held["weights_4bit"] + held["constants"] + 2 * arch.rest  # the rest in bf16
on_disk = {way: 2 * arch.parameters for way in models} | {
    merging.UNMERGED: quantised + file, merging.IN_PLACE: quantised}
print(f"{'':28}  right   error      MB   ms a token")
for way in models:
    print(f"{way:28}  {sum(hits[way]) / SENTENCES:5.2f}  {errors[way]:6.2g}  "
          f"{on_disk[way] / 1e6:6.0f}  {milliseconds[way]:11.0f}")

# %% [markdown]
# Read the last column on your machine, when it does nothing else. First row less last: the adapter's overhead, 420 small products. But the 4-bit layers have to be dequantised for every token, merged or not. On a GPU the ranking can differ, and so can it for long inputs or many requests at once: time what you will serve.
#
# *So which one?* The dequantised merge is the trained model, plain, at 16-bit size. Unmerged is the trained model at 4-bit size, with an overhead. If the result has to be small *and* plain, quantise the merged model again and *measure*: that is the fourth row, or a better quantiser.
#
# > **In short.** Merged models cost a whole model for each task; adapters a few megabytes each. Time with warm-up, waiting, repeats and the median.

# %% [markdown]
# ## 5. Several adapters on one base
#
# Unmerged has one more advantage: adapters can be switched. The course has a second one: questions to SQL, on `q_proj` and `v_proj` alone.

# %% timeout=600
shop = Shop("course")
questions = [{"prompt": shop.prompt(q), "completion": f" {sql}"} for q, sql in shop.pairs(12, "test")]

def both_tasks(model):
    found = [evaluation.exact_match(model, tokenizer, some) for some in (held_out[:12], questions)]
    return " · ".join(f"{name} {sum(one) / 12:.2f}" for name, one in
                      zip(("language", "SQL"), found, strict=True))

served = models[merging.UNMERGED]
with quiet():
    served.load_adapter(str(merging.SECOND_ADAPTER), "sql")
for name in ("default", "sql"):
    served.set_adapter(name)
    print(f"{name:9}", both_tasks(served))
with served.disable_adapter():
    print("disabled ", both_tasks(served))

# %% [markdown]
# *Can one model have both?* Updates can be added: w₁ · ΔW₁ + w₂ · ΔW₂. Factors can't: (B₁ + B₂)(A₁ + A₂) has two products too many.
#
# ### Exercise 6.6 — write `combine`
#
# > Difficulty 3/5 · about 6 minutes · 3 points
#
# Write the weighted sum of several adapters as *one* adapter, whose rank is the sum of theirs.

# %% exercise="combine"
def combine(adapters: list[tuple[torch.Tensor, torch.Tensor, float]],
            weights: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """A (R, in) and B (out, R) such that B @ A is the sum of weight · scale · Bᵢ @ Aᵢ.

    adapters: (A (r, in), B (out, r), scale α/r) each; ranks can differ, weights can be
    negative. R is the sum of the ranks, no more. Roughly 3 lines.
    """
    ### BEGIN SOLUTION
    A = torch.cat([w * scale * A for (A, _, scale), w in zip(adapters, weights, strict=True)])
    B = torch.cat([B for _, B, _ in adapters], dim=1)
    return A, B
    ### END SOLUTION

# %% check="combine" points=3
check.combine(combine)

# %% [markdown] help="combine"

# %% [markdown]
# PEFT's `add_weighted_adapter` calls this `cat`. Its `linear` adds factors, each times the root of its weight and scale. Try it on a case whose answer you know: half of an adapter plus half of the same adapter. How many times as large as the adapter will the sum be, in each way?

# %%
my_cat, my_linear = None, None  # times

layer = dict(served.named_modules())["base_model.model.model.layers.11.self_attn.q_proj"]
whole = layer.get_delta_weight("default").norm()
for kind, guess in (("cat", my_cat), ("linear", my_linear)):
    served.add_weighted_adapter(["default", "default"], [0.5, 0.5], f"half_{kind}", kind)
    half = layer.get_delta_weight(f"half_{kind}").norm()
    predictions.compare(f"half and half, {kind}", guess, (half / whole).item(), "times")
    served.delete_adapter(f"half_{kind}")

# %% timeout=600
for kind in ("cat", "linear"):
    served.add_weighted_adapter(["default", "sql"], [1.0, 1.0], kind, kind)
    served.set_adapter(kind)
    total = layer.get_delta_weight(kind)
    wanted = layer.get_delta_weight("default") + layer.get_delta_weight("sql")
    print(f"{kind:7}rank {torch.linalg.matrix_rank(total):2}, "
          f"off by {(total - wanted).norm() / wanted.norm():6.1%} ·", both_tasks(served))

# %% [markdown]
# `cat` is the sum, to the last digits, and has twice the rank. `linear` keeps rank 8 and is another matrix: half plus half came out twice too large. (It refuses adapters of different ranks. `svd`, PEFT's default, cuts the true sum to a rank that you choose.)
#
# *And is an exact sum a model for both tasks?* Read your last column. With the course's adapters the SQL is gone; of the language three sentences in twelve, which by exercise 6.2's rule may be chance. Each was trained without the other, and nothing says that two corrections of one base can be made at once. Switching keeps both whole.
#
# > **In short.** Switching costs nothing and mixes nothing. A sum of updates has the sum of their ranks; adding factors is another matrix.

# %% [markdown]
# ## 6. An export
#
# A server wants a folder: weights in safetensors, a configuration, a tokenizer, and no trace of PEFT or bitsandbytes. Save the dequantised merge in bf16, load it again without PEFT, and compare.

# %% timeout=600
with tempfile.TemporaryDirectory() as export, quiet():
    merged.to(torch.bfloat16).save_pretrained(export)
    tokenizer.save_pretrained(export)
    files = {file.name: file.stat().st_size for file in sorted(Path(export).iterdir())}
    settings = Path(export, "config.json").read_text()
    again = base_model.load(export).eval()
print({name: f"{size / 1e6:.1f} MB" for name, size in files.items() if size > 1e6})
print("quantised, by its configuration:", "quantization_config" in settings)
z = merging.answer_logits(again, tokenizer, held_out[:8])
print(f"logit error after reloading: {merging.share_of_effect(z_base, z_unmerged, z):.2g}")
print(evaluation.complete(again, tokenizer, [held_out[0]["prompt"]])[0], "|", held_out[0]["completion"])

# %% [markdown]
# That folder is what vLLM, TGI or llama.cpp's converter take. To serve many adapters on one base, these servers take the two files of an adapter as they are.
#
# > **In short.** Merge, cast, save, reload without PEFT, compare. An export that was not loaded again is a hope.

# %% [markdown]
# ## 7. Self-check questions

# %%
quiz.show("06")

# %% [markdown]
# > **In short.** Each wrong answer is a mistake that somebody made. Read why.
#
# ---
# In this chapter you have:
#
# - **seen** an adapter survive one merge and vanish in another, and why; bytes and milliseconds of four ways; adapters switched and added;
# - **used** PEFT's `merge_and_unload`, `set_adapter` and `add_weighted_adapter`, transformers' `dequantize`, a paired comparison, and a clock with care.
#
# The chapter's figure is section 2's: accuracy and logit error of the four ways.
#
# **Limitations.** One small model and one task; its 16-bit weights were rounded once before. A larger update, another quantiser or more bits can let a merge through. Measure yours.
#
# **Links**
#
# - [PEFT: merging and checkpoints](https://huggingface.co/docs/peft/developer_guides/lora#merge-lora-weights-into-the-base-model)
# - [PEFT: quantisation](https://huggingface.co/docs/peft/developer_guides/quantization)
# - [QLoRA: Efficient Finetuning of Quantized LLMs](https://arxiv.org/abs/2305.14314) (Dettmers et al., 2023), section 3
# - [S-LoRA: Serving Thousands of Concurrent LoRA Adapters](https://arxiv.org/abs/2311.03285) (Sheng et al., 2023)
# - [vLLM: LoRA adapters](https://docs.vllm.ai/en/latest/features/lora.html)
