"""Chapter 03's trusted checks: names, counts, memory and statistics on what is drawn."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from autograder.checks import Code, Part, Personal, Student, trusted
from autograder.checks.once import once
from loralab.checks import ch03 as visible
from loralab.checks.small_models import small_model

# Each would solve an exercise that is to be written by hand in one line.
BY_HAND = ("loralab.memory", "loralab.measure", "loralab.checks", "peft", "bitsandbytes")
LIKE_LLAMA = ("llama", "mistral", "qwen2", "olmo")
OTHERWISE = ("phi", "gpt_neox", "opt", "xglm", "persimmon", "codegen")
OWN_HEAD = "biogpt"  # its output head is no "lm_head"
LETTERS = ("bdgkmz", "aeiou", "lnrstv")


def _name(draw: random.Random) -> str:
    return "".join(draw.choice(letters) for letters in LETTERS * 2)


def _sizes(draw: random.Random) -> dict[str, Any]:
    heads = draw.choice((2, 4))
    return {
        "hidden_size": heads * draw.choice((8, 16, 24)), "num_hidden_layers": draw.randrange(1, 4),
        "num_attention_heads": heads, "vocab_size": draw.randrange(40, 90),
        "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip


def _text(kind: str, renamed: dict[str, str] | None, sizes: dict[str, Any]) -> str:
    return ("__import__('loralab.checks.small_models', fromlist=['*'])"
            f".small_model({kind!r}, {renamed!r}, **{sizes!r})")  # fmt: skip


def _case(
    draw: random.Random, kind: str, renamed: tuple[str, ...] = (), **more: int
) -> visible.Case:
    """A small model, its layers of the names `renamed` under new ones."""
    sizes, names = _sizes(draw) | more, {name: _name(draw) for name in renamed}
    model = small_model(kind, names, **sizes)
    return visible.Case.of(f"a {kind} model", model, Code(_text(kind, names, sizes)))


@trusted("find_targets")
def find_targets(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Whoever knows Llama's names only earns nothing: each part has a model without them."""
    ask = once(student.function("find_targets", masked=BY_HAND))
    llama = _case(draw, draw.choice(LIKE_LLAMA), intermediate_size=draw.randrange(100, 150),
                  num_key_value_heads=1)  # fmt: skip
    other = _case(draw, draw.choice(OTHERWISE))
    conv = _case(draw, "gpt2", ("c_attn", "c_fc"))
    head = _case(draw, OWN_HEAD, ("q_proj", "v_proj", "fc1"), intermediate_size=112)
    compare = visible.compare_find_targets
    return [
        Part(1, partial(compare, ask, [llama, other]), "layers of other names"),
        Part(2, partial(compare, ask, [conv, llama]), "Conv1D"),
        Part(1, partial(compare, ask, [llama, head]), "a head of another name"),
    ]


@trusted("trainable_counts")
def trainable_counts(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """PEFT may be used: it is the point. Targets are drawn, so its defaults earn nothing."""
    ask = once(student.function("trainable_counts"))
    sweeps = []
    for targets in (["c_attn", "c_fc"], ["c_proj"], ["c_attn", "c_proj"]):
        sizes = _sizes(draw)
        text = _text("gpt2", None, sizes)
        ranks = tuple(draw.sample((1, 2, 3, 5, 6, 7, 9, 10, 11, 12), 2))
        settings = {"target_modules": targets, "fan_in_fan_out": True}
        sweeps.append(visible.Sweep(f"a GPT-2 model, {' and '.join(targets)}",
                                    Code(f"lambda: {text}"),
                                    partial(small_model, "gpt2", None, **sizes), settings, ranks))
    compare = visible.compare_trainable_counts
    return [
        Part(1, partial(compare, ask, sweeps[:1]), "one choice of layers"),
        Part(2, partial(compare, ask, sweeps[1:]), "two others"),
    ]


@trusted("plot_counts")
def plot_counts(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """The figure's data are taken out in the sandbox, and compared here."""
    take = "__import__('loralab.checks.ch03', fromlist=['*']).plotted(answer)"
    ask = once(student.function("plot_counts", take=take))
    ranks = sorted(draw.sample(range(1, 100), draw.randrange(3, 7)))
    cases = [(ranks, [r * draw.randrange(1000, 90_000) for r in ranks])]
    compare = partial(visible.compare_plot_counts, ask, cases)
    return [
        Part(1, partial(compare, ("points",)), "the points"),
        Part(1, partial(compare, ("points", "labels")), "points and labels"),
    ]


@trusted("predict_count")
def predict_count(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = once(student.function("predict_count", masked=BY_HAND))

    def shapes(wide: bool) -> list[tuple[int, int]]:
        """Layers that are not square: with more inputs than outputs, or fewer."""
        found = []
        for _ in range(draw.randrange(3, 7)):
            narrow = 16 * draw.randrange(4, 120)
            long = narrow + 16 * draw.randrange(3, 200)
            found.append((long, narrow) if wide else (narrow, long))
        return found

    # No rank 8: it is PEFT's default.
    ranks = draw.sample([r for r in range(2, 70) if r != 8], 4)
    cases = [(shapes(bool(index % 2)), r) for index, r in enumerate(ranks)]
    compare = visible.compare_predict_count
    return [
        Part(1, partial(compare, ask, cases[:2]), "layers that are not square"),
        Part(1, partial(compare, ask, cases[2:]), "other layers, other ranks"),
    ]


@trusted("models_with")
def models_with(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Models that exist in this draw only. Each part has two right ones and a near miss."""
    ask = once(student.function("models_with", masked=BY_HAND))
    compare = visible.compare_models_with
    return [
        Part(1, partial(compare, ask, [_search(draw, square) for square in (True, False)]), label)
        for label in ("models and counts", "other models and counts")
    ]


def _search(draw: random.Random, square: bool) -> visible.Search:
    """A question with two right models, and models that each mistake takes for right.

    `square`: among them those that would be right if layers were square; else one with layers
    whose names end in a target.
    """
    names = tuple(sorted({_name(draw), _name(draw), _name(draw)}))[:2]
    rest = _name(draw)
    r, layers = draw.randrange(2, 40), draw.randrange(2, 6)
    wide, narrow = 32 * draw.randrange(9, 40), 32 * draw.randrange(2, 8)

    def model(*shapes: tuple[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        return {f"blocks.{i}.part.{name}": shape for i in range(layers) for name, shape in shapes}

    first, second = names
    models = {
        "right": model((first, (wide, wide)), (second, (wide, narrow)), (rest, (wide, 4 * wide))),
        "turned": model((first, (wide, wide)), (second, (narrow, wide))),
        "more": model((first, (wide, wide + 32)), (second, (wide, narrow)), (rest, (wide, wide))),
        # Right if all layers are counted.
        "whole": model((first, (wide, wide)), (rest, (wide, narrow))),
    }
    count = visible.lora_count(visible.targeted(models["right"], names), r)
    if square:
        # 2·in gives the right count, or 2·out; in + out does not.
        half = (3 * wide + narrow) // 4
        models["in"] = model((first, (half, 2 * half)), (second, (half, half)))
        models["out"] = model((first, (2 * half, half)), (second, (half, half)))
    else:
        models["ending"] = model((first, (wide, wide)), (f"z{second}", (wide, narrow)))
    items = list(models.items())
    draw.shuffle(items)
    # Names that say nothing.
    labels = [_name(draw) for _ in items]
    return visible.Search(
        {f"{label}-{i}": shapes for i, (label, (_, shapes)) in enumerate(zip(labels, items))},
        names, r, count)


MEMORY_MODELS = ("llama-2-7b", "llama-3.1-8b", "mistral-7b", "qwen2.5-7b", "llama-3.2-3b",
                 "llama-2-13b", "qwen2.5-1.5b")  # fmt: skip


@trusted("extra_memory")
def extra_memory(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Not by hand: `memory.estimate` is what the exercise is to be written with."""
    ask = once(student.function("extra_memory"))
    names = draw.sample(MEMORY_MODELS, 3)
    every = [("lora", visible.QV), ("qlora", "all-linear"), ("qlora", ("k_proj", "down_proj"))]
    questions = []
    for name, (method, targets) in zip(names, every, strict=True):
        low = draw.randrange(2, 12)
        questions.append(visible.Question(name, method, targets, low, low * draw.randrange(3, 8)))
    compare = visible.compare_extra_memory
    return [
        Part(1, partial(compare, ask, questions[:1]), "LoRA"),
        Part(1, partial(compare, ask, questions[1:]), "QLoRA"),
    ]


@trusted("matching_alpha")
def matching_alpha(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = once(student.function("matching_alpha", masked=BY_HAND))

    def cases(rslora: bool) -> list[visible.Alpha]:
        # No rank is a power of the other: two mistakes would give one number.
        up, down = draw.choice((5, 6, 7, 11)), draw.choice((5, 6, 7, 11))
        alphas = draw.sample(range(13, 90), 2)
        return [(up, alphas[0], up * draw.choice((2, 3, 4)), rslora),
                (down * draw.choice((2, 3, 4)), alphas[1], down, rslora)]

    compare = visible.compare_matching_alpha
    return [
        Part(1, partial(compare, ask, cases(rslora)), label)
        for rslora, label in ((False, "divided by r"), (True, "divided by the root of r"))
    ]


@trusted("verdict")
def verdict(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = {name: once(student.function(name, masked=BY_HAND)) for name in ("difference", "verdict")}
    every = [_runs(draw, side, n) for side, n in zip((1, -1, 0, 0), draw.sample((3, 4, 5, 6), 4))]
    return [
        Part(2, partial(visible.compare_difference, ask["difference"], every[:3]), "the interval"),
        Part(1, partial(visible.compare_verdict, ask["verdict"], every), "the verdict"),
    ]


def _runs(draw: random.Random, side: int, n: int) -> visible.Compared:
    """Accuracies of n runs on either side: a better (1), b better (-1), or no telling (0).

    Means differ in every case, and no interval ends near 0.
    """
    while True:
        a, b = ([round(draw.uniform(low, high), 3) for _ in range(n)]
                for low, high in (sorted((draw.random(), draw.random())) for _ in "ab"))
        low, high = visible.interval(a, b)
        width, middle = high - low, (low + high) / 2
        if width < 0.1 or min(abs(low), abs(high)) < 0.1 * width or abs(middle) < 0.1 * width:
            continue
        if side == (low > 0) - (high < 0):
            return a, b
