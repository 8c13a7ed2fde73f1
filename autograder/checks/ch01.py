"""Chapter 01's trusted checks: memory maths on numbers drawn for each submission."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from autograder.checks import Data, Part, Personal, Student, StudentError, trusted
from autograder.checks.once import once
from loralab import memory
from loralab.checks import as_number
from loralab.checks import ch01 as visible

# Each would solve an exercise that is to be written by hand in one line; the visible checks count
# the answer as well.
BY_HAND = ("loralab.memory", "loralab.measure", "loralab.checks", "peft", "bitsandbytes")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float64)


@trusted("weight_bytes")
def weight_bytes(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = {name: once(student.function(name, masked=BY_HAND))
           for name in ("weight_bytes", "in_gb", "in_gib")}
    cases = [(_parameters(draw), dtype) for dtype in DTYPES]
    sizes = [draw.randrange(10**9, 10**11), draw.randrange(10**11, 10**13)]
    return [
        Part(1, partial(visible.compare_weight_bytes, ask["weight_bytes"], cases), "weight_bytes"),
        *(Part(1, partial(_conversion, name, ask[name], ask[other], sizes), name)
          for name, other in (("in_gb", "in_gib"), ("in_gib", "in_gb"))),
    ]  # fmt: skip


def _parameters(draw: random.Random) -> int:
    """A number of parameters from a thousand to a hundred billion."""
    return round(10 ** draw.uniform(3, 11))


def _conversion(
    name: str, convert: Callable[..., Data], other: Callable[..., Data], sizes: Sequence[int]
) -> None:
    """One conversion. For whom GB and GiB are the same, one of the two is right by accident."""
    visible.compare_conversion(name, convert, sizes)
    try:
        same = as_number(other(sizes[0])) == as_number(convert(sizes[0]))
    except StudentError:
        return  # that is the other part's affair
    if same:
        raise visible.EXERCISES["weight_bytes"].wrong("in_gb and in_gib are the same.", "gib")


@trusted("training_state_bytes")
def training_state_bytes(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = once(student.function("training_state_bytes", masked=BY_HAND))
    n = _parameters(draw)
    points = {"fp32": 0.5, "bf16": 0.5, "mixed": 1.0}
    names = {"fp32": "fp32", "bf16": "pure bf16", "mixed": "mixed precision"}
    return [
        Part(points[precision], partial(_state, ask, n, precision, optimizer),
             f"{names[precision]}, {'AdamW' if optimizer == 'adamw' else 'SGD'}")
        for precision, optimizer in visible.STATES
    ]  # fmt: skip


def _state(ask: Callable[..., Data], n: int, precision: str, optimizer: str) -> None:
    """One case, and that the arguments are used: some cases cost the same, others never do."""
    visible.compare_training_state_bytes(ask, [(n, precision, optimizer)])
    others = [(precision, "sgd" if optimizer == "adamw" else "adamw"),
              ("fp32" if precision == "bf16" else "bf16", optimizer)]
    for other in others:
        if as_number(ask(n, *other)) == as_number(ask(n, precision, optimizer)):
            visible.compare_training_state_bytes(ask, [(n, *other)])


@trusted("lora_state_bytes")
def lora_state_bytes(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = once(student.function("lora_state_bytes", masked=BY_HAND))

    def cases(*dtypes: tuple[torch.dtype, torch.dtype]) -> list[tuple[Any, ...]]:
        return [(_parameters(draw) + 10**6, draw.randrange(10**5, 10**7), *pair)
                for pair in dtypes]  # fmt: skip

    one = cases((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16))
    # Where the base's dtype is the smaller one, two mistakes can give one number: it comes last.
    two = cases((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32))
    compare = visible.compare_lora_state_bytes
    return [
        Part(1, partial(compare, ask, one), "base and adapters in one dtype"),
        Part(2, partial(compare, ask, two), "base and adapters in different dtypes"),
    ]


@trusted("qlora_weight_bytes")
def qlora_weight_bytes(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = once(student.function("qlora_weight_bytes", masked=BY_HAND))
    return [
        Part(2, partial(visible.compare_qlora_weight_bytes, ask, _models(draw, double)), label)
        for double, label in ((False, "without double quantisation"),
                              (True, "with double quantisation"))
    ]  # fmt: skip


def _models(draw: random.Random, double: bool) -> list[visible.Quantised]:
    """Two small models, counted, and one of some billion parameters."""
    found = []
    for dtype in draw.sample((torch.bfloat16, torch.float16, torch.float32), 2):
        # Blocks of 64 are incomplete in the first layer, and more than 256 of them in the last.
        # So few in all that no sum of them is as large as three layers' tables.
        shapes = [(draw.randrange(33, 100, 2), draw.randrange(33, 100, 2)),
                  (64, draw.randrange(20, 90)), (128, draw.randrange(135, 200))]  # fmt: skip
        rest = 2 * draw.randrange(1000, 4500)
        found.append(visible.Quantised.counted(shapes, rest, dtype, double))
    hidden, layers = 64 * draw.randrange(30, 90), draw.randrange(18, 40)
    inner = 64 * draw.randrange(hidden // 32, hidden // 16)
    sizes = [*[hidden * hidden] * 4, *[hidden * inner] * 3] * layers
    rest = hidden * draw.randrange(32_000, 130_000)
    return [*found, visible.Quantised.computed(sizes, rest, torch.bfloat16, double)]


@trusted("table_settings")
def table_settings(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """No input to draw: any settings under which the figures hold are right."""
    ask = once(student.function("table_settings"))

    def compare(method: str) -> None:
        given = ask()
        if not isinstance(given, dict) or method not in given:
            raise visible.EXERCISES["table_settings"].wrong(f'There is no "{method}".')
        visible.compare_settings(method, given[method])

    names = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
    return [Part(1, partial(compare, method), names[method]) for method in visible.LESSON]


@trusted("cheapest_fit")
def cheapest_fit(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Every part holds a case that weights alone get wrong, and two different right answers.

    So neither a constant, nor None for everything, nor "fits if the weights fit" earns a part.
    """
    ask = once(student.function("cheapest_fit"))
    cases = fit_cases(draw)
    compare = visible.compare_cheapest_fit
    return [
        Part(points, partial(compare, ask, [cases[kind] for kind in kinds]), label)
        for points, kinds, label in (
            (1, ("tight", "tighter", "roomy"), "activations"),
            (1, ("tight", "overhead"), "allocator and context"),
            (0.5, ("tight", "decimal"), "GiB"),
            (0.5, ("tight", "nothing"), "nothing fits"),
        )
    ]


FIT_MODELS = (
    "llama-3.2-1b", "llama-3.2-3b", "llama-2-7b", "llama-3.1-8b", "llama-2-13b", "mistral-7b",
    "qwen2.5-7b", "qwen2.5-1.5b", "smollm2-1.7b", "tinyllama-1.1b",
)  # fmt: skip
LARGEST_CARD = 192  # GiB


def fit_cases(draw: random.Random) -> dict[str, visible.Case]:
    """One case of each kind: what it tells apart, and nothing else.

    "tight", "tighter": activations decide, with different right answers. "overhead", "decimal":
    so does the allocator's share, or GiB against GB. "roomy": an option without checkpointing.
    "nothing": no option fits, though the weights would.
    """
    found: dict[str, visible.Case] = {}
    answers: dict[str, visible.Choice] = {}
    while len(found) < 6:
        where = (draw.choice(FIT_MODELS), draw.randrange(1, 9), 64 * draw.randrange(6, 33))
        cards = list(_cards(*where))
        draw.shuffle(cards)
        for gpu in cards:
            kind, right = _kind(gpu, *where)
            if kind == "tight" and "tight" in found and right != answers["tight"]:
                kind = "tighter"
            if kind in ("overhead", "decimal") and right == answers.get("tight", right):
                continue
            if kind and kind not in found:
                found[kind], answers[kind] = (gpu, *where), right
    return found


def _cards(model: str, batch: int, seq: int) -> Iterator[int]:
    """Sizes in GiB around which the choice may change, none within half a per cent of a tie."""
    needs = [memory.on_card(visible.fit_estimate(model, method, batch, seq, ck).total) / memory.GiB
             for method, ck in visible.OPTIONS]
    near = {math.floor(need) + step for need in needs for step in (-2, -1, 0, 1, 2, 3)}
    for gpu in sorted(near):
        if 4 <= gpu <= LARGEST_CARD and all(abs(need / gpu - 1) > 0.005 for need in needs):
            yield gpu


def _kind(gpu: int, model: str, batch: int, seq: int) -> tuple[str | None, visible.Choice]:
    """What this case tells apart, and the right answer."""
    chosen = visible.choices(gpu, model, batch, seq)
    (right,), (decimal,) = chosen["right"], chosen["decimal"]
    by_weights = set(chosen["activations"])
    with_margin = set(chosen["overhead"]) == {right}
    if right in by_weights:
        plain = right is not None and not right[1] and with_margin and decimal == right
        return ("roomy" if plain else None), right
    if decimal != right:
        return ("decimal" if with_margin and right is not None else None), right
    if not with_margin:
        # Named by its own symptom: none of the choices that miss the margin is one by weights.
        apart = right not in chosen["overhead"] and not by_weights & set(chosen["overhead"])
        return ("overhead" if apart and right is not None else None), right
    if right is None:
        return ("nothing" if None not in by_weights else None), right
    return ("tight" if right != visible.OPTIONS[-1] else None), right
