"""What a result depends on, as hashes: a submission's files, the source, the grader itself."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path

from loralab import paths

# A larger file counts by its size: reading a sparse one of a terabyte would never end.
LARGEST_READ_BYTES = 64 * 2**20
MOST_FILES = 5_000
# What computes scores besides our own files.
LIBRARIES = ("bitsandbytes", "nbgrader", "numpy", "peft", "safetensors", "tokenizers", "torch",
             "transformers")


def plain_files(folder: Path) -> Iterator[tuple[str, Path, int]]:
    """(path within `folder`, path, size in bytes) of its regular files, sorted.

    Links are not followed, and nothing is opened. Ends after MOST_FILES.
    """
    found = 0
    todo = [(Path(folder), "")]
    while todo:
        place, prefix = todo.pop(0)
        with os.scandir(place) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        for entry in inside:
            name = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                todo.append((Path(entry.path), f"{name}/"))
            elif entry.is_file(follow_symlinks=False):
                found += 1
                if found > MOST_FILES:
                    return
                yield name, Path(entry.path), entry.stat(follow_symlinks=False).st_size


def read_plain(path: Path) -> bytes:
    """At most LARGEST_READ_BYTES of a regular file; OSError for anything else by that name."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path.name} is not a plain file")
        return file.read(LARGEST_READ_BYTES)


def of_folder(folder: Path) -> str:
    """The hash of a folder's regular files: names and contents."""
    digest = hashlib.sha256()
    for name, path, size in plain_files(folder):
        content = read_plain(path) if size <= LARGEST_READ_BYTES else b""
        digest.update(f"{len(os.fsencode(name))} {size} ".encode() + os.fsencode(name))
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


@functools.cache
def grader() -> str:
    """The hash of the code that grades: our two packages, and the libraries' versions."""
    digest = hashlib.sha256()
    for package in (Path(__file__).parent.parent, paths.PACKAGE):
        for name, path, _ in plain_files(package):
            if "__pycache__" not in name:
                digest.update(f"{package.name}/{name}\n".encode() + path.read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library} {_version(library)}\n".encode())
    digest.update(platform.python_version().encode())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def joined(*parts: str) -> str:
    """One key of several texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
