"""Walls around graders that have none, so that an attack on them harms nothing but a copy.

A read-only view of Python and the packages, one writable folder, no network but its own, and
limits on memory, processes, time and the size of files, as an unprivileged user.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from autograder.sandbox import bubblewrap
from loralab import paths

# Where this runs as root: a stranger to everything, and to other runs, whose processes would count.
UID = 61000 + os.getpid() % 2000
MB = 2**20
LIMITS = {
    "data": 4096 * MB,  # bytes of one process; torch and its friends need a fourth of it
    "nproc": 100,
    "cpu": 150,  # seconds of one process
    "fsize": 512 * MB,
    "core": 0,
}

ETC = {
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "passwd": f"grader:x:{UID}:{UID}::/:/bin/sh\n",
    "nsswitch.conf": "hosts: files\npasswd: files\n",
}


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status (None: it was still running and was ended), its output."""

    status: int | None
    said: str
    seconds: float


def run(
    line: list[str], place: Path, environment: Mapping[str, str], seconds: float,
    show: Iterable[Path] = (),
) -> Ended:
    """Run `line` in `place`, a folder that it may change; its home and temporary files are there.

    show: folders that are visible, read-only, besides this Python's and `loralab`.
    """
    for name in ("home", "tmp", "shm", "etc"):
        (place / name).mkdir(exist_ok=True)
    for name, text in ETC.items():
        (place / "etc" / name).write_text(text)
    if os.getuid() == 0:
        for path in [place, *place.rglob("*")]:
            os.chown(path, UID, UID, follow_symlinks=False)
    log = place / "log.txt"
    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            # The outer limit, should everything else fail.
            ["timeout", "-k", "5", str(int(seconds) + 30),
             *_walls(place, environment, list(show)), *_limits(),
             "env", "-C", str(place), *line],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env={})
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
            # With bubblewrap ends all that is in its namespace.
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.wait(30)
    said = log.read_bytes()[-20000:].decode("utf-8", "replace")
    return Ended(status, said, time.monotonic() - began)


def _walls(place: Path, environment: Mapping[str, str], show: list[Path]) -> list[str]:
    line = [bubblewrap.executable(), "--unshare-pid", "--unshare-net", "--unshare-ipc",
            "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent", "--new-session",
            "--clearenv", "--cap-drop", "ALL"]
    if os.getuid() == 0:
        for name in ("SETUID", "SETGID", "SETPCAP"):
            line += ["--cap-add", f"CAP_{name}"]
    else:
        line += ["--unshare-user"]
    shown = [path for path in dict.fromkeys([
        Path("/usr"), Path("/etc/ld.so.cache"), Path("/etc/ssl"), Path(sys.prefix),
        Path(sys.base_prefix), paths.PROJECT / "loralab", *show]) if path.exists()]
    line += ["--proc", "/proc", "--dev", "/dev"]
    # What is left there is seen afterwards. First, since other folders may lie below /tmp.
    for name, inside in (("tmp", "/tmp"), ("tmp", "/var/tmp"), ("shm", "/dev/shm")):
        line += ["--bind", str(place / name), inside]
    # Made by hand: those that bubblewrap makes for a bind are closed to others.
    parents = {parent for path in [*shown, place] for parent in path.parents} - {Path("/")}
    for folder in sorted(parents):
        line += ["--dir", str(folder)]
    for path in shown:
        line += ["--ro-bind", str(path), str(path)]
    for name in ("lib", "lib64", "bin", "sbin"):
        if Path("/", name).is_symlink():
            line += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif Path("/", name).is_dir():
            line += ["--ro-bind", f"/{name}", f"/{name}"]
    for name in ETC:
        line += ["--ro-bind", str(place / "etc" / name), f"/etc/{name}"]
    line += ["--bind", str(place), str(place)]
    for name, value in {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(place / "home"),
        "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "USER": "grader",
        "LORALAB_CACHE": str(place / "home" / "loralab"), **environment,
    }.items():
        line += ["--setenv", name, value]
    return [*line, "--"]


def _limits() -> list[str]:
    """Limits and user of what runs inside. RLIMIT_NPROC does nothing for root."""
    line = ["prlimit", *(f"--{name}={value}" for name, value in LIMITS.items())]
    if os.getuid() == 0:
        line += ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups",
                 "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    return [*line, "nice", "-n", "10"]
