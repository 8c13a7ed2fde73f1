"""Matrices whose singular values are known beforehand, drawn from a seed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch


def number(seed: str) -> int:
    """A seed that torch takes, from text: the same in every process."""
    return zlib.crc32(seed.encode())


def normal(seed: str, *shape: int) -> torch.Tensor:
    """Normally distributed fp32 numbers that depend on `seed` and `shape` alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(number(seed)))


def matrix(
    n_out: int, n_in: int, singular_values: Sequence[float], seed: str = "course"
) -> torch.Tensor:
    """An (n_out, n_in) fp32 matrix with these singular values; the others are zero.

    Its rank is the number of values, which may not exceed the shorter side. By Eckart and Young
    (1936) the matrix of rank r that is nearest to it, in the Frobenius norm, misses it by the root
    of the sum of the squared values after the r largest.
    """
    count = len(singular_values)
    if count > min(n_out, n_in):
        raise ValueError(f"a {n_out} × {n_in} matrix has no {count} singular values")
    left = torch.linalg.qr(normal(f"{seed} left", n_out, count).double()).Q
    right = torch.linalg.qr(normal(f"{seed} right", n_in, count).double()).Q
    values = torch.tensor(singular_values, dtype=torch.float64)
    return (left * values @ right.T).float()
