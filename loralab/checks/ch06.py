"""Chapter 06, merging and serving: the visible checks, and one symptom for each typical mistake.

A merge is checked weight by weight against W + (α/r)·BA in fp64, with bitsandbytes' own
dequantised W where the base is in 4 bits; codes against a search for the nearest level; bytes
against PEFT's own adapters; a clock against a made-up device whose times are known.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from loralab.checks import Exercise, Symptom, as_number, as_truth, kind_of, shortened
from loralab.low_rank import normal, number
from loralab.quiet import quiet

Z95 = 1.96  # a two-sided 95 % interval of a mean

EXERCISES = {
    "merge_adapter": Exercise(
        "merge_adapter",
        "6.1",
        hints=(
            "What kind of model do you have after `PeftModel.from_pretrained(base, folder)`, and "
            "which of its methods gives the base's own class back?",
            "A 4-bit model has `is_quantized` set, and a method that gives its layers back as "
            "plain ones. When has it to be called: before the adapter is put on, or after?",
            "`.float()` and `.to(dtype)` convert all weights of a plain model. Where in the chain "
            "does each belong, if the sum is to be rounded once?",
        ),
        symptoms={
            "wrapped": Symptom(
                "The adapter still stands beside the weights.",
                "A server that knows no PEFT has to find plain layers. `merge_adapter()` adds the "
                "update but keeps the wrapper; look for the method that also takes it off.",
            ),
            "lost": Symptom(
                "The weights are the base's: the adapter is gone.",
                "`unload()` takes the wrapper off without adding the update first.",
            ),
            "four_bit": Symptom(
                "The layers are still in 4 bits.",
                "Merging into a 4-bit layer stores the sum in 4 bits again. Turn the base's "
                "layers into plain ones first: the model has a method for that.",
            ),
            "early": Symptom(
                "Rounded more than once.",
                "Many weights are not the nearest numbers that the dtype has. The update was "
                "rounded before it was added. Base and adapter in fp32 first, the dtype last.",
            ),
            "dtype": Symptom(
                "The weights have another dtype than the one asked for.",
                "The third argument says what the merged model is to be stored in. Convert last.",
            ),
        },
    ),
    "rank_merges": Exercise(
        "rank_merges",
        "6.2",
        hints=(
            "True counts as 1. What is the mean of a list of them?",
            "Both ways were asked the same sentences. So take the difference sentence by "
            "sentence: 1, 0 or −1. What are its mean and its standard error?",
        ),
        symptoms={
            "order": Symptom(
                "The order is not from best to worst.",
                "Sort by accuracy, the highest first. A name says nothing about its place.",
            ),
            "accuracy": Symptom(
                "An accuracy is wrong.",
                "It is the share of sentences that are right, from 0 to 1.",
            ),
            "any_gap": Symptom(
                "A gap of chance counts as worse.",
                "A few sentences more or less decide nothing. The *interval* of the difference "
                "has to lie on one side of zero. (Is n − 1 under s?)",
            ),
            "unpaired": Symptom(
                "The two intervals are taken apart, or not at all from the differences.",
                "Both ways were tried on the same sentences, so most of the luck is shared. Work "
                "with the list of differences, and with its own standard deviation over √n.",
            ),
            "better": Symptom(
                "A way that is better, or the reference itself, counts as worse.",
                "Only a difference to the *reference's* advantage makes a way worse.",
            ),
            "kind": Symptom(
                "That is not a list of (name, accuracy, worse).",
                "One tuple of three for every way, in a list: text, a number, True or False.",
            ),
        },
    ),
    "moved_codes": Exercise(
        "moved_codes",
        "6.3",
        hints=(
            "Where does weight + update lie, measured in units of its block's absmax?",
            "A weight stands exactly on its level. How far has it to go until another level is "
            "nearer?",
            "`torch.bucketize(x, middles)` counts how many middles between levels lie below x.",
        ),
        symptoms={
            "any_update": Symptom(
                "Every weight with an update counts as moved.",
                "The sum is stored as the nearest level. If that is the level it came from, "
                "nothing of this update is left.",
            ),
            "whole_step": Symptom(
                "The update has to reach the next level.",
                "Rounding goes to the *nearest*. From where on is the next level nearer?",
            ),
            "unscaled": Symptom(
                "The update was not measured in units of the block's absmax.",
                "Levels reach from −1 to 1, weights from −absmax to absmax. Divide the update by "
                "its block's constant before you compare it with levels.",
            ),
            "one_step": Symptom(
                "One step for all levels.",
                "NF4's levels are not equally far apart: close in the middle, wide at the ends. "
                "Each code has its own neighbours.",
            ),
            "direction": Symptom(
                "The direction of the update was not used.",
                "An update downwards has to get past the middle to the level *below*, and the two "
                "gaps of a level differ.",
            ),
            "length": Symptom(
                "There is not one answer for every weight.",
                "True or False for each of the n weights, in their order; the last block may be "
                "incomplete.",
            ),
        },
    ),
    "disk_bytes": Exercise(
        "disk_bytes",
        "6.4",
        hints=(
            "What has to be stored for the second task, in each of the two ways?",
            "An adapter pair on a layer (out, in) is A (r × in) and B (out × r).",
        ),
        symptoms={
            "one_task": Symptom(
                "The number of tasks makes no difference.",
                "Every merged model is a whole model. Every adapter is a file of its own.",
            ),
            "no_base": Symptom(
                "The base is missing.",
                "Adapters alone answer nothing: the model that they stand on is stored too, once.",
            ),
            "many_bases": Symptom(
                "The base is stored once for every adapter.",
                "All adapters stand on the same base. How often is it needed?",
            ),
            "square": Symptom(
                "Right if every layer were square.",
                "A has r · in numbers and B has out · r. The two sides can differ.",
            ),
            "full_update": Symptom(
                "The update is stored as a whole matrix.",
                "That is ΔW. An adapter file holds A and B.",
            ),
            "merged_adapter": Symptom(
                "The merged model has adapters as well.",
                "After the merge A and B are in the weights, and take no byte of their own.",
            ),
            "one_layer": Symptom(
                "Adapters on one layer only.",
                "Every layer in `shapes` has a pair of its own, and they differ in size.",
            ),
            "parameters": Symptom(
                "These are numbers, not bytes.",
                "`dtype.itemsize` is the bytes that one number takes.",
            ),
            "bits": Symptom(
                "These are bits.",
                "A byte has eight. `torch.finfo` counts bits, `dtype.itemsize` bytes.",
            ),
        },
    ),
    "seconds_per_call": Exercise(
        "seconds_per_call",
        "6.5",
        hints=(
            "When does `run()` return on a GPU: when the work is done, or when it is ordered?",
            "Read the clock twice for every timed call. What has to be finished before the first "
            "reading, and what before the second?",
            "One slow call in five moves the mean by a fifth of its delay. Which middle does it "
            "not move?",
        ),
        symptoms={
            "launch": Symptom(
                "You timed the order, not the work.",
                "`run()` only hands the work over. Wait for it before you read the clock again.",
            ),
            "pending": Symptom(
                "Work from before is in your time.",
                "When the clock was first read, the device was still busy with warm-up calls. "
                "Wait for it there, too.",
            ),
            "warm_up": Symptom(
                "The first, slow calls are in your result.",
                "The first calls compile, allocate and fill caches. Make `warm_up` calls that are "
                "not timed.",
            ),
            "mean": Symptom(
                "One slow call moves your result.",
                "Something else ran on the device for a moment. The median does not mind.",
            ),
            "fastest": Symptom(
                "That is one chosen call.",
                "Neither the fastest nor the slowest nor the last is what users will see.",
            ),
            "total": Symptom("That is the time of all calls together.", "One call was asked for."),
        },
    ),
    "combine": Exercise(
        "combine",
        "6.6",
        hints=(
            "Write B as columns and A as rows: B @ A is a sum over r pairs of one column and one "
            "row. Which B and A have the pairs of both adapters?",
            "`torch.cat` joins along an axis. B's columns and A's rows have to stay partners. "
            "The factors may go into one of the two, not into both.",
        ),
        symptoms={
            "cross": Symptom(
                "There are products of one adapter's B with another's A.",
                "(B₁ + B₂)(A₁ + A₂) has four terms, and two of them belong to no adapter. Adding "
                "factors is not adding updates.",
            ),
            "shape": Symptom(
                "Adapters of different ranks do not fit.",
                "Adding factors needs equal ranks. Put them side by side instead.",
            ),
            "scale": Symptom(
                "An adapter's own scale is missing.",
                "What an adapter adds is scale · B A, with its own α/r. The result is used with "
                "the scale 1.",
            ),
            "weight": Symptom(
                "The weights are not in it as they should be.",
                "Each adapter's update counts with its weight once: not never, and not in both "
                "factors. A weight may be negative.",
            ),
            "rank": Symptom(
                "The result has a higher rank than the adapters together.",
                "The sum is right, but it takes as many numbers as a full matrix. r₁ + r₂ pairs "
                "are enough.",
            ),
        },
    ),
}  # fmt: skip

# What matrices that do not fit raise.
MISFITS = (RuntimeError, ValueError, IndexError, TypeError)


def tensor_of(given: Any) -> torch.Tensor | None:
    """`given` as an fp64 tensor where it is an array or a list of numbers, else None."""
    if isinstance(given, torch.Tensor):
        return None if given.is_complex() else given.detach().cpu().double()
    if isinstance(given, Mapping | str | bytes | bool) or given is None:
        return None
    try:
        return torch.as_tensor(given).double()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


# --- 6.1 ------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A small model with an adapter. `stored`: "float32", "bfloat16" or "4-bit"; `dtype`: what the
    merged model is to be in, by torch's name."""

    stored: str
    dtype: str
    r: int = 2
    alpha: float = 6
    width: int = 32
    seed: str = "visible"

    def base(self) -> Any:
        """The base model, as it is stored."""
        from loralab import base_model, training

        with tempfile.TemporaryDirectory() as folder, quiet():
            self._plain().save_pretrained(folder)
            if self.stored == "4-bit":
                config = training.nf4_config()
                config.bnb_4bit_compute_dtype = torch.float32
                return base_model.load(folder, quantization_config=config, dtype=torch.float32)
            return base_model.load(folder, dtype=getattr(torch, self.stored))

    def folder(self) -> str:
        """A folder with the adapter, as PEFT saves one; it lasts as long as the process."""
        return _saved_adapter(self)

    def _plain(self) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=48, hidden_size=self.width, intermediate_size=2 * self.width,
            num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number(self.seed))
            return LlamaForCausalLM(config).to(torch.bfloat16)

    def factors(self, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in) and B (out, r) on the layer of that path, fp32."""
        n_out, n_in = self._shapes()[path]
        A = normal(f"{self.seed} A {path}", self.r, n_in)
        return A, 0.02 * normal(f"{self.seed} B {path}", n_out, self.r)

    def paths(self) -> list[str]:
        """The layers that have an adapter."""
        return list(self._shapes())

    def _shapes(self) -> dict[str, tuple[int, int]]:
        half = self.width // 2
        layer = "model.layers.0."
        return {
            f"{layer}self_attn.q_proj": (self.width, self.width),
            f"{layer}self_attn.v_proj": (half, self.width),
            f"{layer}mlp.down_proj": (self.width, 2 * self.width),
        }


@lru_cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


@lru_cache
def _saved_adapter(case: Case) -> str:
    from safetensors.torch import save_file

    folder = Path(tempfile.mkdtemp(dir=_scratch().name))
    tensors = {}
    for path in case.paths():
        A, B = case.factors(path)
        tensors[f"base_model.model.{path}.lora_A.weight"] = A.bfloat16()
        tensors[f"base_model.model.{path}.lora_B.weight"] = B.bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": case.r, "lora_alpha": case.alpha,
        "target_modules": sorted({path.rpartition(".")[2] for path in case.paths()}),
        "base_model_name_or_path": "small", "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return str(folder)


def model_report(model: Any, case: Sequence[Any]) -> dict[str, Any]:
    """What the check looks at, as data: the class, the layers' classes, and their weights."""
    case = Case(*case)
    found: dict[str, Any] = {"kind": kind_of(model), "layers": {}, "weights": {}}
    if not isinstance(model, torch.nn.Module):
        return found
    found["wrapped"] = any("lora_" in name for name, _ in model.named_modules())
    for path in case.paths():
        module = next((one for name, one in model.named_modules() if name.endswith(path)), None)
        if module is not None:
            found["layers"][path] = type(module).__name__
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor):
                found["weights"][path] = weight.detach()
    return found


@lru_cache
def _right_weights(case: Case) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """For each layer the base's weight and the merged one, fp64, not yet rounded to `dtype`."""
    import bitsandbytes.functional as bnb

    base, found = case.base(), {}
    for path in case.paths():
        weight = base.get_submodule(path).weight
        if case.stored == "4-bit":
            weight = bnb.dequantize_4bit(weight.data, weight.quant_state)
        A, B = (one.bfloat16().double() for one in case.factors(path))
        weight = weight.detach().cpu().double()
        found[path] = weight, weight + case.alpha / case.r * (B @ A)
    return found


def merge_adapter(answer: Callable[..., Any]) -> None:
    """A base in fp32, one in bf16 and one in 4 bits, merged and compared weight by weight."""
    def report(case: Case) -> Any:
        base = case.base()
        with quiet():  # the libraries' remarks on what the answer does
            return model_report(answer(base, case.folder(), getattr(torch, case.dtype)), case)

    compare_merge_adapter(report, [
        Case("float32", "float32"), Case("bfloat16", "bfloat16"), Case("4-bit", "float32"),
        Case("4-bit", "bfloat16"),
    ])  # fmt: skip
    EXERCISES["merge_adapter"].passed("plain layers, every weight rounded once")


def compare_merge_adapter(report: Callable[[Case], Any], cases: Iterable[Case]) -> None:
    """`report` gives the `model_report` of the answer for a case."""
    exercise = EXERCISES["merge_adapter"]
    for case in cases:
        said = f"merge(a base in {case.stored}, folder, torch.{case.dtype})"
        found = report(case)
        found = found if isinstance(found, Mapping) else {}
        layers, weights = found.get("layers"), found.get("weights")
        if not isinstance(layers, Mapping) or not isinstance(weights, Mapping) or not layers:
            kind = found.get("kind")
            kind = shortened(kind).strip("'") if isinstance(kind, str) else "something else"
            raise exercise.wrong(f"{said} should be a model; it gave {kind}.")
        if as_truth(found.get("wrapped")) is not False:
            raise exercise.wrong(f"{said} still holds lora_A and lora_B.", "wrapped")
        if any(isinstance(one, str) and "4bit" in one for one in layers.values()):
            raise exercise.wrong(f"{said} has layers of bitsandbytes' class Linear4bit.",
                                 "four_bit")  # fmt: skip
        for path, (before, right) in _right_weights(case).items():
            given = weights.get(path)
            got = tensor_of(given)
            if got is None or got.shape != right.shape:
                raise exercise.wrong(f"{said}: {path} has no weight of its shape.")
            _expect_weight(said, path, given, got, before, right, case)


def _expect_weight(
    said: str, path: str, given: Any, got: torch.Tensor, before: torch.Tensor,
    right: torch.Tensor, case: Case,
) -> None:  # fmt: skip
    exercise, dtype = EXERCISES["merge_adapter"], getattr(torch, case.dtype)
    update = (right - before).norm()
    if (got - before).norm() < 0.2 * update:
        raise exercise.wrong(f"{said}: {path} is as it was.", "lost")
    if not (got - right).norm() < 0.2 * update:
        raise exercise.wrong(f"{said}: {path} is not W + (α/r)·BA.")
    if getattr(given, "dtype", None) != dtype:
        raise exercise.wrong(f"{said} is in {getattr(given, 'dtype', kind_of(given))}.", "dtype")
    eps = torch.finfo(dtype).eps
    # Half a spacing is the best a dtype can do; fp32's own sums leave a little more.
    spacing = eps * 2.0 ** torch.floor(torch.log2(right.abs().clamp(min=1e-30)))
    off = (got - right).abs() - 1e-6 * right.abs().max()
    share = (off > 0.505 * spacing).double().mean().item()
    if share > 0.001:
        raise exercise.wrong(
            f"{said}: {100 * share:.1f} % of {path} are not the nearest {case.dtype}.", "early")


# --- 6.2 ------------------------------------------------------------------------------------------

Hits = dict[str, list[bool]]


def draw_hits(seed: str, n: int, shares: Mapping[str, tuple[float, float]]) -> Hits:
    """Hits of several ways on the same n sentences.

    shares: way → (share of the reference's right ones that it loses, share of its wrong ones that
    it gains). The first way is the reference, right on about 0.7 of the sentences.
    """
    chance = random.Random(seed)
    first = [chance.random() < 0.7 for _ in range(n)]
    found = {}
    for name, (loses, gains) in shares.items():
        wrong, right = first.count(False), first.count(True)
        lost = set(chance.sample([i for i, hit in enumerate(first) if hit], round(loses * right)))
        won = set(chance.sample([i for i, h in enumerate(first) if not h], round(gains * wrong)))
        found[name] = [(hit and i not in lost) or i in won for i, hit in enumerate(first)]
    return found


def some_hits(seed: str, names: Sequence[str], n: int) -> Hits:
    """Five ways: a reference, one clearly worse, one worse by a paired test only, one worse by
    chance at most, one better; every accuracy is another."""
    plan = ((0.0, 0.0), (0.8, 0.0), (0.1, 0.0), (0.12, 0.25), (0.0, 0.5))
    for attempt in range(200):
        found = draw_hits(f"{seed} {attempt}", n, dict(zip(names, plan, strict=True)))
        accuracies = [sum(hits) / n for hits in found.values()]
        reference, clear, paired, chance_only, better = found.values()
        decided = [(_lower(reference, one) > 0) for one in (clear, paired, chance_only, better)]
        far = all(abs(_lower(reference, one)) > 0.004 for one in (clear, paired, chance_only))
        if (len(set(accuracies)) == 5 and far and decided == [True, True, False, False]
                and accuracies[3] < accuracies[0] and not _unpaired(reference, paired)):
            return found
    raise AssertionError("no hits of this plan")


# Two sentences of four apart: worse only if s has n under it instead of n − 1.
FOUR = ("unmerged", {"unmerged": [True] * 4, "other": [False, True, False, True]})


def _lower(reference: Sequence[bool], other: Sequence[bool]) -> float:
    """The lower end of the 95 % interval of reference − other, sentence by sentence."""
    apart = [int(a) - int(b) for a, b in zip(reference, other, strict=True)]
    return statistics.mean(apart) - Z95 * statistics.stdev(apart) / math.sqrt(len(apart))


def _unpaired(reference: Sequence[bool], other: Sequence[bool]) -> bool:
    """Whether an interval that ignores the pairing calls `other` worse."""
    n, p, q = len(reference), statistics.mean(reference), statistics.mean(other)
    return p - q > Z95 * math.sqrt((p * (1 - p) + q * (1 - q)) / n)


def rank_merges(answer: Callable[..., Any]) -> None:
    """Five ways on the same sentences."""
    names = ("unmerged", "D", "B", "C", "A")
    compare_rank_merges(answer, [("unmerged", some_hits("visible", names, 120)), FOUR])
    EXERCISES["rank_merges"].passed("five ways in order, and chance told from loss")


def compare_rank_merges(
    answer: Callable[..., Any], cases: Iterable[tuple[str, Hits]],
    what: Sequence[str] = ("order", "worse"),
) -> None:  # fmt: skip
    """Cases: (the reference's name, hits by name). `what` is compared: "order", "worse"."""
    exercise = EXERCISES["rank_merges"]
    for reference, hits in cases:
        n = len(hits[reference])
        case = f"rank_merges(<{len(hits)} ways, {n} sentences>, {reference!r})"
        rows = _rows(answer({name: list(one) for name, one in hits.items()}, reference))
        if rows is None or {name for name, _, _ in rows} != set(hits) or len(rows) != len(hits):
            raise exercise.wrong(f"{case} should have {len(hits)} rows of three.", "kind")
        accuracy = {name: sum(one) / n for name, one in hits.items()}
        for name, given, _ in rows:
            if not math.isclose(given, accuracy[name], rel_tol=1e-6):
                raise exercise.wrong(f"{case}: {name!r} has {given:.4g}.", "accuracy")
        names = [name for name, _, _ in rows]
        if "order" in what and names != sorted(names, key=accuracy.get, reverse=True):
            raise exercise.wrong(f"{case} begins with {names[0]!r}.", "order")
        if "worse" in what:
            said = {name: worse for name, _, worse in rows}
            _expect_worse(case, said, hits, reference)


def _rows(given: Any) -> list[tuple[str, float, bool]] | None:
    if not isinstance(given, list | tuple) or len(given) > 100:
        return None
    rows = []
    for one in given:
        if not isinstance(one, list | tuple) or len(one) != 3 or not isinstance(one[0], str):
            return None
        accuracy, worse = as_number(one[1]), as_truth(one[2])
        if accuracy is None or worse is None:
            return None
        rows.append((one[0], accuracy, worse))
    return rows


def _expect_worse(case: str, said: Mapping[str, bool], hits: Hits, reference: str) -> None:
    exercise = EXERCISES["rank_merges"]
    right = {name: name != reference and _lower(hits[reference], one) > 0
             for name, one in hits.items()}  # fmt: skip
    if said == right:
        return
    mean = {name: statistics.mean(one) for name, one in hits.items()}
    too_many = [name for name in said if said[name] and not right[name]]
    if any(mean[name] >= mean[reference] for name in too_many):
        name = next(name for name in too_many if mean[name] >= mean[reference])
        raise exercise.wrong(f"{case} calls {name!r} worse.", "better")
    if too_many:
        raise exercise.wrong(f"{case} calls {too_many[0]!r} worse.", "any_gap")
    name = next(name for name in said if right[name] and not said[name])
    raise exercise.wrong(f"{case} does not call {name!r} worse.", "unpaired")


# --- 6.3 ------------------------------------------------------------------------------------------


class Coded(NamedTuple):
    """4-bit codes (n,), constants, levels and an update (n,) that is a fraction of a step."""

    codes: torch.Tensor
    absmax: torch.Tensor
    update: torch.Tensor
    levels: torch.Tensor
    block: int

    @classmethod
    def draw(cls, seed: str, n: int, block: int, levels: torch.Tensor) -> Coded:
        """No sum lies near the middle of two levels; updates of one code point both ways."""
        codes = (normal(f"{seed} codes", n).abs() * 7919).long() % len(levels)
        # Constants far apart, so that no one scale does for all blocks.
        absmax = 0.05 * 3.0 ** normal(f"{seed} absmax", -(-n // block)).clamp(-2, 2)
        scales = absmax.repeat_interleave(block)[:n]
        middles = (levels[1:] + levels[:-1]) / 2
        shift = 0.16 * normal(f"{seed} update", n)
        for _ in range(50):
            sums = levels[codes] + shift
            near = (sums[:, None] - middles).abs().amin(1) < 2e-3
            if not near.any():
                break
            shift = torch.where(near, shift + 5e-3, shift)
        return cls(codes.to(torch.uint8), absmax, shift * scales, levels, block)

    def right(self) -> torch.Tensor:
        """Whether another level is nearest to each sum: all distances, in fp64."""
        scales = self.absmax.double().repeat_interleave(self.block)[: len(self.codes)]
        values = scales[:, None] * self.levels.double()
        sums = values.gather(1, self.codes.long()[:, None]) + self.update.double()[:, None]
        return (sums - values).abs().argmin(1) != self.codes.long()

    def mistakes(self) -> Iterable[tuple[str, torch.Tensor]]:
        """What each slip gives."""
        levels, codes = self.levels.double(), self.codes.long()
        scales = self.absmax.double().repeat_interleave(self.block)[: len(codes)]
        shift = self.update.double() / scales
        gaps = levels.diff()
        infinite = torch.tensor([math.inf], dtype=torch.float64)
        up = torch.cat([gaps, infinite])[codes]
        down = torch.cat([infinite, gaps])[codes]
        ahead = torch.where(shift > 0, up, down)
        both = torch.minimum(up, down)
        larger = torch.where(torch.isinf(torch.maximum(up, down)), both, torch.maximum(up, down))
        yield "any_update", shift != 0
        yield "whole_step", shift.abs() > ahead
        yield "whole_step", shift.abs() >= both
        yield "whole_step", torch.bucketize(levels[codes] + shift, levels) != codes
        plain = self.update.double()
        for ready in (plain, plain * scales):
            yield "unscaled", ready.abs() > torch.where(ready > 0, up, down) / 2
            yield "unscaled", ready.abs() > both / 2
        # The sum in the weights' units, held against bare levels.
        middles = (levels[1:] + levels[:-1]) / 2
        yield "unscaled", torch.bucketize(levels[codes] * scales + plain, middles) != codes
        for step in (gaps.mean(), gaps.median(), torch.tensor(2 / 15), torch.tensor(1 / 8)):
            for inner in (True, False):
                moved = shift.abs() > step / 2
                yield "one_step", moved & torch.isfinite(ahead) if inner else moved
        yield "direction", shift.abs() > both / 2
        yield "direction", shift > up / 2
        yield "direction", shift.abs() > up / 2
        yield "direction", shift.abs() > down / 2
        yield "direction", shift.abs() > larger / 2


@lru_cache
def nf4() -> torch.Tensor:
    """NF4's levels (16,), fp32, from bitsandbytes."""
    import bitsandbytes.functional as bnb

    return bnb.get_4bit_type("nf4", device="cpu").float()


def moved_codes(answer: Callable[..., Any]) -> None:
    """NF4's levels and eight others, blocks full and not."""
    others = torch.tensor([-1.0, -0.7, -0.3, -0.1, 0.0, 0.25, 0.4, 1.0])
    compare_moved_codes(answer, [
        Coded.draw("visible", 512, 64, nf4()), Coded.draw("others", 330, 60, others),
    ])  # fmt: skip
    EXERCISES["moved_codes"].passed("every code that moves, and no other")


def compare_moved_codes(answer: Callable[..., Any], cases: Iterable[Coded]) -> None:
    """Raise WrongAnswer at the first case with a wrong entry."""
    exercise = EXERCISES["moved_codes"]
    for one in cases:
        n = len(one.codes)
        case = f"moved(<{n} codes>, absmax, update, levels, {one.block})"
        try:
            given = answer(one.codes.clone(), one.absmax.clone(), one.update.clone(),
                           one.levels.clone(), one.block)  # fmt: skip
        except MISFITS:
            if n % one.block == 0:
                raise
            raise exercise.wrong(f"{case} raised an exception.", "length") from None
        got = tensor_of(given)
        if got is None or not bool(((got == 0) | (got == 1)).all()):
            said = f"{case} should be True or False for each weight; it gave {kind_of(given)}."
            raise exercise.wrong(said, "length" if got is not None else None)
        if got.shape != (n,):
            raise exercise.wrong(f"{case} has the shape {tuple(got.shape)}.", "length")
        right = one.right()
        got = got.bool()
        if torch.equal(got, right):
            continue
        said = f"{case}: {int((got != right).sum())} of {n} are wrong."
        key = next((key for key, wrong in one.mistakes() if torch.equal(got, wrong)), None)
        raise exercise.wrong(said, key)


# --- 6.4 ------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """A call of disk_bytes. shapes: (out, in) of the layers with an adapter."""

    parameters: int
    shapes: tuple[tuple[int, int], ...]
    r: int
    tasks: int
    dtype: str

    def right(self) -> tuple[int, int]:
        """(merged, separate), by PEFT's own adapters on layers without data."""
        size = getattr(torch, self.dtype).itemsize
        base = self.parameters * size
        adapter = _adapter_parameters(self.shapes, self.r) * size
        return self.tasks * base, base + self.tasks * adapter

    def mistakes(self) -> Iterable[tuple[str, tuple[float, float]]]:
        """(key, (merged, separate)) of each slip; a pair's right half may be right."""
        size = getattr(torch, self.dtype).itemsize
        base, t = self.parameters * size, self.tasks
        merged, separate = self.right()
        adapter = (separate - base) // t
        full = sum(a * b for a, b in self.shapes) * size
        yield "one_task", (base, separate)
        yield "one_task", (merged, base + adapter)
        yield "one_task", (base, base + adapter)
        yield "no_base", (merged, t * adapter)
        yield "no_base", (merged, adapter)
        yield "many_bases", (merged, t * (base + adapter))
        for sides in ([2 * a for a, _ in self.shapes], [2 * b for _, b in self.shapes]):
            yield "square", (merged, base + t * self.r * sum(sides) * size)
        yield "full_update", (merged, base + t * full)
        yield "full_update", (t * (base + full), base + t * full)
        yield "merged_adapter", (t * (base + adapter), separate)
        yield "merged_adapter", (t * base + adapter, separate)
        for a, b in self.shapes:
            yield "one_layer", (merged, base + t * self.r * (a + b) * size)
        yield "parameters", (merged // size, separate // size)
        yield "bits", (8 * merged, 8 * separate)


@lru_cache
def _adapter_parameters(shapes: tuple[tuple[int, int], ...], r: int) -> int:
    from peft import LoraConfig, get_peft_model
    from torch import nn

    with torch.device("meta"):
        layers = nn.ModuleDict({f"layer{i}": nn.Linear(n_in, n_out, bias=False)
                                for i, (n_out, n_in) in enumerate(shapes)})  # fmt: skip
        wrapped = get_peft_model(layers, LoraConfig(r=r, target_modules=list(layers)))
    return wrapped.get_nb_trainable_parameters()[0]


def disk_bytes(answer: Callable[..., Any]) -> None:
    """Two models, several tasks, two dtypes."""
    compare_disk_bytes(answer, [
        Stored(1_000, ((10, 20), (10, 30)), 2, 3, "bfloat16"),
        Stored(50_000, ((100, 40), (20, 100), (40, 40)), 4, 10, "float32"),
    ])  # fmt: skip
    EXERCISES["disk_bytes"].passed("merged and separate, for several tasks")


def compare_disk_bytes(
    answer: Callable[..., Any], cases: Iterable[Stored],
    what: Sequence[str] = ("merged", "separate"),
) -> None:  # fmt: skip
    """`what` of the answer is compared."""
    exercise = EXERCISES["disk_bytes"]
    for one in cases:
        case = (f"disk_bytes({one.parameters}, <{len(one.shapes)} shapes>, {one.r}, {one.tasks}, "
                f"torch.{one.dtype})")  # fmt: skip
        given = answer(one.parameters, [list(shape) for shape in one.shapes], one.r, one.tasks,
                       getattr(torch, one.dtype))  # fmt: skip
        found = given if isinstance(given, Mapping) else {}
        got = {key: as_number(found.get(key)) for key in what}
        if None in got.values():
            raise exercise.wrong(f"{case} should be a dict with {' and '.join(what)}; "
                                 f"it gave {kind_of(given)}.")
        right = dict(zip(("merged", "separate"), one.right(), strict=True))
        wrong = {key: value for key, value in got.items() if value != right[key]}
        if not wrong:
            continue
        said = ", ".join(f"{key}: {value:,.0f}" for key, value in wrong.items()
                         if math.isfinite(value))  # fmt: skip
        for symptom, pair in one.mistakes():
            mistaken = dict(zip(("merged", "separate"), pair, strict=True))
            if all(value == mistaken[key] for key, value in wrong.items()):
                raise exercise.wrong(f"{case} gave {said}.", symptom)
        raise exercise.wrong(f"{case} gave {said or 'no finite number'}.")


# --- 6.5 ------------------------------------------------------------------------------------------

LAUNCH = 0.001  # seconds that handing work over takes


class Device:
    """A made-up device that works while `run` has long returned, with a clock that anyone may read.

    seconds: how long each call's work takes, in the order of the calls; the last one repeats.
    """

    def __init__(self, seconds: Sequence[float]):
        self._seconds, self._calls = list(seconds), 0
        self._now = self._done = 100.0

    def run(self) -> None:
        """Hand work over; returns at once."""
        work = self._seconds[min(self._calls, len(self._seconds) - 1)]
        self._calls += 1
        self._now += LAUNCH
        self._done = max(self._done, self._now) + work

    def synchronise(self) -> None:
        """Wait until all work is done."""
        self._now = max(self._now, self._done)

    def clock(self) -> float:
        """Seconds."""
        return self._now


_DEVICES: list[Device] = []


def device(*seconds: float) -> Device:
    """A `Device` that is made anew; `same_device` gives it again."""
    _DEVICES[:] = [Device(seconds)]
    return _DEVICES[0]


def same_device() -> Device:
    """The device that was made last."""
    return _DEVICES[0]


class Timed(NamedTuple):
    """A call of seconds_per_call on a device: the work of warm-up calls, then of timed ones."""

    warm: tuple[float, ...]
    timed: tuple[float, ...]

    @classmethod
    def draw(cls, seed: str, warm_up: int, repeats: int, steady: bool = False) -> Timed:
        """Slow warm-up calls, timed ones a little apart, one of them slow: never the middle.

        steady: all calls take the same time, so that only waiting for them matters.
        """
        usual = 0.04 + 0.3 * (number(seed) % 997) / 997
        if steady:
            return cls((usual,) * warm_up, (usual,) * repeats)
        timed = [usual * (1 + 0.12 * i) for i in range(repeats)]
        timed[-1] *= 9
        warm = tuple(usual * (8 + i) for i in range(warm_up))
        order = random.Random(f"{seed} order")
        for attempt in itertools.count():
            order.shuffle(timed)
            found = cls(warm, tuple(timed))
            pending = found.pending()
            near = [key for key, wrong in found.mistakes() if abs(pending - wrong) < 3 * LAUNCH]
            # With two warm-up calls, a median that counts them is always the same.
            if (all(abs(found.right() - wrong) > 3 * LAUNCH for _, wrong in found.mistakes())
                    and (set(near) == {"pending"} or attempt > 300)):
                return found

    def right(self) -> float:
        return statistics.median(self.timed) + LAUNCH

    def pending(self) -> float:
        """The median, if the first reading of the clock does not wait for the warm-up calls."""
        first, *others = self.timed
        return statistics.median([first + sum(self.warm), *others]) + LAUNCH

    def mistakes(self) -> Iterable[tuple[str, float]]:
        """What each slip gives; a launch is counted where it is on the clock."""
        w, k, t = sum(self.warm), len(self.timed), self.timed
        cold = (*self.warm, *t)[:k]  # the timed calls, if none came before them
        yield "launch", LAUNCH
        for total in (k * LAUNCH, (k + len(self.warm)) * LAUNCH):
            yield "launch", total
        # Without waiting at the start the warm-up's work is in the first reading.
        pending = [t[0] + w + 0.0, *t[1:]]
        middle, mean = statistics.median, statistics.fmean
        yield "warm_up", middle(cold) + LAUNCH
        yield "warm_up", mean(cold) + LAUNCH
        yield "warm_up", middle((*self.warm, *t)) + LAUNCH
        yield "warm_up", mean((*self.warm, *t)) + LAUNCH
        yield "mean", mean(t) + LAUNCH
        yield "mean", mean(t) + LAUNCH / k
        yield "total", sum(t) + k * LAUNCH
        yield "total", sum(t) + LAUNCH
        yield "pending", self.pending()
        yield "pending", mean(pending) + LAUNCH
        yield "pending", mean(pending) + LAUNCH / k
        yield "pending", max(pending)
        for one in (min(t), max(t), t[-1], t[0]):
            yield "fastest", one + LAUNCH


def seconds_per_call(answer: Callable[..., Any]) -> None:
    """A device with slow first calls and one slow call among the timed ones."""
    def ask(case: Timed) -> Any:
        made = Device((*case.warm, *case.timed))
        return answer(made.run, made.synchronise, made.clock, len(case.warm), len(case.timed))

    compare_seconds_per_call(ask, [Timed.draw("visible", 3, 5), Timed.draw("again", 3, 7)])
    EXERCISES["seconds_per_call"].passed("warmed up, waited for, and the median")


def compare_seconds_per_call(ask: Callable[[Timed], Any], cases: Iterable[Timed]) -> None:
    """Raise WrongAnswer at the first time that is not the device's."""
    exercise = EXERCISES["seconds_per_call"]
    for one in cases:
        case = (f"seconds_per_call(run, synchronise, clock, warm_up={len(one.warm)}, "
                f"repeats={len(one.timed)})")  # fmt: skip
        given = ask(one)
        got = as_number(given)
        if got is None:
            raise exercise.wrong(f"{case} should be a number; it gave {kind_of(given)}.")
        # Where exactly a launch is counted does not matter.
        if abs(got - one.right()) <= 2 * LAUNCH:
            continue
        said = f"{case} gave {got:.4g} s on a made-up device."
        for key, mistaken in one.mistakes():
            if math.isfinite(got) and abs(got - mistaken) <= 2.5 * LAUNCH:
                raise exercise.wrong(said, key)
        raise exercise.wrong(said, "pending" if got > max(one.timed) + one.warm[-1] / 2 else None)


# --- 6.6 ------------------------------------------------------------------------------------------


class Mixture(NamedTuple):
    """A call of combine. adapters: (A, B, scale) each; weights: one for each."""

    adapters: tuple[tuple[torch.Tensor, torch.Tensor, float], ...]
    weights: tuple[float, ...]

    @classmethod
    def draw(
        cls, seed: str, shape: tuple[int, int], ranks: Sequence[int], scales: Sequence[float],
        weights: Sequence[float],
    ) -> Mixture:  # fmt: skip
        n_out, n_in = shape
        adapters = tuple(
            (normal(f"{seed} A{i}", r, n_in), normal(f"{seed} B{i}", n_out, r), float(scale))
            for i, (r, scale) in enumerate(zip(ranks, scales, strict=True))
        )
        return cls(adapters, tuple(map(float, weights)))

    def right(self) -> torch.Tensor:
        """Σ weight · scale · B A, (out, in), fp64."""
        return self.mixed(lambda weight, scale: weight * scale)

    def mixed(self, factor: Callable[[float, float], float]) -> torch.Tensor:
        """The sum with another factor for each update."""
        return sum(factor(w, s) * (B.double() @ A.double())
                   for (A, B, s), w in zip(self.adapters, self.weights, strict=True))  # fmt: skip

    def cross(self) -> Iterable[torch.Tensor]:
        """Sums of factors, multiplied: PEFT's `linear`, and what comes to mind before it."""
        if len({A.shape[0] for A, _, _ in self.adapters}) > 1:
            return
        for scaled in (True, False):
            for in_a, in_b in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 1.0), (0.0, 0.0)):
                A, B = 0.0, 0.0
                for (a, b, s), w in zip(self.adapters, self.weights, strict=True):
                    f = w * s if scaled else w
                    A = A + math.copysign(abs(f) ** in_a, f) * a.double()
                    B = B + (math.copysign(abs(f) ** in_b, f) if in_b == 1 and in_a != 0.5
                             else abs(f) ** in_b) * b.double()
                yield B @ A
                if in_a == 0:
                    yield B @ sum(a.double() for a, _, _ in self.adapters)


def combine(answer: Callable[..., Any]) -> None:
    """Two adapters of one rank, and three of different ranks."""
    compare_combine(answer, [
        Mixture.draw("visible", (12, 9), (2, 2), (2, 0.5), (0.7, 0.4)),
        Mixture.draw("ranks", (14, 17), (3, 1, 2), (2, 4, 1.5), (0.5, -1.2, 0.8)),
    ])  # fmt: skip
    EXERCISES["combine"].passed("one adapter that adds what all of them add")


def compare_combine(
    answer: Callable[..., Any], cases: Iterable[Mixture], what: Sequence[str] = ("sum", "rank")
) -> None:
    """`what`: "sum", and "rank", which counts only where the sum is right."""
    exercise = EXERCISES["combine"]
    for one in cases:
        ranks = [A.shape[0] for A, _, _ in one.adapters]
        case = f"combine(<adapters of rank {', '.join(map(str, ranks))}>, {list(one.weights)})"
        given_adapters = [[A.clone(), B.clone(), scale] for A, B, scale in one.adapters]
        try:
            given = answer(given_adapters, list(one.weights))
        except MISFITS:
            if len(set(ranks)) == 1:
                raise
            raise exercise.wrong(f"{case} raised an exception.", "shape") from None
        pair = list(given) if isinstance(given, list | tuple) else []
        if any(isinstance(each, torch.Tensor) and each.is_complex() for each in pair):
            raise exercise.wrong(f"{case}: A and B hold complex numbers.", "weight")
        A, B = (tensor_of(each) for each in pair) if len(pair) == 2 else (None, None)
        right = one.right()
        if A is None or B is None or A.dim() != 2 or B.dim() != 2:
            raise exercise.wrong(f"{case} should be two matrices, A and B.")
        if (B.shape[0], A.shape[1]) != right.shape or B.shape[1] != A.shape[0]:
            n_out, n_in = right.shape
            raise exercise.wrong(f"{case}: A is {tuple(A.shape)}, B is {tuple(B.shape)}; they "
                                 f"should be (R, {n_in}) and ({n_out}, R).",
                                 "shape" if len(set(ranks)) > 1 else None)  # fmt: skip
        _expect_sum(case, B @ A, right, one)
        if "rank" in what and A.shape[0] > sum(ranks):
            raise exercise.wrong(f"{case}: A has {A.shape[0]} rows.", "rank")


def _expect_sum(case: str, got: torch.Tensor, right: torch.Tensor, one: Mixture) -> None:
    exercise = EXERCISES["combine"]

    def near(other: torch.Tensor) -> bool:
        return bool((got - other).abs().max() <= 1e-4 * right.abs().max())

    if near(right):
        return
    said = f"{case}: B @ A is not the sum of the updates."
    if any(near(wrong) for wrong in (one.mixed(lambda w, s: w), one.mixed(lambda w, s: w * s * s),
                                     one.mixed(lambda w, s: 1.0 * w / s))):
        raise exercise.wrong(said, "scale")
    if any(near(one.mixed(wrong)) for wrong in (
            lambda w, s: s, lambda w, s: s * w * w, lambda w, s: s * abs(w),
            lambda w, s: (s * w) ** 2, lambda w, s: 1.0, lambda w, s: s / len(one.weights),
            lambda w, s: s * w / sum(one.weights))):
        raise exercise.wrong(said, "weight")
    if any(near(wrong) for wrong in one.cross()):
        raise exercise.wrong(said, "cross")
    raise exercise.wrong(said)
