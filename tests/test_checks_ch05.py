"""Chapter 05's visible checks: right answers pass however written, each mistake is named."""

import json

import pytest
import torch
from answers_ch05 import MODEL, NEARLY, RIGHT, RIGHT_RUN, WRONG, run
from safetensors.torch import save_file

from loralab import recorded_runs
from loralab.checks import WrongAnswer
from loralab.checks import ch05 as check
from loralab.tasks.language import Language


def try_out(name, answer):
    """Call the visible check as its cell does: some take the function, others what it returns."""
    given = {
        "quantization_config": lambda: (answer(),),
        "lora_config": lambda: (answer(MODEL), MODEL),
        "predicted_run": lambda: (answer(),),
        "reading": lambda: (answer(),),
    }.get(name, lambda: (answer,))
    getattr(check, name)(*given())


@pytest.mark.parametrize("name, answer", [
    (n, a) for answers in (RIGHT, NEARLY) for n, every in answers.items() for a in every])
def test_right_answers_pass_with_one_line(name, answer, capsys):
    try_out(name, answer)
    out, err = capsys.readouterr()
    assert out.startswith("OK: exercise 5.") and out.count("\n") == 1 and err == ""


@pytest.mark.parametrize(
    "name, symptom, answer",
    [(n, s, a) for n, by in WRONG.items() for s, every in by.items() for a in every],
)
def test_wrong_answers_are_named_by_their_symptom(name, symptom, answer):
    with pytest.raises(WrongAnswer) as caught:
        try_out(name, answer)
    expected = check.EXERCISES[name].symptoms[symptom] if symptom else None
    assert caught.value.symptom is expected, str(caught.value)


@pytest.mark.parametrize("name", ["format_example", "quantization_config", "linear_names",
                                  "lora_config", "predicted_run"])
def test_a_missing_return_is_called_that(name):
    with pytest.raises(WrongAnswer, match="None .is there a `return`"):
        try_out(name, lambda *given: None)


@pytest.mark.parametrize("answer", [run(trainable=1), run(held_bytes=1)])
def test_a_check_of_a_prediction_does_not_give_the_number_away(answer):
    with pytest.raises(WrongAnswer) as caught:
        check.predicted_run(answer())
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
