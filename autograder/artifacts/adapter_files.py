"""A LoRA adapter as it was handed in: two hostile files in, checked tensors out.

Of the configuration only the rank, alpha, rsLoRA and the names of the layers are taken; every
other setting has to be without effect. Of the tensors, exactly those are taken that a LoRA of this
rank on these layers of the embedded model has. No library ever sees the configuration, and nothing
is unpickled.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralab import memory

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
KIB, MIB = 1024, 1024**2
MAX_CONFIG = 64 * KIB  # PEFT writes about 1 KiB
MAX_WEIGHTS = 64 * MIB  # rank 8 on every layer is 5 MB in bf16
MAX_HEADER = 256 * KIB  # 420 tensors need about 60 KiB
MAX_RANK, MAX_ALPHA = 256, 10_000.0
MAX_MAGNITUDE = 1000.0  # trained weights stay far below 10
DTYPES = ("F32", "BF16", "F16")

# Settings that change nothing about an adapter which is trained already.
_WITHOUT_EFFECT = frozenset(
    "base_model_name_or_path revision inference_mode peft_version task_type lora_dropout "
    "megatron_core loftq_config qalora_group_size layers_pattern ensure_weight_tying".split()
)
_USED = frozenset({"peft_type", "r", "lora_alpha", "target_modules", "use_rslora"})
# What PEFT notes by itself when no task type was given.
_AUTO_MAPPING = {
    "base_model_class": "LlamaForCausalLM",
    "parent_library": "transformers.models.llama.modeling_llama",
}
# Ways to start that leave the base as it is. Others (PiSSA, OLoRA, CorDA …) change it as well.
_STARTS = (True, False, "gaussian", "orthogonal", "eva")
_NOTHING: tuple[object, ...] = (None, False, "none", [], {})


class BadAdapter(Exception):
    """What was handed in is no adapter that can be tried. The text is for the student.

    `kind`: "missing", "other_base", or "" for everything else.
    """

    def __init__(self, message: str, kind: str = ""):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class LoraSettings:
    """What an adapter's effect depends on besides its tensors."""

    r: int
    lora_alpha: float
    targets: frozenset[str]
    use_rslora: bool = False

    @property
    def scale(self) -> float:
        """The factor of B·A: α/r, with rsLoRA α/√r."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


@dataclass(frozen=True)
class Adapter:
    """`pairs`: layer's path → A (r, inputs) and B (outputs, r), in the dtype of the file."""

    settings: LoraSettings
    pairs: Mapping[str, tuple["torch.Tensor", "torch.Tensor"]]

    @property
    def largest_b(self) -> float:
        """The largest magnitude in any B: 0 before the first step of training."""
        return max(b.abs().max().item() for _, b in self.pairs.values())


@lru_cache(1)
def layers() -> Mapping[str, memory.Linear]:
    """The embedded model's linear layers without its head, by path."""
    return {layer.path: layer for layer in memory.describe("smollm2-135m").linear}


def read_adapter(files: Mapping[str, Path]) -> Adapter:
    """The adapter among a submission's files (by relative path). Raises `BadAdapter`."""
    if CONFIG not in files or WEIGHTS not in files:
        raise _incomplete(files)
    settings = read_config(_content(files[CONFIG], CONFIG, MAX_CONFIG))
    return Adapter(settings, read_weights(_content(files[WEIGHTS], WEIGHTS, MAX_WEIGHTS), settings))


def _incomplete(files: Mapping[str, Path]) -> BadAdapter:
    if WEIGHTS not in files and any(name.endswith("adapter_model.bin") for name in files):
        return BadAdapter(
            "adapter_model.bin is a pickle, which can run code when it is opened, so it is not. "
            "Save the adapter again as adapter_model.safetensors (what PEFT writes by default)."
        )
    found = [name for name in (CONFIG, WEIGHTS) if name in files]
    if found:
        lacking = WEIGHTS if found == [CONFIG] else CONFIG
        return BadAdapter(f"{found[0]} was handed in, {lacking} was not. Both are needed.")
    return BadAdapter("Neither of the two files was handed in.", "missing")


def _content(path: Path, name: str, limit: int) -> bytes:
    """A plain file's bytes, at most `limit` of them."""
    # Opening must neither follow a link nor wait for a pipe's other end.
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BadAdapter(f"{name} is a link. Hand in the file itself.") from None
        raise BadAdapter(f"{name} cannot be read. Hand it in again.", "missing") from None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise BadAdapter(f"{name} is not a plain file. Hand in the file itself.")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = b"" if about.st_size > limit else file.read(limit + 1)
    finally:
        os.close(descriptor)
    if about.st_size > limit or len(data) > limit:
        raise BadAdapter(
            f"{name} has {_size(about.st_size)}; at most {_size(limit)} are taken. An adapter of "
            "rank 8 on every layer needs 5 MB: is this a whole model, or a very high rank?"
        )
    return data


def _size(count: int) -> str:
    return f"{count / MIB:.0f} MiB" if count >= MIB else f"{count / KIB:.0f} KiB"


# The configuration ------------------------------------------------------------------------------


def read_config(data: bytes) -> LoraSettings:
    """The settings in an `adapter_config.json`. Raises `BadAdapter`."""
    name = Path(CONFIG).name
    try:
        config = json.loads(data.decode("utf-8-sig"), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise BadAdapter(
            f"{name} is not the JSON that PEFT writes. Save the adapter again."
        ) from None
    if not isinstance(config, dict):
        raise BadAdapter(f"{name} holds no object with settings. Save the adapter again.")
    if config.get("peft_type") != "LORA":
        raise BadAdapter(f"{name} is not that of a LoRA adapter: peft_type has to be LORA.")
    _refuse_what_has_an_effect(config)
    return LoraSettings(
        r=_rank(config.get("r")),
        lora_alpha=_alpha(config.get("lora_alpha")),
        targets=_targets(config.get("target_modules")),
        use_rslora=config.get("use_rslora") is True,
    )


def _no_number(text: str) -> None:
    raise ValueError(text)


def _refuse_what_has_an_effect(config: Mapping[str, Any]) -> None:
    if not isinstance(config.get("use_rslora", False), bool):
        raise BadAdapter("use_rslora has to be true or false.")
    if not _is_one_of(config.get("init_lora_weights", True), _STARTS):
        raise BadAdapter(
            "init_lora_weights names a start that changes the base model too; what is handed in "
            "is tried on the unchanged one. Use PEFT's default."
        )
    if config.get("auto_mapping") not in (None, _AUTO_MAPPING):
        raise BadAdapter("auto_mapping names other code than the embedded model's: leave it out.")
    for key in config.keys() - _USED - _WITHOUT_EFFECT - {"init_lora_weights", "auto_mapping"}:
        if not _is_one_of(config[key], _NOTHING):
            known = f"The setting {key}" if len(key) < 40 and key.isidentifier() else "A setting"
            raise BadAdapter(
                f"{known} is not at its default. What is taken here: a plain LoRA with r, "
                "lora_alpha, target_modules and use_rslora."
            )


def _is_one_of(value: object, allowed: tuple[object, ...]) -> bool:
    # 0 == False, and 1 == True, are no defaults.
    return any(type(value) is type(one) and value == one for one in allowed)


def _rank(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise BadAdapter(f"r has to be a whole number from 1 to {MAX_RANK}.")
    return value


def _alpha(value: object) -> float:
    if type(value) not in (int, float) or not 0 < value <= MAX_ALPHA:  # type: ignore[operator]
        raise BadAdapter(f"lora_alpha has to be a number above 0, up to {MAX_ALPHA:,.0f}.")
    return float(value)  # type: ignore[arg-type]


def _targets(value: object) -> frozenset[str]:
    names = _all_names()
    if value == "all-linear":
        return names
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise BadAdapter("target_modules has to be a list of layers' names, as in [\"q_proj\"].")
    if {"lm_head", "embed_tokens"} & set(value):
        raise BadAdapter("target_modules names the head or the embedding: only linear layers of "
                         "the blocks are taken.")
    if not names.issuperset(value):
        raise BadAdapter("target_modules names layers that the embedded model lacks.", "other_base")
    return frozenset(value)


def _all_names() -> frozenset[str]:
    return frozenset(path.rpartition(".")[2] for path in layers())


# The tensors ------------------------------------------------------------------------------------


def read_weights(
    data: bytes, settings: LoraSettings
) -> dict[str, tuple["torch.Tensor", "torch.Tensor"]]:
    """The pairs in an `adapter_model.safetensors`, by layer. Raises `BadAdapter`."""
    import torch
    from safetensors import SafetensorError, deserialize

    _refuse_other_formats(data)
    try:
        # The library checks the header: offsets without gaps or overlaps, sizes, no number too big.
        found = dict(deserialize(data))
    except SafetensorError:
        raise BadAdapter("adapter_model.safetensors is damaged or cut off. Save it, or copy it, "
                         "again.") from None
    expected = _shapes(settings)
    _compare({name: tuple(one["shape"]) for name, one in found.items()}, expected, settings)
    as_torch = dict(zip(DTYPES, (torch.float32, torch.bfloat16, torch.float16), strict=True))
    if not all(one["dtype"] in as_torch for one in found.values()):
        raise BadAdapter("Some tensors are in a dtype that is not taken: use float32, bfloat16 or "
                         "float16.")
    tensors = {
        name: torch.frombuffer(one["data"], dtype=as_torch[one["dtype"]]).reshape(expected[name])
        for name, one in found.items()
    }
    for tensor in tensors.values():
        if not torch.isfinite(tensor).all():
            raise BadAdapter("Some weights are not finite (NaN or infinity). Look at the loss "
                             "curve: did training break down? Try a lower learning rate.")
        if tensor.abs().max() > MAX_MAGNITUDE:
            raise BadAdapter(f"Some weights are above {MAX_MAGNITUDE:,.0f}; trained ones stay far "
                             "below 10. Try a lower learning rate.")
    targeted = [path for path in layers() if path.rpartition(".")[2] in settings.targets]
    return {path: (tensors[_name(path, "A")], tensors[_name(path, "B")]) for path in targeted}


def _refuse_other_formats(data: bytes) -> None:
    """Everything that is no safetensors file, or has a header that no adapter needs."""
    header = int.from_bytes(data[:8], "little")
    if len(data) >= 8 and header <= MAX_HEADER and data[8:9] == b"{":
        return  # the library reads on
    name = Path(WEIGHTS).name
    if not data:
        raise BadAdapter(f"{name} is empty. Save the adapter, or copy it, again.")
    if data.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise BadAdapter(
            f"{name} is a pickle under another name. A pickle can run code when it is opened, so "
            "it is not. Save the adapter with save_pretrained, which writes safetensors."
        )
    if data.startswith(b"version https://git-lfs"):
        raise BadAdapter(f"{name} is a pointer of Git LFS. Hand in the file that it stands for.")
    if data[8:9] == b"{" and header + 8 <= len(data):
        raise BadAdapter(f"The header of {name} is far longer than an adapter's. Hand in the "
                         "adapter alone, as save_pretrained writes it.")
    raise BadAdapter(f"{name} is no safetensors file, or is damaged. Save the adapter, or copy "
                     "it, again.")


def _name(path: str, half: str) -> str:
    return f"base_model.model.{path}.lora_{half}.weight"


def _shapes(settings: LoraSettings) -> dict[str, tuple[int, int]]:
    """Name → shape of every tensor that PEFT writes for these settings."""
    shapes = {}
    for path, layer in layers().items():
        if path.rpartition(".")[2] in settings.targets:
            shapes[_name(path, "A")] = (settings.r, layer.inputs)
            shapes[_name(path, "B")] = (layer.outputs, settings.r)
    return shapes


def _compare(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, int]],
    settings: LoraSettings,
) -> None:
    """Raise unless exactly the expected tensors are there, with their shapes."""
    if found == expected:
        return
    everywhere = _shapes(replace(settings, targets=_all_names()))
    strangers = found.keys() - everywhere.keys()
    fits = all(_fits(name, found[name], everywhere[name]) for name in found.keys() - strangers)
    if not fits or any(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in strangers):
        raise BadAdapter("The tensors are not those of an adapter on the embedded model's layers.",
                         "other_base")
    if strangers:
        raise BadAdapter("There are tensors that a plain LoRA adapter does not have. Hand in the "
                         "adapter alone, as save_pretrained writes it.")
    if found.keys() != expected.keys():
        raise BadAdapter(
            f"target_modules asks for {len(expected)} tensors, and {len(found)} are there, or "
            "others. Do the two files come from the same run?"
        )
    raise BadAdapter(f"adapter_config.json says r = {settings.r}, the tensors have another rank. "
                     "Do the two files come from the same run?")


def _fits(name: str, found: tuple[int, ...], expected: tuple[int, int]) -> bool:
    """Whether the dimension that the layer decides is right; the other one is the rank."""
    decided = 1 if ".lora_A." in name else 0
    return len(found) == 2 and found[decided] == expected[decided]
