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
# # LoRA by hand
#
# By the end you will have shown that thirty lines of your own do what PEFT, the usual LoRA library, does to a real model, and that the best result a rank allows can be calculated before anything is trained.
#
# You will be able to:
#
# - write down the shapes of A and B for any layer, and start them so that nothing changes (a no-op);
# - say what α/r scales, and which of the two matrices learns first;
# - put adapters into a model by module name, GPT-2's Conv1D included;
# - read off a matrix what rank r can and cannot learn;
# - merge an adapter, and judge the result with a tolerance.
#
# **About 75 minutes · 20 points · any computer.** No GPU and no network: the embedded model runs on the CPU, for a few steps only.

# %%
try:
    from loralab import notebook
except ModuleNotFoundError:
    raise ImportError(
        "This kernel is not the course's. Start JupyterLab with `make lab` "
        "and choose the kernel 'Python 3 (ipykernel)'."
    ) from None
notebook.start("02")

import copy

import matplotlib.pyplot as plt
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from loralab import base_model, low_rank, memory, plots, predictions, quiz
from loralab.checks import ch02 as check

torch.set_num_threads(1)  # all is small here: one thread never waits for another

# %% tags=["parameters"]
MODEL_ID = "embedded"  # or a folder, or a hub id of a model with the layers named below
TARGETS = ["q_proj", "v_proj"]  # the layers that get adapters
RANK = 8  # r
ALPHA = 16  # α: the update is scaled by α/r

# %% [markdown]
# ## 1. Two thin matrices
#
# A linear layer with weight W (out × in) computes y = x Wᵀ. Fine-tuning replaces W by W + ΔW, and ΔW is as large as W. LoRA (low-rank adaptation; Hu et al., 2021) keeps W **frozen** (not trained) and writes the change as a product:
#
# **ΔW = (α/r) · B A**, with B of shape out × r and A of shape r × in.
#
# r is the **rank**, a small number; α is a constant that you choose (section 2). The pair A, B is the **adapter**.
#
# *Some texts write A B instead.* Letters are free, shapes are not. This is the paper's notation and PEFT's: A meets the input first.
#
# Take a layer of 4096 × 4096 and rank 8. How many times fewer numbers are trained?

# %%
my_times_fewer = None  # times

W, B, A = (torch.empty(shape, device="meta") for shape in ((4096, 4096), (4096, 8), (8, 4096)))
assert (B @ A).shape == W.shape
print(f"W {W.numel():,} · A and B {A.numel() + B.numel():,} parameters")
predictions.compare("times fewer", my_times_fewer, W.numel() / (A.numel() + B.numel()), "×")

# %% [markdown]
# Exactly 256: 4096² / (2 · 8 · 4096) = 4096 / 16. For a layer that is not square the pair has r · (in + out) numbers.
#
# Training should begin at the pretrained model, so B A has to be zero at first. One zero matrix is enough:
#
# | | shape | starts as |
# |---|---|---|
# | A | r × in | uniform in (−1/√in, 1/√in) |
# | B | out × r | zero |
#
# That is PEFT's default: `kaiming_uniform_(A, a=√5)`, the same as for a new `nn.Linear`. The paper draws A from a Gaussian, and so does PEFT with `init_lora_weights="gaussian"`. Both work; here you write the default.
#
# ### Exercise 2.1 — write `init_lora`
#
# > Difficulty 2/5 · about 6 minutes · 3 points

# %% exercise="init_lora"
def init_lora(out_features: int, in_features: int, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, in_features) and B (out_features, r), in fp32, as PEFT starts them.

    Each entry of A is drawn from the uniform distribution on (-1/√in, 1/√in). B is zero.
    For in_features=100 every entry of A lies between -0.1 and 0.1. Roughly 3 lines.
    """
    ### BEGIN SOLUTION
    bound = in_features**-0.5
    A = torch.empty(r, in_features).uniform_(-bound, bound)
    return A, torch.zeros(out_features, r)
    ### END SOLUTION

# %% check="init_lora" points=3
check.init_lora(init_lora)

# %% [markdown] help="init_lora"

# %% [markdown]
# > **In short.** ΔW = (α/r) · B A; A is r × in and random, B is out × r and zero. At the start nothing changes.

# %% [markdown]
# ## 2. The forward pass
#
# *Why α/r?* B A is a sum of r terms, one for each column of B and row of A. Dividing by r is meant to keep the sum's size when you change the rank, so that what you tuned at one rank is a start at another (the paper's section 4.1). "α = 2r" is a scale of 2 at any rank; α = 32 at rank 8 is a scale of 4; and PEFT's default is α = 8, whatever the rank. With Adam, α acts much like the learning rate (same section), so people fix one and tune the other.
#
# *Must B A be built?* No. x goes through r numbers: first x Aᵀ, then times Bᵀ. That is r · (in + out) multiplications a token instead of in · out.
#
# ### Exercise 2.2 — write `lora_forward`
#
# > Difficulty 2/5 · about 6 minutes · 3 points

# %% exercise="lora_forward"
def lora_forward(x: torch.Tensor, W: torch.Tensor, A: torch.Tensor, B: torch.Tensor,
                 alpha: float, r: int) -> torch.Tensor:
    """The output of a linear layer without bias, with its adapter.

    x (..., in): one vector, or any number of dimensions before the last. W (out, in),
    A (r, in), B (out, r). Returns (..., out). With all sides 1, x=2, W=3, A=5, B=7, alpha=4
    and r=1 it is 6 + 4·70 = 286. Roughly 2 lines.
    """
    ### BEGIN SOLUTION
    update = x @ A.T @ B.T
    return x @ W.T + alpha / r * update
    ### END SOLUTION

# %% check="lora_forward" points=3
check.lora_forward(lora_forward)

# %% [markdown] help="lora_forward"

# %% [markdown]
# > **In short.** y = x Wᵀ + (α/r) · x Aᵀ Bᵀ. The update's size is set by α/r, so a rank without its α says little.
#
# ## 3. Which matrix learns first
#
# The model is unchanged, but is it able to learn? Below, one adapter takes three steps of plain gradient descent. How large is the gradient of A at the first of them, as a multiple of B's?

# %%
my_gradient_ratio = None  # gradient of A / gradient of B, at step 0

torch.manual_seed(0)
x, W, target = torch.randn(64, 12), torch.randn(10, 12), torch.randn(64, 10)
A, B = (one.requires_grad_() for one in init_lora(10, 12, 4))
for step in range(3):
    loss = (lora_forward(x, W, A, B, 8, 4) - target).square().mean()
    grads = torch.autograd.grad(loss, (A, B))
    sizes = [grad.norm().item() for grad in grads]
    print(f"step {step}: loss {loss:.3f} · gradient of A {sizes[0]:.4f}, of B {sizes[1]:.4f}")
    if step == 0:
        predictions.compare("A's gradient / B's", my_gradient_ratio, sizes[0] / sizes[1])
    A, B = ((one - 0.1 * grad).detach().requires_grad_() for one, grad in zip((A, B), grads))

# %% [markdown]
# Exactly zero, and only at step 0. *A's gradient is zero because B is zero. Why is B's not zero too?* The layer is handed dL/dy, the gradient of the loss with respect to its output (`grad_y` below). With the chain rule you can pass it back to each matrix by hand, without autograd:
#
# For a plain linear layer y = x Wᵀ with inputs as rows, the gradient of W is grad_yᵀ x, and what is passed back to x is grad_y W. An adapter is two such layers in a row.
#
# W is not among the arguments: neither gradient contains it.
#
# ### Exercise 2.3 — write `lora_gradients`
#
# > Difficulty 3/5 · about 10 minutes · 3 points

# %% exercise="lora_gradients"
def lora_gradients(x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, alpha: float, r: int,
                   grad_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of A (r, in) and of B (out, r), by hand: checks switch autograd off.

    x (..., in) and grad_y (..., out) have the same leading dimensions, one or more. With all
    sides 1, x=2, A=5, B=7, alpha=4, r=1 and grad_y=3 they are 168 and 120. Roughly 5 lines.
    """
    ### BEGIN SOLUTION
    x = x.reshape(-1, x.shape[-1])
    grad_y = alpha / r * grad_y.reshape(-1, grad_y.shape[-1])
    grad_A = (grad_y @ B).T @ x
    grad_B = grad_y.T @ (x @ A.T)
    return grad_A, grad_B
    ### END SOLUTION

# %% check="lora_gradients" points=3
check.lora_gradients(lora_gradients)

# %% [markdown] help="lora_gradients"

# %% [markdown]
# So each gradient has the *other* matrix as a factor. B is zero, so A waits; A is not, so B moves at once, and from then on both learn. Had both started at zero, both would wait forever.
#
# > **In short.** At step 0 only B receives a gradient, because A's is multiplied by B. One zero makes a no-op, two make a dead end.
#
# ## 4. Into a real model
#
# Adapters are put in by **module name**: the last part of a module's path. Names, shapes and even classes differ between architectures. Look at one layer of two models:

# %%
for name, path in (("smollm2-135m", "model.layers.0.self_attn.v_proj"),
                   ("gpt2", "transformer.h.0.attn.c_attn")):
    layer = memory.build(memory.configuration(name)).get_submodule(path)
    print(f"{name:13} {path:32} {type(layer).__name__:7} weight {tuple(layer.weight.shape)}")

# %% [markdown]
# SmolLM2's `v_proj` maps 576 numbers to 192: the model has 3 value heads for 9 query heads. GPT-2's `c_attn` maps 768 to 2304 (query, key and value in one), and its weight is stored in × out. It is a `Conv1D`, which in spite of its name is a linear layer with a transposed weight: y = x W + b (PEFT's option for that is `fan_in_fan_out`). It is *not* an `nn.Linear`.
#
# ### Exercise 2.4 — write `LoRALinear`
#
# > Difficulty 3/5 · about 10 minutes · 3 points

# %% exercise="lora_linear"
class LoRALinear(nn.Module):
    """A frozen layer and its adapter.

    layer: an nn.Linear or a Conv1D, with or without bias. r: the rank. The update is scaled by
    alpha/r. The trained parameters are `self.A` (r, in) and `self.B` (out, r), started by
    init_lora. Keep the layer as `self.layer`; its own parameters are frozen. A Conv1D(9, 6) has
    out=9 and in=6. Roughly 10 lines.
    """

    def __init__(self, layer: nn.Module, r: int, alpha: float):
        super().__init__()
        ### BEGIN SOLUTION
        n_out, n_in = layer.weight.shape
        if isinstance(layer, Conv1D):
            n_out, n_in = n_in, n_out
        self.layer, self.scale = layer.requires_grad_(False), alpha / r
        A, B = init_lora(n_out, n_in, r)
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        ### END SOLUTION

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        ### BEGIN SOLUTION
        return self.layer(x) + self.scale * (x @ self.A.T @ self.B.T)
        ### END SOLUTION

# %% check="lora_linear" points=3
check.lora_linear(LoRALinear)

# %% [markdown] help="lora_linear"

# %% [markdown]
# ### Exercise 2.5 — write `add_lora` and `count_parameters`
#
# > Difficulty 3/5 · about 10 minutes · 3 points
#
# Now any model: find the layers, replace them, freeze the rest, count. `model.set_submodule(path, new)` puts a module in another's place.

# %% exercise="add_lora"
def add_lora(model: nn.Module, names: list[str], r: int, alpha: float) -> nn.Module:
    """The same model, with a LoRALinear around every layer that `names` names.

    That is: every nn.Linear or Conv1D whose path ends in one of the names, as a whole part:
    "q_proj" means layers.0.attn.q_proj, and not my_q_proj. In the end only A and B of the
    adapters require gradients. Roughly 7 lines.
    """
    ### BEGIN SOLUTION
    model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        if isinstance(module, (nn.Linear, Conv1D)) and path.rpartition(".")[2] in names:
            model.set_submodule(path, LoRALinear(module, r, alpha))
    return model
    ### END SOLUTION


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trained, all) parameters. A tensor that two modules share counts once.

    For nn.Linear(3, 2), with its bias frozen, it is (6, 8). Roughly 3 lines.
    """
    ### BEGIN SOLUTION
    sizes = [(one.numel(), one.requires_grad) for one in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
    ### END SOLUTION

# %% check="add_lora" points=3
check.add_lora(add_lora, count_parameters)

# %% [markdown] help="add_lora"

# %% [markdown]
# The embedded model, SmolLM2-135M, has 30 blocks. `q_proj` maps 576 to 576, `v_proj` 576 to 192. How many parameters are trained at rank 8 on those two?

# %%
my_trained = None  # parameters

model = base_model.load(MODEL_ID, dtype=torch.float32).cpu()
tokenizer = base_model.load_tokenizer(MODEL_ID)
batch = tokenizer("Two thin matrices can stand in for a large one.", return_tensors="pt")
with torch.no_grad():
    logits_base = model(**batch).logits
base = copy.deepcopy(model)  # for PEFT, later
torch.manual_seed(0)
model = add_lora(model, TARGETS, RANK, ALPHA)
trained, total = count_parameters(model)
print(f"{trained:,} of {total:,} parameters are trained: {100 * trained / total:.2f} %")
predictions.compare("trained", my_trained, trained, "parameters")

# %% [markdown]
# 30 × (8 · (576 + 576) + 8 · (576 + 192)) = 460,800. Whoever takes `v_proj` for square says 552,960.
#
# Now the **no-op check**. Do it before every training run: it costs one forward pass, and finds an initialisation that is not zero, a lost bias, or a W used the wrong way round. It cannot see a wrong α/r: B is still zero.

# %%
with torch.no_grad():
    logits_start = model(**batch).logits
print("largest difference of a logit:", (logits_start - logits_base).abs().max().item())

# %% [markdown]
# Zero, to the last bit: adding a product with zeros changes nothing. Then three steps of AdamW on one sentence. What you found for one layer should hold for all 60:

# %%
adapters = [module for module in model.modules() if isinstance(module, LoRALinear)]
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
for step in range(3):
    loss = model(**batch, labels=batch["input_ids"]).loss
    optimizer.zero_grad()
    loss.backward()
    for_A, for_B = (sum(one.grad.norm() > 0 for one in tensors) for tensors in
                    ([one.A for one in adapters], [one.B for one in adapters]))
    print(f"step {step}: loss {loss:.3f} · gradient reaches {for_A} A and {for_B} B")
    optimizer.step()

# %% [markdown]
# > **In short.** By name, with the layer's class in mind; freeze all else; count; check the no-op. v_proj is not square here, and c_attn is stored transposed.
#
# ## 5. The best that rank r can do
#
# Does a higher rank always help? To answer, you need a task whose answer is known. Below, D is a 48 × 64 matrix of rank 6, and an adapter has to learn ΔW = D.

# %%
D = low_rank.matrix(48, 64, singular_values=[8, 5, 3, 2, 1.2, 0.7])
print("singular values of D:", [round(value, 2) for value in torch.linalg.svdvals(D).tolist()[:8]])

# %% [markdown]
# A **singular value** says how strongly D acts in one of its directions; the rank is how many are not zero. Eckart and Young (1936) proved that the rank-r matrix nearest to D keeps the r largest and drops the rest. What it misses, in the Frobenius norm (the root of the sum of all squared entries), is the root of the sum of the squared values that were dropped.
#
# ### Exercise 2.6 — write `best_error`
#
# > Difficulty 2/5 · about 5 minutes · 2 points

# %% exercise="best_error"
def best_error(D: torch.Tensor, r: int) -> float:
    """The smallest Frobenius norm of D - M over all matrices M of rank r or less.

    D (out, in); 0 ≤ r, which may be larger than D's rank. With the singular values 12, 4 and 3
    it is 5.0 for r=1 and 0.0 for r=3. Roughly 2 lines.
    """
    ### BEGIN SOLUTION
    dropped = torch.linalg.svdvals(D)[r:]
    return dropped.square().sum().sqrt().item()
    ### END SOLUTION

# %% check="best_error" points=2
check.best_error(best_error)

# %% [markdown] help="best_error"

# %% [markdown]
# Calculate first, train afterwards. Use the identity matrix as x. The layer's outputs are then the columns of its weight, and the sum of their squared errors is exactly ‖ΔW − D‖². Before you run the next cell: what error do you expect at rank 4, and at rank 16?

# %%
my_error_at_4, my_error_at_16 = None, None

RANKS = [1, 2, 4, 8, 16, 32]
predicted = {r: float(best_error(D, r)) for r in range(1, 33)}
print("best possible:", {r: round(predicted[r], 3) for r in RANKS})

# %%
W, x = low_rank.normal("frozen", 48, 64) / 8, torch.eye(64)

def train(r, steps=300):
    """Train A and B of rank r with α = 2r, so that the scale is 2; return ΔW (48, 64)."""
    A, B = (one.requires_grad_() for one in init_lora(48, 64, r))
    optimizer = torch.optim.Adam([A, B], lr=0.05)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    for _ in range(steps):
        loss = (lora_forward(x, W, A, B, 2 * r, r) - x @ (W + D).T).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return 2 * (B @ A).detach()

torch.manual_seed(0)
updates = {r: train(r) for r in RANKS}
measured = {r: (update - D).norm().item() for r, update in updates.items()}
for r in RANKS:
    print(f"rank {r:2}: best possible {predicted[r]:.4f}, after training {measured[r]:.4f}")
predictions.compare("error at rank 4", my_error_at_4, measured[4])
predictions.compare("error at rank 16", my_error_at_16, measured[16])

# %%
plots.error_by_rank(predicted, measured, D, {r: updates[r] for r in (1, 2, 4, 8)})
plt.show()

# %% [markdown]
# *Alt text: left, the error after training against the rank on a log2 axis. Six measured points lie on the predicted line, which falls from 6.3 at rank 1 to zero at rank 6, the rank of D (dashed line), and stays there. Right, the singular values of the trained updates: rank r has the r largest of D, unchanged, and no others.*
#
# The points lie on the line. Rank 4 misses √(1.2² + 0.7²) = 1.389, and no learning rate, α or patience gets below it. From rank 6 on the limit is zero, so ranks 8, 16 and 32 have nothing left to win. *Not all three are exactly at zero.* Three hundred steps leave up to a few thousandths, and which rank has how much depends on the seed. Try `(train(16, steps=1200) - D).norm()`: nearly all of it goes away, while rank 4's 1.389 stays.
#
# The right panel shows how: Adam, which knows nothing of singular values, has found the largest ones. (Its markers stand side by side only so that none hides another.)
#
# > **In short.** Rank r can learn the r largest singular values of the ΔW that is wanted. Beyond *its* rank more capacity buys nothing. A real task does not tell you that rank; chapter 03 measures.

# %% [markdown]
# ## 6. Merging, and a second opinion
#
# Once trained, (α/r) · B A can be added to W, and the adapter is gone: no extra work, no extra memory. How different will the merged layer's output be? In exact numbers, not at all. Computers round, and the two ways add in different orders.
#
# A useful measure counts **rounding steps**. One step is eps × the largest magnitude in y. (`torch.finfo(dtype).eps` is 1.2e-7 in fp32, 0.0078 in bf16.) Count: (largest |y − z|) / (one step). In fp32 a few steps are rounding and thousands are a mistake. In bf16 steps are coarse: 128 of them are the largest output itself, so allow only a few.
#
# ### Exercise 2.7 — write `merge` and `agree`
#
# > Difficulty 3/5 · about 10 minutes · 3 points

# %% exercise="merge"
def merge(W: torch.Tensor, A: torch.Tensor, B: torch.Tensor,
          alpha: float, r: int) -> torch.Tensor:
    """The merged weight (out, in), in W's dtype; W itself stays as it is.

    W (out, in) in fp32 or bf16; A and B in fp32. Compute in fp32, round once, at the end.
    With all sides 1, W=3, A=5, B=7, alpha=4 and r=2 it is 73. Roughly 2 lines.
    """
    ### BEGIN SOLUTION
    exact = W.float() + alpha / r * (B.float() @ A.float())
    return exact.to(W.dtype)
    ### END SOLUTION


def agree(y: torch.Tensor, z: torch.Tensor, steps: float = 16) -> bool:
    """Whether two outputs of one dtype differ by at most so many rounding steps. NaN: False.

    For fp32 outputs whose largest magnitude is 1000, 16 steps are 0.0019. Roughly 3 lines.
    """
    ### BEGIN SOLUTION
    eps = torch.finfo(y.dtype).eps
    y, z = y.double(), z.double()
    return bool((y - z).abs().max() <= steps * eps * y.abs().max())
    ### END SOLUTION

# %% check="merge" points=3
check.merge(merge, agree)

# %% [markdown] help="merge"

# %% [markdown]
# First the second opinion. PEFT wraps a copy of the base, and gets your trained A and B. Thirty blocks add up rounding, so allow 100 rounding steps instead of 16.

# %%
config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
wrapped = get_peft_model(base, config).eval()
theirs = [module for module in wrapped.modules() if hasattr(module, "lora_A")]
for mine, other in zip(adapters, theirs, strict=True):
    other.lora_A["default"].weight.data.copy_(mine.A.data)
    other.lora_B["default"].weight.data.copy_(mine.B.data)
with torch.no_grad():
    logits_trained, logits_peft = model(**batch).logits, wrapped(**batch).logits
print("parameters, PEFT's and yours:", wrapped.get_nb_trainable_parameters(), (trained, total))
print("logits agree to 100 rounding steps:", bool(agree(logits_trained, logits_peft, 100)))

# %% [markdown]
# Then merge all 60 layers. How far apart will the logits be, in rounding steps?

# %%
my_steps_apart = None  # rounding steps

for path, module in list(model.named_modules()):
    if isinstance(module, LoRALinear):
        weight = module.layer.weight
        weight.data = merge(weight.data, module.A.data, module.B.data, ALPHA, RANK)
        model.set_submodule(path, module.layer)
with torch.no_grad():
    logits_merged = model(**batch).logits
step = torch.finfo(torch.float32).eps * logits_trained.abs().max()
apart = (logits_merged - logits_trained).abs().max() / step
effect = (logits_trained - logits_base).abs().max() / step
print("logits agree to 100 rounding steps:", bool(agree(logits_trained, logits_merged, 100)))
print(f"the adapters' effect: {effect:,.0f} rounding steps")
predictions.compare("merged against unmerged", my_steps_apart, apart, "rounding steps")

# %% [markdown]
# Not equal, not far: a dozen or so rounding steps after thirty blocks, beside adapters that moved the logits by millions of them. A tolerance belongs to a dtype *and* to what is compared (more layers, more steps); hold it against the effect that it must not hide.
#
# How much of the update is lost when W is stored in bf16: the norm of the error, in per cent of the update's norm?

# %%
my_lost_share = None  # per cent of the update's norm

adapter = adapters[0]
W, A, B = adapter.layer.weight.data, adapter.A.data, adapter.B.data
update = ALPHA / RANK * B @ A
W = (W - update).bfloat16()  # the base again, as it is usually stored
arrived = merge(W, A, B, ALPHA, RANK).float() - W.float()
lost = 100 * (arrived - update).norm() / update.norm()
predictions.compare("lost in rounding to bf16", my_lost_share, lost, "per cent")

# %% [markdown]
# bf16 keeps eight binary digits. Where the update is small beside the weight, much of it falls between two neighbouring numbers. (This adapter was trained for three optimizer steps: a larger update loses a smaller share.) How much of that reaches the logits, and what 4 bits do to a merge, is measured in chapter 06.
#
# > **In short.** merged = W + (α/r) · B A, computed in fp32 and rounded once. Never test with `==`: choose a tolerance from the dtype, and compare it with the update.
#
# ## 7. Self-check questions

# %%
quiz.show("02")

# %% [markdown]
# > **In short.** Each wrong answer is a slip that somebody made. Read what is wrong with it.
#
# ---
# In this chapter you have:
#
# - **seen** that a pair A, B starts as a no-op and why only B learns at step 0, that c_attn is stored transposed, that rank r learns the r largest singular values, and what rounding leaves of a merge;
# - **used** your own LoRA on a real model, autograd, singular values, and PEFT as a second opinion.
#
# The chapter's figure is the one in section 5.
#
# **Limitations.** The known answer of section 5 has an exact rank, inputs in all directions alike, and one layer. On real data the loss weighs directions by how often they occur, and many layers can share the work. Dropout, biases and embeddings were left out.
#
# **Links**
#
# - [LoRA: Low-Rank Adaptation of Large Language Models](https://arxiv.org/abs/2106.09685) (Hu et al., 2021), section 4.1
# - [PEFT: LoRA](https://huggingface.co/docs/peft/package_reference/lora)
# - [A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA](https://arxiv.org/abs/2312.03732) (Kalajdzievski, 2023), on α/√r
# - [The Impact of Initialization on LoRA Finetuning Dynamics](https://arxiv.org/abs/2406.08447) (Hayou et al., 2024), on starting with B random instead
# - [The approximation of one matrix by another of lower rank](https://doi.org/10.1007/BF02288367) (Eckart and Young, 1936)
