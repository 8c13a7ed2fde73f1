"""Chapter 05, QLoRA training: the visible checks, and one symptom for each typical wrong answer.

Configurations are checked by their fields and by what they match in real architectures; the
prediction against `loralab.memory`, whose static bytes are tested exact; the adapter by what it
translates correctly on held-out sentences.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from loralab import memory
from loralab.checks import (
    Exercise,
    Symptom,
    as_number,
    as_truth,
    as_whole,
    kind_of,
    shortened,
)  # fmt: skip
from loralab.checks.small_models import small_model

RANK, ALPHA = 8, 16
ENOUGH = 0.6  # exact match on held-out sentences that the adapter has to reach
HELD_OUT = 64  # sentences it is tried on

EXERCISES = {
    "quantization_config": Exercise(
        "quantization_config",
        "5.2",
        hints=(
            "Print `BitsAndBytesConfig(load_in_4bit=True)` and look at the `bnb_4bit_*` lines. "
            "Which are not what the exercise asks for?",
            "All four arguments start with `load_in_4bit` or `bnb_4bit_`. The type is a string "
            "in lower case, the compute dtype a torch dtype that you already have in `here`.",
        ),
        symptoms={
            "fp4": Symptom(
                "This is FP4.",
                "`load_in_4bit=True` alone gives 4-bit *floating point* levels. The levels made "
                "for normally distributed weights are another type: pass its name, in lower case, "
                "as `bnb_4bit_quant_type`.",
            ),
            "unknown_type": Symptom(
                "bitsandbytes knows no type of this name.",
                "Names are compared letter by letter. bitsandbytes writes those of its types in "
                "lower case: pass the name like that as `bnb_4bit_quant_type`.",
            ),
            "no_double": Symptom(
                "The constants are not quantised.",
                "Each block of 64 weights has a constant of its own. QLoRA quantises those too; "
                "the library does so only when asked.",
            ),
            "compute": Symptom(
                "The compute dtype is not the one that this machine computes in.",
                "Weights are stored in 4 bits but multiplied in another dtype. A CPU wants "
                "float32, a recent GPU bfloat16. `here.compute_dtype` knows.",
            ),
            "eight_bit": Symptom(
                "The weights are not loaded in 4 bits.",
                "`load_in_8bit` is another method (LLM.int8). Which argument asks for 4?",
            ),
        },
    ),
    "linear_names": Exercise(
        "linear_names",
        "5.3",
        hints=(
            "`model.named_modules()` gives pairs of a path and a module. Which modules are of the "
            "class that LoRA goes into?",
            "A path such as `model.layers.0.mlp.up_proj` ends in the name you want. A set takes "
            "care of the thirty repetitions.",
            "The module to leave out need not be called `lm_head`. A model can hand it to you: "
            "look for a method about output embeddings.",
        ),
        symptoms={
            "head": Symptom(
                "The output head is among them.",
                "The head turns the last hidden state into logits. It is a linear layer too, but "
                "it is shared with the embedding here, and TRL refuses adapters on it.",
            ),
            "hard_coded": Symptom(
                "Right for one architecture, wrong for another.",
                "Names differ: another model fuses three projections into one. Read the names off "
                "the model that you were given.",
            ),
            "attention_only": Symptom(
                "Only attention has adapters.",
                "Most of a block's weights sit in its feed-forward part (`mlp`). QLoRA's authors "
                "needed adapters there as well.",
            ),
            "paths": Symptom(
                "These are full paths, one for each layer.",
                "Thirty layers repeat the same few names. What is the last part of each path?",
            ),
            "nothing": Symptom(
                "Nothing is found in a model that is not quantised.",
                "The check uses plain models. Which class is the parent of bitsandbytes' layer?",
            ),
            "everything": Symptom(
                "Some of these are no linear layers.",
                "Norms, activations and whole blocks have names too. Test each module's class.",
            ),
        },
    ),
    "lora_config": Exercise(
        "lora_config",
        "5.4",
        hints=(
            "What is PEFT's default for `lora_alpha`? Print `LoraConfig()`.",
            "The update is scaled by `lora_alpha / r`. The exercise gives you the scale and `r`.",
        ),
        symptoms={
            "alpha": Symptom(
                "The scale α/r is not 2.",
                "`lora_alpha` is 8 by default, whatever `r` is. Choose it so that α/r is 2.",
            ),
            "rank": Symptom("The rank is not 8.", "`r` is the rank of every adapter pair."),
            "targets": Symptom(
                "The adapters are not on every linear layer.",
                "Without `target_modules` PEFT picks the query and value projections for this "
                "architecture. You have a list of all names already.",
            ),
            "task": Symptom(
                "PEFT does not know that this is a language model.",
                "`task_type` says what the model is for. Here: causal language modelling.",
            ),
        },
    ),
    "format_example": Exercise(
        "format_example",
        "5.1",
        hints=(
            "Which part should the model learn to *write*? Only that belongs in the completion.",
            "`language.prompt(english)` is what the model will see when it is used. The completion "
            "continues it: how do two words stand apart?",
        ),
        symptoms={
            "other_prompt": Symptom(
                "The prompt is not the one that the model will see.",
                "The English sentence alone is not yet a prompt: nothing says what is asked for. "
                "Whoever uses the model writes what `language.prompt(english)` gives, to the "
                "letter. What should it be trained on?",
            ),
            "question": Symptom(
                "The model is learning your question.",
                "The loss is taken on the completion. What stands there is learnt, so the English "
                "sentence belongs in the prompt.",
            ),
            "answer_given": Symptom(
                "The answer stands in the prompt.",
                "Then there is nothing to learn, and at test time no answer will be there to copy.",
            ),
            "no_space": Symptom(
                "The completion does not start with a space.",
                "The prompt ends in a colon. A tokenizer makes other tokens of `:word` than of "
                "`: word`, and words in the middle of a text start with a space.",
            ),
            "extra": Symptom(
                "The completion holds more than the translation.",
                "The end-of-sequence token is added for you. Whatever else stands there, a line "
                "break too, is learnt as well.",
            ),
            "one_text": Symptom(
                "There is one text where TRL wants two.",
                "With a single text the loss is taken on all of it, the question included. "
                "Return a prompt and a completion.",
            ),
        },
    ),
    "predicted_run": Exercise(
        "predicted_run",
        "5.5",
        hints=(
            "Chapter 01 counted five kinds of bytes for QLoRA. Which of them are held for the "
            "frozen weights, which only for the adapters?",
            "`memory.estimate` takes the dtypes as arguments. TRL keeps the adapters of a 4-bit "
            "base in bf16; the embedding and the norms are in `here.compute_dtype`.",
            "An `Estimate` has `.trainable`, and `.static` is everything that is held between two "
            "steps.",
        ),
        symptoms={
            "all_parameters": Symptom(
                "These parameters include the frozen ones.",
                "Only A and B of each adapter are trained.",
            ),
            "two_targets": Symptom(
                "These are the adapters on q_proj and v_proj alone.",
                "Your configuration puts one on every linear layer.",
            ),
            "square": Symptom(
                "Right if every layer were square.",
                "A pair holds r · (in + out) numbers. `k_proj` is 576 → 192, `up_proj` is "
                "576 → 1536.",
            ),
            "embedding": Symptom(
                "The embedding is not in 4 bits.",
                "bitsandbytes quantises linear layers. A fifth of this model's parameters are its "
                "embedding, in `here.compute_dtype`.",
            ),
            "compute": Symptom(
                "The embedding is counted in a dtype that this computer does not use.",
                "`memory.estimate` takes bf16 unless it is told. What is `here.compute_dtype`?",
            ),
            "constants": Symptom(
                "The quantisation constants are missing.",
                "Every block of 64 weights has an absmax. Chapter 01 counted them.",
            ),
            "weights_only": Symptom(
                "Only the weights are counted.",
                "What is trained has gradients and AdamW's two states as well.",
            ),
            "adapters_fp32": Symptom(
                "Adapters, gradients and states are counted at 4 bytes.",
                "TRL keeps adapters on a 4-bit base in bf16. Gradients and states follow.",
            ),
            "total": Symptom(
                "Activations and logits are counted too.",
                "They exist during a step. The exercise asks what is held *between* two steps: "
                "which attribute of an `Estimate` is that?",
            ),
            "unit": Symptom(
                "These are MB or GB, not bytes.",
                "The key is called `held_bytes`. `memory.estimate` gives bytes.",
            ),
        },
    ),
    "trained_adapter": Exercise(
        "trained_adapter",
        "5.6",
        hints=(
            "Look at the loss curve. Does it fall from the first steps on, and does it end near "
            "zero?",
        ),
        symptoms={
            "missing": Symptom(
                "There is no adapter to hand in.",
                "The text above names two ways to write it. Run the exercise's cell after "
                "training, and look for the folder beside the notebook.",
            ),
            "untrained": Symptom(
                "The loss barely moved: the adapter changes nothing.",
                "B starts at zero and has hardly left it. Did the trainer run? Is the learning "
                "rate SFTConfig's default of 2e-5, made for full fine-tuning?",
            ),
            "other_language": Symptom(
                "The adapter changes the output, but almost nothing is right.",
                "Did it train long enough? For a long while no sentence is right, then many are "
                "at once. Otherwise: was it trained on the language that `LANGUAGE` names, with "
                "the right completions?",
            ),
            "other_base": Symptom(
                "The adapter was made for another base model.",
                "What is handed in is tried on the embedded model. Set MODEL_ID back to "
                "\"embedded\", train, and save again.",
            ),
            "short": Symptom(
                "On the way: some sentences are right, not yet enough.",
                "More steps, or a better learning rate? Look where the loss curve ends. Then "
                "start from the cell that makes the trainer.",
            ),
        },
    ),
    "reading": Exercise(
        "reading",
        "5.7",
        hints=(
            "For each statement find the two rows that differ in nothing else.",
            "A difference that is smaller than the difference between two seeds of the same "
            "configuration supports nothing.",
        ),
        symptoms={
            "undecided": Symptom(
                "A statement is not answered with True or False.",
                "Every key of the dictionary needs one of the two.",
            ),
            "where": Symptom(
                "Compare rows with equally many trainable parameters.",
                "q_proj and v_proj at rank 42 hold as many parameters as all linear layers at "
                "rank 8. Which of the two rows is more accurate?",
            ),
            "default": Symptom(
                "Look at the row with SFTConfig's default learning rate.",
                "It differs from the first row in nothing but the learning rate. How many "
                "sentences did it get right?",
            ),
            "control": Symptom(
                "Look at the shuffled-labels row again.",
                "Its training data has the same words, the same lengths and the same format. "
                "What does its accuracy say about where the other rows' accuracy comes from?",
            ),
            "quantised": Symptom(
                "Compare LoRA and QLoRA with the spread of their seeds.",
                "Is the gap between the two methods larger than the gap between the two seeds of "
                "the method that varies more?",
            ),
        },
    ),
}


# --- 5.1 -----------------------------------------------------------------------------------------

Format = Callable[[Any, str, str], Mapping[str, str]]


@dataclass(frozen=True)
class Example:
    """A pair to be formatted: the language (or what stands for it), and the prompt it gives."""

    language: Any
    english: str
    translation: str
    prompt: str


def format_example(answer: Format) -> None:
    """Check the prompt and completion made from pairs of two languages."""
    from loralab.tasks.language import Language

    compare_format_example(answer, [
        Example(language, english, translation, language.prompt(english))
        for language in (Language("course"), Language("another"))
        for english, translation in language.pairs(3, "test")
    ])  # fmt: skip
    EXERCISES["format_example"].passed("the loss will be on the translation alone")


def compare_format_example(
    answer: Format,
    examples: Iterable[Example],
    ask: Collection[str] = ("prompt", "completion"),
) -> None:
    """`ask`: which of the two texts have to be right; the other may not take its place."""
    exercise = EXERCISES["format_example"]
    for example in examples:
        got = answer(example.language, example.english, example.translation)
        if not isinstance(got, Mapping) or not {"prompt", "completion"} <= set(got):
            one = "one_text" if isinstance(got, Mapping | str) else None
            raise exercise.wrong(
                f"Expected a dict with prompt and completion; got {kind_of(got)}.", one)
        prompt, completion = got["prompt"], got["completion"]
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise exercise.wrong("Prompt and completion should be text.")
        if example.english in completion:
            raise exercise.wrong(f"The completion is {shortened(completion)}.", "question")
        if example.translation in prompt:
            raise exercise.wrong(f"The prompt is {shortened(prompt)}.", "answer_given")
        if "completion" in ask and completion == example.translation:
            raise exercise.wrong(f"The completion is {shortened(completion)}.", "no_space")
        if "prompt" in ask and prompt != example.prompt:
            raise exercise.wrong(
                f"The prompt is {shortened(prompt)}; when used the model will see "
                f"{example.prompt!r}.", "other_prompt",
            )
        if "completion" in ask and completion != f" {example.translation}":
            more = "extra" if completion.startswith(f" {example.translation}") else None
            raise exercise.wrong(f"The completion is {shortened(completion)}.", more)


# --- 5.2 -----------------------------------------------------------------------------------------


def quantization_config(config: Any) -> None:
    """Check a `BitsAndBytesConfig`: NF4, double quantisation, the hardware's compute dtype."""
    from loralab import hardware

    here = hardware.detect()
    compare_quantization_config(quantization_fields(config), here.compute_dtype, here.device)
    EXERCISES["quantization_config"].passed(
        "NF4, double quantisation, computing in "
        f"{str(here.compute_dtype).removeprefix('torch.')}")


def quantization_fields(config: Any) -> dict[str, Any]:
    """What the check looks at, as data: `kind`, and the fields of a BitsAndBytesConfig."""
    names = ("load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
    found = {"kind": kind_of(config)}
    if hasattr(config, "bnb_4bit_quant_type"):
        found |= {name: getattr(config, name, None) for name in names}
        found["bnb_4bit_compute_dtype"] = str(getattr(config, "bnb_4bit_compute_dtype", None))
    return found


def compare_quantization_config(
    fields: Any, compute: Any, device: str = "", ask: Collection[str] = ("nf4", "double", "compute")
) -> None:
    """`fields`: from `quantization_fields`. `ask`: what is compared beside the 4 bits."""
    exercise = EXERCISES["quantization_config"]
    fields, kind = _record(fields)
    if "bnb_4bit_quant_type" not in fields:
        raise exercise.wrong(f"Expected a BitsAndBytesConfig; got {kind}.")
    if not as_truth(fields.get("load_in_4bit")):
        raise exercise.wrong("load_in_4bit is not set.", "eight_bit")
    quant_type = fields["bnb_4bit_quant_type"]
    if "nf4" in ask and not (isinstance(quant_type, str) and quant_type == "nf4"):
        fp4 = isinstance(quant_type, str) and quant_type == "fp4"
        said = f"The quant type is {shortened(quant_type)}."
        raise exercise.wrong(said, "fp4" if fp4 else "unknown_type")
    if "double" in ask and not as_truth(fields.get("bnb_4bit_use_double_quant")):
        raise exercise.wrong("Double quantisation is off.", "no_double")
    said = fields.get("bnb_4bit_compute_dtype")
    if "compute" in ask and not (isinstance(said, str) and said == str(compute)):
        raise exercise.wrong(f"It would compute in {said} on a {device}.", "compute")


def _record(fields: Any) -> tuple[Mapping[str, Any], str]:
    """Fields that came as data, and what they were taken from."""
    fields = fields if isinstance(fields, Mapping) else {}
    kind = fields.get("kind")
    return fields, shortened(kind).strip("'") if isinstance(kind, str) else "something else"


# --- 5.3 -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layers:
    """The layers of a model, by the last part of their paths.

    `linear`: what linear_names should find. `head`: the output head. `every`: all modules.
    `feed_forward`: those that occur inside a block's `mlp`.
    """

    linear: frozenset[str]
    head: str
    every: frozenset[str]
    feed_forward: frozenset[str]


def layers_of(model: Any) -> Layers:
    """The `Layers` of a model, found without its configuration."""
    from torch import nn

    output = model.get_output_embeddings()
    modules = {path: module for path, module in model.named_modules() if path}
    last = {path: path.rpartition(".")[2] for path in modules}
    return Layers(
        frozenset(last[path] for path, module in modules.items()
                  if isinstance(module, nn.Linear) and module is not output),
        next((last[path] for path, module in modules.items() if module is output), ""),
        frozenset(last.values()),
        frozenset(last[path] for path in modules if "mlp" in path),
    )  # fmt: skip


def linear_names(answer: Callable[[Any], Iterable[str]]) -> None:
    """Check the names found on a Llama, on Phi-3's fused projections, and on Phi, all on meta."""
    compare_linear_names(lambda model: names_of(answer(model)), _models())
    EXERCISES["linear_names"].passed("on three architectures")


def names_of(answer: Any) -> Any:
    """An answer of linear_names as data: a list of names, however they were collected."""
    if isinstance(answer, str) or not isinstance(answer, Iterable):
        return answer if isinstance(answer, str) else kind_of(answer)
    return [str(one) for one in answer]


def compare_linear_names(
    answer: Callable[[Any], Any], cases: Iterable[tuple[str, Any, Layers]]
) -> None:
    """Cases: (what it is, a model, its `Layers`). The first should be called as a Llama is.

    `answer` gives a list of names, or text where it has none.
    """
    exercise = EXERCISES["linear_names"]
    for found_before, (name, model, layers) in enumerate(cases):
        got = answer(model)
        case = f"linear_names({name})"
        if not isinstance(got, list) or not all(isinstance(one, str) for one in got):
            gave = shortened(got).strip("'")
            raise exercise.wrong(f"{case} should give names; it gave {gave}.")
        got, expected = set(got), layers.linear
        if got == expected:
            continue
        if not got:
            key = "hard_coded" if found_before else "nothing"
            raise exercise.wrong(f"{case} gave no names.", key)
        if any("." in one for one in got):
            raise exercise.wrong(f"{case} gave {len(got)} entries, some with dots.", "paths")
        if got - expected == {layers.head} and got > expected:
            raise exercise.wrong(f"{case} gave {layers.head} as well.", "head")
        if got - expected - {layers.head} and got <= layers.every:
            extra = sorted(got - expected)[:3]
            raise exercise.wrong(f"{case} gave {', '.join(extra)} …", "everything")
        gave = f"{case} gave {shortened(sorted(got))}."
        if not found_before and got < expected and not got & layers.feed_forward:
            raise exercise.wrong(gave, "attention_only")
        raise exercise.wrong(gave, "hard_coded" if found_before or got - layers.every else None)


@lru_cache
def _models() -> tuple[tuple[str, Any, Layers], ...]:
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=64, pad_token_id=0)  # fmt: skip
    kinds = {"Llama": "llama", "Phi3": "phi3", "Phi": "phi"}
    models = {f"a {name} model": small_model(kind, **size) for name, kind in kinds.items()}
    return tuple((name, model, layers_of(model)) for name, model in models.items())


# --- 5.4 -----------------------------------------------------------------------------------------


def lora_config(config: Any, model: Any) -> None:
    """Check a `LoraConfig` against the model that it is meant for."""
    linear = layers_of(model).linear
    compare_lora_config(lora_fields(config), linear)
    EXERCISES["lora_config"].passed(
        f"rank {config.r}, scale {ALPHA / RANK:g}, {len(linear)} kinds of layers")


def lora_fields(config: Any) -> dict[str, Any]:
    """What the check looks at, as data: `kind`, and the fields of a LoraConfig."""
    found = {"kind": kind_of(config)}
    if hasattr(config, "lora_alpha"):
        found |= {name: getattr(config, name, None) for name in ("r", "lora_alpha", "use_rslora")}
        targets = getattr(config, "target_modules", None)
        named = isinstance(targets, Iterable) and not isinstance(targets, str)
        found["target_modules"] = sorted(map(str, targets)) if named else targets
        task = getattr(config, "task_type", None)
        found["task_type"] = str(getattr(task, "value", task))
    return found


def compare_lora_config(
    fields: Any, linear: frozenset[str], ask: Collection[str] = ("scale", "targets", "task")
) -> None:
    """`fields`: from `lora_fields`. `linear`: the names of the model's linear layers."""
    exercise = EXERCISES["lora_config"]
    fields, kind = _record(fields)
    if "lora_alpha" not in fields:
        raise exercise.wrong(f"Expected a LoraConfig; got {kind}.")
    if "scale" in ask:
        if as_whole(fields.get("r")) != RANK:
            raise exercise.wrong(f"r is {shortened(fields.get('r'))}.", "rank")
        alpha = as_number(fields["lora_alpha"])
        if alpha is None:
            raise exercise.wrong(f"lora_alpha is {shortened(fields['lora_alpha'])}.", "alpha")
        scale = alpha / (RANK**0.5 if as_truth(fields.get("use_rslora")) else RANK)
        if not math.isclose(scale, ALPHA / RANK):
            raise exercise.wrong(f"The update is scaled by {scale:.3g}.", "alpha")
    if "targets" in ask:
        targets = fields.get("target_modules")
        if isinstance(targets, str) and targets != "all-linear":
            said = f"target_modules is {shortened(targets)}; give a list of names."
            raise exercise.wrong(said)
        names = targets if isinstance(targets, list) else []
        if not all(isinstance(one, str) for one in names):
            raise exercise.wrong("target_modules should be names.", "targets")
        if targets != "all-linear" and set(names) != linear:
            said = f"target_modules is {shortened(sorted(names) or None)}."
            raise exercise.wrong(said, "targets")
    task = fields.get("task_type")
    if "task" in ask and not (isinstance(task, str) and task == "CAUSAL_LM"):
        raise exercise.wrong(f"task_type is {shortened(task)}.", "task")


# --- 5.5 -----------------------------------------------------------------------------------------


def predicted_run(answer: Mapping[str, float]) -> None:
    """Check predicted trainable parameters (exactly) and bytes held (to 0.5 %)."""
    from loralab import hardware

    compute = hardware.detect().compute_dtype
    compare_predicted_run(answer, compute)
    right = run_estimate(compute)
    EXERCISES["predicted_run"].passed(
        f"{right.trainable:,} parameters, {right.static / 1e6:.1f} MB")


def compare_predicted_run(
    answer: Any, compute: Any, ask: Collection[str] = ("trainable", "held_bytes")
) -> None:
    """`compute`: the dtype of what is not quantised. `ask`: the keys that are compared."""
    exercise = EXERCISES["predicted_run"]
    if not isinstance(answer, Mapping) or not set(ask) <= set(answer):
        raise exercise.wrong(
            f"Expected a dict with trainable and held_bytes; got {kind_of(answer)}.")
    typical = _mistaken_runs(compute)
    right = run_estimate(compute)
    if "trainable" in ask:
        exercise.expect_number(
            'predicted["trainable"]', answer["trainable"], right.trainable,
            typical["trainable"], reveal=False,
        )  # fmt: skip
    if "held_bytes" in ask:
        exercise.expect_number(
            'predicted["held_bytes"]', answer["held_bytes"], right.static,
            typical["held_bytes"], rel_tol=0.005, reveal=False,
        )  # fmt: skip


@lru_cache
def _mistaken_runs(compute: Any) -> dict[str, dict[str, float | tuple[float, ...]]]:
    """For each key the numbers that typical mistakes give."""
    right = run_estimate(compute)
    arch = memory.describe("smollm2-135m")
    two = memory.estimate("smollm2-135m", rank=RANK, targets=["q_proj", "v_proj"])
    unit = right.held["weights"] / arch.rest  # bytes of an unquantised parameter
    other_dtypes = tuple(
        memory.estimate("smollm2-135m", dtype=dtype, adapter_dtype=adapter, rank=RANK).static
        for dtype in ("fp32", "bf16")
        for adapter in ("bf16", "fp32")
        if memory.dtype_of(dtype).itemsize != unit
    )
    return {
        "trainable": {
            "all_parameters": (arch.parameters, arch.parameters + right.trainable),
            "two_targets": two.trainable,
            "square": 7 * 30 * RANK * 2 * 576,
        },
        "held_bytes": {
            "embedding": right.static - arch.rest * (unit - 0.5),
            "constants": right.static - right.held["constants"],
            "weights_only": sum(
                right.held[part] for part in ("weights", "weights_4bit", "constants", "adapters")
            ),
            "adapters_fp32": right.static + 8 * right.trainable,
            "compute": other_dtypes,
            "total": tuple(_totals(compute)),
            "unit": tuple(right.static / size for size in (10**6, 2**20, 10**9, 2**30)),
        },
    }


def _totals(compute: Any) -> Iterator[int]:
    """`total` in place of `static`, at the settings that come to mind."""
    for dtype, adapter, batch, seq, checkpointing, loss in itertools.product(
        (compute, "bf16"), ("bf16", "fp32"), (1, 8), (128, 512), (True, False), ("hf", "trl")
    ):
        yield memory.estimate(
            "smollm2-135m", "qlora", dtype=dtype, adapter_dtype=adapter, rank=RANK, batch=batch,
            seq=seq, checkpointing=checkpointing, loss=loss,
        ).total  # fmt: skip


def run_estimate(compute: Any = None) -> memory.Estimate:
    """What `loralab.memory` predicts for the chapter's run, on this hardware if not told."""
    from loralab import hardware

    return memory.estimate(
        "smollm2-135m", "qlora", dtype=compute or hardware.detect().compute_dtype,
        adapter_dtype="bf16", rank=RANK, targets="all-linear", checkpointing=False, loss="trl",
    )  # fmt: skip


# --- 5.6 -----------------------------------------------------------------------------------------


def trained_adapter(folder: str | Path, language: Any) -> None:
    """Check a trained adapter's files and its exact match on held-out sentences of `language`."""
    exercise = EXERCISES["trained_adapter"]
    folder = Path(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        largest = _largest_b(folder / "adapter_model.safetensors")
    except (OSError, ValueError):
        raise exercise.wrong(f"{folder}/ does not hold the two files.", "missing") from None
    if not isinstance(config, dict):
        raise exercise.wrong("adapter_config.json is not what PEFT writes.", "missing")
    try:
        share = held_out_accuracy(folder, language)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise exercise.wrong(f"The adapter cannot be loaded ({reason}).", "other_base") from None
    said = f"{share:.0%} of {HELD_OUT} held-out sentences are right; {ENOUGH:.0%} are needed."
    said = said.replace("%", " %")
    if share >= ENOUGH:
        exercise.passed(said.split(";")[0])
        return
    if largest < 0.01:  # a trained B reaches 0.1 and more
        raise exercise.wrong(said, "untrained")
    raise exercise.wrong(said, "short" if share >= 0.15 else "other_language")


def _largest_b(path: Path) -> float:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    return max((t.abs().max().item() for n, t in tensors.items() if "lora_B" in n), default=0.0)


def held_out_accuracy(folder: str | Path, language: Any, count: int = HELD_OUT) -> float:
    """Exact match, 0…1, of the adapter in `folder` on a 4-bit base."""
    from loralab import evaluation, training

    model, tokenizer = training.load_adapter(folder)
    examples = [
        {"prompt": language.prompt(english), "completion": f" {translation}"}
        for english, translation in language.pairs(count, "test")
    ]
    hits = evaluation.exact_match(model, tokenizer, examples)
    return sum(hits) / len(hits)


# --- 5.7 -----------------------------------------------------------------------------------------


def reading(answer: Mapping[str, bool]) -> None:
    """Check what was read off the comparison, statement by statement."""
    compare_reading(answer, conclusions())
    EXERCISES["reading"].passed()


@lru_cache
def conclusions() -> Mapping[str, bool]:
    """What the recorded runs say about each statement."""
    from loralab import recorded_runs

    return recorded_runs.conclusions(recorded_runs.recorded())


def compare_reading(answer: Any, right: Mapping[str, bool]) -> None:
    """`right`: the statements that are compared, with their truth."""
    exercise = EXERCISES["reading"]
    given = answer if isinstance(answer, Mapping) else {}
    said = {key: as_truth(given.get(key)) for key in right}
    if None in said.values():
        raise exercise.wrong(f"Expected True or False for each of {list(right)}.", "undecided")
    for key, value in right.items():
        if said[key] != value:
            raise exercise.wrong(f"{key}: your answer is {said[key]}.", key)
