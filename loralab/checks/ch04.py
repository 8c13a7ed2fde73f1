"""Chapter 04, NF4 by hand: the visible checks, and one symptom for each typical wrong answer.

What is right comes from bitsandbytes (its table, its codes, its bytes, its layer with PEFT's
adapter) wherever it can do what is asked, else from NumPy in double precision. Cases keep clear of
the middle between two levels, where rounding in another order may give the other one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from loralab import four_bit
from loralab.checks import Exercise, Symptom, as_number, kind_of, shortened

BLOCKS = (32, 64, 128, 256)  # sizes that bitsandbytes has, small enough for a case
MOST = 2_000_000  # numbers in an answer

EXERCISES = {
    "absmax_quantize": Exercise(
        "absmax_quantize",
        "4.1",
        hints=(
            "Start with one block, `weights[:block]`. Which number becomes 7?",
            "For all blocks at once: fill the last one up with zeros, give the tensor the shape "
            "(blocks, block), and take `abs().amax(1, keepdim=True)`. Zeros never are the largest.",
            "Cut off what you filled up, at the end.",
        ),
        symptoms={
            "tensor": Symptom(
                "One outlier took all your codes.",
                "One scale for all the weights is as large as their largest. How many scales does "
                "the docstring ask for?",
            ),
            "beyond": Symptom(
                "A code lies beyond −7 … 7.",
                "Which of a block's weights is the largest if −3 and 2 are in it? And which code "
                "must that one get?",
            ),
            "truncated": Symptom(
                "Your codes are too near to zero, or all a little too low.",
                "Turning a float into an integer cuts its digits off. That is not rounding.",
            ),
            "constant": Symptom(
                "The codes are right, the constants are not.",
                "Return the largest magnitude itself, in fp32. Who reads the codes divides by 7.",
            ),
            "length": Symptom(
                "Not one code for each weight, or not one constant for each block.",
                "The last block may be incomplete. It has a constant all the same, and as many "
                "codes as weights.",
            ),
            "columns": Symptom(
                "Your blocks do not hold neighbours.",
                "A block is `block` weights that follow each other. Print which weights are in "
                "your first one.",
            ),
            "zeros": Symptom(
                "A block of zeros went wrong.",
                "What do you divide by there?",
            ),
        },
    ),
    "nf_levels": Exercise(
        "nf_levels",
        "4.2",
        hints=(
            "`NormalDist().inv_cdf(p)` is Q(p). Try it on 0.5 and on `1 - offset`.",
            "The longer side: cut the way from `offset` to ½ into as many equal parts as it has "
            "levels. Then ½ itself is the end of the last part.",
            "Do the same for the shorter side and turn its signs; then put both and 0 together.",
        ),
        symptoms={
            "count": Symptom(
                "Not one level for each code.",
                "How many are above zero, and how many below? Does one of your steps land on ½?",
            ),
            "infinite": Symptom(
                "A level is infinite.",
                "Q(0) and Q(1) are. At which probability do your quantiles begin?",
            ),
            "no_zero": Symptom(
                "No level is exactly zero.",
                "With an even number of levels spread evenly there is none in the middle. Zero has "
                "to be put there, and the two sides share what is left.",
            ),
            "two_zeros": Symptom(
                "A level is there twice.",
                "Both sides end at the probability ½, which is zero. How many of them keep it?",
            ),
            "sides": Symptom(
                "The longer side is the wrong one.",
                "An odd number of levels is left beside zero. Look at the text: which side has "
                "one more?",
            ),
            "ends": Symptom(
                "The outermost levels are not −1 and 1.",
                "Levels are multiples of a block's absmax. What has to be divided by what?",
            ),
            "equal_steps": Symptom(
                "Your levels have equal distances.",
                "The *probabilities* go in equal steps. The levels are the quantiles at them.",
            ),
            "four_only": Symptom(
                "Right for 4 bits, wrong for others.",
                "Which of your numbers belong to 4 bits? Look for 16, 8, 7, 32, 30.",
            ),
            "between": Symptom(
                "The ends are right, and the levels between them are off.",
                "Print the probabilities at which you take quantiles. Do they begin at the offset, "
                "in equal steps, and would the next step after the last be ½ exactly?",
            ),
        },
    ),
    "quantize": Exercise(
        "quantize",
        "4.3",
        hints=(
            "`quantize` begins as in exercise 4.1. Then: which level is nearest to each scaled "
            "weight?",
            "Either compare each weight with each level and take `argmin`; or find the middles "
            "between neighbouring levels, and let `torch.bucketize` count how many lie below.",
            "`dequantize`: a tensor of codes can be an index, `levels[codes.long()]`: torch reads "
            "a `uint8` index as a mask. Each constant is needed `block` times in a row.",
        ),
        symptoms={
            "by_index": Symptom(
                "Right for equal steps, wrong for these levels.",
                "You compute the code from the weight's place between −1 and 1. These levels are "
                "not equally far apart: you have to look at them.",
            ),
            "neighbour": Symptom(
                "Always the level on the same side, never the nearest.",
                "`bucketize` and `searchsorted` count the bounds below a number. If the bounds are "
                "the levels themselves, that does not say which level is nearer.",
            ),
            "unscaled": Symptom(
                "Your weights were not scaled to −1 … 1 in their block.",
                "Levels are multiples of the block's absmax. Divide by it before you compare.",
            ),
            "tensor": Symptom(
                "One scale for all the weights.",
                "Every block has an absmax of its own. (Your 4.1 does that.)",
            ),
            "signed": Symptom(
                "Blocks whose largest weight is negative come out wrong.",
                "absmax is the largest *magnitude*.",
            ),
            "length": Symptom(
                "Not one code for each weight, or not one constant for each block.",
                "The last block may be incomplete: fill it up before, and cut the codes off after. "
                "Repeated constants are as many as full blocks hold.",
            ),
            "mask": Symptom(
                "Your codes were taken for a mask.",
                "torch treats a `uint8` index as true/false. Which dtype is an index?",
            ),
            "zeros": Symptom(
                "A block of zeros went wrong.",
                "What do you divide by there?",
            ),
            "small": Symptom(
                "Everything that came back lies between −1 and 1.",
                "Levels are multiples of the block's absmax. Multiply.",
            ),
            "position": Symptom(
                "The weights came back as if the levels had equal distances.",
                "A code is a place in the table: look there.",
            ),
            "other_block": Symptom(
                "Weights came back with another block's constant.",
                "`repeat` gives a, b, a, b; `repeat_interleave` gives a, a, b, b. Which is meant?",
            ),
        },
    ),
    "bits_per_weight": Exercise(
        "bits_per_weight",
        "4.4",
        hints=(
            "Write down what is stored for one block, in bits, and divide by its weights.",
            "With double quantisation a block stores one number of 8 bits. One of 32 bits serves "
            "`constant_block` of those: how many *weights* is that?",
        ),
        symptoms={
            "codes": Symptom(
                "The constants are missing.",
                "A code alone does not say how large its weight is.",
            ),
            "double": Symptom(
                "The constants are 8-bit too.",
                "With double quantisation a block's constant is not stored in fp32.",
            ),
            "outer": Symptom(
                "Who scales the 8-bit constants?",
                "They are quantised in blocks as well. What does such a block store in fp32?",
            ),
            "shared": Symptom(
                "An outer constant serves another number of weights.",
                "It serves `constant_block` constants, and each of those serves `block` weights.",
            ),
            "fixed": Symptom(
                "Right for one block size only.",
                "Your number does not change when `block` or `constant_block` does.",
            ),
            "bytes": Symptom(
                "Your number is of another unit.",
                "A code alone takes 4 of the unit that is asked for.",
            ),
        },
    ),
    "rank_schemes": Exercise(
        "rank_schemes",
        "4.5",
        hints=(
            "For one table: quantise, dequantise, subtract.",
            "`torch.linalg.norm` of the difference, and of the weights. `sorted` takes a `key`.",
        ),
        symptoms={
            "order": Symptom(
                "Your first is not the best.",
                "Smaller errors are better, and nothing but the error decides. Which name is first "
                "here, and why?",
            ),
            "kind": Symptom(
                "Not a list of pairs.",
                "Whoever calls the function goes through a list and finds (name, error). Look at "
                "the type in its first line. (A dict gives its pairs by `items()`.)",
            ),
            "names": Symptom(
                "Not the names that were given.",
                "One pair (name, error) for every table, whatever the tables are called.",
            ),
            "squared": Symptom(
                "Your errors are the squares of the right ones.",
                "A mean squared error is a ratio of squares. The norm has a root.",
            ),
            "absolute": Symptom(
                "Your errors grow with the weights.",
                "Weights ten times as large give an error ten times as large. Relative to what?",
            ),
            "other_mean": Symptom(
                "Right order, another kind of error.",
                "The Frobenius norm squares, adds, and takes the root, over all the weights at "
                "once; and what is divided by is the norm of the *original* weights.",
            ),
        },
    ),
    "qlora_layer": Exercise(
        "qlora_layer",
        "4.6",
        hints=(
            "What is frozen needs no gradient: keep it as a buffer (`register_buffer`), or as a "
            "plain attribute. What learns is an `nn.Parameter`.",
            "`forward`: dequantise, give the weight its shape, multiply; add the two small "
            "products, scaled.",
            "The path through the frozen weight stays open: gradients pass it, to earlier layers.",
        ),
        symptoms={
            "base": Symptom(
                "You are training the base's weights.",
                "A dequantised weight that requires a gradient gets one as large as itself, and an "
                "optimizer would update it. Only A and B learn.",
            ),
            "constants": Symptom(
                "Something beside A and B learns.",
                "`nn.Parameter` means: learns. Which of your tensors are meant to?",
            ),
            "stored": Symptom(
                "The full weight is kept between two calls.",
                "Then nothing is saved: the layer holds more than a 16-bit one. Dequantise in "
                "`forward`, and let it go.",
            ),
            "frozen": Symptom(
                "A and B do not learn.",
                "They need gradients: are they `nn.Parameter`s, made with your tensors, and used "
                "in `forward` without `detach`, `.data` or `no_grad`?",
            ),
            "blocked": Symptom(
                "No gradient passes through the frozen weight.",
                "Frozen means that it does not change. Earlier layers still learn through it: what "
                "did you put into `no_grad`, or detach?",
            ),
            "scale": Symptom(
                "The adapter has the wrong weight.",
                "Its product is scaled by α/r (chapter 02). r is a side of A.",
            ),
            "adapter": Symptom(
                "Only one of the two paths is there.",
                "The output is that of the frozen weight *plus* that of the adapter.",
            ),
            "layout": Symptom(
                "The weights are in the wrong places.",
                "Codes were read row by row from a weight of `shape`. A linear layer multiplies by "
                "its transpose.",
            ),
        },
    ),
}

# --- answers as numbers ---------------------------------------------------------------------------


def vector(given: Any) -> torch.Tensor | None:
    """An answer that is a list, array or tensor of numbers, in one row of float64; else None."""
    if isinstance(given, np.ndarray):
        if given.dtype.kind not in "iuf" or given.size > MOST:
            return None
        given = torch.from_numpy(np.ascontiguousarray(given, dtype=np.float64))
    if isinstance(given, torch.Tensor):
        known = given.layout == torch.strided and not given.is_complex() and not given.is_quantized
        if not known or given.dtype == torch.bool or given.numel() > MOST or given.is_meta:
            return None
        return given.detach().cpu().to(torch.float64).reshape(-1)
    if not isinstance(given, list | tuple) or len(given) > MOST:
        return None
    numbers = [as_number(one) for one in given]
    return None if None in numbers else torch.tensor(numbers, dtype=torch.float64)


def _pair(exercise: Exercise, case: str, given: Any, names: str) -> tuple[torch.Tensor, ...]:
    """The two vectors of an answer (codes, absmax)."""
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise exercise.wrong(f"{case} should be ({names}); it gave {kind_of(given)}.")
    found = tuple(vector(one) for one in given)
    if None in [None if one is None else 0 for one in found]:
        raise exercise.wrong(f"{case} should be two tensors of numbers ({names}).")
    return found


# What tensors and arrays that do not fit raise. Anything else is the student's own to read.
MISFITS = (RuntimeError, ValueError, IndexError)


def _fits(answer: Callable[..., Any], *given: Any) -> bool:
    """Whether the answer returns anything for these arguments."""
    try:
        answer(*given)
    except MISFITS:
        return False
    return True


def _with_blocks(
    exercise: Exercise, case: str, answer: Callable[..., Any], given: Sequence[Any],
    full: Sequence[Any] | None,
) -> Any:  # fmt: skip
    """`answer(*given)`; "length" where it fails there and not on `full`, the full blocks alone.

    `full` is None where every block is full. Other exceptions stay what they are.
    """
    try:
        return answer(*given)
    except NotImplementedError:
        raise
    except MISFITS as error:
        if full is None or not _fits(answer, *full):
            raise
        raise exercise.wrong(f"{case} raised {type(error).__name__}.", "length") from None


def _close(got: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two vectors agree, by the size of the right one."""
    if got.shape != right.shape or not bool(torch.isfinite(got).all()):
        return False
    return bool((got - right).norm() <= tolerance * right.norm() + 1e-12)


# --- weights, scaled and rounded in double precision ----------------------------------------------

ABSMAX_LEVELS = torch.arange(-7, 8) / 7  # what the codes −7 … 7 stand for


def blocks_of(weights: torch.Tensor, block: int) -> torch.Tensor:
    """(blocks, block) in float64, the last one filled up with zeros."""
    row = weights.reshape(-1).double()
    return nn.functional.pad(row, (0, -len(row) % block)).reshape(-1, block)


def right_codes(
    weights: torch.Tensor, levels: torch.Tensor, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(place of the nearest level for each weight, absmax of each block)."""
    blocks = blocks_of(weights, block)
    absmax = blocks.abs().amax(1)
    scaled = blocks / absmax.where(absmax > 0, 1)[:, None]
    codes = (scaled[..., None] - levels.double()).abs().argmin(-1)
    return codes.reshape(-1)[: weights.numel()], absmax


def right_weights(
    codes: torch.Tensor, absmax: torch.Tensor, levels: torch.Tensor, block: int
) -> torch.Tensor:
    scales = absmax.double().repeat_interleave(block)[: codes.numel()]
    return levels.double()[codes.long()] * scales


def _full(row: torch.Tensor, block: int) -> torch.Tensor | None:
    """What of `row` lies in full blocks; None where that is all of it, or nothing."""
    rest = len(row) % block
    return row[:-rest].clone() if rest and len(row) > block else None


def clear_of_middles(weights: torch.Tensor, levels: torch.Tensor, block: int) -> torch.Tensor:
    """`weights` with each that lies near the middle of two levels moved halfway to the lower."""
    blocks = blocks_of(weights, block)
    absmax = blocks.abs().amax(1, keepdim=True)
    scaled = blocks / absmax.where(absmax > 0, 1)
    levels = levels.double()
    distance, nearest = (scaled[..., None] - (levels[1:] + levels[:-1]) / 2).abs().min(-1)
    quarter = (levels + (levels.roll(-1) - levels) / 4)[nearest]
    moved = torch.where((distance < 1e-3) & (absmax > 0), quarter * absmax, blocks)
    return moved.reshape(-1)[: weights.numel()].float()


@lru_cache
def table(kind: str) -> torch.Tensor:
    """bitsandbytes' levels of "nf4" or "fp4", ascending, in fp32."""
    import bitsandbytes.functional as bnb

    # FP4 has +0 and −0: two codes for one level.
    return bnb.get_4bit_type(kind, device="cpu").unique()


def draw_weights(seed: int, n: int, block: int, levels: torch.Tensor, zeros: bool = False):
    """n weights: normal, with outliers of both signs; `zeros` makes one whole block zero.

    In the first blocks the largest magnitude is negative, positive, negative …
    """
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(n, generator=random) * 0.05
    for i, start in enumerate(range(0, n - 1, block)):
        size = min(block, n - start)
        weights[start + i % size] = (-1) ** (i + 1) * (0.2 + 0.05 * (i % 3))
    weights[n // 2] = 3.0
    if zeros:
        weights[block : 2 * block] = 0
    return clear_of_middles(weights, levels, block)


# --- 4.1 ------------------------------------------------------------------------------------------

Weights = tuple[torch.Tensor, int]  # weights (n,) and block size


def absmax_quantize(answer: Callable[[torch.Tensor, int], Any]) -> None:
    """Codes and constants of absmax quantisation, with an incomplete block and one of zeros."""
    levels = ABSMAX_LEVELS
    compare_absmax_quantize(answer, [
        (draw_weights(0, 256, 64, levels), 64),
        (draw_weights(1, 240, 48, levels), 48),
        (draw_weights(2, 150, 64, levels), 64),
        (draw_weights(3, 192, 32, levels, zeros=True), 32),
    ])  # fmt: skip
    EXERCISES["absmax_quantize"].passed("every block has a scale of its own")


def _absmax_mistakes(weights: torch.Tensor, block: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The codes that each slip gives."""
    n = weights.numel()
    blocks = blocks_of(weights, block)
    absmax = blocks.abs().amax(1, keepdim=True)
    absmax = absmax.where(absmax > 0, 1)
    rounded = (torch.round, torch.trunc, torch.floor)
    scales = {"": absmax, "tensor": weights.abs().max().double(),
              "beyond": blocks.amax(1, keepdim=True)}  # fmt: skip
    for (key, scale), steps, rounding in itertools.product(scales.items(), (7, 8, 7.5), rounded):
        codes = rounding(blocks / scale * steps).reshape(-1)[:n]
        if steps != 7:
            key = "beyond"
            yield key, codes.clamp(-8, 7)
            yield key, codes.clamp(-7, 7)
        yield key or "truncated", codes
    if n % block == 0:
        for turned in (weights.double().reshape(block, -1), weights.double().reshape(-1, block)):
            for dim in (0, 1):
                largest = turned.abs().amax(dim, keepdim=True)
                largest = largest.where(largest > 0, 1)
                codes = torch.round(turned / largest * 7)
                yield "columns", codes.reshape(-1)
                yield "columns", codes.T.reshape(-1)


def compare_absmax_quantize(
    answer: Callable[[torch.Tensor, int], Any], cases: Iterable[Weights]
) -> None:
    """Raise WrongAnswer at the first case whose codes or constants are wrong."""
    exercise = EXERCISES["absmax_quantize"]
    for weights, block in cases:
        case = f"absmax_quantize(<{weights.numel()} weights>, {block})"
        full = _full(weights, block)
        given = _with_blocks(exercise, case, answer, (weights.clone(), block),
                             None if full is None else (full, block))  # fmt: skip
        codes, absmax = _pair(exercise, case, given, "codes, absmax")
        right, constants = right_codes(weights, ABSMAX_LEVELS, block)
        right = right.double() - 7
        if len(codes) != len(right):
            raise exercise.wrong(
                f"{case}: {len(codes)} codes, {len(absmax)} constants.", "length")
        zero = (blocks_of(weights, block) == 0).all(1)
        wrong = codes != right
        if wrong.any():
            inside = zero.repeat_interleave(block)[: len(codes)]
            if zero.any() and not (wrong & ~inside).any():
                raise exercise.wrong(f"{case}: a block of zeros has other codes than 0.", "zeros")
            said = f"{case}: {int(wrong.sum())} of {len(codes)} codes are wrong."
            for key, mistaken in _absmax_mistakes(weights, block):
                if torch.equal(codes[~inside], mistaken[~inside]):
                    raise exercise.wrong(said, key)
            beyond = bool((codes.abs() > 7).any())
            raise exercise.wrong(said, "beyond" if beyond else None)
        if len(absmax) != len(constants):
            raise exercise.wrong(
                f"{case}: {len(absmax)} constants for {len(constants)} blocks.", "length")
        _expect_constants(exercise, case, absmax, constants, zero, "constant")


def _expect_constants(
    exercise: Exercise, case: str, absmax: torch.Tensor, right: torch.Tensor, zero: torch.Tensor,
    symptom: str,
) -> None:  # fmt: skip
    """For a block of zeros any finite constant will do."""
    if not bool(torch.isfinite(absmax[zero]).all()):
        raise exercise.wrong(f"{case}: a block of zeros has no finite constant.", "zeros")
    if not torch.allclose(absmax[~zero], right[~zero], rtol=1e-5, atol=0):
        raise exercise.wrong(f"{case}: the constants are wrong.", symptom)


# --- 4.2 ------------------------------------------------------------------------------------------


def offset_of(bits: int) -> float:
    """The probability of the outermost level: 1 − ½(1/32 + 1/30) for 4 bits."""
    return 1 - (1 / (2 * 2**bits) + 1 / (2 * 2**bits - 2)) / 2


def right_levels(bits: int, offset: float | None = None) -> list[float]:
    """NormalFloat with zero and one more level above it than below, normalised to −1 … 1.

    For 4 bits these are the values of appendix E of Dettmers et al. 2023 (QLoRA).
    """
    quantile, half = NormalDist().inv_cdf, 2 ** (bits - 1)
    start = offset or offset_of(bits)
    above = [quantile(start + (0.5 - start) * i / half) for i in range(half)]
    below = [-quantile(start + (0.5 - start) * i / (half - 1)) for i in range(half - 1)]
    return [one / above[0] for one in [*below, 0.0, *reversed(above)]]


def nf_levels(answer: Callable[[int], Any]) -> None:
    """The levels for 4 bits against bitsandbytes' table, and those for other widths."""
    compare_nf_levels(answer, (4, 3, 5))
    off = (vector(answer(4)) - table("nf4")).abs().max().item()
    EXERCISES["nf_levels"].passed(f"for 4 bits, bitsandbytes' table to {off:.0e}")


def compare_nf_levels(
    answer: Callable[[int], Any], widths: Iterable[int], what: Sequence[str] = ("form", "values")
) -> None:
    """`what`: "form" (number, zero, sides, ends) and "values"."""
    for bits in widths:
        _compare_levels(bits, answer(bits), what)


def _compare_levels(bits: int, given: Any, what: Sequence[str]) -> None:
    exercise, case = EXERCISES["nf_levels"], f"nf_levels({bits})"
    right = table("nf4").double() if bits == 4 else torch.tensor(right_levels(bits)).double()
    got = vector(given)
    if got is None:
        raise exercise.wrong(f"{case} should be a list of numbers; it gave {kind_of(given)}.")
    if len(got) != len(right):
        fixed = bits != 4 and len(got) == 16
        raise exercise.wrong(
            f"{case} has {len(got)} levels.", "four_only" if fixed else "count")
    if bool(torch.isinf(got).any()):
        raise exercise.wrong(f"{case} begins with {got[0]:g}.", "infinite")
    if not bool(torch.isfinite(got).all()) or bool((got.diff() < 0).any()):
        raise exercise.wrong(f"{case} should be ascending numbers.")
    if "form" in what:
        if bool((got.diff() < 1e-9).any()):
            raise exercise.wrong(f"{case}: two levels are equal.", "two_zeros")
        if not bool((got.abs() < 1e-9).any()):
            raise exercise.wrong(f"{case}: the smallest magnitude is {got.abs().min():g}.",
                                 "no_zero")  # fmt: skip
        if int((got > 1e-9).sum()) != len(right) // 2:
            raise exercise.wrong(f"{case}: {int((got < -1e-9).sum())} levels are below zero.",
                                 "sides")  # fmt: skip
        if abs(got[0] + 1) > 1e-4 or abs(got[-1] - 1) > 1e-4:
            raise exercise.wrong(f"{case} goes from {got[0]:.4f} to {got[-1]:.4f}.", "ends")
    if "values" in what and not torch.allclose(got, right, rtol=0, atol=2e-5):
        said = f"{case} begins {', '.join(f'{one:.4f}' for one in got[:4])}."
        for side in (got[got <= 1e-9], got[got >= -1e-9]):
            if len(side) > 2 and torch.allclose(side.diff(), side.diff()[:1], rtol=1e-3, atol=0):
                raise exercise.wrong(said, "equal_steps")
        fixed = torch.tensor(right_levels(bits, offset_of(4))).double()
        if bits != 4 and torch.allclose(got, fixed, rtol=0, atol=2e-5):
            raise exercise.wrong(said, "four_only")
        raise exercise.wrong(said, "between")


# --- 4.3 ------------------------------------------------------------------------------------------


class Coded(NamedTuple):
    """Weights (n,), levels (ascending, in −1 … 1) and a block size, with what is right."""

    weights: torch.Tensor
    levels: torch.Tensor
    block: int
    codes: torch.Tensor
    absmax: torch.Tensor

    @classmethod
    def of(cls, weights: torch.Tensor, levels: torch.Tensor, block: int) -> Coded:
        """For NF4, and a block size that it has, bitsandbytes says what is right."""
        codes, absmax = right_codes(weights, levels, block)
        if block in BLOCKS and torch.equal(levels, table("nf4")):
            import bitsandbytes.functional as bnb

            packed, state = bnb.quantize_4bit(weights, quant_type="nf4", blocksize=block)
            codes = four_bit.unpacked(packed, weights.numel()).long()
            absmax = state.absmax.double()
        return cls(weights, levels, block, codes, absmax)


def quantize(quantize: Callable[..., Any], dequantize: Callable[..., Any]) -> None:
    """Codes against bitsandbytes' own, and weights that come back from them."""
    nf4, others = table("nf4"), some_levels(7)
    cases = [
        Coded.of(draw_weights(10, 512, 64, nf4), nf4, 64),
        Coded.of(draw_weights(11, 300, 60, others), others, 60),
        Coded.of(draw_weights(12, 410, 128, nf4), nf4, 128),
        Coded.of(draw_weights(13, 160, 32, nf4, zeros=True), nf4, 32),
    ]
    compare_quantize(quantize, cases)
    compare_dequantize(dequantize, cases)
    EXERCISES["quantize"].passed("the codes are bitsandbytes', and the way back is right")


def some_levels(seed: int) -> torch.Tensor:
    """Sixteen levels that nobody uses: −1, 0, 1 and others between, at least 0.03 apart."""
    random = np.random.default_rng(seed)
    while True:
        inner = np.sort(np.concatenate([[-1, 0, 1], random.uniform(-0.97, 0.97, 13)]))
        # Far from equal steps, so that a code by position is wrong often.
        if np.diff(inner).min() > 0.03 and np.abs(inner - np.linspace(-1, 1, 16)).max() > 0.15:
            return torch.tensor(inner, dtype=torch.float32)


def _code_mistakes(one: Coded) -> Iterator[tuple[str, torch.Tensor]]:
    """The codes that each slip gives."""
    n, levels = one.weights.numel(), one.levels.double()
    blocks = blocks_of(one.weights, one.block)
    absmax = blocks.abs().amax(1, keepdim=True)
    absmax = absmax.where(absmax > 0, 1)
    middles, last = (levels[1:] + levels[:-1]) / 2, len(levels) - 1
    scales = {
        "": absmax,
        "unscaled": torch.ones(1).double(),
        "tensor": one.weights.abs().max().double(),
        "signed": blocks.amax(1, keepdim=True),
    }
    for key, scale in scales.items():
        scaled = (blocks / scale).contiguous()
        yield key or "by_index", _even(scaled, last, torch.round).reshape(-1)[:n]
        yield key or "by_index", _even(scaled, last, torch.trunc).reshape(-1)[:n]
        for right in (False, True):
            found = torch.bucketize(scaled, levels, right=right)
            for step in (0, 1):
                yield key or "neighbour", (found - step).clamp(0, last).reshape(-1)[:n]
        if key:
            yield key, torch.bucketize(scaled, middles).reshape(-1)[:n]
            yield key, (scaled[..., None] - levels).abs().argmin(-1).reshape(-1)[:n]


def _even(scaled: torch.Tensor, last: int, rounding: Callable) -> torch.Tensor:
    """Codes by place between −1 and 1."""
    return rounding((scaled + 1) / 2 * last).clamp(0, last)


def compare_quantize(answer: Callable[..., Any], cases: Iterable[Coded]) -> None:
    """Raise WrongAnswer at the first case whose codes or constants are wrong."""
    exercise = EXERCISES["quantize"]
    for one in cases:
        case = f"quantize(<{one.weights.numel()} weights>, levels, {one.block})"
        full = _full(one.weights, one.block)
        given = _with_blocks(
            exercise, case, answer, (one.weights.clone(), one.levels.clone(), one.block),
            None if full is None else (full, one.levels.clone(), one.block),
        )  # fmt: skip
        codes, absmax = _pair(exercise, case, given, "codes, absmax")
        if len(codes) != len(one.codes):
            raise exercise.wrong(
                f"{case}: {len(codes)} codes, {len(absmax)} constants.", "length")
        zero = (blocks_of(one.weights, one.block) == 0).all(1)
        inside = zero.repeat_interleave(one.block)[: len(codes)]
        wrong = codes != one.codes
        if wrong.any():
            if zero.any() and not (wrong & ~inside).any():
                raise exercise.wrong(f"{case}: zeros have another code than the level 0.", "zeros")
            said = f"{case}: {int(wrong.sum())} of {len(codes)} codes are wrong."
            for key, mistaken in _code_mistakes(one):
                if torch.equal(codes[~inside], mistaken[~inside].double()):
                    raise exercise.wrong(said, key)
            raise exercise.wrong(said)
        if len(absmax) != len(one.absmax):
            raise exercise.wrong(
                f"{case}: {len(absmax)} constants for {len(one.absmax)} blocks.", "length")
        _expect_constants(exercise, case, absmax, one.absmax, zero, "signed")


def compare_dequantize(answer: Callable[..., Any], cases: Iterable[Coded]) -> None:
    """Raise WrongAnswer at the first case whose weights come back wrong."""
    exercise = EXERCISES["quantize"]
    for one in cases:
        n, levels = one.weights.numel(), one.levels.double()
        case = f"dequantize(<{n} codes>, <{len(one.absmax)} constants>, levels, {one.block})"
        rest = (one.absmax.float(), one.levels.clone(), one.block)
        full = _full(one.codes.to(torch.uint8), one.block)
        try:
            given = _with_blocks(
                exercise, case, answer, (one.codes.to(torch.uint8), *rest),
                None if full is None else (full, rest[0][: n // one.block], *rest[1:]),
            )  # fmt: skip
        except IndexError:  # also what a mask of another length than the table's raises
            if not _fits(answer, one.codes.long(), *rest):
                raise
            raise exercise.wrong(f"{case} raised IndexError.", "mask") from None
        got = vector(given)
        if got is None:
            raise exercise.wrong(f"{case} should be a tensor; it gave {kind_of(given)}.")
        right = right_weights(one.codes, one.absmax, levels, one.block)
        if len(got) != n:
            raise exercise.wrong(f"{case} gave {len(got)} weights.", "length")
        if torch.allclose(got, right, rtol=1e-4, atol=1e-7):
            continue
        scales, even = one.absmax.repeat_interleave(one.block)[:n], torch.linspace(-1, 1, 16)
        values = levels[one.codes]
        mistakes = {
            "small": [values],
            "position": [even.double()[one.codes.clamp(max=15)] * scale
                         for scale in (scales, 1.0)],
            "tensor": [values * one.absmax.max()],
            "other_block": [values * one.absmax.repeat(one.block)[:n]],
        }  # fmt: skip
        for key, values in mistakes.items():
            if any(_close(got, mistaken) for mistaken in values):
                raise exercise.wrong(f"{case}: the weights are wrong.", key)
        raise exercise.wrong(f"{case}: the weights are wrong.")


# --- 4.4 ------------------------------------------------------------------------------------------

Layout = tuple[int, bool, int]  # block, double, constant_block


def bits(block: int, double: bool, constant_block: int) -> float:
    """Bits for a weight: 4, and its share of the constants. QLoRA, section 3."""
    return 4 + (8 / block + 32 / (block * constant_block) if double else 32 / block)


@lru_cache
def counted_bits(block: int, double: bool) -> float:
    """Bits for a weight in bitsandbytes, counted: codes and constants of full blocks.

    Its lookup tables and the one offset, the same for a layer of any size, are left out.
    """
    import bitsandbytes.functional as bnb

    n = 2 * 256 * block
    random = torch.Generator().manual_seed(0)
    packed, state = bnb.quantize_4bit(
        torch.randn(n, generator=random), quant_type="nf4", blocksize=block,
        compress_statistics=double,
    )  # fmt: skip
    held = packed.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
    return 8 * held / n


def bits_per_weight(answer: Callable[[int, bool, int], float]) -> None:
    """Bits of a weight, constants included, against counted bytes."""
    compare_bits_per_weight(answer, [
        (64, False, 256), (128, False, 256), (64, True, 256), (256, True, 256), (64, True, 128),
    ])  # fmt: skip
    EXERCISES["bits_per_weight"].passed("4.5 bits, and 4.127 with double quantisation")


def compare_bits_per_weight(
    answer: Callable[[int, bool, int], float], cases: Iterable[Layout]
) -> None:
    """Raise WrongAnswer at the first case that is wrong."""
    exercise = EXERCISES["bits_per_weight"]
    for block, double, outer in cases:
        counted = block in BLOCKS and outer == 256
        right = counted_bits(block, double) if counted else bits(block, double, outer)
        mistakes = {
            "codes": (4.0,),
            "bytes": (right / 8, 0.5),
            "double": (4 + 32 / block,),
            "outer": (4 + 8 / block,),
            # Before "shared": with 64 and 128 the last of those is the number for 64 and 256.
            "fixed": (bits(64, double, outer), bits(block, double, 256), bits(64, double, 256)),
            "shared": (4 + 8 / block + 32 / outer, 4 + 8 / block + 32 / block,
                       4 + 8 / block + 32 / (block + outer), 4 + 8 / block + 32 / outer**2),
        }  # fmt: skip
        got = answer(block, double, outer)
        number = as_number(got)
        typical = {
            key: tuple(v for v in values if not math.isclose(v, right, rel_tol=1e-9))
            for key, values in mistakes.items()
            if double or key not in ("double", "outer", "shared")
        }
        case = f"bits_per_weight({block}, {double}, {outer})"
        exercise.expect_number(case, number if number is not None else got, right, typical,
                               reveal=False)  # fmt: skip


# --- 4.5 ------------------------------------------------------------------------------------------


class Ranked(NamedTuple):
    """Weights, tables of levels by name, a block size; the error of each, smallest first."""

    weights: torch.Tensor
    schemes: dict[str, torch.Tensor]
    block: int
    right: list[tuple[str, float]]

    @classmethod
    def of(cls, weights: torch.Tensor, schemes: Mapping[str, torch.Tensor], block: int) -> Ranked:
        errors = {name: relative_error(weights, came_back(weights, levels, block))
                  for name, levels in schemes.items()}  # fmt: skip
        return cls(weights, dict(schemes), block, sorted(errors.items(), key=lambda one: one[1]))


def came_back(weights: torch.Tensor, levels: torch.Tensor, block: int) -> torch.Tensor:
    """Weights after both ways, in float64."""
    return right_weights(*right_codes(weights, levels, block), levels, block)


def relative_error(weights: torch.Tensor, others: torch.Tensor) -> float:
    """‖W − Ŵ‖ / ‖W‖, Frobenius norms."""
    return ((weights.double() - others.double()).norm() / weights.double().norm()).item()


def three_schemes() -> dict[str, torch.Tensor]:
    """The tables of the chapter."""
    return {"absmax": ABSMAX_LEVELS, "NF4": table("nf4"), "FP4": table("fp4")}


def rank_schemes(answer: Callable[..., Any]) -> None:
    """The order of three formats, and their errors, on weights of three kinds."""
    random = torch.Generator().manual_seed(4)
    schemes = three_schemes()
    cases = [
        Ranked.of(torch.randn(4096, generator=random) * 0.03, schemes, 64),
        Ranked.of(torch.rand(4096, generator=random) * 0.2 - 0.1, schemes, 64),
        Ranked.of(torch.randn(2048, generator=random) * 5,
                  {"mine": some_levels(3), **schemes}, 128),
    ]  # fmt: skip
    compare_rank_schemes(answer, cases)
    EXERCISES["rank_schemes"].passed("normal weights and uniform weights have different winners")


def compare_rank_schemes(
    answer: Callable[..., Any], cases: Iterable[Ranked], what: Sequence[str] = ("order", "errors")
) -> None:
    """Raise WrongAnswer at the first case in which the order, or an error, is wrong."""
    exercise = EXERCISES["rank_schemes"]
    for one in cases:
        case = f"rank_schemes(<{one.weights.numel()} weights>, {list(one.schemes)}, {one.block})"
        given = answer(one.weights.clone(), dict(one.schemes), one.block)
        if not isinstance(given, list | tuple) or len(given) > 100 or not all(
            isinstance(pair, list | tuple) and len(pair) == 2 for pair in given
        ):
            kind = "a dict" if isinstance(given, Mapping) else kind_of(given)
            said = f"{case} should be a list of pairs (name, error); it gave {kind}."
            raise exercise.wrong(said, None if given is None else "kind")
        names = [pair[0] if isinstance(pair[0], str) else shortened(pair[0]) for pair in given]
        if sorted(names) != sorted(one.schemes):
            raise exercise.wrong(f"{case} gave {shortened(names)}.", "names")
        errors = dict(zip(names, (as_number(pair[1]) for pair in given)))
        if None in errors.values():
            raise exercise.wrong(f"{case}: each error should be a number.")
        if "order" in what and names != [name for name, _ in one.right]:
            raise exercise.wrong(f"{case} gave the order {', '.join(names)}.", "order")
        if "errors" in what:
            _compare_errors(case, one, errors)


def _compare_errors(case: str, one: Ranked, errors: Mapping[str, float]) -> None:
    exercise, norm = EXERCISES["rank_schemes"], one.weights.double().norm().item()
    for name, right in one.right:
        got = errors[name]
        if math.isclose(got, right, rel_tol=1e-3):
            continue
        difference = right * norm
        mistakes = {
            "squared": (right**2,),
            "absolute": (difference, difference / math.sqrt(one.weights.numel()),
                         difference**2, difference**2 / one.weights.numel()),
        }  # fmt: skip
        said = f"{case}: the error of {name} is not {got:.4g}."
        for key, values in mistakes.items():
            if any(math.isclose(got, value, rel_tol=1e-3) for value in values):
                raise exercise.wrong(said, key)
        near = 0.3 * right < got < 3 * right
        raise exercise.wrong(said, "other_mean" if near else None)


# --- 4.6 ------------------------------------------------------------------------------------------


class Frozen(NamedTuple):
    """A quantised weight, an adapter, and the seed of an input: what a QLoRA layer is made of."""

    codes: torch.Tensor
    absmax: torch.Tensor
    levels: torch.Tensor
    block: int
    shape: tuple[int, int]  # out, in
    a: torch.Tensor  # (r, in)
    b: torch.Tensor  # (out, r)
    alpha: float
    seed: int

    @classmethod
    def draw(cls, seed: int, shape: tuple[int, int], r: int, alpha: float, block: int) -> Frozen:
        random = torch.Generator().manual_seed(seed)
        weight = torch.randn(shape, generator=random) / math.sqrt(shape[1])
        one = Coded.of(weight.reshape(-1), table("nf4"), block)
        a = torch.randn(r, shape[1], generator=random) / math.sqrt(shape[1])
        b = torch.randn(shape[0], r, generator=random) / math.sqrt(r)
        return cls(one.codes.to(torch.uint8), one.absmax.float(), one.levels, block, shape, a, b,
                   alpha, seed)  # fmt: skip

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the student's class is called with."""
        return self[:5] + (self.a.clone(), self.b.clone(), self.alpha)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(x of shape (2, 3, in), a gradient for the output), the same wherever it is drawn."""
        return batch_of(self.shape, self.seed)


def batch_of(shape: Sequence[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed + 1)
    return (torch.randn(2, 3, shape[1], generator=random),
            torch.randn(2, 3, shape[0], generator=random))  # fmt: skip


def layer_step(
    layer: Any, shape: Sequence[int], seed: int,
    guard: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, Any]:  # fmt: skip
    """One forward and one backward pass of a student's layer, as data.

    "output"; "x": the gradient of the input; "learns": shape and gradient of everything that
    requires one; "kept": numbers in each floating tensor that the layer holds afterwards. Runs
    where the layer is. What `guard()` gives holds while the layer's own code runs.
    """
    x, upstream = batch_of(shape, seed)
    x.requires_grad_()
    with guard():
        output = layer(x)
    learns = {id(one): one for one in layer.parameters() if one.requires_grad}
    learns |= {id(one): one for one in _leaves(output) if one is not x}
    wanted, gradients = [x, *learns.values()], [None] * (1 + len(learns))
    if output.requires_grad:
        with guard():
            gradients = torch.autograd.grad(
                output, wanted, upstream.to(output), allow_unused=True)
    return {
        "output": output.detach(),
        "x": gradients[0],
        "learns": [{"shape": list(one.shape), "gradient": gradient}
                   for one, gradient in zip(wanted[1:], gradients[1:])],
        "kept": [one.numel() for one in _tensors(layer) if one.is_floating_point()],
    }  # fmt: skip


def _leaves(output: torch.Tensor) -> Iterator[torch.Tensor]:
    """Every tensor at which the backward pass from `output` would leave a gradient."""
    todo, seen = [output.grad_fn], set()
    if output.grad_fn is None and output.requires_grad:
        yield output
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        todo += [following for following, _ in node.next_functions]


def _tensors(layer: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, buffers and plain attributes, in the layer and in what it is made of."""
    for module in layer.modules():
        for value in [*vars(module).values(), *module.parameters(False), *module.buffers(False)]:
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, torch.Tensor):
                    yield one


class Step(NamedTuple):
    """What a right layer gives, all in float64 rows."""

    output: torch.Tensor
    base: torch.Tensor  # the output without the adapter
    x: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor


@lru_cache(maxsize=16)  # by the identity of its tensors: the parts of a check share their cases
def library_step(one: Frozen) -> Step:
    """The same step with bitsandbytes' 4-bit layer and PEFT's adapter."""
    import bitsandbytes as bnb
    from peft import LoraConfig, get_peft_model

    outputs, inputs = one.shape
    layer = bnb.nn.Linear4bit(inputs, outputs, bias=False, compute_dtype=torch.float32,
                              compress_statistics=False, quant_type="nf4")  # fmt: skip
    weight = right_weights(one.codes, one.absmax, one.levels, one.block).reshape(one.shape)
    layer.weight = bnb.nn.Params4bit(
        weight.float(), requires_grad=False, quant_type="nf4", blocksize=one.block,
        compress_statistics=False,
    )  # fmt: skip
    holder = nn.ModuleDict({"linear": layer.to("cpu")})
    four_bit.keep_weights_intact(holder)
    lora = LoraConfig(r=one.a.shape[0], lora_alpha=one.alpha, target_modules=["linear"])
    adapted = get_peft_model(holder, lora).base_model.model["linear"].train()
    with torch.no_grad():
        adapted.lora_A["default"].weight.copy_(one.a)
        adapted.lora_B["default"].weight.copy_(one.b)
    x, upstream = one.batch()
    x.requires_grad_()
    output = adapted(x)
    found = torch.autograd.grad(
        output, [x, adapted.lora_A["default"].weight, adapted.lora_B["default"].weight], upstream)
    rows = [tensor.detach().double().reshape(-1) for tensor in (output, layer(x), *found)]
    return Step(*rows)


def qlora_layer(answer: Callable[..., Any]) -> None:
    """A QLoRA layer against bitsandbytes and PEFT: output, gradients, and what it holds."""
    cases = [Frozen.draw(20, (24, 64), 4, 8, 64), Frozen.draw(21, (48, 40), 2, 16, 64)]

    def step(one: Frozen) -> Any:
        layer = answer(*one.arguments)
        if not isinstance(layer, nn.Module):
            raise EXERCISES["qlora_layer"].wrong(
                f"QLoRALinear(…) should be a module; it gave {kind_of(layer)}.")
        return layer_step(layer, one.shape, one.seed)

    compare_qlora_layer(step, cases)
    EXERCISES["qlora_layer"].passed("bitsandbytes and PEFT give the same, gradients included")


def compare_qlora_layer(
    step: Callable[[Frozen], Any], cases: Iterable[Frozen],
    what: Sequence[str] = ("adapter", "input", "frozen"),
) -> None:  # fmt: skip
    """`step(case)` gives what `layer_step` gives of the student's layer.

    The output has to be right in any case. `what`: also the "adapter"'s gradients, that of the
    "input", and that all the rest is "frozen" and stays in 4 bits.
    """
    exercise = EXERCISES["qlora_layer"]
    for one in cases:
        facts = step(one)
        facts = facts if isinstance(facts, Mapping) else {}
        case = f"A layer of shape {tuple(one.shape)}, r = {len(one.a)}, α = {one.alpha:g}"
        right = library_step(one)
        _compare_output(exercise, case, one, vector(facts.get("output")), right)
        learns = facts.get("learns")
        learns = [each for each in learns if isinstance(each, Mapping)] if isinstance(
            learns, list | tuple) else []  # fmt: skip
        shapes = [_shape(each.get("shape")) for each in learns]
        if "frozen" in what:
            _compare_frozen(exercise, case, one, shapes, facts.get("kept"))
        if "adapter" in what:
            for name, factor, gradient in (("A", one.a, right.a), ("B", one.b, right.b)):
                found = [vector(each.get("gradient")) for each, shape in zip(learns, shapes)
                         if shape in (tuple(factor.shape), tuple(factor.T.shape))]  # fmt: skip
                turned = gradient.reshape(factor.shape).T.reshape(-1)
                if not any(got is not None and (_close(got, gradient) or _close(got, turned))
                           for got in found):  # fmt: skip
                    raise exercise.wrong(f"{case}: {name} gets no right gradient.", "frozen")
        if "input" in what:
            got = vector(facts.get("x"))
            if got is None or not _close(got, right.x):
                raise exercise.wrong(f"{case}: the input gets no right gradient.", "blocked")


def _shape(given: Any) -> tuple[int, ...]:
    row = vector(given)
    if row is None or len(row) > 8 or not bool(torch.isfinite(row).all()):
        return ()
    return tuple(int(side) for side in row)


def _compare_output(
    exercise: Exercise, case: str, one: Frozen, got: torch.Tensor | None, right: Step
) -> None:
    if got is None:
        raise exercise.wrong(f"{case}: the output is no tensor.")
    if _close(got, right.output):
        return
    adapter, r = right.output - right.base, len(one.a)
    weight = right_weights(one.codes, one.absmax, one.levels, one.block)
    x = one.batch()[0].double()
    turned = (x @ weight.reshape(one.shape[1], one.shape[0])).reshape(-1)
    mistakes = {
        # α or 1/r left out, both, √r, or the other side of A.
        "scale": [right.base + adapter * factor
                  for factor in (r, 1 / one.alpha, r / one.alpha, math.sqrt(r), r / one.shape[1])],
        "adapter": [right.base, adapter],
        "layout": [turned, turned + adapter],
    }  # fmt: skip
    for key, values in mistakes.items():
        if any(_close(got, mistaken) for mistaken in values):
            raise exercise.wrong(f"{case}: the output is wrong.", key)
    raise exercise.wrong(f"{case}: the output is wrong.")


def _compare_frozen(
    exercise: Exercise, case: str, one: Frozen, shapes: Sequence[tuple[int, ...]], kept: Any
) -> None:
    full = math.prod(one.shape)
    if any(math.prod(shape) == full for shape in shapes if shape):
        raise exercise.wrong(f"{case}: a tensor as large as the weight learns.", "base")
    sizes = vector(kept)
    if sizes is None or bool((sizes >= full).any()):
        raise exercise.wrong(f"{case}: the layer keeps the weight as floats.", "stored")
    allowed = [tuple(factor.shape) for factor in (one.a, one.b, one.a.T, one.b.T)]
    if any(shape not in allowed for shape in shapes):
        raise exercise.wrong(f"{case}: not only A and B require gradients.", "constants")
    if len(shapes) < 2:
        raise exercise.wrong(f"{case}: A and B require no gradients.", "frozen")
