"""SQL that a model generated: a stranger's code, so it runs where strangers' code runs.

Each query runs in the sandbox, on a fresh in-memory table that it may only read (see
`loralab.tasks.sql`). Its rows come back as data and are compared here.
"""

from __future__ import annotations

from collections.abc import Iterable

from autograder.checks import StudentError
from autograder.grading.kernel import Kernel
from autograder.sandbox.warm import Limits, Sandbox
from loralab.tasks.sql import Shop

LIMITS = Limits(wall_seconds=120, cpu_seconds=60, memory_bytes=512 * 2**20)
RUN = """
from loralab.tasks.sql import Shop
def rows(seed, query):
    return Shop(seed).execute(query)
"""


def right_answers(sandbox: Sandbox, shop: Shop, pairs: Iterable[tuple[str, str]]) -> list[bool]:
    """For each (generated query, reference query), whether both give the same rows.

    A query that raises, hangs or ends its process is wrong, and costs the next ones nothing.
    """
    hits = []
    kernel: Kernel | None = None
    try:
        for generated, reference in pairs:
            if kernel is None:
                kernel = Kernel(sandbox, LIMITS)
                kernel.run(RUN)
            try:
                found = kernel.function("rows")(shop.seed, generated)
            except StudentError as error:
                hits.append(False)
                if error.kind in ("slow", "died"):
                    kernel.close()
                    kernel = None
            else:
                hits.append(found == [list(row) for row in shop.execute(reference)])
    finally:
        if kernel is not None:
            kernel.close()
    return hits
