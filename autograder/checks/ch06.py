"""Chapter 06's trusted checks: models, updates, devices and adapters drawn for each submission."""

from __future__ import annotations

import builtins
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from autograder.checks import Code, Data, Part, Personal, Student, StudentError, trusted
from autograder.checks.once import once
from loralab.checks import ch06 as visible

MODULE = "__import__('loralab.checks.ch06', fromlist=['*'])"
# Each would solve an exercise that is to be written by hand.
BY_HAND = ("loralab.checks", "loralab.memory", "peft", "bitsandbytes")


def _seed(draw: random.Random) -> str:
    return f"{draw.getrandbits(64):x}"


def _as_here(ask: Callable[..., Data]) -> Callable[..., Data]:
    """`ask`, with the exceptions that comparators name caught as they are in a notebook."""
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


@trusted("merge_adapter")
def merge_adapter(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """PEFT is what the exercise is about: nothing is switched off but the checks themselves."""
    def report(case: visible.Case) -> Data:
        ask = student.function("merge", masked=("loralab.checks",),
                               take=f"{MODULE}.model_report(answer, {tuple(case)!r})")  # fmt: skip
        made = f"{MODULE}.Case(*{tuple(case)!r})"
        return ask(Code(f"{made}.base()"), Code(f"{made}.folder()"), Code(f"torch.{case.dtype}"))

    report = once(report)

    def case(stored: str, dtype: str) -> visible.Case:
        r = draw.randrange(2, 5)
        return visible.Case(stored, dtype, r, r * draw.choice((1.5, 2, 3)),
                            draw.choice((32, 64)), _seed(draw))  # fmt: skip

    compare = partial(visible.compare_merge_adapter, report)
    plain = case("float32", "float32")
    return [
        Part(1, partial(compare, [plain]), "a base in fp32"),
        Part(1, partial(compare, [case("bfloat16", "bfloat16")]), "a base in bf16"),
        Part(1, partial(compare, [case("4-bit", draw.choice(("float32", "bfloat16")))]),
             "a base in 4 bits"),
    ]  # fmt: skip


WAYS = ("16-bit", "plain", "4-bit", "dequantised", "in place", "served", "rounded", "fused")


@trusted("rank_merges")
def rank_merges(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """The reference's name and place in the dict are drawn, and so are all accuracies."""
    ask = once(student.function("rank_merges", masked=BY_HAND))
    cases = []
    for _ in range(2):
        names = draw.sample(WAYS, 5)
        hits = visible.some_hits(_seed(draw), names, draw.choice((110, 120, 130, 150)))
        mixed = {name: hits[name] for name in draw.sample(names, 5)}
        cases.append((names[0], mixed))
    compare = partial(visible.compare_rank_merges, ask, [*cases, visible.FOUR])
    return [
        Part(1, partial(compare, ("order",)), "accuracies, in order"),
        Part(1, partial(compare, ("worse",)), "which are worse by more than chance"),
    ]


@trusted("moved_codes")
def moved_codes(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """NF4 first: with levels that exist in this draw only, nobody has copied the table."""
    ask = _as_here(once(student.function("moved", masked=BY_HAND)))

    def case(levels: torch.Tensor, block: int, more: int) -> visible.Coded:
        n = block * draw.randrange(5, 9) + more
        return visible.Coded.draw(_seed(draw), n, block, levels)

    blocks = draw.sample((32, 48, 64, 80), 3)
    compare = partial(visible.compare_moved_codes, ask)
    return [
        Part(1, partial(compare, [case(visible.nf4(), blocks[0], 0)]), "NF4's levels"),
        Part(1, partial(compare, [case(_levels(draw), blocks[1], 0)]), "other levels"),
        Part(1, partial(compare, [case(_levels(draw), blocks[2], draw.randrange(3, 30))]),
             "an incomplete block"),
    ]  # fmt: skip


def _levels(draw: random.Random) -> torch.Tensor:
    """−1, 0, 1 and others between them, at least 0.06 apart."""
    while True:
        inner = [draw.uniform(-0.95, 0.95) for _ in range(draw.randrange(5, 8))]
        levels = torch.tensor(sorted([-1.0, 0.0, 1.0, *inner]))
        if levels.diff().min() > 0.06:
            return levels


@trusted("disk_bytes")
def disk_bytes(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = once(student.function("disk_bytes", masked=BY_HAND))
    cases = []
    for dtype in draw.sample(("float32", "bfloat16", "float64"), 2):
        shapes = tuple(tuple(draw.sample(range(20, 90), 2)) for _ in range(draw.randrange(2, 5)))
        cases.append(visible.Stored(draw.randrange(40_000, 90_000), shapes, draw.randrange(2, 9),
                                    draw.choice((3, 5, 7, 9, 11)), dtype))  # fmt: skip

    def with_dtype(parameters: int, shapes: list, r: int, tasks: int, dtype: torch.dtype) -> Data:
        return ask(parameters, shapes, r, tasks, Code(str(dtype)))

    compare = partial(visible.compare_disk_bytes, with_dtype, cases)
    return [
        Part(1, partial(compare, ("merged",)), "merged models"),
        Part(1, partial(compare, ("separate",)), "one base, many adapters"),
    ]


@trusted("seconds_per_call")
def seconds_per_call(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """On a made-up device: no check depends on how busy this machine is."""
    function = student.function("seconds_per_call", masked=("peft", "bitsandbytes"))

    def measured(case: visible.Timed) -> Data:
        first = f"{MODULE}.device(*{(*case.warm, *case.timed)!r}).run"
        rest = (f"{MODULE}.same_device().{name}" for name in ("synchronise", "clock"))
        return function(Code(first), *map(Code, rest), len(case.warm), len(case.timed))

    ask = once(measured)
    def case(steady: bool) -> visible.Timed:
        repeats = draw.choice((5, 7, 9))
        return visible.Timed.draw(_seed(draw), draw.randrange(3, 6), repeats, steady)

    compare = partial(visible.compare_seconds_per_call, ask)
    return [
        Part(1, partial(compare, [case(True), case(True)]), "work is waited for"),
        Part(1, partial(compare, [case(False), case(False)]), "slow calls"),
    ]


@trusted("combine")
def combine(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = _as_here(once(student.function("combine", masked=BY_HAND)))

    def mixture(ranks: list[int], weights: list[float]) -> visible.Mixture:
        shape = draw.sample(range(14, 24), 2)
        scales = draw.sample((0.5, 1.5, 2.0, 3.0, 4.0), len(ranks))
        return visible.Mixture.draw(_seed(draw), tuple(shape), ranks, scales, weights)

    same = draw.randrange(2, 4)
    equal = mixture([same, same], [draw.uniform(0.3, 0.9), draw.uniform(1.1, 1.6)])
    ranks = draw.sample((1, 2, 3, 4), 3)
    mixed = mixture(ranks, [draw.uniform(0.3, 0.9), -draw.uniform(0.5, 1.5), draw.uniform(1.1, 2)])
    compare = partial(visible.compare_combine, ask)
    return [
        Part(1, partial(compare, [equal], ("sum",)), "two adapters of one rank"),
        Part(1, partial(compare, [mixed], ("sum",)), "several ranks, and a negative weight"),
        Part(1, partial(compare, [equal, mixed]), "no more rank than needed"),
    ]
