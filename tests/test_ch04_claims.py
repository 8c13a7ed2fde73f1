"""What chapter 04 says of levels, codes, bits, errors and dtypes, tried on the libraries."""

from __future__ import annotations

import json
import math

import bitsandbytes as bnb
import bitsandbytes.functional as functional
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from answer_sheets import sheet
from torch import nn
from trusting import Raw, earned, outcomes

from loralab import base_model, four_bit, measure, memory, plots, rounding
from loralab.checks import ch04
from loralab.paths import PROJECT

SOURCE = sheet("04").source


@pytest.fixture(scope="module")
def model():
    return base_model.load(dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def solution():
    """What the solution's cells define."""
    space = dict(sheet("04").imports)
    for code in sheet("04").cells.values():
        exec(code, space)
    return space


LAYER = "model.layers.11.mlp.down_proj"


def layer(model, path=LAYER):
    return model.get_submodule(path).weight.data


# --- levels ---------------------------------------------------------------------------------------


def test_the_levels_are_bitsandbytes_table():
    off = torch.tensor(ch04.right_levels(4)).double() - ch04.table("nf4").double()
    assert off.abs().max() < 3e-7
    assert len(ch04.table("nf4")) == 16 and len(ch04.table("fp4")) == 15


def test_equation_4_as_it_stands_is_infinite_and_one_level_short():
    edges = torch.special.ndtri(torch.arange(18, dtype=torch.float64) / 17)
    literal = (edges[:-1] + edges[1:]) / 2
    assert torch.isinf(literal).sum() == 2 and torch.isfinite(literal).sum() == 15
    inner = literal[torch.isfinite(literal)]
    assert not any(torch.isclose(inner / inner.max(), one, atol=1e-3).all()
                   for one in ch04.table("nf4").double().unfold(0, 15, 1))


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_levels_of_other_widths_keep_the_form(bits):
    levels = torch.tensor(ch04.right_levels(bits))
    assert len(levels) == 2**bits and levels[0] == -1 and levels[-1] == 1
    assert (levels == 0).sum() == 1 and (levels > 0).sum() == 2 ** (bits - 1)
    assert bool((levels.diff() > 0).all())


# --- codes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [
    LAYER, "model.layers.0.self_attn.q_proj", "model.layers.29.mlp.up_proj",
    "model.layers.15.self_attn.v_proj",
])  # fmt: skip
@pytest.mark.parametrize("block", [64, 256])
def test_the_solutions_codes_are_bitsandbytes_codes_all_of_them(model, solution, path, block):
    weight = layer(model, path)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=block)
    codes, absmax = solution["quantize"](weight.reshape(-1), ch04.table("nf4"), block)
    assert torch.equal(codes, four_bit.unpacked(packed, weight.numel()))
    assert torch.equal(absmax, state.absmax)
    back = solution["dequantize"](codes, absmax, ch04.table("nf4"), block)
    assert torch.equal(back.reshape(weight.shape), functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize("n", [65, 100, 129, 1001])
def test_also_where_the_last_block_is_incomplete(n):
    case = ch04.Coded.of(ch04.draw_weights(n, n, 64, ch04.table("nf4")), ch04.table("nf4"), 64)
    codes, absmax = ch04.right_codes(case.weights, case.levels, 64)
    assert torch.equal(codes, case.codes) and torch.allclose(absmax, case.absmax)


def test_the_middle_of_two_levels_goes_to_the_lower_one():
    table, weights = ch04.table("nf4"), torch.zeros(64)
    weights[:15], weights[20] = (table[1:] + table[:-1]) / 2, 1.0
    packed, _ = functional.quantize_4bit(weights, quant_type="nf4")
    assert four_bit.unpacked(packed, 64)[:15].tolist() == list(range(15))


@pytest.mark.parametrize("seed", range(20))
def test_cases_keep_clear_of_the_middles(seed):
    levels = ch04.some_levels(seed) if seed % 2 else ch04.table("nf4")
    weights = ch04.draw_weights(seed, 401, 40, levels, zeros=seed % 3 == 0)
    blocks = ch04.blocks_of(weights, 40)
    scaled = blocks / blocks.abs().amax(1, keepdim=True).clamp(min=1e-30)
    middles = (levels[1:] + levels[:-1]).double() / 2
    assert (scaled[..., None] - middles).abs().min() > 5e-4


# --- bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block", ch04.BLOCKS)
def test_bits_are_the_counted_bytes(block, double):
    assert ch04.counted_bits(block, double) == ch04.bits(block, double, 256)
    assert ch04.bits(64, True, 256) == pytest.approx(4.127, abs=5e-4)


def test_the_footprint_does_not_see_the_constants():
    from transformers import LlamaConfig

    config = LlamaConfig(vocab_size=100, hidden_size=128, intermediate_size=256,
                         num_hidden_layers=1, num_attention_heads=2)  # fmt: skip
    seen, counted = [], []
    for double in (False, True):
        small = memory.build(config, device="cpu", dtype="bf16")
        small = four_bit.quantise(small, double_quant=double)
        held = measure.held(small)
        seen.append(small.get_memory_footprint())
        counted.append(held["constants"])
        parameters = held["weights"] + held["weights_4bit"]
        assert seen[-1] - parameters < held["constants"] / 10
    assert seen[0] == seen[1] and counted[0] > counted[1]


# --- errors and losses ----------------------------------------------------------------------------


def ranked(weights):
    return [name for name, _ in ch04.Ranked.of(weights.reshape(-1), ch04.three_schemes(), 64).right]


def test_nf4_wins_on_trained_and_normal_weights_and_loses_on_a_fresh_layer(model):
    torch.manual_seed(0)
    order = ["NF4", "absmax", "FP4"]
    assert ranked(torch.randn(2**16)) == order
    for path in (LAYER, "model.layers.0.self_attn.q_proj", "model.layers.29.mlp.up_proj"):
        assert ranked(layer(model, path)[:64]) == order
    assert ranked(nn.Linear(1536, 64, bias=False).weight.data) == ["absmax", "NF4", "FP4"]


def test_the_embedded_model_was_rounded_in_the_grid_of_q4_1(model):
    for path in (LAYER, "model.layers.0.self_attn.q_proj"):
        weight = layer(model, path)
        again = rounding.rounded(weight, "min-max", block=32)
        assert ch04.relative_error(weight, again) < 0.003
    control = torch.randn(2**16)
    assert ch04.relative_error(control, rounding.rounded(control, "min-max", 32)) > 0.05


@pytest.mark.parametrize("scheme", rounding.SCHEMES)
def test_rounding_is_what_the_chapter_builds_by_hand(scheme):
    torch.manual_seed(1)
    weights = ch04.clear_of_middles(torch.randn(64 * 50), ch04.three_schemes()[scheme], 64)
    by_hand = ch04.came_back(weights, ch04.three_schemes()[scheme], 64)
    assert torch.allclose(rounding.rounded(weights, scheme).double(), by_hand, atol=1e-6)


def test_a_model_is_what_it_was_after_rounding():
    from transformers import LlamaConfig

    small = memory.build(LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2), device="cpu", dtype="fp32")  # fmt: skip
    before = {name: weight.clone() for name, weight in small.state_dict().items()}
    with pytest.raises(RuntimeError), rounding.rounded_layers(small, "NF4") as rounded:
        assert rounded == sum(one.weights for one in memory.describe(small).linear)
        changed = [name for name, one in small.state_dict().items()
                   if not torch.equal(one, before[name])]
        assert len(changed) == 14 and all("_proj" in name for name in changed)
        raise RuntimeError
    assert all(torch.equal(one, before[name]) for name, one in small.state_dict().items())


def test_the_recorded_losses_are_of_this_model_and_carry_the_conclusions(model):
    recorded = json.loads(rounding.RECORDED.read_text("utf-8"))
    found, tokenizer = recorded["found"], base_model.load_tokenizer()
    losses = rounding.token_losses(model, tokenizer, recorded["text"])
    assert len(losses) == found["tokens"]
    assert losses.mean().item() == pytest.approx(found["loss"], abs=1e-3)
    errors, added, apart = found["errors"], found["added"], found["apart"]
    assert errors["absmax"] / errors["NF4"] == pytest.approx(1.2, abs=0.02), "a fifth further off"
    assert 2.4 < added["absmax"][0] / added["NF4"][0] < 2.75, "about two and a half times"
    assert max(errors, key=errors.get) == "FP4" != max(added, key=lambda one: added[one][0])
    for pair, (mean, half) in apart.items():
        worse, better = pair.split(" − ")
        assert mean == pytest.approx(added[worse][0] - added[better][0], abs=1e-6)
        assert (mean > half) == (better == "NF4"), "only that NF4 costs least is decided"
        assert (abs(mean) < half) == (better != "NF4")
    assert {"torch", "transformers"} == set(recorded["versions"]) and recorded["machine"]


def test_an_unknown_scheme_or_source_is_named():
    with pytest.raises(ValueError, match="NF5"):
        rounding.rounded(torch.randn(64), "NF5")
    with pytest.raises(ValueError, match="there"):
        rounding.losses("there")


# --- the layer ------------------------------------------------------------------------------------


def test_the_library_step_is_plain_autograd():
    case = ch04.Frozen.draw(5, (18, 40), 3, 7, 32)
    found = ch04.library_step(case)
    weight = ch04.right_weights(case.codes, case.absmax, case.levels, 32).reshape(18, 40)
    (x, upstream), a, b = case.batch(), case.a.double(), case.b.double()
    x, a, b = (one.double().requires_grad_() for one in (x, a.detach(), b.detach()))
    output = x @ weight.T + 7 / 3 * (x @ a.T @ b.T)
    gradients = torch.autograd.grad(output, [x, a, b], upstream.double())
    for got, right in zip((found.output, found.x, found.a, found.b), (output, *gradients)):
        assert torch.allclose(got, right.reshape(-1), atol=1e-4)


def test_bf16_costs_far_less_than_nf4_on_the_outputs_of_later_tokens_too(model):
    seen = []
    hook = model.get_submodule(LAYER).register_forward_pre_hook(
        lambda module, given: seen.append(given[0][0]))
    with torch.no_grad():
        model(**base_model.load_tokenizer()("The capital of Norway is Oslo.", return_tensors="pt"))
    hook.remove()
    (x,), weight = seen, layer(model)
    ours = rounding.rounded(weight, "NF4")
    right, half = x @ ours.T, (x.bfloat16() @ ours.T.bfloat16()).float()
    for rows in (slice(None), slice(1, None)):
        error = ch04.relative_error((x @ weight.T)[rows], right[rows])
        assert ch04.relative_error(right[rows], half[rows]) < error / 20


def test_the_constants_beyond_4_bits_are_a_lookup_table_a_layer():
    layer = bnb.nn.Params4bit(torch.randn(64, 256), requires_grad=False, quant_type="nf4").to("cpu")
    state = layer.quant_state
    assert 1024 < state.code.nbytes + state.state2.code.nbytes < 1200


def test_two_weights_of_a_block_can_tie_in_the_stored_grid(model):
    blocks = layer(model).reshape(-1, 64).abs()
    ties = (blocks == blocks.amax(1, keepdim=True)).sum(1)
    assert 1 < ties.double().mean() < 1.2 and ties.max() > 1


def test_the_first_token_brings_fp16_near_its_end_and_bf16_not(model):
    tokenizer, largest = base_model.load_tokenizer(), []
    hook = model.get_submodule(LAYER).register_forward_hook(
        lambda module, given, output: largest.append(output[0].abs().amax(1)))
    with torch.no_grad():
        for text in ("The capital", "def f(x):\n    return x", "<|im_start|>user\nHi<|im_end|>\n"):
            model(**tokenizer(text, return_tensors="pt"))
    hook.remove()
    for by_token in largest:
        assert by_token.argmax() == 0 and 65504 / 4 < by_token[0] < 65504
        assert torch.isinf((4 * by_token[0]).half())
        assert torch.isfinite((4 * by_token[0]).bfloat16())


def test_four_bit_layers_overflow_in_fp16_too():
    module = bnb.nn.Linear4bit(64, 8, bias=False, compute_dtype=torch.float16, quant_type="nf4")
    module.weight = bnb.nn.Params4bit(torch.ones(8, 64), requires_grad=False, quant_type="nf4")
    module = module.to("cpu").train()
    four_bit.keep_weights_intact(module)
    assert torch.isinf(module(torch.full((1, 64), 1100.0))).all()
    assert torch.isfinite(module(torch.full((1, 64), 900.0))).all()


# --- hostile data that this chapter's checks may meet ---------------------------------------------

NAN = torch.full((16,), math.nan)
STEP = {"output": NAN, "x": NAN, "learns": [{"shape": [10**400], "gradient": NAN}], "kept": [1e300]}


@pytest.mark.parametrize("value", [
    [NAN, NAN], [torch.ones(3), "absmax"], [[10**400] * 300, [0.0]], [[[1]], [[2]]], [None, None],
    [torch.ones(2, dtype=torch.complex64), torch.ones(2)], NAN, [math.inf] * 16, ["0"] * 16,
    [["NF4", NAN], ["absmax", 0.1]], [["NF4", 1], ["NF4", 1]], {"NF4": {}}, [[{}, 1]],
    [["x" * 10**6, 1]],
    STEP, {**STEP, "learns": {}}, {**STEP, "learns": [1]}, {**STEP, "learns": [{"shape": NAN}]},
    {"output": {}}, {"output": torch.ones(5), "learns": [{}] * 9, "kept": [[]]},
], ids=lambda value: repr(value)[:25])  # fmt: skip
@pytest.mark.parametrize("exercise", ch04.EXERCISES)
def test_data_of_this_chapters_forms_is_a_verdict(exercise, value):
    assert earned(outcomes("04", exercise, Raw(value))) == 0


def test_the_layers_step_is_masked_as_well():
    """forward() runs outside the call, while the answer is made into data."""
    cheat = sheet("04").cells["qlora_layer"].replace(
        "weight = dequantize(self.codes, self.absmax, self.levels, self.block)",
        "from loralab.checks import ch04\n        weight = ch04.right_weights("
        "self.codes, self.absmax, self.levels, self.block).float()")  # fmt: skip
    assert "right_weights" in cheat
    found = outcomes("04", "qlora_layer", sheet("04").student(cheat))
    assert {one.error.kind for one in found} == {"masked"}


# --- figures --------------------------------------------------------------------------------------


def test_code_usage_draws_the_shares():
    levels = {"absmax": ch04.ABSMAX_LEVELS, "NF4": ch04.table("nf4")}
    shares = {name: torch.ones(len(one)) / len(one) for name, one in levels.items()}
    figure = plots.code_usage(shares, levels)
    for axes, (name, one) in zip(figure.axes, levels.items(), strict=True):
        bars = axes.patches
        assert np.allclose([bar.get_height() for bar in bars], 100 / len(one))
        centres = [bar.get_x() + bar.get_width() / 2 for bar in bars]
        assert np.allclose(centres, one) and name in axes.get_title() + axes.get_title("left")
        assert axes.get_xlabel()
        (even,) = axes.lines
        assert even.get_ydata()[0] == pytest.approx(100 / len(one)), "as many shares as levels"
        assert f"1/{len(one)}" in {text.get_text() for text in axes.texts}
    assert "%" in figure.axes[0].get_ylabel()
    plt.close(figure)


def test_error_by_block_has_log_axes_its_data_and_names_at_the_ends():
    figure = plots.error_by_block({"normal": {32: 0.08, 64: 0.09}, "layer": {32: 0.1, 64: 0.2}})
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.xaxis.get_transform().base == 2
    assert [list(line.get_ydata()) for line in axes.lines] == [[8.0, 9.0], [10.0, 20.0]]
    assert "%" in axes.get_ylabel() and "log2" in axes.get_xlabel()
    assert axes.get_yscale() == "log" and "log" in axes.get_ylabel()
    assert [(text.get_text(), text.xy) for text in axes.texts] == [
        ("normal", (64, 9.0)), ("layer", (64, 20.0))]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["32", "64"]
    plt.close(figure)


def test_levels_over_weights_marks_every_level_and_its_error():
    schemes = ch04.three_schemes()
    figure = plots.levels_over_weights(
        torch.linspace(-1, 1, 1000), schemes, {"absmax": 0.11, "NF4": 0.094, "FP4": 0.12}, name="L")
    upper, lower = figure.axes
    marked = [line for line in lower.lines if line.get_marker() == "|"]
    assert [len(line.get_xdata()) for line in marked] == [15, 16, 15]
    said = {text.get_text() for text in lower.texts}
    assert {"11.0 %", "9.4 %", "12.0 %"} <= said
    assert [text for text in said if text.endswith("levels")] == ["3 levels"], "FP4's -0, 0, 0"
    assert any("absmax's levels" in text.get_text() for text in upper.texts)
    assert upper.get_ylabel() and lower.get_xlabel()
    plt.close(figure)


# --- the chapter's text ---------------------------------------------------------------------------


def test_a_released_chapter_has_no_prediction_and_no_solution():
    (path,) = (PROJECT / "notebooks").glob("04_*/04_*.ipynb")
    code = "\n".join(cell.source for cell in nbformat.read(path, 4).cells
                     if cell.cell_type == "code")  # fmt: skip
    written = [line for line in code.splitlines() if line.startswith("my_")]
    assert len(written) >= 7 and all(" = None" in line for line in written)
    assert "bucketize" not in code and "nn.Parameter(" not in code


def test_the_worked_numbers_of_the_stubs_are_right(solution):
    assert "the codes\n    2, -7, 0, 7, 7 and the constants 4, 7, 2" in SOURCE
    codes, absmax = solution["absmax_quantize"](torch.tensor([1.0, -4, 0, 7, 2]), 2)
    assert codes.tolist() == [2, -7, 0, 7, 7] and absmax.tolist() == [4, 7, 2]
    assert "[-1.0, 0.0, 0.436, 1.0]" in SOURCE
    assert solution["nf_levels"](2) == pytest.approx([-1.0, 0.0, 0.436, 1.0], abs=5e-4)
    levels = torch.tensor([-1, 0, 0.3, 1])
    codes, absmax = solution["quantize"](torch.tensor([2.0, -5, 1]), levels, 3)
    assert codes.tolist() == [2, 0, 2] and absmax.tolist() == [5]
    assert solution["bits_per_weight"](128, False) == 4.25
