"""The capstone's adapter by its file, its plan and hidden questions; and what chapter 08 claims."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from answer_sheets import sheet
from answers_ch08 import a_plan
from local_student import LocalStudent
from safetensors.torch import load_file, save_file

from autograder.artifacts import capstone_adapter, evaluate
from autograder.artifacts.adapter_files import CONFIG, WEIGHTS, LoraSettings, _shapes
from autograder.artifacts.exam import PAIRS
from autograder.checks import Personal, StudentError, checks_of
from autograder.grading import engine
from loralab import base_model, capstone, evaluation, memory, recorded_runs, training
from loralab.capstone import BUDGET
from loralab.checks import WrongAnswer, ch05, help_markdown
from loralab.checks import ch08 as check
from loralab.training import ADAPTER_FILES

SOURCE = sheet("08").source
EXERCISE = check.EXERCISES["trained_adapter"]
CLASS = Personal(secret="ab" * 32, student="ada")
# Trained by the chapter's solution.
TRAINED = Path(__file__).parent / "adapters" / "capstone"
LLAMA = sorted(check.names())


def student(plan: str | None, files) -> LocalStudent:
    code = plan if plan is not None else "def plan():\n    raise NotImplementedError"
    found = LocalStudent.of(code, **sheet("08").imports)
    found.files = files
    return found


def grade(plan: str | None, files, personal=CLASS):
    """Points by label (the shares together under ""), what is told, and what was measured."""
    points: dict[str, float] = {}
    told, measured = set(), {}
    for part in capstone_adapter.parts(student(plan, files), random.Random(0), personal):
        points.setdefault(part.label, 0)
        try:
            part.check()
            points[part.label] += part.points
        except WrongAnswer as wrong:
            assert wrong.symptom and wrong.symptom.sees
            told.add(wrong.symptom.sees)
        except StudentError as error:
            told.add(error.kind)
        measured |= engine._measured(part)
    return points, told, measured


@pytest.fixture
def hand_in(tmp_path):
    """Files of an adapter, as PEFT writes them: by default rank 1 on all layers, α = 4."""

    def write(r=1, alpha=4, targets=tuple(LLAMA), b=0.1, folder="adapter", **config):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        settings = {"peft_type": "LORA", "r": r, "lora_alpha": alpha,
                    "target_modules": list(targets), **config}  # fmt: skip
        (place / "adapter_config.json").write_text(json.dumps(settings))
        shapes = _shapes(LoraSettings(r, alpha, frozenset(targets)))
        save_file({name: torch.full(shape, b if "lora_B" in name else 0.01)
                   for name, shape in shapes.items()}, place / "adapter_model.safetensors")
        return {CONFIG: place / "adapter_config.json", WEIGHTS: place / "adapter_model.safetensors"}

    return write


@pytest.fixture
def right(monkeypatch):
    """Say how many of the hidden questions are right, in place of trying the adapter."""
    def set_to(hits):
        monkeypatch.setattr(evaluate, "right_answers", lambda *_, **__: hits)

    return set_to


LABELS = ("within the budget", "as planned", "accuracy as predicted", "")


def earned(points) -> tuple[float, ...]:
    assert tuple(points) == LABELS
    return tuple(points.values())


# --- the trusted check ----------------------------------------------------------------------------


@pytest.mark.parametrize("share, expected", [
    (0.05, (1, 1, 0, 0)), (0.14, (1, 1, 0, 1)), (0.25, (1, 1, 0, 2)), (0.50, (1, 1, 0, 4)),
    (0.61, (1, 1, 1, 5)), (0.84, (1, 1, 1, 5)), (0.90, (1, 1, 0, 5)),
])  # fmt: skip
def test_points_for_the_file_the_plan_the_prediction_and_the_share(hand_in, right, share, expected):
    right(round(share * PAIRS))
    points, told, measured = grade(a_plan(), hand_in())  # predicts 0.7
    assert earned(points) == expected
    assert measured["trainable"] == 305_280
    assert measured["accuracy"] == pytest.approx(share, abs=0.01)
    assert measured["peak_gib"] == pytest.approx(0.466, abs=1e-3)
    wanted = {EXERCISE.symptoms[key].sees for key in (
        ("other_language",) if share < 0.12 else
        ("short", "surprise") if share < 0.55 else
        ("surprise",) if abs(share - 0.7) > 0.15 else ())}  # fmt: skip
    assert told == wanted


def test_over_the_budget_no_sentence_counts(hand_in, right):
    right(PAIRS)
    points, told, measured = grade(a_plan(r=8, lora_alpha=16), hand_in(8, 16))
    assert earned(points) == (0, 1, 0, 0)
    assert told == {EXERCISE.symptoms["over_budget"].sees}
    assert measured["trainable"] == 2_442_240 > BUDGET.trainable
    assert measured["accuracy"] == 1


def test_parameters_are_counted_in_the_file_whatever_the_plan_says(hand_in, right):
    right(PAIRS)
    lies = a_plan('found["trainable"] = 100')
    points, told, measured = grade(lies, hand_in())
    assert earned(points) == (1, 0, 0, 5) and measured["trainable"] == 305_280
    assert told == {EXERCISE.symptoms["other_run"].sees, EXERCISE.symptoms["surprise"].sees}
    assert "peak_gib" not in measured


@pytest.mark.parametrize("changed", [
    {"r": 2}, {"r": 3, "targets": ("gate_proj", "up_proj", "down_proj")}, {"alpha": 8},
    {"use_rslora": True, "r": 2, "targets": ("q_proj",)}, {"targets": tuple(LLAMA[1:])},
])  # fmt: skip
def test_an_adapter_that_was_not_planned(hand_in, right, changed):
    right(round(0.7 * PAIRS))
    points, told, measured = grade(a_plan(), hand_in(**changed))
    assert earned(points) == (1, 0, 1, 5)
    assert told == {EXERCISE.symptoms["other_run"].sees}
    assert "peak_gib" not in measured, "what it took is not known"


@pytest.mark.parametrize("plan", [None, "def plan():\n    return 3", a_plan('del found["r"]'),
                                  "def plan():\n    raise ValueError", ""])  # fmt: skip
def test_without_a_plan_the_adapter_still_counts(hand_in, right, plan):
    right(round(0.7 * PAIRS))
    points, told, measured = grade(plan, hand_in())
    assert earned(points) == (1, 0, 0, 5)
    assert told and set(measured) == {"trainable", "accuracy"}


def test_nothing_handed_in_and_nothing_learnt_earn_nothing(hand_in, right):
    right(PAIRS)
    nothing = a_plan('found["accuracy"] = 0.0')
    assert earned(grade(nothing, {})[0]) == (0, 0, 0, 0)
    assert grade(nothing, {})[1:] == ({EXERCISE.symptoms["missing"].sees}, {})
    points, told, measured = grade(nothing, hand_in(b=0.0))
    assert earned(points) == (0, 0, 0, 0) and measured == {}
    assert told == {EXERCISE.symptoms["untrained"].sees}
    right(0)
    points, told, _ = grade(nothing, hand_in())
    assert earned(points) == (1, 1, 0, 0), "who predicts nothing has not predicted well"
    assert told == {EXERCISE.symptoms["other_language"].sees}


def test_a_pickle_is_not_opened(hand_in, right):
    right(PAIRS)
    files = hand_in()
    files[WEIGHTS].write_bytes(b"\x80\x04.")
    points, told, measured = grade(a_plan(), files)
    assert earned(points) == (0, 0, 0, 0) and measured == {} and len(told) == 1


def test_the_parts_are_worth_what_the_exercise_is_and_its_text_says():
    assert 'check="trained_adapter" points=8' in SOURCE
    parts = capstone_adapter.parts(student(a_plan(), {}), random.Random(0), CLASS)
    assert sum(part.points for part in parts) == 8
    shares = [round(100 * share) for share in capstone_adapter.SHARES]
    assert "one each for {}, {}, {}, {} and {} %".format(*shares) in SOURCE
    assert f"within {check.CLOSE} of the predicted one" in SOURCE
    assert "trained_adapter" in checks_of("08") and not checks_of("08")["trained_adapter"].runs
    text = help_markdown(EXERCISE)
    assert text.count("<details>") == len(EXERCISE.hints) + len(EXERCISE.symptoms)


def test_the_trained_adapter_gets_full_marks_whatever_its_class_speaks():
    files = {CONFIG: TRAINED / ADAPTER_FILES[0], WEIGHTS: TRAINED / ADAPTER_FILES[1]}
    solution = "\n".join(sheet("08").cells[name] for name in ("predict", "plan"))
    for personal in (CLASS, Personal(secret="cd" * 32, language="class-1234abcd")):
        points, told, measured = grade(solution, files, personal)
        assert earned(points) == (1, 1, 1, 5), told
        assert measured["accuracy"] >= BUDGET.accuracy


def test_chapter_05s_adapter_is_worth_nothing_here():
    files = {CONFIG: recorded_runs.REFERENCE / ADAPTER_FILES[0],
             WEIGHTS: recorded_runs.REFERENCE / ADAPTER_FILES[1]}
    points, _, measured = grade(a_plan(), files)
    assert earned(points) == (0, 0, 0, 0) and measured["accuracy"] < 0.12


# --- the visible check ----------------------------------------------------------------------------


@pytest.fixture
def share(monkeypatch):
    def set_to(value):
        monkeypatch.setattr(ch05, "held_out_accuracy", lambda folder, task: value)

    return set_to


def planned(code=None):
    exec(code or a_plan(), space := dict(sheet("08").imports))
    return space["plan"]()


def test_the_visible_check_says_one_line(hand_in, share, capsys):
    folder = hand_in()[CONFIG].parent
    share(0.84375)
    check.trained_adapter(folder, planned())
    out = capsys.readouterr().out
    assert out.startswith("OK: exercise 8.3") and out.count("\n") == 1
    assert "305,280 parameters; 84 % of 64" in out


@pytest.mark.parametrize("symptom, files, value, plan", [
    ("missing", None, 1, {}), ("over_budget", {"r": 8}, 1, {"r": 8}),
    ("other_run", {"alpha": 16}, 1, {}), ("untrained", {"b": 0.0}, 0, {}),
    ("other_language", {}, 0.1, {}), ("short", {}, 0.5, {}), ("surprise", {}, 1.0, {}),
    ("other_base", {}, RuntimeError("size mismatch"), {}),
])  # fmt: skip
def test_each_mistake_is_named(hand_in, share, tmp_path, monkeypatch, symptom, files, value, plan):
    folder = tmp_path / "none" if files is None else hand_in(**files)[CONFIG].parent
    share(value)
    if isinstance(value, Exception):
        def fail(*_):
            raise value

        monkeypatch.setattr(ch05, "held_out_accuracy", fail)
    with pytest.raises(WrongAnswer) as caught:
        check.trained_adapter(folder, planned(a_plan(**plan)))
    assert caught.value.symptom == EXERCISE.symptoms[symptom], str(caught.value)


def test_more_than_was_predicted_is_said_beside_the_goal(hand_in, share):
    folder = hand_in()[CONFIG].parent
    share(1.0)
    with pytest.raises(WrongAnswer, match="The goal is met: 100 % of 64 .* But 70 % were pred"):
        check.trained_adapter(folder, planned())


@pytest.mark.parametrize("name, content", [
    ("adapter_config.json", "{"), ("adapter_config.json", "[]"), ("adapter_config.json", "{}"),
    ("adapter_model.safetensors", "none"),
])  # fmt: skip
def test_damaged_files_are_no_adapter(hand_in, share, name, content):
    folder = hand_in()[CONFIG].parent
    (folder / name).write_text(content)
    with pytest.raises(WrongAnswer) as caught:
        check.trained_adapter(folder, planned())
    assert caught.value.symptom == EXERCISE.symptoms["missing"]


# --- what the chapter says ------------------------------------------------------------------------


def cost(method, r, targets, batch):
    settings = {"method": method, "r": r, "targets": targets, "batch_size": batch}
    found = check.estimate(settings)
    return found.trainable, found.total / memory.GiB


def test_the_budget_is_what_the_text_says():
    assert f"| trained parameters | {BUDGET.trainable:,} |" in SOURCE
    assert f"| predicted peak of a training step | {BUDGET.peak_gib:g} GiB |" in SOURCE
    assert f"| training time on your computer | {BUDGET.minutes:g} minutes |" in SOURCE
    assert f"{100 * BUDGET.accuracy:.0f} % of unseen questions right" in SOURCE


def test_the_budget_forces_a_choice():
    """Chapter 05's settings and LoRA in batches are out; several kinds of QLoRA are in."""
    main = recorded_runs.MAIN
    assert cost(main.method, main.r, main.targets, main.batch_size)[0] > BUDGET.trainable
    inside = [("qlora", 2, "all-linear", 4), ("qlora", 11, ["q_proj", "v_proj"], 4),
              ("qlora", 3, ["gate_proj", "up_proj", "down_proj"], 4)]  # fmt: skip
    outside = [("qlora", 3, "all-linear", 4), ("qlora", 1, "all-linear", 5),
               ("lora", 1, "k_proj", 1)]  # fmt: skip
    for one in inside:
        trainable, gib = cost(*one)
        assert trainable <= BUDGET.trainable and gib <= BUDGET.peak_gib, one
    for one in outside:
        trainable, gib = cost(*one)
        assert trainable > BUDGET.trainable or gib > BUDGET.peak_gib, one


def test_of_the_recorded_runs_none_fits_and_rank_1_breaks_memory_alone():
    found = {name: capstone.broken(run) for name, run in recorded_runs.recorded().items()
             if run.config.method != "full" and run.config.task == "language"
             and not run.config.shuffle_labels}  # fmt: skip
    assert all(found.values())
    alone = [name for name, limits in found.items() if limits == ["memory"]]
    assert alone == ["QLoRA, rank 1", "QLoRA, rank 1, learning rate 1e-2"]
    better = recorded_runs.recorded()[alone[1]]
    assert (better.config.lora_alpha, recorded_runs.MAIN.lora_alpha) == (2, 16)


def test_the_rank_hardly_moves_the_peak():
    one, eight = (cost("qlora", r, "all-linear", 8)[1] for r in (1, 8))
    assert 1.01 < eight / one < 1.03, "the quiz says: about two per cent"


def test_the_docstrings_numbers():
    assert cost("qlora", 2, ["q_proj"], 1)[0] == 69_120
    assert "Rank 2 on [\"q_proj\"] trains 69,120" in SOURCE


@pytest.mark.parametrize("split", ["train", "test", "exam"])
def test_no_question_is_longer_than_the_yardsticks(split):
    tokenizer = base_model.load_tokenizer()
    rows = [evaluation.encode(tokenizer, {"prompt": capstone.SHOP.prompt(question),
                                          "completion": f" {query}"})[0]
            for question, query in capstone.SHOP.pairs(400 if split == "train" else 64, split)]
    assert max(map(len, rows)) <= capstone.SEQ


def test_the_quiz_interval():
    from loralab.plots import wilson_interval

    low, high = wilson_interval(46 / 64, 64)
    assert (round(low, 2), round(high, 2)) == (0.60, 0.81)


def test_a_plan_becomes_its_run():
    run = capstone.run_config(planned(a_plan(targets=["q_proj"], r=3)), 7)
    assert (run.r, run.targets, run.steps, run.seed) == (3, ("q_proj",), 90, 7)
    assert training.examples(run, "test")[0]["prompt"] == capstone.SHOP.prompt(
        capstone.SHOP.pairs(64, "test")[0].source)
    with pytest.raises(KeyError):
        capstone.run_config({"r": 1})


def test_a_query_that_is_not_exact_is_written_and_run(monkeypatch):
    """A run's accuracy counts rows; exact queries are right without being written."""
    run = capstone.run_config(planned())
    right = training.pairs(run, "test")
    written = []

    def complete(model, tokenizer, prompts, *_):
        written.extend(prompts)
        return [f"{right[1].target};", "SELECT 1"]

    exact = [index not in (1, 5) for index in range(64)]
    monkeypatch.setattr(training.evaluation, "exact_match", lambda *_: list(exact))
    monkeypatch.setattr(training.evaluation, "complete", complete)
    trainer = SimpleNamespace(model=None, processing_class=None)
    assert training.score(trainer, run) == 63 / 64
    assert written == [capstone.SHOP.prompt(right[index].source) for index in (1, 5)]


def test_the_time_of_a_step_leaves_the_first_out(monkeypatch):
    calls = []

    class Trainer:
        def add_callback(self, callback):
            self.callback = callback

        def train(self):
            for _ in range(3):
                self.callback.on_step_end(None, None, None)

    def build(config, progress):
        calls.append(config.steps)
        return Trainer()

    monkeypatch.setattr(capstone.training, "build_trainer", build)
    times = iter((10.0, 12.0, 13.0))
    monkeypatch.setattr(capstone, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    assert capstone.seconds_per_step(recorded_runs.MAIN) == 1.5
    assert calls == [3]


def test_the_rubric_adds_up():
    rubric = SOURCE[SOURCE.index("### Exercise 8.4"):]
    assert len(re.findall(r"^# \| \*\*\w+\*\* \|", rubric, re.M)) == 4
    assert 'manual="report" points=4' in rubric


def test_the_trained_adapter_is_small_and_names_no_computer():
    assert (TRAINED / ADAPTER_FILES[1]).stat().st_size < 2_000_000
    config = json.loads((TRAINED / ADAPTER_FILES[0]).read_text())
    assert config["base_model_name_or_path"] == base_model.NAME
    tensors = load_file(TRAINED / ADAPTER_FILES[1])
    assert sum(one.numel() for one in tensors.values()) <= BUDGET.trainable
