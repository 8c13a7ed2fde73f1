"""What a training step is: the settings that formula, simulation and measurement share."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from loralab.errors import CourseError
from loralab.memory import architectures
from loralab.memory.architectures import Architecture, Linear
from loralab.memory.vocabulary import dtype_of, name_of
from loralab.memory_names import ATTENTION, LOSSES, METHODS, OPTIMIZERS, OTHER_NAMES, one_of


@dataclass(frozen=True)
class Settings:
    """One training step, checked: every field can be trained with.

    `dtype`: of the weights; for QLoRA of those that stay unquantised. `compute`: of matrix
    products under autocast and inside 4-bit layers. `adapter`: of adapters, their gradients and
    states. `adapted`: the linear layers that get one.
    """

    arch: Architecture
    method: str
    dtype: torch.dtype
    compute: torch.dtype
    adapter: torch.dtype
    autocast: bool
    kbit_prep: bool
    master_weights: bool
    optimizer: str
    rank: int
    alpha: int
    dropout: float
    targets: str
    adapted: tuple[Linear, ...]
    double_quant: bool
    batch: int
    seq: int
    checkpointing: bool
    loss: str
    attention: str

    @property
    def tokens(self) -> int:
        """Tokens in a batch, padding included."""
        return self.batch * self.seq

    @property
    def unquantised(self) -> torch.dtype:
        """Of embedding, norms and head: fp32 after `prepare_model_for_kbit_training`."""
        return torch.float32 if self.kbit_prep else self.dtype

    @property
    def stream(self) -> torch.dtype:
        """Of the hidden states between blocks: that of the embedding they come from.

        Where 4-bit layers give back what a LayerNorm under autocast made, it is fp32.
        """
        widened = self.method == "qlora" and self.autocast and self._layer_norm
        return torch.float32 if widened else self.unquantised

    @property
    def _layer_norm(self) -> bool:
        return self.arch.family == "gpt2"

    @property
    def attended(self) -> torch.dtype:
        """Of queries, keys and values as attention takes them, and of the logits."""
        return self.compute if self.autocast else self.stream

    @property
    def product(self) -> torch.dtype:
        """Of what a block's linear layers give: 4-bit ones give back their input's dtype."""
        return self.stream if self.method == "qlora" else self.attended

    @property
    def normed(self) -> torch.dtype:
        """Of what a norm gives: its input's, but autocast does LayerNorm in fp32."""
        return torch.float32 if self._layer_norm and self.autocast else self.stream

    @property
    def kernel(self) -> str:
        """The attention kernel, chosen if `attention` is "auto".

        PyTorch prefers flash, which takes 16-bit numbers only; then the memory-efficient one,
        which does not take grouped heads as they are; then math. Logits with a soft cap
        (Gemma-2) need eager attention.
        """
        if self.attention != "auto":
            return self.attention
        if self.arch.softcap:
            return "eager"
        if self.attended != torch.float32:
            return "sdpa-flash"
        return "sdpa-math" if self.arch.kv_heads != self.arch.heads else "sdpa-efficient"

    def described(self) -> dict[str, Any]:
        """The settings that matter for this method, as they can be given again."""
        said: dict[str, Any] = {"model": self.arch.name, "method": self.method,
                                "dtype": name_of(self.dtype)}
        if self.method == "full":
            said["master_weights"] = self.master_weights
        else:
            said |= {"adapter_dtype": name_of(self.adapter), "rank": self.rank,
                     "alpha": self.alpha, "dropout": self.dropout, "targets": self.targets}
        if self.method == "qlora":
            said |= {"double_quant": self.double_quant, "kbit_prep": self.kbit_prep}
        return said | {
            "autocast": self.autocast, "compute_dtype": name_of(self.compute),
            "optimizer": self.optimizer, "batch": self.batch, "seq": self.seq,
            "checkpointing": self.checkpointing, "loss": self.loss, "attention": self.kernel,
        }  # fmt: skip


def settings(
    model: Any,
    method: str = "qlora",
    *,
    dtype: str | torch.dtype = "bf16",
    adapter_dtype: str | torch.dtype | None = None,
    compute_dtype: str | torch.dtype | None = None,
    autocast: bool | None = None,
    kbit_prep: bool = False,
    master_weights: bool = False,
    optimizer: str = "adamw",
    rank: int = 8,
    alpha: int = 16,
    dropout: float = 0.0,
    targets: str | Iterable[str] = "all-linear",
    double_quant: bool = True,
    batch: int = 1,
    seq: int = 512,
    checkpointing: bool = True,
    loss: str = "hf",
    attention: str = "auto",
) -> Settings:
    """The settings, checked and with what is not given filled in.

    `adapter_dtype`: PEFT makes adapters in fp32; TRL turns those of a 4-bit base into bf16.
    `autocast`: TRL's SFTConfig has it on (not where `compute_dtype` is fp32), a plain loop off.
    `compute_dtype`: `dtype`, or bf16 where that is fp32 and autocast is on.
    Raises CourseError, with the nearest valid names, for what does not exist or cannot train.
    """
    one_of(method, METHODS, "method")
    loss = one_of(loss, LOSSES, "loss")
    optimizer = one_of(OTHER_NAMES.get(optimizer, optimizer), OPTIMIZERS, "optimizer")
    attention = one_of(attention, ATTENTION, "attention")
    arch = architectures.describe(model)
    base = dtype_of(dtype)
    if autocast is None:
        autocast = loss == "trl" and compute_dtype not in ("fp32", torch.float32)
    if adapter_dtype is None:
        adapter_dtype = torch.bfloat16 if loss == "trl" and method == "qlora" else torch.float32
    if compute_dtype is None:
        compute_dtype = torch.bfloat16 if base == torch.float32 and autocast else base
    wanted = targets if isinstance(targets, str) else tuple(targets)
    adapted = () if method == "full" else tuple(targeted(arch, wanted, loss))
    made = Settings(
        arch=arch, method=method, dtype=base, compute=dtype_of(compute_dtype),
        adapter=dtype_of(adapter_dtype), autocast=autocast,
        kbit_prep=kbit_prep and method == "qlora",
        master_weights=master_weights and method == "full",
        optimizer=optimizer, rank=rank, alpha=alpha, dropout=dropout,
        targets=wanted if isinstance(wanted, str) else ",".join(wanted), adapted=adapted,
        double_quant=double_quant, batch=batch, seq=seq, checkpointing=checkpointing, loss=loss,
        attention=attention,
    )  # fmt: skip
    _can_train(made)
    return made


SETTINGS = tuple(inspect.signature(settings).parameters)[2:]


def chosen(model: Any, method: str, given: Mapping[str, Any]) -> Settings:
    """`settings`, where a name that is none raises CourseError as well."""
    for name in given:
        one_of(name, SETTINGS, "setting")
    return settings(model, method, **given)


def _can_train(made: Settings) -> None:
    for name in ("rank", "alpha", "batch", "seq"):
        if getattr(made, name) < 1:
            raise CourseError(f"{name} is {getattr(made, name)}.", "It must be 1 or more.")
    if not 0 <= made.dropout < 1:
        raise CourseError(f"dropout is {made.dropout}.", "It is a share, from 0 to below 1.")
    if made.seq > made.arch.length:
        raise CourseError(
            f"{made.arch.name} takes at most {made.arch.length:,} tokens; seq is {made.seq:,}.",
            f"Use seq={made.arch.length} or less.",
        )
    for layer in made.adapted:
        if made.rank > min(layer.inputs, layer.outputs):
            raise CourseError(
                f"Rank {made.rank} is more than {layer.path} has: it is {layer.outputs} x "
                f"{layer.inputs}.",
                f"Use a rank up to {min(layer.inputs, layer.outputs)}, where LoRA saves nothing "
                "any more, or leave that layer out of the targets.",
            )
    if made.autocast and made.compute == torch.float32:
        raise CourseError("Autocast computes in 16 bits, and compute_dtype is fp32.",
                          'Leave autocast off, or use compute_dtype="bf16".')
    if made.kernel == "sdpa-flash" and made.attended == torch.float32:
        why = "kbit_prep makes" if made.kbit_prep else "the weights' dtype makes"
        automatic = replace(made, attention="auto").kernel
        raise CourseError(
            f"The flash kernel takes 16-bit numbers only; {why} queries fp32 without autocast.",
            f'Turn autocast on, or leave attention at "auto", which is {automatic} here.',
        )
    if made.arch.softcap and made.kernel != "eager":
        raise CourseError(
            f"{made.arch.name} caps its attention scores, which {made.kernel} cannot.",
            'Use attention="auto", which is "eager" here.',
        )


def targeted(
    arch: Architecture, targets: str | Iterable[str] = "all-linear", loss: str = "hf"
) -> list[Linear]:
    """The linear layers that get an adapter: all of them, or those whose last name is given."""
    if isinstance(targets, str) and targets == "all-linear":
        return list(arch.linear)
    wanted = targets.split(",") if isinstance(targets, str) else list(targets)
    there = sorted({layer.path.rsplit(".", 1)[-1] for layer in arch.linear})
    for name in wanted:
        if loss == "trl" and _ends_with(arch.head.path, name):
            raise CourseError(
                f"TRL's loss reads the weight of {name!r} itself and would pass an adapter by.",
                f"Leave it out (the other linear layers are {', '.join(there)}), or use another "
                "loss.",
            )
        if not any(_ends_with(layer.path, name) for layer in (*arch.linear, arch.head)):
            raise CourseError(
                f"{arch.name} has no linear layer called {name!r}.",
                f'Its linear layers are {", ".join(there)}; or say "all-linear".',
            )
    layers = (*arch.linear, arch.head)
    return [layer for layer in layers if any(_ends_with(layer.path, name) for name in wanted)]


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith("." + name)

