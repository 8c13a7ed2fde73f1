"""Chapter 03, the rank sweep: the visible checks, and one symptom for each typical wrong answer.

Counts are PEFT's own on models built without weights; memory is `loralab.memory`'s, which tests
hold against counted bytes; the statistics are worked out from their definitions.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from torch import nn

from loralab import memory
from loralab.checks import Exercise, Symptom, as_number, as_whole, kind_of, shortened
from loralab.checks.small_models import small_model

# Student's t for a two-sided 95 % interval, by degrees of freedom.
T95 = {2: 4.303, 4: 2.776, 6: 2.447, 8: 2.306, 10: 2.228, 12: 2.179, 14: 2.145, 16: 2.120,
       18: 2.101}  # fmt: skip
VERDICTS = ("a", "b", "neither")

EXERCISES = {
    "find_targets": Exercise(
        "find_targets",
        "3.1",
        hints=(
            "`model.named_modules()` gives pairs of a path and a module. Which two classes does "
            "LoRA go into here?",
            "An `nn.Linear` knows its `in_features` and `out_features`. A `Conv1D` does not: look "
            "at the shape of its weight, and at the printed list, for which side is which.",
            "`model.get_output_embeddings()` is the head, whatever its name. Compare with `is`.",
        ),
        symptoms={
            "hard_coded": Symptom(
                "This model has none of the names you look for.",
                "Names are made up by whoever wrote the model. Ask for the class of a module, "
                "not for its name.",
            ),
            "conv1d": Symptom(
                "A layer that is no nn.Linear is missing.",
                "GPT-2's layers are of transformers' class `Conv1D`. They multiply by a matrix "
                "like any linear layer, and LoRA goes into them too.",
            ),
            "conv1d_shape": Symptom(
                "Right for nn.Linear; Conv1D stores its weight as in × out.",
                "Compare the two weights in the printed list: GPT-2's `c_fc` goes from 768 to "
                "3,072 numbers, and Llama's `up_proj` from 2,048 to 8,192.",
            ),
            "swapped": Symptom(
                "In and out are the wrong way round.",
                "The weight of an `nn.Linear` is stored as out × in. The exercise asks for "
                "(in, out).",
            ),
            "head": Symptom(
                "The output head is among them.",
                "The head turns the last hidden state into logits. It is no part of a block, and "
                "often shares its weight with the embedding.",
            ),
            "names": Symptom(
                "Two layers of one name became one.",
                "GPT-2 has a `c_proj` in attention and another in the feed-forward part, in "
                "every block. A whole path is never given twice.",
            ),
            "everything": Symptom(
                "Some of these are no linear layers.",
                "Embeddings and norms have weights too, and whole blocks have paths. Test each "
                "module's class.",
            ),
        },
    ),
    "trainable_counts": Exercise(
        "trainable_counts",
        "3.2",
        hints=(
            "For each rank: make a fresh model, make a `LoraConfig` with that rank and the given "
            "settings, wrap, count.",
            "A parameter that is trained has `requires_grad`. How many numbers are in it?",
        ),
        symptoms={
            "frozen": Symptom(
                "These include the frozen parameters.",
                "PEFT has set `requires_grad` to False on the base. Look at it before you add.",
            ),
            "tensors": Symptom(
                "That is how many tensors are trained, not how many numbers are in them.",
                "A tensor of 8 × 768 has 6,144 parameters. Which method of a tensor says so?",
            ),
            "one_rank": Symptom(
                "The same count for every rank.",
                "Is the rank of the loop the one in the `LoraConfig`? Its default is 8.",
            ),
            "settings": Symptom(
                "These adapters are not on the layers that were asked for.",
                "`settings` holds further arguments of `LoraConfig`. Pass them on: `**settings`.",
            ),
            "one_matrix": Symptom(
                "Only one of A and B is counted.",
                "Each adapter has two matrices, and both are trained.",
            ),
        },
    ),
    "plot_counts": Exercise(
        "plot_counts",
        "3.3",
        hints=(
            "`figure, axes = plt.subplots()` gives you axes. They have `plot`, `set_xlabel`, "
            "`set_ylabel`. Return the axes.",
        ),
        symptoms={
            "nothing": Symptom(
                "There is nothing in these axes.",
                "Draw with `axes.plot(ranks, counts, \"o-\")`, on the axes that you return.",
            ),
            "swapped": Symptom(
                "Rank belongs on the horizontal axis.",
                "What you choose goes on x, what follows from it on y.",
            ),
            "unlabelled": Symptom(
                "An axis has no label.",
                "Whoever sees the figure alone has to know what both axes count.",
            ),
            "points": Symptom(
                "The line does not go through the counts.",
                "Plot every rank that is given, against its own count, as it is: no logarithms, "
                "no thousands. An axis can be logarithmic; the data stay.",
            ),
        },
    ),
    "predict_count": Exercise(
        "predict_count",
        "3.4",
        hints=(
            "Take one layer of 2,048 inputs and 512 outputs. What are the shapes of A and of B?",
            "A is (r, in), B is (out, r). Add up, layer by layer.",
        ),
        symptoms={
            "square": Symptom(
                "Right if every layer were square.",
                "2·r·d holds for a layer with as many outputs as inputs. With grouped-query "
                "attention `v_proj` has four times fewer.",
            ),
            "product": Symptom(
                "That is the size of the update, not of the two matrices it is made of.",
                "B·A has in × out entries, and they are never stored. What is stored?",
            ),
            "one_matrix": Symptom(
                "Only one of A and B is counted.",
                "One has r rows, the other r columns. Both are trained.",
            ),
            "no_rank": Symptom(
                "The same for every rank.",
                "Which argument is not used?",
            ),
        },
    ),
    "models_with": Exercise(
        "models_with",
        "3.5",
        hints=(
            "For one model: keep the layers whose name is one of `names`, and let "
            "`predict_count` do the rest.",
            "PEFT compares whole parts of a path: `q_proj` means the part after the last dot, "
            "not any text that ends like this.",
        ),
        symptoms={
            "ending": Symptom(
                "A layer whose name merely ends in a target is counted too.",
                "`kq_proj` ends in `q_proj`, but PEFT takes no notice of it: it compares the "
                "whole part after a dot.",
            ),
            "all_layers": Symptom(
                "Layers that are no target are counted.",
                "Only layers called by one of `names` get an adapter.",
            ),
            "square": Symptom(
                "Right if every layer were square.",
                "Models with the same width can differ in their key and value heads.",
            ),
            "one": Symptom(
                "Another model has the same count.",
                "Go through all of them: the answer is a list.",
            ),
        },
    ),
    "extra_memory": Exercise(
        "extra_memory",
        "3.6",
        hints=(
            "Two estimates that differ in the rank alone. Which attribute is the peak?",
            "“x per cent more than” is said relative to the smaller one.",
        ),
        symptoms={
            "adapters": Symptom(
                "That is how much the adapters grow.",
                "Eight times the rank is eight times the adapters. But the card also holds the "
                "base, activations and logits, which do not grow: compare the totals.",
            ),
            "fraction": Symptom(
                "A hundred times too small: a share, where per cent were asked for.",
                "0.05 is 5 %.",
            ),
            "ratio": Symptom(
                "The first hundred per cent are the smaller one itself.",
                "1.05 times as much is 5 % *more*.",
            ),
            "relative": Symptom(
                "Relative to the larger one.",
                "More than what? Divide by what you started from.",
            ),
            "static": Symptom(
                "Activations and logits are left out.",
                "The peak of a step is `.total`; `.static` is what is held between steps.",
            ),
            "settings": Symptom(
                "These are not the settings that were given.",
                "Model, method and targets are arguments: pass each of them on.",
            ),
        },
    ),
    "matching_alpha": Exercise(
        "matching_alpha",
        "3.7",
        hints=(
            "What multiplies B·A? Write it down for the old rank and for the new one, and set "
            "them equal.",
            "With rsLoRA the divisor is √r.",
        ),
        symptoms={
            "same": Symptom(
                "With the same α the factor in front of B·A is another one at the new rank.",
                "α is divided by something that depends on r. What has to happen to α if that "
                "grows?",
            ),
            "root": Symptom(
                "That is right for rsLoRA only.",
                "Plain LoRA divides by r itself.",
            ),
            "linear": Symptom(
                "That is right for plain LoRA only.",
                "rsLoRA divides by the square root of r.",
            ),
            "inverse": Symptom(
                "The wrong way round: α has to grow with the divisor.",
                "If r doubles, the divisor grows. A smaller α would shrink the update once more.",
            ),
            "scale": Symptom(
                "That is the scale itself, not an α.",
                "α / r is what multiplies B·A. Which α gives this scale at the new rank?",
            ),
        },
    ),
    "verdict": Exercise(
        "verdict",
        "3.8",
        hints=(
            "`statistics.variance` divides by n − 1, as an estimate from a few runs has to.",
            "With n runs on either side: the error of the difference of means is the root of "
            "(variance of a + variance of b) / n, with 2n − 2 degrees of freedom.",
            "If the interval holds 0, the runs do not say which is better.",
        ),
        symptoms={
            "normal": Symptom(
                "1.96 is for many runs: with a few the interval is wider.",
                "From a few runs the spread itself is badly known. `check.T95` has the factor for "
                "each number of degrees of freedom.",
            ),
            "degrees": Symptom(
                "These are not 2n − 2 degrees of freedom.",
                "Each side gives n − 1.",
            ),
            "population": Symptom(
                "A little too narrow: the variance was divided by n.",
                "Deviations from the mean of the same few runs are too small on average. "
                "Dividing by n − 1 mends that.",
            ),
            "stdev": Symptom(
                "Those are standard deviations; the formula has their squares.",
                "`statistics.variance` is s², `statistics.stdev` is s.",
            ),
            "spread": Symptom(
                "That is the spread of single runs, not of their mean.",
                "A mean of n runs varies less than one run does, by the root of n.",
            ),
            "one_side": Symptom(
                "Only one side's variance is counted.",
                "Both means are uncertain, so both variances go in.",
            ),
            "sign": Symptom(
                "The interval is that of b − a.",
                "The exercise asks for a − b: positive where a is better.",
            ),
            "means": Symptom(
                "Your interval holds 0, and yet one of them wins.",
                "A difference that may as well be none is no difference found. The third verdict "
                "is for that.",
            ),
            "timid": Symptom(
                "Your interval does not hold 0, so one of them is better.",
                "Where the whole interval is on one side of 0, say which side.",
            ),
            "other_one": Symptom(
                "The other one is better.",
                "An interval of a − b above 0 says that a's accuracies are higher.",
            ),
        },
    ),
}


# --- 3.1 -----------------------------------------------------------------------------------------

Shapes = Mapping[str, tuple[int, int]]  # path: (in, out)


class Case(NamedTuple):
    """A model to be asked about, and its layers as they are found here."""

    said: str
    model: Any
    layers: Shapes
    conv1d: frozenset[str]
    head: str
    every: frozenset[str]

    @classmethod
    def of(cls, said: str, model: nn.Module, given: Any = None) -> Case:
        """`given`: what the student gets in the model's place."""
        from transformers.pytorch_utils import Conv1D

        head, top, layers, conv = model.get_output_embeddings(), "", {}, set()
        for path, module in model.named_modules():
            if module is head:
                top = path
            elif isinstance(module, Conv1D):
                layers[path] = tuple(module.weight.shape)
                conv.add(path)
            elif isinstance(module, nn.Linear):
                layers[path] = (module.in_features, module.out_features)
        every = frozenset(path for path, _ in model.named_modules())
        return cls(said, model if given is None else given, layers, frozenset(conv), top, every)


def find_targets(answer: Callable[[Any], Shapes]) -> None:
    """Paths and shapes of every layer that LoRA can go into, on three architectures."""
    compare_find_targets(answer, _cases())
    EXERCISES["find_targets"].passed("three architectures, and no name was needed")


@lru_cache
def _cases() -> tuple[Case, ...]:
    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=80,
                pad_token_id=0, bos_token_id=0, eos_token_id=0)  # fmt: skip
    return (
        Case.of("a Llama model", small_model(
            "llama", intermediate_size=64, num_key_value_heads=2, **size)),
        Case.of("a BioGPT model", small_model("biogpt", intermediate_size=48, **size)),
        Case.of("a GPT-2 model", small_model("gpt2", **size)),
    )


def compare_find_targets(answer: Callable[[Any], Any], cases: Iterable[Case]) -> None:
    """Raise WrongAnswer at the first model of which `answer` does not give every layer."""
    exercise = EXERCISES["find_targets"]
    for case in cases:
        got = answer(case.model)
        call = f"find_targets({case.said})"
        if not isinstance(got, Mapping):
            raise exercise.wrong(f"{call} should give a dict; it gave {kind_of(got)}.")
        found = {path: _pair(shape) for path, shape in got.items()}
        if found == case.layers:
            continue
        _explain_targets(call, found, case)


def _explain_targets(call: str, found: Mapping[Any, Any], case: Case) -> None:
    wrong, paths = EXERCISES["find_targets"].wrong, set(found)
    last = {path.rpartition(".")[2] for path in case.layers}
    if case.head in paths:
        raise wrong(f"{call} has {case.head} too.", "head")
    if not paths:
        raise wrong(f"{call} gave no layer.", "conv1d" if case.conv1d else "hard_coded")
    if paths <= last:
        raise wrong(f"{call} has {len(paths)} entries, without dots.", "names")
    if extra := paths - set(case.layers):
        key = "everything" if extra <= case.every else None
        raise wrong(f"{call} has {shortened(sorted(map(str, extra))[0])} too.", key)
    if missing := set(case.layers) - paths:
        key = "conv1d" if missing <= case.conv1d else "hard_coded"
        raise wrong(f"{call} lacks {len(missing)} of {len(case.layers)} layers.", key)
    off = {path for path, pair in found.items() if pair != case.layers[path]}
    example = sorted(off)[0]
    turned = all(found[path] == case.layers[path][::-1] for path in off)
    key = ("conv1d_shape" if off <= case.conv1d else "swapped") if turned else None
    raise wrong(f"{call}: {example} is given as {shortened(found[example])}.", key)


def _pair(given: Any) -> tuple[int, int] | str:
    """A shape as two whole numbers, or what it is instead."""
    given = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(given, list | tuple) and len(given) == 2:
        first, second = map(as_whole, given)
        if first is not None and second is not None:
            return first, second
    return shortened(given)


# --- 3.2 -----------------------------------------------------------------------------------------


class Sweep(NamedTuple):
    """A question of exercise 3.2. `make` is what the student gets, `model` makes the same here."""

    said: str
    make: Any
    model: Callable[[], nn.Module]
    settings: dict[str, Any]
    ranks: tuple[int, ...]


def gpt2() -> nn.Module:
    """GPT-2 with shapes but no weights, new at every call."""
    return memory.build("gpt2")


def trainable_counts(answer: Callable[[Callable, dict, list[int]], Sequence[int]]) -> None:
    """Exercise 9.3 of the lesson: GPT-2 at four ranks, and a second choice of layers."""
    every = dict(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    compare_trainable_counts(answer, [
        Sweep("GPT-2, c_attn", gpt2, gpt2, {**every, "target_modules": ["c_attn"]}, (4, 8, 16, 32)),
        Sweep("GPT-2, c_attn and c_fc", gpt2, gpt2, every, (2, 64)),
    ])  # fmt: skip
    EXERCISES["trainable_counts"].passed("counted by PEFT on GPT-2, at six ranks")


def compare_trainable_counts(answer: Callable[..., Any], sweeps: Iterable[Sweep]) -> None:
    """Raise WrongAnswer at the first count that is not PEFT's."""
    exercise = EXERCISES["trainable_counts"]
    for sweep in sweeps:
        with warnings.catch_warnings():  # PEFT's, where one model is wrapped again and again
            warnings.simplefilter("ignore")
            got = answer(sweep.make, dict(sweep.settings), list(sweep.ranks))
        call = f"trainable_counts({sweep.said}, ranks {list(sweep.ranks)})"
        got = got.tolist() if hasattr(got, "tolist") else got
        if not isinstance(got, list | tuple) or len(got) != len(sweep.ranks):
            raise exercise.wrong(f"{call} should give {len(sweep.ranks)} numbers, one a rank; "
                                 f"it gave {shortened(got)}.")
        counted = [_counted(sweep, rank) for rank in sweep.ranks]
        if [as_whole(one) for one in got] == [one["trained"] for one in counted]:
            continue
        # What is the same for all ranks is explained by that, not by what it happens to equal.
        if len(got) > 1 and len({repr(one) for one in got}) == 1:
            same = (key for key in ("tensors", "frozen") if as_whole(got[0]) == counted[0][key])
            raise exercise.wrong(f"{call} gave {shortened(got[0])} each time.",
                                 next(same, "one_rank"))
        for one, rank, right in zip(got, sweep.ranks, counted):
            typical = {"frozen": (right["all"], right["frozen"]), "tensors": right["tensors"],
                       "one_matrix": (right["A"], right["B"]), "settings": right["default"]}
            exercise.expect_number(f"{call}, r = {rank}:", one, right["trained"], typical)


def _counted(sweep: Sweep, rank: int) -> dict[str, Any]:
    """PEFT's counts of one wrapped model, and what typical mistakes would count."""
    from peft import LoraConfig, get_peft_model

    found: dict[str, Any] = {}
    wrapped = get_peft_model(sweep.model(), LoraConfig(r=rank, **sweep.settings))
    trained = {name: p.numel() for name, p in wrapped.named_parameters() if p.requires_grad}
    found["trained"], found["all"] = wrapped.get_nb_trainable_parameters()
    found["frozen"] = found["all"] - found["trained"]
    found["tensors"] = len(trained)
    for letter in "AB":
        found[letter] = sum(n for name, n in trained.items() if f"lora_{letter}" in name)
    plain = {**sweep.settings, "target_modules": None}
    found["default"] = get_peft_model(
        sweep.model(), LoraConfig(r=rank, **plain)).get_nb_trainable_parameters()[0]
    return found


# --- 3.3 -----------------------------------------------------------------------------------------


def plot_counts(answer: Callable[[list[int], list[int]], Any]) -> None:
    """The data and the labels of the student's own figure."""
    import matplotlib.pyplot as plt

    before = set(plt.get_fignums())
    try:
        compare_plot_counts(lambda *given: plotted(answer(*given)),
                            [([4, 8, 16, 32], [147_456, 294_912, 589_824, 1_179_648])])
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
    EXERCISES["plot_counts"].passed("four points, and both axes say what they are")


def plotted(answer: Any) -> Any:
    """What is drawn in an Axes, as data: points and labels; else what it is instead."""
    if not hasattr(answer, "get_xlabel"):
        return kind_of(answer)
    drawn = [[list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))]
             for line in answer.get_lines()]  # fmt: skip
    for dots in answer.collections:
        places = [list(map(float, place)) for place in dots.get_offsets()]
        drawn.append([[x for x, _ in places], [y for _, y in places]])
    return {"drawn": drawn, "xlabel": answer.get_xlabel(), "ylabel": answer.get_ylabel()}


def compare_plot_counts(
    answer: Callable[[list[int], list[int]], Any],
    cases: Iterable[tuple[list[int], list[int]]],
    ask: Sequence[str] = ("points", "labels"),
) -> None:
    """Cases: (ranks, counts). `answer` gives what `plotted` makes of the student's axes.

    `ask`: which of the two have to be right. Labels of empty axes count for nothing.
    """
    exercise = EXERCISES["plot_counts"]
    for ranks, counts in cases:
        got = answer(list(ranks), list(counts))
        if not isinstance(got, Mapping) or not isinstance(got.get("drawn"), list):
            raise exercise.wrong(f"plot_counts(…) should give axes; it gave {shortened(got)}.")
        drawn = [points for points in map(_points, got["drawn"]) if points]
        if not drawn:
            raise exercise.wrong("plot_counts(…) drew nothing.", "nothing")
        right = {(float(r), float(n)) for r, n in zip(ranks, counts)}
        if "points" in ask and right not in drawn:
            turned = {(y, x) for x, y in right} in drawn
            raise exercise.wrong("The points are not (rank, count).",
                                 "swapped" if turned else "points")
        if "labels" in ask:
            for name in ("xlabel", "ylabel"):
                if not isinstance(got.get(name), str) or not got[name].strip():
                    raise exercise.wrong(f"There is no {name}.", "unlabelled")


def _points(given: Any) -> set[tuple[float, float]]:
    if not isinstance(given, list) or len(given) != 2:
        return set()
    xs, ys = given
    if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
        return set()
    numbers = [(as_number(x), as_number(y)) for x, y in zip(xs, ys)]
    return {(x, y) for x, y in numbers if x is not None and y is not None}


# --- 3.4 -----------------------------------------------------------------------------------------


def predict_count(answer: Callable[[list[tuple[int, int]], int], float]) -> None:
    """The closed formula, against PEFT's counts on real shapes."""
    cases = [([(2048, 2048), (2048, 512)] * 16, 8), ([(768, 2304)] * 12, 4)]
    for name, targets, rank in (("llama-2-7b", "q_proj v_proj", 16), ("qwen2.5-7b", "", 3)):
        layers = memory.describe(name).linear
        chosen = [one for one in layers if not targets or one.name in targets.split()]
        cases.append(([(one.inputs, one.outputs) for one in chosen], rank))
    compare_predict_count(answer, cases)
    EXERCISES["predict_count"].passed("851,968 for Llama-3.2-1B, and three others")


def compare_predict_count(
    answer: Callable[[list[tuple[int, int]], int], Any],
    cases: Iterable[tuple[list[tuple[int, int]], int]],
) -> None:
    """Cases: (shapes as (in, out), r)."""
    exercise = EXERCISES["predict_count"]
    for shapes, r in cases:
        a, b = r * sum(i for i, _ in shapes), r * sum(o for _, o in shapes)
        typical = {
            "square": (2 * a, 2 * b, 2 * r * max(shapes[0]) * len(shapes),
                       2 * r * min(shapes[0]) * len(shapes)),
            "product": (sum(i * o for i, o in shapes), r * sum(i * o for i, o in shapes)),
            "one_matrix": (a, b),
            "no_rank": ((a + b) // r, 8 * (a + b) // r),
        }
        some = ", ".join(map(str, shapes[:2])) + (", …" if len(shapes) > 2 else "")
        exercise.expect_number(f"predict_count([{some}], r={r})", answer(list(shapes), r), a + b,
                               _apart(typical, a + b))


def _apart(typical: Mapping[str, tuple[float, ...]], right: float) -> dict[str, tuple[float, ...]]:
    """Without the mistakes that give the right number on this case."""
    return {key: tuple(v for v in values if v != right) for key, values in typical.items()}


# --- 3.5 -----------------------------------------------------------------------------------------

Models = Mapping[str, Mapping[str, tuple[int, int]]]  # name: {path: (in, out)}
CANDIDATES = ("llama-3.2-1b", "tinyllama-1.1b", "mistral-7b", "llama-3.1-8b", "llama-2-7b",
              "llama-2-13b", "qwen2.5-7b")  # fmt: skip


@lru_cache
def candidates() -> dict[str, dict[str, tuple[int, int]]]:
    """Shapes of the layers of some models: {name: {path: (in, out)}}."""
    return {name: {one.path: (one.inputs, one.outputs) for one in memory.describe(name).linear}
            for name in CANDIDATES}  # fmt: skip


class Search(NamedTuple):
    """A question of exercise 3.5."""

    models: Models
    names: tuple[str, ...]
    r: int
    count: int


def models_with(answer: Callable[[Models, list[str], int, int], Sequence[str]]) -> None:
    """Which models have a given count: one, several, none."""
    names, both = ("q_proj", "v_proj"), ("q_proj", "o_proj")
    compare_models_with(answer, [
        Search(_TOY, ("q_proj",), 2, 2 * 96),
        Search(candidates(), names, 8, 851_968),
        Search(candidates(), both, 4, 2_097_152),
        Search(candidates(), names, 8, 7),
    ])  # fmt: skip
    EXERCISES["models_with"].passed("now ask it for 4,194,304")


# The first two are right; each of the others is found by a mistake of its own.
_TOY = {
    "one": {"block.q_proj": (64, 32), "block.kq_proj": (64, 32), "block.up": (64, 128)},
    "two": {"layers.0.q_proj": (40, 56), "layers.0.v_proj": (40, 16)},
    "three": {"layers.0.q_proj": (32, 32), "layers.0.v_proj": (16, 16)},
    "four": {"layers.0.q_proj": (48, 80)},
    "five": {"layers.0.q_proj": (80, 48)},
}


def targeted(shapes: Shapes, names: Iterable[str]) -> list[tuple[int, int]]:
    """The shapes of the layers that PEFT would take for these names."""
    return [tuple(shape) for path, shape in shapes.items() if path.rpartition(".")[2] in set(names)]


def lora_count(shapes: Iterable[tuple[int, int]], r: int) -> int:
    """Parameters of A (r, in) and B (out, r) for each shape."""
    return sum(r * (i + o) for i, o in shapes)


def compare_models_with(answer: Callable[..., Any], searches: Iterable[Search]) -> None:
    """Raise WrongAnswer at the first search that finds other models."""
    exercise = EXERCISES["models_with"]
    for models, names, r, count in searches:
        given = {name: dict(shapes) for name, shapes in models.items()}
        got = answer(given, list(names), r, count)
        call = f"models_with(…, {list(names)}, r={r}, count={count:,})"
        if not isinstance(got, list | tuple | set) or not all(isinstance(one, str) for one in got):
            raise exercise.wrong(f"{call} should give a list of names; it gave {shortened(got)}.")
        right = models_found(models, names, r, count)
        if set(got) == right:
            continue
        said = f"{call} gave {shortened(sorted(set(got)))}."
        for key, mistaken in _mistaken_searches(models, names, r, count).items():
            if got and set(got) in mistaken:
                raise exercise.wrong(said, key)
        if got and set(got) < right:
            raise exercise.wrong(said, "one")
        raise exercise.wrong(f"{said[:-1]}; expected {sorted(right)}.")


def models_found(
    models: Models,
    names: Iterable[str],
    r: int,
    count: int,
    chosen: Callable[[Shapes, Iterable[str]], list[tuple[int, int]]] = targeted,
    counted: Callable[[list[tuple[int, int]], int], int] = lora_count,
) -> set[str]:
    """The models whose `chosen` layers have `count` adapter parameters."""
    return {name for name, shapes in models.items() if counted(chosen(shapes, names), r) == count}


def _mistaken_searches(
    models: Models, names: Sequence[str], r: int, count: int
) -> dict[str, list[set[str]]]:
    def ending(shapes: Shapes, names: Iterable[str]) -> list[tuple[int, int]]:
        return [s for path, s in shapes.items() if path.endswith(tuple(names))]

    def holding(shapes: Shapes, names: Iterable[str]) -> list[tuple[int, int]]:
        return [s for path, s in shapes.items() if any(name in path for name in names)]

    def every(shapes: Shapes, names: Iterable[str]) -> list[tuple[int, int]]:
        return list(shapes.values())

    squares = [lambda s, r: sum(2 * r * i for i, _ in s), lambda s, r: sum(2 * r * o for _, o in s)]
    search = (models, names, r, count)
    return {
        "ending": [models_found(*search, chosen=ending), models_found(*search, chosen=holding)],
        "all_layers": [models_found(*search, chosen=every)],
        "square": [models_found(*search, counted=square) for square in squares],
    }


# --- 3.6 -----------------------------------------------------------------------------------------


class Question(NamedTuple):
    """A question of exercise 3.6."""

    model: str
    method: str
    targets: str | tuple[str, ...]
    low: int
    high: int


QV = ("q_proj", "v_proj")


def extra_memory(answer: Callable[[str, str, Any, int, int], float]) -> None:
    """Per cent more peak memory at a higher rank."""
    compare_extra_memory(answer, [
        Question("llama-2-7b", "lora", QV, 8, 64), Question("llama-2-7b", "qlora", QV, 8, 64),
        Question("llama-3.2-1b", "qlora", "all-linear", 4, 16),
    ])  # fmt: skip
    EXERCISES["extra_memory"].passed("the base does not grow with the rank")


def compare_extra_memory(answer: Callable[..., Any], questions: Iterable[Question]) -> None:
    """Raise WrongAnswer at the first answer that is off by more than a thousandth."""
    exercise = EXERCISES["extra_memory"]
    for model, method, targets, low, high in questions:
        at = {r: memory.estimate(model, method, rank=r, targets=targets) for r in (low, high)}
        small, large = at[low], at[high]
        grown = large.total / small.total
        right = 100 * (grown - 1)
        other = "qlora" if method == "lora" else "lora"
        others = QV if targets == "all-linear" else "all-linear"
        elsewhere = [(model, other, targets), (model, method, others)]
        mistaken = [
            100 * (memory.estimate(m, how, rank=high, targets=t).total
                   / memory.estimate(m, how, rank=low, targets=t).total - 1)
            for m, how, t in elsewhere
        ]  # fmt: skip
        typical = {
            "adapters": (100 * (high / low - 1), 100 * high / low, high / low, high / low - 1),
            "fraction": grown - 1,
            "ratio": (grown, 100 * grown),
            "relative": (100 * (1 - 1 / grown), 1 - 1 / grown),
            "static": (100 * (large.static / small.static - 1), large.static / small.static - 1),
            "settings": tuple(mistaken),
        }
        given = targets if isinstance(targets, str) else list(targets)
        case = f"extra_memory({model!r}, {method!r}, {given}, {low}, {high})"
        exercise.expect_number(case, answer(model, method, given, low, high), right, typical,
                               rel_tol=1e-3)


# --- 3.7 -----------------------------------------------------------------------------------------

Alpha = tuple[int, float, int, bool]  # r, alpha, new r, use_rslora


def matching_alpha(answer: Callable[[int, float, int, bool], float]) -> None:
    """The α that keeps the update's scale when the rank changes, plain and rank-stabilised."""
    compare_matching_alpha(answer, [
        (8, 16, 48, False), (64, 128, 4, False),
        (8, 16, 32, True), (16, 8, 4, True), (8, 16, 24, True),
    ])  # fmt: skip
    EXERCISES["matching_alpha"].passed("what acts is the scale, not α")


def compare_matching_alpha(answer: Callable[..., Any], cases: Iterable[Alpha]) -> None:
    """Raise WrongAnswer at the first α with which the scale is another one."""
    for r, alpha, new, rslora in cases:
        grown = new / r
        plain, root = alpha * grown, alpha * math.sqrt(grown)
        right = root if rslora else plain
        typical = {
            "same": (float(alpha),),
            "linear" if rslora else "root": (plain if rslora else root,),
            "inverse": (alpha / grown, alpha / math.sqrt(grown)),
            "scale": (alpha / r, alpha / math.sqrt(r), alpha / new, alpha / math.sqrt(new)),
        }
        case = f"matching_alpha(r={r}, alpha={alpha:g}, new_r={new}, use_rslora={rslora})"
        EXERCISES["matching_alpha"].expect_number(
            case, answer(r, alpha, new, rslora), right, _apart(typical, right), rel_tol=1e-6)


# --- 3.8 -----------------------------------------------------------------------------------------

Accuracies = Sequence[float]
Compared = tuple[Accuracies, Accuracies]


def verdict(
    difference: Callable[[Accuracies, Accuracies], tuple[float, float]],
    decide: Callable[[Accuracies, Accuracies], str],
) -> None:
    """The interval of a difference of means, and what it allows one to say."""
    cases = [([0.81, 0.90, 0.84], [0.55, 0.61, 0.40]), ([0.50, 0.91, 0.70], [0.58, 0.93, 0.85]),
             ([0.1, 0.2, 0.15, 0.13], [0.5, 0.61, 0.7, 0.66])]  # fmt: skip
    compare_difference(difference, cases)
    compare_verdict(decide, cases)
    EXERCISES["verdict"].passed("a difference inside the noise is none")


def interval(a: Accuracies, b: Accuracies) -> tuple[float, float]:
    """95 % interval of mean(a) − mean(b), for as many independent runs in `a` as in `b`.

    Student's t with pooled variance; 2n − 2 degrees of freedom.
    """
    n, middle = len(a), statistics.mean(a) - statistics.mean(b)
    half = T95[2 * n - 2] * math.sqrt((statistics.variance(a) + statistics.variance(b)) / n)
    return middle - half, middle + half


def compare_difference(answer: Callable[..., Any], cases: Iterable[Compared]) -> None:
    """Raise WrongAnswer at the first interval that is not `interval`'s."""
    exercise = EXERCISES["verdict"]
    for a, b in cases:
        got = answer(list(a), list(b))
        call = f"difference({list(a)}, {list(b)})"
        got = got.tolist() if hasattr(got, "tolist") else got
        ends = list(map(as_number, got)) if isinstance(got, list | tuple) else []
        if len(ends) != 2 or any(end is None for end in ends):
            raise exercise.wrong(f"{call} should give two numbers; it gave {shortened(got)}.")
        right = interval(a, b)
        if _near(ends, right):
            continue
        said = f"{call} gave ({ends[0]:.4g}, {ends[1]:.4g})."
        for key, mistaken in _mistaken_intervals(a, b):
            if _near(ends, mistaken):
                raise exercise.wrong(said, key)
        raise exercise.wrong(f"{said[:-1]}; expected ({right[0]:.4g}, {right[1]:.4g}).")


def _near(one: Sequence[float | None], other: Sequence[float]) -> bool:
    """Whether both ends agree, to three decimals."""
    return all(math.isclose(x or 0.0, y, abs_tol=6e-4) for x, y in zip(one, other))


def _mistaken_intervals(a: Accuracies, b: Accuracies) -> Iterable[tuple[str, tuple[float, float]]]:
    n, middle = len(a), statistics.mean(a) - statistics.mean(b)
    pairs = {"": (statistics.variance(a), statistics.variance(b)),
             "population": (statistics.pvariance(a), statistics.pvariance(b))}  # fmt: skip
    factors = {"": T95[2 * n - 2], "normal": 1.96,
               "degrees": T95.get(n - 1, 3.182 if n == 4 else 0.0)}  # fmt: skip
    deviations = statistics.stdev(a) + statistics.stdev(b)
    half = T95[2 * n - 2] * math.sqrt(deviations / n)
    yield "stdev", (middle - half, middle + half)
    # One mistake first, then two at once.
    for (spread, (va, vb)), (factor, t) in itertools.product(pairs.items(), factors.items()):
        forms = {"": (va + vb) / n, "spread": va + vb, "one_side": va / n}
        for form, squared in forms.items():
            half = t * math.sqrt(squared)
            made = [key for key in (factor, form, spread) if key]
            if 0 < len(made) < 3:
                yield made[0], (middle - half, middle + half)
            yield "sign", (-middle - half, -middle + half)


def compare_verdict(answer: Callable[..., Any], cases: Iterable[Compared]) -> None:
    """Raise WrongAnswer at the first verdict that the interval does not allow."""
    exercise = EXERCISES["verdict"]
    for a, b in cases:
        got = answer(list(a), list(b))
        call = f"verdict({list(a)}, {list(b)})"
        if not isinstance(got, str) or got not in VERDICTS:
            raise exercise.wrong(f"{call} should be one of {VERDICTS}; it gave {shortened(got)}.")
        low, high = interval(a, b)
        right = "a" if low > 0 else "b" if high < 0 else "neither"
        if got != right:
            key = "means" if right == "neither" else "timid" if got == "neither" else "other_one"
            raise exercise.wrong(f"{call} gave {got!r}.", key)
