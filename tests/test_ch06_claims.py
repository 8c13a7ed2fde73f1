"""What chapter 06 says of merges, codes, bytes, clocks and sums, tried on the libraries."""

from __future__ import annotations

import json
import random
import statistics

import matplotlib.pyplot as plt
import pytest
import torch
from answer_sheets import sheet
from peft import LoraConfig, get_peft_model
from torch import nn

from loralab import merging, plots, recorded_runs, training
from loralab.checks import ch06
from loralab.paths import PROJECT

SOURCE = sheet("06").source


@pytest.fixture(scope="module")
def solution():
    """What the solution's cells define."""
    space = dict(sheet("06").imports)
    for code in sheet("06").cells.values():
        exec(code, space)
    return space


def verdicts(solution, name, home):
    rows = solution["rank_merges"](merging.recorded()[name]["hits"], home)
    return {way: (accuracy, worse) for way, accuracy, worse in rows}


# --- what the records say, and the text about them ------------------------------------------------


def test_a_qlora_adapter_fits_the_dequantised_base(solution):
    found = verdicts(solution, "QLoRA", merging.DEQUANTISED)
    assert abs(found[merging.UNMERGED][0] - found[merging.DEQUANTISED][0]) < 0.02
    assert not found[merging.UNMERGED][1]
    assert found[merging.SIXTEEN][1] and found[merging.IN_PLACE][1]
    assert found[merging.IN_PLACE][0] < 0.1


def test_a_lora_adapter_fits_the_16_bit_base(solution):
    found = verdicts(solution, "LoRA", merging.SIXTEEN)
    assert all(found[way][1] for way in merging.WAYS if way != merging.SIXTEEN)


def test_the_figures_errors():
    errors = merging.recorded()["QLoRA"]["errors"]
    assert errors[merging.UNMERGED] == 0 and errors[merging.DEQUANTISED] < 1e-4
    assert 0.1 < errors[merging.SIXTEEN] < 0.4 and 0.5 < errors[merging.IN_PLACE] < 1.1


def test_every_way_was_tried_on_as_many_sentences():
    record = json.loads(merging.RECORDED.read_text("utf-8"))
    assert set(record) == {"machine", "versions", "sentences", "found"}
    for found in merging.recorded().values():
        assert set(found["hits"]) == set(merging.WAYS) == set(found["errors"])
        assert {len(row) for row in found["hits"].values()} == {record["sentences"]}


# --- one real layer -------------------------------------------------------------------------------


def test_the_update_is_smaller_than_the_step_and_does_not_arrive(solution):
    """The layer that the chapter shows, with the reference adapter."""
    import bitsandbytes.functional as bnb

    from loralab import four_bit

    path = "model.layers.11.mlp.down_proj"
    wrapped = merging.on_base(merging.bases()[merging.IN_PLACE](), recorded_runs.REFERENCE)
    layer = wrapped.base_model.model.get_submodule(path)
    update = layer.get_delta_weight("default").float()
    weight, state = layer.base_layer.weight, layer.base_layer.weight.quant_state
    W = bnb.dequantize_4bit(weight.data, state).float()
    codes = four_bit.unpacked(weight.data, W.numel())
    absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    share = solution["moved"](codes, absmax, update.reshape(-1), ch06.nf4(), 64).float().mean()
    assert 0.02 < share < 0.04
    assert 0.04 < update.norm() / W.norm() < 0.06
    merged, warning = merging.merged_in_place(
        merging.bases()[merging.IN_PLACE](), recorded_runs.REFERENCE)
    now = merged.get_submodule(path).weight
    assert "rounding errors" in warning and type(now).__name__ == "Params4bit"
    arrived = bnb.dequantize_4bit(now.data, now.quant_state) - W
    assert 0.9 < (arrived - update).norm() / update.norm() < 1.05
    changed = (four_bit.unpacked(now.data, W.numel()) != codes).float().mean()
    assert share < changed < 1.3 * share


# --- bytes ----------------------------------------------------------------------------------------


def test_the_adapters_file_is_5_mb_in_bf16_and_10_in_fp32(solution):
    from loralab import memory

    arch = memory.describe("smollm2-135m")
    shapes = [(layer.outputs, layer.inputs) for layer in arch.linear]
    both = {name: solution["disk_bytes"](arch.parameters, shapes, 8, 1, dtype)["separate"]
            - arch.parameters * dtype.itemsize
            for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))}  # fmt: skip
    file = (recorded_runs.REFERENCE / training.ADAPTER_FILES[1]).stat().st_size
    assert 0 < file - both["bf16"] < 100_000  # the file's header
    assert 9.5e6 < both["fp32"] < 10.5e6


# --- adapters -------------------------------------------------------------------------------------


@pytest.fixture
def wrapped():
    torch.manual_seed(0)
    model = get_peft_model(nn.ModuleDict({"layer": nn.Linear(24, 20, bias=False)}),
                           LoraConfig(r=3, lora_alpha=6, target_modules=["layer"]))  # fmt: skip
    model.add_adapter("other", LoraConfig(r=3, lora_alpha=12, target_modules=["layer"]))
    for parameter in model.parameters():
        parameter.data.normal_()
    return model


def layer_of(wrapped):
    return next(module for module in wrapped.modules() if hasattr(module, "lora_A"))


def test_half_and_half_is_twice_in_linear_and_once_in_cat(wrapped):
    layer = layer_of(wrapped)
    whole = layer.get_delta_weight("default")
    for kind, times in (("linear", 2.0), ("cat", 1.0)):
        wrapped.base_model.add_weighted_adapter(["default"] * 2, [0.5, 0.5], kind, kind)
        assert torch.allclose(layer.get_delta_weight(kind), times * whole, rtol=1e-4, atol=1e-4)


def test_cat_is_the_sum_and_has_the_sum_of_the_ranks_and_linear_neither(wrapped, solution):
    layer = layer_of(wrapped)
    one, two = layer.get_delta_weight("default"), layer.get_delta_weight("other")
    wanted = 0.7 * one - 0.4 * two
    for kind in ("cat", "linear"):
        wrapped.base_model.add_weighted_adapter(["default", "other"], [0.7, -0.4], kind, kind)
    assert torch.allclose(layer.get_delta_weight("cat"), wanted, atol=1e-4)
    assert torch.linalg.matrix_rank(layer.get_delta_weight("cat")) == 6
    assert torch.linalg.matrix_rank(layer.get_delta_weight("linear")) == 3
    assert (layer.get_delta_weight("linear") - wanted).norm() > 0.3 * wanted.norm()
    pairs = [(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])
             for name in ("default", "other")]  # fmt: skip
    A, B = solution["combine"](pairs, [0.7, -0.4])
    assert torch.allclose(B @ A, wanted, atol=1e-4)


def test_linear_refuses_adapters_of_different_ranks(wrapped):
    wrapped.add_adapter("wide", LoraConfig(r=4, target_modules=["layer"]))
    with pytest.raises(ValueError, match="same r"):
        wrapped.base_model.add_weighted_adapter(["default", "wide"], [1, 1], "sum", "linear")


def test_the_output_says_whose_adapter_it_is(tmp_path, capsys):
    assert recorded_runs.adapter(tmp_path) == recorded_runs.REFERENCE
    assert "reference adapter stands in" in capsys.readouterr().out
    for name in training.ADAPTER_FILES:
        (tmp_path / name).touch()
    assert recorded_runs.adapter(tmp_path) == tmp_path
    assert "Your own adapter" in capsys.readouterr().out


# --- what the checks draw -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_hits_hold_every_verdict_far_from_its_border(seed):
    hits = ch06.some_hits(str(seed), list("abcde"), random.Random(seed).choice((110, 150)))
    lows = [ch06._lower(hits["a"], hits[name]) for name in "bcde"]
    assert lows[0] > 0 and lows[1] > 0 and lows[2] < 0 and lows[3] < 0


@pytest.mark.parametrize("seed", range(12))
def test_codes_move_and_stay_and_no_mistake_is_right(seed):
    one = ch06.Coded.draw(str(seed), 400, 64, ch06.nf4())
    right = one.right()
    assert 0.05 < right.float().mean() < 0.95
    assert not any(torch.equal(right, wrong) for _, wrong in one.mistakes())


@pytest.mark.parametrize("seed", range(12))
def test_no_mistake_about_time_is_near_the_right_one(seed):
    one = ch06.Timed.draw(str(seed), 3, 7)
    assert min(abs(one.right() - wrong) for _, wrong in one.mistakes()) > 2.5 * ch06.LAUNCH


def test_a_made_up_device_works_while_run_has_returned():
    device = ch06.Device([2.0, 3.0])
    began = device.clock()
    device.run()
    assert device.clock() - began == pytest.approx(ch06.LAUNCH)
    device.synchronise()
    assert device.clock() - began == pytest.approx(2 + ch06.LAUNCH)
    device.run()
    device.synchronise()
    assert device.clock() - began == pytest.approx(5 + 2 * ch06.LAUNCH)


# --- the figures, and the text --------------------------------------------------------------------


def test_the_figures_show_every_way():
    hits = {way: [True] * i + [False] * (10 - i) for i, way in enumerate(merging.WAYS, 4)}
    errors = dict(zip(merging.WAYS, (0.0, 3e-3, 0.22, 0.73), strict=True))
    figure = plots.merges(hits, errors)
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == list(merging.WAYS)
    assert right.get_xscale() == "log" and "share of the adapter's effect" in right.get_xlabel()
    torch.manual_seed(0)
    figure = plots.updates_against_steps(torch.randn(2000) / 100, torch.rand(2000) / 10, name="x")
    assert "log" in figure.axes[0].get_xlabel()
    plt.close("all")


def test_the_stub_of_moved_has_a_right_example(solution):
    levels, absmax, code = torch.tensor([-1.0, 0, 1]), torch.tensor([4.0]), torch.tensor([1])
    for update, right in ((1.9, False), (2.1, True)):
        found = solution["moved"](code.to(torch.uint8), absmax, torch.tensor([update]), levels, 64)
        assert found.tolist() == [right]


def test_the_median_does_not_mind_one_slow_call():
    assert statistics.median([1.0, 1, 1, 1, 9]) == 1


def test_the_second_adapter_is_small_and_names_no_machine():
    config, weights = (merging.SECOND_ADAPTER / name for name in training.ADAPTER_FILES)
    assert weights.stat().st_size < 1_000_000
    assert json.loads(config.read_text())["base_model_name_or_path"] == "SmolLM2-135M-Instruct"
    assert str(PROJECT) not in config.read_text()


def test_a_sum_of_two_adapters_keeps_neither_task_whole():
    from loralab import base_model, evaluation
    from loralab.quiet import quiet
    from loralab.tasks.language import Language
    from loralab.tasks.sql import Shop

    tokenizer = base_model.load_tokenizer()
    tasks = [[{"prompt": task.prompt(source), "completion": f" {target}"}
              for source, target in task.pairs(12, "test")]
             for task in (Language("course"), Shop("course"))]  # fmt: skip
    served = merging.on_base(merging.bases()[merging.UNMERGED](), recorded_runs.REFERENCE)
    with quiet():
        served.load_adapter(str(merging.SECOND_ADAPTER), "sql")
    served.add_weighted_adapter(["default", "sql"], [1.0, 1.0], "cat", "cat")
    right = {}
    for name in ("default", "sql", "cat"):
        served.set_adapter(name)
        right[name] = [sum(evaluation.exact_match(served, tokenizer, some)) for some in tasks]
    assert right["default"][0] >= 8 and right["default"][1] == 0
    assert right["sql"][0] == 0 and right["sql"][1] >= 11
    assert right["cat"][0] < right["default"][0] and right["cat"][1] <= 1
