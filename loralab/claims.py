"""The lesson's claims that chapter 07 rules on: what it says, and the number that it names.

The lesson is the one that the course was made from ("9.3 LoRA & QLoRA"), which says of itself that
it may contain errors.
"""

from __future__ import annotations

from dataclasses import dataclass

VERDICTS = ("holds", "depends", "wrong")
SETTINGS = {
    "alpha": "α, against r",
    "base": "the base model's dtype",
    "batch": "tokens in a batch",
    "hardware": "the GPU's dtypes",
    "optimizer": "AdamW, SGD …",
    "rank": "r",
    "seed": "the luck of a run",
    "targets": "which layers have adapters",
    "task": "what is learnt",
}


@dataclass(frozen=True)
class Claim:
    """What the lesson says, in short; `number`: the one it names or implies, if there is one.

    `unit`: of the number that chapter 07 measures, ready to be written behind it.
    """

    says: str
    number: float | None = None
    unit: str = ""


CLAIMS = {
    "three_times": Claim("full, fp32: 3× the weights, 84 GB", 84, " GB"),
    "table": Claim("QLoRA of a 7B model: ~6 GB", 6, " GB"),
    "rank_64": Claim("r = 64: much more VRAM than r = 8", unit=" % more"),
    "times_250": Claim("~250× fewer parameters", 250, "×"),
    "product": Claim("ΔW = A × B", 1, " × B·A"),
    "alpha_2r": Claim("lora_alpha=32, r=8: “typically 2r”", 1, " × 2r"),
    "printed": Claim("Llama-3.2-1B: 4,194,304 trained", 4_194_304, " trained"),
    "eight_bit": Claim("load_in_8bit=True", unit=" layers, done otherwise"),
    "cpu": Claim("bitsandbytes: not on a CPU", unit=" relative error, NF4"),
    "fp16": Claim("compute dtype: float16", unit=" outputs infinite"),
    "targets": Claim("adapters on q_proj, v_proj", unit=" accuracy missing"),
    "quality": Claim("LoRA better than QLoRA", unit=" accuracy"),
    "merge": Claim("merge before deploying", unit=" × the update lost"),
}


def recorded_accuracy() -> dict[str, list[float]]:
    """Exact match (0 to 1) of chapter 05's recorded runs, a list for each setting.

    "q and v" is QLoRA with as many parameters as "QLoRA", which has them on all linear layers.
    """
    from loralab import recorded_runs

    found = {name: run.accuracy for name, run in recorded_runs.recorded().items()}
    return {
        "full": [found["full fine-tuning"]],
        "LoRA": [found["LoRA"], found["LoRA, another seed"]],
        "QLoRA": [found["QLoRA"], found["QLoRA, another seed"]],
        "q and v": [found["QLoRA, q and v, rank 42"]],
    }
