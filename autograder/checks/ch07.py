"""Chapter 07's trusted checks: numbers for models, runs and weights that exist in this draw only,
and repaired set-ups that run in the sandbox and are measured from the tensors that come back."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from autograder.checks import Code, Data, Part, Personal, Student, StudentError, trusted
from autograder.checks.once import once
from loralab import clinic
from loralab.checks import ch07 as visible

CHECKS = ("loralab.checks",)  # they know the answers
MODULE = "__import__('loralab.checks.ch07', fromlist=['*'])"
CLINIC = "__import__('loralab.clinic', fromlist=['*'])"
LABELS = {
    "three_times": "3× the model", "table": "the table's 6 GB", "rank_64": "r = 64",
    "times_250": "250× fewer", "product": "A × B", "alpha_2r": "α = 2r", "printed": "4,194,304",
    "eight_bit": "load_in_8bit", "cpu": "not on a CPU", "fp16": "fp16",
    "targets": "q and v", "quality": "the ranking", "merge": "merge before deploying",
}  # fmt: skip


def _seed(draw: random.Random) -> str:
    return f"{draw.getrandbits(64):x}"


def _as_here(ask: Callable[..., Data]) -> Callable[..., Data]:
    """`ask`, with an exception of the student's as the comparators know it."""
    known = {error.__name__ for error in visible.MISFITS}

    def call(*given: Any, **named: Any) -> Data:
        try:
            return ask(*given, **named)
        except StudentError as error:
            if error.kind == "raised" and error.name in known:
                return visible.Raised(error.name)
            raise

    return call


def _claims(
    exercise: str,
    worth: float,
    cases: Sequence[tuple[Callable[[], Data], Mapping[str, Any]]],
    comparator: Callable[[str, Data, Mapping[str, Any]], None] | None = None,
) -> list[Part]:
    """A part for each claim; `cases`: how to ask, and the right rulings then."""
    hold = comparator or partial(visible.compare_rulings, visible.EXERCISES[exercise])

    def compare(claim: str) -> None:
        for ask, right in cases:
            hold(exercise, ask(), {claim: right[claim]})

    return [Part(worth, partial(compare, claim), LABELS[claim]) for claim in cases[0][1]]


# Models that the visible checks do not have. At the peak of full fine-tuning in fp32 they hold
# several per cent more than between two steps, so that one is not taken for the other.
MODELS = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "llama-3.2-3b", "smollm2-360m", "gemma-7b")
# v_proj gives fewer numbers than q_proj.
GROUPED = (*MODELS[:-1], "qwen2.5-7b", "llama-3.1-8b", "tinyllama-1.1b")


@trusted("memory_rulings")
def memory_rulings(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = once(student.function("memory_rulings", masked=CHECKS))
    cases = []
    for model in draw.sample(MODELS, 2):
        case = (model, draw.randrange(2, 9), 128 * draw.randrange(5, 16))
        cases.append((partial(ask, *case), visible.memory_right(*case)))
    return _claims("memory_rulings", 0.5, cases)


@trusted("count_rulings")
def count_rulings(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Grouped-query models only, so that v_proj is square in none; α about which no two mistakes
    agree."""
    ask = once(student.function("count_rulings", masked=CHECKS))
    cases = []
    for model in draw.sample(GROUPED, 2):
        r = draw.choice((4, 6, 12, 16))
        alpha = draw.choice([a for a in range(r + 1, 8 * r) if a not in (2 * r, 4 * r)])
        case = (model, 128 * draw.randrange(5, 40), r, alpha)
        cases.append((partial(ask, *case), visible.count_right(*case)))
    return _claims("count_rulings", 0.5, cases)


@trusted("library_rulings")
def library_rulings(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = once(student.function("library_rulings", masked=CHECKS))

    def rulings(*given: Any) -> Data:
        try:
            return ask(*given)
        except StudentError as error:
            if (error.kind, error.name) == ("raised", "TypeError"):
                return visible.Raised(error.name)
            raise

    cases = []
    for layers in draw.sample((1, 2, 3, 4), 2):
        case = visible.Numbers.draw(_seed(draw), layers)
        folder = Code(f"{CLINIC}.Trained({case.trained.seed!r}, layers={layers}).base")
        cases.append((partial(rulings, folder, case.weights, case.x), case.right()))
    return _claims("library_rulings", 0.5, cases, visible.compare_library)


@trusted("quality_rulings")
def quality_rulings(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Three and four runs a setting, so that neither the first nor the last is the mean."""
    ask = once(student.function("quality_rulings", masked=CHECKS))
    cases = []
    for _ in range(2):
        runs = {name: [round(draw.uniform(low, high), 3) for _ in range(draw.choice((3, 4)))]
                for name, low, high in (("full", 0.9, 1), ("LoRA", 0.3, 0.95),
                                        ("QLoRA", 0.5, 0.9), ("q and v", 0, 0.4))}  # fmt: skip
        case = visible.Merge.draw(_seed(draw), runs)
        cases.append((partial(ask, runs, case.weights, case.update), case.right()))
    return _claims("quality_rulings", 0.5, cases)


# --- the clinic ----------------------------------------------------------------------------------

FUSED = ("phi3", "gpt_neox", "bloom", "codegen", "mpt", "gpt_bigcode")
OTHERWISE = ("phi", "opt", "starcoder2", "gptj", "gpt2")
# What small_model needs to call a layer by another name.
RENAMED = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@trusted("adapt")
def adapt(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Each part has a kind with Llama's names after one without."""
    ask = student.function("adapt", take=f"{MODULE}.adapted_report(answer)", masked=CHECKS)

    @once
    def report(text: str) -> Data:
        return ask(Code(text))

    def of(case: visible.Case) -> Data:
        return _as_here(report)(f"{MODULE}.Case(*{(case.kind, case.sizes, case.renamed)!r}).make()")

    def case(kind: str, renamed: Sequence[tuple[str, str]] = ()) -> visible.Case:
        heads, layers = draw.choice((2, 4)), draw.randrange(1, 4)
        sizes = visible.small_sizes(heads, layers, draw.randrange(40, 90))
        return visible.Case(kind, sizes, tuple(renamed))

    names: set[str] = set()
    while len(names) < len(RENAMED):
        names.add("".join(draw.choice(letters) for letters in ("bdgkmz", "aeiou", "lnrstv") * 2))
    made_up = case("biogpt", tuple(zip(RENAMED, sorted(names), strict=True)))
    llama = case(draw.choice(("llama", "mistral", "qwen2")))
    compare = visible.compare_adapt
    return [
        Part(1, partial(compare, of, [case("phi3"), case(draw.choice(FUSED[1:])), llama]),
             "fused projections"),
        Part(1, partial(compare, of, [case(draw.choice(OTHERWISE)), made_up, llama]),
             "layers of other names"),
    ]  # fmt: skip


@trusted("widen")
def widen(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Each part has rank 8 and one that is far from it: a constant α earns nothing."""
    seeds = {r: _seed(draw) for r in (8, draw.choice((2, 3, 4)), draw.choice((32, 48, 64)))}

    @once
    def report(r: int, seed: str) -> Data:
        taken = f"{MODULE}.widened_report(answer, {seed!r})"
        return student.function("widen", take=taken, masked=CHECKS)(
            Code(f"{CLINIC}.tiny_llama()"), r)

    low, high = (8, min(seeds)), (8, max(seeds))
    return [
        Part(1, partial(visible.compare_widen, _as_here(report), [(r, seeds[r]) for r in ranks]),
             label)
        for ranks, label in ((high, "a higher rank"), (low, "a lower rank"))
    ]  # fmt: skip


@trusted("arguments")
def arguments(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """The training runs here, with the learning rate and the steps that came back."""
    ask = once(student.function("arguments", take=f"{MODULE}.training_fields(answer)",
                                masked=CHECKS))  # fmt: skip
    steps = draw.randrange(40, 60)
    report = _as_here(lambda steps: ask("run", steps))
    return [Part(1.5, partial(visible.compare_arguments, report, [steps]), "a run that learns")]


CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def _word(draw: random.Random) -> str:
    syllables = range(draw.randrange(2, 4))
    return "".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in syllables)


@trusted("example")
def example(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """TRL prepares here what came back."""
    ask = _as_here(once(student.function("example", masked=CHECKS)))
    pairs = [(f"What is the {_word(draw)} of {_word(draw).title()}?", f"{_word(draw).title()}."),
             (f"Translate {_word(draw)} {_word(draw)}", f"{_word(draw)}, {_word(draw)}")]
    return [Part(1, partial(visible.compare_example, ask, [pair]), label)
            for pair, label in zip(pairs, ("a question", "an instruction"), strict=True)]


@trusted("make_labels")
def make_labels(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = _as_here(once(student.function("make_labels", masked=CHECKS)))

    def batch(side: str) -> Mapping[str, Any]:
        pairs = [(clinic.asked(" ".join(_word(draw) for _ in range(n))), f"{_word(draw)}.")
                 for n in draw.sample(range(1, 6), 3)]  # fmt: skip
        return clinic.padded(pairs, side)

    right, left = batch("right"), batch("left")
    compare = visible.compare_labels
    return [
        Part(1, partial(compare, ask, [right]), "padding on the right"),
        Part(1, partial(compare, ask, [batch("right"), left]), "padding on the left"),
    ]


@trusted("deploy")
def deploy(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    ask = student.function("deploy", take=f"{MODULE}.deployed_report(answer)", masked=CHECKS)

    @once
    def report(patient: clinic.Trained) -> Data:
        made = f"{CLINIC}.Trained{(patient.seed, patient.r, patient.lora_alpha, patient.layers)!r}"
        return ask(Code(f"{made}.base"), Code(f"{made}.adapter"))

    patients = [clinic.Trained(_seed(draw), draw.randrange(2, 7), draw.randrange(8, 33), layers)
                for layers in (1, 2)]  # fmt: skip
    return [Part(1, partial(visible.compare_deploy, _as_here(report), [one]), label)
            for one, label in zip(patients, ("one base", "another base"), strict=True)]
