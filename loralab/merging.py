"""Four ways to put a QLoRA adapter to work, and how far each is from the model that was trained.

`python -m loralab.merging` trains the adapters that are missing in the cache, tries every way on
each of them and stores what was found; chapter 06 measures one adapter itself and shows the record
beside it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loralab import base_model, evaluation, hardware, paths, recorded_runs, training
from loralab.quiet import quiet
from loralab.training import RunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNMERGED, DEQUANTISED, SIXTEEN, IN_PLACE = WAYS = (
    "unmerged, 4-bit base", "into the dequantised base", "into the 16-bit base",
    "into the 4-bit base",
)  # fmt: skip
RECORDED = paths.RECORDED / "merges.json"
# A second task for the same base: small, so that it can be kept in the repository.
SECOND = RunConfig(task="sql", targets=("q_proj", "v_proj"), learning_rate=5e-3, steps=60,
                   test_size=48)  # fmt: skip
SECOND_ADAPTER = paths.RECORDED / "sql_adapter"
# One trained on the 4-bit base, and one, for fewer steps, on the 16-bit base.
ADAPTERS = {
    "QLoRA": recorded_runs.MAIN,
    "LoRA": replace(recorded_runs.MAIN, method="lora", steps=100, test_size=128, seed=1),
}
SENTENCES = 128


def bases() -> dict[str, Callable[[], PreTrainedModel]]:
    """A fresh base model for each way: in 4 bits, or in fp32 with the 16-bit weights."""
    def in_4_bits() -> PreTrainedModel:
        return base_model.load(quantization_config=training.nf4_config())

    def plain() -> PreTrainedModel:
        return base_model.load(dtype=torch.float32)

    return {UNMERGED: in_4_bits, DEQUANTISED: in_4_bits, SIXTEEN: plain, IN_PLACE: in_4_bits}


def on_base(base: PreTrainedModel, folder: str | Path) -> Any:
    """The adapter in `folder` beside the weights of `base`, as a PeftModel in evaluation mode."""
    from peft import PeftModel

    with quiet():
        return PeftModel.from_pretrained(base, str(folder)).eval()


def merged_in_place(base: PreTrainedModel, folder: str | Path) -> tuple[PreTrainedModel, str]:
    """PEFT's merge into `base` as it is stored, and what PEFT warns of on the way, if anything."""
    wrapped = on_base(base, folder)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        merged = wrapped.merge_and_unload()
    return merged, str(said[0].message) if said else ""


def answer_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[dict[str, str]]
) -> torch.Tensor:
    """The logits (tokens, vocabulary), fp32, from which each token of the completions is chosen."""
    rows = [evaluation.encode(tokenizer, example) for example in examples]
    width = max(len(ids) for ids, _ in rows)
    padded = [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows]
    mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(padded, device=model.device),
                       attention_mask=torch.tensor(mask, device=model.device)).logits
    return torch.cat([logits[i, begin - 1 : len(ids) - 1].float().cpu()
                      for i, (ids, begin) in enumerate(rows)])  # fmt: skip


def share_of_effect(base: torch.Tensor, unmerged: torch.Tensor, other: torch.Tensor) -> float:
    """The error of `other`'s logits, as a share of what the adapter changes in them.

    ‖other − unmerged‖ / ‖unmerged − base‖ over all entries: 0 is the trained model itself; at 1
    the error is as large as all that the adapter does.
    """
    return (torch.linalg.norm(other - unmerged) / torch.linalg.norm(unmerged - base)).item()


def _models(folder: Path) -> Iterator[tuple[str, Any]]:
    """One way after the other, so that one model is held at a time."""
    for way, base in bases().items():
        model = base()
        if way == UNMERGED:
            yield way, on_base(model, folder)
            continue
        if way == DEQUANTISED:
            with quiet():
                model = model.dequantize(dtype=torch.float32)
        yield way, merged_in_place(model, folder)[0].eval()


def measured(folder: Path, language: Any, sentences: int = SENTENCES) -> dict[str, Any]:
    """Every way on held-out sentences: {"hits": {way: text of 0 and 1}, "errors": {way: share}}.

    The errors are relative to the unmerged adapter on the 4-bit base.
    """
    tokenizer = base_model.load_tokenizer()
    examples = [{"prompt": language.prompt(source), "completion": f" {target}"}
                for source, target in language.pairs(sentences, "test")]  # fmt: skip
    base = answer_logits(bases()[UNMERGED]().eval(), tokenizer, examples[:8])
    hits, errors, first = {}, {}, None
    for way, model in _models(folder):
        logits = answer_logits(model, tokenizer, examples[:8])
        first = logits if first is None else first
        errors[way] = share_of_effect(base, first, logits)
        found = evaluation.exact_match(model, tokenizer, examples)
        hits[way] = "".join(str(int(hit)) for hit in found)
    return {"hits": hits, "errors": errors}


def recorded() -> dict[str, dict[str, dict[str, Any]]]:
    """What was recorded: adapter → {"hits": {way: [bool, …]}, "errors": {way: share}}."""
    found = json.loads(RECORDED.read_text("utf-8"))["found"]
    return {
        name: {**one, "hits": {way: [hit == "1" for hit in row]
                               for way, row in one["hits"].items()}}
        for name, one in found.items()
    }  # fmt: skip


def record() -> None:
    """Train what is missing, measure, and rewrite the records."""
    from loralab.tasks.language import Language

    trainer = training.build_trainer(SECOND, progress=False)
    training.fit(trainer)
    training.save_adapter(trainer, SECOND_ADAPTER)
    found = {}
    for name, config in ADAPTERS.items():
        folder = recorded_runs.REFERENCE
        if config != recorded_runs.MAIN:
            folder = training.run(config, progress=False).adapter
        found[name] = measured(folder, Language(config.task_seed))
    record = {"machine": hardware.describe().removeprefix("Hardware: "),
              "versions": training.versions(), "sentences": SENTENCES, "found": found}  # fmt: skip
    RECORDED.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record()
