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
# # Start here
#
# By the end you will have shown that this computer can run the course, and that two thin matrices can stand in for one large matrix with less than a hundredth of its numbers.
#
# You will be able to:
#
# - read the environment report, and mend what it complains about;
# - write a prediction down before a measurement, and compare the two;
# - solve an exercise, check it, and find help by what you see;
# - answer the self-check questions;
# - hand a chapter in.
#
# **About 15 minutes · 2 points · any computer.** No GPU, no network and no model are needed here.
#
# Click on the cell below and press Shift + Enter. Go on like that, from top to bottom.

# %%
try:
    from loralab import notebook
except ModuleNotFoundError:
    raise ImportError(
        "This kernel is not the course's. Start JupyterLab with `make lab` "
        "and choose the kernel 'Python 3 (ipykernel)'."
    ) from None
notebook.start("00")

# %% [markdown]
# That line says what your computer computes with. Every chapter detects it; there is nothing to choose.
#
# The next cell holds the chapter's **parameters**. Their values are good as they are. Change them when you want to try something, and run the cells below again.

# %% tags=["parameters"]
SIZE = 4096  # rows and columns of a square weight matrix
RANK = 8  # r: the thin side of the two matrices that stand in for it

# %%
import matplotlib.pyplot as plt
import torch

from loralab import doctor, predictions, quiz
from loralab.checks import ch00 as check

# %% [markdown]
# ## 1. The environment report
#
# The report looks at everything that the course needs: one line for each item. Where a line says `[FAIL]`, what to do about it stands beside it.

# %%
doctor.print_report()

# %% [markdown]
# *Something failed. Can I go on?* In this chapter, yes. Mend it before chapter 01, with the command that the line gives; then run the cell again. `loralab doctor` prints the same report in a terminal.

# %% [markdown]
# > **In short.** `[OK]` needs nothing. `[FAIL]` comes with its remedy. When something goes wrong later, come back to this report first.

# %% [markdown]
# ## 2. A prediction
#
# Fine-tuning changes a model's weight matrices. LoRA leaves a matrix alone, and learns a change to it as a product of two thin matrices, B @ A:
#
# | matrix | shape |
# |---|---|
# | the change B @ A, as large as the weight matrix | `out_features` × `in_features` |
# | B | `out_features` × `r` |
# | A | `r` × `in_features` |
#
# Only A and B are stored and trained. The number `r` is their **rank**.
#
# Take a weight matrix of `SIZE` × `SIZE` and a pair of rank `RANK`. How many per cent of the matrix's numbers does the pair hold? Replace `None` by your guess.

# %%
my_guess = None  # per cent

# %% [markdown]
# *Must I?* No: predictions earn no points, and a wrong one costs nothing. But a number that surprises you stays with you, and only a prediction can be surprised. Nobody calculates here; a rough figure will do.

# %% [markdown]
# > **In short.** Predict, measure, explain: whenever a number matters in this course, you write yours down first.

# %% [markdown]
# ## 3. An exercise
#
# An exercise has a heading, a quiet line that says how hard it is, a cell for your code, and a cell that checks it. Below them are hints, and help that is sorted by what you *see*: open only what you need.

# %% [markdown]
# ### Exercise 0.1 — write `low_rank_parameters`
#
# > Difficulty 1/5 · about 3 minutes · 2 points
#
# Count the numbers that A and B hold together. Replace the line that starts with `raise`, run the cell, then run the check.

# %% exercise="low_rank_parameters"
def low_rank_parameters(in_features: int, out_features: int, r: int) -> int:
    """The number of entries of A and B together.

    A has the shape (r, in_features), B the shape (out_features, r).
    For in_features=3, out_features=5, r=2 it is 16. Roughly 1 line.
    """
    ### BEGIN SOLUTION
    return r * in_features + out_features * r
    ### END SOLUTION

# %% check="low_rank_parameters" points=2
check.low_rank_parameters(low_rank_parameters)

# %% [markdown] help="low_rank_parameters"

# %% [markdown]
# *And if the check is happy, do I have the points?* Usually. Grading runs your function on other shapes as well, so an answer that knows only these will not do.

# %% [markdown]
# > **In short.** `OK` means that the check found nothing wrong. Otherwise it says what it saw; a typical mistake has a name, and the help below an entry of that name. Try as often as you like.

# %% [markdown]
# ## 4. The measurement
#
# Your function says what should be there. Now count what is: torch makes both matrices, on its `meta` device, where tensors have shapes but take up no memory.

# %%
B = torch.empty(SIZE, RANK, device="meta")
A = torch.empty(RANK, SIZE, device="meta")
full, pair = (B @ A).numel(), B.numel() + A.numel()

print(f"full matrix {full:,} · pair {pair:,} numbers")
predictions.compare("your function", low_rank_parameters(SIZE, SIZE, RANK), pair, "numbers")
predictions.compare("your guess of the share", my_guess, 100 * pair / full, "per cent")

# %% [markdown]
# Where does the difference come from? Double the sides of the matrix: it then holds four times as many numbers, but A and B only twice as many. So the pair's share is smallest where the matrix is largest. (Set `SIZE = 8192` above and see.) It grows with the rank.
#
# *Then is a pair always smaller?* Try every rank from 1 to `SIZE`:

# %%
ranks = [2**k for k in range(SIZE.bit_length())]
figure, axes = plt.subplots()
axes.plot(ranks, [low_rank_parameters(SIZE, SIZE, r) for r in ranks], "o-", label="pair A, B")
axes.axhline(SIZE * SIZE, color="black", linestyle="--", label="full matrix")
axes.set_xscale("log", base=2)
axes.set_yscale("log", base=10)
axes.set(xlabel="rank r (log2 scale)", ylabel="numbers stored (log scale)",
         title=f"A low-rank pair against a {SIZE} × {SIZE} matrix")
axes.legend()
plt.show()

# %% [markdown]
# *Alt text: a line of dots rises steadily with the rank, from far below a dashed level line for the full matrix; it crosses that line at half of the matrix's size, and ends above it.*
#
# No: from rank `SIZE` / 2 on, the pair holds at least as many numbers as the matrix that it stands for. The ranks that people use are at the far left, and whether so few are *enough* is what the course is about.

# %% [markdown]
# > **In short.** Twice the sides: four times the matrix, but twice the pair. You predicted the share, your function computed it, and torch counted the same.

# %% [markdown]
# ## 5. Self-check questions
#
# Click on an answer: each one, right or wrong, comes with its explanation. They earn no points, and nobody sees what you chose.

# %%
quiz.show("00")

# %% [markdown]
# > **In short.** The wrong answers are the mistakes that people really make. They are worth reading too.

# %% [markdown]
# ## 6. Handing in
#
# 1. *Kernel ▸ Restart Kernel and Run All Cells*. If every cell runs, your work does not depend on something that only this session remembers.
# 2. *File ▸ Save Notebook*.
# 3. *File ▸ New ▸ Terminal*, and there:
#
# ```
# loralab submit 00
# ```
#
# It looks the chapter over, says of each exercise whether its check passed when it last ran, packs everything into one file, and says where that file is.
#
# *What does the button* Validate *do?* It runs the saved notebook from top to bottom in a fresh kernel and shows which checks fail. It hands nothing in.
#
# *I have broken the notebook.* `loralab reset 00` gives you a fresh one, and keeps the old one beside it.

# %% [markdown]
# > **In short.** Restart and run all, save, `loralab submit`. You can do it again until the deadline.

# %% [markdown]
# ---
# In this chapter you have:
#
# - **seen** what a low-rank pair is, why it is small, and from which rank on it is not;
# - **used** the environment report, a prediction, an exercise with its check and help, and the questions.
#
# **What this does not show.** A pair that is small is not yet a pair that learns. Counting says nothing about accuracy, and memory is more than the numbers that are trained: chapter 01 adds up the rest.
#
# **Further reading**
#
# - [LoRA: Low-Rank Adaptation of Large Language Models](https://arxiv.org/abs/2106.09685) (Hu et al., 2021), section 4.1: the pair B, A.
# - [JupyterLab: notebooks](https://jupyterlab.readthedocs.io/en/stable/user/notebook.html), if cells and kernels are new to you.
# - [PyTorch: the meta device](https://docs.pytorch.org/docs/stable/meta.html), which the measurement above used.
