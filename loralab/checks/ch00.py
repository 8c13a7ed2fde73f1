"""Chapter 00's visible check: how many numbers a low-rank pair holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from loralab.checks import Exercise, Symptom

LOW_RANK_PARAMETERS = Exercise(
    "low_rank_parameters",
    "0.1",
    hints=(
        "Draw the two matrices with their sides written on them. How many entries has each?",
        "B has `out_features` rows of `r` numbers. A has `r` rows of `in_features` numbers. "
        "The two are stored side by side, so their entries add up.",
    ),
    symptoms={
        "square": Symptom(
            "Right for square matrices, wrong for the others.",
            "For a square matrix the two factors have equally many entries, and doubling one of "
            "them works by luck. Many matrices in real models are not square: count each factor "
            "with its own sides.",
        ),
        "one_factor": Symptom(
            "My count is that of one matrix.",
            "The pair is two matrices, and both are stored and trained. Which one is missing?",
        ),
        "full": Symptom(
            "My count does not change when r does.",
            "You have counted the entries of the product B @ A, which is as large as the full "
            "matrix. It is never stored: what is stored are the two factors.",
        ),
        "multiplied": Symptom(
            "My count is far larger than the full matrix.",
            "The entries of two matrices that lie side by side are added. Multiplying the two "
            "counts says how many pairs of entries there are.",
        ),
    },
)
EXERCISES = {LOW_RANK_PARAMETERS.grade_id: LOW_RANK_PARAMETERS}

Answer = Callable[[int, int, int], int]
Shape = tuple[int, int, int]  # in_features, out_features, r


def low_rank_parameters(answer: Answer) -> None:
    """Check `answer(in_features, out_features, r)` on four shapes, the first two not square."""
    compare_low_rank_parameters(answer, [(3, 5, 2), (2048, 512, 8), (4096, 4096, 8), (7, 7, 1)])
    LOW_RANK_PARAMETERS.passed("both matrices counted, square or not")


def compare_low_rank_parameters(answer: Answer, shapes: Iterable[Shape]) -> None:
    """Raise WrongAnswer at the first shape for which `answer` miscounts."""
    for n_in, n_out, r in shapes:
        typical = {} if n_in == n_out else {
            "square": (2 * r * n_in, 2 * r * n_out),
            "one_factor": (r * n_in, r * n_out),
            "full": n_in * n_out,
            "multiplied": r * n_in * r * n_out,
        }
        LOW_RANK_PARAMETERS.expect_number(
            f"low_rank_parameters({n_in}, {n_out}, {r})",
            answer(n_in, n_out, r),
            r * (n_in + n_out),
            typical,
        )
