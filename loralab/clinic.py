"""Small patients for chapter 07's clinic: real classes of transformers, PEFT and TRL, tiny weights.

Nothing here needs the base model, a network or a GPU; a training run takes seconds. What is drawn
depends on a seed alone, so that a patient can be made again elsewhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loralab import low_rank
from loralab.quiet import quiet

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED = -100  # the label on which no loss is taken
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FP16_MAX = 65504
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


@lru_cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 259 tokens with ChatML's template (SmolLM2's, without its system
    message). As in many chat models, the padding token is the end-of-turn token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    names = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=special[0], eos_token=special[2], pad_token=special[2],
        additional_special_tokens=special,
    )  # fmt: skip
    found.chat_template = TEMPLATE
    return found


def tiny_llama(seed: str = "base", **sizes: int) -> LlamaForCausalLM:
    """A Llama with random weights that `tokenizer` fits; `sizes`: settings of its configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer()), num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=True, initializer_range=0.15, bos_token_id=0, eos_token_id=2,
        pad_token_id=2, **{**SIZES, **sizes},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(low_rank.number(seed))
        return LlamaForCausalLM(config).eval()


# --- what a model is trained on, and what it is asked --------------------------------------------


def asked(question: str) -> str:
    """The text that a chat application sends to the model for this question."""
    turns = [{"role": "user", "content": question}]
    return tokenizer().apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def prepared(rows: Sequence[Mapping[str, Any]]) -> list[tuple[list[int], list[int]]]:
    """(tokens, labels) of each row, as TRL's SFTTrainer prepares it for training."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = SFTTrainer(
            model=tiny_llama(num_hidden_layers=1),
            args=SFTConfig(output_dir=folder, use_cpu=True, bf16=False, report_to="none",
                           per_device_train_batch_size=1, max_length=None),
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=tokenizer(),
        )  # fmt: skip
        found = []
        for row in trainer.train_dataset:
            batch = trainer.data_collator([row])
            found.append((batch["input_ids"][0].tolist(), batch["labels"][0].tolist()))
    return found


def marked(tokens: Iterable[int], labels: Iterable[int]) -> str:
    """The text of some tokens; where the loss is taken it stands between » and «."""
    parts, inside = [""], False
    for token, label in zip(tokens, labels, strict=True):
        learnt = int(label) != IGNORED
        if learnt != inside:
            parts.append("»" if learnt else "«")
            inside = learnt
        parts.append(tokenizer().decode([int(token)]))
    return "".join([*parts, "«" if inside else ""])


def padded(pairs: Sequence[tuple[str, str]], side: str = "right") -> dict[str, torch.Tensor]:
    """A batch of (prompt, answer), each answer with its end token: input_ids and attention_mask
    (batch, length), padded on that side, and prompt_lengths (batch,), in tokens."""
    encode = tokenizer().encode
    prompts = [encode(prompt) for prompt, _ in pairs]
    rows = [prompt + encode(answer) + [tokenizer().eos_token_id]
            for prompt, (_, answer) in zip(prompts, pairs, strict=True)]  # fmt: skip
    length = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        gap, ones = length - len(row), [1] * len(row)
        padding = [tokenizer().pad_token_id] * gap
        ids.append(row + padding if side == "right" else padding + row)
        mask.append(ones + [0] * gap if side == "right" else [0] * gap + ones)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "prompt_lengths": torch.tensor([len(prompt) for prompt in prompts]),
    }


# --- a run of a few seconds ----------------------------------------------------------------------


def train(
    model: torch.nn.Module, rate: float, steps: int = 40, seed: str = "data",
    schedule: str = "linear",
) -> list[float]:  # fmt: skip
    """Train what requires a gradient on answers to sums, with AdamW; the loss at each step.

    The sums are learnt as far as the form of an answer goes, which is what adapters of a random
    base can learn. `schedule`: of the learning rate, by transformers' name.
    """
    from transformers import get_scheduler

    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    decay = get_scheduler(schedule, optimizer, num_warmup_steps=2, num_training_steps=steps)
    numbers = (torch.rand(steps, 8, 2, generator=_generator(seed)) * 90 + 10).long()
    losses = []
    for sums in numbers.tolist():
        batch = padded([(f"{a} + {b} =", f" {a + b:03d}") for a, b in sums])
        places = torch.arange(batch["input_ids"].shape[1])
        labels = torch.where(places < batch["prompt_lengths"][:, None], IGNORED, batch["input_ids"])
        loss = model(input_ids=batch["input_ids"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        decay.step()
        losses.append(loss.item())
    return losses


def _generator(seed: str) -> torch.Generator:
    return torch.Generator().manual_seed(low_rank.number(seed))


# --- numbers for claims --------------------------------------------------------------------------


def with_outliers(seed: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (128, 256), and inputs (12, 256) that fp16 holds, a few of them far larger than the
    rest, as in real models. No output lies within 1 % of the end of fp16."""
    weights = 0.05 * low_rank.normal(f"{seed} weights", 128, 256)
    for attempt in range(1000):
        x = 100 * low_rank.normal(f"{seed} inputs {attempt}", 12, 256)
        x[::4] = (700 * x[::4]).clamp(-60000, 60000)
        outputs = (x.double() @ weights.double().T).abs()
        over = (outputs > FP16_MAX).sum().item()
        if 0 < over < outputs.numel() / 2 and ((outputs / FP16_MAX - 1).abs() > 0.01).all():
            return weights, x
    raise ValueError(f"no such inputs for {seed!r}")


def small_update(seed: str, size: float = 0.01) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (64, 128) as NF4 gives them back, and an update of rank 4, `size` times as large."""
    import bitsandbytes as bnb

    plain = 0.05 * low_rank.normal(f"{seed} W", 64, 128)
    codes, state = bnb.functional.quantize_4bit(plain, quant_type="nf4")
    weights = bnb.functional.dequantize_4bit(codes, state)
    update = low_rank.normal(f"{seed} B", 64, 4) @ low_rank.normal(f"{seed} A", 4, 128)
    return weights, size * update * weights.norm() / update.norm()


# --- a base and an adapter in folders ------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A base and an adapter for it, drawn from a seed. The update is one per cent of each weight.

    `base` and `adapter` are folders, as `from_pretrained` takes them; made at first use.
    """

    seed: str
    r: int = 4
    lora_alpha: int = 8
    layers: int = 2

    @property
    def base(self) -> str:
        return _base_folder(self.seed, self.layers)

    @property
    def adapter(self) -> str:
        return _adapter_folder(self)

    def model(self) -> LlamaForCausalLM:
        """The base, in fp32."""
        return tiny_llama(self.seed, num_hidden_layers=self.layers)

    def wrapped(self) -> Any:
        """The base with the adapter, not merged."""
        from peft import LoraConfig, get_peft_model

        model = self.model()
        config = LoraConfig(r=self.r, lora_alpha=self.lora_alpha, target_modules="all-linear")
        wrapped = get_peft_model(model, config).eval()
        for path, layer in wrapped.named_modules():
            if hasattr(layer, "lora_A"):
                A, B = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
                A.copy_(low_rank.normal(f"{self.seed} {path} A", *A.shape))
                B.copy_(low_rank.normal(f"{self.seed} {path} B", *B.shape))
                B.mul_(0.01 * layer.weight.norm() / layer.get_delta_weight("default").norm())
        return wrapped

    def logits(self, model: Any) -> torch.Tensor:
        """(tokens, vocabulary) logits of a model on a fixed sentence."""
        tokens = torch.tensor([tokenizer().encode("12 + 30 = 042")], device=model.device)
        with torch.no_grad():
            return model(tokens).logits[0].float().cpu()

    def four_bit_logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of the base in NF4: with the adapter beside it, not merged, and without."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        from loralab import four_bit, training

        model = AutoModelForCausalLM.from_pretrained(
            self.base, quantization_config=training.nf4_config())
        four_bit.keep_weights_intact(model)
        base = self.logits(model)
        return self.logits(PeftModel.from_pretrained(model, self.adapter)), base

    def error(self, model: Any) -> float:
        """How far a model's logits are from those of the base in NF4 with the adapter beside it,
        in per cent of what the adapter does to them."""
        trained, base = self.four_bit_logits()
        return (100 * (self.logits(model) - trained).norm() / (trained - base).norm()).item()

    def updates(self) -> dict[str, torch.Tensor]:
        """The update of each weight, by its layer's path: (α/r) · B A."""
        return {
            path.removeprefix("base_model.model."): layer.get_delta_weight("default").detach()
            for path, layer in self.wrapped().named_modules() if hasattr(layer, "lora_A")
        }  # fmt: skip


@lru_cache(maxsize=8)
def _base_folder(seed: str, layers: int) -> str:
    folder = Path(_scratch(), f"base-{low_rank.number(seed):x}-{layers}")
    with quiet():
        tiny_llama(seed, num_hidden_layers=layers).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return str(folder)


@lru_cache(maxsize=8)
def _adapter_folder(patient: Trained) -> str:
    folder = Path(_scratch(), f"adapter-{low_rank.number(repr(patient)):x}")
    with quiet():
        patient.wrapped().save_pretrained(folder)
    return str(folder)


_kept: list[tempfile.TemporaryDirectory] = []


def _scratch() -> str:
    """A folder for as long as this process runs."""
    if not _kept:
        _kept.append(tempfile.TemporaryDirectory(prefix="clinic-"))
    return _kept[0].name
