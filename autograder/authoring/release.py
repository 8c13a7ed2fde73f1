"""solutions/NN_name.py → notebooks/NN_name/NN_name.ipynb, and the archive that students get.

The steps are jupytext, our markers, and nbgrader's own generate_assignment in a temporary course
folder. The same source gives the same bytes, so that CI can rebuild and compare.
"""

from __future__ import annotations

import difflib
import io
import logging
import re
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbgrader.converters import GenerateAssignment
from nbgrader.coursedir import CourseDirectory
from traitlets.config import Config

from autograder.authoring.markers import SourceError, source_notebook
from autograder.nbgrader_config import configure
from loralab import paths

SOLUTIONS = paths.PROJECT / "solutions"
BUILD = paths.PROJECT / "build"
BUNDLE = BUILD / "lora-lab-student.zip"


def chapters(names: Iterable[str] = (), folder: Path = SOLUTIONS) -> list[Path]:
    """The sources of the chapters named ("1", "01", "01_memory_math"), or of all of them.

    Raises SourceError for a name that fits none.
    """
    every = sorted(folder.glob("[0-9][0-9]_*.py"))
    wanted = []
    for name in names:
        stem = Path(name).stem
        number = stem.split("_")[0].zfill(2)
        fits = [path for path in every if path.stem == stem or
                (stem.isdigit() and path.stem.startswith(f"{number}_"))]
        if not fits:
            have = ", ".join(path.stem for path in every) or "none"
            raise SourceError(f"no chapter {name!r} in {folder.name}/; there are: {have}")
        wanted += fits
    return wanted or every


def to_text(notebook: NotebookNode) -> str:
    """The one way in which a notebook is written to a file."""
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"


def release_notebook(source: NotebookNode, name: str) -> NotebookNode:
    """What students get of `source`: nbgrader's generate_assignment, without its database.

    Raises SourceError with nbgrader's own words where it refuses.
    """
    with tempfile.TemporaryDirectory(prefix="loralab-release-") as folder:
        root = Path(folder).resolve()
        file = root / "source" / name / f"{name}.ipynb"
        file.parent.mkdir(parents=True)
        file.write_text(to_text(source), "utf-8")
        config = Config()
        configure(config)
        config.CourseDirectory.root = str(root)
        config.CourseDirectory.assignment_id = name
        config.SaveCells.enabled = False
        config.GenerateAssignment.no_database = True
        log, said = quiet_log()
        converter = GenerateAssignment(
            coursedir=CourseDirectory(config=config), config=config, log=log
        )
        try:
            converter.start()
        except Exception as error:
            raise SourceError(f"{name}: nbgrader refused it\n{said.getvalue()}") from error
        return nbformat.read(root / "release" / name / f"{name}.ipynb", nbformat.NO_CONVERT)


def quiet_log() -> tuple[logging.Logger, io.StringIO]:
    said = io.StringIO()
    log = logging.Logger("nbgrader", logging.ERROR)
    log.addHandler(logging.StreamHandler(said))
    return log, said


@dataclass(frozen=True)
class Built:
    """One chapter's notebook: where it belongs, what it should hold, what is there now."""

    path: Path
    text: str
    committed: str | None

    @property
    def same(self) -> bool:
        return self.text == self.committed

    def difference(self, limit: int = 60) -> str:
        """What is on disk against what the source gives, as a unified diff."""
        if self.committed is None:
            return "(the file does not exist)"
        lines = list(difflib.unified_diff(
            self.committed.splitlines(), self.text.splitlines(),
            "on disk", "from its source", lineterm="", n=2,
        ))
        if not lines:
            return "(only the line ends differ)"
        more = [f"… and {len(lines) - limit} more lines"] if len(lines) > limit else []
        return "\n".join(lines[:limit] + more)


def build(source: Path, notebooks: Path = paths.NOTEBOOKS) -> Built:
    """Build the release notebook of one chapter, in memory."""
    name = source.stem
    text = to_text(release_notebook(source_notebook(source), name))
    path = notebooks / name / f"{name}.ipynb"
    # newline="": a changed line end is a difference too.
    committed = path.read_bytes().decode("utf-8") if path.exists() else None
    return Built(path, text, committed)


def write(built: Built) -> None:
    built.path.parent.mkdir(parents=True, exist_ok=True)
    built.path.write_bytes(built.text.encode("utf-8"))


def orphans(folder: Path = SOLUTIONS, notebooks: Path = paths.NOTEBOOKS) -> list[Path]:
    """Files in notebooks/ that no source gives, editors' own checkpoints apart."""
    expected = {notebooks / p.stem / f"{p.stem}.ipynb" for p in chapters(folder=folder)}
    return sorted(
        path for path in notebooks.rglob("*")
        if path.is_file() and path not in expected and ".ipynb_checkpoints" not in path.parts
    )


# The archive for students -----------------------------------------------------------------------

BUNDLED_FILES = ("README.md", "Makefile", "environment.yml", "requirements.lock")
OPTIONAL_FILES = ("LICENSE", ".github/chapter-05.png")  # the README's picture
BUNDLED_FOLDERS = ("notebooks", "loralab")
# An allow-list: what an instructor left lying about in these folders is not given away.
BUNDLED_SUFFIXES = {".ipynb", ".json", ".jsonl", ".lock", ".md", ".mplstyle", ".png", ".py",
                    ".safetensors", ".svg", ".txt"}


def student_pyproject(text: str) -> str:
    """`pyproject.toml` without what only instructors have: the autograder and the tests."""
    text = re.sub(r'^autograder = .*\n', "", text, flags=re.MULTILINE)
    ours = r"project\.optional-dependencies|project\.entry-points[^\]]*|tool\.(?:pytest|ruff)[^\]]*"
    text = re.sub(rf'^\[(?:{ours})\]\n(?:(?!\[).*\n?)*', "", text, flags=re.MULTILINE)
    text = text.replace(', "autograder*"', "").rstrip("\n") + "\n"
    tomllib.loads(text)
    if "autograder" in text:
        raise SourceError("pyproject.toml names the autograder where the bundle can't drop it:\n"
                          + "\n".join(line for line in text.splitlines() if "autograder" in line))
    return text


def bundle_files(project: Path = paths.PROJECT) -> dict[str, bytes]:
    """What a student gets: path in the archive → content. No solutions, no autograder.

    Raises SourceError where a file is missing without which `make lab` would not run.
    """
    if missing := [name for name in BUNDLED_FILES if not (project / name).exists()]:
        raise SourceError(f"the bundle needs {', '.join(missing)}")
    files = {name: (project / name).read_bytes() for name in BUNDLED_FILES}
    for name in OPTIONAL_FILES:
        if (project / name).exists():
            files[name] = (project / name).read_bytes()
    files["pyproject.toml"] = student_pyproject(
        (project / "pyproject.toml").read_text("utf-8")).encode()
    for folder in BUNDLED_FOLDERS:
        for path in sorted((project / folder).rglob("*")):
            hidden = any(part.startswith((".", "__")) and part != "__init__.py"
                         for part in path.relative_to(project).parts)
            if path.is_file() and path.suffix in BUNDLED_SUFFIXES and not hidden:
                files[path.relative_to(project).as_posix()] = path.read_bytes()
    return files


def write_bundle(files: dict[str, bytes], path: Path = BUNDLE) -> Path:
    """The archive, under one folder named after it; the same files give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(files):
            # The earliest date that a zip file can hold: no clock in the bytes.
            info = zipfile.ZipInfo(f"{path.stem}/{name}", (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.create_system = 3
            # Stored, so that the bytes do not depend on the zlib of the machine.
            archive.writestr(info, files[name], zipfile.ZIP_STORED)
    return path
