"""Chapter 05's visible checks: right answers pass however written, each mistake is named."""

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from loralab import hardware, memory, recorded_runs
from loralab.checks import WrongAnswer
from loralab.checks import ch05 as check
from loralab.tasks.language import Language

COMPUTE = hardware.detect().compute_dtype
OTHER_SIZE = "bf16" if COMPUTE == torch.float32 else "fp32"
OTHER = torch.float16 if COMPUTE != torch.float16 else torch.float32


def quantised(**changed):
    settings = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=COMPUTE)  # fmt: skip
    return BitsAndBytesConfig(**settings | changed)


def found(model):
    head = model.get_output_embeddings()
    return {p.split(".")[-1] for p, m in model.named_modules()
            if isinstance(m, nn.Linear) and m is not head}  # fmt: skip


def by_loop(model):
    names = []
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if "Linear" in type(module).__name__ and name != "lm_head" and name not in names:
            names.append(name)
    return names


def every_path(model):
    return [p for p, m in model.named_modules() if isinstance(m, nn.Linear) and "head" not in p]


LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
MODEL = AutoModelForCausalLM.from_config(
    LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=64, pad_token_id=0)
)  # fmt: skip


def lora(**changed):
    settings = dict(r=8, lora_alpha=16, target_modules=sorted(LLAMA), task_type="CAUSAL_LM")
    return LoraConfig(**settings | changed)


def example(language, english, translation):
    return {"prompt": language.prompt(english), "completion": " " + translation}


RIGHT_RUN = check.run_estimate()
ARCH = memory.describe("smollm2-135m")


def run(trainable=RIGHT_RUN.trainable, held_bytes=RIGHT_RUN.static):
    return {"trainable": trainable, "held_bytes": held_bytes}


READ = recorded_runs.conclusions(recorded_runs.recorded())

RIGHT = {
    "format_example": [
        (example,),
        (lambda la, e, t: dict(completion=" ".join(("", t)), prompt=f"{e}\n{la.name}:"),),
    ],
    "quantization_config": [(quantised(),), (quantised(bnb_4bit_quant_storage=torch.uint8),)],
    "linear_names": [(found,), (by_loop,)],
    "lora_config": [(lora(), MODEL), (lora(target_modules="all-linear", lora_dropout=0.1), MODEL)],
    "predicted_run": [
        (run(),),
        (run(torch.tensor(RIGHT_RUN.trainable), float(RIGHT_RUN.static) * 1.003),),
    ],
    "reading": [(READ,), (dict(reversed(READ.items())),)],
}
WRONG = {
    "format_example": {
        "question": [lambda la, e, t: {"prompt": "", "completion": f"{la.prompt(e)} {t}"}],
        "answer_given": [lambda la, e, t: {"prompt": f"{la.prompt(e)} {t}", "completion": ""}],
        "no_space": [lambda la, e, t: {"prompt": la.prompt(e), "completion": t}],
        "extra": [lambda la, e, t: {"prompt": la.prompt(e), "completion": f" {t}\n"}],
        "one_text": [lambda la, e, t: {"text": f"{la.prompt(e)} {t}"}, lambda la, e, t: e + t],
        None: [lambda la, e, t: {"prompt": f"Translate: {e}", "completion": " " + t}],
    },
    "quantization_config": {
        "fp4": [BitsAndBytesConfig(load_in_4bit=True)],
        "no_double": [quantised(bnb_4bit_use_double_quant=False)],
        "compute": [quantised(bnb_4bit_compute_dtype=OTHER)],
        "eight_bit": [BitsAndBytesConfig(load_in_8bit=True)],
        None: [{"load_in_4bit": True}],
    },
    "linear_names": {
        "head": [lambda m: found(m) | {"lm_head"}],
        "hard_coded": [lambda m: LLAMA,
                       lambda m: {n for n in found(m) if n.endswith("proj")}],
        "nothing": [lambda m: set(), lambda m: [
            p for p, x in m.named_modules() if type(x).__name__ == "Linear4bit"]],
        "attention_only": [lambda m: {n for n in found(m) if "mlp" not in n and n[0] in "qkvo"}],
        "paths": [every_path],
        "everything": [lambda m: {p.split(".")[-1] for p, _ in m.named_modules() if p}],
        None: [lambda m: "all-linear"],
    },
    "lora_config": {
        "alpha": [lora(lora_alpha=8), lora(lora_alpha=32), lora(use_rslora=True)],
        "rank": [lora(r=16, lora_alpha=32)],
        "targets": [lora(target_modules=["q_proj", "v_proj"]), lora(target_modules=None)],
        "task": [lora(task_type=None)],
        None: [{"r": 8}, lora(target_modules=".*_proj")],
    },
    "predicted_run": {
        "all_parameters": [run(ARCH.parameters + RIGHT_RUN.trainable), run(ARCH.parameters)],
        "compute": [run(held_bytes=memory.estimate("smollm2-135m", dtype=OTHER_SIZE).static)],
        "two_targets": [run(460_800)],
        "square": [run(7 * 30 * 8 * 2 * 576)],
        "embedding": [run(held_bytes=RIGHT_RUN.static
                          - ARCH.rest * (COMPUTE.itemsize - 0.5))],
        "constants": [run(held_bytes=RIGHT_RUN.static - RIGHT_RUN.constants)],
        "weights_only": [run(held_bytes=RIGHT_RUN.static - RIGHT_RUN.gradients
                             - RIGHT_RUN.optimizer)],
        "adapters_fp32": [run(held_bytes=memory.estimate(
            "smollm2-135m", dtype=COMPUTE, adapter_dtype="fp32").static)],
        None: [run(held_bytes=RIGHT_RUN.static * 1.01), 2_442_240],
    },
    "reading": {
        "undecided": [{}, {**READ, "default": None}, "yes"],
        **{key: [{**READ, key: not value}] for key, value in READ.items()},
    },
}  # fmt: skip


@pytest.mark.parametrize("name, answer", [(n, a) for n, every in RIGHT.items() for a in every])
def test_right_answers_pass_with_one_line(name, answer, capsys):
    getattr(check, name)(*answer)
    out, err = capsys.readouterr()
    assert out.startswith("OK: exercise 5.") and out.count("\n") == 1 and err == ""


@pytest.mark.parametrize(
    "name, symptom, answer",
    [(n, s, a) for n, by in WRONG.items() for s, every in by.items() for a in every],
)
def test_wrong_answers_are_named_by_their_symptom(name, symptom, answer):
    arguments = (answer, MODEL) if name == "lora_config" else (answer,)
    with pytest.raises(WrongAnswer) as caught:
        getattr(check, name)(*arguments)
    expected = check.EXERCISES[name].symptoms[symptom] if symptom else None
    assert caught.value.symptom is expected, str(caught.value)


@pytest.mark.parametrize("answer", [run(trainable=1), run(held_bytes=1)])
def test_a_check_of_a_prediction_does_not_give_the_number_away(answer):
    with pytest.raises(WrongAnswer) as caught:
        check.predicted_run(answer)
    said = str(caught.value).replace(",", "")
    assert "too low" in said
    assert str(RIGHT_RUN.trainable) not in said and str(RIGHT_RUN.static) not in said


# --- the adapter: judged by its file -------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """`adapter(accuracy, b)`: a folder whose adapter gets that share right; B's largest entry."""

    def make(accuracy: float, b: float = 0.1):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8}))
        save_file({"x.lora_B.weight": torch.full((2, 2), b)}, tmp_path / "adapter_model.safetensors")
        monkeypatch.setattr(check, "held_out_accuracy", lambda *a: accuracy)
        return tmp_path

    return make


def test_an_adapter_that_knows_enough_passes(adapter, capsys):
    check.trained_adapter(adapter(0.6), Language())
    assert "60 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    "accuracy, b, symptom",
    [(0.0, 1e-5, "untrained"), (0.02, 0.1, "other_language"), (0.5, 0.1, "short")],
)
def test_a_poor_adapter_hears_why(accuracy, b, symptom, adapter):
    with pytest.raises(WrongAnswer) as caught:
        check.trained_adapter(adapter(accuracy, b), Language())
    assert caught.value.symptom is check.EXERCISES["trained_adapter"].symptoms[symptom]


@pytest.mark.parametrize("damage", ["absent", "truncated", "pickle", "list"])
def test_files_that_are_no_adapter_are_missing(damage, adapter):
    folder = adapter(1.0)
    weights = folder / "adapter_model.safetensors"
    if damage == "absent":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:20])
    elif damage == "pickle":
        torch.save({"x": torch.zeros(2)}, weights)
    else:
        (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(WrongAnswer) as caught:
        check.trained_adapter(folder, Language())
    assert caught.value.symptom is check.EXERCISES["trained_adapter"].symptoms["missing"]


def test_an_adapter_for_another_base_is_named_so(tmp_path):
    """The reference adapter's config with tensors of a narrower model."""
    (tmp_path / "adapter_config.json").write_text(
        (recorded_runs.REFERENCE / "adapter_config.json").read_text())
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file({name.format("A"): torch.ones(8, 32), name.format("B"): torch.ones(32, 8)},
              tmp_path / "adapter_model.safetensors")
    with pytest.raises(WrongAnswer) as caught:
        check.trained_adapter(tmp_path, Language())
    assert caught.value.symptom is check.EXERCISES["trained_adapter"].symptoms["other_base"]


def test_a_neighbours_language_earns_nothing():
    """The real thing: the reference adapter on another seed's language."""
    assert check.held_out_accuracy(recorded_runs.REFERENCE, Language("neighbour"), 16) == 0


def test_every_symptom_has_its_wrong_answer():
    for name, exercise in check.EXERCISES.items():
        if name == "trained_adapter":
            assert set(exercise.symptoms) == {
                "missing", "untrained", "other_language", "other_base", "short"}
        else:
            assert set(exercise.symptoms) == set(WRONG[name]) - {None}, name


@pytest.mark.parametrize("name", ["format_example", "linear_names"])
def test_the_stub_is_not_an_answer(name):
    def stub(*arguments):
        raise NotImplementedError("Exercise 5.1: write it")

    with pytest.raises(NotImplementedError):
        getattr(check, name)(stub)
