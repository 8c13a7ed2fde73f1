"""The parts that train the embedded model: the course's runs, its chapter 05, and how fast."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from loralab import base_model, paths, recorded_runs, training
from loralab.measure.run import environment
from loralab.quiet import quiet
from loralab.training import RunConfig

Record = dict[str, Any]
STEPS = 30  # of each timed training; the first third is left out
TOKENS = 128  # that each timed generation makes


def run(given: Mapping[str, Any], model_id: str = base_model.EMBEDDED) -> Record:
    """One run of the parts "training" and "speed": what it gave, or why it gave nothing."""
    began = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record: Record = {"status": "ok"}
    try:
        record |= {"measured": _measured(given, model_id)}
    except Exception as error:  # one run that fails must not end the others
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        said = " ".join(lines[-2:])[-300:]  # papermill's come with the whole trace
        record |= {"status": "failed", "reason": f"{type(error).__name__}: {said}"}
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return record | {"environment": environment(device),
                     "seconds": round(time.perf_counter() - began, 2)}


def _measured(given: Mapping[str, Any], model_id: str) -> Record:
    if "run" in given:
        return _course_run(given["run"], model_id)
    if "chapter" in given:
        return _chapter(given["chapter"])
    if "train" in given:
        return _training_speed(given, model_id)
    return _generation_speed(given, model_id)


# --- the course's runs ---------------------------------------------------------------------------


def _course_run(name: str, model_id: str) -> Record:
    """Chapter 05's run of that name, and the peaks that the allocator saw in training."""
    config = replace(recorded_runs.GRID[name], model_id=model_id)
    if model_id != base_model.EMBEDDED:
        config = replace(config, steps=3, test_size=4)
    with _empty_cache(), _peaks() as peaks:
        found = training.run(config, progress=False)
    return found.to_json() | {"peaks": peaks}


def _chapter(name: str) -> Record:
    """A chapter's solution through papermill, in a kernel that sees the same GPU."""
    import jupytext
    import papermill

    with tempfile.TemporaryDirectory() as scratch, _empty_cache():
        source, done = Path(scratch, "source.ipynb"), Path(scratch, "done.ipynb")
        notebook = jupytext.read(paths.PROJECT / "solutions" / f"{name}.py")
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3",
                                           "language": "python"}
        jupytext.write(notebook, source)
        began = time.perf_counter()
        finished = papermill.execute_notebook(
            source, done, kernel_name="python3", progress_bar=False, cwd=scratch)
        seconds = time.perf_counter() - began
    printed = [output.text for cell in finished.cells for output in cell.get("outputs", ())
               if output.output_type == "stream" and output.name == "stdout"]
    return {"seconds": round(seconds, 1), "printed": printed}


@contextmanager
def _empty_cache() -> Iterator[None]:
    """No run comes from the cache; the base model does, which is linked in."""
    import os

    kept = os.environ.get("LORALAB_CACHE")
    there = paths.cache()
    with tempfile.TemporaryDirectory() as fresh:
        if (there / "models").is_dir():
            Path(fresh, "models").symlink_to(there / "models", target_is_directory=True)
        os.environ["LORALAB_CACHE"] = fresh
        try:
            yield
        finally:
            del os.environ["LORALAB_CACHE"]
            if kept is not None:
                os.environ["LORALAB_CACHE"] = kept


@contextmanager
def _peaks() -> Iterator[Record]:
    """Allocated and reserved peaks of CUDA inside the block, in bytes; empty without CUDA."""
    found: Record = {}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found
    if torch.cuda.is_available():
        found |= {"allocated": torch.cuda.max_memory_allocated(),
                  "reserved": torch.cuda.max_memory_reserved()}


# --- speed ---------------------------------------------------------------------------------------


def _training_speed(given: Mapping[str, Any], model_id: str) -> Record:
    """Real tokens (no padding) per second of some training steps, the first ones left out."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    options = {name: value for name, value in given.items()
               if name not in ("train", "trainer", "attn_implementation")}
    steps = STEPS if model_id == base_model.EMBEDDED else 6
    batch = options.get("per_device_train_batch_size", 8)
    packed = 8 if options.get("packing") else 1
    config = RunConfig(method=given["train"], steps=steps * packed, batch_size=batch)
    quantization = training.nf4_config() if config.method == "qlora" else None
    model = base_model.load(model_id, quantization_config=quantization)
    if "attn_implementation" in given:
        model.set_attn_implementation(given["attn_implementation"])
    with tempfile.TemporaryDirectory() as scratch, quiet():
        if given["trainer"] == "course":
            args = training.sft_config(
                steps=steps, batch_size=batch, learning_rate=1e-3, progress=False)
            for name, value in options.items():
                setattr(args, name, value)
        else:
            args = SFTConfig(
                output_dir=scratch, max_steps=steps, report_to="none", save_strategy="no",
                disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
                bf16=torch.cuda.is_available(), **options)
        trainer = SFTTrainer(
            model=model, args=args, train_dataset=Dataset.from_list(training.examples(config)),
            processing_class=base_model.load_tokenizer(model_id),
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear",
                                   task_type="CAUSAL_LM"),
        )
        ends: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                ends.append(time.perf_counter())

        trainer.add_callback(Clock())
        with _peaks() as peaks:
            trainer.train()
    rows = trainer.train_dataset["input_ids"]
    tokens = batch * sum(map(len, rows)) / len(rows)
    first = steps // 3
    taken = [after - before for before, after in zip(ends[first:], ends[first + 1 :])]
    return {"tokens_per_step": round(tokens, 1), "seconds_per_step": round(median(taken), 4),
            "tokens_per_second": round(tokens / median(taken), 1), "peaks": peaks,
            "gradient_checkpointing": bool(args.gradient_checkpointing),
            "optim": str(getattr(args.optim, "value", args.optim)), "batch": batch}


def _generation_speed(given: Mapping[str, Any], model_id: str) -> Record:
    """Tokens per second of greedy generation: the base, an adapter beside it, merged, in 4 bits."""
    from peft import PeftModel

    how, batch = given["generate"], given["batch"]
    quantization = training.nf4_config() if how == "QLoRA" else None
    model = base_model.load(model_id, quantization_config=quantization)
    if how != "base" and model_id == base_model.EMBEDDED:
        with quiet():
            model = PeftModel.from_pretrained(model, str(recorded_runs.REFERENCE))
        if how == "LoRA, merged":
            model = model.merge_and_unload()
    model.eval()
    tokenizer = base_model.load_tokenizer(model_id)
    asked = tokenizer(["English: the dog sees a house\nTranslation:"] * batch, return_tensors="pt")
    tokens = TOKENS if model_id == base_model.EMBEDDED else 8
    taken = []
    for _ in range(3):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.no_grad():
            model.generate(**asked.to(model.device), max_new_tokens=tokens, min_new_tokens=tokens,
                           do_sample=False, pad_token_id=tokenizer.pad_token_id)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    best = min(taken[1:])
    return {"seconds": [round(one, 3) for one in taken],
            "tokens_per_second": round(batch * tokens / best, 1)}
