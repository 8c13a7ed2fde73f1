"""Chapter 05's trusted checks: configurations, names, predictions. Nothing is trained again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from autograder.checks import Code, Part, Personal, Student, trusted
from autograder.checks.once import once
from loralab.checks import ch05 as visible
from loralab.checks.small_models import small_model
from loralab.tasks import language as languages

# What `hardware.detect()` says in the sandbox, which shows no GPU, whatever this machine has.
COMPUTE = torch.float32


def _taking(function: str) -> str:
    """The expression that makes data of an answer with one of the visible check's functions."""
    return f"__import__('loralab.checks.ch05', fromlist=['*']).{function}(answer)"


@trusted("format_example")
def format_example(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Sentences of two languages that exist in this draw only."""
    ask = once(student.function("format_example"))
    examples = []
    for _ in range(2):
        seed = f"{draw.getrandbits(64):x}"
        given = Code("__import__('loralab.tasks.language', fromlist=['*'])"
                     f".Language({seed!r})")  # fmt: skip
        language = languages.Language(seed)
        for english, translation in language.pairs(2, seed=draw.getrandbits(32)):
            examples.append(
                visible.Example(given, english, translation, language.prompt(english)))
    compare = partial(visible.compare_format_example, ask, examples)
    return [
        Part(1, partial(compare, ask=("prompt",)), "prompt"),
        Part(2, partial(compare, ask=("completion",)), "completion"),
    ]


@trusted("quantization_config")
def quantization_config(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Nothing to draw. float32 is the default too, so it earns no point without NF4."""
    ask = once(student.function("make_quantization_config", take=_taking("quantization_fields")))

    def compare(*which: str) -> None:
        visible.compare_quantization_config(ask(), COMPUTE, "cpu", which)

    return [
        Part(1, partial(compare, "nf4"), "4 bits, NF4"),
        Part(1, partial(compare, "double"), "double quantisation"),
        Part(1, partial(compare, "nf4", "compute"), "compute dtype"),
    ]


# Kinds of models by how their layers are called. None of the later three has Llama's names, or
# only names that end in "proj".
LIKE_LLAMA = ("llama", "mistral", "qwen2", "olmo", "stablelm")
FUSED = ("gpt_neox", "bloom", "persimmon", "codegen", "mpt", "gpt_bigcode")
OTHERWISE = ("phi", "opt", "starcoder2", "gptj", "xglm")
OWN_HEAD = "biogpt"  # its output head is no "lm_head"
RENAMED = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@trusted("linear_names")
def linear_names(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Each part has a model with Llama's names too: whoever knows only those earns nothing."""
    ask = once(student.function("linear_names", take=_taking("names_of")))
    first = _case(draw, draw.choice(LIKE_LLAMA))
    return [
        Part(1, partial(visible.compare_linear_names, ask, [first, second]), label)
        for second, label in (
            (_case(draw, draw.choice(FUSED)), "fused projections"),
            (_case(draw, draw.choice(OTHERWISE)), "layers of other names"),
            (_made_up(draw), "a head of another name"),
        )
    ]


@trusted("lora_config")
def lora_config(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """On a model without Llama's names. Rank 8 is the default too: it earns nothing by itself."""
    ask = once(student.function("make_lora_config", take=_taking("lora_fields")))
    _, model, layers = draw.choice((
        _made_up(draw), _case(draw, draw.choice(FUSED)), _case(draw, draw.choice(OTHERWISE)),
    ))  # fmt: skip

    def compare(which: str) -> None:
        visible.compare_lora_config(ask(model), layers.linear, (which,))

    return [
        Part(1, partial(compare, "scale"), "rank and scale"),
        Part(1, partial(compare, "targets"), "target modules"),
        Part(1, partial(compare, "task"), "task type"),
    ]


def _case(
    draw: random.Random, kind: str, renamed: Mapping[str, str] | None = None
) -> tuple[str, Code, visible.Layers]:
    """A small model of that kind for the student, and its layers as they are found here."""
    heads = draw.choice((2, 4))
    sizes: dict[str, Any] = {
        "hidden_size": heads * draw.choice((8, 16)), "num_hidden_layers": draw.randrange(1, 4),
        "num_attention_heads": heads, "vocab_size": draw.randrange(40, 90),
        "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    given = Code("__import__('loralab.checks.small_models', fromlist=['*'])"
                 f".small_model({kind!r}, {renamed!r}, **{sizes!r})")  # fmt: skip
    return f"a {kind} model", given, visible.layers_of(small_model(kind, renamed, **sizes))


def _made_up(draw: random.Random) -> tuple[str, Code, visible.Layers]:
    """A model whose layers have names that nobody can know beforehand."""
    names: set[str] = set()
    while len(names) < len(RENAMED):
        names.add("".join(draw.choice(letters) for letters in ("bdgkmz", "aeiou", "lnrstv") * 2))
    return _case(draw, OWN_HEAD, dict(zip(RENAMED, sorted(names), strict=True)))


@trusted("predicted_run")
def predicted_run(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """No input to draw: the function takes none."""
    ask = once(student.function("predicted"))

    def compare(key: str) -> None:
        visible.compare_predicted_run(ask(), COMPUTE, (key,))

    return [
        Part(2, partial(compare, "trainable"), "parameters"),
        Part(2, partial(compare, "held_bytes"), "bytes held"),
    ]


# One statement of each pair is true and one false, and both have to be right: the same word for
# everything earns nothing, and guessing one point of four on average.
PAIRS = {
    ("where", "default"): "what the settings do",
    ("control", "quantised"): "what rows can show",
}


@trusted("reading")
def reading(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Nothing to draw: the statements are about the recorded runs."""
    ask = once(student.function("reading"))
    right = visible.conclusions()

    def compare(pair: tuple[str, str]) -> None:
        visible.compare_reading(ask(), {key: right[key] for key in pair})

    return [Part(2, partial(compare, pair), label) for pair, label in PAIRS.items()]


@trusted("trained_adapter", runs=False)
def trained_adapter(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    # What tries adapters brings a model along: only for those who hand one in.
    from autograder.artifacts import trained_adapter as tried

    return tried.parts(student, draw, personal)
