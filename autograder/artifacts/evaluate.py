"""Adapters tried on the embedded model, fast.

The model is loaded once a process. Its linear layers are quantised to NF4, as the student's base
is, and stay so; for each adapter they are dequantised, the adapter is added in fp32, and the sum
goes into an ordinary linear layer. So nothing of one adapter is left for the next, and no forward
pass pays for 4 bits or for PEFT.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from autograder.artifacts.adapter_files import Adapter, layers
from loralab import base_model, evaluation
from loralab.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 16
CLOSE = 4  # tokens that may beat the right one by less than rounding hides
# Computing in bf16 moved the lead of a token by at most 0.45 in adapters scaled by 0.5 to 1.25.
# What is decided by less is decided again in fp32: a score should not depend on the processor.
DOUBT = 0.5
_ONE_AT_A_TIME = threading.Lock()


class Row(NamedTuple):
    """A prompt with its right answer: all tokens, and where the answer begins."""

    tokens: list[int]
    begin: int


@lru_cache(1)
def _four_bit() -> dict[str, tuple[torch.Tensor, Any]]:
    """Every linear layer's weight in NF4 with double quantisation, by path: bitsandbytes' pairs."""
    with quiet():
        import bitsandbytes.functional as bnb

        model = _published()
        return {
            path: bnb.quantize_4bit(
                model.get_submodule(path).weight.data.float(),
                quant_type="nf4",
                compress_statistics=True,
            )
            for path in layers()
        }


def _published() -> "PreTrainedModel":
    # In 16 bits as it is published, so that nothing is rounded on the way.
    model = base_model.load(dtype=torch.bfloat16)
    return model.to("cpu").eval().requires_grad_(False)


class Base:
    """The embedded model in 4 bits, ready to carry one adapter after another, on the CPU.

    `dtype`: what it computes in.
    """

    def __init__(self, dtype: torch.dtype):
        self._nf4 = _four_bit()
        self._model = _published().to(dtype)
        self._layers = {path: self._model.get_submodule(path) for path in self._nf4}

    def weight(self, path: str) -> torch.Tensor:
        """A layer's weight in fp32, as the 4-bit base has it: a new tensor (outputs, inputs)."""
        import bitsandbytes.functional as bnb

        return bnb.dequantize_4bit(*self._nf4[path])

    def carry(self, adapter: Adapter) -> None:
        """Put W + scale · B A into the layers that the adapter is on, and W into the others."""
        for path, layer in self._layers.items():
            weight = self.weight(path)
            if path in adapter.pairs:
                a, b = (half.float() for half in adapter.pairs[path])
                weight.addmm_(b, a, alpha=adapter.settings.scale)
            layer.weight.data.copy_(weight)

    def margins(self, rows: Sequence[Row]) -> list[float]:
        """By how much the right token leads, in logits, where it leads least; one for each row.

        Above 0, greedy decoding writes exactly the answer (see `loralab.evaluation.exact_match`).
        NaN where the model gives NaN.
        """
        # Padding stands on the right, where no earlier token sees it: no mask is needed.
        width = max(len(row.tokens) for row in rows) - 1
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        asked = torch.zeros(len(rows), width, dtype=torch.bool)
        for index, (tokens, begin) in enumerate(rows):
            ids[index, : len(tokens) - 1] = torch.tensor(tokens[:-1])
            asked[index, begin - 1 : len(tokens) - 1] = True
        right = torch.tensor([token for row in rows for token in row.tokens[row.begin :]])[:, None]
        hidden = self._model.model(input_ids=ids, use_cache=False).last_hidden_state[asked]
        # The vocabulary is the widest layer: only where a token of the answer is asked for.
        logits = self._model.lm_head(hidden).scatter_(1, right, -torch.inf)
        # A logit in bf16 is rounded to 1/8: those that matter once more, in fp32.
        close = torch.cat([right, logits.topk(CLOSE).indices], 1)
        vectors = self._model.lm_head.weight[close].float()
        exact = torch.einsum("tcd,td->tc", vectors, hidden.float())
        lead = exact[:, 0] - exact[:, 1:].amax(1)
        return [one.min().item() for one in lead.split([len(r.tokens) - r.begin for r in rows])]


@lru_cache(2)
def base(dtype: torch.dtype) -> Base:
    """The process's own `Base`, loaded when it is first asked for. Raises `CourseError`."""
    return Base(dtype)


def fast_dtype() -> torch.dtype:
    """bf16 where this processor multiplies in it, else fp32."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if supported() else torch.float32


@lru_cache(1)
def _tokenizer() -> "PreTrainedTokenizerBase":
    return base_model.load_tokenizer()


def right_answers(
    adapter: Adapter,
    examples: Sequence[dict[str, str]],
    enough: int,
    dtype: torch.dtype | None = None,
) -> int:
    """How many of the examples (dicts with "prompt" and "completion") the adapter gets right.

    Stops as soon as `enough` are, and where none is in the first half: that counts as 0.
    `dtype` is that of the first look (default `fast_dtype`); the answer is that of fp32.
    Raises `CourseError` where the base model cannot be had.
    """
    rows = [Row(*evaluation.encode(_tokenizer(), example)) for example in examples]
    dtype = dtype or fast_dtype()
    doubt = 0.0 if dtype == torch.float32 else DOUBT
    batches = _batches(rows)
    with _ONE_AT_A_TIME, _one_thread(), torch.no_grad():
        carrier = base(dtype)
        carrier.carry(adapter)
        hits, doubtful = 0, []
        for done, batch in enumerate(batches, 1):
            margins = carrier.margins(batch)
            hits += sum(margin > doubt for margin in margins)
            doubtful += [
                row for row, margin in zip(batch, margins, strict=True) if abs(margin) < doubt
            ]
            if hits >= enough:
                return hits
            if 2 * done >= len(batches) and not hits and not doubtful:
                return 0
        if doubtful:
            exact = base(torch.float32)
            exact.carry(adapter)
            for batch in _batches(doubtful):
                hits += sum(margin > 0 for margin in exact.margins(batch))
    return hits


def _batches(rows: Sequence[Row]) -> list[list[Row]]:
    """Batches of rows of like length, from the first half of the rows, then from the second."""
    middle = (len(rows) + 1) // 2
    batches = []
    for half in (rows[:middle], rows[middle:]):
        ordered = sorted(half, key=lambda row: len(row.tokens))
        batches += [ordered[i : i + BATCH] for i in range(0, len(ordered), BATCH)]
    return batches


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, and no denormal numbers.

    With more threads a busy machine computes longer, not shorter: each of 800 multiplications
    waits for the slowest. Denormal activations would let an adapter slow the processor down.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)
