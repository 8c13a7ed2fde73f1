"""Training runs: what they depend on, that nothing trains twice, and what they are measured to hold.

On a model of two narrow layers with the embedded model's tokenizer: the same code, in seconds.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import with_tokenizer

from loralab import base_model, evaluation, measure, memory, recorded_runs, training
from loralab.training import RunConfig


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return with_tokenizer(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def config(tiny, tmp_path, monkeypatch) -> RunConfig:
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path))
    return RunConfig(model_id=tiny, steps=3, batch_size=2, test_size=4)


def adapter_of(trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def never(*args, **kwargs):
    raise AssertionError("trained again")


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_a_run_is_trained_once(method, config, monkeypatch):
    config = replace(config, method=method, learning_rate=1e-3)
    first = training.run(config, progress=False)
    assert len(first.history) == 3 and first.seconds > 0
    assert (first.adapter is None) == (method == "full")
    monkeypatch.setattr(training, "build_trainer", never)
    again = training.run(config)
    assert again == first


def test_a_damaged_record_is_trained_again(config):
    first = training.run(config, progress=False)
    (first.adapter / "run.json").write_text('{"config": ')
    assert training.run(config, progress=False).config == config
    assert json.loads((first.adapter / "run.json").read_text())["trainable"] == first.trainable


def test_a_fit_comes_back_from_the_cache_with_the_same_weights(config, monkeypatch, capsys):
    one = training.build_trainer(config, progress=False)
    before = adapter_of(one)
    history, seconds = training.fit(one)
    trained = adapter_of(one)
    assert any(not torch.equal(before[n], trained[n]) for n in trained)

    two = training.build_trainer(config, progress=False)
    monkeypatch.setattr(two, "train", never)
    assert training.fit(two) == (history, seconds)
    restored = adapter_of(two)
    assert all(torch.equal(trained[n], restored[n]) for n in trained)
    assert "cache" in capsys.readouterr().out


def test_a_notebook_shows_few_losses_under_its_bar(config, monkeypatch):
    from transformers.utils.notebook import NotebookProgressCallback

    trainer = training.build_trainer(replace(config, steps=160))
    trainer.add_callback(NotebookProgressCallback)
    training._keep_bar_in_sight(trainer)
    (shown,) = [callback for callback in trainer.callback_handler.callbacks
                if isinstance(callback, NotebookProgressCallback)]  # fmt: skip
    state = trainer.state
    state.max_steps = 160
    shown.on_train_begin(trainer.args, state, None)
    for step in range(0, 161, trainer.args.logging_steps):
        state.global_step = step
        shown.on_log(trainer.args, state, None, logs={"loss": 1.0})
    assert 6 <= len(shown.training_tracker.inner_table) <= 1 + training.SHOWN_LOSSES
    assert 160 / trainer.args.logging_steps > 20


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-4}, {"r": 4}, {"lora_alpha": 8}, {"targets": ("q_proj",)},
        {"steps": 4}, {"task_seed": "other"}, {"shuffle_labels": True}, {"seed": 1},
        {"method": "lora"},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_changes_the_result_changes_the_key(change, config):
    keys = {
        training._trainer_key(training.build_trainer(one, progress=False))
        for one in (config, replace(config, **change))
    }
    assert len(keys) == 2


def test_equal_configurations_have_equal_keys_and_a_screen_setting_changes_none(config):
    one, two = (training.build_trainer(config, progress=shown) for shown in (True, False))
    assert training._trainer_key(one) == training._trainer_key(two)


def test_versions_change_the_key(config, monkeypatch):
    trainer = training.build_trainer(config, progress=False)
    now = training._trainer_key(trainer)
    monkeypatch.setattr(training, "versions", lambda: {"torch": "0"})
    assert training._trainer_key(trainer) != now


def test_the_loss_is_on_the_completion_alone(config):
    trainer = training.build_trainer(config, progress=False)
    batch = next(iter(trainer.get_train_dataloader()))
    tokenizer = trainer.processing_class
    targets = {example["completion"] for example in training.examples(config)}
    for labels in batch["labels"]:
        text = tokenizer.decode(labels[labels != -100])
        assert text.removesuffix(tokenizer.eos_token) in targets


def test_shuffled_labels_keep_no_pair(config):
    right = training.examples(config)
    shuffled = training.examples(replace(config, shuffle_labels=True))
    assert [e["prompt"] for e in right] == [e["prompt"] for e in shuffled]
    assert sorted(e["completion"] for e in right) == sorted(e["completion"] for e in shuffled)
    assert not [1 for a, b in zip(right, shuffled, strict=True) if a == b]
    # The control is scored on the right answers.
    assert training.examples(config, "test") == training.examples(
        replace(config, shuffle_labels=True), "test"
    )


def test_exact_match_is_what_greedy_decoding_writes(config, tiny):
    """On a model trained until it knows some sentences, so that both outcomes occur."""
    config = replace(config, method="full", learning_rate=1e-2, steps=60, batch_size=4)
    trainer = training.build_trainer(config, progress=False)
    known = training.examples(config)[:4] * 60
    trainer.train_dataset = training.build_trainer(config, progress=False).train_dataset.select(
        [0, 1, 2, 3] * 60
    )
    trainer.train()
    tokenizer = trainer.processing_class
    tried = [*known[:4], *training.examples(config, "test")]
    hits = evaluation.exact_match(trainer.model, tokenizer, tried, batch_size=3)
    said = evaluation.complete(trainer.model, tokenizer, [e["prompt"] for e in tried])
    assert hits == [s == e["completion"].strip() for s, e in zip(said, tried, strict=True)]
    assert any(hits) and not all(hits)


def test_held_bytes_are_predicted_exactly(config):
    trainer = training.build_trainer(config, progress=False)
    counted = measure.held_after_step(trainer)
    predicted = memory.estimate(
        trainer.model.config, "qlora", dtype="fp32", adapter_dtype="bf16", rank=8
    )
    assert sum(counted.values()) == predicted.static


def test_measuring_a_step_changes_no_weight_and_leaves_nothing(config):
    trainer = training.build_trainer(config, progress=False)
    before = adapter_of(trainer)
    peak = measure.training_step_peak(trainer)
    after = adapter_of(trainer)
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert all(p.grad is None for p in trainer.model.parameters())
    assert peak.bytes > sum(measure.held(trainer.model).values())


def test_the_peak_counts_what_is_alive_at_once():
    layer = torch.nn.Linear(4, 4, bias=False)
    with measure.peak(layer) as found:
        one = torch.zeros(1000)
        del one
        two = torch.zeros(600)
        three = two + 1
        two.view(10, 60).add_(1)
    assert found.bytes == 64 + 2 * 2400 and found.before == 64
    del three


def test_the_saved_adapter_names_no_folder_of_this_computer(config, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(base_model, "folder", lambda: Path(tiny))
    training.save_adapter(training.build_trainer(config, progress=False), tmp_path / "adapter")
    names = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert names == sorted(training.ADAPTER_FILES)
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == base_model.NAME


# --- the records that chapters show --------------------------------------------------------------


def test_the_records_are_of_the_runs_that_the_grid_names():
    found = recorded_runs.recorded()
    assert list(found) == list(recorded_runs.GRID)
    for name, run in found.items():
        assert run.config == recorded_runs.GRID[name], name
        assert 0 <= run.accuracy <= 1 and len(run.history) > 3 and run.versions and run.machine


def test_the_records_support_what_the_chapter_says():
    found = recorded_runs.recorded()
    accuracy = {name: run.accuracy for name, run in found.items()}
    assert recorded_runs.conclusions(found) == {
        "where": True, "default": False, "control": True, "quantised": False,
    }  # fmt: skip
    assert accuracy["QLoRA"] > 0.6
    assert accuracy["QLoRA, learning rate 2e-5"] < 0.05
    assert found["QLoRA, q and v, rank 42"].trainable == pytest.approx(
        found["QLoRA"].trainable, rel=0.02
    )


def test_the_reference_adapter_does_what_its_record_says():
    from loralab.checks import ch05
    from loralab.tasks.language import Language

    share = ch05.held_out_accuracy(recorded_runs.REFERENCE, Language("course"), 24)
    assert share == pytest.approx(recorded_runs.recorded()["QLoRA"].accuracy, abs=0.2)


def test_the_reference_stands_in_where_a_student_has_no_adapter(tmp_path, capsys):
    assert recorded_runs.adapter(tmp_path) == recorded_runs.REFERENCE
    assert "stands in" in capsys.readouterr().out
    for name in training.ADAPTER_FILES:
        (tmp_path / name).write_text("{}")
    assert recorded_runs.adapter(tmp_path) == tmp_path
    assert capsys.readouterr().out.startswith("Your own adapter")
