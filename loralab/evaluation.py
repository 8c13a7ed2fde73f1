"""Score a model on held-out pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def exact_match(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[dict[str, str]],
    batch_size: int = 16,
) -> list[bool]:
    """For each example, whether greedy decoding of its prompt would give its completion exactly.

    `examples`: dicts with "prompt" and "completion". No text is generated: one forward pass over
    prompt and completion suffices, because greedy decoding writes the completion exactly when the
    most likely token equals the completion's token at every position, the end-of-sequence token
    included.
    """
    hits: list[bool] = []
    with _evaluating(model):
        for start in range(0, len(examples), batch_size):
            rows, starts = [], []
            for example in examples[start : start + batch_size]:
                row, begin = encode(tokenizer, example)
                rows.append(row)
                starts.append(begin)
            width = max(map(len, rows))
            ids = torch.full((len(rows), width), tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            for index, row in enumerate(rows):
                ids[index, : len(row)] = torch.tensor(row)
                mask[index, : len(row)] = 1
            ids, mask = ids.to(model.device), mask.to(model.device)
            best = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.argmax(-1)
            for index, (row, begin) in enumerate(zip(rows, starts, strict=True)):
                said = best[index, begin - 1 : len(row) - 1].tolist()
                hits.append(said == row[begin:])
    return hits


def encode(
    tokenizer: "PreTrainedTokenizerBase", example: dict[str, str]
) -> tuple[list[int], int]:
    """The tokens of prompt, completion and end of sequence, and where the completion begins."""
    prompt = tokenizer(example["prompt"]).input_ids
    # Tokenised together, as the trainer does; then the prompt is the common part.
    whole = tokenizer(example["prompt"] + example["completion"]).input_ids
    return [*whole, tokenizer.eos_token_id], len(prompt)


def complete(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    max_new_tokens: int = 32,
) -> list[str]:
    """The model's greedy continuation of each prompt, up to its first line break."""
    out = []
    with _evaluating(model):
        for prompt in prompts:
            encoded = tokenizer(prompt, return_tensors="pt").to(model.device)
            made = model.generate(
                **encoded,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
            text = tokenizer.decode(
                made[0, encoded.input_ids.shape[1] :], skip_special_tokens=True
            )
            out.append(text.strip().split("\n")[0])
    return out
