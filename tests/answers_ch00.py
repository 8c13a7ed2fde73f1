"""Right and typical wrong answers to chapter 00's exercise, each written once."""

import numpy as np
import torch

RIGHT = {
    "formula": lambda i, o, r: r * (i + o),
    "a loop": lambda i, o, r: sum(r for _ in range(i)) + sum(r for _ in range(o)),
    "numpy": lambda i, o, r: np.zeros((r, i)).size + np.zeros((o, r)).size,
    "torch": lambda i, o, r: torch.tensor(r * i) + torch.tensor(o * r),
    "a float": lambda i, o, r: float(r) * i + o * r,
}
WRONG = {
    "square": [lambda i, o, r: 2 * r * i, lambda i, o, r: 2 * o * r],
    "one_factor": [lambda i, o, r: r * i, lambda i, o, r: o * r],
    "full": [lambda i, o, r: i * o],
    "multiplied": [lambda i, o, r: r * i * o * r],
    None: [lambda i, o, r: r * (i + o) + 1, lambda i, o, r: None, lambda i, o, r: "16",
           lambda i, o, r: float("nan")],
}
