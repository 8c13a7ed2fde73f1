"""What the attacks are tried on: chapter 01, a warm sandbox, and things that must stay untouched."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import hostile
import pytest

from autograder.authoring.markers import source_notebook
from autograder.authoring.release import chapters, release_notebook
from autograder.sandbox.warm import Sandbox


@pytest.fixture(autouse=True)
def no_hang():
    """An attack that holds up the grader fails its test."""

    def late(*_: object):
        raise TimeoutError("the grader was held up")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def chapter():
    """Chapter 01: its notebook with solutions, and the students' copy."""
    source = source_notebook(chapters([hostile.CHAPTER])[0])
    return SimpleNamespace(source=source, release=release_notebook(source, hostile.CHAPTER))


@dataclass(frozen=True)
class Canaries:
    """Files, a listening port and an environment variable that no submission may see."""

    files: list[Path]
    listening: list[socket.socket]
    words: list[str]
    state: list[tuple[bytes, float, int]]

    @property
    def port(self) -> int:
        return self.listening[0].getsockname()[1]

    @property
    def abstract(self) -> str:
        """The address of the other: no file, but known to all in a network namespace."""
        return self.listening[1].getsockname().decode()

    def look(self) -> list[tuple[bytes, float, int]]:
        # Its time of access says whether a file was read. Ours is undone.
        found = []
        for path in self.files:
            before = path.stat()
            found.append((path.read_bytes(), before.st_atime, before.st_mode))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return found

    def assert_untouched(self) -> None:
        assert self.look() == self.state
        for one in self.listening:
            with pytest.raises(BlockingIOError):
                one.accept()
        for folder in ("/tmp", "/var/tmp", "/dev/shm", Path.home(), tempfile.gettempdir()):
            assert not Path(folder, "left-by-a-student").exists()


@pytest.fixture(scope="module")
def canaries(tmp_path_factory):
    root = tmp_path_factory.mktemp("class")
    word = hostile.CANARY + secrets.token_hex(16)
    book, other = root / "gradebook.db", root / "submitted" / "ada" / hostile.CHAPTER
    with sqlite3.connect(book) as base:
        base.execute("CREATE TABLE grade (auto_score, manual_score, comment)")
        base.execute("INSERT INTO grade VALUES (1, 1, ?)", [word])
    other.mkdir(parents=True)
    (other / f"{hostile.CHAPTER}.ipynb").write_text(word)
    handle, home = tempfile.mkstemp(dir=Path.home(), prefix=".canary-")
    os.write(handle, word.encode())
    os.close(handle)
    files = [book, other / f"{hostile.CHAPTER}.ipynb", Path(home)]
    for path in files:
        os.utime(path, (0, 1))
    tcp, unix = socket.socket(), socket.socket(socket.AF_UNIX)
    tcp.bind(("127.0.0.1", 0))
    unix.bind("\0door-" + secrets.token_hex(16))
    for one in (tcp, unix):
        one.listen()
        one.setblocking(False)
    os.environ["CANARY_SECRET_TOKEN"] = word
    made = Canaries(files, [tcp, unix], [word], [])
    made.state.extend(made.look())
    yield made
    del os.environ["CANARY_SECRET_TOKEN"]
    Path(home).unlink()
    for one in (tcp, unix):
        one.close()


@pytest.fixture(scope="module")
def sandbox(canaries, tmp_path_factory):
    """One warm sandbox; what it leaves in the folder of temporary files is seen."""
    kept = tempfile.tempdir
    tempfile.tempdir = tempfile.mkdtemp(prefix="t-")
    with Sandbox() as made:
        yield made
    left = [name for name in os.listdir(tempfile.tempdir) if "inductor" not in name]
    shutil.rmtree(tempfile.tempdir)
    tempfile.tempdir = kept
    assert left == []

