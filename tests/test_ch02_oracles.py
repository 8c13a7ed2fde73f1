"""Chapter 02: the oracles are right, the tolerances sound, and what the chapter says holds."""

from __future__ import annotations

import random

import pytest
import torch
from answer_sheets import sheet
from answers_ch02 import CELLS, IMPORTS, A, started
from matplotlib import pyplot as plt
from torch import nn
from trusting import earned, outcomes

from autograder.checks import ch02 as trusted
from loralab import low_rank, plots
from loralab.checks import WrongAnswer
from loralab.checks import ch02 as check


def defined(code: str, *names: str):
    """What `code` defines, beside the chapter's imports."""
    space = dict(IMPORTS)
    exec(code, space)
    return [space[name] for name in names] if len(names) > 1 else space[names[0]]


def symptom_of(exercise: str, call) -> str | None:
    with pytest.raises(WrongAnswer) as caught:
        call()
    symptoms = check.EXERCISES[exercise].symptoms
    return next((key for key, one in symptoms.items() if one == caught.value.symptom), None)


# --- known matrices ------------------------------------------------------------------------------


def test_a_matrix_has_the_singular_values_that_it_was_asked_for():
    D = low_rank.matrix(9, 6, [5.0, 2.0, 0.5], "a")
    assert torch.allclose(torch.linalg.svdvals(D), torch.tensor([5, 2, 0.5, 0, 0, 0.0]), atol=1e-5)
    assert torch.equal(D, low_rank.matrix(9, 6, [5.0, 2.0, 0.5], "a"))
    assert not torch.allclose(D, low_rank.matrix(9, 6, [5.0, 2.0, 0.5], "b"))
    with pytest.raises(ValueError, match="no 4 singular values"):
        low_rank.matrix(9, 3, [1, 1, 1, 1])


def test_drawing_leaves_the_students_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    low_rank.normal("x", 5)
    check.Model("llama", check._llama(), ("q_proj",), 2, 4).make()
    check.Layer("Conv1D", 3, 4, True, 2, 4).make()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("r", [0, 1, 3, 5])
def test_no_matrix_of_that_rank_is_nearer_than_best_error(r):
    best_error = defined(CELLS["best_error"], "best_error")
    D = low_rank.normal("D", 6, 8).double()
    U, S, V = torch.linalg.svd(D, full_matrices=False)
    nearest = U[:, :r] * S[:r] @ V[:r]
    assert (D - nearest).norm().item() == pytest.approx(best_error(D, r))
    for k in range(50):
        step = low_rank.normal(f"{r} {k}", 6, max(r, 1)).double() * 0.05
        left, right = U[:, :r] * S[:r] + step[:, :r], V[:r]
        assert (D - left @ right).norm() >= best_error(D, r) - 1e-9


# --- 2.1: the test of a distribution -------------------------------------------------------------


def test_a_right_distribution_is_never_refused():
    init_lora = defined(CELLS["init_lora"], "init_lora")
    for k in range(150):
        torch.manual_seed(k)
        check.compare_init_lora(init_lora, [(30, 900, 14)])


@pytest.mark.parametrize("a", [
    "(torch.rand(r, i) + torch.rand(r, i) - 1) / i ** 0.5",  # a triangle
    "(torch.rand(r, i).round() * 2 - 1) / (3 * i) ** 0.5",  # two values
    "(torch.rand(r, i) ** 3 * 2 - 1) / i ** 0.5",
    "((torch.rand(1, i) * 2 - 1) / i ** 0.5).repeat(r, 1)",  # the same row r times
    "torch.linspace(-1, 1, r * i).reshape(r, i) / i ** 0.5",
    "((torch.rand(r, i) * 2 - 1) / i ** 0.5).nan_to_num() * float('nan')",
])  # fmt: skip
def test_another_distribution_in_the_same_interval_is_refused(a):
    init_lora = defined(started(a), "init_lora")
    with pytest.raises(WrongAnswer):
        check.compare_init_lora(init_lora, [(30, 900, 14)])


def test_it_is_the_distribution_that_peft_draws():
    def by_peft(n_out, n_in, r):
        model = nn.Sequential(nn.Linear(n_in, n_out))
        check._peft(model, ["0"], r, 1, conv=False)
        return [getattr(model[0], f"lora_{name}")["default"].weight for name in "AB"]

    check.compare_init_lora(by_peft, [(300, 1200, 16), (900, 400, 48)])


# --- 2.2 and 2.3 ---------------------------------------------------------------------------------


def test_pefts_layer_is_the_formula():
    x, W, A_, B_ = (one.double() for one in check.Forward((5,), 7, 4, 3, 10).tensors())
    expected = x @ (W + 10 / 3 * B_ @ A_).T
    assert torch.allclose(check._peft_layer(x, W, A_, B_, 10), expected)


def test_drawn_layers_are_never_square_by_accident():
    """Otherwise a mistake about shapes would get through, or under another name."""
    for k in range(500):
        drawn = trusted._forward(random.Random(k))
        assert len({drawn.n_out, drawn.n_in, drawn.r}) == 3 and drawn.alpha != drawn.r


@pytest.mark.parametrize("body", [
    "(alpha / r * (x @ A.T @ B.T)).backward(grad_y)\n    return A.grad, B.grad",
    "return torch.autograd.grad(alpha / r * (x @ A.T @ B.T), (A, B), grad_y)",
    "return torch.func.vjp(lambda A, B: alpha / r * (x @ A.T @ B.T), A, B)[1](grad_y)",
])
def test_the_visible_check_does_not_accept_autograd_either(body):
    """Whoever passes it should get the points."""
    code = ("def lora_gradients(x, A, B, alpha, r, grad_y):\n"
            f"    A, B = (one.clone().requires_grad_() for one in (A, B))\n    {body}\n")
    with pytest.raises(WrongAnswer, match="asks autograd"):
        sheet("02").run_visible_check("lora_gradients", code)
    assert earned(outcomes("02", "lora_gradients", sheet("02").student(code))) == 0
    x = torch.ones(2, requires_grad=True)
    x.sum().backward()  # it works again afterwards
    assert x.grad.tolist() == [1, 1]


def test_a_message_ends_in_one_full_stop():
    def misfit(*given):
        raise RuntimeError("but got: [2, 3].")

    with pytest.raises(WrongAnswer, match=r"but got: \[2, 3\]\.(?!\.)"):
        check.lora_gradients(misfit)


# --- 2.4 and 2.5 ---------------------------------------------------------------------------------


def test_a_layer_that_calls_peft_only_when_it_is_used_is_refused_too():
    code = """
class LoRALinear(nn.Module):
    def __init__(self, layer, r, alpha):
        super().__init__()
        n_in, n_out = layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.shape[::-1]
        self.layer, self.r, self.alpha = layer.requires_grad_(False), r, alpha
        A, B = init_lora(n_out, n_in, r)
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
    def forward(self, x):
        from peft import LoraConfig, get_peft_model
        model = get_peft_model(nn.Sequential(self.layer), LoraConfig(
            r=self.r, lora_alpha=self.alpha, target_modules=["0"],
            fan_in_fan_out=isinstance(self.layer, Conv1D)))
        inner = model.base_model.model[0]
        inner.lora_A["default"].weight.data = self.A.data
        inner.lora_B["default"].weight.data = self.B.data
        return model(x)
"""
    sheet("02").run_visible_check("lora_linear", code)
    found = outcomes("02", "lora_linear", sheet("02").student(code))
    assert earned(found) == 0


@pytest.mark.parametrize("report", [
    {"trained": {"A": [3, 5], "B": [7, 3]}, "shapes": {"A": [3, 5], "B": [7, 3]}},
    {"trained": {"A": [3, 5], "B": [7, 3]}, "shapes": {"A": [3, 5], "B": [7, 3]}, "dead": "no",
     "before": torch.full((3, 7), float("nan")), "after": torch.ones(3, 7)},
    {"trained": {"A": [[]], "B": {}}, "shapes": {"A": [10**4000], "B": "x"}},
    {"trained": {"A": [3, 5], "B": [7, 3]}, "shapes": {"A": [3, 5], "B": [7, 3]}, "error": [1]},
    {"trained": [], "shapes": [], "kind": 1},
])
def test_a_forged_report_of_a_layer_is_a_wrong_answer(report):
    with pytest.raises(WrongAnswer):
        check.compare_lora_linear(lambda layer: report, check.VISIBLE_LAYERS[:1])


def _places():
    return {path: list(shape) for path, shape in
            check._peft_report(check.VISIBLE_MODELS[0])["adapters"].items()}


@pytest.mark.parametrize("changed", [
    {}, {"trained": None}, {"trained": [1, [], {}]}, {"before": None}, {"before": "x"},
    {"before": torch.ones(1, 6, 40).bool()}, {"adapters": {"": []}}, {"adapters": {"x": [1] * 4}},
    {"error": {"": None}},
])  # fmt: skip
def test_a_forged_report_of_a_model_is_a_wrong_answer(changed):
    report = {"kind": "x", "adapters": _places(), "before": torch.zeros(1, 6, 40),
              "trained": [f"{path}.{name}" for path in _places() for name in "AB"]}
    with pytest.raises(WrongAnswer):
        check.compare_add_lora(lambda model: report | changed, check.VISIBLE_MODELS[:1])


def test_the_made_up_model_has_names_of_every_misleading_kind():
    """Contained, at the end, at the beginning, and in the middle of a path."""
    model = check.VISIBLE_MODELS[2].make()
    paths = {path for path, module in model.named_modules() if not list(module.children())}
    assert {"blocks.0.mix", "blocks.0.premix", "blocks.0.mix_norm",
            "blocks.0.mixer.inner", "blocks.0.mixer.mix"} <= paths
    assert isinstance(model.get_submodule("blocks.0.mixer.mix"), nn.Embedding)
    assert set(check._peft_report(check.VISIBLE_MODELS[2])["adapters"]) == {
        "blocks.0.mix", "blocks.1.mix"}


def test_adapters_move_every_models_output():
    """Else outputs could agree by accident."""
    for model in check.VISIBLE_MODELS:
        found = check._peft_report(model)
        assert (found["after"] - found["before"]).abs().max() > 0.1 * found["before"].abs().max()


# --- 2.7 -----------------------------------------------------------------------------------------


def test_pairs_are_far_enough_from_what_steps_allows():
    for seed in range(50):
        for pair in check.agreements(str(seed)):
            eps = torch.finfo(pair.y.dtype).eps
            y, z = pair.y.double(), pair.z.double()
            sizes = [y.abs().max(), z.abs().max()]
            found = [((y - z).abs().max() / (eps * size)).item() for size in sizes]
            if pair.symptom == "nan":
                assert not pair.right
            elif pair.right:
                assert max(found) < 0.6 * pair.steps
            else:
                assert min(found) > 1.5 * pair.steps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_once_is_never_called_too_early(dtype):
    merge = defined(CELLS["merge"], "merge", "agree")[0]
    for k in range(40):
        case = check.Merge(56, 64, 3, 8, dtype, str(k))
        def report(case):
            W, A_, B_ = check.given_weight(*case), *case.tensors()[1:]
            return check.merge_report(merge(W, A_, B_, case.alpha, case.r))
        check.compare_merge(report, [case])


def test_the_distribution_needs_a_second_call():
    seeded = defined(started(A, first="torch.manual_seed(1)"), "init_lora")
    key = symptom_of("init_lora", lambda: check.compare_init_lora(seeded, [(30, 900, 14)]))
    assert key == "seeded"


# --- what the chapter says -----------------------------------------------------------------------


def test_a_trained_adapter_reaches_the_best_error_and_no_less():
    lora_forward, init_lora = (defined(CELLS[name], name) for name in ("lora_forward", "init_lora"))
    best_error = defined(CELLS["best_error"], "best_error")
    D, x = low_rank.matrix(12, 16, [4, 2, 1]), torch.eye(16)
    W = low_rank.normal("W", 12, 16)
    torch.manual_seed(0)
    for r in (1, 2):
        A_, B_ = (one.requires_grad_() for one in init_lora(12, 16, r))
        optimizer = torch.optim.Adam([A_, B_], lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            (lora_forward(x, W, A_, B_, 2 * r, r) - x @ (W + D).T).square().sum().backward()
            optimizer.step()
        error = (2 * B_ @ A_ - D).norm().item()
        assert best_error(D, r) - 1e-5 <= error < 1.001 * best_error(D, r)


def test_peft_starts_as_the_chapter_says():
    from peft import LoraConfig

    config = LoraConfig()
    assert (config.r, config.lora_alpha, config.init_lora_weights) == (8, 8, True)
    assert not config.use_rslora


def test_the_solution_is_as_short_as_the_chapter_says():
    inside = [line for cell in CELLS.values() for part in cell.split("### BEGIN SOLUTION")[1:]
              for line in part.split("### END SOLUTION")[0].splitlines() if line.strip()]
    assert len(inside) <= 32


def test_the_figure_shows_what_it_was_given():
    plots.use_style()
    D = low_rank.matrix(8, 9, [4, 2, 1])
    predicted, measured = {1: 2.2, 2: 1.0, 3: 0.0, 4: 0.0}, {1: 2.25, 2: 1.05, 4: 0.01}
    figure = plots.error_by_rank(predicted, measured, D, {1: 0.5 * D, 4: D})
    left, right = figure.axes
    line, points = left.get_lines()
    assert dict(line.get_xydata().tolist()) == predicted
    (rank,) = left.collections
    assert rank.get_segments()[0][:, 0].tolist() == [3, 3]
    assert dict(points.get_xydata().tolist()) == measured
    assert left.get_xscale() == "log" and left.xaxis.get_transform().base == 2
    assert [text.get_text() for text in left.get_xticklabels()] == ["1", "2", "4"]
    wanted, *learnt = right.get_lines()
    assert wanted.get_ydata()[1:].tolist() == pytest.approx([4, 2, 1, 0, 0], abs=1e-5)
    assert learnt[0].get_ydata().tolist() == pytest.approx([2, 1, 0.5, 0, 0], abs=1e-5)
    assert learnt[1].get_label() == "ΔW, trained at rank 4"
    for axes in figure.axes:
        assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left")
    plt.close(figure)
