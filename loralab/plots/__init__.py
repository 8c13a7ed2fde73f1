"""The course's figures, in one style.

Figure functions return the Figure and leave showing it to the notebook. One module for each thing
that is shown; notebooks call them all from here.
"""

from loralab.plots.claims import claimed_and_measured
from loralab.plots.low_rank import error_by_rank
from loralab.plots.memory import fit_grid, memory_bars, memory_by_tokens, memory_sweep
from loralab.plots.merging import merges, updates_against_steps
from loralab.plots.pareto import Point, accuracy_by_cost
from loralab.plots.published import predicted_against_published
from loralab.plots.quantisation import code_usage, error_by_block, levels_over_weights
from loralab.plots.ranks import RANKS, accuracy_by_setting, counts_by_rank, update_by_rank
from loralab.plots.style import COLOURS, METHOD_NAMES, use_style
from loralab.plots.training import accuracy_by_run, loss_curve, wilson_interval

__all__ = [
    "COLOURS", "METHOD_NAMES", "RANKS", "Point", "accuracy_by_cost", "accuracy_by_run",
    "accuracy_by_setting", "claimed_and_measured", "code_usage", "counts_by_rank", "error_by_block",
    "error_by_rank", "fit_grid", "levels_over_weights", "loss_curve", "memory_bars",
    "memory_by_tokens", "memory_sweep", "merges", "predicted_against_published", "update_by_rank",
    "updates_against_steps", "use_style", "wilson_interval",
]  # fmt: skip
