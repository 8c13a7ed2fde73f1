"""What chapter 07's text says, and what its checks rest on, held against the libraries."""

from __future__ import annotations

import math
import re
from collections import Counter

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from answer_sheets import sheet
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from trusting import Raw, earned, outcomes

from autograder.checks import ch07 as trusted
from loralab import claims, clinic, memory, plots, recorded_runs, training
from loralab.checks import ch07
from loralab.paths import PROJECT

SOURCE = (PROJECT / "solutions" / "07_fact_check.py").read_text("utf-8")


@pytest.fixture(scope="module")
def solution():
    one = sheet("07")
    space = dict(one.imports)
    for code in one.cells.values():
        exec(code, space)
    return space


# --- the claims -----------------------------------------------------------------------------------


def all_right():
    return {
        **ch07.memory_right("llama-2-7b", 1, 512),
        **ch07.count_right("llama-3.2-1b", 4096, 8, 32),
        **ch07.Numbers.draw("any", 2).right(),
        **ch07.Merge.draw("any", claims.recorded_accuracy()).right(),
    }


def test_one_holds_five_are_wrong_seven_depend():
    assert "one simply holds, five are wrong and seven need a setting" in SOURCE
    right = all_right()
    assert list(right) and set(right) == set(claims.CLAIMS) == set(trusted.LABELS)
    verdicts = Counter(one.verdict for one in right.values())
    assert verdicts == {"holds": 1, "wrong": 5, "depends": 7}
    for one in right.values():
        assert bool(one.settings) == (one.verdict == "depends")
        assert set(one.settings) <= set(claims.SETTINGS)
    assert all(f'`"{word}"`' in SOURCE for word in (*claims.VERDICTS, *claims.SETTINGS))


def test_verdicts_follow_the_rule_of_five_per_cent():
    for name, one in all_right().items():
        claimed = claims.CLAIMS[name].number
        if claimed is not None:
            assert (abs(one.number / claimed - 1) <= 0.05) == (one.verdict == "holds"), name


def test_claims_that_depend_hold_under_other_settings():
    six = memory.estimate("llama-2-7b", batch=5, seq=512).total / memory.GB
    assert six == pytest.approx(6, rel=0.05)
    assert ch07.count_right("llama-2-7b", 4096, 8, 8)["product"].number == 1
    small, large = (memory.estimate("llama-2-7b", "lora", rank=r, targets=ch07.ATTENTION).total
                    for r in (8, 64))  # fmt: skip
    assert large / small - 1 == pytest.approx(0.025, abs=5e-4)
    extra = ch07.memory_right("llama-2-7b", 1, 512)["rank_64"].number
    assert "half as much again" in SOURCE and extra == pytest.approx(48, abs=1)
    weights, update = clinic.small_update("any")
    merged = (weights + update).bfloat16().float()
    assert (merged - weights - update).norm() < 0.25 * update.norm(), "a 16-bit base holds it"


@pytest.mark.parametrize("model", ["llama-3.2-1b", "qwen2.5-0.5b"])
def test_the_counts_are_pefts(model):
    config = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    wrapped = get_peft_model(memory.build(model), config)
    right = ch07.count_right(model, 4096, 8, 32)
    assert wrapped.get_nb_trainable_parameters()[0] == right["printed"].number
    layer = next(one for one in wrapped.modules() if hasattr(one, "lora_A"))
    assert layer.scaling["default"] == right["product"].number == 4


def test_the_lessons_call_raises():
    with pytest.raises(TypeError, match="load_in_8bit"):
        AutoModelForCausalLM.from_pretrained(clinic.Trained("any").base, load_in_8bit=True)


def test_fp16_overflows_where_bf16_does_not():
    case = ch07.Numbers.draw("any", 1)
    over = (case.x.half() @ case.weights.half().T).isinf().sum().item()
    assert over == case.right()["fp16"].number > 0
    assert (case.x.bfloat16() @ case.weights.bfloat16().T).isfinite().all()
    assert case.x.half().isfinite().all()


@pytest.mark.parametrize("name", [*trusted.MODELS, *trusted.GROUPED])
def test_models_that_are_drawn_tell_the_mistakes_apart(name):
    held = ch07.memory_right(name, 2, 640)["three_times"]
    if name in trusted.MODELS:
        assert held.typical["peak"] > 1.02 * held.number
    right = ch07.count_right(name, 640, 4, 5)["printed"]
    assert (right.typical["square"] != right.number) or name not in trusted.GROUPED


def test_what_the_letter_says_is_measured():
    low, high = (ch07.memory_right("llama-2-7b", *case)["table"].number
                 for case in ((1, 512), (8, 2048)))  # fmt: skip
    assert (round(low, 1), round(high, 1)) == (4.6, 16.0)
    assert "is 4.6 GB" in SOURCE and "it is 16.0 GB" in SOURCE and "weights are 3.9 GB" in SOURCE
    held = memory.estimate("llama-2-7b").held
    weights = sum(held[part] for part in ("weights", "weights_4bit", "constants")) / memory.GB
    assert weights == pytest.approx(3.9, abs=0.05)
    assert "for every further 1,400 tokens" in SOURCE
    assert (8 * 2048 - 512) / (high - low) == pytest.approx(1400, rel=0.03)


def test_the_recorded_runs_are_as_told():
    runs = recorded_runs.recorded()
    slow, healthy = runs["QLoRA, learning rate 2e-5"], runs["QLoRA"]
    assert "at the end of 160 steps the loss is 8.5, where a healthy one has 0.07" in SOURCE
    assert (slow.config.steps, slow.config.learning_rate) == (160, 2e-5)
    assert round(slow.history[-1][1], 1) == 8.5 and round(healthy.history[-1][1], 2) == 0.07
    assert "LoRA's mean is *below* QLoRA's here, in two runs each" in SOURCE
    accuracy = claims.recorded_accuracy()
    assert sum(accuracy["LoRA"]) < sum(accuracy["QLoRA"])
    assert len(accuracy["LoRA"]) == len(accuracy["QLoRA"]) == 2
    wide, narrow = (runs[name].trainable for name in ("QLoRA", "QLoRA, q and v, rank 42"))
    assert narrow == pytest.approx(wide, rel=0.02)


def test_the_worked_numbers_of_the_stubs_are_right(solution):
    found = solution["memory_rulings"]("gpt2", 1, 512)
    assert "the numbers are 1.99, 0.53 and 18.9" in SOURCE
    assert [float(f"{one[1]:.3g}") for one in found.values()] == [1.99, 0.525, 18.9]
    found = solution["count_rulings"]("smollm2-135m", 64, 4, 12)
    assert "they are 8, 3, 1.5 and 230,400" in SOURCE
    assert [one[1] for one in found.values()] == [8, 3, 1.5, 230_400]
    found = solution["library_rulings"](
        clinic.Trained("one", layers=1).base, *clinic.with_outliers("one"))
    assert "For a Llama of one block the first is 7" in SOURCE and found["eight_bit"][1] == 7
    runs = {"QLoRA": [0.5, 0.7], "q and v": [0.4], "LoRA": [0.1]}
    found = solution["quality_rulings"](runs, *clinic.small_update("one"))
    assert found["targets"][1] == pytest.approx(0.2)
    given = torch.tensor([[5, 6, 7, 2, 2]]), torch.tensor([[1, 1, 1, 1, 0]]), torch.tensor([2])
    assert "[[-100, -100, 7, 2, -100]]" in SOURCE
    assert solution["make_labels"](*given).tolist() == [[-100, -100, 7, 2, -100]]


# --- the patients ---------------------------------------------------------------------------------


def test_half_of_phi_3s_layers_are_missed(solution):
    linear = {layer.path for layer in memory.describe("phi-3-mini-4k").linear}
    report = ch07.adapted_report(solution["adapt_broken"](memory.build("phi-3-mini-4k")))
    assert len(report["paths"]) * 2 == len(linear)
    assert "A Llama block has 7 such layers, a Phi-3 block 4" in SOURCE and len(linear) == 4 * 32


def last(losses):
    return sum(losses[-5:]) / 5


def test_a_higher_rank_does_nothing_until_alpha_follows(solution):
    def trained(make, r):
        torch.manual_seed(0)
        return last(clinic.train(make(clinic.tiny_llama(), r), 3e-3))

    broken = [trained(solution["widen_broken"], r) for r in (8, 64)]
    repaired = [trained(solution["widen"], r) for r in (8, 64)]
    assert broken[1] == pytest.approx(broken[0], abs=0.15)
    assert repaired[1] < repaired[0] - 0.5


def test_the_default_learning_rate_learns_nothing_and_usual_ones_do():
    assert "its loss starts at 6.2" in SOURCE
    config = training.sft_config(steps=1, batch_size=1, learning_rate=1)
    assert type(config).__dataclass_fields__["learning_rate"].default == 2e-5
    assert ch07.last_loss(2e-5, 40) > 6
    for rate in (1e-3, 2e-3, 3e-3, 1e-2):
        assert ch07.last_loss(rate, 40) < ch07.LEARNT - 0.3, rate
    assert ch07.last_loss(5e-4, 40) > ch07.LEARNT + 0.3, "nothing lies on the border"


def test_the_tiny_template_is_the_base_models_without_its_system_message():
    from loralab import base_model

    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    ours, theirs = (one.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
                    for one in (clinic.tokenizer(), base_model.load_tokenizer()))  # fmt: skip
    assert ours == theirs


def test_bytes_survive_the_tokenizer():
    tokenizer = clinic.tokenizer()
    text = "Hällo, ‖W‖ 日本\n" + clinic.asked("x")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_the_faults_of_the_labels_are_the_two_that_are_named(solution):
    batch = clinic.padded([("ab", "c"), ("abc", "de")])
    labels, right = solution["labels_broken"](**batch), ch07.right_labels(batch)
    ends = batch["input_ids"] == clinic.tokenizer().eos_token_id
    assert (labels[ends] == -100).all() and (right[ends] != -100).sum() == 2
    assert (labels != -100).sum() > (right != -100).sum(), "the prompt is in the loss"
    shown = clinic.marked(batch["input_ids"][0].tolist(), right[0].tolist())
    assert shown.startswith("ab»c<|im_end|>«")


def test_a_merge_into_4_bits_erases_the_adapter_and_others_do_not(solution):
    patient = clinic.Trained("patient")
    plain = patient.model()
    assert patient.error(solution["deploy_broken"](patient.base, patient.adapter)) > 60
    unrounded = PeftModel.from_pretrained(patient.model(), patient.adapter).merge_and_unload()
    beside = patient.logits(patient.wrapped())
    effect = (beside - patient.logits(plain)).norm()
    assert (patient.logits(unrounded) - beside).norm() < 1e-3 * effect
    if training.nf4_config().bnb_4bit_compute_dtype == torch.float32:
        assert patient.error(solution["deploy"](patient.base, patient.adapter)) < 0.1
        assert "by ten times the adapter's effect" in SOURCE
        assert patient.error(unrounded) == pytest.approx(1000, rel=0.05)
    for path, update in patient.updates().items():
        share = update.norm() / plain.get_submodule(path).weight.norm()
        assert share.item() == pytest.approx(0.01, rel=1e-3)


def test_patients_are_the_same_in_every_process():
    one, other = clinic.Trained("x", 3, 9).updates(), clinic.Trained("x", 3, 9).updates()
    assert all(torch.equal(one[path], other[path]) for path in one)
    assert float(one["model.layers.0.self_attn.q_proj"].double().abs().sum()) > 0
    state = torch.get_rng_state()
    clinic.tiny_llama("any")
    assert torch.equal(state, torch.get_rng_state())


# --- hostile data of this chapter's forms ---------------------------------------------------------

NAN = torch.full((3, 3), math.nan)


@pytest.mark.parametrize("value", [
    {"three_times": ("wrong", NAN), "times_250": ["holds", "256"], "eight_bit": [[], 1]},
    {name: ["depends", 1.0, []] for name in claims.CLAIMS},
    {name: ["depends", 10**400, "batch"] for name in claims.CLAIMS},
    {name: [["depends"], None] for name in claims.CLAIMS},
    {"paths": 1, "settings": NAN}, {"paths": [[]], "settings": [[None]], "others": {}},
    {"layers": [{"path": "x", "A": NAN}]}, {"layers": 5}, {"layers": [None] * 4},
    {"learning_rate": NAN, "max_steps": []}, {"learning_rate": 1e-3, "max_steps": "40"},
    {"learning_rate": 1e300, "max_steps": 45}, {"learning_rate": -1, "max_steps": 45},
    {"prompt": [{"role": "user", "content": 5}], "completion": []},
    {"prompt": [{"role": "user"}], "completion": "x"}, {"text": ""}, {"messages": [{}] * 100},
    {"prompt": [{"role": "{{ 1/0 }}", "content": "{% raise %}"}],
     "completion": [{"role": "\ud800", "content": "\ud800"}]},
    {"weights": NAN, "adapters": 0}, {"weights": {}, "adapters": 0, "in_few_bits": NAN},
    {"weights": {"model.layers.0.self_attn.q_proj": NAN}, "adapters": 0},
    NAN, torch.zeros(3, 30, dtype=torch.bool), [[10**400] * 3] * 3,
], ids=lambda value: repr(value)[:30])  # fmt: skip
@pytest.mark.parametrize("exercise", ch07.EXERCISES)
def test_data_of_this_chapters_forms_is_a_verdict(exercise, value):
    assert earned(outcomes("07", exercise, Raw(value))) == 0


# --- figure and notebook --------------------------------------------------------------------------


def test_the_figure_shows_every_claim_and_each_ratio():
    right = {name: (one.verdict, one.number, *one.settings[:1])
             for name, one in all_right().items()}  # fmt: skip
    figure = plots.claimed_and_measured(right, {"table": ("depends", 12.0, "batch")})
    axes, words = figure.axes
    assert {label.get_text() for label in axes.get_yticklabels()} == {
        one.says for one in claims.CLAIMS.values()}
    drawn = [list(line.get_xdata()) for line in axes.lines if line.get_marker() in "oDX"]
    numbered = [name for name, one in claims.CLAIMS.items() if one.number]
    assert len(drawn) == len(numbered) == 6
    assert [right["table"][1] / 6, 2.0] in drawn
    said = [text.get_text() for text in words.texts]
    assert "depends: hardware" in said and "851,968 trained" in said
    assert axes.get_xscale() == "log" and "log" in axes.get_xlabel()
    plt.close(figure)


def test_a_released_chapter_has_no_prediction_and_no_repair():
    (path,) = (PROJECT / "notebooks").glob("07_*/07_*.ipynb")
    cells = nbformat.read(path, 4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    written = re.findall(r"^my_.*", code, re.M)
    assert len(written) >= 3 and all(" = None" in line for line in written)
    assert "cumsum" not in code and "all-linear" not in code and "3e-3, use_cpu" not in code
    assert "Rubric" not in "".join(cell.source for cell in cells)
