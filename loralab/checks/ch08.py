"""Chapter 08, the capstone: the visible checks, and one symptom for each typical wrong answer.

Predictions are held against `loralab.memory` for the budget's yardstick; a plan against the budget
and against its own settings; the adapter by the parameters in its file, by its plan, and by what
it makes of held-out questions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from loralab import capstone, memory
from loralab.capstone import BUDGET
from loralab.checks import Exercise, Symptom, as_number, as_whole, kind_of, shortened
from loralab.errors import CourseError

SAME = 0.005  # relative: a predicted peak that follows from the settings
CLOSE = 0.15  # a share predicted so closely is a good prediction
SECONDS = (0.005, 120.0)  # that a step can take
METHODS = ("lora", "qlora")
MOST_RANK, MOST_ALPHA = 256, 10_000  # what is taken when adapters are handed in
MOST_STEPS, MOST_BATCH = 100_000, 4096
# What `memory.estimate` takes where the yardstick is not passed on.
DEFAULTS = {"dtype": "bf16", "compute_dtype": None, "seq": 512, "checkpointing": True, "loss": "hf"}

EXERCISES = {
    "predict": Exercise(
        "predict",
        "8.1",
        hints=(
            "Chapter 05 predicted one run with `memory.estimate`. Which of its arguments are in "
            "`settings` now, and which in `capstone.YARDSTICK`?",
            "`memory.estimate(model, method, …)` calls some settings by other names: `rank`, "
            "`batch`. `**capstone.YARDSTICK` passes a dict on as arguments.",
            "An `Estimate` has `.trainable`, `.static` (held between two steps) and `.total` (the "
            "peak of a step), in bytes; `memory.GiB` is a number of bytes.",
        ),
        symptoms={
            "all_parameters": Symptom(
                "These parameters include the frozen ones.",
                "Only A and B of each adapter are trained.",
            ),
            "targets": Symptom(
                "The same count whichever layers are chosen.",
                "`settings` names the layers that get adapters. Is that passed on?",
            ),
            "held": Symptom(
                "This is what is held between two steps, not the peak.",
                "Activations and the loss's tile exist during a step only, and the peak has them. "
                "Which attribute of an `Estimate` counts them?",
            ),
            "unit": Symptom(
                "The right bytes in another unit.",
                "The key ends in `gib`: 2³⁰ bytes each. GB are 10⁹.",
            ),
            "yardstick": Symptom(
                "This is the peak of another step than the yardstick's.",
                "Without being told, `memory.estimate` takes bf16, 512 tokens, checkpointing, and "
                "a loss on whole logits. The yardstick says otherwise, in five settings.",
            ),
            "batch": Symptom(
                "The peak of a batch of one question.",
                "`settings` says how many questions a step takes at once. Is that passed on?",
            ),
            "method": Symptom(
                "The base is counted in the other method's format.",
                "LoRA keeps the base in fp32 here, QLoRA in 4 bits. Is the method passed on?",
            ),
            "rank": Symptom(
                "The count is that of another rank.",
                "Is `r` passed on? Unless it is, `memory.estimate` takes rank 8. And α is no rank: "
                "it scales an update, and trains nothing.",
            ),
            "seconds": Symptom(
                "These are seconds.",
                "The key says minutes.",
            ),
            "questions": Symptom(
                "The time is counted by question.",
                "`seconds_per_step` is the time of a whole step, all its questions together.",
            ),
        },
    ),
    "plan": Exercise(
        "plan",
        "8.2",
        hints=(
            "Start from the row of chapter 05's table that is about SQL. Which of the three limits "
            "does it break, and which setting would mend each?",
            "At equal parameters, where did adapters have to sit? And what did rank 1 need, to "
            "come near rank 8?",
            "The row learnt at α = 16. If you lower r, what becomes of α/r when α stays, and what "
            "when α follows r down? Chapter 02, section 2, says what α/r scales.",
        ),
        symptoms={
            "incomplete": Symptom(
                "Something is missing in the plan, or is of another kind.",
                "The docstring lists eleven keys, with an example of each.",
            ),
            "percent": Symptom(
                "The predicted accuracy is no share.",
                "A share of 80 per cent is 0.8.",
            ),
            "over_parameters": Symptom(
                "More parameters than the budget allows.",
                "An adapter pair has r · (in + out) numbers. A smaller rank, or fewer kinds of "
                "layers? They are not worth the same: look where chapter 05's runs had theirs.",
            ),
            "over_memory": Symptom(
                "A higher peak than the budget allows.",
                "What is the largest part of it? Print `memory.estimate(…).components` for your "
                "settings. The frozen base and the activations of a batch are the two to look at.",
            ),
            "over_time": Symptom(
                "More minutes than the budget allows.",
                "Are they minutes, or seconds? Else fewer steps, or smaller ones: a step's time grows "
                "with its questions.",
            ),
            "stale": Symptom(
                "The predictions do not follow from the plan's own settings.",
                "Were the settings changed after the predictions were typed in? Let `predict` make "
                "them, from the same dict.",
            ),
        },
    ),
    "trained_adapter": Exercise(
        "trained_adapter",
        "8.3",
        hints=(
            "Look at the loss curve. Does it fall from the first steps on? Where does it end?",
            "A loss that jumps and stays high says that each step is too large; one that falls "
            "evenly and ends above 0.3 says that the steps are too small, or too few.",
        ),
        symptoms={
            "missing": Symptom(
                "There is no adapter to hand in.",
                "Run the exercise's cell, and look for the folder `adapter` beside the notebook.",
            ),
            "over_budget": Symptom(
                "The file holds more parameters than the budget allows.",
                "Parameters are counted in the file, whatever the plan says. Accuracy counts only "
                "within the budget.",
            ),
            "other_run": Symptom(
                "This adapter is not the one that was planned.",
                "Rank, α or layers differ between your plan and the file. Change the plan and its "
                "predictions, or train what was planned; then say in the report what you changed.",
            ),
            "untrained": Symptom(
                "The adapter changes nothing.",
                "B starts at zero and has hardly left it. Did the run finish, at a learning rate "
                "made for adapters?",
            ),
            "other_language": Symptom(
                "The adapter changes the output, but almost nothing is right.",
                "Was it trained on *this* chapter's task, and long enough? Look where the loss "
                "ended.",
            ),
            "other_base": Symptom(
                "The adapter was made for another base model.",
                "What is handed in is tried on the embedded model.",
            ),
            "short": Symptom(
                "On the way: some answers are right, not yet enough.",
                "Where does the loss end? The budget's minutes, α and the learning rate are where "
                "the rest can come from. Compare one change at a time.",
            ),
            "surprise": Symptom(
                "The accuracy is far from the predicted one.",
                f"Within {CLOSE:.2f} is a good prediction. Each run on this task is also luck: "
                "plan a second one with what you know now, predict it, and report both.",
            ),
        },
    ),
}


# --- 8.1 -----------------------------------------------------------------------------------------

Settings = Mapping[str, Any]
Predict = Callable[[Settings, float], Any]

CASES: tuple[tuple[Settings, float], ...] = (
    ({"method": "qlora", "r": 8, "lora_alpha": 16, "targets": "all-linear",
      "learning_rate": 3e-3, "steps": 160, "batch_size": 8}, 2.0),
    ({"method": "lora", "r": 3, "lora_alpha": 6, "targets": ["q_proj", "down_proj"],
      "learning_rate": 1e-3, "steps": 90, "batch_size": 4}, 1.5),
)  # fmt: skip


def predict(answer: Predict) -> None:
    """Check the predictions for chapter 05's run and for a LoRA on two kinds of layers."""
    compare_predict(answer, CASES)
    found = estimate(CASES[0][0])
    EXERCISES["predict"].passed(
        f"chapter 05's run trains {found.trainable:,} parameters; "
        f"its peak is {found.total / memory.GiB:.3f} GiB by the yardstick")


def estimate(settings: Settings) -> memory.Estimate:
    """What the settings take in a step of the budget's yardstick. Raises CourseError."""
    return _estimate(settings["method"], settings["r"], _hashable(settings["targets"]),
                     settings["batch_size"])  # fmt: skip


def _hashable(targets: str | Iterable[str]) -> str | tuple[str, ...]:
    return targets if isinstance(targets, str) else tuple(targets)


@lru_cache(256)
def _estimate(method: str, r: int, targets: str | tuple[str, ...], batch: int, **other: Any) -> Any:
    return memory.estimate(
        capstone.MODEL, method, rank=r, targets=targets, batch=batch,
        **{**capstone.YARDSTICK, **other},
    )  # fmt: skip


def compare_predict(
    answer: Predict,
    cases: Iterable[tuple[Settings, float]],
    ask: Collection[str] = ("trainable", "peak_gib", "minutes"),
) -> None:
    """Cases: (settings, seconds per step)."""
    exercise = EXERCISES["predict"]
    for settings, seconds in cases:
        got = answer(settings, seconds)
        case = f"predict({_shown(settings)}, {seconds:g})"
        if not isinstance(got, Mapping) or not set(ask) <= set(got):
            gave = f"the keys {shortened(list(got))}" if isinstance(got, Mapping) else kind_of(got)
            raise exercise.wrong(f"{case} should give a dict with {', '.join(ask)}; it gave "
                                 f"{gave}.")  # fmt: skip
        right, typical = _right(settings, seconds), _mistaken(settings, seconds)
        for key in ask:
            exercise.expect_number(
                f'{case}["{key}"]', got[key], right[key], typical[key],
                rel_tol=1e-9 if key == "trainable" else SAME, reveal=False,
            )  # fmt: skip


def _shown(settings: Settings) -> str:
    targets = settings["targets"]
    where = targets if isinstance(targets, str) else "+".join(targets)
    return f"{settings['method']}, r={settings['r']}, {where}, batch {settings['batch_size']}"


def _right(settings: Settings, seconds: float) -> dict[str, float]:
    found = estimate(settings)
    return {"trainable": found.trainable, "peak_gib": found.total / memory.GiB,
            "minutes": settings["steps"] * seconds / 60}  # fmt: skip


def _mistaken(
    settings: Settings, seconds: float
) -> dict[str, dict[str, float | tuple[float, ...]]]:
    """For each key the numbers that typical mistakes give on this case."""
    found = estimate(settings)
    method, r, batch = settings["method"], settings["r"], settings["batch_size"]
    targets = _hashable(settings["targets"])
    total = found.total
    ours = (targets, "all-linear", ("q_proj", "v_proj"))
    other = METHODS[METHODS[0] == method]
    left_out = [DEFAULTS, *({name: value} for name, value in DEFAULTS.items())]
    mistaken = {
        "trainable": {
            "all_parameters": (memory.describe(capstone.MODEL).parameters, found.parameters),
            "targets": tuple(_estimate(method, r, one, batch).trainable for one in ours[1:]),
            "rank": tuple(_estimate(method, one, targets, batch).trainable
                          for one in (8, settings["lora_alpha"])),
        },
        "peak_gib": {
            "held": tuple(found.static / size for size in (1, 10**6, 2**20, 10**9, 2**30)),
            "unit": tuple(total / size for size in (1, 10**6, 2**20, 10**9)),
            "batch": tuple(_estimate(method, r, one, 1).total / 2**30 for one in ours),
            "method": tuple(_estimate(other, r, one, batch).total / 2**30 for one in ours),
            "yardstick": tuple(
                _estimate(method, r, targets, one, **changed).total / 2**30
                for changed in left_out for one in (batch, 1)
            ),
        },
        "minutes": {
            "seconds": settings["steps"] * seconds,
            "questions": tuple(settings["steps"] * batch * seconds / unit for unit in (1, 60)),
        },
    }  # fmt: skip
    right = _right(settings, seconds)
    # On some settings a mistake makes no difference: it is then none.
    return {
        key: {name: tuple(value for value in (values if isinstance(values, tuple) else (values,))
                          if not math.isclose(value, right[key], rel_tol=SAME))
              for name, values in named.items()}
        for key, named in mistaken.items()
    }  # fmt: skip


# --- 8.2 -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A plan that was read: its settings, and what it predicts."""

    method: str
    r: int
    lora_alpha: float
    targets: frozenset[str]
    steps: int
    batch_size: int
    trainable: float
    peak_gib: float
    minutes: float
    accuracy: float

    def estimate(self) -> memory.Estimate:
        """What `loralab.memory` says of the settings, by the yardstick. Raises CourseError."""
        return _estimate(self.method, self.r, tuple(sorted(self.targets)), self.batch_size)


def names() -> frozenset[str]:
    """The last names of the embedded model's linear layers, without its head."""
    return frozenset(one.path.rpartition(".")[2] for one in memory.describe(capstone.MODEL).linear)


def plan(answer: Mapping[str, Any]) -> None:
    """Check that a plan is complete, within the budget, and true to its own settings."""
    compare_plan(answer)
    found = read_plan(answer)
    EXERCISES["plan"].passed(
        f"{found.trainable:,.0f} parameters, {found.peak_gib:.3f} GiB, {found.minutes:.1f} min, "
        f"{found.accuracy:.2f} right")


def plan_data(answer: Any) -> Any:
    """A plan as data: its layers' names as a list, however they were collected."""
    if not isinstance(answer, Mapping):
        return kind_of(answer)
    found = {str(key): value for key, value in answer.items()}
    targets = found.get("targets")
    if isinstance(targets, Iterable) and not isinstance(targets, str):
        found["targets"] = [str(one) for one in targets]
    return found


def read_plan(given: Any) -> Plan:
    """The plan in a dict. Raises WrongAnswer where it is not complete."""
    exercise = EXERCISES["plan"]
    given = plan_data(given)
    if not isinstance(given, Mapping):
        raise exercise.wrong(f"plan() should give a dict; it gave {given}.", "incomplete")
    wanted = (*capstone.SETTINGS, *capstone.PREDICTIONS)
    if lacking := [name for name in wanted if name not in given]:
        raise exercise.wrong(f"The plan has no {', '.join(lacking)}.", "incomplete")

    def bad(name: str, expected: str) -> Exception:
        said = f"{name} is {shortened(given[name])}; it should be {expected}."
        return exercise.wrong(said, "incomplete")

    def number(name: str, low: float, high: float) -> float:
        found = as_number(given[name])
        if found is None or not low <= found <= high:
            raise bad(name, f"a number from {low:g} to {high:g}")
        return found

    def whole(name: str, high: int) -> int:
        found = as_whole(given[name])
        if found is None or not 1 <= found <= high:
            raise bad(name, f"a whole number from 1 to {high:,}")
        return found

    method, targets = given["method"], given["targets"]
    if not isinstance(method, str) or method not in METHODS:
        raise bad("method", '"lora" or "qlora": what is handed in is an adapter')
    if isinstance(targets, str) and targets == "all-linear":
        targets = sorted(names())
    if (not isinstance(targets, list) or not targets or len(targets) > 100
            or not all(isinstance(one, str) for one in targets) or not names() >= set(targets)):
        raise bad("targets", f'"all-linear", or a list of some of {", ".join(sorted(names()))}')
    accuracy = as_number(given["accuracy"])
    if accuracy is not None and 1 < accuracy <= 100:
        raise exercise.wrong(f"accuracy is {accuracy:g}.", "percent")
    number("learning_rate", 1e-9, 10)
    return Plan(
        method, whole("r", MOST_RANK), number("lora_alpha", 1e-3, MOST_ALPHA), frozenset(targets),
        whole("steps", MOST_STEPS), whole("batch_size", MOST_BATCH), number("trainable", 0, 1e12),
        number("peak_gib", 0, 1e6), number("minutes", 0, 1e6), number("accuracy", 0, 1),
    )  # fmt: skip


def compare_plan(
    given: Any, ask: Collection[str] = ("trainable", "peak_gib", "minutes", "budget")
) -> None:
    """ask: which predictions have to follow from the settings, and be within the budget; "budget":
    whether all three are."""
    exercise, found = EXERCISES["plan"], read_plan(given)
    try:
        right = found.estimate()
    except CourseError as error:  # a rank that some layer does not have
        raise exercise.wrong(error.message, "incomplete") from None
    gib = right.total / memory.GiB
    if ("trainable" in ask or "budget" in ask) and right.trainable > BUDGET.trainable:
        raise exercise.wrong(
            f"{right.trainable:,} parameters; {BUDGET.trainable:,} are allowed.", "over_parameters")
    if ("peak_gib" in ask or "budget" in ask) and gib > BUDGET.peak_gib:
        said = f"A peak of {gib:.3f} GiB; {BUDGET.peak_gib:g} are allowed."
        raise exercise.wrong(said, "over_memory")
    if ("minutes" in ask or "budget" in ask) and found.minutes > BUDGET.minutes:
        said = f"{found.minutes:.1f} minutes; {BUDGET.minutes:g} are allowed."
        raise exercise.wrong(said, "over_time")
    if "trainable" in ask and found.trainable != right.trainable:
        raise exercise.wrong(f"trainable is {found.trainable:,.0f}.", "stale")
    if "peak_gib" in ask and not math.isclose(found.peak_gib, gib, rel_tol=SAME):
        raise exercise.wrong(f"peak_gib is {found.peak_gib:.4g}.", "stale")
    seconds = 60 * found.minutes / found.steps
    if "minutes" in ask and not SECONDS[0] <= seconds <= SECONDS[1]:
        said = f"{found.minutes:.4g} minutes for {found.steps} steps: {seconds:.2g} s each."
        raise exercise.wrong(said, "stale")


# --- 8.3 -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter's two files say. `trainable`: counted from the tensors."""

    trainable: int
    r: int
    lora_alpha: float
    targets: frozenset[str]


def compare_budget(found: AdapterFile) -> None:
    """Raise where the file holds more parameters than the budget allows."""
    if found.trainable > BUDGET.trainable:
        said = f"{found.trainable:,} parameters in the file; {BUDGET.trainable:,} are allowed."
        raise EXERCISES["trained_adapter"].wrong(said, "over_budget")


def compare_with_plan(found: AdapterFile, planned: Plan) -> None:
    """Raise where the file is not that of the planned run."""
    differing = [
        f"{name} {mine} in the file, {theirs} in the plan" for name, mine, theirs in (
            ("r:", found.r, planned.r),
            ("lora_alpha:", f"{found.lora_alpha:g}", f"{planned.lora_alpha:g}"),
            ("layers:", "+".join(sorted(found.targets)), "+".join(sorted(planned.targets))),
            ("parameters:", f"{found.trainable:,}", f"{planned.trainable:,.0f}"),
        ) if mine != theirs
    ]  # fmt: skip
    if differing:
        raise EXERCISES["trained_adapter"].wrong(f"{'; '.join(differing)}.", "other_run")


def compare_accuracy(share: float, planned: Plan, said: str = "") -> None:
    """Raise where the share of right answers is far from what the plan says; `said`: before it."""
    if abs(share - planned.accuracy) > CLOSE:
        raise EXERCISES["trained_adapter"].wrong(
            f"{said}{100 * planned.accuracy:.0f} % were predicted.", "surprise")


def trained_adapter(folder: str | Path, given: Mapping[str, Any]) -> None:
    """Check an adapter's files: within the budget, as planned, and what it gets right.

    Accuracy below the budget's goal is named before a prediction that was far off.
    """
    from loralab.checks import ch05

    exercise = EXERCISES["trained_adapter"]
    planned = read_plan(given)
    folder = Path(folder)
    found, largest = _read_file(folder)
    compare_budget(found)
    compare_with_plan(found, planned)
    try:
        share = ch05.held_out_accuracy(folder, capstone.SHOP)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise exercise.wrong(f"The adapter cannot be loaded ({reason}).", "other_base") from None
    right = f"{100 * share:.0f} % of {ch05.HELD_OUT} held-out questions are right"
    if share < BUDGET.accuracy:
        needed = f"{right}; {100 * BUDGET.accuracy:.0f} % are needed."
        if largest < 0.01:  # a trained B reaches 0.1 and more
            raise exercise.wrong(needed, "untrained")
        raise exercise.wrong(needed, "short" if share >= 0.15 else "other_language")
    compare_accuracy(share, planned, f"The goal is met: {right}. But ")
    exercise.passed(f"{found.trainable:,} parameters; {right}, "
                    f"{100 * planned.accuracy:.0f} % were predicted")


def _read_file(folder: Path) -> tuple[AdapterFile, float]:
    """What the files say, and the largest magnitude in any B."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    exercise = EXERCISES["trained_adapter"]
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        targets = config["target_modules"]
        found = AdapterFile(
            sum(one.numel() for one in tensors.values()), int(config["r"]),
            float(config["lora_alpha"]),
            names() if targets == "all-linear" else frozenset(map(str, targets)),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        raise exercise.wrong(f"{folder}/ does not hold the two files.", "missing") from None
    largest = max((t.abs().max().item() for n, t in tensors.items() if "lora_B" in n), default=0.0)
    return found, largest
