"""otter-grader: an environment of its own below build/, and chapter 01 as its assignment."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from autograder.authoring.release import BUILD
from loralab import paths
from tests.bench.handed_in import Chapter

FOLDER = BUILD / "bench" / "otter"
INSTALL_SECONDS = 900


class NoOtter(RuntimeError):
    """otter-grader cannot be had here; the message says why."""


def python() -> Path:
    return FOLDER / "bin" / "python"


def install() -> str:
    """Make the environment if it is not there; otter-grader's version. Raises NoOtter."""
    try:
        if version() is None:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True,
                           capture_output=True, timeout=INSTALL_SECONDS)
            subprocess.run([str(python()), "-m", "pip", "install", "-q", "otter-grader", "ipykernel"],
                           check=True, capture_output=True, timeout=INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        raise NoOtter(error.stderr.decode("utf-8", "replace").strip().splitlines()[-1]) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoOtter(str(error)) from None
    # Its kernels see the course's packages, after its own.
    packages = Path(sysconfig.get_path("purelib"))
    site = next((FOLDER / "lib").glob("python*/site-packages"))
    (site / "course.pth").write_text(f"{packages}\n{paths.PROJECT}\n")
    found = version()
    if found is None:
        raise NoOtter("pip installed something else")
    return found


def version() -> str | None:
    found = next((FOLDER / "lib").glob("python*/site-packages/otter_grader-*.dist-info"), None)
    return re.fullmatch(r"otter_grader-(.+)\.dist-info", found.name).group(1) if found else None


def write_autograder(chapter: Chapter, path: Path) -> None:
    """The assignment as otter takes it: the released checks are its tests."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("otter_config.json", json.dumps({"pdf": False}))
        for name, text in tests(chapter).items():
            archive.writestr(f"tests/{name}.py", text)


def tests(chapter: Chapter) -> dict[str, str]:
    """One test file for each check cell: the cell's own text, run among the student's names."""
    made = {}
    for cell in chapter.source.cells:
        mark = cell.metadata.get("nbgrader", {})
        if not mark.get("grade") or mark.get("solution"):
            continue
        name = mark.grade_id.replace("-", "_")
        made[name] = (
            "from otter.test_files import test_case\n\nOK_FORMAT = False\n\n"
            f"name = {name!r}\npoints = {mark.points}\n\n"
            f"@test_case(points={mark.points})\n"
            "def test_cell(env):\n"
            f"    exec({cell.source!r}, env)\n")
    return made


def command(notebook: Path, autograder: Path, results: Path) -> list[str]:
    return [str(FOLDER / "bin" / "otter"), "run", str(notebook), "-a", str(autograder),
            "-o", str(results), "--no-logo"]


def score(results: Path) -> float | None:
    """The points in an otter's results.json; None where there is none."""
    try:
        record = json.loads((results / "results.json").read_text("utf-8"))
        if "score" in record:
            return float(record["score"])
        return sum(float(test.get("score", 0)) for test in record["tests"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
