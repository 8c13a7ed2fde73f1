"""The course's figures, in one style.

Figure functions return the Figure and leave showing it to the notebook. One module for each thing
that is shown; notebooks call them all from here.
"""

from loralab.plots.low_rank import error_by_rank
from loralab.plots.memory import fit_grid, memory_bars, memory_by_tokens, memory_sweep
from loralab.plots.published import predicted_against_published
from loralab.plots.style import COLOURS, METHOD_NAMES, use_style
from loralab.plots.training import accuracy_by_run, loss_curve, wilson_interval

__all__ = [
    "COLOURS", "METHOD_NAMES", "accuracy_by_run", "error_by_rank", "fit_grid", "loss_curve",
    "memory_bars", "memory_by_tokens", "memory_sweep", "predicted_against_published", "use_style",
    "wilson_interval",
]  # fmt: skip
