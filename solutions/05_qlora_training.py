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
# # QLoRA training
#
# By the end you will have shown that a language model stored in 4 bits can learn a language that did not exist before, in a few minutes, on this computer; and you will have handed in what it learnt as a 5 MB file.
#
# You will be able to:
#
# - make training examples, and see which tokens the loss is taken on;
# - load a model in NF4 with double quantisation, and count what it holds;
# - put LoRA on the right layers with PEFT, and train with TRL's `SFTTrainer`;
# - predict parameters and memory before a run, and account for the difference;
# - read a comparison of runs, with its controls and its noise.
#
# **About 75 minutes · 25 points · any computer.** Your run takes 4 to 10 minutes on two CPU cores; a GPU is used if there is one. The model, SmolLM2-135M-Instruct, has 135 million parameters and is already here.

# %%
try:
    from loralab import notebook
except ModuleNotFoundError:
    raise ImportError(
        "This kernel is not the course's. Start JupyterLab with `make lab` "
        "and choose the kernel 'Python 3 (ipykernel)'."
    ) from None
notebook.start("05")

import matplotlib.pyplot as plt
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import BitsAndBytesConfig, set_seed
from trl import SFTConfig, SFTTrainer

from loralab import base_model, evaluation, hardware, measure, memory, plots, predictions
from loralab import quiz, recorded_runs, training
from loralab.checks import ch05 as check
from loralab.tasks.language import Language

here = hardware.detect()

# %% tags=["parameters"]
MODEL_ID = "embedded"  # or a hub id such as "meta-llama/Llama-3.2-1B", or a folder
LANGUAGE = "course"  # the seed of your language: any text
STEPS = 160  # optimizer steps
BATCH = 8  # sentences in each
LEARNING_RATE = 3e-3
COMPARE = "recorded"  # "train" trains all comparisons again, here

# %% [markdown]
# ## 1. A language that does not exist
#
# Whether fine-tuning *taught* a model something is hard to say of a task that pretraining may have covered. So this one is new: a small language whose words and grammar are made from a seed. Nobody has ever written in it.

# %%
language = Language(LANGUAGE)
for english, translation in language.pairs(5):
    print(f"{english:48} {translation}")

# %% [markdown]
# The verb comes last; adjectives and numbers follow their noun; endings mark plural, object and past. After a number the plural ending drops. Change `LANGUAGE` above, and you get another vocabulary, other endings, perhaps another order of adjective and number.
#
# The sentences are split by a hash of their text: no test sentence is ever a training sentence.
#
# ### Exercise 5.1 — write `format_example`
#
# > Difficulty 2/5 · about 6 minutes · 3 points
#
# TRL takes a *prompt* and a *completion*, and takes the loss on the completion alone. What the model sees when it is used is `language.prompt(english)`; it ends in a colon. Give both texts.

# %% exercise="format_example"
def format_example(language: Language, english: str, translation: str) -> dict[str, str]:
    """One training example, with the keys "prompt" and "completion".

    The completion continues the prompt as written text would. TRL adds the end-of-sequence
    token by itself. Roughly 1 line.
    """
    ### BEGIN SOLUTION
    return {"prompt": language.prompt(english), "completion": f" {translation}"}
    ### END SOLUTION

# %% check="format_example" points=3
check.format_example(format_example)

# %% [markdown] help="format_example"

# %%
examples = [format_example(language, *pair) for pair in language.pairs(STEPS * BATCH)]
held_out = [format_example(language, *pair) for pair in language.pairs(64, "test")]
print(len(examples), "examples to train on,", len(held_out), "held out. The first:")
print(examples[0]["prompt"] + examples[0]["completion"])

# %% [markdown]
# > **In short.** A task of which nothing can be known beforehand; a prompt that the model reads; a completion that it learns to write.
#
# ## 2. A base model in 4 bits
#
# ### Exercise 5.2 — write `make_quantization_config`
#
# > Difficulty 2/5 · about 6 minutes · 3 points
#
# Ask bitsandbytes for the quantisation of the QLoRA paper: 4-bit weights of type NF4, with double quantisation, computing in `here.compute_dtype` (use the name: the computer that grades may not be yours). *Are the defaults not good enough?* Print them, and see.

# %% exercise="quantization_config"
def make_quantization_config() -> BitsAndBytesConfig:
    """NF4, double quantisation, the compute dtype of the hardware `here`. Roughly 6 lines."""
    ### BEGIN SOLUTION
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=here.compute_dtype,
    )
    ### END SOLUTION

# %% check="quantization_config" points=3
check.quantization_config(make_quantization_config())

# %% [markdown] help="quantization_config"

# %% timeout=600
model = base_model.load(MODEL_ID, quantization_config=make_quantization_config())
tokenizer = base_model.load_tokenizer(MODEL_ID)
weights = measure.held(model)
print(f"get_memory_footprint(): {model.get_memory_footprint() / 1e6:.1f} MB")
for part in ("weights_4bit", "constants", "weights"):
    print(f"  counted, {memory.LABELS[part]}: {weights[part] / 1e6:.1f} MB")

# %% [markdown]
# The three lines add up to more than the footprint: transformers does not see the constants. And most of this model's bytes are *not* in 4 bits: its embedding is a fifth of all parameters, in the compute dtype. In Llama-2-7B, embedding and head are a twenty-sixth together.
#
# *Are these the weights that its authors published?* Not quite: the embedded model was stored in another 4-bit format (Q4_1), so its weights have been rounded once before.
#
# What does the base know of the language? Give it a fair chance: a prompt with eight solved examples.

# %% timeout=600
shots = "\n\n".join(e["prompt"] + e["completion"] for e in examples[:8]) + "\n\n"
few_shot = [{**example, "prompt": shots + example["prompt"]} for example in held_out[:8]]
before = sum(evaluation.exact_match(model, tokenizer, held_out)) / len(held_out)
before_few_shot = sum(evaluation.exact_match(model, tokenizer, few_shot, batch_size=4)) / 8
print(f"exact match before training: {before:.2f}; with eight examples: {before_few_shot:.2f}")
print(evaluation.complete(model, tokenizer, [held_out[0]["prompt"]]))

# %% [markdown]
# *How is exact match counted without writing anything?* One forward pass over prompt and right answer: if the most likely token is the right one at every place, then writing greedily gives exactly this answer.
#
# *Evaluate, then train: is that safe in 4 bits?* Not everywhere. On CPUs with AVX512-BF16 instructions bitsandbytes 0.50 repacks a layer at the first evaluation, and gradients are wrong from then on, without a word. `base_model.load` switches the repacking off.
#
# > **In short.** 4-bit linear layers with their constants; embedding and norms stay as they are; and a base that cannot do the task, even when shown how.
# %% [markdown]
# ## 3. Adapters
#
# ### Exercise 5.3 — write `linear_names`
#
# > Difficulty 3/5 · about 8 minutes · 3 points
#
# LoRA goes into linear layers, by name. The QLoRA paper (section 4) found that *all* of them are needed to match full fine-tuning. Find their names in any model: `nn.Linear` modules (bitsandbytes' 4-bit layers are among them), without the output head.

# %% exercise="linear_names"
def linear_names(model: nn.Module) -> set[str]:
    """The last part of the path of every linear layer, without the output head.

    For a Llama these are seven names, among them "down_proj". Roughly 5 lines.
    """
    ### BEGIN SOLUTION
    head = model.get_output_embeddings()
    return {
        path.split(".")[-1]
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    ### END SOLUTION

# %% check="linear_names" points=3
check.linear_names(linear_names)

# %% [markdown] help="linear_names"

# %% [markdown]
# ### Exercise 5.4 — write `make_lora_config`
#
# > Difficulty 2/5 · about 5 minutes · 3 points
#
# Rank 8 on all the layers you found, and an update scaled by α/r = 2.

# %% exercise="lora_config"
def make_lora_config(model: nn.Module) -> LoraConfig:
    """LoRA of rank 8 and scale 2 on every linear layer of a causal language model.

    Roughly 6 lines.
    """
    ### BEGIN SOLUTION
    return LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=sorted(linear_names(model)),
        task_type="CAUSAL_LM",
    )
    ### END SOLUTION

# %% check="lora_config" points=3
check.lora_config(make_lora_config(model), model)

# %% [markdown] help="lora_config"

# %% [markdown]
# > **In short.** Read names off the model, never from memory; what acts is α/r, and PEFT's default α is 8 whatever the rank.
# %% [markdown]
# ## 4. A prediction
#
# ### Exercise 5.5 — write `predicted`
#
# > Difficulty 3/5 · about 10 minutes · 4 points
#
# Before anything is trained: how many parameters will be, and how many bytes will be held between two steps (weights, constants, adapters, gradients, optimizer states)? For the embedded model, which `memory` calls `"smollm2-135m"`, rank 8 on every linear layer, AdamW. What is not quantised is in `here.compute_dtype`; adapters are in bf16, as TRL keeps them on a 4-bit base. `memory.estimate` from chapter 01 helps; the bytes need to be right to 0.5 %.

# %% exercise="predicted_run"
def predicted() -> dict[str, float]:
    """Keys: "trainable" (parameters), "held_bytes" (bytes). Roughly 5 lines."""
    ### BEGIN SOLUTION
    estimate = memory.estimate(
        "smollm2-135m", "qlora", dtype=here.compute_dtype, adapter_dtype="bf16", rank=8
    )
    return {"trainable": estimate.trainable, "held_bytes": estimate.static}
    ### END SOLUTION

# %% check="predicted_run" points=4
check.predicted_run(predicted())

# %% [markdown] help="predicted_run"

# %% [markdown]
# > **In short.** You have committed yourself. Now measure.
# %% [markdown]
# ## 5. The run
#
# The settings first. Two of TRL's defaults suit this run nowhere: the learning rate is made for full fine-tuning, and checkpointing trades speed for memory that is not short. A third, `bf16` (None: on, unless fp16 is), suits a GPU that has it and no CPU.

# %%
sft_config = training.sft_config(steps=STEPS, batch_size=BATCH, learning_rate=LEARNING_RATE)
for name in ("learning_rate", "gradient_checkpointing", "bf16"):
    default = SFTConfig.__dataclass_fields__[name].default
    print(f"{name:24} {getattr(sft_config, name)!s:8} default {default}")

# %% timeout=600
base = base_model.load(MODEL_ID, quantization_config=make_quantization_config())  # a fresh one
set_seed(0)
trainer = SFTTrainer(
    model=base,
    args=sft_config,
    train_dataset=Dataset.from_list(examples),
    processing_class=tokenizer,
    peft_config=make_lora_config(base),
)
trainer.model.print_trainable_parameters()

# %% [markdown]
# Look at one example as the trainer will use it: every token, and whether the loss is taken on it.

# %%
batch = next(iter(trainer.get_train_dataloader()))
for token, label in zip(batch["input_ids"][0], batch["labels"][0], strict=True):
    if token != tokenizer.pad_token_id or label != -100:
        print(repr(tokenizer.decode(token)), end=" " if label == -100 else "← ")
print("\n(← : the loss is taken here)")

# %% [markdown]
# A no-op check: B starts at zero, so the model with adapters must still be the base, to the last bit.

# %%
inputs = {name: batch[name][:1].to(trainer.model.device)
          for name in ("input_ids", "attention_mask")}
with torch.no_grad():
    trainer.model.eval()
    with_adapters = trainer.model(**inputs).logits
    with trainer.model.disable_adapter():
        without = trainer.model(**inputs).logits
print("largest difference of a logit:", (with_adapters - without).abs().max().item())

# %% [markdown]
# Now train. The bar moves with every step. A run that was finished before, with the same settings, data and versions, is taken from the cache. To start over with other settings, run the cell that makes the trainer first.

# %% timeout=3600
history, seconds = training.fit(trainer)
plots.loss_curve(history, title=f"Training loss, {seconds:.0f} s")
plt.show()

# %% [markdown]
# *Alt text: the training loss falls steeply in the first twenty steps, then more slowly, to nearly zero.*

# %% timeout=600
after = sum(evaluation.exact_match(trainer.model, tokenizer, held_out)) / len(held_out)
print(f"exact match: {before:.2f} before, {after:.2f} after")
for example in held_out[:3]:
    said = evaluation.complete(trainer.model, tokenizer, [example["prompt"]])[0]
    print(f"{example['prompt'].splitlines()[0]}\n   said  {said}\n   right{example['completion']}")

# %% [markdown]
# ### Exercise 5.6 — save your adapter
#
# > Difficulty 2/5 · about 6 minutes · 5 points
#
# Save the adapter in the folder `adapter` beside this notebook: with `trainer.model.save_pretrained`, or with `training.save_adapter(trainer, folder)`, which leaves out what names your computer. It has to get 60 % of the held-out sentences right, on the embedded model (so leave `MODEL_ID` as it was). The two files, `adapter_config.json` and `adapter_model.safetensors`, are handed in with the notebook.

# %% exercise="trained_adapter"
### BEGIN SOLUTION
training.save_adapter(trainer, "adapter")
### END SOLUTION

# %% check="trained_adapter" points=5 timeout=600
check.trained_adapter("adapter", language)

# %% [markdown] help="trained_adapter"

# %% [markdown]
# > **In short.** A 4-bit model cannot be trained, but what stands beside it can. All that was learnt fits into a file fifty times smaller than the model in bf16. Later chapters use your adapter; where you have none, the course's own stands in (`recorded_runs.adapter`).
# %% [markdown]
# ## 6. Predicted against measured
#
# Two more steps, with a learning rate of zero: one to count what is held after it, one to follow everything that is alive during it.

# %% timeout=600
seq = batch["input_ids"].shape[1]
settings = dict(dtype=here.compute_dtype, adapter_dtype="bf16", batch=BATCH, seq=seq,
                checkpointing=False, loss="trl", autocast=here.compute_dtype != torch.float32)
estimate = memory.estimate(model.config, "qlora", **settings)
held = measure.held_after_step(trainer)
mine = predicted()
predictions.compare("trained parameters", mine["trainable"], measure.trainable(trainer.model))
predictions.compare("held after a step", mine["held_bytes"] / 1e6, sum(held.values()) / 1e6, "MB")
for part, size in held.items():
    print(f"  {memory.LABELS[part]:26} formula {estimate.held[part] / 1e6:7.2f}, "
          f"counted {size / 1e6:7.2f} MB")

# %% timeout=600
peak = measure.training_step_peak(trainer)
tile = batch["input_ids"].numel() * 32768 * here.compute_dtype.itemsize
base_held = sum(held[part] for part in ("weights", "weights_4bit", "constants", "adapters"))
kept = estimate.components["activations"]
rest = peak.bytes - base_held - kept
gpu = memory.simulate(model.config, "qlora", **settings)
print(f"peak of a step: formula {estimate.total / 1e6:.0f}, simulated on a GPU "
      f"{gpu.total / 1e6:.0f}, measured here {peak.bytes / 1e6:.0f} MB")
print(f"  weights and adapters {base_held / 1e6:.0f}, activations by the formula "
      f"{kept / 1e6:.0f}; left: {rest / 1e6:.0f} MB "
      f"= {rest / tile:.1f} tiles of the loss")
print("the course's run", memory.trained_on_gpu("QLoRA"))

# %% [markdown]
# What is *held* is predicted to the byte. The *peak* is not, and here is why. It comes when the loss is taken: gradients do not exist yet, all activations do. TRL never builds all logits; it works through tiles of tokens × 32,768 words. The formula counts one tile, as a GPU holds it; `memory.simulate`, which runs this very step on tensors without data, agrees with it (both add 17 MB of workspaces that only a GPU has; an H200 takes 67, and computes in bf16). On a CPU each operation on a tile makes a new array, and eight or nine of them are alive at once.
#
# On a GPU the measured number is `torch.cuda.max_memory_allocated`; on a CPU every tensor is followed from its making to its end. `nvidia-smi` would show more than either: reserved memory and the CUDA context.
#
# > **In short.** Held bytes are arithmetic. The rest of the peak depends on batch, length, and how the loss is computed.
#
# ## 7. What mattered?
#
# The same task with other methods and settings. Each row is one run; `COMPARE = "train"` repeats them on this computer (an hour or more on two cores). *Held* and *peak* are bytes, as in section 6. LoRA's adapters are in fp32 and QLoRA's in bf16 (TRL's choice), so those rows differ in two things.

# %% timeout=10000
found = recorded_runs.runs(list(recorded_runs.GRID), COMPARE)
print(recorded_runs.table(found))
plots.accuracy_by_run({name: run for name, run in found.items() if run.config.task == "language"})
plt.show()

# %% [markdown]
# *Alt text: horizontal bars of exact match, with 95 % intervals. Full fine-tuning reaches 1; LoRA and QLoRA on all linear layers between 0.5 and 0.9; rank 1 reaches 0.1, or 0.65 at a higher learning rate; shuffled labels, q and v alone, and the default learning rate stay at 0.*
#
# The lines are 95 % intervals for 96 test sentences. They do not include the luck of the seed: for that, compare the rows that differ in nothing else.
#
# ### Exercise 5.7 — write `reading`
#
# > Difficulty 3/5 · about 8 minutes · 4 points
#
# True or false, by the *recorded* rows?
#
# - `where`: at equally many trainable parameters, adapters on all linear layers do better than on `q_proj` and `v_proj` alone.
# - `default`: with SFTConfig's default learning rate (2e-5) the task is learnt in these steps too.
# - `control`: trained on shuffled pairs, the model gets (nearly) nothing right, so the other rows' accuracy comes from the pairing.
# - `quantised`: these rows show that quantising the base costs accuracy: LoRA and QLoRA are further apart, on average, than the two seeds of the method that varies more.

# %% exercise="reading"
def reading() -> dict[str, bool]:
    """Keys: "where", "default", "control", "quantised"; True or False each, as in
    {"where": ..., "default": ...}. Roughly 1 line."""
    ### BEGIN SOLUTION
    return {"where": True, "default": False, "control": True, "quantised": False}
    ### END SOLUTION

# %% check="reading" points=4
check.reading(reading())

# %% [markdown] help="reading"

# %% [markdown]
# The last row is another task, which will come back in the capstone: questions such as "How many customers live in Lima?" to SQL, scored by *running* the query in SQLite. A query that is spelled differently and gives the same rows is right.
#
# > **In short.** With as many parameters and this learning rate, adapters on q and v alone got no sentence right. Rank 1 looks hopeless at rank 8's learning rate and respectable at a higher one: tune before you conclude. And one or two seeds settle no close race.
#
# ## 8. Self-check questions

# %%
quiz.show("05")

# %% [markdown]
# > **In short.** Each wrong answer is a mistake that somebody made. Read why.
#
# ---
# In this chapter you have:
#
# - **seen** a 4-bit base learn a new language through adapters, its loss on the completion alone, and its held bytes predicted exactly;
# - **used** bitsandbytes, PEFT and TRL's `SFTTrainer`, a shuffled-labels control, and exact match on held-out sentences.
#
# **What this does not show.** One small model, one synthetic task, one or two seeds. Larger models on real data may rank the methods differently.
#
# **Further reading**
#
# - [QLoRA: Efficient Finetuning of Quantized LLMs](https://arxiv.org/abs/2305.14314) (Dettmers et al., 2023), sections 3 and 4.
# - [PEFT: quantisation](https://huggingface.co/docs/peft/developer_guides/quantization).
# - [TRL: SFTTrainer](https://huggingface.co/docs/trl/sft_trainer).
