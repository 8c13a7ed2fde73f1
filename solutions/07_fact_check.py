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
# # Fact-check
#
# By the end you will have shown that of thirteen claims in one lesson on LoRA one simply holds, five are wrong and seven need a setting that the lesson does not name; and that six fine-tuning set-ups which run without an error can still be ill, each with a cause you found from evidence.
#
# You will be able to:
#
# - turn a sentence into a test, a number and a verdict;
# - tell wrong from "true under settings that nobody named";
# - find out which layers carry adapters, and what scales them;
# - see what a model is trained on, token by token;
# - recognise a merge that erased its adapter.
#
# **About 75 minutes · 20 points · any computer.** No GPU and no network: architectures are built as shapes, and the patients are tiny models that train in seconds.

# %%
try:
    from loralab import notebook
except ModuleNotFoundError:
    raise ImportError(
        "This kernel is not the course's. Start JupyterLab with `make lab` "
        "and choose the kernel 'Python 3 (ipykernel)'."
    ) from None
notebook.start("07")

import statistics

import bitsandbytes as bnb
import matplotlib.pyplot as plt
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM, BitsAndBytesConfig, DataCollatorForLanguageModeling,
)
from transformers.utils import logging
from trl import SFTConfig

from loralab import claims, clinic, memory, plots, predictions, quiz, training
from loralab.checks import ch07 as check
from loralab.quiet import quiet

logging.disable_progress_bar()
torch.set_num_threads(1)  # all is small here: one thread never waits for another

# %% tags=["parameters"]
MODEL = "llama-2-7b"  # the 7B model of the lesson's table
BUSY = (8, 2048)  # sequences in a batch, and tokens in each

# %% [markdown]
# ## 1. Claim, test, number, verdict
#
# This course grew from a lesson, "9.3 LoRA & QLoRA", that says of itself: *"AI-generated content may contain errors. Always verify against official sources."* You take it at its word. For every claim: what would show it? Run that. Write down a number, then rule:
#
# | verdict | when |
# |---|---|
# | `"holds"` | the number is within 5 % of what is said |
# | `"depends"` | true under some settings that people use, false under others; you name the setting |
# | `"wrong"` | under none of them, with the versions installed here |
#
# The settings to choose from: `"alpha"` (against r), `"base"` (the base model's dtype), `"batch"` (its tokens), `"hardware"`, `"optimizer"`, `"rank"`, `"seed"`, `"targets"`, `"task"`.
#
# A **ruling** is a tuple, `("wrong", 4.2)` or `("depends", 4.2, "batch")`. You write functions that return rulings: the verdicts are about the lesson, the numbers come from the arguments, so that the same test can be run elsewhere.
#
# > **In short.** A number can be right and the sentence wrong. "Depends" without its setting is no verdict.

# %% [markdown]
# ## 2. Memory
#
# - `three_times`: a 7B model has 28 GB of weights in fp32; with gradients and Adam's states full fine-tuning takes "~3× model size".
# - `table`: QLoRA of a 7B model takes "~6 GB".
# - `rank_64`: r = 64 "uses much more VRAM" than r = 8. (Chapter 03 had 2.5 % for LoRA on q and v. Elsewhere?)
#
# ### Exercise 7.1 — write `memory_rulings`
#
# > Difficulty 2/5 · about 6 minutes · 1.5 points

# %% exercise="memory_rulings"
def memory_rulings(model: str, batch: int, seq: int) -> dict[str, tuple]:
    """Rulings on "three_times", "table" and "rank_64". Their numbers, by memory.estimate:

    three_times: GB (10⁹ bytes) held between two steps of full fine-tuning, all in fp32, AdamW.
    table: GB at the peak of a QLoRA step with `batch` sequences of `seq` tokens, rank 8.
    rank_64: per cent more at that peak with rank 64. Both with adapters on every linear layer.
    For ("gpt2", 1, 512) the numbers are 1.99, 0.53 and 18.9. Roughly 9 lines.
    """
    ### BEGIN SOLUTION
    full = memory.estimate(model, "full", dtype="fp32")
    peaks = [memory.estimate(model, "qlora", rank=r, batch=batch, seq=seq).total for r in (8, 64)]
    return {
        "three_times": ("wrong", full.static / memory.GB),
        "table": ("depends", peaks[0] / memory.GB, "batch"),
        "rank_64": ("depends", 100 * (peaks[1] - peaks[0]) / peaks[0], "targets"),
    }
    ### END SOLUTION

# %% check="memory_rulings" points=1.5
check.memory_rulings(memory_rulings)

# %% [markdown] help="memory_rulings"

# %% [markdown]
# > **In short.** 1 + 1 + 2 is 4. A table of GB without batch and length is right for somebody. "Much more" was 2.5 % in one set-up and half as much again in another.
#
# ## 3. Counts and formulas
#
# - `times_250`: for a square layer of side 4096, rank 8 means "~250× fewer trainable parameters".
# - `product`: what is computed is "W + ΔW = W + A × B". (Letters are free: call the factors what you like. Is that *all* of it, in PEFT?)
# - `alpha_2r`: `lora_alpha=32` with `r=8` is "typically 2r".
# - `printed`: Llama-3.2-1B with r = 8 on `q_proj` and `v_proj` has 4,194,304 trainable parameters.
#
# ### Exercise 7.2 — write `count_rulings`
#
# > Difficulty 2/5 · about 6 minutes · 2 points

# %% exercise="count_rulings"
def count_rulings(model: str, d: int, r: int, alpha: int) -> dict[str, tuple]:
    """Rulings on "times_250", "product", "alpha_2r" and "printed". Their numbers:

    times_250: entries of a d × d weight, divided by those of its two factors of rank r.
    product: what multiplies B·A in the update that PEFT adds, with LoraConfig(r, lora_alpha=alpha).
    alpha_2r: alpha as a multiple of 2r. printed: trainable parameters of `model`, rank r, q and v.
    For ("smollm2-135m", 64, 4, 12) they are 8, 3, 1.5 and 230,400. Roughly 10 lines.
    """
    ### BEGIN SOLUTION
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=["q_proj", "v_proj"])
    wrapped = get_peft_model(memory.build(model), config)
    layer = next(module for module in wrapped.modules() if hasattr(module, "lora_A"))
    return {
        "times_250": ("holds", d * d / (d * r + r * d)),
        "product": ("depends", layer.scaling["default"], "alpha"),
        "alpha_2r": ("wrong", alpha / (2 * r)),
        "printed": ("wrong", wrapped.get_nb_trainable_parameters()[0]),
    }
    ### END SOLUTION

# %% check="count_rulings" points=2
check.count_rulings(count_rulings)

# %% [markdown] help="count_rulings"

# %% [markdown]
# > **In short.** 256 is "~250": rounding is no error. 4,194,304 is another model's count. A formula without α/r is right where α = r.

# %% [markdown]
# ## 4. Libraries and hardware
#
# - `eight_bit`: load with `from_pretrained(name, load_in_8bit=True)`.
# - `cpu`: "`bitsandbytes` does not work on CPU".
# - `fp16`: compute in `torch.float16`. (On which GPUs is there nothing better, and what is lost?)
#
# Versions move: the first was true of transformers 4, the second of bitsandbytes before 0.46. You rule for today.
#
# ### Exercise 7.3 — write `library_rulings`
#
# > Difficulty 3/5 · about 7 minutes · 1.5 points

# %% exercise="library_rulings"
def library_rulings(folder: str, weights: torch.Tensor, x: torch.Tensor) -> dict[str, tuple]:
    """Rulings on "eight_bit", "cpu" and "fp16". Their numbers:

    eight_bit: how many bnb.nn.Linear8bitLt the model in `folder` gets, by the call that works.
    cpu: ‖W − Ŵ‖ / ‖W‖ of `weights` (out, in) after NF4 and back, on the CPU.
    fp16: how many outputs of x @ weights.T are infinite in fp16; x (n, in) and weights are finite.
    For a Llama of one block the first is 7. Roughly 10 lines.
    """
    ### BEGIN SOLUTION
    config = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    codes, state = bnb.functional.quantize_4bit(weights, quant_type="nf4")
    error = (bnb.functional.dequantize_4bit(codes, state) - weights).norm() / weights.norm()
    return {
        "eight_bit": ("wrong", sum(isinstance(m, bnb.nn.Linear8bitLt) for m in model.modules())),
        "cpu": ("wrong", error.item()),
        "fp16": ("depends", (x.half() @ weights.half().T).isinf().sum().item(), "hardware"),
    }
    ### END SOLUTION

# %% check="library_rulings" points=1.5
check.library_rulings(library_rulings)

# %% [markdown] help="library_rulings"

# %% [markdown]
# > **In short.** A claim about a library needs its version. fp16 is what a T4 has; where there is bf16, the same outputs stay finite.
#
# ## 5. Quality
#
# - `targets`: adapters belong on `q_proj` and `v_proj`. (The LoRA paper, table 5, found those two about as good as all four attention matrices. The QLoRA paper, section 4, needed *all* linear layers.)
# - `quality`: full is "best", LoRA "very good", QLoRA only "good". Is LoRA above QLoRA in chapter 05's runs?
# - `merge`: before deploying, call `merge_and_unload()`. After QLoRA too?
#
# ### Exercise 7.4 — write `quality_rulings`
#
# > Difficulty 2/5 · about 6 minutes · 1.5 points

# %% exercise="quality_rulings"
def quality_rulings(accuracy: dict[str, list[float]], weights: torch.Tensor,
                    update: torch.Tensor) -> dict[str, tuple]:
    """Rulings on "targets", "quality" and "merge". accuracy: runs of each setting. The numbers:

    targets: mean of "QLoRA" (all linear layers) minus mean of "q and v" (as many parameters).
    quality: mean of "LoRA" minus mean of "QLoRA".
    merge: with M = weights + update, rounded to NF4 as N: ‖N − M‖ / ‖update‖.
    With {"QLoRA": [0.5, 0.7], "q and v": [0.4]} the first is 0.2. Roughly 9 lines.
    """
    ### BEGIN SOLUTION
    mean = {name: statistics.mean(runs) for name, runs in accuracy.items()}
    merged = weights + update
    back = bnb.functional.dequantize_4bit(*bnb.functional.quantize_4bit(merged, quant_type="nf4"))
    return {
        "targets": ("depends", mean["QLoRA"] - mean["q and v"], "task"),
        "quality": ("depends", mean["LoRA"] - mean["QLoRA"], "seed"),
        "merge": ("depends", ((back - merged).norm() / update.norm()).item(), "base"),
    }
    ### END SOLUTION

# %% check="quality_rulings" points=1.5
check.quality_rulings(quality_rulings)

# %% [markdown] help="quality_rulings"

# %% [markdown]
# > **In short.** A ranking of methods needs a task, and more than one run. A merge needs a base that can hold the sum.
#
# ## 6. All verdicts at once
#
# Your four functions, on the lesson's own settings. For the table there is a second setting: `BUSY`. How many times 6 GB will QLoRA need there?

# %%
my_times = None  # times 6 GB

with quiet():
    rulings = {**memory_rulings(MODEL, 1, 512), **count_rulings("llama-3.2-1b", 4096, 8, 32),
               **library_rulings(clinic.Trained("lesson").base, *clinic.with_outliers("lesson")),
               **quality_rulings(claims.recorded_accuracy(), *clinic.small_update("lesson"))}
busy = memory_rulings(MODEL, *BUSY)
predictions.compare("QLoRA, busy", my_times, busy["table"][1] / 6, "× 6 GB")
plots.claimed_and_measured(rulings, {"table": busy["table"]})
plt.show()

# %% [markdown]
# *Alt text: thirteen claims in rows; measured divided by claimed on a log axis for the six that name a number. 250× lies on the line at 1; three_times at 1.3, α at 2, the product at 4 and the printed count at 0.2 lie off it; the QLoRA table is a bar from 0.8 to 2.7. Numbers and verdicts stand at the right: one holds, seven depend, five are wrong.*
#
# Right of the line more was measured than the lesson says, left of it less. LoRA's mean is *below* QLoRA's here, in two runs each: nothing is decided by that.

# %% [markdown]
# > **In short.** Five errors, one rounding, seven missing settings. The missing settings are the expensive ones: nothing in the sentence warns you.
#
# ## 7. Patients with adapters
#
# Now set-ups instead of sentences. Each runs without an error. Look at the evidence, name the cause, repair *only* that; the check runs your repair.
#
# ### Exercise 7.5 — repair `adapt`
#
# > Difficulty 2/5 · about 4 minutes · 2 points
#
# *Symptom.* A recipe that worked for Llama is used on Phi-3, and learns less than it should. What share of Phi-3's linear layers has an adapter?

# %%
my_share = None  # per cent

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

def adapt_broken(model):
    return get_peft_model(model, LoraConfig(r=8, target_modules=NAMES, lora_alpha=16))

linear = {layer.path for layer in memory.describe("phi-3-mini-4k").linear}
wrapped = adapt_broken(memory.build("phi-3-mini-4k"))
wrapped.print_trainable_parameters()
found = [path for path, module in wrapped.named_modules() if hasattr(module, "lora_A")]
predictions.compare("layers with an adapter", my_share, 100 * len(found) / len(linear), "%")

# %% exercise="adapt"
def adapt(model: nn.Module) -> nn.Module:
    """The model, wrapped by PEFT with r=8 and α=16 on every linear layer but the head.

    For any architecture: the check has others. A Llama block has 7 such layers, a Phi-3 block 4.
    Roughly 2 lines.
    """
    ### BEGIN SOLUTION
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    return get_peft_model(model, config)
    ### END SOLUTION

# %% check="adapt" points=2
check.adapt(adapt)

# %% [markdown] help="adapt"

# %% [markdown]
# ### Exercise 7.6 — repair `widen`
#
# > Difficulty 2/5 · about 4 minutes · 2 points
#
# *Symptom.* "We went from rank 8 to rank 64, and nothing changed." The tiny model below learns the form of answers to sums; its loss starts at 6.2. *Is a higher rank of no use here?* First see whether rank was all that changed.

# %%
def widen_broken(model, r):
    return get_peft_model(model, LoraConfig(r=r, target_modules=["q_proj", "v_proj"]))

for r in (8, 64):
    torch.manual_seed(0)
    model = widen_broken(clinic.tiny_llama(), r)
    losses = clinic.train(model, rate=3e-3)
    print(f"rank {r:2}: {model.get_nb_trainable_parameters()[0]:6,} trained, "
          f"loss ends at {statistics.mean(losses[-5:]):.2f}")

# %% exercise="widen"
def widen(model: nn.Module, r: int) -> nn.Module:
    """The model with adapters of rank r on q_proj and v_proj, the factor before B·A being 2.

    At r=8 and at r=64 alike. Roughly 3 lines.
    """
    ### BEGIN SOLUTION
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=["q_proj", "v_proj"])
    return get_peft_model(model, config)
    ### END SOLUTION

# %% check="widen" points=2
check.widen(widen)

# %% [markdown] help="widen"

# %% [markdown]
# > **In short.** Count the layers that carry adapters, and work out α/r, before you conclude anything about rank.
#
# ## 8. Patients in training
#
# ### Exercise 7.7 — repair `arguments`
#
# > Difficulty 1/5 · about 3 minutes · 1.5 points
#
# *Symptom.* No error, no NaN, and a loss like a flat line. Chapter 05 has recorded such a run on the real model: at the end of 160 steps the loss is 8.5, where a healthy one has 0.07.

# %%
def arguments_broken(folder, steps):
    return SFTConfig(output_dir=folder, max_steps=steps, use_cpu=True, bf16=False,
                     report_to="none")

with quiet():
    config = arguments_broken("unused", 40)
torch.manual_seed(0)
model = get_peft_model(clinic.tiny_llama(), LoraConfig(target_modules=NAMES, lora_alpha=16))
losses = clinic.train(model, config.learning_rate, config.max_steps)
print("loss, every eighth step:", [round(loss, 2) for loss in losses[::8]])

# %% exercise="arguments"
def arguments(folder: str, steps: int) -> SFTConfig:
    """The patient's SFTConfig, with what LoRA needs. The check trains the tiny model with it.

    In 40 steps its loss has to come from 6.2 to below 5. Roughly 3 lines.
    """
    ### BEGIN SOLUTION
    return SFTConfig(output_dir=folder, max_steps=steps, learning_rate=3e-3, use_cpu=True,
                     bf16=False, report_to="none")
    ### END SOLUTION

# %% check="arguments" points=1.5
check.arguments(arguments)

# %% [markdown] help="arguments"

# %% [markdown]
# ### Exercise 7.8 — repair `example`
#
# > Difficulty 3/5 · about 6 minutes · 2 points
#
# *Symptom.* The training loss is excellent; in the chat application the model behaves as if it had never been trained. Below is what TRL trains on (the loss is taken between » and «), and what the application sends.

# %%
def example_broken(question, answer):
    return {"prompt": f"user: {question}\nassistant:", "completion": f" {answer}"}

row = example_broken("What is the capital of Peru?", "Lima.")
tokens, labels = clinic.prepared([row])[0]
print(f"trained on\n{clinic.marked(tokens, labels)}\n")
print(f"the application sends\n{clinic.asked('What is the capital of Peru?')}")

# %% exercise="example"
def example(question: str, answer: str) -> dict:
    """One training example for a chat model: what the application will send, and the answer.

    The loss belongs on the answer and its end (the end-of-turn token), nothing before it.
    Roughly 4 lines.
    """
    ### BEGIN SOLUTION
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }
    ### END SOLUTION

# %% check="example" points=2
check.example(example)

# %% [markdown] help="example"

# %% [markdown]
# ### Exercise 7.9 — repair `make_labels`
#
# > Difficulty 3/5 · about 7 minutes · 2 points
#
# *Symptom.* The model answers well and does not stop: it goes on to ask itself the next question. Look at what is between » and «. There are two faults, and one of them is a token that looks like padding.

# %%
def labels_broken(input_ids, attention_mask, prompt_lengths):
    collate = DataCollatorForLanguageModeling(clinic.tokenizer(), mlm=False)
    return collate([{"input_ids": row} for row in input_ids])["labels"]

batch = clinic.padded([(clinic.asked("Hi"), "Hello!"), (clinic.asked("How are you?"), "Fine.")])
for ids, labels in zip(batch["input_ids"], labels_broken(**batch), strict=True):
    print(clinic.marked(ids, labels), "\n")

# %% exercise="make_labels"
def make_labels(input_ids: torch.Tensor, attention_mask: torch.Tensor,
                prompt_lengths: torch.Tensor) -> torch.Tensor:
    """Labels (batch, length): the token's id where the loss is taken, else -100.

    It is taken on the answer and the end token after it; not on the prompt, which is the first
    prompt_lengths[i] real tokens of row i, nor on padding (attention_mask 0), which may be on
    either side. For ids [[5, 6, 7, 2, 2]], mask [[1, 1, 1, 1, 0]] and lengths [2]:
    [[-100, -100, 7, 2, -100]]. Roughly 3 lines.
    """
    ### BEGIN SOLUTION
    place = attention_mask.cumsum(1)  # of each real token, from 1
    learnt = (attention_mask == 1) & (place > prompt_lengths[:, None])
    return input_ids.masked_fill(~learnt, -100)
    ### END SOLUTION

# %% check="make_labels" points=2
check.make_labels(make_labels)

# %% [markdown] help="make_labels"

# %% [markdown]
# > **In short.** Decode one batch before every run: which text, and which tokens carry the loss. And say the learning rate.
#
# ## 9. A patient in deployment
#
# ### Exercise 7.10 — repair `deploy`
#
# > Difficulty 2/5 · about 5 minutes · 2 points
#
# *Symptom.* Perfect in the notebook; in production, after `merge_and_unload()`, as if never trained. How much of what the adapter does to the logits is the merge's error, in per cent?

# %%
def deploy_broken(base, adapter):
    config = training.nf4_config()  # as in chapter 05
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()

my_error = None  # per cent of the adapter's effect

patient = clinic.Trained("patient")
with quiet():
    merged = patient.logits(deploy_broken(patient.base, patient.adapter))
    trained, base = patient.four_bit_logits()  # with the adapter beside the base, and without
error = 100 * (merged - trained).norm() / (trained - base).norm()  # or patient.error(model)
predictions.compare("the merge's error", my_error, error, "% of the adapter's effect")

# %% exercise="deploy"
def deploy(base: str, adapter: str) -> nn.Module:
    """A plain model, without PEFT, that has learnt what was trained. base, adapter: folders.

    Every merged weight should be the base's plus the whole update. Roughly 3 lines.
    """
    ### BEGIN SOLUTION
    config = training.nf4_config()
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config)
    return PeftModel.from_pretrained(model.dequantize(), adapter).merge_and_unload()
    ### END SOLUTION

# %% check="deploy" points=2
check.deploy(deploy)

# %% [markdown] help="deploy"

# %% [markdown]
# *Which base?* Two can hold the sum, and both pass. Load the base unrounded, and nothing of the update is lost; but the adapter was trained beside *rounded* weights, and the logits are now off by ten times the adapter's effect: 4 bits move a weight by 9 %, this adapter by 1 %. `dequantize()` before the merge keeps the rounded weights: the error is 0 where the 4-bit model computed in fp32, and nearly 30 % where it computed in bf16, which rounds too. Try both, with `patient.error`. How much the difference matters for a real model's answers, only its test set can tell.
#
# *Is there a patient that cannot be shown here?* Yes. On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a 4-bit layer at its first evaluation; training or merging after that goes wrong, without a word. Other CPUs never show it. `base_model.load` switches the repacking off. A bug that needs your neighbour's hardware is a reason to write down yours.
#
# > **In short.** Merge into a base that can hold the sum, and compare with the unmerged model before you ship.
#
# ## 10. In your own words
#
# ### Exercise 7.11 — write to the author
#
# > Difficulty 2/5 · about 6 minutes · 2 points
#
# Choose one claim that depends. In at most 120 words, for the lesson's author: the claim, what you ran, two settings with their numbers, and a sentence that would hold. A person reads and grades it.

# %% [markdown] manual="letter" points=2
# ### BEGIN SOLUTION
# *For example.* "You write that QLoRA of a 7B model takes about 6 GB. I ran `memory.estimate("llama-2-7b", "qlora")`, rank 8 on all linear layers. With one sequence of 512 tokens the peak is 4.6 GB; with 8 sequences of 2048 it is 16.0 GB. The weights are 3.9 GB either way; the rest is activations and logits, which grow with the tokens. Better: 'QLoRA of a 7B model takes 4 to 5 GB at batch 1 and 512 tokens, and about 1 GB more for every further 1,400 tokens in a batch (peak allocated, checkpointing on).'"
#
# *Rubric, half a point each.* (1) The claim is one that depends, and is quoted fairly. (2) What was run can be run again: model, settings, which quantity. (3) Two settings, a number with its unit for each, and the setting that decides is named. (4) The new sentence holds for both numbers and names its settings. Take half a point off for more than 150 words, or for a number that the notebook does not give.
# ### END SOLUTION

# %% [markdown]
# > **In short.** A correction that helps names the settings under which it holds.

# %% [markdown]
# ## 11. Self-check questions

# %%
quiz.show("07")

# %% [markdown]
# > **In short.** Each wrong answer is a conclusion that somebody drew from too little.
#
# ---
# In this chapter you have:
#
# - **seen** thirteen claims become numbers, and six set-ups that were ill without an error message;
# - **used** the memory model, PEFT on shapes alone, bitsandbytes on a CPU, TRL's own preparation of data, and recorded runs.
#
# The chapter's figure is the one in section 6.
#
# **Limitations.** Verdicts are for the installed versions and may change with the next. The patients are tiny random models: their losses show whether something learns, not how well. Two runs of a method decide nothing.
#
# **Links**
#
# - [LoRA](https://arxiv.org/abs/2106.09685) (Hu et al., 2021), sections 4.1 and 7.1
# - [QLoRA](https://arxiv.org/abs/2305.14314) (Dettmers et al., 2023), section 4
# - [transformers: bitsandbytes](https://huggingface.co/docs/transformers/quantization/bitsandbytes)
# - [TRL: dataset formats](https://huggingface.co/docs/trl/dataset_formats)
# - [PEFT: troubleshooting](https://huggingface.co/docs/peft/developer_guides/troubleshooting)
