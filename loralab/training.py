"""Train once, and remember.

`fit` trains a TRL trainer, or takes the same run from the cache. `run` does everything for one
`RunConfig`: base model, data, trainer, `fit`, evaluation, and the bytes held. Both are keyed by a
hash of configuration, data and library versions, so that a restarted kernel, nbgrader's Validate,
papermill, and later chapters reuse what was trained before.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralab import base_model, evaluation, hardware, measure, paths
from loralab.quiet import quiet
from loralab.tasks import Pair, language, sql

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTTrainer

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
SHOWN_LOSSES = 8  # under a notebook's progress bar
VERSIONED = ("torch", "transformers", "peft", "trl", "bitsandbytes")


@dataclass(frozen=True)
class RunConfig:
    """One training run: everything that its result depends on.

    `method`: "full", "lora" or "qlora". `targets`: "all-linear" or module names. `task`:
    "language" (exact match) or "sql" (execution match). `shuffle_labels`: the control, each
    source with another one's target.
    """

    method: str = "qlora"
    r: int = 8
    lora_alpha: int = 16
    targets: str | tuple[str, ...] = "all-linear"
    learning_rate: float = 3e-3
    steps: int = 160
    batch_size: int = 8
    task: str = "language"
    task_seed: str = "course"
    shuffle_labels: bool = False
    seed: int = 0
    model_id: str = base_model.EMBEDDED
    test_size: int = 96


@dataclass(frozen=True)
class Run:
    """What a run gave. `accuracy` in 0…1 on `test_size` held-out examples; `seconds` of training;
    `held_bytes` by component after the last step; `peak_bytes` of one training step;
    `history`: (step, loss). `adapter`: the folder with the trained adapter, if it was kept."""

    config: RunConfig
    accuracy: float
    seconds: float
    trainable: int
    held_bytes: dict[str, int]
    peak_bytes: int
    history: tuple[tuple[int, float], ...]
    machine: str
    versions: dict[str, str]
    adapter: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The record without the adapter, as JSON types."""
        record = asdict(self)
        del record["adapter"]
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any], adapter: Path | None = None) -> "Run":
        """The inverse of `to_json`."""
        config = dict(record["config"])
        if not isinstance(config["targets"], str):
            config["targets"] = tuple(config["targets"])
        history = tuple((int(step), float(loss)) for step, loss in record["history"])
        fields = {**record, "config": RunConfig(**config), "history": history}
        return cls(**fields, adapter=adapter)


def versions() -> dict[str, str]:
    """The versions that a run depends on."""
    return {name: importlib.metadata.version(name) for name in VERSIONED}


def pairs(config: RunConfig, split: str = "train") -> list[Pair]:
    """The task's pairs for this run: enough for one pass in training, `test_size` in testing."""
    count = config.steps * config.batch_size if split == "train" else config.test_size
    return _task(config).pairs(count, split)


def examples(config: RunConfig, split: str = "train") -> list[dict[str, str]]:
    """The pairs as prompt and completion, ready for TRL."""
    task, chosen = _task(config), pairs(config, split)
    targets = [pair.target for pair in chosen]
    if config.shuffle_labels and split == "train":
        targets = targets[1:] + targets[:1]  # drawn at random: the next one is unrelated
    return [
        {"prompt": task.prompt(pair.source), "completion": f" {target}"}
        for pair, target in zip(chosen, targets, strict=True)
    ]


def _task(config: RunConfig) -> Any:
    return {"language": language.Language, "sql": sql.Shop}[config.task](config.task_seed)


def run(config: RunConfig, *, progress: bool = True) -> Run:
    """Train, evaluate and measure one configuration, or take it from the cache.

    Raises `CourseError` where the base model cannot be had.
    """
    data = _digest([examples(config), examples(config, "test")])
    key = _digest(
        {"config": asdict(config), "data": data, "versions": versions(), **_place(config.model_id)}
    )
    store = paths.cache() / "runs" / key
    found = _read_run(store)
    if found:
        return found
    trainer = build_trainer(config, progress=progress)
    history, seconds = fit(trainer)
    result = Run(
        config=config,
        accuracy=score(trainer, config),
        seconds=seconds,
        trainable=measure.trainable(trainer.model),
        held_bytes=measure.held_after_step(trainer),
        peak_bytes=measure.training_step_peak(trainer).bytes,
        history=tuple(history),
        machine=_machine(),
        versions=versions(),
    )

    def fill(folder: Path) -> None:
        if config.method != "full":
            save_adapter(trainer, folder)
        (folder / "run.json").write_text(json.dumps(result.to_json()))

    _store(store, fill)
    return replace(result, adapter=store if config.method != "full" else None)


def _machine() -> str:
    import torch

    threads = torch.get_num_threads()
    line = hardware.describe().removeprefix("Hardware: ")
    if hardware.detect().device == "cuda":
        return line
    return f"{line}, {threads} thread{'' if threads == 1 else 's'}"


def _read_run(store: Path) -> Run | None:
    try:
        record = json.loads((store / "run.json").read_text())
        adapter = store if (store / ADAPTER_FILES[1]).exists() else None
        return Run.from_json(record, adapter)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def score(trainer: "SFTTrainer", config: RunConfig) -> float:
    """Share of held-out examples that the trainer's model gets right."""
    held_out = examples(config, "test")
    model, tokenizer = trainer.model, trainer.processing_class
    hits = evaluation.exact_match(model, tokenizer, held_out)
    if config.task == "sql":
        # What is written exactly gives the same rows; writing is slow, so only the rest is written.
        rest = [index for index, exact in enumerate(hits) if not exact]
        said = evaluation.complete(model, tokenizer, [held_out[i]["prompt"] for i in rest], 48)
        shop, right = _task(config), pairs(config, "test")
        for index, answer in zip(rest, said, strict=True):
            hits[index] = shop.same_result(answer, right[index].target)
    return sum(hits) / len(hits)


def build_trainer(config: RunConfig, *, progress: bool = True) -> "SFTTrainer":
    """The TRL trainer for a configuration: the same cells as chapter 05, in one place."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, set_seed
    from trl import SFTTrainer

    here = hardware.detect()
    quantization = nf4_config() if config.method == "qlora" else None
    # Full fine-tuning keeps fp32 master weights; autocast computes in 16 bits where there are any.
    dtype = torch.float32 if config.method == "full" else here.compute_dtype
    model = base_model.load(config.model_id, quantization_config=quantization, dtype=dtype)
    peft_config = None
    if config.method != "full":
        targets = config.targets
        peft_config = LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        )
    set_seed(config.seed)
    with quiet():
        trainer = SFTTrainer(
            model=model,
            args=sft_config(
                steps=config.steps,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                seed=config.seed,
                progress=progress,
            ),
            train_dataset=Dataset.from_list(examples(config)),
            processing_class=base_model.load_tokenizer(config.model_id),
            peft_config=peft_config,
        )
    if not progress:
        trainer.remove_callback(PrinterCallback)  # stands in for a bar, a line for each log
    return trainer


def sft_config(
    *, steps: int, batch_size: int, learning_rate: float, seed: int = 0, progress: bool = True
) -> Any:
    """TRL's `SFTConfig` with every default that matters here set, for the detected hardware."""
    import torch
    from trl import SFTConfig

    here = hardware.detect()
    with quiet():  # transformers remarks on a setting's next name
        return SFTConfig(
            output_dir=str(paths.cache() / "trainer"),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, steps // 20),
            weight_decay=0.0,
            max_length=128,
            gradient_checkpointing=False,
            use_cpu=here.device == "cpu",
            bf16=here.compute_dtype == torch.bfloat16,
            fp16=here.compute_dtype == torch.float16,
            dataloader_pin_memory=here.device == "cuda",
            logging_steps=max(1, steps // 24),
            save_strategy="no",
            report_to="none",
            disable_tqdm=not progress,
            seed=seed,
        )


def fit(trainer: "SFTTrainer") -> tuple[list[tuple[int, float]], float]:
    """Train, or load the same run's adapter from the cache.

    Returns the history as (step, loss) pairs and the seconds that training took. The key covers
    the trainer's settings, every token and mask of its data, the weights it starts from, and the
    library versions. Runs without an adapter (full fine-tuning) are not kept.
    """
    adapter_run = hasattr(trainer.model, "peft_config")
    store = paths.cache() / "fits" / _trainer_key(trainer) if adapter_run else None
    if store and (found := _load_fit(trainer, store)):
        print(f"This run is in the cache: loaded. Training it took {found[1]:.0f} s.")
        return found
    if trainer.args.fp16:
        # TRL keeps adapters on a 4-bit base in bf16, which an fp16 gradient scaler cannot unscale.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    _keep_bar_in_sight(trainer)
    began = time.perf_counter()
    with quiet():
        trainer.train()
    seconds = time.perf_counter() - began
    log = trainer.state.log_history
    history = [(entry["step"], float(entry["loss"])) for entry in log if "loss" in entry]
    if store:

        def fill(folder: Path) -> None:
            save_adapter(trainer, folder)
            (folder / "fit.json").write_text(json.dumps([history, seconds]))

        _store(store, fill)
    return history, seconds


def _keep_bar_in_sight(trainer: "SFTTrainer") -> None:
    """In a notebook, show a few of the losses under the progress bar, and keep all in the history.

    The table grows with every loss, and a long one pushes the bar above it off the screen.
    """
    from transformers.utils.notebook import NotebookProgressCallback

    class Few(NotebookProgressCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if state.global_step % max(1, state.max_steps // SHOWN_LOSSES) < args.logging_steps:
                super().on_log(args, state, control, logs, **kwargs)

    if trainer.pop_callback(NotebookProgressCallback):
        trainer.add_callback(Few)


def _load_fit(
    trainer: "SFTTrainer", store: Path
) -> tuple[list[tuple[int, float]], float] | None:
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        history, seconds = json.loads((store / "fit.json").read_text())
        weights = load_file(store / ADAPTER_FILES[1])
    except (OSError, ValueError, SafetensorError):
        return None  # never kept, or damaged: train again
    set_peft_model_state_dict(trainer.model, weights)
    return [(int(step), float(loss)) for step, loss in history], float(seconds)


def save_adapter(trainer: "SFTTrainer", folder: str | os.PathLike[str]) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` into `folder`, nothing else."""
    with tempfile.TemporaryDirectory() as scratch, quiet():
        trainer.model.save_pretrained(scratch)
        Path(folder).mkdir(parents=True, exist_ok=True)
        # PEFT notes where the base was loaded from: a path that means nothing elsewhere.
        config = json.loads(Path(scratch, ADAPTER_FILES[0]).read_text())
        place = Path(config["base_model_name_or_path"] or "")
        if place == base_model.folder():
            config["base_model_name_or_path"] = base_model.NAME
        Path(folder, ADAPTER_FILES[0]).write_text(json.dumps(config, indent=2, sort_keys=True))
        shutil.copyfile(Path(scratch, ADAPTER_FILES[1]), Path(folder, ADAPTER_FILES[1]))


def load_adapter(
    folder: str | os.PathLike[str], model_id: str = base_model.EMBEDDED
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The adapter in `folder` on a 4-bit base, and the tokenizer; ready for evaluation."""
    from peft import PeftModel

    model = base_model.load(model_id, quantization_config=nf4_config())
    with quiet():
        return PeftModel.from_pretrained(model, str(folder)), base_model.load_tokenizer(model_id)


def nf4_config() -> "BitsAndBytesConfig":
    """NF4 with double quantisation, computing in the hardware's dtype: QLoRA's quantisation."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=hardware.detect().compute_dtype,
    )


def _trainer_key(trainer: "SFTTrainer") -> str:
    peft_config = trainer.model.peft_config["default"].to_dict()
    settings = trainer.args.to_dict()
    for name in ("output_dir", "logging_dir", "disable_tqdm", "logging_steps", "run_name"):
        settings.pop(name, None)
    weights = hashlib.sha256()
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            weights.update(name.encode() + parameter.detach().float().cpu().numpy().tobytes())
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    quantization = getattr(trainer.model.config, "quantization_config", None)
    return _digest(
        {
            "settings": settings,
            "adapter": {name: peft_config[name] for name in sorted(peft_config)},
            "quantization": quantization.to_dict() if quantization is not None else None,
            "start": weights.hexdigest(),
            "data": _digest(rows),
            "versions": versions(),
            **_place(trainer.model.config._name_or_path),
        }
    )


def _place(model_id: str) -> dict[str, str]:
    here = hardware.detect()
    name = base_model.folder().name if model_id == base_model.EMBEDDED else Path(model_id).name
    return {"base": name, "device": here.device, "dtype": str(here.compute_dtype)}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=lambda other: sorted(map(str, other))
                      if isinstance(other, set | frozenset) else str(other))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _store(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder and put it in place in one step, so that no half of it is ever read."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".storing-") as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        fill(made)
        if target.exists():
            shutil.rmtree(target)
        os.replace(made, target)
