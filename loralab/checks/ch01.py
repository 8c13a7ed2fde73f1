"""Chapter 01, memory maths: the visible checks, and one symptom for each typical wrong answer.

Every expected number comes from something counted: a torch tensor, a model after a real step, a
PEFT model, bitsandbytes' 4-bit layers. The formulas of `loralab.memory` are used only where a 7B
model would have to be built, and tests hold those against counted models to the byte.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import nn

from loralab import measure, memory
from loralab.checks import (
    Exercise,
    Symptom,
    as_number,
    as_truth,
    as_whole,
    kind_of,
    shortened,
)  # fmt: skip
from loralab.errors import CourseError

GPU_SIZES = (8, 16, 24, 40, 80)  # GiB
OPTIONS = tuple((method, ck) for method in memory.METHODS for ck in (False, True))
LESSON = {"full": 56e9, "lora": 16e9, "qlora": 6e9}  # bytes

EXERCISES = {
    "weight_bytes": Exercise(
        "weight_bytes",
        "1.1",
        hints=(
            "What does the name of a dtype count: bits or bytes? `torch.float32` has 32 of them.",
            "A torch dtype knows its own size: look at `torch.bfloat16.itemsize`.",
        ),
        symptoms={
            "bits": Symptom(
                "Eight times too much: those are bits.",
                "The 32 in `float32` counts bits. How many of them make a byte?",
            ),
            "one_size": Symptom(
                "The same for every dtype.",
                "Your result does not change when the dtype does. Which argument is not used?",
            ),
            "gib": Symptom(
                "7 % off, always: that is GiB against GB.",
                "A GB is a power of ten, a GiB a power of two. Which is larger, and so which "
                "number of units is smaller?",
            ),
            "thousand": Symptom(
                "A thousand times off: check the prefix.",
                "Kilo, mega, giga: each step is a factor of 10³ (or 2¹⁰). Giga is the third.",
            ),
        },
    ),
    "training_state_bytes": Exercise(
        "training_state_bytes",
        "1.2",
        hints=(
            "Make a list of everything that exists for *one* parameter while it is trained, with "
            "its dtype. What does each item cost?",
            "For mixed precision there are five items. Two of them are copies of the same weight.",
        ),
        symptoms={
            "weights": Symptom(
                "The weights themselves are missing.",
                "Gradients are as large as the weights and Adam's two moments twice as large. "
                "That is three times the weights, *beside* the weights. (If yours are there: Adam "
                "keeps a running mean of the gradient and one of its square, so two moments.)",
            ),
            "master": Symptom(
                "Who keeps the fp32 master copy?",
                "An update is often smaller than bf16 can add to a weight. Mixed precision "
                "therefore updates an fp32 copy, with fp32 moments. Both must be held somewhere.",
            ),
            "working": Symptom(
                "The bf16 copy that the model computes with is missing.",
                "The master copy is what the optimizer updates. The forward pass uses another.",
            ),
            "sgd": Symptom(
                "Plain SGD remembers nothing.",
                "Without momentum the update needs the gradient only. What does that leave?",
            ),
            "fp32_moments": Symptom(
                "In pure bf16 everything is bf16, the moments too.",
                "torch makes the moments in the parameter's own dtype.",
            ),
        },
    ),
    "lora_state_bytes": Exercise(
        "lora_state_bytes",
        "1.3",
        hints=(
            "Which of the four items (weight, gradient, two moments) exists for a frozen "
            "parameter?",
            "Base and adapters have a dtype each. Keep the two sums apart.",
        ),
        symptoms={
            "gradients": Symptom(
                "Frozen parameters have no .grad.",
                "Backward passes *through* the frozen layers to reach the adapters, but stores a "
                "gradient only where `requires_grad` is true.",
            ),
            "everything": Symptom(
                "The optimizer was given the adapters only.",
                "Your number has moments for the frozen base as well.",
            ),
            "adapters": Symptom(
                "The adapters' own weights are missing.",
                "An adapter costs what any trained tensor costs. Its weights count too.",
            ),
            "base": Symptom(
                "The frozen base is still in memory.",
                "Frozen means not trained. The forward pass needs it all the same.",
            ),
            "dtype": Symptom(
                "The adapters are not in the base's dtype here.",
                "The two dtypes are separate arguments. PEFT keeps adapters in fp32 by default.",
            ),
        },
    ),
    "qlora_weight_bytes": Exercise(
        "qlora_weight_bytes",
        "1.4",
        hints=(
            "Start with one layer. How many blocks does it have, and what is stored for each?",
            "Look at the table of constants printed above, with and without double quantisation. "
            "Which sizes grow with the layer, and which never change?",
            "The last block may be incomplete: `math.ceil`.",
        ),
        symptoms={
            "all_4bit": Symptom(
                "The embedding is still 16-bit.",
                "Only linear layers are quantised. Embedding, norms and output head keep their "
                "dtype: `n_rest` parameters of `rest_dtype`.",
            ),
            "absmax": Symptom(
                "absmax is missing: 0.5 bit for each weight, 0.127 with double quantisation.",
                "A 4-bit code says where in its block's range a weight lies. How is the range "
                "itself known?",
            ),
            "double": Symptom(
                "With double quantisation the constants are 8-bit too.",
                "Your number has fp32 constants whatever `double_quant` says.",
            ),
            "nested": Symptom(
                "Who scales the 8-bit constants?",
                "They are quantised in blocks as well, of 256. Each has an absmax in fp32, and "
                "the layer one offset. Look at the printed list for what else comes with them.",
            ),
            "floor": Symptom(
                "Something that is not full is not counted.",
                "`//` rounds down. The last block of a layer may be incomplete, and has its "
                "constant all the same; the last code may have a byte to itself.",
            ),
            "tables": Symptom(
                "A fixed number of bytes is missing in each layer: the lookup tables.",
                "The levels that codes stand for are stored with every layer: 16 in fp32, and "
                "256 more with double quantisation.",
            ),
            "pooled": Symptom(
                "Each layer has constants and tables of its own.",
                "You added up the weights first. Blocks do not run across layers.",
            ),
        },
    ),
    "table_settings": Exercise(
        "table_settings",
        "1.5",
        hints=(
            "Divide 56 GB by 6.74 billion parameters. Which of the sums of exercise 1.2 is that?",
            "LoRA and QLoRA have the same activations. What is left of 16 GB and of 6 GB after "
            "their weights? Turn batch or length up until it is used.",
        ),
        symptoms={
            "sixteen": Symptom(
                "Twice the table's figure: 16 bytes for each parameter.",
                "56 GB is 8 bytes for each of 7 billion parameters. In which dtype is everything?",
            ),
            "low": Symptom(
                "The total is below the table's number.",
                "Weights, gradients and states are there already. What grows with `batch` and "
                "`seq`, and what does checkpointing leave out?",
            ),
            "high": Symptom(
                "The total is above the table's number.",
                "Look at the largest item of the estimate. If it is the activations: fewer tokens, "
                "or checkpointing. If it is weights or states: in which dtype are they?",
            ),
            "two_changes": Symptom(
                "Change one setting at a time.",
                "With two changes you can't say which of them did it. Start from "
                "`dict(holds, one_key=new_value)`.",
            ),
            "no_effect": Symptom(
                "That setting hardly moves the total.",
                "Rank, for one, moves it by a few per cent. What is large: the weights, "
                "or whatever grows with tokens?",
            ),
            "unusual": Symptom(
                "Outside the exercise's range.",
                "Keep to 1 … 64 sequences of 128 … 4096 tokens and ranks of 1 … 64.",
            ),
        },
    ),
    "cheapest_fit": Exercise(
        "cheapest_fit",
        "1.6",
        hints=(
            "Go through `check.OPTIONS` in order and stop at the first that fits.",
            "`memory.estimate(...).total` is what PyTorch allocates. The card must hold more.",
        ),
        symptoms={
            "activations": Symptom(
                "And the activations?",
                "Your choice fits until the first batch arrives. Compare `total`, not the "
                "weights or the static part.",
            ),
            "overhead": Symptom(
                "Nothing is left for the allocator and the CUDA context.",
                "The card needs 1.1 × the allocated bytes, and 1 GiB.",
            ),
            "decimal": Symptom(
                "A card's “16 GB” are GiB.",
                "Memory chips come in powers of two. You counted in 10⁹.",
            ),
            "last": Symptom(
                "An option with fewer compromises fits too.",
                "`check.OPTIONS` begins with the fewest compromises. Return the first that fits.",
            ),
            "none": Symptom(
                "Nothing fits here.",
                "If no option fits, the answer is `None`.",
            ),
        },
    ),
}

Typical = Iterable[tuple[str, float]]


def _expect(exercise: Exercise, case: str, got: object, expected: float, typical: Typical) -> None:
    """`expect_number`, where several numbers may stand for one symptom; the first match counts."""
    named = {}
    for key, value in typical:
        if not math.isclose(value, expected, rel_tol=1e-9):
            named.setdefault(value, key)
    number = as_number(got)
    near = [value for value in named
            if number is not None and math.isclose(number, value, rel_tol=1e-9)]
    exercise.expect_number(case, got, expected, {named[v]: v for v in near[:1]})


# --- 1.1 -----------------------------------------------------------------------------------------


Convert = Callable[[float], float]


def weight_bytes(
    answer: Callable[[int, torch.dtype], float], in_gb: Convert, in_gib: Convert
) -> None:
    """Bytes of weights by dtype against torch's own tensors; GB and GiB."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float64)
    compare_weight_bytes(answer, [(n, dtype) for n in (1000, 7_000_000_000) for dtype in dtypes])
    for name, convert in (("in_gb", in_gb), ("in_gib", in_gib)):
        compare_conversion(name, convert, (28_000_000_000, 2**34))
    EXERCISES["weight_bytes"].passed("seven billion parameters: 28 GB in fp32, which is 26.1 GiB")


def compare_weight_bytes(
    answer: Callable[[int, torch.dtype], float], cases: Iterable[tuple[int, torch.dtype]]
) -> None:
    """Cases: (parameters, dtype)."""
    for n, dtype in cases:
        expected = torch.empty(1000, dtype=dtype).nbytes // 1000 * n
        case = f"weight_bytes({n:_}, {dtype})"
        typical = [("bits", 8 * expected), *(("one_size", b * n) for b in (1, 2, 4, 8))]
        _expect(EXERCISES["weight_bytes"], case, answer(n, dtype), expected, typical)


def compare_conversion(name: str, convert: Convert, sizes: Iterable[float]) -> None:
    """`name`: "in_gb" or "in_gib". Sizes: bytes."""
    for size in sizes:
        right, wrong = size / 10**9, size / 2**30
        if name == "in_gib":
            right, wrong = wrong, right
        typical = [("gib", wrong), *(("thousand", size / 10**k) for k in (3, 6, 12))]
        typical += [("thousand", size / 2**k) for k in (10, 20, 40)]
        _expect(EXERCISES["weight_bytes"], f"{name}({size:_})", convert(size), right, typical)


# --- 1.2 -----------------------------------------------------------------------------------------


@lru_cache
def _counted_step(precision: str, optimizer: str) -> tuple[int, int]:
    """(parameters, bytes held) of a small network after one real step, step counters left out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    model = model.to(torch.float32 if precision == "fp32" else torch.bfloat16)
    trained = list(model.parameters())
    if precision == "mixed":
        trained = [nn.Parameter(p.detach().float()) for p in model.parameters()]
    make = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    stepper = make(trained, lr=1e-3)
    model(torch.randn(4, 64, dtype=next(model.parameters()).dtype)).sum().backward()
    tensors = [*model.parameters(), *(p.grad for p in model.parameters())]
    if precision == "mixed":
        # The optimizer sees each gradient in fp32 only while it updates that tensor.
        for master, working in zip(trained, model.parameters()):
            master.grad = working.grad.float()
        tensors += trained
    stepper.step()
    states = chain.from_iterable(s.items() for s in stepper.state.values())
    tensors += [value for name, value in states if torch.is_tensor(value) and name != "step"]
    return sum(p.numel() for p in model.parameters()), sum(t.nbytes for t in tensors)


STATES = tuple((p, o) for p in ("fp32", "bf16", "mixed") for o in ("adamw", "sgd"))


def training_state_bytes(answer: Callable[[int, str, str], float]) -> None:
    """Bytes of full fine-tuning without activations, against counted steps."""
    compare_training_state_bytes(answer, [
        (n, precision, optimizer)
        for precision, optimizer in STATES
        for n in (_counted_step(precision, optimizer)[0], 7_000_000_000)
    ])  # fmt: skip
    EXERCISES["training_state_bytes"].passed(
        "7B: 112 GB in fp32, 56 GB in bf16, 112 GB in mixed precision")


def compare_training_state_bytes(
    answer: Callable[[int, str, str], float], cases: Iterable[tuple[int, str, str]]
) -> None:
    """Cases: (parameters, precision, optimizer)."""
    exercise = EXERCISES["training_state_bytes"]
    for n, precision, optimizer in cases:
        counted_n, counted = _counted_step(precision, optimizer)
        expected = counted * n // counted_n
        b = 4 if precision == "fp32" else 2
        adam = optimizer == "adamw"
        wrong: list[tuple[str, float]] = []
        if precision == "mixed":
            wrong += [("master", k * n) for k in ((8, 12) if adam else (4,))]
            wrong += [("working", expected - 2 * n)]
        else:
            wrong += [("weights", expected - b * n)]
        if adam and precision == "bf16":
            wrong += [("fp32_moments", (2 + 2 + 8) * n), ("fp32_moments", 16 * n)]
        if not adam:
            wrong += [("sgd", expected + k * n) for k in (b, 2 * b, 4, 8)]
        case = f'training_state_bytes({n:_}, "{precision}", "{optimizer}")'
        _expect(exercise, case, answer(n, precision, optimizer), expected, wrong)


# --- 1.3 -----------------------------------------------------------------------------------------


@lru_cache
def _counted_lora(base: torch.dtype, adapter: torch.dtype) -> tuple[int, int, int]:
    """(base parameters, adapter parameters, bytes held) of a PEFT model after one real step."""
    from transformers import LlamaConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2,
        )  # fmt: skip
        model = memory.build(config, device="cpu", dtype=base)
        n_base = sum(p.numel() for p in model.parameters())
        lora = LoraConfig(r=2, target_modules="all-linear")
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.data = parameter.data.to(adapter)
        stepper = torch.optim.AdamW(trained, lr=1e-3)
        tokens = torch.randint(64, (1, 8))
        model(input_ids=tokens, labels=tokens).loss.backward()
        stepper.step()
    step_counters = 4 * len(trained)
    held = sum(measure.held(model, stepper).values()) - step_counters
    return n_base, sum(p.numel() for p in trained), held


LoraState = Callable[[int, int, torch.dtype, torch.dtype], float]


def lora_state_bytes(answer: LoraState) -> None:
    """Bytes of LoRA training without activations, against PEFT models after a step."""
    dtypes = (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    )
    compare_lora_state_bytes(answer, [
        (n_base, n_adapter, base, adapter)
        for base, adapter in dtypes
        for n_base, n_adapter in (_counted_lora(base, adapter)[:2], (7_000_000_000, 20_000_000))
    ])  # fmt: skip
    EXERCISES["lora_state_bytes"].passed(
        "7B with 20 million fp32 adapter parameters: 14.3 GB, of which 14 are the base")


def compare_lora_state_bytes(
    answer: LoraState, cases: Iterable[tuple[int, int, torch.dtype, torch.dtype]]
) -> None:
    """Cases: (frozen parameters, adapter parameters, dtype of the base, of the adapters)."""
    for nb, na, base, adapter in cases:
        n_base, n_adapter, counted = _counted_lora(base, adapter)
        # What one adapter parameter costs, counted.
        each = (counted - n_base * base.itemsize) // n_adapter
        expected = nb * base.itemsize + na * each
        a, b = na * adapter.itemsize, nb * base.itemsize
        wrong = [
            ("dtype", b + 4 * na * base.itemsize),
            ("dtype", (nb + 4 * na) * adapter.itemsize),
            ("gradients", expected + b),
            ("gradients", expected + nb * adapter.itemsize),
            ("everything", 4 * b + 4 * a),
            ("everything", b + 3 * nb * adapter.itemsize + 4 * a),
            ("everything", b + 2 * nb * adapter.itemsize + 4 * a),
            ("everything", 3 * b + 4 * a),
            ("adapters", b + 3 * a),
            ("base", 4 * a),
        ]
        case = f"lora_state_bytes({nb:_}, {na:_}, {base}, {adapter})"
        _expect(EXERCISES["lora_state_bytes"], case, answer(nb, na, base, adapter), expected, wrong)


# --- 1.4 -----------------------------------------------------------------------------------------


class Quantised(NamedTuple):
    """A model to be quantised: weights of each linear layer, the rest, and what it takes up."""

    sizes: tuple[int, ...]
    n_rest: int
    rest_dtype: torch.dtype
    double_quant: bool
    n_bytes: int
    said: str = ""  # in place of the sizes

    @classmethod
    def counted(
        cls, shapes: Iterable[tuple[int, int]], n_rest: int, dtype: torch.dtype, double: bool
    ) -> Quantised:
        """With bitsandbytes' own layers of these (in, out) shapes, counted."""
        shapes = tuple(shapes)
        held = _counted_nf4(shapes, double) + n_rest * dtype.itemsize
        return cls(tuple(i * o for i, o in shapes), n_rest, dtype, double, held)

    @classmethod
    def computed(
        cls, sizes: Iterable[int], n_rest: int, dtype: torch.dtype, double: bool, said: str = ""
    ) -> Quantised:
        """By the formula, for models too large to be quantised here."""
        sizes = tuple(sizes)
        held = sum(sum(memory.nf4_bytes(size, double_quant=double)) for size in sizes)
        return cls(sizes, n_rest, dtype, double, held + n_rest * dtype.itemsize, said)


@lru_cache
def _counted_nf4(shapes: tuple[tuple[int, int], ...], double_quant: bool) -> int:
    """Bytes of bitsandbytes' own 4-bit layers of these (in, out) shapes, constants included."""
    import bitsandbytes as bnb

    torch.manual_seed(0)
    layers = nn.ModuleList(
        bnb.nn.Linear4bit(i, o, bias=False, quant_type="nf4", compress_statistics=double_quant)
        for i, o in shapes
    ).to("cpu")
    return sum(measure.held(layers).values())


def _nf4_wrong(
    sizes: Sequence[int], n_rest: int, itemsize: int, double: bool, right: int
) -> Typical:
    """What each typical mistake gives."""
    n, layers = sum(sizes), len(sizes)
    codes = [math.ceil(s / 2) for s in sizes]
    blocks = [math.ceil(s / 64) for s in sizes]
    single = sum(memory.nf4_bytes(s, double_quant=False)[1] for s in sizes)
    double_ = sum(memory.nf4_bytes(s, double_quant=True)[1] for s in sizes)
    constants, table = (double_, 64 + 1024) if double else (single, 64)
    rest = n_rest * itemsize
    nested = sum(math.ceil(k / 256) * 4 for k in blocks)
    yield from (("all_4bit", (n + n_rest) / 2), ("all_4bit", math.ceil((n + n_rest) / 2)))
    yield from (("all_4bit", right - rest + x) for x in (0, n_rest / 2, math.ceil(n_rest / 2)))
    pooled = sum(memory.nf4_bytes(n + n_rest, double_quant=double))
    yield "all_4bit", pooled
    yield from (("absmax", sum(codes) + rest), ("absmax", sum(codes) + rest + layers * table))
    if double:
        yield "double", sum(codes) + single + rest
        yield "double", sum(codes) + 4 * sum(blocks) + rest
        yield from (("nested", right - x) for x in (nested, 4 * layers, nested + 4 * layers))
        bare = right - layers * table
        yield from (("nested", bare - x) for x in (nested, 4 * layers, nested + 4 * layers))
        # Nor the table of the second level.
        yield "nested", right - nested - (4 + 1024) * layers
    # Rounded down: the bytes of codes, the blocks, the blocks of constants; one of them or more.
    for code, block, outer in itertools.product((math.ceil, math.floor), repeat=3):
        blocks_ = [block(s / 64) for s in sizes]
        per_block = sum(blocks_) + sum(4 * outer(k / 256) + 4 for k in blocks_)
        per_block = per_block if double else 4 * sum(blocks_)
        yield "floor", sum(code(s / 2) for s in sizes) + per_block + layers * table + rest
    yield "tables", right - layers * table
    if double:
        yield from (("tables", right - layers * x) for x in (64, 1024))
    yield "pooled", sum(memory.nf4_bytes(n, double_quant=double)) + rest
    yield "pooled", right - (layers - 1) * table


QloraWeights = Callable[[list[int], int, torch.dtype, bool], float]


def qlora_weight_bytes(answer: QloraWeights) -> None:
    """Bytes of a quantised model's weights, against bitsandbytes' layers on the CPU."""
    shapes = ((64, 96), (101, 37), (256, 320))
    arch = memory.describe("llama-2-7b")
    big = [layer.weights for layer in arch.linear]
    cases = []
    for double in (False, True):
        cases += [Quantised.counted(shapes, 5000, dtype, double)
                  for dtype in (torch.bfloat16, torch.float32)]
        cases += [Quantised.computed(big, arch.rest, torch.bfloat16, double, "<Llama-2-7B>")]
    compare_qlora_weight_bytes(answer, cases)
    EXERCISES["qlora_weight_bytes"].passed(
        f"Llama-2-7B with double quantisation: {cases[-1].n_bytes / 1e9:.2f} GB, to the byte")


def compare_qlora_weight_bytes(answer: QloraWeights, cases: Iterable[Quantised]) -> None:
    """Raise WrongAnswer at the first model whose bytes `answer` gets wrong."""
    for sizes, n_rest, dtype, double, expected, said in cases:
        case = (f"qlora_weight_bytes({said or list(sizes)}, {n_rest}, {dtype}, "
                f"double_quant={double})")
        wrong = _nf4_wrong(sizes, n_rest, dtype.itemsize, double, expected)
        got = answer(list(sizes), n_rest, dtype, double)
        _expect(EXERCISES["qlora_weight_bytes"], case, got, expected, wrong)


# --- 1.5 -----------------------------------------------------------------------------------------

RANGES = {"batch": (1, 64), "seq": (128, 4096), "rank": (1, 64)}


NUMBERS = tuple(RANGES)
SWITCHES = ("checkpointing", "double_quant", "master_weights", "autocast", "kbit_prep")
DTYPES = ("dtype", "adapter_dtype", "compute_dtype")
MOST_TARGETS = 64  # names of layers; no architecture has more kinds


def table_settings(answer: Callable[[], dict[str, tuple[dict, dict]]]) -> None:
    """Settings under which 56 / 16 / 6 GB hold, and one change that breaks each."""
    exercise = EXERCISES["table_settings"]
    given = answer()
    if not hasattr(given, "keys") or set(given) != set(LESSON):
        gave = "" if hasattr(given, "keys") else f"; it gave {kind_of(given)}"
        raise exercise.wrong(
            f'The answer needs the keys "full", "lora" and "qlora", no others{gave}.')
    for method in LESSON:
        compare_settings(method, given[method])
    exercise.passed("three numbers, each with the settings it holds under")


def compare_settings(method: str, given: Any) -> None:
    """`given`: (settings under which the lesson's figure for `method` holds, a change of one)."""
    exercise, target = EXERCISES["table_settings"], LESSON[method]
    pair = given if isinstance(given, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(settings, Mapping) for settings in pair):
        raise exercise.wrong(f'"{method}" needs two dicts: (holds, breaks).')
    holds, breaks = ({key: _setting(method, key, value) for key, value in settings.items()}
                     for settings in pair)
    totals = []
    for settings in (holds, breaks):
        for name, (low, high) in RANGES.items():
            if not low <= settings.get(name, low) <= high:
                raise exercise.wrong(f"{method}: {name}={settings[name]}.", "unusual")
        try:
            totals.append(memory.estimate("llama-2-7b", method, **settings).total)
        except (CourseError, TypeError) as error:
            said = str(error).split("estimate() ")[-1]
            raise exercise.wrong(f"{method}: {said}") from None
    if not math.isclose(totals[0], target, rel_tol=0.10):
        found, wanted = f"{totals[0] / 1e9:.1f} GB", f"{target / 1e9:.0f} GB"
        which = "low" if totals[0] < target else "high"
        said = f"{method}: {found} is not within 10 % of {wanted}, it is too {which}."
        twice = method == "full" and math.isclose(totals[0], 2 * target, rel_tol=0.10)
        raise exercise.wrong(said, "sixteen" if twice else which)
    changed = _changed(holds, breaks)
    if len(changed) != 1:
        said = ", ".join(sorted(changed)) or "nothing"
        raise exercise.wrong(f"{method}: you changed {said}.", "two_changes")
    if abs(totals[1] / totals[0] - 1) < 0.25:
        moved = f"{totals[0] / 1e9:.1f} GB to {totals[1] / 1e9:.1f} GB"
        said = f"{method}: {changed.pop()} moves {moved}."
        raise exercise.wrong(said, "no_effect")


def _setting(method: str, name: Any, given: Any) -> Any:
    """One setting in the form that `memory.estimate` takes; a dtype may be a torch dtype's name."""
    found: Any = None
    if name in NUMBERS:
        found = as_whole(given)
    elif name in SWITCHES:
        found = as_truth(given)
        if found is None and as_number(given) in (0, 1):
            found = bool(given)
    elif name in DTYPES:
        text = str(given).removeprefix("torch.") if isinstance(given, str | torch.dtype) else ""
        found = getattr(torch, text, None) or memory.DTYPES.get(text)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            found = None
        if given is None and name == "compute_dtype":
            return None
    elif name == "targets":
        if isinstance(given, str):
            return given
        names = tuple(given) if isinstance(given, list | tuple | set | frozenset) else ()
        if 0 < len(names) <= MOST_TARGETS and all(isinstance(one, str) for one in names):
            found = names
    elif isinstance(given, str):
        found = given
    elif isinstance(name, str):
        # No setting of that name takes anything else; memory.estimate says so.
        found = shortened(given)
    if found is None:
        raise EXERCISES["table_settings"].wrong(
            f"{method}: {shortened(name)} can't be {shortened(given)}.",
            "unusual" if name in NUMBERS else None,
        )
    return found


def _changed(one: dict, other: dict) -> set[str]:
    """The names of the settings that differ, with defaults filled in."""
    import inspect

    signature = inspect.signature(memory.settings)
    default = {name: p.default for name, p in signature.parameters.items()}
    default |= {"dtype": torch.bfloat16, "adapter_dtype": torch.float32, "autocast": False}
    return {
        name
        for name in one.keys() | other.keys()
        if one.get(name, default[name]) != other.get(name, default[name])
    }


# --- 1.6 -----------------------------------------------------------------------------------------


Choice = tuple[str, bool] | None
Case = tuple[int, str, int, int]  # GiB of the card, model, batch, sequence length


def _first(
    gpu_bytes: float, needs: Callable[[memory.Estimate], float], model: str, batch: int, seq: int
) -> Choice:
    for method, ck in OPTIONS:
        if needs(fit_estimate(model, method, batch, seq, ck)) <= gpu_bytes:
            return method, ck
    return None


@lru_cache(maxsize=4096)
def fit_estimate(model: str, method: str, batch: int, seq: int, ck: bool) -> memory.Estimate:
    """What one option needs, other settings at their defaults."""
    return memory.estimate(model, method, batch=batch, seq=seq, checkpointing=ck)


def _weights(e: memory.Estimate) -> float:
    return sum(e.held[part] for part in ("weights", "weights_4bit", "constants", "adapters"))


def choices(gpu: int, model: str, batch: int, seq: int) -> dict[str, tuple[Choice, ...]]:
    """What is chosen in this case: "right", and by each shortcut, under its symptom's key."""
    where, card = (model, batch, seq), gpu * memory.GiB
    return {
        "right": (_first(card, lambda e: memory.on_card(e.total), *where),),
        "activations": (
            _first(card, _weights, *where),
            _first(card, lambda e: memory.on_card(_weights(e)), *where),
            _first(card, lambda e: e.static, *where),
            _first(card, lambda e: memory.on_card(e.static), *where),
        ),
        "overhead": (
            _first(card, lambda e: e.total, *where),
            _first(card, lambda e: 1.1 * e.total, *where),
            _first(card, lambda e: e.total + memory.GiB, *where),
        ),
        "decimal": (_first(gpu * memory.GB, lambda e: memory.on_card(e.total), *where),),
    }


def cheapest_fit(answer: Callable[[int, str, int, int], Choice]) -> None:
    """The first option that fits, for cases in which each shortcut picks another."""
    compare_cheapest_fit(answer, [
        (8, "smollm2-135m", 1, 512),
        (24, "llama-2-7b", 1, 512),
        (24, "llama-2-7b", 4, 1024),
        (16, "llama-2-7b", 4, 1024),
        (16, "llama-2-7b", 1, 512),
        (8, "llama-2-13b", 4, 1024),
        (8, "llama-2-7b", 4, 1024),
        (80, "llama-3.1-8b", 4, 1024),
        (24, "llama-2-13b", 8, 2048),
    ])  # fmt: skip
    EXERCISES["cheapest_fit"].passed("activations, allocator and context included")


def compare_cheapest_fit(
    answer: Callable[[int, str, int, int], Choice], cases: Iterable[Case]
) -> None:
    """Raise WrongAnswer at the first case in which `answer` does not choose the cheapest fit."""
    exercise = EXERCISES["cheapest_fit"]
    for gpu, model, batch, seq in cases:
        chosen = choices(gpu, model, batch, seq)
        (right,) = chosen.pop("right")
        given = answer(gpu, model, batch, seq)
        case = f'cheapest_fit({gpu}, "{model}", batch={batch}, seq={seq}) gave {shortened(given)}'
        got = None if given is None else _choice(given)
        if got == right and (got is not None or given is None):
            continue
        if given is not None and got is None:
            raise exercise.wrong(f"{case}; expected (method, checkpointing), or None.")
        for key, wrong in chosen.items():
            # Where nothing fits, a shortcut that finds nothing either explains no answer.
            if got in wrong and (right is not None or got is not None):
                raise exercise.wrong(f"{case}.", key)
        if right is None:
            raise exercise.wrong(f"{case}.", "none")
        later = got in OPTIONS[OPTIONS.index(right) :]
        raise exercise.wrong(f"{case}; expected {right}.", "last" if later else None)


def _choice(given: Any) -> Choice:
    """A (method, checkpointing) answer in one form, tuple or list, bool or number; else None."""
    if not isinstance(given, list | tuple) or len(given) != 2:
        return None
    method, checkpointing = given
    truth = as_truth(checkpointing)
    if truth is None and as_number(checkpointing) in (0, 1):
        truth = bool(checkpointing)
    if not isinstance(method, str) or truth is None or (method.lower(), truth) not in OPTIONS:
        return None
    return method.lower(), truth
