"""A prediction: bytes by component at the fullest moment of a training step, and how it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

GB = 10**9
GiB = 2**30

# In the order they are stacked.
LABELS = {
    "weights": "weights, unquantised",
    "weights_4bit": "weights, 4-bit codes",
    "constants": "quantisation constants",
    "master": "fp32 master copy",
    "adapters": "adapters",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations kept for backward",
    "logits": "logits and loss",
    "temporary": "temporary tensors",
    "workspace": "cuBLAS workspaces",
}
HELD = ("weights", "weights_4bit", "constants", "master", "adapters", "gradients", "optimizer")
COLOURS = {  # colour-blind safe: Okabe and Ito 2008, and greys
    "weights": "#0072B2", "weights_4bit": "#56B4E9", "constants": "#000000", "master": "#777777",
    "adapters": "#F0E442", "gradients": "#D55E00", "optimizer": "#E69F00",
    "activations": "#009E73", "logits": "#CC79A7", "temporary": "#8A6D3B", "workspace": "#C8C8C8",
}  # fmt: skip

# reserved / allocated in the fifteen runs of `recorded/published_memory.json` that report both
RESERVED = 1.02, 1.25
CONTEXT = 500_000_000, 1_300_000_000  # what the CUDA context takes beside PyTorch's memory


@dataclass(frozen=True)
class Estimate:
    """What one training step needs, in bytes.

    `components`: what is alive at the peak, by the names in `LABELS`. `held`: what stays from
    backward to the next step, gradients included, by the names in `HELD`. `peak_at`: when the peak
    is. `by`: "formula" or "simulation". `trainable`, `parameters`: numbers of parameters.
    `reserved`: what the caching allocator would have reserved if all batches were of one length,
    which only the simulation knows.

    `total` is what PyTorch calls *allocated* memory (`torch.cuda.max_memory_allocated`). The
    caching allocator *reserves* more, and the CUDA context is on top of both.
    """

    components: Mapping[str, int]
    held: Mapping[str, int]
    peak_at: str
    by: str
    trainable: int
    parameters: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    reserved: int | None = None

    @property
    def total(self) -> int:
        """The peak of allocated memory."""
        return sum(self.components.values())

    @property
    def static(self) -> int:
        """What is held from backward to the next step; it does not depend on the batch."""
        return sum(self.held.values())

    @property
    def reserved_range(self) -> tuple[int, int]:
        """From where to where the caching allocator's reserved memory has been seen, and what was
        simulated."""
        low, high = (round(share * self.total) for share in RESERVED)
        simulated = self.reserved or low
        return min(low, simulated), max(high, simulated)

    @property
    def device_range(self) -> tuple[int, int]:
        """What `nvidia-smi` shows: reserved memory and the CUDA context."""
        low, high = self.reserved_range
        return low + CONTEXT[0], high + CONTEXT[1]

    def to_dict(self) -> dict[str, Any]:
        """As `loralab memory --json` prints it."""
        return {
            "peak_allocated_bytes": self.total,
            **({} if self.reserved is None else {"reserved_bytes": self.reserved}),
            "reserved_range_bytes": list(self.reserved_range),
            "device_range_bytes": list(self.device_range),
            "components": {name: size for name, size in self.components.items() if size},
            "held": {name: size for name, size in self.held.items() if size},
            "peak_at": self.peak_at,
            "trainable_parameters": self.trainable,
            "parameters": self.parameters,
            "settings": dict(self.settings),
            "method": self.by,
        }

    def __repr__(self) -> str:
        parts = ", ".join(f"{k} {v / GiB:.2f}" for k, v in self.components.items() if v)
        return f"Estimate({self.total / GiB:.2f} GiB: {parts})"

    def _repr_html_(self) -> str:
        shown = {name: size for name, size in self.components.items() if size}
        # Black would be nothing on a dark page: there, the text's colour stands for it.
        colours = {name: COLOURS[name].replace("#000000", "currentColor") for name in shown}
        bar = "".join(
            f"<span title='{LABELS[name]}: {size / GiB:,.3f} GiB' "
            f"style='flex:{size / self.total:.6f} 0 1px;background:{colours[name]}'></span>"
            for name, size in shown.items()
        )
        left = "style='text-align:left'"
        square = "display:inline-block;width:.8em;height:.8em;margin-right:.6em;background"
        rows = "".join(
            f"<tr><td {left}><span style='{square}:{colours[name]}'></span>{LABELS[name]}</td>"
            f"<td>{size / GiB:,.3f}</td><td>{size / self.total:.1%}</td></tr>"
            for name, size in shown.items()
        )
        ranges = "".join(
            f"<tr><td {left}>{label}</td><td colspan='2' {left}>{low / GiB:,.1f} to "
            f"{high / GiB:,.1f}</td></tr>"
            for label, (low, high) in (("reserved by the allocator", self.reserved_range),
                                       ("shown by nvidia-smi", self.device_range))
        )
        said = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return (
            "<div style='display:flex;width:100%;max-width:36em;height:1.1em;margin:.4em 0'>"
            f"{bar}</div><table style='margin:0'><thead><tr><th {left}>alive at the peak</th>"
            f"<th>GiB</th><th>share</th></tr></thead><tbody>{rows}</tbody><tfoot "
            "style='border-top:1px solid currentColor'>"
            f"<tr><th {left}>peak, allocated</th><th>{self.total / GiB:,.3f}</th>"
            f"<th>= {self.total / GB:,.2f} GB</th></tr>{ranges}</tfoot></table>"
            f"<div style='max-width:60em;font-size:85%;margin:.4em 0'>The peak is "
            f"{escape(self.peak_at)} ({self.by}).<br>{escape(said)}</div>"
        )


def on_card(n_bytes: float) -> float:
    """Bytes that a card needs for `n_bytes` of allocated memory: 1.1 x that, and 1 GiB.

    The caching allocator reserves more than it hands out: 1.02 to 1.25 times as much, 1.12 on
    average, in the fifteen runs of `recorded/published_memory.json` that report both. The CUDA
    context takes 0.5 to 1.3 GB more.
    """
    return 1.1 * n_bytes + GiB
