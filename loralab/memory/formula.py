"""How many bytes does training hold? Closed formulas, one for each component.

    estimate("llama-2-7b", "qlora", rank=8, batch=1, seq=512)

What is held between two steps is in `held`, what forward keeps in `activations`; here are the loss,
the optimizer's step, and the search for the fullest moment. `loralab.memory.simulate` runs the
step itself. All sizes are bytes.
"""

from __future__ import annotations

from typing import Any

import torch

from loralab.memory import kernels
from loralab.memory.activations import activation_bytes, backward_bytes, cached_bytes
from loralab.memory.held import FP32, held_bytes, trained_sizes
from loralab.memory.result import HELD, LABELS, Estimate
from loralab.memory.settings import Settings, chosen


def estimate(model: Any, method: str = "qlora", **given: Any) -> Estimate:
    """Bytes at the peak of one training step, by component.

    `model`: a name in `ARCHITECTURES`, a path of a config.json or of a folder with one, a hub id,
    a transformers configuration, or a model. `method`: "full", "lora" or "qlora". Further settings
    and their defaults are those of `loralab.memory.settings`:

    dtype="bf16" of the weights; adapter_dtype; compute_dtype; autocast; kbit_prep=False;
    master_weights=False (an fp32 copy that the optimizer updates); optimizer="adamw" (of
    `OPTIMIZERS`); rank=8; alpha=16; dropout=0.0; targets="all-linear"; double_quant=True; batch=1
    sequences of seq=512 tokens, padding included; checkpointing=True; loss="hf" (of `LOSSES`);
    attention="auto" (of `ATTENTION`).

    The peak is the fullest of the moments in `moments`: at the loss, when all activations are alive
    and no gradient is; in a block's backward pass; in the optimizer's step. Raises CourseError for
    settings that do not exist or cannot train.
    """
    step = chosen(model, method, given)
    held, trained = held_bytes(step), sum(trained_sizes(step))
    at, alive = max(moments(step, held), key=lambda moment: sum(moment[1].values()))
    return Estimate(
        components={name: round(alive.get(name, 0)) for name in LABELS},
        held={name: held.get(name, 0) for name in HELD},
        peak_at=at,
        by="formula",
        trainable=trained,
        parameters=step.arch.parameters + (0 if method == "full" else trained),
        settings=step.described(),
    )


# --- loss and step -------------------------------------------------------------------------------


def loss_bytes(s: Settings, forward: bool = False) -> float:
    """Bytes of logits and loss when backward is at the loss, or when forward is.

    "hf": the logits, their log-probabilities and two gradients in fp32: vocabulary x
    (logits + 12) bytes a token. "trainer" has let the logits themselves go. "trl" never has them:
    one tile of at most 4096 tokens x 32768 words, the hidden states and two gradients of them; for
    a trained head also its gradient, in fp32 and then in its own dtype.
    """
    arch, weight = s.arch, s.unquantised
    size = s.attended.itemsize
    cast = s.compute.itemsize if s.autocast and weight != s.compute else 0  # of the head's weight
    if s.loss == "trl":
        compute = (s.compute if s.autocast else s.stream).itemsize
        tile = min(s.tokens, 4096) * min(arch.vocab, 32768) * compute
        hidden = s.tokens * arch.hidden * (2 * s.stream.itemsize + FP32)
        if s.method == "full":
            extra = weight.itemsize if weight != torch.float32 else 0
            hidden += arch.vocab * arch.hidden * (FP32 + extra)
        if s.autocast and s.stream != s.compute:  # of a tile's tokens
            hidden += min(s.tokens, 4096) * arch.hidden * compute
        # Of a tile's words, and of the tile before.
        return tile + hidden + cast * min(arch.vocab, 2 * 32768) * arch.hidden
    numbers = 3 * FP32 + (size if s.loss == "hf" else 0)
    if forward:  # logits, their fp32 copy if they are not, log-probabilities
        numbers = size + (FP32 if size != FP32 else 0) + FP32
    logits = s.tokens * arch.vocab * numbers
    if arch.softcap:
        logits += s.tokens * arch.vocab * size
    return logits + cast * arch.vocab * arch.hidden


def step_bytes(s: Settings) -> int:
    """Temporary bytes of the optimizer's step: unfused AdamW takes the root of all states."""
    if s.optimizer != "adamw_foreach":
        return 0
    return sum(trained_sizes(s)) * (s.dtype if s.method == "full" else s.adapter).itemsize


# --- the fullest moment --------------------------------------------------------------------------


def moments(s: Settings, held: dict[str, int]) -> list[tuple[str, dict[str, float]]]:
    """(when, bytes by component) at each moment that may be the peak."""
    kept, block = activation_bytes(s)
    first = kept / s.arch.layers
    always = held | {"workspace": kernels.CUBLAS_WORKSPACES}
    before = always | {"gradients": 0}
    if s.loss == "hf":  # `outputs` is there until the next step's
        logits = s.tokens * s.arch.vocab * s.attended.itemsize
        always = always | {"logits": logits, "activations": cached_bytes(s)}
        first += cached_bytes(s)
    head = s.arch.embedding * s.dtype.itemsize if s.method == "full" else 0
    again = block if s.checkpointing else 0
    during = backward_bytes(s)
    found = [
        ("in the backward pass of the loss",
         before | {"activations": kept, "logits": loss_bytes(s)}),
        ("in the backward pass of the last block",
         always | {"gradients": head, "activations": kept, "temporary": again + during}),
        ("in the backward pass of the first block",
         always | {"gradients": held["gradients"] - head, "activations": first,
                   "temporary": again + during + (head if s.arch.tied else 0)}),
        ("in the backward pass of the embedding",
         always | {"temporary": 2 * head if s.arch.tied else 0}),
        ("in the optimizer's step", always | {"temporary": step_bytes(s)}),
    ]  # fmt: skip
    if s.loss != "trl":  # whose two passes over the tiles are alike
        # The name `outputs` still means the last step's when this one's are made.
        last = {name: always.get(name, 0) for name in ("activations", "logits")}
        found.append(("in the forward pass of the loss",
                      before | {"activations": kept + last["activations"],
                                "logits": loss_bytes(s, forward=True) + last["logits"]}))
    return found

