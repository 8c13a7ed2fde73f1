"""A list of runs: each in a process of its own, one JSON line each, to be taken up again."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loralab.errors import CourseError

Given = Mapping[str, Any]
Record = dict[str, Any]


def read(path: Path) -> list[Given]:
    """The settings in a file of JSON lines; empty lines and those that begin with # are passed by.

    Raises CourseError where a line is no JSON object.
    """
    found = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                given = json.loads(line)
            except ValueError:
                given = None
            if not isinstance(given, dict):
                raise CourseError(
                    f"{path}, line {number}: not a JSON object.",
                    'One run a line: {"model": "gpt2", "method": "lora", "rank": 16}',
                )
            found.append(given)
    return found


def key(given: Given) -> str:
    """What makes two runs the same: the settings as they were given."""
    return json.dumps(given, sort_keys=True)


def measured_in(path: Path) -> set[str]:
    """Keys of the runs that a file of records holds. A line cut short is no record."""
    found = set()
    for line in _text(path).splitlines() if path.exists() else ():
        try:
            found.add(key(json.loads(line)["given"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def append(out: Path, given: Given, record: Record) -> None:
    """Write one record as a line of its own, also after one that was cut short."""
    cut = out.exists() and not _text(out).endswith("\n") and out.stat().st_size
    with out.open("a", encoding="utf-8") as file:
        file.write(("\n" if cut else "") + json.dumps({"given": given} | record) + "\n")


def measure(
    wanted: list[Given], out: Path, one: Callable[[Given, float | None], Record | None], *,
    seconds: float | None = None,
) -> Iterator[tuple[int, Record | None]]:  # fmt: skip
    """Measure what `out` does not hold yet, and append each record as soon as it is there.

    Gives (runs left, record). `seconds`: begins no run that would not end in time, going by the
    longest so far, and gives (runs left, None) then. `one(given, seconds)` measures one run, in at
    most that time; None from it means that the time was over.
    """
    began, longest = time.monotonic(), 0.0
    done = measured_in(out)
    unique = {key(given): given for given in wanted}
    todo = [given for name, given in unique.items() if name not in done]
    for number, given in enumerate(todo):
        left = None if seconds is None else seconds - (time.monotonic() - began)
        if left is not None and left <= longest:
            yield len(todo) - number, None
            return
        since = time.monotonic()
        record = one(given, left)
        if record is None:
            yield len(todo) - number, None
            return
        longest = max(longest, time.monotonic() - since)
        append(out, given, record)
        yield len(todo) - number - 1, record


def in_own_process(
    given: Given, left: float | None, *, options: list[str], limit: float
) -> Record | None:
    """One run in a new Python, so that counters and allocator are clean.

    However the process ends, there is a record: "failed" with the signal or the last line of what
    it said, "too slow" after `limit` seconds. None where `left` seconds are over before that.
    """
    command = [sys.executable, "-m", "loralab.measure", "--given", json.dumps(given), *options]
    began = time.monotonic()
    allowed = limit if left is None else min(limit, left)
    try:
        with _while_we_live() as ours:
            done = subprocess.run(
                command, stdin=ours, capture_output=True, text=True, timeout=allowed)
    except subprocess.TimeoutExpired:
        if allowed < limit:
            return None
        return _ended("too slow", f"took more than {limit:.0f} seconds", given, began)
    lines = done.stdout.splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        said = (done.stderr.strip().splitlines() or [""])[-1][:300]
        if done.returncode < 0:
            said = f"ended by signal {-done.returncode} (9 is also what a full main memory does)"
        return _ended("failed", said, given, began)


@contextlib.contextmanager
def _while_we_live() -> Iterator[int]:
    """A pipe that ends when this process does, however it does: `end_with_parent` waits for that.
    """
    theirs, ours = os.pipe()
    try:
        yield theirs
    finally:
        os.close(theirs)
        os.close(ours)


def end_with_parent() -> None:
    """In a run's own process: end when whoever started it is gone, and let go of the GPU."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _ended(status: str, reason: str, given: Given, began: float) -> Record:
    return {"settings": dict(given), "status": status, "reason": reason,
            "seconds": round(time.monotonic() - began, 2)}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise CourseError(
            f"{path} cannot be read ({error.strerror}).", "Is the name right?") from None
