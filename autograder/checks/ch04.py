"""Chapter 04's trusted checks: weights, levels and layers drawn for each submission.

bitsandbytes and PEFT say what is right, here; where the student's functions run they are switched
off.
"""

from __future__ import annotations

import builtins
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from autograder.checks import Data, Part, Personal, Student, StudentError, trusted
from autograder.checks.once import once
from loralab.checks import ch04 as visible

# Each would solve an exercise that is to be written by hand in one line.
BY_HAND = ("bitsandbytes", "peft", "loralab.four_bit", "loralab.rounding", "loralab.memory",
           "loralab.checks")  # fmt: skip


def _seed(draw: random.Random) -> int:
    return draw.getrandbits(40)


def _as_here(ask: Callable[..., Data]) -> Callable[..., Data]:
    """`ask`, with the exceptions that comparators name caught as they are in a notebook.

    One that no comparator names stays a StudentError.
    """
    known = {error.__name__ for error in visible.MISFITS}

    def call(*given: Any) -> Data:
        try:
            return ask(*given)
        except StudentError as error:
            if error.kind != "raised" or error.name not in known:
                raise
            both = type(error.name, (StudentError, getattr(builtins, error.name)), {})
            raise both(error.kind, error.name) from None

    return call


@trusted("absmax_quantize")
def absmax_quantize(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Every part has blocks of two sizes, outliers of both signs, and no fixed answer."""
    ask = _as_here(once(student.function("absmax_quantize", masked=BY_HAND)))

    def case(block: int, more: int, zeros: bool = False) -> visible.Weights:
        n = block * draw.randrange(4, 8) + more
        weights = visible.draw_weights(_seed(draw), n, block, visible.ABSMAX_LEVELS, zeros)
        return weights, block

    small, large = draw.sample((16, 20, 24, 32, 40), 2), draw.sample((48, 56, 64, 80, 96), 2)
    compare = partial(visible.compare_absmax_quantize, ask)
    return [
        Part(1.5, partial(compare, [case(block, 0) for block in (small[0], large[0])]),
             "blocks that are full"),
        Part(1, partial(compare, [case(block, draw.randrange(3, block - 2))
                                  for block in (small[1], large[1])]), "an incomplete block"),
        Part(0.5, partial(compare, [case(block, 0, zeros=True)
                                    for block in (small[1], large[0])]), "a block of zeros"),
    ]  # fmt: skip


@trusted("nf_levels")
def nf_levels(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """4 bits and two other widths in each part: a table that was copied is right for one only."""
    ask = once(student.function("nf_levels", masked=BY_HAND))
    widths = [4, *draw.sample((3, 5, 6, 7), 2)]
    return [
        Part(1, partial(visible.compare_nf_levels, ask, widths, ("form",)),
             "how many, zero, sides, ends"),
        Part(2, partial(visible.compare_nf_levels, ask, widths, ("form", "values")),
             "the levels between"),
    ]  # fmt: skip


@trusted("quantize")
def quantize(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """NF4 against bitsandbytes' codes, and levels that exist in this draw only."""
    code = _as_here(once(student.function("quantize", masked=BY_HAND)))
    back = _as_here(once(student.function("dequantize", masked=BY_HAND)))
    nf4, others = visible.table("nf4"), visible.some_levels(_seed(draw))

    def case(levels: torch.Tensor, block: int, more: int, zeros: bool = False) -> visible.Coded:
        n = block * draw.randrange(4, 8) + more
        weights = visible.draw_weights(_seed(draw), n, block, levels, zeros)
        return visible.Coded.of(weights, levels, block)

    size, other = draw.sample(visible.BLOCKS[:3], 2), draw.sample((24, 40, 56, 72, 88), 3)
    full = [case(nf4, size[0], 0), case(others, other[0], 0)]
    incomplete = [case(nf4, size[1], draw.randrange(3, size[1] - 2)),
                  case(others, other[1], draw.randrange(3, other[1] - 2))]  # fmt: skip
    zeros = [case(nf4, size[0], 0, zeros=True), case(others, other[2], 0, zeros=True)]
    return [
        Part(1.5, partial(visible.compare_quantize, code, full), "codes, blocks that are full"),
        Part(1, partial(visible.compare_quantize, code, incomplete), "codes, an incomplete block"),
        Part(0.5, partial(visible.compare_quantize, code, zeros), "codes, a block of zeros"),
        Part(2, partial(visible.compare_dequantize, back, full + incomplete), "the way back"),
    ]


@trusted("bits_per_weight")
def bits_per_weight(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = once(student.function("bits_per_weight", masked=BY_HAND))
    blocks = draw.sample((32, 64, 128, 256), 2)
    others = draw.sample((16, 48, 96, 192, 512), 2)
    outer = draw.sample((64, 128, 512, 1024), 2)
    single = [(block, False, 256) for block in (*blocks, others[0])]
    double = [(block, True, 256) for block in (*blocks, others[1])]
    compare = partial(visible.compare_bits_per_weight, ask)
    return [
        Part(1, partial(compare, single), "fp32 constants"),
        Part(1, partial(compare, double), "double quantisation"),
        Part(1, partial(compare, [(blocks[0], True, outer[0]), (others[0], True, outer[1])]),
             "constants in blocks of another size"),
    ]  # fmt: skip


NAMES = ("ternary", "log", "mu-law", "posit", "mine", "af4", "quantile", "sqrt", "e2m1", "int")


@trusted("rank_schemes")
def rank_schemes(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Four tables, each of them the best once: no name is first by habit."""
    ask = once(student.function("rank_schemes", masked=BY_HAND))
    cases = []
    for best in draw.sample(("NF4", "absmax", "FP4", "new"), 4):
        cases.append(_ranked(draw, best))
    compare = partial(visible.compare_rank_schemes, ask, cases)
    return [
        Part(1, partial(compare, what=("order",)), "the order"),
        Part(1, partial(compare, what=("errors",)), "the errors"),
    ]


def _ranked(draw: random.Random, best: str) -> visible.Ranked:
    """Weights that lie nearer to the levels of `best` than to those of the others."""
    while True:
        tables = {**visible.three_schemes(), "new": visible.some_levels(_seed(draw))}
        new = draw.choice(NAMES)
        given = {new if name == "new" else name: tables[name]
                 for name in draw.sample(tuple(tables), 4)}  # fmt: skip
        block = draw.choice((32, 40, 64, 96))
        generator = torch.Generator().manual_seed(_seed(draw))
        places = torch.randint(len(tables[best]), (block * 24,), generator=generator)
        noise = torch.randn(block * 24, generator=generator) * 0.03
        sizes = torch.rand(24, generator=generator).repeat_interleave(block) + 0.5
        weights = (tables[best][places] + noise) * sizes * 10 ** draw.uniform(-2, 1)
        case = visible.Ranked.of(weights, given, block)
        errors = [error for _, error in case.right]
        apart = all(more > 1.03 * less for less, more in zip(errors, errors[1:]))
        if apart and case.right[0][0] == (new if best == "new" else best):
            return case


@trusted("qlora_layer")
def qlora_layer(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Two layers that are not square, with ranks and α of their own. All parts need the output."""
    cases = []
    for _ in range(2):
        block = draw.choice((32, 64))
        outputs, inputs = draw.sample(range(12, 60, 2), 2)
        r = draw.randrange(2, 9)
        alpha = draw.choice([a for a in (3, 5, 6, 8, 12, 20, 32) if a not in (r, r * r)])
        cases.append(visible.Frozen.draw(_seed(draw), (outputs, inputs), r, alpha, block))
    known: dict[int, Any] = {}

    def step(case: visible.Frozen) -> Any:
        if case.seed not in known:
            make = student.function("QLoRALinear", masked=BY_HAND, take=_step_of(case))
            known[case.seed] = once(make)
        return known[case.seed](*case.arguments)

    compare = partial(visible.compare_qlora_layer, step, cases)
    return [
        Part(1, partial(compare, what=()), "the output"),
        Part(1, partial(compare, what=("adapter",)), "the gradients of A and B"),
        Part(1, partial(compare, what=("input",)), "the gradient that is passed on"),
        Part(1, partial(compare, what=("adapter", "frozen")), "nothing else learns or is kept"),
    ]


def _step_of(case: visible.Frozen) -> str:
    """The expression that makes data of a layer: a step in the student's process, masked too."""
    guard = ("__import__('functools').partial(__import__('sys').modules['bridge'].masking, "
             f"{BY_HAND!r})")  # fmt: skip
    return (f"__import__('loralab.checks.ch04', fromlist=['*'])"
            f".layer_step(answer, {tuple(case.shape)!r}, {case.seed!r}, {guard})")
