"""Chapter 02's trusted checks: LoRA by hand on layers and models drawn for each submission."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from autograder.checks import Code, Data, Part, Personal, Student, StudentError, trusted
from autograder.checks.once import once
from loralab import low_rank
from loralab.checks import ch02 as visible

# PEFT has all of this ready, and the visible checks use it.
BY_HAND = ("loralab.checks", "peft", "bitsandbytes")
# What `backward`, `torch.autograd.grad` and torch.func go through, and nothing else does.
NO_AUTOGRAD = (*BY_HAND, "torch.autograd.graph", "torch._functorch")
MODULE = "__import__('loralab.checks.ch02', fromlist=['*'])"


def _masked(expression: str) -> str:
    """An expression over `answer` that is evaluated without PEFT too: a module may call it late."""
    masks = f"__import__('sys').modules['bridge'].masking({BY_HAND[1:]!r})"
    return f"{masks}(lambda answer: {expression})(answer)"


def _as_here(ask: Callable[..., Data]) -> Callable[..., Data]:
    """`ask`, with the exceptions that comparators name raised as they are in a notebook."""
    known = {error.__name__ for error in visible.MISFITS}

    def call(*given: Any) -> Data:
        try:
            return ask(*given)
        except StudentError as error:
            if error.kind == "raised" and error.name in known:
                raise RuntimeError("an exception") from None
            raise

    return call


@trusted("init_lora")
def init_lora(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = student.function("init_lora", masked=BY_HAND)
    first = once(ask)  # the distribution's part asks anew: A should differ each time
    n_in = draw.randrange(800, 1600)
    wide = (draw.randrange(200, 500), n_in, draw.randrange(14, 20))
    n_in = draw.randrange(300, 500)
    tall = (draw.randrange(700, 1200), n_in, draw.randrange(40, 60))
    compare = visible.compare_init_lora
    return [
        Part(1, partial(compare, first, [wide, tall], ("shapes",)), "shapes"),
        Part(1, partial(compare, first, [wide], ("zero",)), "which matrix starts at zero"),
        Part(1, partial(compare, ask, [wide, tall]), "distribution"),
    ]


@trusted("lora_forward")
def lora_forward(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """A square layer comes first, so that what works for square layers only is named so."""
    ask = _as_here(once(student.function("lora_forward", masked=BY_HAND)))
    square, neutral = (_forward(draw, square=one, neutral=True) for one in (True, False))
    scaled = [square, _forward(draw), _forward(draw, square=True)]
    shaped = [square, _forward(draw), _forward(draw, leading=(2, 3)), _forward(draw, leading=())]
    compare = visible.compare_lora_forward
    return [
        Part(1, partial(compare, ask, [square, neutral]), "the two products, with α = r"),
        Part(1, partial(compare, ask, scaled), "the scale"),
        Part(1, partial(compare, ask, shaped), "one vector, and a batch of sentences"),
    ]


def _forward(
    draw: random.Random, leading: tuple[int, ...] | None = None, square: bool = False,
    neutral: bool = False,
) -> visible.Forward:  # fmt: skip
    """A layer that is square or far from it, and a scale about which no two mistakes agree."""
    n_in, r = draw.randrange(7, 11), draw.randrange(2, 5)
    n_out = n_in if square else n_in + draw.choice((-2, -1, 2, 5))
    alpha = r if neutral else _alpha(draw, r)
    if leading is None:
        leading = (draw.randrange(4, 7),)
    return visible.Forward(leading, n_out, n_in, r, alpha, f"{draw.getrandbits(64):x}")


def _alpha(draw: random.Random, r: int) -> int:
    """α > r, so that no mistake about the scale looks like another, or like a mean over inputs."""
    def apart(alpha: int) -> bool:
        scale = alpha / r
        return visible.scales_apart(r, alpha) and not any(
            math.isclose(mistaken, inputs, rel_tol=0.05)
            for mistaken in (scale, scale**2) for inputs in range(2, 7))  # fmt: skip

    return draw.choice([alpha for alpha in range(r + 1, 8 * r) if apart(alpha)])


@trusted("lora_gradients")
def lora_gradients(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """A's gradient counts where B is zero and where it is not: zeros earn nothing."""
    ask = _as_here(once(student.function("lora_gradients", masked=NO_AUTOGRAD)))
    cases = [(_forward(draw), True), (_forward(draw), False),
             (_forward(draw, leading=(2, 3)), False)]
    compare = visible.compare_lora_gradients
    return [
        Part(1.5, partial(compare, ask, cases, ("B",)), "the gradient of B"),
        Part(1.5, partial(compare, ask, cases, ("A",)), "the gradient of A"),
    ]


@trusted("lora_linear")
def lora_linear(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    def report(layer: visible.Layer) -> Data:
        taken = _masked(f"{MODULE}.layer_report(answer, {layer.n_in}, {layer.seed!r})")
        ask = student.function("LoRALinear", take=taken, masked=BY_HAND)
        return _as_here(ask)(Code(f"{MODULE}.Layer(*{tuple(layer)!r}).make()"), layer.r,
                             layer.alpha)

    report = once(report)
    linear = [_layer(draw, "Linear", bias=False), _layer(draw, "Linear")]
    conv = [_layer(draw, "Conv1D"), _layer(draw, "Conv1D", square=True)]
    compare = visible.compare_lora_linear
    return [
        Part(1.5, partial(compare, report, linear), "nn.Linear"),
        Part(1.5, partial(compare, report, conv), "Conv1D"),
    ]


def _layer(
    draw: random.Random, kind: str, bias: bool = True, square: bool = False
) -> visible.Layer:
    shape = _forward(draw, square=square)
    return visible.Layer(kind, shape.n_in, shape.n_out, bias, shape.r, shape.alpha, shape.seed)


@trusted("add_lora")
def add_lora(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Architectures that the visible check does not have. Counts are of models that PEFT wrapped,
    so that they do not depend on where the student put adapters."""
    def report(model: visible.Model) -> Data:
        taken = _masked(f"{MODULE}.model_report(answer, {model.seed!r})")
        ask = student.function("add_lora", take=taken, masked=BY_HAND)
        return _as_here(ask)(Code(f"{MODULE}.Model(*{tuple(model)!r}).make()"),
                             list(model.names), model.r, model.alpha)

    count = student.function("count_parameters", masked=BY_HAND)

    def counted(model: visible.Model) -> Data:
        return count(Code(f"{MODULE}.Model(*{tuple(model)!r}).wrapped()"))

    like_llama, like_gpt2, made_up = _models(draw)
    report, counted = once(report), once(counted)
    compare = visible.compare_add_lora
    return [
        Part(0.75, partial(compare, report, [like_llama]), "a model with nn.Linear"),
        Part(0.75, partial(compare, report, [like_gpt2]), "a model with Conv1D"),
        Part(0.75, partial(compare, report, [made_up]), "names that look alike"),
        Part(0.75, partial(visible.compare_count, counted, [like_llama, like_gpt2]), "counts"),
    ]


def _models(draw: random.Random) -> Sequence[visible.Model]:
    """Like Llama, like GPT-2, and one with names of its own."""
    heads = draw.choice((2, 4))
    sizes = {"hidden_size": 16 * heads, "intermediate_size": 8 * draw.randrange(5, 9),
             "num_hidden_layers": 2, "num_attention_heads": heads,
             "num_key_value_heads": heads // 2, "tie_word_embeddings": True}
    names = draw.choice((("k_proj", "o_proj"), ("up_proj", "down_proj"), ("gate_proj", "v_proj")))
    kind = draw.choice(("mistral", "qwen2", "llama"))
    conv = {"n_embd": 8 * draw.randrange(2, 5), "n_layer": 2, "n_head": 2}
    letters = ("bdgkmz", "aeiou", "lnrstv")
    name = "".join(draw.choice(some) for some in letters * 2)
    return [
        visible.Model(one, tuple(given.items()), wanted, r := draw.randrange(2, 5),
                      _alpha(draw, r), f"{draw.getrandbits(64):x}")
        for one, given, wanted in (
            (kind, sizes, names),
            (draw.choice(("gpt2", "openai-gpt")), conv,
             draw.choice((("c_attn", "c_fc"), ("c_attn", "c_proj"), ("c_fc",)))),
            ("made_up", {"width": draw.randrange(5, 9), "blocks": draw.randrange(2, 4)}, (name,)),
        )
    ]  # fmt: skip


@trusted("best_error")
def best_error(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Both parts hold a rank with a rest of several values, which tells the mistakes apart."""
    ask = once(student.function("best_error", masked=BY_HAND))
    sides = draw.randrange(7, 10), draw.randrange(10, 14)
    if draw.random() < 0.5:
        sides = sides[::-1]
    full = low_rank.normal(f"{draw.getrandbits(64):x}", *sides)
    rank = draw.randrange(4, 6)
    values = sorted((draw.uniform(1.5, 9) for _ in range(rank)), reverse=True)
    low = low_rank.matrix(*sides, values, f"{draw.getrandbits(64):x}")
    r = draw.randrange(2, 5)
    compare = visible.compare_best_error
    return [
        Part(1, partial(compare, ask, [(full, r), (full, r - 1)]), "a matrix of full rank"),
        Part(1, partial(compare, ask, [(low, rank - 3), (low, rank + 1)]), "one of low rank"),
    ]


@trusted("merge")
def merge(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """`take` brings back the weight that was given too: it should not have changed."""
    ask = _as_here(student.function("merge", take=f"{MODULE}.merge_report(answer)", masked=BY_HAND))

    def report(case: visible.Merge) -> Data:
        _, A, B = case.tensors()
        return ask(Code(f"{MODULE}.given_weight(*{tuple(case)!r})"), A, B, case.alpha, case.r)

    report = once(report)
    cases = []
    for dtype in ("float32", "bfloat16"):
        shape = _forward(draw)
        larger = 1 if dtype == "float32" else 8  # many entries, so that some are rounded wrongly
        cases.append(visible.Merge(larger * shape.n_out, larger * shape.n_in, shape.r, shape.alpha,
                                   dtype, shape.seed))
    pairs = visible.agreements(f"{draw.getrandbits(64):x}", draw.choice((8, 12, 24)))
    # Not once: pairs differ in digits that the printed form of a tensor does not show.
    agree = student.function("agree", masked=BY_HAND)
    return [
        Part(1, partial(visible.compare_merge, report, [cases[0]]), "merge in fp32"),
        Part(1, partial(visible.compare_merge, report, [cases[1]]), "merge in bf16"),
        Part(1, partial(visible.compare_agree, agree, pairs), "agree"),
    ]
