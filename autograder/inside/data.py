"""What crosses the border between a student's process and the grader: data, as JSON text.

Used on both sides. Arrays travel as raw bytes with their dtype and shape; nothing is pickled. What
comes from the student's side is untrusted: `decode` checks every size before it believes it.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

# name → bytes of an element
DTYPES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2,
    "int8": 1, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16,
}  # fmt: skip
MAX_TEXT = 64 * 2**20  # characters of one answer
MAX_DEPTH = 32
MAX_VALUES = 1_000_000
# Brackets and commas of as many values. A text of these alone takes fifty times its size to read.
MAX_MARKS = 4 * MAX_VALUES


class Unreadable(ValueError):
    """A value that is no data, or a text that is no encoded value."""


def encode(value: Any) -> str:
    """JSON text of a value. Raises Unreadable for what is not data, or is too much."""
    text = json.dumps(_plain(value, 0, [0]), allow_nan=False)
    if len(text) > MAX_TEXT:
        raise Unreadable("too large")
    return text


def _plain(value: Any, depth: int, count: list[int]) -> Any:
    import numpy as np
    import torch

    count[0] += 1
    if depth > MAX_DEPTH or count[0] > MAX_VALUES:
        raise Unreadable("too large")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int(value)
        # A longer one could not be read back as a decimal.
        return number if number.bit_length() < 4096 else {"$": "float", "value": "inf"}
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else {"$": "float", "value": repr(number)}
    if isinstance(value, str):
        count[0] += len(value) * MAX_VALUES // MAX_TEXT
        return str(value)
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, torch.Tensor):
        return _array(value)
    if isinstance(value, np.generic | np.ndarray):
        return _array(torch.from_numpy(np.ascontiguousarray(value).copy()).reshape(value.shape))
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise Unreadable("a dict whose keys are not all text")
        items = [(str(key), _plain(one, depth + 1, count)) for key, one in value.items()]
        return {"$": "dict", "items": items}
    if isinstance(value, set | frozenset):
        value = sorted(value, key=repr)
    if isinstance(value, list | tuple):
        return [_plain(one, depth + 1, count) for one in value]
    raise Unreadable(f"an object of class {type(value).__name__}")


def _array(tensor: Any) -> dict[str, Any]:
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise Unreadable(f"an array of {name}")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel() * DTYPES[name] > MAX_TEXT // 2:
        raise Unreadable("too large")
    raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return {"$": "array", "dtype": name, "shape": list(tensor.shape),
            "data": base64.b64encode(raw).decode()}


def decode(text: str) -> Any:
    """The value that `text` holds; arrays become torch tensors. Raises Unreadable."""
    if not isinstance(text, str) or len(text) > MAX_TEXT or values_in(text) > MAX_MARKS:
        raise Unreadable("too large")
    try:
        return _value(json.loads(text), 0)
    except Unreadable:
        raise
    except (ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise Unreadable(type(error).__name__) from None


def values_in(text: str | bytes) -> int:
    """An upper bound of the values in a JSON text, counted without reading it."""
    marks = (b"[", b"{", b",") if isinstance(text, bytes) else ("[", "{", ",")
    return sum(map(text.count, marks))


def _value(found: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise Unreadable("too deep")
    if isinstance(found, list):
        return [_value(one, depth + 1) for one in found]
    if not isinstance(found, dict):
        return found
    kind = found.get("$")
    if kind == "dict":
        return {str(key): _value(one, depth + 1) for key, one in found["items"]}
    if kind == "float" and found["value"] in ("inf", "-inf", "nan"):
        return float(found["value"])
    if kind == "array":
        return _tensor(found["dtype"], found["shape"], found["data"])
    raise Unreadable("an unknown kind of value")


def _tensor(name: str, shape: list[int], data: str) -> Any:
    import torch

    if name not in DTYPES or not isinstance(shape, list) or len(shape) > 8:
        raise Unreadable("an array of an unknown kind")
    if not all(type(side) is int and 0 <= side < 2**31 for side in shape):
        raise Unreadable("an array with an impossible shape")
    raw = base64.b64decode(data, validate=True)
    if math.prod(shape) * DTYPES[name] != len(raw):
        raise Unreadable("an array whose shape is not that of its data")
    dtype = getattr(torch, name)
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)
