"""A sandboxed kernel as a source of data: what a trusted check calls a student.

Talks to the kernel on its shell channel alone, so nothing that is printed or displayed is ever
read. Whatever comes back is data, checked for size and shape before it is used.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jupyter_client.session import DELIM, Session

from autograder.checks import Code, Data, StudentError
from autograder.inside import data
from autograder.sandbox.warm import Limits, Sandbox, Started
from autograder.grading.zmtp import Broken, Dealer, TooMuch

CELL_SECONDS = 60
CALL_SECONDS = 20
MAX_MESSAGE = 2 * data.MAX_TEXT
MIME = "application/x-loralab-answer"
POLL_SECONDS = 0.05
CONNECT_SECONDS = 30
MAX_PARENT = 10_000  # bytes of a header


class Kernel:
    """One kernel in `sandbox`, from its start to close().

    Raises StudentError("died") where it cannot start.
    """

    def __init__(
        self, sandbox: Sandbox, limits: Limits = Limits(), files: Mapping[str, Path] | None = None
    ):
        self._sandbox = sandbox
        self._started: Started = sandbox.start(limits, files)
        try:
            if self._started.ended:
                raise StudentError("died", self._started.ended)
            connection = self._started.connection
            # What a header would say of the instructor is no student's business.
            self._session = Session(key=str(connection["key"]).encode(), username="grader")
            self._shell = Dealer(f"{connection['ip']}-{connection['shell_port']}",
                                 MAX_MESSAGE, CONNECT_SECONDS)
        except (StudentError, Broken, TimeoutError) as error:
            sandbox.stop(self._started)
            raise error if isinstance(error, StudentError) else StudentError("died") from None

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._shell.close()
        self._sandbox.stop(self._started)

    def run(self, code: str, seconds: float = CELL_SECONDS) -> str | None:
        """Run a cell. None if it ran through, else the class of its error (its own word).

        Raises StudentError("slow" or "died").
        """
        content = self._request(code, {}, seconds)
        if content.get("status") == "ok":
            return None
        error = content.get("ename")
        return error[:80] if isinstance(error, str) and error else "error"

    def function(
        self, name: str, *, take: str = "answer", masked: Sequence[str] = ()
    ) -> Callable[..., Data]:
        """See `autograder.checks.Student.function`."""

        def call(*positional: object, **named: object) -> Data:
            given = {"positional": [_input(one) for one in positional],
                     "named": {key: _input(one) for key, one in named.items()}}
            return self._ask(name, data.encode(given), take, tuple(masked))

        return call

    def value(self, name: str, *, take: str = "answer") -> Data:
        """See `autograder.checks.Student.value`."""
        return self._ask(name, None, take, ())

    def _ask(self, name: str, given: str | None, take: str, masked: tuple[str, ...]) -> Data:
        expression = (
            "__import__('sys').modules['bridge'].answer"
            f"(globals(), {name!r}, {given!r}, {take!r}, {masked!r})"
        )
        content = self._request("", {"answer": expression}, CALL_SECONDS)
        try:
            text = content["user_expressions"]["answer"]["data"][MIME]
            found = data.decode(text)
            if not isinstance(found, dict):
                raise data.Unreadable("no answer")
            if "answer" in found:
                return found["answer"]
            kind, error = str(found["error"]), str(found["name"])
        except (data.Unreadable, LookupError, TypeError, AttributeError):
            raise StudentError("unreadable") from None
        known = {"missing", "unsolved", "raised", "masked", "unreadable"}
        raise StudentError(kind if kind in known else "unreadable", _word(error))

    def _request(self, code: str, expressions: dict[str, str], seconds: float) -> dict[str, Any]:
        """The content of the reply to an execute request."""
        if self._started.ended:
            raise StudentError("died", self._started.ended)
        # Jupyter counts its messages: a reply could be written before its question.
        header = self._session.msg_header("execute_request") | {"msg_id": secrets.token_hex(16)}
        message = self._session.msg("execute_request", {
            "code": code, "silent": not code, "store_history": False, "allow_stdin": False,
            "user_expressions": expressions, "stop_on_error": False,
        }, header=header)  # fmt: skip
        until = time.monotonic() + seconds
        try:
            self._shell.send(self._session.serialize(message), seconds)
            while True:
                frames = self._shell.receive(POLL_SECONDS)
                content = _content(frames, header["msg_id"]) if frames else None
                if content is not None:
                    return content
                if time.monotonic() > until:
                    raise StudentError("slow")
                if frames is None and self._started.ended:
                    raise StudentError("died", self._started.ended)
        except TimeoutError:
            raise StudentError("slow") from None
        except Broken as error:
            raise StudentError("died", self._why(error)) from None

    def _why(self, error: Broken) -> str:
        """What ended the connection. That the kernel ended is heard a moment later."""
        if isinstance(error, TooMuch):
            return "output"
        until = time.monotonic() + 1
        while not self._started.ended and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return self._started.ended or "closed"


def _content(frames: list[bytes], wanted: str) -> dict[str, Any] | None:
    """The content of a message, if it answers `wanted`. Its author may be the student."""
    try:
        first = frames.index(DELIM)
        _, _, parent, _, content = frames[first + 1 : first + 6]
        if len(parent) > MAX_PARENT or json.loads(parent)["msg_id"] != wanted:
            return None
        if data.values_in(content) > data.MAX_MARKS:
            return {"status": "error"}
        found = json.loads(content)
    except (ValueError, LookupError, TypeError, RecursionError):  # forged
        return None
    return found if isinstance(found, dict) else None


def _word(name: str) -> str:
    """A builtin exception's name, or nothing: the student chose this text."""
    import builtins

    found = getattr(builtins, name, None) if name.isidentifier() else None
    return name if isinstance(found, type) and issubclass(found, BaseException) else ""


def _input(value: object) -> object:
    """What `inside/bridge.py` turns back into an argument."""
    import torch

    if isinstance(value, Code):
        return {"code": value.text}
    if isinstance(value, torch.dtype):
        return {"code": str(value)}
    if isinstance(value, Mapping):
        return {"dict": {str(key): _input(one) for key, one in value.items()}}
    if isinstance(value, list | tuple):
        return [_input(one) for one in value]
    return value
