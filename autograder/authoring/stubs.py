"""nbgrader's ClearSolutions, with a stub that names its exercise.

    ### Exercise 1.1 — write `weight_bytes`      (the nearest such heading above the cell)
    raise NotImplementedError("Exercise 1.1: write weight_bytes")
"""

from __future__ import annotations

import json
import re

from nbgrader.preprocessors import ClearSolutions

EXERCISE = re.compile(r"###+\s+(Exercise\s+[\w.]+)\s*[—–:-]\s*(.+?)\s*")


def exercise_after(markdown: str, before: str | None) -> str | None:
    """The exercise that the cells below `markdown` belong to: "Exercise 1.1: write weight_bytes".

    `before` is the exercise that held above it; a new section (`## …`) ends an exercise.
    """
    for line in markdown.splitlines():
        if found := EXERCISE.fullmatch(line):
            before = ": ".join(found.groups()).replace("`", "").replace("*", "")
        elif line.startswith(("# ", "## ")):
            before = None
    return before


def stub(exercise: str) -> str:
    """The line that stands where the solution stood."""
    return f"raise NotImplementedError({json.dumps(exercise, ensure_ascii=False)})"


class ClearSolutionsNamingExercises(ClearSolutions):
    """Replaces each solution region by a NotImplementedError that names the exercise."""

    def preprocess(self, nb, resources):
        self._exercise: str | None = None
        return super().preprocess(nb, resources)

    def preprocess_cell(self, cell, resources, cell_index):
        if cell.cell_type == "markdown":
            self._exercise = exercise_after(cell.source, self._exercise)
        elif cell.metadata.get("nbgrader", {}).get("solution"):
            if self._exercise is None:
                raise ValueError(
                    f"cell {cell.metadata.nbgrader.grade_id!r} has no heading "
                    "'### Exercise N.M — …' above it to name its stub by"
                )
            self.code_stub = {**self.code_stub, "python": stub(self._exercise)}
        return super().preprocess_cell(cell, resources, cell_index)
