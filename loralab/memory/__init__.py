"""How much memory does a fine-tuning step take? Two views of the same step.

`estimate` adds up closed formulas, one for each component. `simulate` runs the real step on
tensors that have no data and follows their storages. Both take the same settings and give an
`Estimate`; neither needs weights, a network or a GPU. All sizes are bytes.
"""

from loralab.memory.activations import activation_bytes, block_bytes_per_token
from loralab.memory.architectures import (
    ARCHITECTURES,
    Architecture,
    Linear,
    build,
    configuration,
    describe,
)
from loralab.memory.formula import estimate
from loralab.memory.gpu_runs import GpuRun, gpu_rows, gpu_runs, nearest, trained_on_gpu
from loralab.memory.held import lora_sizes, nf4_bytes, optimizer_bytes
from loralab.memory.published import (
    fully_stated_runs,
    measurements,
    published,
    reserved_range,
)
from loralab.memory.result import COLOURS, GB, HELD, LABELS, Estimate, GiB, on_card
from loralab.memory.settings import (
    ATTENTION,
    LOSSES,
    METHODS,
    OPTIMIZERS,
    Settings,
    settings,
    targeted,
)
from loralab.memory.simulation import simulate
from loralab.memory.vocabulary import DTYPES, dtype_of, name_of

__all__ = [
    "ARCHITECTURES", "ATTENTION", "Architecture", "COLOURS", "DTYPES", "Estimate", "GB", "GiB",
    "GpuRun", "HELD", "LABELS", "LOSSES", "Linear", "METHODS", "OPTIMIZERS", "Settings",
    "activation_bytes", "block_bytes_per_token", "build", "configuration", "describe", "dtype_of",
    "estimate", "fully_stated_runs", "gpu_rows", "gpu_runs", "lora_sizes", "measurements",
    "name_of", "nearest", "nf4_bytes", "on_card", "optimizer_bytes", "published", "reserved_range",
    "settings", "simulate", "targeted", "trained_on_gpu",
]  # fmt: skip
