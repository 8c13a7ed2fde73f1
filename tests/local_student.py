"""A student without a sandbox: the same side door and the same data as the real kernel, in-process.

Only for tests, on code that the tests themselves wrote.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import autograder.inside
from autograder.checks import Data, StudentError
from autograder.grading.kernel import MIME, _input

sys.path.insert(0, str(Path(autograder.inside.__file__).parent))
# Inside the sandbox these two are top-level modules.
import bridge  # noqa: E402
import data  # noqa: E402


class LocalStudent:
    """Names and what they stand for, e.g. the globals that a submission's cells leave behind."""

    def __init__(self, space: Mapping[str, Any], files: Mapping[str, Path] | None = None):
        self.space, self.files, self.parameters = dict(space), dict(files or {}), {}
        self.asked: list[tuple[str, object]] = []

    @classmethod
    def of(cls, code: str, **names: Any) -> LocalStudent:
        """What is there after `code` ran with `names` as its globals."""
        module = types.ModuleType("submission")
        vars(module).update(names)
        exec(code, vars(module))
        return cls(vars(module))

    def function(
        self, name: str, *, take: str = "answer", masked: Sequence[str] = ()
    ) -> Callable[..., Data]:
        def call(*positional: object, **named: object) -> Data:
            self.asked.append((name, (positional, named)))
            given = {"positional": [_input(one) for one in positional],
                     "named": {key: _input(one) for key, one in named.items()}}  # fmt: skip
            return self._ask(name, data.encode(given), take, tuple(masked))

        return call

    def value(self, name: str, *, take: str = "answer") -> Data:
        return self._ask(name, None, take, ())

    def _ask(self, name: str, given: str | None, take: str, masked: tuple[str, ...]) -> Data:
        reply = bridge.answer(self.space, name, given, take, masked)
        found = data.decode(reply._repr_mimebundle_()[MIME])
        if "answer" in found:
            return found["answer"]
        raise StudentError(found["error"], found["name"])
