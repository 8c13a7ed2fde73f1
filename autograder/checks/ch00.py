"""Chapter 00's trusted visible."""

from __future__ import annotations

import random
from functools import partial

from autograder.checks import Part, Personal, Student, trusted
from autograder.checks.once import once
from loralab.checks import ch00 as visible


@trusted("low_rank_parameters")
def low_rank_parameters(student: Student, draw: random.Random, personal: Personal) -> list[Part]:
    """Tall and wide matrices: whoever counts square ones only earns nothing."""
    ask = once(student.function("low_rank_parameters"))
    wide, tall = [], []
    for most in (200, 9000):
        narrow = draw.randrange(most // 8, most // 4)
        # More than twice as long, and r below both: no mistake gives another one's number.
        long = draw.randrange(5 * narrow // 2, 4 * narrow)
        r = draw.randrange(2, 7)
        wide.append((long, narrow, r))
        tall.append((narrow, long, r + draw.randrange(1, 5)))
    side = draw.randrange(30, 5000)
    square = (side, side, draw.randrange(2, 16))
    return [
        Part(1, partial(visible.compare_low_rank_parameters, ask, [*wide, square]),
             "more inputs than outputs"),
        Part(1, partial(visible.compare_low_rank_parameters, ask, [*tall, square]),
             "more outputs than inputs"),
    ]  # fmt: skip
