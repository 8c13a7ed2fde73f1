"""Chapter 07, Fact-check: the visible checks, and one symptom for each typical wrong answer.

Numbers of claims are compared with `loralab.memory`, bitsandbytes and torch. Of each repaired
set-up the outcome is measured: which layers carry adapters, what is added to a layer's output,
where the loss ends, what TRL makes of an example, what a merged weight is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from loralab import clinic, low_rank, memory
from loralab.checks import Exercise, Symptom, as_number, kind_of, shortened
from loralab.checks.small_models import small_model
from loralab.claims import SETTINGS, VERDICTS
from loralab.quiet import quiet

ATTENTION = ("q_proj", "v_proj")
SCALE = 2.0  # α/r, by the clinic's rule
LEARNT = 5.0  # the tiny model's loss that a run has to get below; it starts at 6.2

FORM = Symptom(
    "A claim has no ruling, or one of another form.",
    "A ruling is a tuple: a verdict (one of the three words), a number, and for a claim that "
    "depends the name of a setting. The docstring names the claims, which are the keys.",
)
VERDICT = Symptom(
    "The number is right, the verdict does not follow from it.",
    "Go back to the rule of section 1. Within 5 % of what is said: holds. True under some settings "
    "that people use and false under others: depends. Otherwise: wrong. What a sentence names "
    "itself (Adam, fp32, r=8) is no setting that it leaves open.",
)
SETTING = Symptom(
    "It depends, but not on that.",
    "Which one setting did you have to change to make the claim true, or false? The list in "
    "section 1 has a word for it.",
)
RULINGS = {"form": FORM, "verdict": VERDICT, "setting": SETTING}
KIND = Symptom(
    "What comes back is not what the set-up should give.",
    "Read the docstring's first line again. Is there a `return`, and does it give the finished "
    "thing, not a configuration for it? If something was raised, its message says what was "
    "refused.",
)

EXERCISES = {
    "memory_rulings": Exercise(
        "memory_rulings",
        "7.1",
        hints=(
            "`memory.estimate(model, method, …)` gives an estimate with `.static` (held between "
            "two steps) and `.total` (the peak), in bytes. Which of the two does each claim need?",
            "For `rank_64` take two estimates that differ in `rank` alone, and pass `batch` and "
            "`seq` to both.",
        ),
        symptoms={
            **RULINGS,
            "three": Symptom(
                "That is three times the weights.",
                "Weights, gradients, and two moments of AdamW: count again how many times the "
                "weights that is.",
            ),
            "half": Symptom(
                "That is in 16 bits.",
                "The lesson's sentence is about fp32 (28 GB for 7B). `memory.estimate` takes bf16 "
                "unless you pass `dtype`.",
            ),
            "unit": Symptom(
                "That is GiB, or bytes.",
                "The lesson counts in GB: 10⁹ bytes.",
            ),
            "peak": Symptom(
                "That is the peak of a step, not what is held between two.",
                "The claim is about weights, gradients and states. Activations come on top: "
                "`.static` leaves them out.",
            ),
            "tokens": Symptom(
                "The batch and the length that were asked for are not in it.",
                "`memory.estimate` takes one sequence of 512 tokens unless you pass `batch` and "
                "`seq`.",
            ),
            "attention": Symptom(
                "That is with adapters on q_proj and v_proj alone.",
                "The docstring asks for every linear layer, which is the default of "
                "`memory.estimate`.",
            ),
            "ratio": Symptom(
                "That is a ratio, not per cent more.",
                "12 GB after 10 GB are 20 per cent more; not 1.2, nor 120.",
            ),
        },
    ),
    "count_rulings": Exercise(
        "count_rulings",
        "7.2",
        hints=(
            "For `printed`, `memory.build(model)` gives the architecture without weights; wrap it "
            "with PEFT, and count what requires a gradient.",
            "For `product`, a wrapped layer has `get_delta_weight(\"default\")`. B starts at zero: "
            "fill it with something first. Or take the factor from the paper's formula.",
        ),
        symptoms={
            **RULINGS,
            "one_matrix": Symptom(
                "Only one of the two matrices is counted.",
                "An adapter has an A and a B.",
            ),
            "share": Symptom(
                "That is a share of the parameters, not how many times fewer.",
                "Divide the large number by the small one.",
            ),
            "no_scale": Symptom(
                "That would be so if nothing stood before B·A.",
                "Compare what PEFT adds with B·A itself, at an α that is not r.",
            ),
            "inverse": Symptom(
                "The factor is upside down.",
                "A larger α makes the update larger.",
            ),
            "rank_multiple": Symptom(
                "That is α in units of r.",
                "The lesson says 2r. The number asked for is α in units of 2r, so that 1 would be "
                "exactly typical.",
            ),
            "square": Symptom(
                "That would be so if v_proj were square.",
                "Print `memory.describe(model).linear`: in models with grouped-query attention "
                "`v_proj` gives fewer numbers than it takes.",
            ),
            "all": Symptom(
                "These include the frozen parameters.",
                "Count those that require a gradient.",
            ),
        },
    ),
    "library_rulings": Exercise(
        "library_rulings",
        "7.3",
        hints=(
            "Run the lesson's call in a cell of your own, and read the error. Then pass "
            "`quantization_config=BitsAndBytesConfig(load_in_8bit=True)`.",
            "`bnb.functional.quantize_4bit(weights, quant_type=\"nf4\")` gives codes and a state; "
            "`dequantize_4bit` takes both. All on the CPU.",
            "Overflow is seen in the result: `.isinf()`, after computing in that dtype.",
        ),
        symptoms={
            **RULINGS,
            "refused": Symptom(
                "A TypeError: the lesson's own call raises one.",
                "That is the evidence for your verdict on `eight_bit`. The number comes from the "
                "call that works today; hint 1 has its argument.",
            ),
            "none": Symptom(
                "No 8-bit layer is counted.",
                "The lesson's call raises. The number asked for is that of the call that works "
                "today: count the modules of class `bnb.nn.Linear8bitLt`.",
            ),
            "head": Symptom(
                "The output head is counted too.",
                "It is an `nn.Linear`, and is not quantised. Count the class of the 8-bit layers.",
            ),
            "fp4": Symptom(
                "That is the error of FP4.",
                "bitsandbytes' default type is FP4. The lesson's configuration asks for NF4.",
            ),
            "absolute": Symptom(
                "That is not relative to the weights.",
                "Divide the norm of the difference by the norm of the weights.",
            ),
            "inputs": Symptom(
                "Nothing overflows in the inputs; what of the outputs?",
                "fp16 ends at 65,504. A sum of many products gets there before its parts do.",
            ),
            "finite": Symptom(
                "These are the outputs that stay finite.",
                "Count those that are infinite in fp16.",
            ),
        },
    ),
    "quality_rulings": Exercise(
        "quality_rulings",
        "7.4",
        hints=(
            "`accuracy` has a list for each setting, one number a run. Compare means.",
            "For `merge`: add, quantise the sum to NF4, dequantise, and compare with the sum. By "
            "what do you divide, if you want to know how large the error is beside the *update*?",
        ),
        symptoms={
            **RULINGS,
            "sign": Symptom(
                "That is the difference the other way round.",
                "The docstring says which mean is subtracted from which.",
            ),
            "one_run": Symptom(
                "Only one run of each setting is used.",
                "A list holds all the runs. One of them alone may be the lucky one.",
            ),
            "of_weights": Symptom(
                "That is small, because it is relative to the weights.",
                "0.09 of the weights may be ten times the update. Divide by the norm of the "
                "update.",
            ),
            "fp4": Symptom(
                "That is FP4, or another format.",
                "`quantize_4bit` takes FP4 unless you pass `quant_type`.",
            ),
        },
    ),
    "adapt": Exercise(
        "adapt",
        "7.5",
        hints=(
            "Print the names of the linear layers of one block, and hold them against the list.",
            "PEFT raises when *no* name matches. What does it say when only some do?",
            "PEFT's LoRA page has a value of `target_modules` that is no list.",
        ),
        symptoms={
            "kind": KIND,
            "some": Symptom(
                "Adapters on some linear layers only.",
                "The names in the list are another architecture's. Those that happen to exist get "
                "an adapter, and nobody says anything about the rest.",
            ),
            "other_model": Symptom(
                "Right for this model, wrong for the next one.",
                "A longer list waits for the next architecture. Let PEFT, or your own code, read "
                "the layers off the model.",
            ),
            "head": Symptom(
                "The output head has an adapter too.",
                "It is a linear layer by class, but not one of the blocks'.",
            ),
            "settings": Symptom(
                "Rank and scale are no longer the patient's.",
                "Repair one thing at a time: rank 8 and α = 16 were not the illness.",
            ),
        },
    ),
    "widen": Exercise(
        "widen",
        "7.6",
        hints=(
            "Print `LoraConfig(r=64)`. Which number did not move when `r` did?",
            "What multiplies B·A at r = 8, and what at r = 64?",
        ),
        symptoms={
            "kind": KIND,
            "default": Symptom(
                "α is PEFT's default at every rank.",
                "`lora_alpha` is 8 unless you say otherwise, so that a larger `r` divides the "
                "update by more.",
            ),
            "fixed": Symptom(
                "The scale is right at one rank only.",
                "An α that is a constant is divided by every `r` anew.",
            ),
            "rslora": Symptom(
                "The scale still changes with the rank, though more slowly.",
                "rsLoRA divides by √r instead of r. That is a repair for other settings of α; "
                "what α would keep the factor at 2?",
            ),
            "scale": Symptom(
                "The factor before B·A is not 2.",
                "Work out α/r for the ranks 4 and 64.",
            ),
            "rank": Symptom(
                "The rank is not the one that was asked for.",
                "`r` is an argument: it belongs into the configuration.",
            ),
            "layers": Symptom(
                "Adapters sit on other layers than the patient's.",
                "It was q_proj and v_proj of every block. Repair one thing at a time.",
            ),
        },
    ),
    "arguments": Exercise(
        "arguments",
        "7.7",
        hints=(
            "`SFTConfig.__dataclass_fields__[\"learning_rate\"].default` is for which method?",
            "Which learning rate have the recorded runs that did learn? After `from loralab import "
            "recorded_runs`: `recorded_runs.recorded()[\"QLoRA\"].config.learning_rate`.",
        ),
        symptoms={
            "kind": KIND,
            "default": Symptom(
                "The learning rate is SFTConfig's default.",
                "Adapters start at zero and are few: they need steps ten to a hundred times as "
                "long as full fine-tuning's.",
            ),
            "low": Symptom(
                "The loss falls, but far too slowly.",
                "2e-4, common for large models and long runs, does little in 40 steps. The second "
                "hint shows a recorded run's learning rate.",
            ),
            "high": Symptom(
                "A tenth of this learning rate does better.",
                "The loss falls at first, and then no further. Ten times more than the runs that "
                "work is too much.",
            ),
            "steps": Symptom(
                "The run does not have the steps that were asked for.",
                "`steps` is an argument: the patient passed it on as `max_steps`.",
            ),
        },
    ),
    "example": Exercise(
        "example",
        "7.8",
        hints=(
            "Compare the two texts above letter by letter. Who writes `<|im_start|>`?",
            "TRL applies the template where it sees *messages*: lists of dicts with a `role` and "
            "a `content`. Prompt and completion may both be such lists.",
        ),
        symptoms={
            "kind": Symptom(
                "TRL cannot train on this.",
                "An example is a dict with `prompt` and `completion`, both texts or both lists of "
                "messages. A message has a `role` and a `content`.",
            ),
            "plain": Symptom(
                "The template is still not applied.",
                "These are plain texts, and TRL leaves them as they are. The word `user` in a "
                "text is not a role.",
            ),
            "twice": Symptom(
                "The template is applied twice.",
                "There are markers inside a message. Who wraps a message's content?",
            ),
            "roles": Symptom(
                "A template, but not what the application sends.",
                "Compare with `clinic.asked(question)`. Whose turn is the question, and whose the "
                "answer?",
            ),
            "all": Symptom(
                "The loss is taken on the question too.",
                "With one text, or one list of messages, TRL learns all of it. Part it into prompt "
                "and completion.",
            ),
            "answer": Symptom(
                "What is learnt is not the answer and its end.",
                "The completion is the assistant's message: the answer as it is. TRL or the "
                "template adds the end-of-turn token (the template, a line break after it too).",
            ),
        },
    ),
    "make_labels": Exercise(
        "make_labels",
        "7.9",
        hints=(
            "Padding and the end of the answer have the same token id here. Which argument can "
            "still tell them apart?",
            "`attention_mask.cumsum(1)` numbers the real tokens of each row 1, 2, 3 …, on "
            "whichever side the padding is.",
        ),
        symptoms={
            "kind": KIND,
            "eos": Symptom(
                "No end token is learnt.",
                "Comparing ids with the padding token's hides the real end tokens as well, and "
                "the model never learns to stop.",
            ),
            "prompt": Symptom(
                "The prompt is in the loss.",
                "The first `prompt_lengths` real tokens of each row are the question.",
            ),
            "padding": Symptom(
                "Padding is in the loss.",
                "Where `attention_mask` is 0, there is nothing to learn.",
            ),
            "side": Symptom(
                "Right for padding on the right only.",
                "With padding on the left the prompt does not start at place 0.",
            ),
            "shifted": Symptom(
                "The labels are shifted.",
                "transformers shifts them itself: the label of a place is the token at that place.",
            ),
        },
    ),
    "deploy": Exercise(
        "deploy",
        "7.10",
        hints=(
            "What is the class of the layers after `merge_and_unload()`? What happens to a sum "
            "that has to be stored in 16 levels?",
            "The adapter's folder does not care in which dtype the base is loaded. And a model in "
            "4 bits has a method `dequantize()`; before the merge, or after?",
        ),
        symptoms={
            "kind": KIND,
            "few_bits": Symptom(
                "The merged layers are still in 4 or 8 bits.",
                "The sum was rounded to a few levels, and the update is smaller than the step "
                "between two of them.",
            ),
            "late": Symptom(
                "Dequantised, but after the merge.",
                "Every weight still lies on one of 16 levels: the sum was rounded before it was "
                "dequantised.",
            ),
            "unmerged": Symptom(
                "There are still adapters in it.",
                "What is deployed should be a plain model: nothing of PEFT is left in it.",
            ),
            "lost": Symptom(
                "The adapter is gone, and nothing of it is in the weights.",
                "`unload()` takes adapters away without merging. Or was none ever loaded?",
            ),
            "twice": Symptom(
                "The adapter is in the weights twice.",
                "One merge is enough.",
            ),
            "rounded": Symptom(
                "Merged, but the update is rounded away in part.",
                "Which dtype was the base loaded in? Merge in fp32, and round afterwards.",
            ),
        },
    ),
}  # fmt: skip


# --- rulings -------------------------------------------------------------------------------------


class Right(NamedTuple):
    """The right ruling on a claim. `settings`: those that may be named, if it depends.
    `typical`: a symptom's key → the number (or numbers) of that mistake."""

    verdict: str
    number: float
    settings: tuple[str, ...] = ()
    typical: Mapping[str, float | tuple[float, ...]] = {}
    rel_tol: float = 0.005


def compare_rulings(exercise: Exercise, case: str, given: Any, right: Mapping[str, Right]) -> None:
    """Number, verdict and setting of each claim in `right`, in this order."""
    for claim, wanted in right.items():
        found = given.get(claim) if isinstance(given, Mapping) else None
        where = f"{case}[{claim!r}]"
        if not isinstance(found, list | tuple) or len(found) not in (2, 3):
            said = kind_of(given) if not isinstance(given, Mapping) else shortened(found)
            raise exercise.wrong(f"{where} should be a verdict and a number; it is {said}.", "form")
        verdict, number, *more = found
        if not isinstance(verdict, str) or verdict not in VERDICTS or as_number(number) is None:
            raise exercise.wrong(f"{where} is {shortened(found)}.", "form")
        if not math.isfinite(as_number(number)):
            raise exercise.wrong(f"{where}: the number is not finite.")
        exercise.expect_number(where, number, wanted.number, wanted.typical, wanted.rel_tol, False)
        if verdict != wanted.verdict:
            raise exercise.wrong(f"{where}: your verdict is {verdict!r}.", "verdict")
        if wanted.settings:
            named = more[0] if more else None
            if not isinstance(named, str) or named not in SETTINGS:
                raise exercise.wrong(f"{where} should name one of {list(SETTINGS)}.", "setting")
            if named not in wanted.settings:
                raise exercise.wrong(f"{where}: you name {named!r}.", "setting")


def memory_rulings(answer: Callable[[str, int, int], Any]) -> None:
    """The memory claims, for two models."""
    for case in (("llama-2-7b", 8, 2048), ("llama-3.2-1b", 2, 1024)):
        compare_rulings(EXERCISES["memory_rulings"], f"memory_rulings{case}", answer(*case),
                        memory_right(*case))
    EXERCISES["memory_rulings"].passed("one wrong, two that depend")


def memory_right(model: str, batch: int, seq: int) -> Mapping[str, Right]:
    """What `loralab.memory` says of the memory claims."""
    full = memory.estimate(model, "full", dtype="fp32")
    held = full.static / memory.GB
    half = memory.estimate(model, "full").static / memory.GB

    def peak(method: str = "qlora", **more: Any) -> float:
        return memory.estimate(model, method, batch=batch, seq=seq, **more).total / memory.GB

    small, large = peak(rank=8), peak(rank=64)
    extra = 100 * (large / small - 1)
    narrow = peak(rank=8, targets=ATTENTION), peak(rank=64, targets=ATTENTION)
    default = memory.estimate(model).total / memory.GB
    default_64 = memory.estimate(model, rank=64).total / memory.GB
    return {
        "three_times": Right("wrong", held, typical={
            "three": 0.75 * held, "half": (half, 0.75 * half),
            "unit": (full.static / memory.GiB, full.static),
            "peak": full.total / memory.GB,
        }),
        "table": Right("depends", small, ("batch",), {
            "tokens": default, "unit": (small * memory.GB / memory.GiB, small * memory.GB),
            "attention": narrow[0],
        }),
        "rank_64": Right("depends", extra, ("targets", "batch", "base"), {
            "attention": 100 * (narrow[1] / narrow[0] - 1), "ratio": (large / small, 100 + extra),
            "tokens": 100 * (default_64 / default - 1),
        }),
    }  # fmt: skip


def count_rulings(answer: Callable[[str, int, int, int], Any]) -> None:
    """The claims about counts and formulas, as in the lesson and at other settings."""
    for case in (("llama-3.2-1b", 4096, 8, 32), ("mistral-7b", 2048, 16, 24)):
        compare_rulings(EXERCISES["count_rulings"], f"count_rulings{case}", answer(*case),
                        count_right(*case))
    EXERCISES["count_rulings"].passed("two wrong, one that depends, one that holds")


def count_right(model: str, d: int, r: int, alpha: int) -> Mapping[str, Right]:
    """What shapes and formulas say of the claims about counts."""
    arch = memory.describe(model)
    trained = memory.estimate(model, "lora", rank=r, targets=ATTENTION).trainable
    times = d / (2 * r)
    return {
        "times_250": Right("holds", times, typical={
            "one_matrix": 2 * times, "share": (1 / times, 100 / times)}),
        "product": Right("depends", alpha / r, ("alpha", "rank"), {
            "no_scale": (1, 0), "inverse": r / alpha}),
        "alpha_2r": Right("wrong", alpha / (2 * r), typical={"rank_multiple": alpha / r}),
        "printed": Right("wrong", trained, typical={
            "square": arch.layers * 2 * r * 2 * arch.hidden,
            "all": (arch.parameters, arch.parameters + trained)}, rel_tol=1e-9),
    }  # fmt: skip


def library_rulings(answer: Callable[[str, torch.Tensor, torch.Tensor], Any]) -> None:
    """The claims about libraries and hardware, on two small models."""
    for seed, layers in (("a", 2), ("b", 3)):
        case = Numbers.draw(f"visible {seed}", layers)
        name = f"library_rulings(folder {seed}, …)"
        try:
            with quiet():
                given = answer(case.trained.base, case.weights, case.x)
        except TypeError as error:
            if "load_in_8bit" not in str(error):
                raise
            given = Raised(f"TypeError: {error}")
        compare_library(name, given, case.right())
    EXERCISES["library_rulings"].passed("two wrong, one that depends")


def compare_library(case: str, given: Any, right: Mapping[str, Right]) -> None:
    """given: rulings, or `Raised` where the lesson's call was made."""
    if isinstance(given, Raised):
        raise EXERCISES["library_rulings"].wrong(f"{case} raised {given.said}.", "refused")
    compare_rulings(EXERCISES["library_rulings"], case, given, right)


@dataclass(frozen=True)
class Numbers:
    """A saved model, weights (out, in), and inputs (n, in) some of whose outputs overflow."""

    trained: clinic.Trained
    weights: torch.Tensor = field(compare=False)
    x: torch.Tensor = field(compare=False)

    @classmethod
    def draw(cls, seed: str, layers: int) -> Numbers:
        return cls(clinic.Trained(seed, layers=layers), *clinic.with_outliers(seed))

    def right(self) -> Mapping[str, Right]:
        layers = 7 * self.trained.layers
        error = round_trip(self.weights)
        exact = (self.x.double() @ self.weights.double().T).abs()
        over = int((exact > clinic.FP16_MAX).sum())
        norm = self.weights.norm().item()
        return {
            "eight_bit": Right("wrong", layers, typical={"none": 0, "head": layers + 1},
                               rel_tol=1e-9),
            "cpu": Right("wrong", error, typical={
                "fp4": round_trip(self.weights, "fp4"), "absolute": error * norm}),
            "fp16": Right("depends", over, ("hardware",), {
                "inputs": 0, "finite": exact.numel() - over}, 1e-9),
        }  # fmt: skip


def rounded(weights: torch.Tensor, kind: str = "nf4") -> torch.Tensor:
    """`weights` in bitsandbytes' 4-bit format `kind` and back."""
    import bitsandbytes as bnb

    codes, state = bnb.functional.quantize_4bit(weights.contiguous(), quant_type=kind)
    return bnb.functional.dequantize_4bit(codes, state)


def round_trip(weights: torch.Tensor, kind: str = "nf4") -> float:
    """The relative error ‖W − Ŵ‖/‖W‖ of a 4-bit format."""
    return ((weights - rounded(weights, kind)).norm() / weights.norm()).item()


def quality_rulings(answer: Callable[..., Any]) -> None:
    """The claims about quality, on made-up runs and on a made-up update."""
    for seed, accuracy in (
        ("a", {"full": [1.0], "LoRA": [0.9, 0.5], "QLoRA": [0.8, 0.7], "q and v": [0.1, 0.2]}),
        ("b", {"full": [0.8], "LoRA": [0.3, 0.7, 0.8], "QLoRA": [0.6, 0.9], "q and v": [0.5]}),
    ):
        case = Merge.draw(f"visible {seed}", accuracy)
        given = answer(case.accuracy, case.weights, case.update)
        compare_rulings(EXERCISES["quality_rulings"], f"quality_rulings(runs {seed}, …)", given,
                        case.right())
    EXERCISES["quality_rulings"].passed("all three depend")


@dataclass(frozen=True)
class Merge:
    """Accuracies by setting, and weights on NF4's grid with an update of rank 4."""

    accuracy: Mapping[str, Sequence[float]]
    weights: torch.Tensor
    update: torch.Tensor

    @classmethod
    def draw(cls, seed: str, accuracy: Mapping[str, Sequence[float]]) -> Merge:
        return cls(accuracy, *clinic.small_update(seed))

    def right(self) -> Mapping[str, Right]:
        mean = {name: statistics.mean(found) for name, found in self.accuracy.items()}
        first = {name: found[0] for name, found in self.accuracy.items()}
        targets, quality = mean["QLoRA"] - mean["q and v"], mean["LoRA"] - mean["QLoRA"]
        total, size = self.weights + self.update, self.update.norm()
        left = ((rounded(total) - total).norm() / size).item()
        return {
            "targets": Right("depends", targets, ("task",), {
                "sign": -targets, "one_run": first["QLoRA"] - first["q and v"]}),
            "quality": Right("depends", quality, ("seed", "task"), {
                "sign": -quality, "one_run": first["LoRA"] - first["QLoRA"]}),
            "merge": Right("depends", left, ("base",), {
                "of_weights": (round_trip(total), left * (size / self.weights.norm()).item()),
                "fp4": ((rounded(total, "fp4") - total).norm() / size).item()}, 0.01),
        }  # fmt: skip


# --- patients ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Raised:
    """An answer that ended in an exception; `said`: its kind and first line."""

    said: str


MISFITS = (RuntimeError, ValueError, IndexError, AttributeError, TypeError, KeyError)


def attempt(answer: Callable[..., Any], *given: Any) -> Any:
    """What `answer` returns, or `Raised`. A stub's NotImplementedError is left alone."""
    try:
        return answer(*given)
    except NotImplementedError:
        raise
    except MISFITS as error:
        first = str(error).splitlines()[0][:200] if str(error) else ""
        return Raised(f"{type(error).__name__}: {first}".rstrip(". "))


def _plain_path(path: str) -> str:
    return path.removeprefix("base_model.model.").removesuffix(".base_layer")


def _adapted(model: nn.Module) -> dict[str, Any]:
    """path → the layer with LoRA's matrices."""
    return {_plain_path(path): module for path, module in model.named_modules()
            if hasattr(module, "lora_A") and hasattr(module, "scaling")}  # fmt: skip


def _report_of(exercise: Exercise, case: str, found: Any, key: str) -> Any:
    """`found[key]` of a report, where the answer was of the right kind."""
    if isinstance(found, Raised):
        raise exercise.wrong(f"{case} raised {found.said}.", "kind")
    if not isinstance(found, Mapping) or key not in found:
        said = found.get("kind") if isinstance(found, Mapping) else None
        raise exercise.wrong(f"{case} gave {shortened(said or kind_of(found))}.", "kind")
    return found[key]


# 7.5


@dataclass(frozen=True)
class Case:
    """A small model of that kind: its linear layers' paths, and its head's."""

    kind: str
    sizes: tuple[tuple[str, int], ...]
    renamed: tuple[tuple[str, str], ...] = ()

    def make(self) -> nn.Module:
        return small_model(self.kind, dict(self.renamed), **dict(self.sizes))

    def layers(self) -> tuple[set[str], str]:
        from transformers.pytorch_utils import Conv1D

        model = self.make()
        head = model.get_output_embeddings()
        paths = {path for path, one in model.named_modules()
                 if isinstance(one, nn.Linear | Conv1D) and one is not head}  # fmt: skip
        return paths, next(path for path, one in model.named_modules() if one is head)


def small_sizes(heads: int = 2, layers: int = 2, vocab: int = 60) -> tuple[tuple[str, int], ...]:
    """Settings that every kind of small model takes."""
    sizes = {"hidden_size": 16 * heads, "num_hidden_layers": layers, "num_attention_heads": heads,
             "vocab_size": vocab, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    return tuple(sizes.items())


def adapt(answer: Callable[[nn.Module], Any]) -> None:
    """Run the repaired set-up on small models of three architectures."""
    cases = [Case(kind, small_sizes()) for kind in ("phi3", "llama", "gpt_neox")]
    with quiet():
        compare_adapt(lambda case: attempt(lambda: adapted_report(answer(case.make()))), cases)
    EXERCISES["adapt"].passed("an adapter on every linear layer of three architectures")


def adapted_report(model: Any) -> dict[str, Any]:
    """Where a wrapped model has adapters, with their ranks and scales, as data."""
    if not isinstance(model, nn.Module):
        return {"kind": kind_of(model)}
    found = _adapted(model)
    return {
        "paths": list(found),
        "settings": [[float(next(iter(one.r.values()))), float(next(iter(one.scaling.values())))]
                     for one in found.values()],
        "others": [name for name, one in model.named_parameters()
                   if one.requires_grad and "lora_" not in name][:20],
    }  # fmt: skip


def compare_adapt(ask: Callable[[Case], Any], cases: Iterable[Case]) -> None:
    """`ask`: case → the report of the answer's model. The first case is the patient's own kind."""
    exercise = EXERCISES["adapt"]
    for number, case in enumerate(cases):
        name = f"adapt(a small {case.kind} model)"
        found = ask(case)
        if isinstance(found, Raised) and number:
            raise exercise.wrong(f"{name} raised {found.said}.", "other_model")
        paths = _report_of(exercise, name, found, "paths")
        paths = {one for one in paths if isinstance(one, str)} if isinstance(paths, list) else set()
        linear, head = case.layers()
        if head in paths:
            raise exercise.wrong(f"{name}: {head} has an adapter.", "head")
        if linear - paths:
            said = f"{name}: {len(linear & paths)} of {len(linear)} linear layers have an adapter."
            raise exercise.wrong(said, "other_model" if number else "some")
        settings = found.get("settings")
        same = isinstance(settings, list) and all(
            isinstance(one, list) and [as_number(each) for each in one] == [8, SCALE]
            for one in settings)  # fmt: skip
        if not same or found.get("others"):
            raise exercise.wrong(f"{name}: rank, scale or what else is trained differ.", "settings")


# 7.6


def widen(answer: Callable[[nn.Module, int], Any]) -> None:
    """Measure what is added at three ranks, then train at ranks 8 and 64."""
    ranks = [(r, f"visible {r}") for r in (8, 64, 4)]
    with quiet():
        compare_widen(lambda r, seed: attempt(
            lambda: widened_report(answer(clinic.tiny_llama(), r), seed)), ranks)  # fmt: skip
        ends = []
        for r in (8, 64):
            torch.manual_seed(0)
            losses = clinic.train(answer(clinic.tiny_llama(), r), rate=3e-3)
            ends.append(statistics.mean(losses[-5:]))
    EXERCISES["widen"].passed(
        f"the loss now ends at {ends[0]:.2f} with rank 8 and at {ends[1]:.2f} with rank 64")


def widened_report(model: Any, seed: str) -> dict[str, Any]:
    """For each adapted layer: A, B (filled from `seed`) and what the adapter adds to an output."""
    if not isinstance(model, nn.Module):
        return {"kind": kind_of(model)}
    model.eval()
    layers = []
    for path, layer in _adapted(model).items():
        A, B = (next(iter(one.values())).weight.data for one in (layer.lora_A, layer.lora_B))
        B.copy_(low_rank.normal(f"{seed} {path}", *B.shape))
        x = low_rank.normal(f"{seed} {path} x", 3, A.shape[1])
        with torch.no_grad():
            added = layer(x) - layer.base_layer(x)
        layers.append({"path": path, "A": A, "B": B, "added": added})
    return {"layers": layers}


def compare_widen(ask: Callable[[int, str], Any], cases: Sequence[tuple[int, str]]) -> None:
    """`ask`: (rank, seed) → the report of the answer's model. The first rank should be 8, so that
    a scale which is right there only is named so."""
    exercise = EXERCISES["widen"]
    wanted = {one.path for one in memory.describe(clinic.tiny_llama()).linear
              if one.name in ATTENTION}  # fmt: skip
    factors: dict[int, float] = {}
    for r, seed in cases:
        name = f"widen(model, {r})"
        layers = _report_of(exercise, name, ask(r, seed), "layers")
        layers = layers if isinstance(layers, list) else []
        layers = [one for one in layers if isinstance(one, Mapping)]
        if {str(one.get("path")) for one in layers} != wanted:
            raise exercise.wrong(f"{name}: {len(layers)} layers have adapters.", "layers")
        factors[r] = _factor(exercise, name, layers, r, seed)
    if all(math.isclose(one, SCALE, rel_tol=0.01) for one in factors.values()):
        return
    said = ", ".join(f"{one:.3g} at rank {r}" for r, one in factors.items())
    key = "scale"
    for mistake, formula in (("default", lambda r: 8 / r), ("fixed", lambda r: 16 / r)):
        if all(math.isclose(one, formula(r), rel_tol=0.01) for r, one in factors.items()):
            key = mistake
    roots = [one * r**0.5 for r, one in factors.items()]
    if max(roots) <= 1.01 * min(roots):
        key = "rslora"
    products = [one * r for r, one in factors.items()]
    if key == "scale" and max(products) <= 1.01 * min(products):
        key = "fixed"
    raise exercise.wrong(f"The factor before B·A is {said}.", key)


def _factor(exercise: Exercise, name: str, layers: Sequence[Any], r: int, seed: str) -> float:
    """What multiplies B·A in what the layers add: one number for all of them."""
    found = []
    for layer in layers:
        A, B, added = (_tensor(layer.get(key)) for key in ("A", "B", "added"))
        if A is None or B is None or added is None or A.dim() != 2 or B.dim() != 2:
            raise exercise.wrong(f"{name}: an adapter is not two matrices.", "kind")
        if A.shape[0] != r or B.shape[1] != r:
            raise exercise.wrong(f"{name}: an adapter has the rank {A.shape[0]}.", "rank")
        x = low_rank.normal(f"{seed} {layer['path']} x", 3, A.shape[1]).double()
        right = x @ A.T @ B.T
        if added.shape != right.shape or not right.norm() > 0:
            raise exercise.wrong(f"{name}: an adapter has other shapes.", "kind")
        found.append(((added * right).sum() / right.square().sum()).item())
        if not (added - found[-1] * right).norm() <= 1e-3 * added.norm():
            raise exercise.wrong(f"{name}: what is added is no multiple of B·A.", "kind")
    if not max(found) - min(found) <= 0.01 * abs(found[0]):
        raise exercise.wrong(f"{name}: layers are scaled differently.", "scale")
    return found[0]


def _tensor(given: Any) -> torch.Tensor | None:
    """A float64 tensor of what a report holds, if it is a real one."""
    if not torch.is_tensor(given) or given.is_complex() or given.dtype == torch.bool:
        return None
    return given.detach().to(torch.float64)


# 7.7

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


def arguments(answer: Callable[[str, int], Any]) -> None:
    """Run the tiny model's training with the repaired arguments."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder, quiet():
        loss = compare_arguments(
            lambda steps: attempt(lambda: training_fields(answer(folder, steps))), [40])
    EXERCISES["arguments"].passed(f"the tiny model's loss ends at {loss:.2f}; it was 6.2")


def training_fields(config: Any) -> dict[str, Any]:
    """What of an SFTConfig decides the run, as data."""
    from transformers import TrainingArguments

    if not isinstance(config, TrainingArguments):
        return {"kind": kind_of(config)}
    schedule = config.lr_scheduler_type
    return {"learning_rate": float(config.learning_rate), "max_steps": int(config.max_steps),
            "schedule": str(getattr(schedule, "value", schedule))}  # fmt: skip


def compare_arguments(ask: Callable[[int], Any], cases: Iterable[int]) -> float:
    """`ask`: steps → the fields of the answer's configuration. Returns the last loss."""
    exercise, loss = EXERCISES["arguments"], math.nan
    for steps in cases:
        name = f"arguments(folder, {steps})"
        fields = ask(steps)
        rate = as_number(_report_of(exercise, name, fields, "learning_rate"))
        if rate is None or not 0 < rate < 1e6:
            raise exercise.wrong(f"{name}: {shortened(rate)} is no learning rate.", "kind")
        if as_number(fields.get("max_steps")) != steps:
            said = shortened(fields.get("max_steps"))
            raise exercise.wrong(f"{name}: max_steps is {said}.", "steps")
        schedule = fields.get("schedule")
        schedule = schedule if isinstance(schedule, str) and schedule in SCHEDULES else "linear"
        said = f"{name}: the learning rate is {rate:g}"
        if math.isclose(rate, 2e-5, rel_tol=0.01):
            raise exercise.wrong(f"{said}.", "default")
        loss = last_loss(rate, steps, schedule)
        if not loss < LEARNT:
            raise exercise.wrong(f"{said}, and the tiny model's loss ends at {loss:.2f}.",
                                 "high" if rate > 1e-2 else "low")
        if rate > 1e-2 and (less := last_loss(rate / 10, steps, schedule)) < loss:
            raise exercise.wrong(f"{said}: {loss:.2f}; at a tenth of it {less:.2f}.", "high")
    return loss


@lru_cache(maxsize=64)
def last_loss(rate: float, steps: int, schedule: str = "linear") -> float:
    """The mean of the last five losses of a run on the tiny model."""
    from peft import LoraConfig, get_peft_model

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        losses = clinic.train(get_peft_model(clinic.tiny_llama(), config), rate, steps,
                              schedule=schedule)
    return statistics.mean(losses[-5:])


# 7.8

Pair = tuple[str, str]  # question, answer


def example(answer: Callable[[str, str], Any]) -> None:
    """Let TRL prepare the repaired examples, and compare with what the application sends."""
    compare_example(lambda q, a: attempt(answer, q, a), [
        ("What is the capital of Peru?", "Lima."), ("Name a prime above 10.", "Eleven."),
    ])  # fmt: skip
    EXERCISES["example"].passed("trained on what the application sends; the loss is on the answer")


def compare_example(ask: Callable[[str, str], Any], cases: Iterable[Pair]) -> None:
    """What is learnt must be the answer and its end, after exactly what the application sends."""
    exercise = EXERCISES["example"]
    for question, answer in cases:
        name = f"example({question!r}, {answer!r})"
        row = ask(question, answer)
        if isinstance(row, Raised):
            raise exercise.wrong(f"{name} raised {row.said}.", "kind")
        if not _trainable(row):
            raise exercise.wrong(f"{name} gave {shortened(row)}.", "kind")
        try:
            ((tokens, labels),) = clinic.prepared([row])
        except Exception as error:  # TRL, datasets and Jinja raise of many kinds
            said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
            raise exercise.wrong(f"{name}: TRL refuses it ({said}).", "kind") from None
        _compare_text(exercise, name, question, answer, tokens, labels)


def _trainable(row: Any) -> bool:
    """Whether TRL may be given this: known keys, each a text or a list of plain messages."""
    if not isinstance(row, Mapping) or set(row) not in (
        {"prompt", "completion"}, {"messages"}, {"text"}
    ):  # fmt: skip
        return False

    def text(one: Any) -> bool:
        return isinstance(one, str) and len(one) < 4000

    def turn(one: Any) -> bool:
        return isinstance(one, Mapping) and set(one) == {"role", "content"} and all(
            text(each) for each in one.values())  # fmt: skip

    return all(
        text(one) if not isinstance(one, list | tuple) else 0 < len(one) < 9 and all(map(turn, one))
        for one in row.values()
    ) and len({isinstance(one, str) for one in row.values()}) == 1  # fmt: skip


def _compare_text(
    exercise: Exercise, name: str, question: str, answer: str,
    tokens: Sequence[int], labels: Sequence[int],
) -> None:  # fmt: skip
    decode = clinic.tokenizer().decode
    text = decode(list(tokens))
    learnt = decode([t for t, label in zip(tokens, labels) if label != clinic.IGNORED])
    sent, said = clinic.asked(question), f"{name} is trained on {shortened(text)}."
    if text.count("<|im_start|>") > 2 and "\n<|im_start|>user\n<|im_start|>" in "\n" + text:
        raise exercise.wrong(said, "twice")
    if "<|im_start|>" not in text:
        raise exercise.wrong(said, "plain")
    if not text.startswith(sent):
        raise exercise.wrong(said, "roles")
    if question in learnt:
        raise exercise.wrong(said, "all")
    if learnt.rstrip("\n") != answer + "<|im_end|>" or text != sent + learnt:
        raise exercise.wrong(f"{name}: what is learnt is {shortened(learnt)}.", "answer")


# 7.9

Batch = Mapping[str, torch.Tensor]


def make_labels(answer: Callable[..., Any]) -> None:
    """The repaired labels on batches that are padded on either side."""
    sums = [("1 + 1 =", " 2"), ("70 + 50 =", " 120"), ("3 + 4 + 5 =", " 12")]
    chats = [(clinic.asked(question), answer) for question, answer in
             (("Hi", "Hello!"), ("How are you?", "Fine."))]  # fmt: skip
    batches = [clinic.padded(pairs, side) for side in ("right", "left") for pairs in (sums, chats)]
    compare_labels(lambda **batch: attempt(lambda: answer(**batch)), batches)
    EXERCISES["make_labels"].passed("the answer and its end, nothing else")


def compare_labels(ask: Callable[..., Any], batches: Iterable[Batch]) -> None:
    """Every label of each batch; the first batch should be padded on the right."""
    exercise = EXERCISES["make_labels"]
    for batch in batches:
        given = {key: one.clone() for key, one in batch.items()}
        found = ask(**given)
        right = right_labels(batch)
        if isinstance(found, Raised):
            raise exercise.wrong(f"make_labels raised {found.said}.", "kind")
        labels = _tensor(found if torch.is_tensor(found) else _as_tensor(found))
        if labels is None or labels.shape != right.shape:
            raise exercise.wrong(f"make_labels should give {tuple(right.shape)} labels.", "kind")
        if torch.equal(labels, right.double()):
            continue
        wrong = next((key for key, mistaken in _typical_labels(batch)
                      if torch.equal(labels, mistaken.double())), None)
        wrong = wrong or _fault(labels, right, batch)
        row = int((labels != right).any(1).nonzero()[0])
        shown = clinic.marked(batch["input_ids"][row].tolist(),
                              [int(one) if abs(one) < 1e6 else 0 for one in
                               labels[row].nan_to_num(0).clamp(-1e9, 1e9).tolist()])
        raise exercise.wrong(f"make_labels: the loss is taken on {shortened(shown)}.", wrong)


def _as_tensor(given: Any) -> torch.Tensor | None:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def right_labels(batch: Batch) -> torch.Tensor:
    """Real tokens after the prompt keep their id; all others are ignored."""
    ids, mask, lengths = (batch[key] for key in ("input_ids", "attention_mask", "prompt_lengths"))
    place = mask.cumsum(1)
    return torch.where((mask == 1) & (place > lengths[:, None]), ids, clinic.IGNORED)


def _typical_labels(batch: Batch) -> list[tuple[str, torch.Tensor]]:
    ids, mask, lengths = (batch[key] for key in ("input_ids", "attention_mask", "prompt_lengths"))
    right, ignored = right_labels(batch), clinic.IGNORED
    no_end = torch.where(ids == clinic.tokenizer().pad_token_id, ignored, ids)
    place = torch.arange(ids.shape[1])
    from_left = (mask == 1) & (place >= lengths[:, None])
    shifted = torch.cat([right[:, 1:], torch.full_like(right[:, :1], ignored)], 1)
    return [
        ("eos", no_end),
        ("eos", torch.where(right == ignored, ignored, no_end)),
        ("prompt", torch.where(mask == 1, ids, ignored)),
        ("padding", torch.where((right == ignored) & (mask == 1), ignored, ids)),
        ("side", torch.where(from_left, ids, ignored)),
        ("shifted", shifted),
    ]


def _fault(labels: torch.Tensor, right: torch.Tensor, batch: Batch) -> str | None:
    """The first kind of place where a label is wrong."""
    learnt, mask = labels != clinic.IGNORED, batch["attention_mask"] == 1
    if (learnt & ~mask).any():
        return "padding"
    if (learnt & mask & (right == clinic.IGNORED)).any():
        return "prompt"
    return None


# 7.10


def deploy(answer: Callable[[str, str], Any]) -> None:
    """Run the repaired deployment, and look at every weight."""
    patients = [clinic.Trained("visible"), clinic.Trained("visible too", r=2, lora_alpha=16)]
    with quiet():
        compare_deploy(lambda one: attempt(
            lambda: deployed_report(answer(one.base, one.adapter))), patients)  # fmt: skip
        patient = clinic.Trained("patient")
        error = patient.error(answer(patient.base, patient.adapter))
    EXERCISES["deploy"].passed(
        f"the whole update is in it; its error, measured as above: {error:,.1f} %")


def deployed_report(model: Any) -> dict[str, Any]:
    """What a deployed model is made of, as data: its linear layers' weights, dequantised."""
    import bitsandbytes as bnb

    if not isinstance(model, nn.Module):
        return {"kind": kind_of(model)}
    weights, in_few_bits = {}, 0
    for path, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(layer, nn.Linear) or hasattr(layer, "base_layer") or ".lora_" in path:
            continue
        if isinstance(weight, bnb.nn.Params4bit):
            in_few_bits += 1
            weight = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        elif isinstance(weight, bnb.nn.Int8Params):
            in_few_bits += 1
            weight = weight.data * (weight.SCB[:, None] / 127)
        weights[_plain_path(path)] = weight.detach().float().cpu()
    return {"weights": weights, "in_few_bits": in_few_bits, "adapters": len(_adapted(model))}


def compare_deploy(ask: Callable[[clinic.Trained], Any], cases: Iterable[clinic.Trained]) -> None:
    """`ask`: patient → the report of the answer's model. Its weights must be a base's, the 16-bit
    one or the dequantised, plus the update, to a tenth of the update."""
    exercise = EXERCISES["deploy"]
    for patient in cases:
        found = ask(patient)
        weights = _report_of(exercise, "deploy(base, adapter)", found, "weights")
        if as_number(found.get("adapters")) != 0:
            raise exercise.wrong("deploy(base, adapter) gave a model with adapters.", "unmerged")
        updates = patient.updates()
        got = {path: _tensor(weights.get(path)) for path in updates} if isinstance(
            weights, Mapping) else {}  # fmt: skip
        bases = _bases(patient)
        if not got or any(one is None or one.shape != updates[path].shape
                          for path, one in got.items()):  # fmt: skip
            raise exercise.wrong("deploy(base, adapter) gave a model with other layers.", "kind")

        def off(times: float) -> float:
            """The nearest base's distance, with so many updates in it, in updates."""
            return min(_distance(got, base, updates, times) for base in bases)

        if off(1) <= 0.1:
            continue
        said = f"{off(1):.0%} of the update is missing or wrong.".replace("%", " %")
        key = None
        if as_number(found.get("in_few_bits")):
            key = "few_bits"
        elif off(0) <= 0.1:
            key = "lost"
        elif off(2) <= 0.1:
            key = "twice"
        elif min(_distance(got, {path: rounded(one.float(), kind).double()
                                 for path, one in got.items()}, updates, 0)
                 for kind in ("nf4", "fp4")) <= 0.1:
            key = "late"
        elif off(1) < 0.8:
            key = "rounded"
        raise exercise.wrong(f"deploy(base, adapter): {said}", key)


def _distance(
    got: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor],
    updates: Mapping[str, torch.Tensor], times: float,
) -> float:  # fmt: skip
    error = sum((got[path] - base[path] - times * one).square().sum().item()
                for path, one in updates.items())  # fmt: skip
    return (error / sum(one.square().sum().item() for one in updates.values())) ** 0.5


@lru_cache(maxsize=8)
def _bases(patient: clinic.Trained) -> list[dict[str, torch.Tensor]]:
    """The base's weights as they are, and after 4 bits: NF4 or FP4, constants quantised or not."""
    import bitsandbytes as bnb

    model = patient.model()
    plain = {path: model.get_submodule(path).weight.detach() for path in patient.updates()}
    found = [{path: one.double() for path, one in plain.items()}]
    for kind in ("nf4", "fp4"):
        for double in (False, True):
            back = {}
            for path, one in plain.items():
                codes, state = bnb.functional.quantize_4bit(
                    one.contiguous(), quant_type=kind, compress_statistics=double)
                back[path] = bnb.functional.dequantize_4bit(codes, state).double()
            found.append(back)
    return found
