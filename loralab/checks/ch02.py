"""Chapter 02, LoRA by hand: the visible checks, and one symptom for each typical wrong answer.

The oracle is another implementation wherever there is one: PEFT for outputs, places and counts,
autograd for gradients, torch's singular values for the best error. Tensors are compared relative
to their largest entry.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import nn

from loralab import low_rank
from loralab.checks import (
    Exercise,
    Symptom,
    as_number,
    as_truth,
    as_whole,
    kind_of,
    shortened,
)  # fmt: skip

EXERCISES = {
    "init_lora": Exercise(
        "init_lora",
        "2.1",
        hints=(
            "Write the shapes next to the product B @ A. Which side of which matrix is `r`?",
            "One of the two has to be zero, so that their product is. "
            "The text above says which one PEFT chooses.",
            "`torch.empty(…).uniform_(low, high)` draws each entry from an interval.",
        ),
        symptoms={
            "both_zero": Symptom(
                "No gradient ever reaches either.",
                "Both start at zero. Read the table again: how many zero matrices does a zero "
                "product need? (Section 3 shows what happens with two.)",
            ),
            "both_random": Symptom(
                "The model changed before training.",
                "B @ A is not zero, so the layer no longer gives what it gave. Fine-tuning should "
                "start at the pretrained model, not beside it.",
            ),
            "swapped": Symptom(
                "A no-op, but the other matrix is the one that starts at zero.",
                "Your product is zero as well, and could be trained. The paper and PEFT make the "
                "other choice: read the table above again.",
            ),
            "transposed": Symptom(
                "Both matrices are transposed.",
                "These shapes fit `x @ A @ B`, as some texts write it. PEFT stores A and B as "
                "`nn.Linear` stores a weight: (numbers that come out, numbers that go in).",
            ),
            "order": Symptom(
                "A and B are returned in the other order.",
                "The function's return type names A first.",
            ),
            "square": Symptom(
                "Works for square layers only.",
                "The layer's input meets A first, and B makes its output. Which of the two has "
                "`in_features` as a side?",
            ),
            "one_sided": Symptom(
                "No entry of A is negative.",
                "`torch.rand` draws from [0, 1). The interval you need lies around zero.",
            ),
            "fan": Symptom(
                "The entries of A do not get smaller as in_features grows.",
                "The bound of the interval depends on one side of A. Each number that A makes "
                "is a sum over that side.",
            ),
            "spread": Symptom(
                "The entries of A have the wrong size.",
                "Look at the largest entry of your A, and compare it with 1/√in_features. "
                "(`kaiming_uniform_` without `a=√5` has another gain.)",
            ),
            "gaussian": Symptom(
                "The right size on average, but some entries lie outside the interval.",
                "That is the paper's Gaussian. It works as well as PEFT's default; this exercise "
                "asks for the default, so that the two can be compared.",
            ),
            "seeded": Symptom(
                "Two layers would start with the same A.",
                "Called twice, your function gives the same numbers. Is there a seed in it? "
                "Seeds belong at the top of a notebook.",
            ),
        },
    ),
    "lora_forward": Exercise(
        "lora_forward",
        "2.2",
        hints=(
            "`x` holds its features in the *last* dimension, and W is stored out × in. What does "
            "that make of W @ x?",
            "x @ W.T is the frozen part. The update goes through r numbers in between: first "
            "A.T, then B.T.",
        ),
        symptoms={
            "order": Symptom(
                "The matrices do not fit together.",
                "Write the shapes down: A is (r, in), B is (out, r). Only one order of the two "
                "gives (out, in), the shape of W. With x in front everything is transposed, and "
                "the order turns round.",
            ),
            "square": Symptom(
                "Works for square layers only.",
                "Nothing raises while in equals out. Which of your matrices needs a transpose?",
            ),
            "leading": Symptom(
                "Works for a plain batch, but not for other inputs.",
                "x may be one vector, or (batch, tokens, in). `@` works on the last dimensions "
                "and carries the others along, and `.T` is for two dimensions.",
            ),
            "unscaled": Symptom(
                "α is not used.",
                "The update is multiplied by α/r before it is added.",
            ),
            "per_rank": Symptom(
                "Your update grows with r.",
                "α alone is not the scale. With twice the rank, twice as many terms are added up: "
                "what is α divided by?",
            ),
            "rslora": Symptom(
                "That is the scale of another method, rsLoRA.",
                "rsLoRA divides by √r. It has its reasons (chapter 03). Here the paper's scale is "
                "asked for.",
            ),
            "twice": Symptom(
                "The scale is applied twice.",
                "Once for A and once for B makes (α/r)². One factor is enough.",
            ),
            "floor": Symptom(
                "The scale is rounded down.",
                "α/r need not be a whole number. What does `//` do that `/` does not?",
            ),
            "inverse": Symptom(
                "The scale is upside down.",
                "α/r, not r/α: a larger α means a larger update.",
            ),
            "base_missing": Symptom(
                "That is the update alone.",
                "The frozen weight still does its work: the update is *added* to its output.",
            ),
            "base_scaled": Symptom(
                "The frozen part is scaled too.",
                "α/r belongs to the update. Check where your brackets close.",
            ),
            "no_update": Symptom(
                "A and B change nothing.",
                "Your output is that of the frozen weight, whatever A and B are.",
            ),
            "w_transposed": Symptom(
                "W is used the wrong way round.",
                "`nn.Linear` stores out × in and computes x @ W.T. On a square layer nothing "
                "warns you.",
            ),
            "update_transposed": Symptom(
                "The update is used the wrong way round.",
                "x stands in front, so the first matrix it meets must have `in` as one side. "
                "Which one is that, and which of its sides does `@` match with x's last?",
            ),
        },
    ),
    "lora_gradients": Exercise(
        "lora_gradients",
        "2.3",
        hints=(
            "Apply the rule to the second layer (weight B, input h = x @ A.T), then to the first. "
            "Where does the scale enter?",
            "A gradient has the shape of its parameter. That leaves few ways to put three "
            "matrices together.",
            "With `flat = x.reshape(-1, x.shape[-1])`, and grad_y in the same way, leading "
            "dimensions are gone: a weight's gradient sums over all of them.",
        ),
        symptoms={
            "swapped": Symptom(
                "Which factor multiplies which gradient?",
                "These are the two gradients in the other order. Look at the shapes of what you "
                "return.",
            ),
            "order": Symptom(
                "The matrices do not fit together.",
                "Write down the shape of every factor: x (n, in), A (r, in), B (out, r), "
                "grad_y (n, out). Then the shape of what you want.",
            ),
            "leading": Symptom(
                "Works for a plain batch, but not for other inputs.",
                "With (batch, tokens, in) the gradient is a sum over both leading dimensions. "
                "Flatten them first.",
            ),
            "shape": Symptom(
                "A gradient has the shape of its parameter.",
                "Compare both shapes with A's and B's: one is transposed, or a factor is missing.",
            ),
            "always": Symptom(
                "A gets a gradient although B is zero.",
                "To reach A, the gradient has to pass through B. What is left of it there?",
            ),
            "never": Symptom(
                "A gets no gradient although B is not zero any more.",
                "At step 0 that is right. After the first step B has moved.",
            ),
            "b_zero": Symptom(
                "B gets no gradient.",
                "B's gradient does not contain B. What stands between x and B? Is that zero?",
            ),
            "scale": Symptom(
                "The scale α/r is missing, or not the right one.",
                "The update is s · B A x. A constant factor goes through a derivative unchanged, "
                "into both gradients.",
            ),
            "mean": Symptom(
                "Divided by the number of inputs.",
                "The gradient of a weight is a *sum* over all inputs. Where a loss is a mean, "
                "grad_y is that much smaller already.",
            ),
        },
    ),
    "lora_linear": Exercise(
        "lora_linear",
        "2.4",
        hints=(
            "The layer can still compute its own part: call it. Then neither its bias nor the way "
            "it stores its weight concerns you in `forward`.",
            "`nn.Parameter(tensor)`, set as an attribute, is what PyTorch trains and moves.",
            "`in` and `out` are both in `layer.weight.shape`. In which order, for which class?",
        ),
        symptoms={
            "conv1d": Symptom(
                "c_attn stores in × out.",
                "Conv1D is a linear layer with a transposed weight. Its `weight.shape` read as a "
                "Linear's gives A and B the wrong sides; where both sides are equal, nothing even "
                "raises.",
            ),
            "square": Symptom(
                "A or B has the wrong shape.",
                "A is (r, in) and B (out, r). `nn.Linear.weight` is (out, in).",
            ),
            "not_kept": Symptom(
                "The layer is not kept as self.layer.",
                "Later cells look for the frozen layer there, to merge into it and to put it back.",
            ),
            "not_frozen": Symptom(
                "The layer's own weights are trained too.",
                "Freezing is not automatic: each parameter has a switch, `requires_grad`. "
                "A bias is a parameter as well.",
            ),
            "not_trained": Symptom(
                "PyTorch does not know A and B.",
                "A plain tensor is no parameter: the optimizer never sees it. (Or it was frozen "
                "together with the layer.)",
            ),
            "no_op": Symptom(
                "The layer changed before training.",
                "B starts at zero, so a new LoRALinear must give what the layer alone gave.",
            ),
            "dead": Symptom(
                "A and B both start at zero.",
                "Then neither ever gets a gradient. Use your `init_lora`.",
            ),
            "bias": Symptom(
                "The bias is lost.",
                "Your `lora_forward` has no bias, but the layer may have one.",
            ),
            "scale": Symptom(
                "The update has the wrong size.",
                "Once `self.A` and `self.B` are set, the update is α/r · B A x. Is α divided by r, "
                "and not rounded?",
            ),
            "no_update": Symptom(
                "A and B change nothing.",
                "The check puts other numbers into `self.A` and `self.B`. Your output stayed that "
                "of the layer alone: `forward` has to use the attributes.",
            ),
        },
    ),
    "add_lora": Exercise(
        "add_lora",
        "2.5",
        hints=(
            "`model.named_modules()` gives paths and modules. Make a list of it before you change "
            "anything.",
            "`path.rpartition('.')[2]` is the last part of a path; "
            "`model.set_submodule(path, new)` puts a module there.",
            "Freeze everything first. New parameters are trainable by themselves.",
        ),
        symptoms={
            "conv1d": Symptom(
                "GPT-2's layers are no nn.Linear.",
                "`c_attn` and its neighbours are of the class Conv1D. `isinstance` takes several "
                "classes at once.",
            ),
            "nothing": Symptom(
                "No layer got an adapter.",
                "Print the paths of `model.named_modules()`. What do you compare them with? "
                "Only the *last* part of a path is the layer's name.",
            ),
            "look_alike": Symptom(
                "A name that only looks like it got an adapter too.",
                "`'proj' in path` and `path.endswith('proj')` are true of other names as well. "
                "Compare the last part of the path as a whole.",
            ),
            "kind": Symptom(
                "Something that is no linear layer got an adapter.",
                "A module may have the right name and be an embedding, a norm or a container. "
                "Ask for its class as well.",
            ),
            "every_layer": Symptom(
                "Layers that were not named got adapters too.",
                "Which argument says where adapters go?",
            ),
            "some": Symptom(
                "Only some of the layers got an adapter.",
                "The same name occurs in every block, and deep inside: `named_children()` sees "
                "only the first level, and a `return` inside a loop ends it.",
            ),
            "arguments": Symptom(
                "A and B have the wrong shapes.",
                "Are `r` and `alpha` passed on in the order in which LoRALinear takes them? And "
                "does the check of LoRALinear pass?",
            ),
            "not_frozen": Symptom(
                "More than A and B is trained.",
                "LoRALinear freezes the layers it holds. Embeddings, norms and all other layers "
                "are trained until somebody freezes them.",
            ),
            "all_frozen": Symptom(
                "Not every A and B is trained.",
                "In which order do you freeze and insert? What is inserted first is frozen with "
                "the rest.",
            ),
            "outputs": Symptom(
                "Everything is in its place, but the outputs are not PEFT's.",
                "Does the check of LoRALinear pass? Is it the model's own layer that you hand "
                "over, and are `r` and `alpha` the ones you were given?",
            ),
            "count_all": Symptom(
                "These include the frozen ones.",
                "The first number counts only what is trained. Which attribute of a parameter "
                "says so?",
            ),
            "tied": Symptom(
                "The shared embedding is counted twice.",
                "In this model, the embedding and the output head are one tensor. "
                "`model.parameters()` gives it once, `state_dict()` under both its names.",
            ),
            "tensors": Symptom(
                "These are tensors, not numbers.",
                "Each tensor holds many parameters: `.numel()`.",
            ),
        },
    ),
    "best_error": Exercise(
        "best_error",
        "2.6",
        hints=(
            "`torch.linalg.svdvals(D)` gives the singular values, largest first. The first r are "
            "what a matrix of rank r can keep.",
            "The Frobenius norm is the root of the sum of all squared entries, and also of all "
            "squared singular values.",
        ),
        symptoms={
            "sum": Symptom(
                "That is not the Frobenius norm.",
                "You added up the values that are left. A norm of this kind adds squares, and "
                "takes the root at the end.",
            ),
            "squared": Symptom(
                "The root is missing.",
                "That is the squared error, the loss below. The exercise asks for its root.",
            ),
            "largest": Symptom(
                "That is the largest value left, not all of them.",
                "The spectral norm looks at one direction only. The Frobenius norm counts every "
                "singular value that was cut off.",
            ),
            "kept": Symptom(
                "That is what is kept, not what is lost.",
                "The error is made of the singular values that rank r has no room for.",
            ),
            "off_by_one": Symptom(
                "One singular value too many, or too few.",
                "Rank r keeps r of them. Where does the rest start, if counting starts at 0?",
            ),
            "relative": Symptom(
                "Divided by the norm of D.",
                "A share is often useful. Here the error itself is asked for.",
            ),
        },
    ),
    "merge": Exercise(
        "merge",
        "2.7",
        hints=(
            "Merging is one line of exercise 2.2 without x: W + (α/r) · B @ A.",
            "bf16 keeps two to three digits. How often do you round to it, and when?",
            "`torch.finfo(y.dtype).eps` is the spacing of numbers near 1. Rounding errors are as "
            "large as that, times the size of what was added up.",
        ),
        symptoms={
            "order": Symptom(
                "The matrices do not fit together.",
                "W is (out, in). Which product of B (out, r) and A (r, in) is?",
            ),
            "scale": Symptom(
                "Off by α/r.",
                "The update that is merged has to be the one that the adapter added.",
            ),
            "update_only": Symptom(
                "That is the update alone.",
                "The merged weight replaces W, so it contains W.",
            ),
            "in_place": Symptom(
                "The weight that you were given changed too.",
                "Merge a second time, and the update is in there twice. `+=`, `add_` and `copy_` "
                "write into their left side; + makes a new tensor.",
            ),
            "dtype": Symptom(
                "The merged weight has another dtype than W.",
                "What replaces W has to take as many bytes. Which dtype did you return?",
            ),
            "rounded": Symptom(
                "Rounded too early.",
                "Some entries are not the nearest numbers that this dtype has. Product and sum "
                "belong in fp32; round once, at the end.",
            ),
            "exact": Symptom(
                "Rounding alone makes you say no.",
                "Two orders of the same additions differ in the last digits. `==` and "
                "`torch.equal` call that a mistake. If you have a tolerance already: work out the "
                "size of one step for this y on paper, and compare it with yours. Check the "
                "brackets, and which size of y you take.",
            ),
            "bf16": Symptom(
                "Your tolerance does not know how coarse the dtype is.",
                "An fp32 number has seven digits, a bf16 number two to three. The tolerance has "
                "to come from `y.dtype`.",
            ),
            "absolute": Symptom(
                "Your tolerance does not know how large the outputs are.",
                "0.001 is nothing beside 10,000, and everything beside 0.0001.",
            ),
            "entrywise": Symptom(
                "Entries near zero make you say no.",
                "An entry near zero is a difference of large numbers, with *their* rounding "
                "error. Measure against the largest entry, not against each one.",
            ),
            "mistake": Symptom(
                "A merge that is wrong passes.",
                "Here the two differ by more than `steps` times what the text calls one step. "
                "Is it the *largest* difference that you look at, whatever its sign?",
            ),
            "nan": Symptom(
                "NaN passes.",
                "Every comparison with NaN is False, `>` as well as `<=`. In which direction do "
                "you compare? (And Python's `max` may pass a NaN over.)",
            ),
        },
    ),
}  # fmt: skip

TOLERANCE = 1e-4  # of the largest entry: far above fp32's rounding, far below every mistake
# What a product of matrices that do not fit, or a layer without the expected attributes, raises.
MISFITS = (RuntimeError, ValueError, IndexError, AttributeError)

Typical = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Raised:
    """An answer that ended in an exception about shapes or attributes; `said`: its first line."""

    said: str


def attempt(answer: Callable[..., Any], *given: Any) -> Any:
    """What `answer` returns, or `Raised`. A stub's NotImplementedError is left alone."""
    try:
        return answer(*given)
    except NotImplementedError:
        raise
    except MISFITS as error:
        first = str(error).splitlines()[0] if str(error) else ""
        # A full stop would be followed by the message's own.
        return Raised(f"{type(error).__name__}: {first}".rstrip(". "))


def as_tensor(given: Any) -> torch.Tensor | None:
    """Real numbers of a tensor, an array or nested lists as float64, else None."""
    try:
        found = given if torch.is_tensor(given) else torch.as_tensor(np.asarray(given))
        if found.dtype == torch.bool or found.is_complex():
            return None
        return found.detach().cpu().to(torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def near(got: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether the two agree to `tolerance` times the largest entry that is expected."""
    if got.shape != expected.shape:
        return False
    if not expected.numel():
        return True
    size = expected.abs().max().item()
    return (got - expected).abs().max().item() <= tolerance * size


def _expect(
    exercise: Exercise, case: str, got: Any, expected: torch.Tensor, typical: Typical = ()
) -> None:
    """Raise unless `got` is `expected`; the first mistake that gives the same names the symptom."""
    found = as_tensor(got)
    if found is None:
        raise exercise.wrong(f"{case} should be a tensor; it gave {kind_of(got)}.")
    if near(found, expected):
        return
    key = next((key for key, mistaken in typical
                if not near(mistaken, expected) and near(found, mistaken)), None)
    if found.shape != expected.shape:
        raise exercise.wrong(
            f"{case} has the shape {tuple(found.shape)}; expected {tuple(expected.shape)}.", key)
    off = (found - expected).abs().max().item() / max(expected.abs().max().item(), 1e-30)
    raise exercise.wrong(f"{case} is off by up to {off:.2g} × its largest entry.", key)


def _pair(exercise: Exercise, case: str, got: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors from a pair."""
    found = [as_tensor(one) for one in got] if isinstance(got, list | tuple) else []
    if len(found) != 2 or found[0] is None or found[1] is None:
        raise exercise.wrong(f"{case} should be two tensors; it gave {kind_of(got)}.")
    return found[0], found[1]


@contextmanager
def _seeded(seed: str) -> Iterator[None]:
    """What is drawn here depends on `seed` alone, and nothing outside on what is drawn here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(low_rank.number(seed))
        yield


def _peft(model: nn.Module, names: Sequence[str], r: int, alpha: float, conv: bool) -> Any:
    """The model, wrapped by PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=r, lora_alpha=alpha, target_modules=list(names), fan_in_fan_out=conv)
        return get_peft_model(model, config, autocast_adapter_dtype=False)


# --- 2.1 -----------------------------------------------------------------------------------------

Sides = tuple[int, int, int]  # out_features, in_features, r
ASKED = ("shapes", "zero", "distribution")


def init_lora(answer: Callable[[int, int, int], Any]) -> None:
    """Shapes, the zero, and the distribution of A, on layers that are not square."""
    compare_init_lora(answer, [(300, 1200, 16), (900, 400, 48)])
    EXERCISES["init_lora"].passed("a pair that changes nothing, and can learn")


def compare_init_lora(
    answer: Callable[..., Any], cases: Iterable[Sides], ask: Iterable[str] = ASKED
) -> None:
    """`ask`: which of ASKED is compared. `distribution` needs some thousand entries in A."""
    exercise = EXERCISES["init_lora"]
    for n_out, n_in, r in cases:
        case = f"init_lora({n_out}, {n_in}, {r})"
        pair = _pair(exercise, case, answer(n_out, n_in, r))
        _compare_sides(case, pair, n_out, n_in, r)
        A, B = pair
        if "zero" in ask or "distribution" in ask:
            _compare_zero(case, A, B, ask)
        if "distribution" in ask:
            _compare_uniform(case, A, n_out)
            # A second call: the same shapes, other numbers.
            again, _ = _pair(exercise, case, answer(n_out, n_in, r))
            if again.shape == A.shape and torch.equal(again, A):
                raise exercise.wrong(f"{case} gives the same A each time.", "seeded")


def _compare_sides(
    case: str, pair: tuple[torch.Tensor, torch.Tensor], n_out: int, n_in: int, r: int
) -> None:
    A, B = (tuple(one.shape) for one in pair)
    if (A, B) == ((r, n_in), (n_out, r)):
        return
    key = None
    if (A, B) == ((n_in, r), (r, n_out)):
        key = "transposed"
    elif (A, B) == ((n_out, r), (r, n_in)):
        key = "order"
    elif (A, B) in (((r, n_out), (n_in, r)), ((r, n_in), (n_in, r)), ((r, n_out), (n_out, r))):
        key = "square"
    raise EXERCISES["init_lora"].wrong(f"{case} gives shapes {A} and {B}.", key)


def _compare_zero(case: str, A: torch.Tensor, B: torch.Tensor, ask: Iterable[str]) -> None:
    exercise = EXERCISES["init_lora"]
    zero = not A.any(), not B.any()
    if zero == (True, True):
        raise exercise.wrong(f"{case}: A and B are zero.", "both_zero")
    if zero == (False, False):
        raise exercise.wrong(f"{case}: B @ A is not zero.", "both_random")
    if zero == (True, False):
        raise exercise.wrong(f"{case}: A is zero and B is not.", "swapped")


def _compare_uniform(case: str, A: torch.Tensor, n_out: int) -> None:
    """A against U(−1/√in, 1/√in).

    A right answer fails once in a billion: Kolmogorov and Smirnov's distance at that level
    (Massart's bound), and a spread of fourteen standard errors.
    """
    exercise = EXERCISES["init_lora"]
    r, n_in = A.shape
    bound, largest = n_in**-0.5, A.abs().max().item()
    if not math.isfinite(largest):
        raise exercise.wrong(f"{case}: A holds entries that are no finite numbers.")
    said = f"{case}: the entries of A lie between {A.min():.3g} and {A.max():.3g}."
    if A.min() >= 0:
        raise exercise.wrong(said, "one_sided")
    spread = A.std().item() * 3**0.5  # of a uniform distribution: its bound
    if any(math.isclose(largest, side**-0.5, rel_tol=0.01)
           and math.isclose(spread, side**-0.5, rel_tol=0.05) for side in (r, n_out)):
        raise exercise.wrong(said, "fan")
    typical = math.isclose(spread, bound, rel_tol=0.05)
    if largest > bound * (1 + 1e-6):
        raise exercise.wrong(said, "gaussian" if typical else "spread")
    if not typical:
        raise exercise.wrong(said, "spread")
    places = (A.flatten().sort().values / bound + 1) / 2
    steps = torch.arange(1, len(places) + 1, dtype=places.dtype) / len(places)
    distance = torch.maximum(steps - places, places - steps + 1 / len(places)).max().item()
    if distance > (math.log(2 / 1e-9) / (2 * len(places))) ** 0.5:
        raise exercise.wrong(f"{case}: the entries of A are not spread evenly over the interval.")
    some = A[:, :64]
    if torch.linalg.matrix_rank(some) < min(some.shape):
        raise exercise.wrong(f"{case}: the rows of A are not drawn independently.")


# --- 2.2 -----------------------------------------------------------------------------------------


class Forward(NamedTuple):
    """A call of lora_forward: the shape of x's leading dimensions, and of everything else."""

    leading: tuple[int, ...]
    n_out: int
    n_in: int
    r: int
    alpha: float
    seed: str = ""

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """x, W, A, B: drawn anew each time, the same each time."""
        x = low_rank.normal(f"{self.seed}x", *self.leading, self.n_in)
        W = low_rank.normal(f"{self.seed}W", self.n_out, self.n_in) / self.n_in**0.5
        A = low_rank.normal(f"{self.seed}A", self.r, self.n_in) / self.n_in**0.5
        B = low_rank.normal(f"{self.seed}B", self.n_out, self.r)
        return x, W, A, B


def lora_forward(answer: Callable[..., Any]) -> None:
    """Outputs on square and other layers, against a PEFT layer with the same tensors."""
    compare_lora_forward(answer, [
        Forward((5,), 6, 6, 4, 4),
        Forward((5,), 6, 6, 4, 12),
        Forward((5,), 7, 4, 3, 10),
        Forward((2, 3), 4, 9, 2, 7),
        Forward((), 5, 8, 3, 8),
    ])  # fmt: skip
    EXERCISES["lora_forward"].passed("as PEFT computes it")


def compare_lora_forward(answer: Callable[..., Any], cases: Iterable[Forward]) -> None:
    """Raise WrongAnswer at the first call whose output `answer` gets wrong."""
    exercise = EXERCISES["lora_forward"]
    passed: list[Forward] = []
    for case in cases:
        x, W, A, B = case.tensors()
        said = (f"lora_forward(x {tuple(x.shape)}, W {tuple(W.shape)}, A {tuple(A.shape)}, "
                f"B {tuple(B.shape)}, alpha={case.alpha}, r={case.r})")
        got = attempt(answer, x, W, A, B, case.alpha, case.r)
        if isinstance(got, Raised):
            raise exercise.wrong(f"{said} raised {got.said}.", _misfit(case, passed))
        expected = _peft_layer(x, W, A, B, case.alpha)
        _expect(exercise, said, got, expected, _mistaken_forward(case))
        passed.append(case)


def _misfit(case: Forward, passed: Iterable[Forward]) -> str:
    """What a call that raised tells, after those that did not."""
    if len(case.leading) != 1 and any(one.n_in != one.n_out for one in passed):
        return "leading"
    if case.n_in != case.n_out and any(one.n_in == one.n_out for one in passed):
        return "square"
    return "order"


def _peft_layer(
    x: torch.Tensor, W: torch.Tensor, A: torch.Tensor, B: torch.Tensor, alpha: float
) -> torch.Tensor:
    """The output of PEFT's layer for these tensors, in float64."""
    model = nn.Sequential(nn.Linear(W.shape[1], W.shape[0], bias=False)).double()
    model[0].weight.data.copy_(W)
    wrapped = _peft(model, ["0"], A.shape[0], alpha, conv=False)
    layer = model[0]
    layer.lora_A["default"].weight.data.copy_(A)
    layer.lora_B["default"].weight.data.copy_(B)
    with torch.no_grad():
        return wrapped(x.double())


def _mistaken_forward(case: Forward) -> Typical:
    x, W, A, B = (one.double() for one in case.tensors())
    base, update = x @ W.T, x @ A.T @ B.T
    scale = case.alpha / case.r
    yield "no_update", base
    yield "base_missing", scale * update
    yield "base_missing", update
    yield "base_scaled", scale * (base + update)
    yield "unscaled", base + update
    yield "per_rank", base + case.alpha * update
    yield "rslora", base + case.alpha / case.r**0.5 * update
    yield "twice", base + scale**2 * update
    yield "twice", base + case.alpha * scale * update
    yield "floor", base + case.alpha // case.r * update
    yield "inverse", base + update / scale
    if case.n_in == case.n_out:
        yield "w_transposed", x @ W + scale * update
        yield "w_transposed", x @ (W + scale * B @ A)
        for factor in (scale, 1.0, case.alpha):
            yield "update_transposed", base + factor * (x @ B @ A)


def scales_apart(r: int, alpha: float) -> bool:
    """Whether each typical mistake about the scale is another number here."""
    scale = alpha / r
    found = sorted([scale, 1.0, alpha, alpha / r**0.5, scale**2, alpha * scale, 1 / scale,
                    alpha // r])  # fmt: skip
    return all(b > 1.05 * a for a, b in zip(found, found[1:]))


# --- 2.3 -----------------------------------------------------------------------------------------


def lora_gradients(answer: Callable[..., Any]) -> None:
    """Both gradients against autograd, at step 0 and later."""
    def by_hand(*given: Any) -> Any:
        with _without_autograd():
            return answer(*given)

    compare_lora_gradients(by_hand, [
        (Forward((5,), 6, 4, 3, 10), True),
        (Forward((5,), 6, 4, 3, 10), False),
        (Forward((2, 3), 4, 9, 2, 7), False),
    ])  # fmt: skip
    EXERCISES["lora_gradients"].passed("as autograd computes them; at step 0 only B learns")


@contextmanager
def _without_autograd() -> Iterator[None]:
    """While this holds, a backward pass is a wrong answer, as it is when graded.

    `Tensor.backward`, `torch.autograd.grad` and torch.func all end in the function replaced here.
    """
    def refuse(*given: Any, **named: Any) -> None:
        raise EXERCISES["lora_gradients"].wrong(
            "lora_gradients asks autograd for the gradients. It is off, here and when graded.")

    with mock.patch.object(torch.autograd, "_engine_run_backward", refuse):
        yield


def compare_lora_gradients(
    answer: Callable[..., Any],
    cases: Iterable[tuple[Forward, bool]],
    ask: Iterable[str] = ("A", "B"),
) -> None:
    """Cases: (a call, whether B is zero). `ask`: whose gradient is compared."""
    exercise = EXERCISES["lora_gradients"]
    flat_passed = False
    for case, at_start in cases:
        x, W, A, B = case.tensors()
        B = torch.zeros_like(B) if at_start else B
        grad_y = low_rank.normal(f"{case.seed}G", *case.leading, case.n_out)
        said = (f"lora_gradients(x {tuple(x.shape)}, A, B{' = 0' if at_start else ''}, "
                f"alpha={case.alpha}, r={case.r}, grad_y)")
        got = attempt(answer, x, A, B, case.alpha, case.r, grad_y)
        if isinstance(got, Raised):
            key = "leading" if flat_passed and len(case.leading) > 1 else "order"
            raise exercise.wrong(f"{said} raised {got.said}.", key)
        right = _autograd(x, W, A, B, case.alpha / case.r, grad_y)
        found = dict(zip("AB", _pair(exercise, said, got)))
        _compare_gradients(said, found, right, at_start, case, ask)
        flat_passed |= len(case.leading) == 1


def _autograd(
    x: torch.Tensor, W: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scale: float,
    grad_y: torch.Tensor,
) -> dict[str, torch.Tensor]:  # fmt: skip
    x, W, grad_y = x.double(), W.double(), grad_y.double()
    A, B = (one.double().requires_grad_() for one in (A, B))
    y = x @ W.T + scale * (x @ A.T @ B.T)
    return dict(zip("AB", torch.autograd.grad(y, (A, B), grad_y)))


def _compare_gradients(
    said: str, found: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor],
    at_start: bool, case: Forward, ask: Iterable[str],
) -> None:  # fmt: skip
    exercise = EXERCISES["lora_gradients"]
    shapes = {name: tuple(one.shape) for name, one in found.items()}
    wanted = {name: tuple(one.shape) for name, one in right.items()}
    if shapes != wanted:
        key = "shape"
        if shapes == {"A": wanted["B"], "B": wanted["A"]}:
            key = "swapped"
        elif len(case.leading) > 1 and any(len(shape) > 2 for shape in shapes.values()):
            key = "leading"
        raise exercise.wrong(f"{said}: the gradients have the shapes {shapes}.", key)
    count, scale = math.prod(case.leading), case.alpha / case.r
    for name in ask:
        if name == "A" and at_start and found["A"].any():
            raise exercise.wrong(f"{said}: the gradient of A is not zero.", "always")
        if not found[name].any() and right[name].any():
            raise exercise.wrong(
                f"{said}: the gradient of {name} is zero.", "never" if name == "A" else "b_zero")
        typical = [("scale", right[name] * other / scale)
                   for other in (1.0, case.alpha, scale**2, 1 / scale, case.alpha / case.r**0.5,
                                 case.alpha // case.r)]  # fmt: skip
        for share in {count, case.leading[0], case.leading[-1]}:
            typical.append(("mean", right[name] / share))
        _expect(exercise, f"{said}: the gradient of {name}", found[name], right[name], typical)


# --- 2.4 -----------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A layer to be wrapped. kind: "Linear" or "Conv1D"."""

    kind: str
    n_in: int
    n_out: int
    bias: bool
    r: int
    alpha: float
    seed: str = ""

    def make(self) -> nn.Module:
        """The layer, with weights (and a bias, if it has one) that depend on the seed alone."""
        from transformers.pytorch_utils import Conv1D

        with _seeded(self.seed):
            if self.kind == "Conv1D":
                layer = Conv1D(self.n_out, self.n_in)
                layer.weight.data.normal_(std=self.n_in**-0.5)
                layer.bias.data.normal_()
            else:
                layer = nn.Linear(self.n_in, self.n_out, bias=self.bias)
        return layer

    def __str__(self) -> str:
        bias = "" if self.bias else ", no bias"
        return f"LoRALinear({self.kind} {self.n_in} → {self.n_out}{bias}, r={self.r}, …)"


def layer_report(given: Any, n_in: int, seed: str) -> dict[str, Any]:
    """What a LoRALinear is and does, as data.

    It runs where the answer is: outputs before and after other numbers are put into A and B.
    """
    if not isinstance(given, nn.Module):
        return {"kind": kind_of(given)}
    found: dict[str, Any] = {
        "kind": type(given).__name__,
        "trained": {name: list(one.shape) for name, one in given.named_parameters()
                    if one.requires_grad},
        "shapes": {name: list(getattr(given, name).shape) for name in "AB"
                   if torch.is_tensor(getattr(given, name, None))},
    }  # fmt: skip
    kept = getattr(given, "layer", None)
    if isinstance(kept, nn.Module) and torch.is_tensor(getattr(kept, "weight", None)):
        found["kept"] = kept.weight.detach().clone()
    x = low_rank.normal(f"{seed}input", 3, n_in)
    try:
        with torch.no_grad():
            found["dead"] = not given.A.any() and not given.B.any()
            found["before"] = given(x)
            _fill(given, seed)
            found["after"] = given(x)
    except NotImplementedError:
        raise
    except MISFITS as error:
        found["error"] = f"{type(error).__name__}: {str(error)[:100]}"
    return found


def _fill(module: nn.Module, seed: str) -> None:
    """Other numbers for A and B, which depend on their shapes and the seed alone."""
    for name, size in (("A", module.A.shape[-1] ** -0.5), ("B", 1.0)):
        tensor = getattr(module, name)
        tensor.data.copy_(size * low_rank.normal(seed + name, *tensor.shape))


VISIBLE_LAYERS = (
    Layer("Linear", 5, 7, False, 3, 10),
    Layer("Linear", 8, 6, True, 2, 7),
    Layer("Conv1D", 6, 9, True, 2, 7),
    Layer("Conv1D", 6, 6, True, 3, 10),
)


def lora_linear(answer: Callable[..., Any]) -> None:
    """A wrapped Linear and a wrapped Conv1D, before and after training, against PEFT."""
    def report(layer: Layer) -> Any:
        return layer_report(answer(layer.make(), layer.r, layer.alpha), layer.n_in, layer.seed)

    compare_lora_linear(report, VISIBLE_LAYERS)
    EXERCISES["lora_linear"].passed("Linear and Conv1D, a no-op until trained")


def compare_lora_linear(report: Callable[[Layer], Any], layers: Iterable[Layer]) -> None:
    """`report` gives the `layer_report` of the answer for a layer."""
    exercise = EXERCISES["lora_linear"]
    for layer in layers:
        conv = layer.kind == "Conv1D"
        found = attempt(report, layer)
        if isinstance(found, Raised):
            raise exercise.wrong(f"{layer} raised {found.said}.", "conv1d" if conv else None)
        found = found if isinstance(found, Mapping) else {}
        if "trained" not in found:
            gave = shortened(found.get("kind")).strip("'")
            raise exercise.wrong(f"{layer} should be an nn.Module; it is {gave}.")
        _compare_layer_parameters(layer, found)
        kept = as_tensor(found.get("kept"))
        if kept is None or not near(kept, layer.make().weight.detach().double()):
            raise exercise.wrong(f"{layer}: self.layer is not the layer.", "not_kept")
        if "error" in found:
            said = shortened(found["error"]).strip("'\". ")
            raise exercise.wrong(f"{layer}: using it raised {said}.", "conv1d" if conv else None)
        if as_truth(found.get("dead")):
            raise exercise.wrong(f"{layer}: A and B are zero.", "dead")
        _compare_layer_outputs(layer, found)


def _compare_layer_parameters(layer: Layer, found: Mapping[str, Any]) -> None:
    exercise = EXERCISES["lora_linear"]
    shapes, trained = _shapes(found.get("shapes")), _shapes(found["trained"])
    wanted = {"A": (layer.r, layer.n_in), "B": (layer.n_out, layer.r)}
    if set(shapes) != {"A", "B"}:
        raise exercise.wrong(f"{layer} has no tensors self.A and self.B.")
    if shapes != wanted:
        key = "conv1d" if layer.kind == "Conv1D" else "square"
        raise exercise.wrong(f"{layer}: A and B have the shapes {shapes}.", key)
    if not {"A", "B"} <= set(trained):
        raise exercise.wrong(f"{layer}: trained parameters are {sorted(trained)}.", "not_trained")
    if set(trained) != {"A", "B"}:
        raise exercise.wrong(f"{layer}: trained parameters are {sorted(trained)}.", "not_frozen")


def _shapes(given: Any) -> dict[str, tuple[Any, ...]]:
    """Shapes by name, from data that may be anything."""
    given = given if isinstance(given, Mapping) else {}
    return {str(name)[:60]: tuple(as_whole(side) for side in shape)
            for name, shape in given.items() if isinstance(shape, list | tuple)}


def _compare_layer_outputs(layer: Layer, found: Mapping[str, Any]) -> None:
    exercise, conv = EXERCISES["lora_linear"], layer.kind == "Conv1D"
    plain = layer.make()
    x = low_rank.normal(f"{layer.seed}input", 3, layer.n_in)
    with torch.no_grad():
        base = plain(x).double()
        model = nn.Sequential(plain)
        wrapped = _peft(model, ["0"], layer.r, layer.alpha, conv)
        A, B = model[0].lora_A["default"].weight, model[0].lora_B["default"].weight
        A.copy_(layer.n_in**-0.5 * low_rank.normal(f"{layer.seed}A", *A.shape))
        B.copy_(low_rank.normal(f"{layer.seed}B", *B.shape))
        after = wrapped(x).double()
        bias = plain.bias.double() if layer.bias else torch.zeros(())
        other = x.double() @ plain.weight.double().T if layer.n_in == layer.n_out else None
    update, scale = after - base, layer.alpha / layer.r
    before = [("bias", base - bias)]
    if conv and other is not None:
        before += [("conv1d", other), ("conv1d", other + bias)]
    said = f"{layer}: the output before training"
    got = as_tensor(found.get("before"))
    typical = [*before, ("no_op", got)] if got is not None else before
    _expect(exercise, said, found.get("before"), base, typical)
    typical = [("no_update", base), ("bias", after - bias)]
    typical += [("scale", base + update * wrong / scale) for wrong in
                (1.0, layer.alpha, layer.alpha / layer.r**0.5, scale**2, 1 / scale,
                 layer.alpha // layer.r)]  # fmt: skip
    _expect(exercise, f"{layer}: the output once A and B are set", found.get("after"), after,
            typical)


# --- 2.5 -----------------------------------------------------------------------------------------


class Model(NamedTuple):
    """A small model, and where adapters go.

    kind: a `model_type` of transformers, or "made_up": blocks whose layers are called `names[0]`
    and much like it.
    """

    kind: str
    sizes: tuple[tuple[str, int], ...]
    names: tuple[str, ...]
    r: int
    alpha: float
    seed: str = ""

    @property
    def conv(self) -> bool:
        return self.kind in ("gpt2", "openai-gpt")

    def make(self) -> nn.Module:
        """The model, with weights that depend on the seed alone."""
        with _seeded(self.seed):
            if self.kind == "made_up":
                return _MadeUp(self.names[0], **dict(self.sizes))
            from transformers import AutoConfig, AutoModelForCausalLM

            config = AutoConfig.for_model(self.kind, **dict(self.sizes), **_PLAIN)
            return AutoModelForCausalLM.from_config(config).eval()

    def wrapped(self) -> Any:
        """The model, wrapped by PEFT."""
        model, names = self.make(), self.names
        if self.kind == "made_up":  # by its path, for PEFT puts adapters around embeddings too
            names = tuple(path for path, module in model.named_modules()
                          if isinstance(module, nn.Linear) and path.split(".")[-1] in names)
        return _peft(model, names, self.r, self.alpha, self.conv)

    def __str__(self) -> str:
        name = "a made-up model" if self.kind == "made_up" else f"a small {self.kind} model"
        return f"add_lora({name}, {list(self.names)}, r={self.r}, alpha={self.alpha})"


_PLAIN: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


class _MadeUp(nn.Module):
    """Blocks of linear layers of which one in three is meant, and an embedding of its name."""

    def __init__(self, name: str, width: int, blocks: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                name: nn.Linear(width, 2 * width),
                f"pre{name}": nn.Linear(2 * width, width, bias=False),
                f"{name}_norm": nn.LayerNorm(width),
                f"{name}er": nn.ModuleDict({
                    "inner": nn.Linear(width, width), name: nn.Embedding(3, width)}),
            }) for _ in range(blocks)
        )  # fmt: skip
        self.name, self.width = name, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            new = block[f"pre{self.name}"](block[self.name](block[f"{self.name}_norm"](x)))
            other = block[f"{self.name}er"]
            x = x + other["inner"](torch.relu(new)) + other[self.name](torch.arange(len(x)))
        return x


def model_report(given: Any, seed: str) -> dict[str, Any]:
    """What add_lora made of a model, as data: adapters by path, what is trained, two outputs."""
    if not isinstance(given, nn.Module):
        return {"kind": kind_of(given)}
    places = {path: module for path, module in given.named_modules()
              if all(torch.is_tensor(getattr(module, name, None)) for name in "AB")}
    found: dict[str, Any] = {
        "kind": type(given).__name__,
        "adapters": {path: [*module.A.shape, *module.B.shape] for path, module in places.items()},
        "trained": [name for name, one in given.named_parameters() if one.requires_grad],
    }
    try:
        with torch.no_grad():
            found["before"] = _output(given)
            for path, module in places.items():
                _fill(module, seed + path)
            found["after"] = _output(given)
    except NotImplementedError:
        raise
    except MISFITS as error:
        found["error"] = f"{type(error).__name__}: {str(error)[:100]}"
    return found


def _output(model: nn.Module) -> torch.Tensor:
    if hasattr(model, "config") and hasattr(model.config, "vocab_size"):
        return model.eval()(input_ids=torch.tensor([[3, 5, 8, 13, 21, 34]])).logits
    return model.eval()(low_rank.normal("made up", 3, model.width))


def _llama(kind: str = "llama", **changed: int) -> tuple[tuple[str, int], ...]:
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
    return tuple((sizes | changed).items())


VISIBLE_MODELS = (
    Model("llama", _llama(), ("q_proj", "v_proj"), 4, 12),
    Model("gpt2", (("n_embd", 24), ("n_layer", 2), ("n_head", 2)), ("c_attn",), 3, 10),
    Model("made_up", (("width", 8), ("blocks", 2)), ("mix",), 2, 7),
)


def add_lora(answer: Callable[..., Any], count: Callable[[Any], Any]) -> None:
    """Where adapters are, what is trained, what comes out and how much it is, against PEFT."""
    def report(model: Model) -> Any:
        given = answer(model.make(), list(model.names), model.r, model.alpha)
        return model_report(given, model.seed)

    compare_add_lora(report, VISIBLE_MODELS)
    compare_count(lambda model: count(model.wrapped()), VISIBLE_MODELS[:2])
    EXERCISES["add_lora"].passed("places, frozen parameters, outputs and counts are PEFT's")


@lru_cache
def _peft_report(model: Model) -> Mapping[str, Any]:
    """What `model_report` says of PEFT's model, with the paths that the model had before."""
    wrapped = model.wrapped()
    inner = wrapped.base_model.model
    adapters = {path: module for path, module in inner.named_modules()
                if hasattr(module, "lora_A")}
    with torch.no_grad():
        before = _output(inner).double()
        for path, module in adapters.items():
            A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
            A.copy_(A.shape[-1] ** -0.5 * low_rank.normal(f"{model.seed}{path}A", *A.shape))
            B.copy_(low_rank.normal(f"{model.seed}{path}B", *B.shape))
        after = _output(inner).double()
    return {
        "adapters": {path: (*module.lora_A["default"].weight.shape,
                            *module.lora_B["default"].weight.shape)
                     for path, module in adapters.items()},
        "before": before, "after": after, "counts": wrapped.get_nb_trainable_parameters(),
        "tensors": [one.requires_grad for one in wrapped.parameters()],
        "named": [one.numel() for one in wrapped.state_dict().values()],
        "linear": {path for path, module in model.make().named_modules()
                   if type(module).__name__ in ("Linear", "Conv1D")},
    }  # fmt: skip


def compare_add_lora(report: Callable[[Model], Any], models: Iterable[Model]) -> None:
    """`report` gives the `model_report` of the answer for a model."""
    exercise = EXERCISES["add_lora"]
    for model in models:
        found = attempt(report, model)
        if isinstance(found, Raised):
            raise exercise.wrong(f"{model} raised {found.said}.", "conv1d" if model.conv else None)
        found = found if isinstance(found, Mapping) else {}
        right = _peft_report(model)
        if not isinstance(found.get("adapters"), Mapping):
            gave = shortened(found.get("kind")).strip("'")
            raise exercise.wrong(f"{model} should return the model; it gave {gave}.")
        shapes = _shapes(found["adapters"])
        _compare_places(model, set(shapes), right)
        if shapes != right["adapters"]:
            path = next(path for path in shapes if shapes[path] != right["adapters"][path])
            said = f"{model}: A and B at {path} have the sides {shapes[path]}."
            raise exercise.wrong(said, "arguments")
        _compare_trained(model, found.get("trained"), set(shapes))
        if "error" in found:
            said = shortened(found["error"]).strip("'\". ")
            raise exercise.wrong(f"{model}: using the model raised {said}.", "outputs")
        for when in ("before", "after"):
            got = as_tensor(found.get(when))
            typical = [] if got is None else [("outputs", got)]
            said = f"{model}: the output {when} training"
            _expect(exercise, said, found.get(when), right[when], typical)


def _compare_places(model: Model, got: set[str], right: Mapping[str, Any]) -> None:
    exercise, wanted = EXERCISES["add_lora"], set(right["adapters"])
    if got == wanted:
        return
    if not got:
        raise exercise.wrong(
            f"{model} made no adapters.", "conv1d" if model.conv else "nothing")
    extra = sorted(got - wanted)
    if not extra:
        said = f"{model}: {len(got)} adapters where PEFT has {len(wanted)}."
        raise exercise.wrong(said, "some")
    if not set(extra) & right["linear"] and any(
            path.rpartition(".")[2] in model.names for path in extra):
        raise exercise.wrong(f"{model}: there is an adapter at {shortened(extra[0])}.", "kind")
    alike = all(any(name in path for name in model.names) for path in extra)
    key = "look_alike" if alike else "every_layer" if set(extra) <= right["linear"] else None
    raise exercise.wrong(f"{model}: there is an adapter at {shortened(extra[0])}.", key)


def _compare_trained(model: Model, given: Any, places: set[str]) -> None:
    exercise = EXERCISES["add_lora"]
    names = given if isinstance(given, list) else []
    got = {name for name in names if isinstance(name, str)}
    wanted = {f"{path}.{name}" for path in places for name in "AB"}
    if missing := sorted(wanted - got):
        raise exercise.wrong(f"{model}: {missing[0]} is not trained.", "all_frozen")
    if extra := sorted(got - wanted):
        raise exercise.wrong(f"{model}: {shortened(extra[0])} is trained as well.", "not_frozen")


def compare_count(answer: Callable[[Model], Any], models: Iterable[Model]) -> None:
    """`answer` gives (trained, all) parameters of a model that PEFT has wrapped."""
    exercise = EXERCISES["add_lora"]
    for model in models:
        trained, total = _peft_report(model)["counts"]
        got = answer(model)
        numbers = got.tolist() if hasattr(got, "tolist") else got
        numbers = numbers if isinstance(numbers, list | tuple) else ()
        case = f"count_parameters(a small {model.kind} model with adapters)"
        if len(numbers) != 2 or any(as_number(one) is None for one in numbers):
            raise exercise.wrong(f"{case} should be two numbers; it gave {kind_of(got)}.")
        tensors, named = (_peft_report(model)[key] for key in ("tensors", "named"))
        exercise.expect_number(f"{case}: trained", numbers[0], trained, {
            "count_all": (total, total - trained, sum(named)), "tensors": sum(tensors),
        })  # fmt: skip
        exercise.expect_number(f"{case}: all", numbers[1], total, {
            "tied": sum(named), "tensors": (len(tensors), len(named)),
        })  # fmt: skip


# --- 2.6 -----------------------------------------------------------------------------------------


def best_error(answer: Callable[[torch.Tensor, int], Any]) -> None:
    """The error of the best matrix of rank r, for a full and for a low-rank matrix."""
    full, low = low_rank.normal("full", 6, 9), low_rank.matrix(8, 5, (4.0, 3.0, 1.5), "low")
    compare_best_error(answer, [(full, 2), (full, 4), (low, 1), (low, 4), (full, 0)])
    EXERCISES["best_error"].passed("the root of the sum of the squared rest")


def compare_best_error(
    answer: Callable[[torch.Tensor, int], Any], cases: Iterable[tuple[torch.Tensor, int]]
) -> None:
    """Cases: (D, rank)."""
    exercise = EXERCISES["best_error"]
    for D, r in cases:
        case = f"best_error(D {tuple(D.shape)}, {r})"
        values = torch.linalg.svdvals(D.double())
        whole, expected = _root(values), _root(values[r:])
        number = as_number(answer(D.clone(), r))
        if number is not None and abs(number - expected) <= TOLERANCE * whole:
            continue
        typical: dict[str, list[float]] = {}
        for key, value in _mistaken_errors(values, r):
            if abs(value - expected) > 2 * TOLERANCE * whole:
                typical.setdefault(key, []).append(value)
        named = {key: tuple(found) for key, found in typical.items()}
        exercise.expect_number(case, number, expected, named, rel_tol=TOLERANCE)
        raise exercise.wrong(f"{case} gave {shortened(number)}.")


def _root(values: torch.Tensor) -> float:
    return values.square().sum().sqrt().item()


def _mistaken_errors(values: torch.Tensor, r: int) -> Iterator[tuple[str, float]]:
    rest = values[r:]
    if len(rest):
        yield "sum", rest.sum().item()
        yield "squared", rest.square().sum().item()
        yield "largest", rest.max().item()
        yield "relative", _root(rest) / _root(values)
        yield "relative", rest.square().sum().item() / values.square().sum().item()
    yield "kept", _root(values[:r])
    yield "kept", values[:r].sum().item()
    yield "off_by_one", _root(values[r + 1 :])
    yield "off_by_one", _root(values[max(r - 1, 0) :])


# --- 2.7 -----------------------------------------------------------------------------------------


class Merge(NamedTuple):
    """A call of merge. dtype: W's, by torch's name; A and B are in fp32, as PEFT keeps them."""

    n_out: int
    n_in: int
    r: int
    alpha: float
    dtype: str = "float32"
    seed: str = ""

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """W, A, B: the update is about as large as the weight."""
        _, W, A, B = Forward((), self.n_out, self.n_in, self.r, self.alpha, self.seed).tensors()
        return W.to(getattr(torch, self.dtype)), A, 0.5 * B


_GIVEN: list[torch.Tensor] = []


def given_weight(*call: Any) -> torch.Tensor:
    """W of `Merge(*call)`, remembered until the next one is made."""
    _GIVEN[:] = [Merge(*call).tensors()[0]]
    return _GIVEN[0]


def merge_report(merged: Any) -> dict[str, Any]:
    """The merged weight, and what has become of the one that was given."""
    return {"merged": merged, "weight": _GIVEN[0]}


def merge(answer: Callable[..., Any], agree: Callable[..., Any]) -> None:
    """Merged weights in fp32 and bf16, and a comparison that allows for rounding."""
    def report(case: Merge) -> Any:
        _, A, B = case.tensors()
        return merge_report(answer(given_weight(*case), A, B, case.alpha, case.r))

    compare_merge(report, [Merge(7, 5, 3, 10), Merge(40, 60, 4, 12, "bfloat16")])
    compare_agree(agree, agreements("visible"))
    EXERCISES["merge"].passed("rounded once, and compared with the dtype's own precision")


def compare_merge(report: Callable[[Merge], Any], cases: Iterable[Merge]) -> None:
    """`report` gives the `merge_report` of the answer for a case."""
    exercise = EXERCISES["merge"]
    for case in cases:
        W, A, B = case.tensors()
        said = f"merge(W {tuple(W.shape)} {W.dtype}, A, B, alpha={case.alpha}, r={case.r})"
        found = attempt(report, case)
        if isinstance(found, Raised):
            raise exercise.wrong(f"{said} raised {found.said}.", "order")
        found = found if isinstance(found, Mapping) else {}
        got, after = as_tensor(found.get("merged")), as_tensor(found.get("weight"))
        if got is None:
            gave = kind_of(found.get("merged"))
            raise exercise.wrong(f"{said} should be a tensor; it gave {gave}.")
        update, scale = B.double() @ A.double(), case.alpha / case.r
        exact = W.double() + scale * update
        _expect_merged(said, got, exact, W, update, case)
        dtype = getattr(found["merged"], "dtype", None)
        # Lists of Python numbers have no dtype to be wrong.
        if W.dtype != torch.float32 and dtype != W.dtype:
            raise exercise.wrong(f"{said} is of {dtype or kind_of(found['merged'])}.", "dtype")
        spacing = torch.finfo(W.dtype).eps * 2.0 ** torch.floor(torch.log2(exact.abs()))
        off = (got - exact).abs() - 1e-6 * exact.abs().max()
        if W.dtype != torch.float32 and (off > 0.505 * spacing).any():
            share = (off > 0.505 * spacing).double().mean().item()
            said = f"{said}: {100 * share:.0f} % of the entries are not the nearest {W.dtype}."
            raise exercise.wrong(said, "rounded")
        if after is None or not torch.equal(after, W.double()):
            raise exercise.wrong(f"{said}: W is another one now.", "in_place")


def _expect_merged(
    said: str, got: torch.Tensor, exact: torch.Tensor, W: torch.Tensor, update: torch.Tensor,
    case: Merge,
) -> None:  # fmt: skip
    """Roughly right: what is left is rounding."""
    tolerance = max(TOLERANCE, 3 * torch.finfo(W.dtype).eps)
    if near(got, exact, tolerance):
        return
    base, scale = W.double(), case.alpha / case.r
    typical = [("update_only", scale * update), ("update_only", update)]
    typical += [("scale", base + wrong * update) for wrong in
                (1.0, case.alpha, case.alpha / case.r**0.5, scale**2, 1 / scale,
                 case.alpha // case.r, 0.0)]  # fmt: skip
    key = next((key for key, mistaken in typical if near(got, mistaken, tolerance)), None)
    if got.shape != exact.shape:
        raise EXERCISES["merge"].wrong(f"{said} has the shape {tuple(got.shape)}.", key)
    off = (got - exact).abs().max().item() / exact.abs().max().item()
    raise EXERCISES["merge"].wrong(f"{said} is off by up to {off:.2g} × its largest entry.", key)


class Agreement(NamedTuple):
    """A call of agree: what the two outputs are, whether they agree, and whose mistake it shows."""

    said: str
    y: torch.Tensor
    z: torch.Tensor
    steps: float
    right: bool
    symptom: str


def agreements(seed: str, steps: float = 16) -> list[Agreement]:
    """Pairs of outputs that differ by half of what `steps` allows, or less, or by 2.5 times it.

    A step is eps of the dtype times the largest magnitude.
    """
    y = low_rank.normal(f"{seed}y", 4, 30)
    y = y + 2 * y.sign()  # no entry near zero
    small = y.clone()
    small[1, 7] = 1e-5
    found = [Agreement("the same output twice", y, y.clone(), steps, True, "exact")]
    for said, given, dtype, share, key in (
        ("fp32, rounding", y, torch.float32, 0.5, "exact"),
        ("fp32, an entry near zero", small, torch.float32, 0.5, "entrywise"),
        ("fp32, outputs of 100,000, rounding", 4e4 * y, torch.float32, 0.5, "absolute"),
        ("bf16, rounding", y, torch.bfloat16, 0.2, "bf16"),
        ("fp32, a mistake", y, torch.float32, 2.5, "mistake"),
        ("fp32, outputs of 0.00001, a mistake", 4e-6 * y, torch.float32, 2.5, "absolute"),
        ("bf16, a mistake", y, torch.bfloat16, 2.5, "mistake"),
        ("fp32, a mistake downwards", y, torch.float32, -2.5, "mistake"),
    ):
        found.append(Agreement(said, *_apart(given.to(dtype), share * steps), steps,
                               abs(share) < 1, key))
    broken = y.clone()
    broken[2, 3] = math.nan
    found.append(Agreement("NaN in z", y, broken, steps, False, "nan"))
    return found


def _apart(y: torch.Tensor, distance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """y, and a z whose entry [1, 7] differs by that many steps."""
    z = y.clone()
    z[1, 7] = y[1, 7].double() + distance * torch.finfo(y.dtype).eps * y.double().abs().max()
    return y, z


def compare_agree(agree: Callable[..., Any], cases: Iterable[Agreement]) -> None:
    """Raise WrongAnswer at the first pair that `agree` judges wrongly."""
    exercise = EXERCISES["merge"]
    for said, y, z, steps, right, key in cases:
        got = agree(y, z, steps)
        truth = as_truth(got)
        if truth is None:
            raise exercise.wrong(f"agree(y, z, {steps}) should be True or False; "
                                 f"it gave {kind_of(got)}.")
        if truth != right:
            raise exercise.wrong(f"agree(y, z, {steps}) says {truth} ({said}).", key)
