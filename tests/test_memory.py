"""The memory formulas against what is held: models, optimizers, bitsandbytes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import bitsandbytes
import pytest
import torch
from transformers import AutoConfig, GPT2Config, LlamaConfig

from loralab import four_bit, measure, memory
from loralab.errors import CourseError
from tests.tiny_models import TINY

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def llama(layers: int = 2, **changed) -> LlamaConfig:
    """Grouped-query attention, tied embeddings, sizes that are no multiple of 64."""
    settings = dict(
        vocab_size=66, hidden_size=72, intermediate_size=100, num_hidden_layers=layers,
        num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaConfig(**settings | changed)


def gpt2(layers: int = 2) -> GPT2Config:
    return GPT2Config(
        n_embd=72, n_layer=layers, n_head=4, vocab_size=66, n_positions=64,
        resid_pdrop=0, attn_pdrop=0, embd_pdrop=0,
    )  # fmt: skip


FIVE = {"llama": llama(), "gpt2": gpt2()} | {
    family: AutoConfig.for_model(**TINY[family]) for family in ("qwen2", "gemma2", "phi3")
}


def prepared(config, method, dtype, adapter_dtype, targets="all-linear", double_quant=True, rank=4):
    """A real model on the CPU, ready for one training step."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = memory.build(config, device="cpu", dtype=dtype)
    if method == "qlora":
        four_bit.quantise(model, double_quant=double_quant)
    if method != "full":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lora = LoraConfig(r=rank, target_modules=targets)
            model = get_peft_model(model, lora, autocast_adapter_dtype=False)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(memory.dtype_of(adapter_dtype))
    return model.train()


def optimizer_of(model, name):
    make = {
        "adamw": torch.optim.AdamW,
        "adamw_8bit": bitsandbytes.optim.AdamW8bit,
        "sgd": torch.optim.SGD,
    }[name]
    return make([p for p in model.parameters() if p.requires_grad], lr=1e-4)


# --- parameters ----------------------------------------------------------------------------------

# Counted by PEFT on models of torch's meta device, `trainable` by targets and rank. The totals of
# Llama-2-7B and Llama-3.2-3B are also published (6,738,415,616 and 3,212,749,824).
COUNTS = json.loads(Path(__file__).with_name("param_counts.json").read_text("utf-8"))


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_that_peft_counts(name):
    arch, counted = memory.describe(name), COUNTS[name]
    assert arch.parameters == counted["total"]
    assert (arch.quantisable, arch.rest) == (
        counted["quantisable"], counted["total"] - counted["quantisable"])
    assert (arch.embedding, arch.tied) == (counted["embedding"], counted["tied"])
    for targets, by_rank in counted["trainable"].items():
        for rank, trainable in by_rank.items():
            assert sum(memory.lora_sizes(arch, int(rank), targets)) == trainable


@pytest.mark.parametrize("name", ["gpt2", "llama-3.2-1b", "gemma-2-2b", "phi-3-mini-4k"])
def test_peft_still_counts_the_same(name):
    from peft import LoraConfig, get_peft_model

    for targets, by_rank in COUNTS[name]["trainable"].items():
        wanted = targets if targets == "all-linear" else targets.split(",")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lora = LoraConfig(r=8, target_modules=wanted, task_type="CAUSAL_LM")
            model = get_peft_model(memory.build(name), lora, low_cpu_mem_usage=True)
        assert model.get_nb_trainable_parameters()[0] == by_rank["8"]


def test_every_architecture_can_be_described():
    for name in memory.ARCHITECTURES:
        arch = memory.describe(name)
        assert arch.embedding == arch.vocab * arch.hidden
        assert arch.rest >= arch.embedding * (1 if arch.tied else 2)


def test_query_and_value_adapters():
    """4,194,304 is Llama-2-7B's count; with grouped-query attention v_proj is not square."""
    for name, trainable in (("llama-3.2-1b", 851_968), ("llama-2-7b", 4_194_304)):
        assert sum(memory.lora_sizes(memory.describe(name), 8, ["q_proj", "v_proj"])) == trainable


def test_the_embedded_model_in_nf4():
    """SmolLM2-135M with bf16 unquantised parts: 116.43 MB, 111.69 MB with double quantisation."""
    for double_quant, megabytes in ((False, 116.43), (True, 111.69)):
        found = memory.estimate("smollm2-135m", "qlora", double_quant=double_quant)
        weights = sum(found.held[part] for part in ("weights", "weights_4bit", "constants"))
        assert round(weights / 1e6, 2) == megabytes


# --- static bytes: exact -------------------------------------------------------------------------

STATIC = [
    (method, optimizer, dtype, adapter, double_quant)
    for method, double in (("full", [True]), ("lora", [True]), ("qlora", [True, False]))
    for optimizer in ("adamw", "adamw_8bit", "sgd")
    for dtype, adapter in (("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16"))
    for double_quant in double
    if not (method == "full" and (dtype, adapter) == ("bf16", "fp32"))
]


@pytest.mark.parametrize("config", FIVE.values(), ids=FIVE)
@pytest.mark.parametrize("method, optimizer, dtype, adapter, double_quant", STATIC)
def test_static_bytes_are_exact_after_a_real_step(
    config, method, optimizer, dtype, adapter, double_quant
):
    model = prepared(config, method, dtype, adapter, double_quant=double_quant)
    stepper = optimizer_of(model, optimizer)
    tokens = torch.randint(66, (1, 8))
    model(input_ids=tokens, labels=tokens).loss.backward()
    stepper.step()
    counted = measure.held(model, stepper)
    expected = memory.estimate(
        config, method, dtype=dtype, adapter_dtype=adapter, optimizer=optimizer, rank=4,
        double_quant=double_quant, batch=1, seq=8,
    )  # fmt: skip
    assert counted == {name: expected.held[name] for name in counted}
    assert expected.static == sum(counted.values())


def test_eight_bit_adam_quantises_large_tensors_only():
    """The small models above have tensors on both sides of 4,096 parameters."""
    sizes = memory.describe(llama()).sizes.values()
    assert min(sizes) < 4096 <= max(sizes)


def test_only_full_fine_tuning_has_master_weights():
    for method in ("lora", "qlora"):
        plain = memory.estimate("gpt2", method)
        assert memory.estimate("gpt2", method, master_weights=True).to_dict() == plain.to_dict()


def test_mixed_precision_with_master_weights():
    config = llama()
    model = memory.build(config, device="cpu", dtype="bf16")
    masters = [torch.nn.Parameter(p.detach().float()) for p in model.parameters()]
    tokens = torch.randint(66, (1, 8))
    model(input_ids=tokens, labels=tokens).loss.backward()
    for master, working in zip(masters, model.parameters()):
        master.grad = working.grad.float()
    stepper = torch.optim.AdamW(masters)
    stepper.step()
    expected = memory.estimate(config, "full", dtype="bf16", master_weights=True)
    counted = measure.held(model, stepper)
    assert sum(counted.values()) + sum(m.nbytes for m in masters) == expected.static
    assert expected.static - 4 * len(masters) == 16 * expected.parameters


@pytest.mark.parametrize("shape", [(64, 64), (33, 7), (1000, 128), (300, 4100)])
@pytest.mark.parametrize("double_quant", [True, False])
def test_nf4_bytes_of_one_layer(shape, double_quant):
    bnb = bitsandbytes
    layer = bnb.nn.Linear4bit(
        *shape, bias=False, quant_type="nf4", compress_statistics=double_quant
    ).to("cpu")
    codes, constants = memory.nf4_bytes(shape[0] * shape[1], double_quant=double_quant)
    assert layer.weight.nbytes == codes
    assert sum(t.nbytes for t in measure.constants_of(layer).values()) == constants


@pytest.mark.parametrize("config", FIVE.values(), ids=FIVE)
@pytest.mark.parametrize("double_quant", [True, False])
def test_from_pretrained_stores_the_same_bytes(config, double_quant, tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    memory.build(config, device="cpu").save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant
        ),
    )
    expected = memory.estimate(config, "qlora", double_quant=double_quant, seq=8)
    counted = measure.held(loaded)
    for part in ("weights", "weights_4bit", "constants"):
        assert counted[part] == expected.held[part]


def test_held_counts_meta_models():
    assert measure.held(memory.build(llama()))["weights"] == memory.describe(llama()).parameters * 4


# --- activations and loss ------------------------------------------------------------------------


def block_formula(config, method, dtype, adapter, targets, **given):
    step = memory.settings(
        config, method, dtype=dtype, adapter_dtype=adapter, rank=4, targets=targets, seq=16, batch=2,
        **given,
    )  # fmt: skip
    return memory.block_bytes_per_token(step)


def kept_by_a_block(make):
    """Bytes a token: the difference between three blocks and two."""
    return (make(3) - make(2)) / 32


@pytest.mark.parametrize(
    "method, dtype, adapter, targets",
    [
        ("full", "bf16", "bf16", "all-linear"),
        ("lora", "bf16", "bf16", ["q_proj", "v_proj"]),
        ("lora", "bf16", "bf16", ["o_proj", "up_proj"]),
        ("lora", "bf16", "bf16", "all-linear"),
        ("lora", "bf16", "fp32", "all-linear"),
        ("qlora", "bf16", "fp32", ["q_proj", "down_proj"]),
    ],
)
def test_one_llama_block_saves_what_the_formula_says(method, dtype, adapter, targets):
    """Exact. A real model on the CPU, whose fused kernel keeps what flash attention keeps."""
    kept = kept_by_a_block(lambda n: measure.saved_for_backward(
        prepared(llama(n), method, dtype, adapter, targets), 2, 16))
    assert kept == block_formula(llama(), method, dtype, adapter, targets)


def test_a_gpt2_block_saves_what_the_formula_says():
    kept = kept_by_a_block(lambda n: measure.saved_for_backward(
        prepared(gpt2(n), "full", "bf16", "bf16"), 2, 16))
    masks = 2 * 72  # of dropout, which this configuration turns off
    assert kept == pytest.approx(
        block_formula(gpt2(), "full", "bf16", "bf16", "all-linear") - masks, rel=0.02)


def test_checkpointing_keeps_the_input_of_each_block():
    saved = []
    for layers in (3, 2):
        model = prepared(llama(layers), "full", "fp32", "fp32")
        model.activation_checkpointing_enable({"use_reentrant": False})
        saved.append(measure.saved_for_backward(model, 2, 16))
    one, two = (
        memory.activation_bytes(memory.settings(llama(n), "full", dtype="fp32", batch=2, seq=16))[0]
        for n in (2, 3)
    )
    assert saved[0] - saved[1] == two - one == 32 * 72 * 4


def test_loss_and_recomputed_block_are_never_both_counted():
    found = memory.estimate("llama-2-7b", "lora", seq=4096)
    assert found.components["logits"] and not found.components["temporary"]
    chunked = memory.estimate("llama-3.1-8b", "lora", seq=1024, batch=8, loss="trl")
    assert chunked.total < memory.estimate("llama-3.1-8b", "lora", seq=1024, batch=8).total


def test_trainer_lets_the_logits_go_and_a_plain_loop_does_not():
    plain, trainer = (
        memory.estimate("llama-3.2-1b", "lora", seq=2048, loss=loss) for loss in ("hf", "trainer"))
    assert plain.total - trainer.total == 2048 * 128256 * 2


# --- architectures that no formula was written for -----------------------------------------------

SMALL = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4)
OTHERS = {
    "gpt_neox": SMALL, "opt": SMALL | dict(ffn_dim=512, word_embed_proj_dim=256),
    "qwen3": SMALL | dict(num_key_value_heads=2, head_dim=64),
    "mixtral": SMALL | dict(num_key_value_heads=2), "olmo2": SMALL, "phi": SMALL,
    "bloom": dict(hidden_size=256, n_layer=3, n_head=4),
}  # fmt: skip


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("method", memory.METHODS)
def test_any_architecture_can_be_simulated_and_the_formula_comes_close(family, method):
    config = AutoConfig.for_model(family, **OTHERS[family])
    given = dict(batch=2, seq=256)
    simulated = memory.simulate(config, method, **given)
    assert memory.estimate(config, method, **given).total == pytest.approx(simulated.total, rel=0.02)


def test_an_attention_of_its_own_is_said_and_eager_works():
    config = AutoConfig.for_model(
        "falcon", hidden_size=256, num_hidden_layers=3, num_attention_heads=4)
    with pytest.raises(CourseError, match="eager"):
        memory.simulate(config, "lora", seq=64)
    assert memory.simulate(config, "lora", seq=64, attention="eager").total


# --- the estimate as students meet it ------------------------------------------------------------


def test_total_is_the_sum_and_the_table_shows_every_component():
    for method in memory.METHODS:
        found = memory.estimate("smollm2-135m", method, batch=8, seq=64)
        assert found.total == sum(found.components.values())
        html = found._repr_html_()
        for name, size in found.components.items():
            assert (memory.LABELS[name] in html) == (size > 0)
        assert "GiB" in html and "GiB" in repr(found)


def test_dtypes_of_unquantised_parts_adapters_and_compute_are_separate():
    cpu = memory.estimate("smollm2-135m", "qlora", dtype="fp32", adapter_dtype="fp32", seq=64)
    bf16 = dict(dtype=torch.bfloat16, adapter_dtype="bf16")
    gpu = memory.estimate("smollm2-135m", "qlora", **bf16, seq=64)
    for part, ratio in (("weights", 2), ("adapters", 2), ("weights_4bit", 1)):
        assert cpu.held[part] == ratio * gpu.held[part]
    assert cpu.trainable == gpu.trainable == 2_442_240
    mixed = memory.estimate("smollm2-135m", "qlora", dtype="fp32", autocast=True, seq=2048)
    plain = memory.estimate("smollm2-135m", "qlora", dtype="fp32", seq=2048)
    assert mixed.static == cpu.static and mixed.total < plain.total


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: memory.estimate("lama-2-7b", "lora"), "llama-2-7b"),
        (lambda: memory.estimate("gpt2", "qlorra"), "qlora"),
        (lambda: memory.estimate("gpt2", "lora", optimizer="adam"), "adamw"),
        (lambda: memory.estimate("gpt2", "lora", dtype="float32"), "fp32"),
        (lambda: memory.estimate("gpt2", "lora", loss="none"), "trainer"),
        (lambda: memory.estimate("gpt2", "lora", targets=["q_proj"]), "c_attn"),
        (lambda: memory.estimate("gpt2", "lora", rnak=8), "rank"),
        (lambda: memory.estimate("gpt2", "lora", rank=0), "1 or more"),
        (lambda: memory.estimate("gpt2", "lora", dropout=1.5), "below 1"),
        (lambda: memory.estimate("gpt2", "lora", optimizer="paged_adamw"), "paged_adamw_8bit"),
        (lambda: memory.estimate("gpt2", "lora", rank=1024), "768"),
        (lambda: memory.estimate("llama-3.2-1b", "lora", rank=1024), "512"),
        (lambda: memory.estimate("gpt2", seq=2048), "1024"),
        (lambda: memory.estimate("gpt2", "lora", targets=["lm_head"], loss="trl"), "lm_head"),
        (lambda: memory.estimate("gemma-2-2b", attention="sdpa-flash"), "eager"),
        (lambda: memory.estimate("llama-2-7b", dtype="fp32", attention="sdpa-flash"), "fp32"),
        (lambda: memory.simulate("gpt2", "full", master_weights=True), "autocast"),
    ],
)
def test_bad_input_names_what_would_be_right(call, said):
    with pytest.raises(CourseError, match=said):
        call()
