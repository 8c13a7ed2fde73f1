"""Adapters handed in: the honest are scored by what they translate, all others get a message."""

from __future__ import annotations

import json
import os
import pickle
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from autograder.artifacts import adapter_files, evaluate, trained_adapter
from autograder.artifacts.adapter_files import CONFIG, WEIGHTS, BadAdapter, LoraSettings
from autograder.checks import Personal
from loralab import recorded_runs, training
from loralab.checks import WrongAnswer
from loralab.checks.ch05 import EXERCISES

SYMPTOMS = EXERCISES["trained_adapter"].symptoms
REFERENCE = {
    CONFIG: recorded_runs.REFERENCE / "adapter_config.json",
    WEIGHTS: recorded_runs.REFERENCE / "adapter_model.safetensors",
}
CLASS = Personal(secret="ab" * 32, student="ada")


@dataclass
class Graded:
    """What a submission earned, and what its student is told."""

    points: float = 0.0
    told: set[str] = field(default_factory=set)


def grade(files, personal=CLASS, **parameters) -> Graded:
    student = SimpleNamespace(files=files, parameters=parameters)
    result = Graded()
    for part in trained_adapter.parts(student, random.Random(0), personal):
        try:
            part.check()
            result.points += part.points
        except WrongAnswer as wrong:
            assert wrong.symptom and wrong.symptom.sees
            result.told.add(wrong.symptom.sees)
    return result


def told(files, personal=CLASS, **parameters) -> str:
    """The one thing that is said about files that earn nothing."""
    result = grade(files, personal, **parameters)
    assert result.points == 0 and len(result.told) == 1
    return result.told.pop()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference():
    return adapter_files.read_adapter(REFERENCE)


@pytest.fixture
def no_evaluation(monkeypatch):
    """What is refused is refused before the model is loaded or run."""
    monkeypatch.setattr(evaluate, "right_answers", lambda *_, **__: pytest.fail("evaluated"))


CHANGED = {"r": 1, "lora_alpha": 2, "target_modules": ["k_proj"]}


@pytest.fixture
def hand_in(tmp_path):
    """Files of a small adapter of rank 1 on k_proj, as PEFT writes them, with changes."""

    def write(config=None, tensors=None, raw_config=None, raw_weights=None):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        settings = {**json.loads(REFERENCE[CONFIG].read_text()), **CHANGED, **(config or {})}
        text = json.dumps(settings).encode() if raw_config is None else raw_config
        (folder / "adapter_config.json").write_bytes(text)
        data = save(small() if tensors is None else tensors) if raw_weights is None else raw_weights
        (folder / "adapter_model.safetensors").write_bytes(data)
        return {CONFIG: folder / "adapter_config.json",
                WEIGHTS: folder / "adapter_model.safetensors"}

    return write


def small(r=1, targets=("k_proj",), dtype=torch.bfloat16, b=0.1) -> dict[str, torch.Tensor]:
    shapes = adapter_files._shapes(LoraSettings(r, 2.0, frozenset(targets)))
    return {
        name: torch.full(shape, b if "lora_B" in name else 0.01, dtype=dtype)
        for name, shape in shapes.items()
    }


# --- what honest work earns -----------------------------------------------------------------------


def test_the_reference_adapter_gets_full_marks():
    assert grade(REFERENCE) == Graded(5.0)
    assert grade(REFERENCE, LANGUAGE="course", MODEL_ID="embedded").points == 5.0
    assert grade(REFERENCE, replace(CLASS, secret=""), LANGUAGE="course").points == 5.0


def test_an_adapter_of_another_language_earns_nothing():
    assert told(REFERENCE, LANGUAGE="ada's own") == SYMPTOMS["other_language"].sees
    personal = replace(CLASS, language="given to ada")
    said = told(REFERENCE, personal, LANGUAGE="course")
    assert "the language that your class gave you" in said and "given to ada" not in said
    assert told(REFERENCE, personal, LANGUAGE="given to ada") == SYMPTOMS["other_language"].sees
    # The class's language decides, whatever the notebook says of it.
    assert grade(REFERENCE, replace(CLASS, language="course"), LANGUAGE="x").points == 5.0


def test_points_rise_with_the_share_that_is_right(hand_in):
    """The reference with a smaller alpha knows part of the language."""
    tensors = load_file(REFERENCE[WEIGHTS])
    config = json.loads(REFERENCE[CONFIG].read_text())
    earned = []
    for alpha in (4, 9):
        files = hand_in({**config, "lora_alpha": alpha}, tensors)
        result = grade(files)
        earned.append(result.points)
        assert result.told <= {SYMPTOMS["short"].sees, SYMPTOMS["other_language"].sees}
    assert earned[0] == 0 and 0 < earned[1] < 5


def test_untrained_and_random_adapters_earn_nothing(hand_in):
    everywhere = sorted(json.loads(REFERENCE[CONFIG].read_text())["target_modules"])
    settings = {"r": 4, "lora_alpha": 8, "target_modules": everywhere}
    assert told(hand_in(settings, small(4, everywhere, b=0.0))) == SYMPTOMS["untrained"].sees
    assert told(hand_in(settings, small(4, everywhere, b=1e-3))) == SYMPTOMS["untrained"].sees
    torch.manual_seed(0)
    noise = {name: torch.randn_like(one) * 0.1 for name, one in small(4, everywhere).items()}
    assert told(hand_in(settings, noise)) == SYMPTOMS["other_language"].sees
    huge = {name: torch.full_like(one, 900) for name, one in small(4, everywhere).items()}
    assert told(hand_in({**settings, "lora_alpha": 1e4}, huge)) == SYMPTOMS["other_language"].sees


def test_the_adapter_is_tried_once_for_all_parts(monkeypatch):
    calls = []
    monkeypatch.setattr(evaluate, "right_answers", lambda *_, **__: calls.append(1) or 20)
    assert grade(REFERENCE) == Graded(3.0, {SYMPTOMS["short"].sees})
    assert len(calls) == 1


def test_the_luck_of_the_draw_costs_a_good_adapter_nothing():
    """True accuracy 0.6, 64 sentences: at least 99 of 100 draws give full marks."""
    from math import ceil, comb

    needed = ceil(trained_adapter.FULL * trained_adapter.SENTENCES)
    n = trained_adapter.SENTENCES
    assert sum(comb(n, k) * 0.6**k * 0.4 ** (n - k) for k in range(needed)) < 0.01


def test_the_parts_are_worth_what_the_exercise_is():
    source = Path(trained_adapter.__file__).parents[2] / "solutions" / "05_qlora_training.py"
    assert 'check="trained_adapter" points=5' in source.read_text("utf-8")
    student = SimpleNamespace(files={}, parameters={})
    assert sum(p.points for p in trained_adapter.parts(student, random.Random(0), CLASS)) == 5


def test_hidden_sentences_follow_the_secret_alone():
    def drawn(personal, seed=0, language="course"):
        exam = trained_adapter.exam(language, personal, random.Random(seed))
        return [example["prompt"].splitlines()[0] for example in exam]

    from loralab.tasks import in_split

    assert drawn(CLASS) == drawn(replace(CLASS, student="bela"), 1, "another")
    assert drawn(CLASS) != drawn(replace(CLASS, secret="cd" * 32))
    assert drawn(Personal(), 0) != drawn(Personal(), 1)
    assert all(in_split(english, "exam") for english in drawn(CLASS))
    assert len(set(drawn(CLASS))) == trained_adapter.SENTENCES


@pytest.mark.parametrize(
    "seed",
    [True, 1.5, None, ["course"], "x" * 10_000, "half \ud800", "a\0b", 10**5000],
    ids=["bool", "float", "none", "list", "long", "surrogate", "nul", "huge"],
)
def test_a_language_that_cannot_be_one(seed, no_evaluation):
    assert "LANGUAGE" in told(REFERENCE, LANGUAGE=seed)


# --- it is the same model ------------------------------------------------------------------------


def test_it_agrees_with_peft_on_the_four_bit_base(reference):
    """fp32 exactly, but for sentences that hang by a thread; bf16 with its second look as well."""
    from loralab import evaluation

    examples = trained_adapter.exam("course", CLASS, random.Random(0))[:24]
    model, tokenizer = training.load_adapter(recorded_runs.REFERENCE)
    right = sum(evaluation.exact_match(model, tokenizer, examples))
    path = "model.layers.7.mlp.down_proj"
    layer = model.base_model.model.get_submodule(path).base_layer
    import bitsandbytes.functional as bnb

    stored = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float().cpu()
    base = evaluate.base(evaluate.fast_dtype())
    assert torch.equal(base.weight(path), stored)
    for dtype in {torch.float32, evaluate.fast_dtype()}:
        hits = evaluate.right_answers(reference, examples, len(examples) + 1, dtype)
        assert abs(hits - right) <= 1
    assert 12 <= right < 24, "both outcomes occur"


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_pefts(rslora):
    from peft import LoraConfig, get_peft_model

    layer = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["0"], use_rslora=rslora)
    wrapped = get_peft_model(layer, config).base_model.model[0]
    assert LoraSettings(3, 7.0, frozenset(), rslora).scale == pytest.approx(
        wrapped.scaling["default"]
    )


def test_nothing_of_one_adapter_is_left_for_the_next(reference):
    base = evaluate.base(evaluate.fast_dtype())
    path = "model.layers.3.self_attn.q_proj"
    weight = base._layers[path].weight
    none = replace(reference, pairs={})
    base.carry(none)
    before = weight.clone()
    base.carry(reference)
    assert not torch.equal(weight, before)
    base.carry(none)
    assert torch.equal(weight, before)


def test_threads_are_given_back(reference):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        evaluate.right_answers(reference, trained_adapter.exam("x", CLASS, random.Random(0))[:2], 3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- what is refused, and what is said -----------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"target_modules": "all-linear"},
        {"r": 3, "use_rslora": True, "lora_alpha": 2.5},
        {"lora_dropout": 0.1, "init_lora_weights": "gaussian", "base_model_name_or_path": "/x/y"},
        {"task_type": None, "auto_mapping": adapter_files._AUTO_MAPPING},
        {"a_setting_of_a_later_peft": None, "another": False},
    ],
)
def test_plain_adapters_are_read_whatever_does_not_matter(change, hand_in):
    names = change.get("target_modules", ["k_proj"])
    targets = adapter_files._all_names() if names == "all-linear" else names
    rank = change.get("r", 1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        adapter = adapter_files.read_adapter(hand_in(change, small(rank, targets, dtype)))
        assert adapter.settings.r == rank and adapter.settings.targets == set(targets)
        assert len(adapter.pairs) == 30 * len(targets)
        assert {a.shape for a, _ in adapter.pairs.values()} >= {(rank, 576)}


def test_what_peft_writes_by_itself_is_read(tmp_path):
    from peft import LoraConfig

    LoraConfig(r=1, lora_alpha=2, target_modules=["k_proj"]).save_pretrained(tmp_path)
    settings = adapter_files.read_config((tmp_path / "adapter_config.json").read_bytes())
    assert settings == LoraSettings(1, 2.0, frozenset({"k_proj"}))


CANARY = {"base_model_class": "Canary", "parent_library": "canary_module"}


@pytest.mark.parametrize(
    "change, word",
    [
        ({"r": 0}, "r has to be"),
        ({"r": 257}, "r has to be"),
        ({"r": True}, "r has to be"),
        ({"r": 8.0}, "r has to be"),
        ({"r": 10**400}, "r has to be"),
        ({"r": None}, "r has to be"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": -16}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"target_modules": []}, "list of layers' names"),
        ({"target_modules": ".*proj"}, "list of layers' names"),
        ({"target_modules": ["k_proj", {}]}, "list of layers' names"),
        ({"target_modules": ["k_proj", "lm_head"]}, "the head"),
        ({"target_modules": ["c_attn"]}, SYMPTOMS["other_base"].sees),
        ({"use_rslora": 1}, "use_rslora"),
        ({"peft_type": "IA3"}, "LoRA"),
        ({"peft_type": ["LORA"]}, "LoRA"),
        ({"bias": "all"}, "bias"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"k_proj": 9}}, "rank_pattern"),
        ({"alpha_pattern": {"k_proj": 9}}, "alpha_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"layer_replication": [[0, 30]]}, "layer_replication"),
        ({"megatron_config": {"x": 1}}, "megatron_config"),
        ({"fan_in_fan_out": 0}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": ["pissa"]}, "init_lora_weights"),
        ({"auto_mapping": CANARY}, "auto_mapping"),
        ({"auto_map": {"AutoModel": "canary_module.Canary"}}, "auto_map"),
        ({"<b>bold</b>": 1}, "A setting"),
    ],
)
def test_settings_that_are_refused(change, word, hand_in, no_evaluation):
    assert word in told(hand_in(change))


def test_no_code_that_the_configuration_names_is_imported(hand_in, tmp_path, monkeypatch):
    (tmp_path / "canary_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for change in ({"auto_mapping": CANARY}, {"auto_map": {"AutoModel": "canary_module.Canary"}},
                   {"base_model_name_or_path": str(tmp_path), "revision": "canary_module"}):
        grade(hand_in(change))
    assert "canary_module" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"3", b"{", b"\xff\xfe", b"[" * 60_000, b'{"a":' * 12_000,
     b'{"r": NaN}', b'{"r": ' + b"9" * 60_000 + b"}", b"\0" * 100],
    ids=lambda text: repr(text[:8]),
)  # fmt: skip
def test_a_configuration_that_is_no_object(text, hand_in, no_evaluation):
    assert "adapter_config.json" in told(hand_in(raw_config=text))


def test_files_that_are_far_too_large_are_not_read(hand_in, no_evaluation):
    for name in (CONFIG, WEIGHTS):
        files = hand_in()
        os.truncate(files[name], 1 << 40)  # sparse
        assert "at most" in told(files)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_what_is_no_plain_file_is_not_opened(name, hand_in, tmp_path, no_evaluation):
    files = hand_in()
    files[name].rename(tmp_path / "real")
    files[name].symlink_to(tmp_path / "real")
    assert "is a link" in told(files)
    files[name].unlink()
    os.mkfifo(files[name])
    assert "plain file" in told(files)
    files[name].unlink()
    files[name].mkdir()
    assert "plain file" in told(files)
    files[name].rmdir()
    assert told(files) == SYMPTOMS["missing"].sees


def test_files_that_are_missing(hand_in, no_evaluation):
    files = hand_in()
    missing = SYMPTOMS["missing"].sees
    assert told({}) == told({"adapter/other.txt": files[CONFIG]}) == missing
    for handed_in in (CONFIG, WEIGHTS):
        assert told({handed_in: files[handed_in]}).startswith(f"{handed_in} was handed in")
    as_bin = {CONFIG: files[CONFIG], "adapter/adapter_model.bin": files[WEIGHTS]}
    assert "pickle" in told(as_bin)


class Bomb:
    def __reduce__(self):
        return (sys.exit, ("unpickled",))


def test_pickles_are_never_opened(hand_in, tmp_path, no_evaluation):
    torch.save(Bomb(), tmp_path / "saved.bin")
    zipped = (tmp_path / "saved.bin").read_bytes()
    for data in [zipped, *(pickle.dumps(Bomb(), protocol) for protocol in (2, 3, 4, 5))]:
        assert "pickle" in told(hand_in(raw_weights=data))
    assert "no safetensors file" in told(hand_in(raw_weights=pickle.dumps(Bomb(), 0)))


def one_header(entries: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


NAME = "base_model.model.model.layers.0.self_attn.k_proj.lora_{}.weight"
OVERLAPPING = {
    NAME.format("A"): {"dtype": "BF16", "shape": [1, 576], "data_offsets": [0, 1152]},
    NAME.format("B"): {"dtype": "BF16", "shape": [192, 1], "data_offsets": [0, 384]},
}
OVERFLOWING = {
    NAME.format("A"): {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 2**63]}
}
MANY = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}


@pytest.mark.parametrize(
    "data, word",
    [
        (b"", "empty"),
        (b"\x01", "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (one_header({}), "target_modules"),
        (one_header(b"{" * 50_000), "damaged"),
        (one_header(b'{"a":' * 40_000), "damaged"),
        (one_header({}, length=2**63), "damaged"),
        (one_header({}, length=200_000), "damaged"),
        (one_header(OVERLAPPING, bytes(1152)), "damaged"),
        (one_header(OVERFLOWING, bytes(64)), "damaged"),
        (one_header(MANY), "header"),
        (one_header(dict(list(MANY.items())[:2000])), "plain LoRA adapter"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_files_that_are_no_adapter(data, word, hand_in, no_evaluation):
    assert word in told(hand_in(raw_weights=data))


def test_tensors_that_do_not_fit(hand_in, no_evaluation):
    other = SYMPTOMS["other_base"].sees
    assert "another rank" in told(hand_in(tensors=small(2)))
    assert "same run" in told(hand_in(tensors=small(1, ("q_proj",))))
    assert "same run" in told(hand_in(tensors=small(1, ("q_proj", "k_proj"))))
    assert "same run" in told(hand_in({"target_modules": ["q_proj", "k_proj"]}))
    a, b = NAME.format("A"), NAME.format("B")
    assert told(hand_in(tensors={**small(), a: torch.zeros(1, 2048)})) == other
    assert told(hand_in(tensors={**small(), b: torch.zeros(1024, 1)})) == other
    assert told(hand_in(tensors={**small(), a: torch.zeros(576)})) == other
    deeper = {a.replace(".0.", ".31."): torch.zeros(1, 576)}
    assert told(hand_in(tensors={**small(), **deeper})) == other
    magnitude = {b.replace("lora_B.weight", "lora_magnitude_vector"): torch.zeros(192)}
    assert "plain LoRA" in told(hand_in(tensors={**small(), **magnitude}))
    head = {"base_model.model.lm_head.weight": torch.zeros(4, 4)}
    assert "plain LoRA" in told(hand_in(tensors={**small(), **head}))


@pytest.mark.parametrize(
    "value, word",
    [(float("nan"), "not finite"), (float("inf"), "not finite"), (-float("inf"), "not finite"),
     (2000.0, "above 1,000")],
)  # fmt: skip
def test_weights_that_are_no_weights(value, word, hand_in, no_evaluation):
    tensors = small()
    tensors[NAME.format("B")][7, 0] = value
    assert word in told(hand_in(tensors=tensors))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float64, torch.float8_e4m3fn, torch.bool])
def test_dtypes_that_are_not_taken(dtype, hand_in, no_evaluation):
    tensors = {name: one.to(dtype) for name, one in small().items()}
    assert "dtype" in told(hand_in(tensors=tensors))


def test_files_that_were_cut_or_changed_anywhere_are_read_or_refused(hand_in):
    files = hand_in()
    weights, config = files[WEIGHTS].read_bytes(), files[CONFIG].read_bytes()
    chance = random.Random(0)
    settings = LoraSettings(1, 2.0, frozenset({"k_proj"}))
    readers = (
        (weights, lambda data: adapter_files.read_weights(data, settings)),
        (config, adapter_files.read_config),
    )
    for _ in range(300):
        for data, read in readers:
            cut = bytearray(data[: chance.choice((len(data), chance.randrange(len(data))))])
            for _ in range(chance.randrange(4)):
                if cut:
                    cut[chance.randrange(min(len(cut), 9000))] = chance.randrange(256)
            try:
                read(bytes(cut))
            except BadAdapter as bad:
                assert str(bad)


def test_the_adapter_that_training_saves_is_read(tmp_path):
    """The two files with the names that chapter 05 hands in."""
    assert {Path(name).name for name in (CONFIG, WEIGHTS)} == set(training.ADAPTER_FILES)
    save_file(small(), tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = LoraSettings(1, 2.0, frozenset({"k_proj"}))
    data = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert len(adapter_files.read_weights(data, settings)) == 30
