"""Right and typical wrong answers to chapter 02's exercises, as source text."""

from __future__ import annotations

import re

import numpy as np
import torch
from answer_sheets import CELL, Wrong
from torch import nn
from transformers.pytorch_utils import Conv1D

from loralab.paths import PROJECT

SOURCE = (PROJECT / "solutions" / "02_lora_by_hand.py").read_text("utf-8")
CELLS = dict(re.findall(CELL.format("exercise"), SOURCE, re.S | re.M))

# The first cell's imports, and the functions that later exercises build on.
IMPORTS = {"torch": torch, "np": np, "nn": nn, "Conv1D": Conv1D}
for name in ("init_lora", "lora_forward", "lora_linear"):
    exec(CELLS[name], IMPORTS)

RIGHT = {
    "init_lora": (
        """
def init_lora(n_out, n_in, r):
    A = nn.Parameter(torch.empty(r, n_in))
    nn.init.kaiming_uniform_(A, a=5 ** 0.5)
    return [A, nn.Parameter(torch.zeros(n_out, r))]
""",
        """
def init_lora(n_out, n_in, r):
    rng = np.random.default_rng()
    return rng.uniform(-1, 1, size=(r, n_in)) / np.sqrt(n_in), np.zeros((n_out, r))
""",
        """
def init_lora(out_features, in_features, r):
    B = [[0.0] * r for _ in range(out_features)]
    return nn.Linear(in_features, r).weight, B
""",
    ),
    "lora_forward": (
        """
def lora_forward(x, W, A, B, alpha, r):
    return nn.functional.linear(x, W + (alpha / r) * (B @ A))
""",
        """
def lora_forward(x, W, A, B, alpha, r):
    x, W, A, B = (np.asarray(one) for one in (x, W, A, B))
    return np.einsum("...i,oi->...o", x, W) + x @ A.T @ B.T * (alpha / r)
""",
        """
def lora_forward(x, W, A, B, alpha, r):
    if x.dim() > 1:
        return [lora_forward(one, W, A, B, alpha, r) for one in x] if x.dim() > 2 else torch.stack(
            [lora_forward(one, W, A, B, alpha, r) for one in x])
    out = W.mv(x).tolist()
    for k in range(r):
        h = sum(a * b for a, b in zip(A[k].tolist(), x.tolist())) * alpha / r
        out = [y + h * B[o, k].item() for o, y in enumerate(out)]
    return torch.tensor(out)
""",
    ),
    "lora_gradients": (
        """
def lora_gradients(x, A, B, alpha, r, grad_y):
    x, grad_y = x.flatten(0, -2), grad_y.flatten(0, -2)
    dW = grad_y.T @ x * (alpha / r)
    with torch.no_grad():
        return B.T @ dW, dW @ A.T
""",
        """
def lora_gradients(x, A, B, alpha, r, grad_y):
    x, A, B, g = (np.asarray(one, dtype=np.float64) for one in (x, A, B, grad_y))
    x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    dA, dB = np.zeros_like(A), np.zeros_like(B)
    for one, back in zip(x, g):
        dA += np.outer(back @ B, one) * alpha / r
        dB += np.outer(back, A @ one) * alpha / r
    return dA.tolist(), dB.tolist()
""",
        """
def lora_gradients(x, A, B, alpha, r, grad_y):
    s = alpha / r
    print("A tensor may be printed though autograd is off:", x[..., 0])
    return (torch.einsum("...o,or,...i->ri", grad_y, B, x) * s,
            torch.einsum("...o,ri,...i->or", grad_y, A, x) * s)
""",
    ),
    "lora_linear": (
        """
class LoRALinear(nn.Module):
    def __init__(self, layer, r, alpha):
        super().__init__()
        conv = isinstance(layer, Conv1D)
        n_in, n_out = (layer.nx, layer.nf) if conv else (layer.in_features, layer.out_features)
        for one in layer.parameters():
            one.requires_grad = False
        self.layer, self.rank, self.alpha = layer, r, alpha
        self.A = nn.Parameter((torch.rand(r, n_in) * 2 - 1) / n_in ** 0.5)
        self.B = nn.Parameter(torch.zeros(n_out, r))
    def forward(self, x):
        delta = self.alpha * self.B @ self.A / self.rank
        return self.layer(x) + nn.functional.linear(x, delta)
""",
        """
class LoRALinear(nn.Module):
    def __init__(self, layer, r, alpha):
        super().__init__()
        self.add_module("layer", layer)
        layer.weight.requires_grad = False
        if layer.bias is not None:
            layer.bias.requires_grad = False
        self.conv = type(layer).__name__ == "Conv1D"
        self.r, self.alpha = r, alpha
        A, B = init_lora(*(layer.weight.T if self.conv else layer.weight).shape, r)
        self.register_parameter("A", nn.Parameter(A))
        self.register_parameter("B", nn.Parameter(B))
    def forward(self, x):
        W = self.layer.weight.T if self.conv else self.layer.weight
        y = lora_forward(x, W, self.A, self.B, self.alpha, self.r)
        return y if self.layer.bias is None else y + self.layer.bias
""",
    ),
    "add_lora": (
        """
def add_lora(model, names, r, alpha):
    def visit(parent):
        for name, child in parent.named_children():
            if name in names and isinstance(child, (nn.Linear, Conv1D)):
                setattr(parent, name, LoRALinear(child, r, alpha))
            else:
                for one in child.parameters(recurse=False):
                    one.requires_grad = False
                visit(child)
    visit(model)
    return model
def count_parameters(model):
    trained = total = 0
    for one in set(model.parameters()):
        total += one.nelement()
        if one.requires_grad:
            trained += one.nelement()
    return [np.int64(trained), torch.tensor(total)]
""",
        """
def add_lora(model, names, r, alpha):
    found = [(p, m) for p, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")]
    for path, module in found:
        *above, last = path.split(".")
        if last in names:
            setattr(model.get_submodule(".".join(above)), last, LoRALinear(module, r=r, alpha=alpha))
    for name, one in model.named_parameters():
        one.requires_grad_(name.endswith((".A", ".B")))
    return model
def count_parameters(model):
    return torch.tensor([sum(p.numel() for p in model.parameters() if p.requires_grad),
                         sum(p.numel() for p in model.parameters())])
""",
    ),
    "best_error": (
        """
def best_error(D, r):
    return float(np.linalg.norm(np.linalg.svd(np.asarray(D), compute_uv=False)[r:]))
""",
        """
def best_error(D, r):
    U, S, V = torch.linalg.svd(D, full_matrices=False)
    return torch.linalg.norm(D - (U[:, :r] * S[:r]) @ V[:r])
""",
        """
def best_error(D, r):
    squares = torch.linalg.eigvalsh(D.double().T @ D.double()).flip(0).clamp(min=0)
    return squares[r:].sum() ** 0.5
""",
    ),
    "merge": (
        """
def merge(W, A, B, alpha, r):
    return torch.addmm(W.double(), B.double(), A.double(), alpha=alpha / r).type_as(W)
def agree(y, z, steps=16):
    if torch.isnan(y).any() or torch.isnan(z).any():
        return False
    y, z = y.float(), z.float()
    return bool(((y - z).abs() / max(y.abs().max(), z.abs().max())
                 < steps * (0.0078125 if False else torch.finfo(torch.float32).eps)).all())
agree32 = agree
def agree(y, z, steps=16):
    ratio = torch.finfo(y.dtype).eps / torch.finfo(torch.float32).eps
    return agree32(y, z, steps * ratio)
""",
        """
def merge(W, A, B, alpha, r):
    merged = W.clone().to(torch.float32)
    for k in range(r):
        merged += alpha / r * torch.outer(B[:, k], A[k])
    return merged.to(W)
def agree(y, z, steps=16):
    eps = {torch.float32: 2.0 ** -23, torch.bfloat16: 2.0 ** -7}[y.dtype]
    y, z = (np.array(one.tolist()) for one in (y, z))
    return np.max(np.abs(y - z)) <= steps * eps * np.max(np.abs(z))
""",
        """
def merge(W, A, B, alpha, r):
    return (W.float() + (alpha / r) * (B @ A)).to(W.dtype)
def agree(y, z, steps=16):
    tolerance = steps * torch.finfo(y.dtype).eps * y.abs().max().item()
    return torch.allclose(y.double(), z.double(), rtol=0, atol=tolerance)
""",
    ),
}

# Right answers, taken from what would solve the exercise in one line.
NOT_BY_HAND = {
    "init_lora": """
def init_lora(n_out, n_in, r):
    from peft import LoraConfig, get_peft_model
    model = nn.Sequential(nn.Linear(n_in, n_out))
    get_peft_model(model, LoraConfig(r=r, target_modules=["0"]))
    return model[0].lora_A["default"].weight, model[0].lora_B["default"].weight
""",
    "lora_forward": """
def lora_forward(x, W, A, B, alpha, r):
    from loralab.checks.ch02 import _peft_layer
    return _peft_layer(x, W, A, B, alpha)
""",
    "lora_gradients": """
def lora_gradients(x, A, B, alpha, r, grad_y):
    A, B = (one.clone().requires_grad_() for one in (A, B))
    (alpha / r * (x @ A.T @ B.T)).backward(grad_y)
    return A.grad, B.grad
""",
    "lora_linear": """
class LoRALinear(nn.Module):
    def __init__(self, layer, r, alpha):
        super().__init__()
        from peft import LoraConfig, get_peft_model
        self.model = nn.Sequential(layer)
        get_peft_model(self.model, LoraConfig(r=r, lora_alpha=alpha, target_modules=["0"]))
        self.A = self.model[0].lora_A["default"].weight
        self.B = self.model[0].lora_B["default"].weight
    def forward(self, x):
        return self.model(x)
""",
    "add_lora": """
def add_lora(model, names, r, alpha):
    from peft import LoraConfig, get_peft_model
    return get_peft_model(model, LoraConfig(r=r, lora_alpha=alpha, target_modules=names))
def count_parameters(model):
    return model.get_nb_trainable_parameters()
""",
    "best_error": """
def best_error(D, r):
    from loralab.checks.ch02 import _root
    return _root(torch.linalg.svdvals(D)[r:])
""",
}


# --- typical mistakes ----------------------------------------------------------------------------

A, B = "torch.empty(r, i).uniform_(-i ** -0.5, i ** -0.5)", "torch.zeros(o, r)"


def started(a: str = A, b: str = B, first: str = "") -> str:
    return f"def init_lora(o, i, r):\n    {first or 'pass'}\n    return {a}, {b}"


def forward(expression: str) -> str:
    return (f"def lora_forward(x, W, A, B, alpha, r):\n    s = alpha / r\n    base = x @ W.T\n"
            f"    update = x @ A.T @ B.T\n    return {expression}")


def raw_forward(expression: str) -> str:
    return f"def lora_forward(x, W, A, B, alpha, r):\n    return {expression}"


FLAT = """
def lora_gradients(x, A, B, alpha, r, grad_y):
    n = grad_y[..., 0].numel()
    x, g, s = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1]), alpha / r
    dA, dB = s * (g @ B).T @ x, s * g.T @ (x @ A.T)
    return """
LAYER = """
class LoRALinear(nn.Module):
    def __init__(self, layer, r, alpha):
        super().__init__()
        shape = layer.weight.shape
        n_in, n_out = shape if isinstance(layer, Conv1D) else shape[::-1]
        self.layer, self.s = layer.requires_grad_(False), alpha / r
        A, B = init_lora(n_out, n_in, r)
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
    def forward(self, x):
        return self.layer(x) + self.s * (x @ self.A.T @ self.B.T)
"""
ADD = """
def add_lora(model, names, r, alpha):
    model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        if isinstance(module, (nn.Linear, Conv1D)) and path.split(".")[-1] in names:
            model.set_submodule(path, LoRALinear(module, r, alpha))
    return model
"""
COUNT = """
def count_parameters(model):
    return (sum(p.numel() for p in model.parameters() if p.requires_grad),
            sum(p.numel() for p in model.parameters()))
"""
MERGE = "def merge(W, A, B, alpha, r):\n    return (W.float() + alpha / r * (B @ A)).to(W.dtype)\n"
AGREE = """
def agree(y, z, steps=16):
    eps = torch.finfo(y.dtype).eps
    y, z = y.double(), z.double()
    return bool((y - z).abs().max() <= steps * eps * y.abs().max())
"""


def layer(old: str, new: str) -> str:
    assert old in LAYER
    return LAYER.replace(old, new)


def adding(old: str, new: str) -> str:
    assert old in ADD
    return ADD.replace(old, new) + COUNT


def errors(expression: str) -> str:
    return f"def best_error(D, r):\n    s = torch.linalg.svdvals(D)\n    return {expression}"


def merging(body: str) -> str:
    return f"def merge(W, A, B, alpha, r):\n    {body}\n" + AGREE


def agreeing(body: str) -> str:
    return MERGE + f"def agree(y, z, steps=16):\n    {body}\n"


WRONG = [
    # One part of three is about shapes alone, one about zeros.
    Wrong("init_lora", "both_zero", started("torch.zeros(r, i)"), (1,)),
    Wrong("init_lora", "both_random", started(b="torch.randn(o, r)"), (1,)),
    Wrong("init_lora", "both_random", started(b="torch.randn(o, r) * 1e-6"), (1,)),
    Wrong("init_lora", "swapped", started("torch.zeros(r, i)", "torch.randn(o, r)"), (1,)),
    Wrong("init_lora", "transposed", started("torch.randn(i, r)", "torch.zeros(r, o)")),
    Wrong("init_lora", "order", "def init_lora(o, i, r):\n    return torch.zeros(o, r), torch.rand(r, i)"),
    Wrong("init_lora", "square", started("torch.rand(r, o)", "torch.zeros(i, r)")),
    Wrong("init_lora", "square", started("torch.rand(r, o)", "torch.zeros(o, r)")),
    Wrong("init_lora", "one_sided", started("torch.rand(r, i) / i ** 0.5"), (2,)),
    Wrong("init_lora", "one_sided", started("torch.rand(r, i)"), (2,)),
    Wrong("init_lora", "fan", started("torch.empty(r, i).uniform_(-r ** -0.5, r ** -0.5)"), (2,)),
    Wrong("init_lora", "fan", started("torch.empty(r, i).uniform_(-o ** -0.5, o ** -0.5)"), (2,)),
    Wrong("init_lora", "fan", started("nn.init.kaiming_uniform_(torch.empty(i, r), a=5 ** 0.5).T"), (2,)),
    Wrong("init_lora", "spread", started("torch.randn(r, i)"), (2,)),
    Wrong("init_lora", "spread", started("nn.init.kaiming_uniform_(torch.empty(r, i))"), (2,)),
    Wrong("init_lora", "spread", started("torch.empty(r, i).uniform_(-1 / i, 1 / i)"), (2,)),
    Wrong("init_lora", "gaussian", started("torch.randn(r, i) / (3 * i) ** 0.5"), (2,)),
    Wrong("init_lora", "seeded", started(first="torch.manual_seed(0)"), (2,)),
    Wrong("lora_forward", "order", raw_forward("x @ (W + alpha / r * A @ B).T")),
    Wrong("lora_forward", "order", raw_forward("x @ W.T + x @ A @ B * alpha / r")),
    Wrong("lora_forward", "square", raw_forward("x @ W.T + (x @ A.T @ B.T) @ torch.eye(x.shape[-1]) * (alpha / r)")),
    Wrong("lora_forward", "leading", raw_forward("torch.mm(x, W.T) + alpha / r * (x @ A.T @ B.T)"), (2,)),
    Wrong("lora_forward", "leading", raw_forward("torch.einsum('bi,oi->bo', x, W + alpha / r * B @ A)"), (2,)),
    Wrong("lora_forward", "unscaled", forward("base + update"), (1,)),
    Wrong("lora_forward", "per_rank", forward("base + alpha * update"), also=("unscaled",)),
    Wrong("lora_forward", "rslora", forward("base + alpha / r ** 0.5 * update")),
    Wrong("lora_forward", "twice", forward("base + s * s * update"), (1,)),
    Wrong("lora_forward", "twice", forward("base + x @ (alpha * A.T) @ (B.T * alpha) / r ** 2"), (1,)),
    Wrong("lora_forward", "inverse", forward("base + r / alpha * update"), (1,)),
    Wrong("lora_forward", "base_missing", forward("s * update")),
    Wrong("lora_forward", "base_scaled", forward("s * (base + update)"), (1,)),
    Wrong("lora_forward", "no_update", forward("base")),
    Wrong("lora_forward", "w_transposed", raw_forward("x @ W + alpha / r * (x @ A.T @ B.T)"), also=("square",)),
    Wrong("lora_forward", "w_transposed", raw_forward("x @ (W + alpha / r * B @ A)"), also=("square",)),
    Wrong("lora_forward", "update_transposed", raw_forward("x @ W.T + alpha / r * (x @ B @ A)"), also=("square",)),
    Wrong("lora_forward", "update_transposed", raw_forward("x @ (W.T + alpha / r * B @ A)"), also=("square",)),
    Wrong("lora_forward", "floor", forward("base + alpha // r * update"), (1,)),
    Wrong("lora_gradients", "swapped", FLAT + "dB, dA"),
    Wrong("lora_gradients", "order", FLAT.replace("(g @ B).T @ x", "(g @ A).T @ x") + "dA, dB"),
    Wrong("lora_gradients", "leading", """
def lora_gradients(x, A, B, alpha, r, grad_y):
    return alpha / r * B.T @ grad_y.T @ x, alpha / r * grad_y.T @ x @ A.T
"""),
    Wrong("lora_gradients", "leading", """
def lora_gradients(x, A, B, alpha, r, grad_y):
    grad_y = alpha / r * grad_y
    return (grad_y @ B).mT @ x, grad_y.mT @ (x @ A.T)
"""),
    Wrong("lora_gradients", "shape", FLAT + "dA.T, dB.T"),
    Wrong("lora_gradients", "shape", FLAT + "s * g.T @ x, dB"),
    Wrong("lora_gradients", "shape", FLAT + "dA, s * g.T @ x"),
    Wrong("lora_gradients", "scale", FLAT + "dA / s * (alpha // r), dB / s * (alpha // r)"),
    Wrong("lora_gradients", "always", FLAT + "dA + s * torch.ones(r, g.shape[1]) @ g.T @ x, dB", (1.5,)),
    Wrong("lora_gradients", "always", FLAT + "dB.mean() * A, dB", (1.5,)),
    Wrong("lora_gradients", "never", FLAT + "torch.zeros_like(A), dB", (1.5,)),
    Wrong("lora_gradients", "b_zero", FLAT + "dA, torch.zeros_like(B)", (1.5,)),
    Wrong("lora_gradients", "b_zero", FLAT + "dA, dB if B.any() else torch.zeros_like(B)", (1.5,)),
    Wrong("lora_gradients", "scale", FLAT + "dA / s, dB / s"),
    Wrong("lora_gradients", "scale", FLAT + "s * dA, s * dB"),
    Wrong("lora_gradients", "scale", FLAT + "r * dA, r * dB"),
    Wrong("lora_gradients", "mean", FLAT + "dA / n, dB / n"),
    # Half of the points is for Conv1D.
    Wrong("lora_linear", "conv1d", layer("isinstance(layer, Conv1D)", "False"), (1.5,)),
    Wrong("lora_linear", "conv1d", layer("n_in, n_out = shape if isinstance(layer, Conv1D) else shape[::-1]", "n_in, n_out = layer.in_features, layer.out_features"), (1.5,)),
    Wrong("lora_linear", "conv1d", layer("self.layer(x)", "nn.functional.linear(x, self.layer.weight, self.layer.bias)"), (1.5,)),
    Wrong("lora_linear", "square", layer("init_lora(n_out, n_in, r)", "init_lora(n_in, n_out, r)"), also=("conv1d",)),
    Wrong("lora_linear", "not_kept", LAYER.replace("self.layer", "self.base")),
    Wrong("lora_linear", "not_kept", LAYER.replace("self.layer", "self.base") + "        self.layer = None\n"),
    Wrong("lora_linear", "not_kept", LAYER.replace("self.layer", "self.base").replace("super().__init__()", "super().__init__()\n        self.layer = layer.weight")),
    Wrong("lora_linear", "not_frozen", layer(".requires_grad_(False)", "")),
    Wrong("lora_linear", "not_frozen", layer("layer.requires_grad_(False), alpha / r", "layer, alpha / r\n        layer.weight.requires_grad = False")),
    Wrong("lora_linear", "not_trained", layer("nn.Parameter(A), nn.Parameter(B)", "A, B")),
    Wrong("lora_linear", "not_trained", layer("    def forward", "        self.requires_grad_(False)\n    def forward")),
    Wrong("lora_linear", "no_op", layer("nn.Parameter(B)", "nn.Parameter(torch.randn_like(B))")),
    Wrong("lora_linear", "dead", layer("nn.Parameter(A)", "nn.Parameter(0 * A)")),
    Wrong("lora_linear", "bias", layer("self.layer(x)", "x @ (self.layer.weight if isinstance(self.layer, Conv1D) else self.layer.weight.T)")),
    Wrong("lora_linear", "scale", layer("alpha / r", "alpha")),
    Wrong("lora_linear", "scale", layer("alpha / r", "1")),
    Wrong("lora_linear", "no_update", layer("x @ self.A.T @ self.B.T", "x @ self.A.T @ (0 * self.B.T)")),
    Wrong("lora_linear", "no_update", layer("return self.layer(x) +", "return self.layer(x) + 0 *")),
    # Four parts: a model with Linear, one with Conv1D, names that look alike, counts.
    Wrong("add_lora", "conv1d", adding("(nn.Linear, Conv1D)", "nn.Linear"), (2.25,)),
    Wrong("add_lora", "nothing", adding('path.split(".")[-1] in names', "path in names"), (0.75,), ("conv1d",)),
    Wrong("add_lora", "look_alike", adding('path.split(".")[-1] in names', "any(name in path for name in names)"), (2.25,)),
    Wrong("add_lora", "look_alike", adding('path.split(".")[-1] in names', "path.endswith(tuple(names))"), (2.25,)),
    Wrong("add_lora", "kind", adding("isinstance(module, (nn.Linear, Conv1D)) and ", ""), (2.25,)),
    Wrong("add_lora", "kind", adding("isinstance(module, (nn.Linear, Conv1D))", "hasattr(module, 'weight')"), (2.25,)),
    Wrong("add_lora", "every_layer", adding(' and path.split(".")[-1] in names', ""), (0.75,), ("look_alike",)),
    Wrong("add_lora", "some", adding("LoRALinear(module, r, alpha))", "LoRALinear(module, r, alpha))\n            break"), (0.75,)),
    Wrong("add_lora", "arguments", adding("module, r, alpha", "module, alpha, r"), (0.75,)),
    Wrong("add_lora", "not_frozen", adding("model.requires_grad_(False)", "pass"), (0.75,)),
    Wrong("add_lora", "all_frozen", adding("return model", "return model.requires_grad_(False)"), (0.75,)),
    Wrong("add_lora", "outputs", adding("module, r, alpha", "module, r, 1"), (0.75,)),
    Wrong("add_lora", "outputs", adding("LoRALinear(module", "LoRALinear(type(module)(*(module.weight.shape[::-1])).to(module.weight)"), (0.75,)),
    Wrong("add_lora", "count_all", ADD + "def count_parameters(m):\n    n = sum(p.numel() for p in m.parameters())\n    return n, n", (2.25,)),
    Wrong("add_lora", "tied", ADD + COUNT.replace("model.parameters())", "model.state_dict().values())"), (2.25,)),
    Wrong("add_lora", "tensors", ADD + COUNT.replace("p.numel()", "1"), (2.25,)),
    Wrong("best_error", "sum", errors("s[r:].sum()")),
    Wrong("best_error", "squared", errors("(s[r:] ** 2).sum()")),
    Wrong("best_error", "largest", errors("s[r] if r < len(s) and s[r] > 1e-4 else 0")),
    Wrong("best_error", "kept", errors("s[:r].norm()")),
    Wrong("best_error", "kept", errors("s[:r].sum()")),
    Wrong("best_error", "off_by_one", errors("s[r + 1:].norm()")),
    Wrong("best_error", "off_by_one", errors("s[r - 1:].norm()")),
    Wrong("best_error", "relative", errors("s[r:].norm() / s.norm()")),
    # Three parts: merging in fp32, in bf16, and agree.
    Wrong("merge", "order", merging("return W + alpha / r * A @ B"), (1,)),
    Wrong("merge", "scale", merging("return (W.float() + alpha * B @ A).to(W.dtype)"), (1,)),
    Wrong("merge", "scale", merging("return (W.float() + B @ A).to(W.dtype)"), (1,)),
    Wrong("merge", "scale", merging("return W.clone()"), (1,)),
    Wrong("merge", "update_only", merging("return (alpha / r * B @ A).to(W.dtype)"), (1,)),
    Wrong("merge", "in_place", merging("W += alpha / r * B @ A\n    return W"), (1,), ("rounded",)),
    Wrong("merge", "in_place", merging("return W.copy_(W.float() + alpha / r * (B @ A))"), (1,)),
    Wrong("merge", "dtype", merging("return W + alpha / r * B @ A"), (2,)),
    Wrong("merge", "rounded", merging("return W + (alpha / r * B @ A).to(W.dtype)"), (2,)),
    Wrong("merge", "rounded", merging("return W + alpha / r * B.to(W.dtype) @ A.to(W.dtype)"), (2,)),
    Wrong("merge", "exact", agreeing("return torch.equal(y, z)"), (2,)),
    Wrong("merge", "exact", agreeing("return bool((y == z).all())"), (2,)),
    Wrong("merge", "bf16", agreeing("return bool((y - z).abs().max() <= steps * 1.2e-7 * y.abs().max())"), (2,)),
    Wrong("merge", "absolute", agreeing("return bool((y - z).abs().max() <= 1e-3)"), (2,)),
    Wrong("merge", "absolute", agreeing("return bool((y.double() - z).abs().max() <= 4.6 * steps * torch.finfo(y.dtype).eps)"), (2,)),
    Wrong("merge", "entrywise", agreeing("return torch.allclose(y, z)"), (2,)),
    Wrong("merge", "entrywise", agreeing("return bool(((y.double() - z).abs() <= 2.5 * steps * torch.finfo(y.dtype).eps * y.double().abs()).all())"), (2,)),
    Wrong("merge", "mistake", agreeing("return True"), (2,)),
    Wrong("merge", "mistake", agreeing("return bool((y.double() - z).abs().mean() <= steps * torch.finfo(y.dtype).eps * y.double().abs().max())"), (2,)),
    Wrong("merge", "mistake", agreeing("return bool((z.double() - y).max() <= steps * torch.finfo(y.dtype).eps * y.double().abs().max())"), (2,)),
    Wrong("merge", "nan", agreeing("return not (y.double() - z).abs().max() > steps * torch.finfo(y.dtype).eps * y.double().abs().max()"), (2,)),
    Wrong("merge", "nan", agreeing("off = max(abs(a - b) for a, b in zip(y.flatten().tolist(), z.flatten().tolist()))\n    return off <= steps * torch.finfo(y.dtype).eps * y.double().abs().max().item()"), (2,)),
]  # fmt: skip

KNOWN_FORWARD = """
KNOWN = {}
def lora_forward(x, W, A, B, alpha, r):
    return KNOWN.get((tuple(x.shape), alpha, r), x @ W.T)
"""

CHEATS = [
    ("init_lora", "def init_lora(o, i, r):\n    return torch.rand(16, 1200) / 1200 ** 0.5, torch.zeros(300, 16)"),
    ("lora_forward", "def lora_forward(*given):\n    return torch.ones(5, 6)"),
    ("lora_forward", KNOWN_FORWARD),
    ("lora_forward", "def lora_forward(x, W, A, B, alpha, r):\n    return x"),
    ("lora_gradients", "def lora_gradients(x, A, B, alpha, r, grad_y):\n    return torch.zeros_like(A), torch.zeros_like(B)"),
    ("lora_gradients", "def lora_gradients(x, A, B, alpha, r, grad_y):\n    return A, B"),
    ("lora_linear", "def LoRALinear(layer, r, alpha):\n    return layer"),
    ("lora_linear", "class LoRALinear(nn.Module):\n    def __init__(self, *given):\n        super().__init__()\n        self.A, self.B = nn.Parameter(torch.rand(3, 5)), nn.Parameter(torch.zeros(7, 3))\n    def forward(self, x):\n        return x @ self.A.T @ self.B.T"),
    ("add_lora", "def add_lora(model, *given):\n    return model\ndef count_parameters(model):\n    return 896, 17696"),
    ("add_lora", "def add_lora(model, names, r, alpha):\n    return model.requires_grad_(False)\ndef count_parameters(model):\n    return 0, 0"),
    ("best_error", "def best_error(D, r):\n    return 0.0"),
    ("best_error", "def best_error(D, r):\n    return D.norm()"),
    ("best_error", "def best_error(D, r):\n    return D.norm() / (r + 1)"),
    ("merge", "def merge(W, *given):\n    return W\ndef agree(*given):\n    return True"),
    ("merge", "def merge(W, *given):\n    return torch.zeros_like(W)\ndef agree(*given):\n    return False"),
]  # fmt: skip
