"""JupyterLab as `loralab lab` starts it, in a course of its own, and a real browser.

The course lies in a folder with spaces in its name and has two small chapters; the home is empty
but for a kernel that must not be used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from loralab import base_model, paths

STARTED_WITHIN_SECONDS = 120


def chromium() -> str | None:
    """The browser's program: the system's own; Playwright's download is not relied on."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    mac = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    found = next(filter(None, map(shutil.which, names)), None)
    return found or (mac if Path(mac).exists() else None)


@pytest.fixture(scope="session")
def browser():
    """One headless Chromium that talks to this machine only."""
    program = chromium()
    if program is None:
        reason = "no chromium: install it (apt-get install chromium) for the browser tests"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    arguments = [
        "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-default-apps", "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    ]
    if os.getuid() == 0:
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@dataclass
class Lab:
    """A running JupyterLab: where it is, and the folders it may and may not write to."""

    url: str
    token: str
    project: Path
    home: Path
    started_in: float

    @property
    def work(self) -> Path:
        return self.project / "work"

    def get(self, path: str):
        """The server's answer to an API call."""
        request = urllib.request.Request(
            f"{self.url}{path}", headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


def _graded(source: str, grade_id: str, **marks):
    mark = {"grade": False, "grade_id": grade_id, "locked": False, "schema_version": 3,
            "solution": False, "task": False, **marks}
    return new_code_cell(source, metadata={"nbgrader": mark}, id=grade_id)


def _chapter(title: str):
    return new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)",
                                 "language": "python"}},
        cells=[
            new_markdown_cell(f"# {title}", id="top"),
            new_code_cell(
                "import os, shutil, sys\n"
                "print('prefix', sys.prefix)\n"
                "print('command', shutil.which('loralab'))\n"
                "print('folder', os.getcwd())", id="where"),
            _graded('def double(x):\n    raise NotImplementedError("Exercise 0.1: write double")',
                    "double", solution=True),
            _graded("assert double(2) == 4", "double-check", grade=True, locked=True, points=1),
        ],
    )


def _course(project: Path) -> None:
    """The real package with two chapters made for the test."""
    project.mkdir()
    shutil.copytree(paths.PACKAGE, project / "loralab",
                    ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(paths.PROJECT / "requirements.lock", project)
    for name, title in (("00_start_here", "Start here"), ("01_memory_math", "Memory maths")):
        folder = project / "notebooks" / name
        folder.mkdir(parents=True)
        nbformat.write(_chapter(title), folder / f"{name}.ipynb")


def _home(home: Path) -> None:
    """An empty home, but for the fetched base model and a kernel that shadows ours."""
    (home / ".cache" / "loralab").mkdir(parents=True)
    (home / ".cache" / "loralab" / "models").symlink_to(base_model.ensure().parent)
    kernel = home / ".local" / "share" / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps(
        {"argv": ["/bin/false", "{connection_file}"], "display_name": "Not the course's"}))


def _start(project: Path, home: Path, *arguments: str) -> tuple[subprocess.Popen, str, float]:
    """Start the lab; the process, its address, and the seconds until it answered."""
    log = home.parent / f"{home.name}-{time.monotonic_ns()}.log"
    environment = {
        "HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "SHELL": "/bin/sh",
        "PYTHONPATH": str(project),
    }
    began = time.monotonic()
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "loralab.cli", "lab", "--no-browser", *arguments],
            cwd=project, env=environment, stdout=file, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )
    while time.monotonic() - began < STARTED_WITHIN_SECONDS:
        found = re.search(r"(http://127\.0\.0\.1:\d+)/\S*token=(\w+)", log.read_text())
        if found:
            return process, found.group(0), time.monotonic() - began
        if process.poll() is not None:
            break
        time.sleep(0.1)
    _stop(process)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()}")


def _stop(process: subprocess.Popen) -> None:
    """End a lab and the kernels that it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which something else listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("a folder with spaces")
    project, home = root / "lora lab", root / "home"
    home.mkdir()
    _course(project)
    _home(home)
    process, address, seconds = _start(project, home)
    url, token = re.match(r"(http://[\d.]+:\d+)/.*token=(\w+)", address).groups()
    yield Lab(url, token, project, home, seconds)
    _stop(process)


@pytest.fixture
def another(lab) -> Iterator[Callable[..., tuple[str, float]]]:
    """Starts the same course's lab once more: its address, and the seconds until it answered."""
    processes = []

    def again(*arguments: str) -> tuple[str, float]:
        process, address, seconds = _start(lab.project, lab.home, *arguments)
        processes.append(process)
        return address, seconds

    yield again
    for process in processes:
        _stop(process)


@pytest.fixture
def page(browser, lab) -> Iterator:
    """The lab's first page as a newcomer sees it; `page.outside` holds addresses elsewhere."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.outside = []
    page.on("request", lambda request: None if request.url.startswith(
        (lab.url, lab.url.replace("http", "ws"), "data:", "blob:")) else page.outside.append(request.url))
    page.goto(f"{lab.url}/lab/tree/00_start_here/00_start_here.ipynb?token={lab.token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-MarkdownCell h1", timeout=60_000)
    yield page
    context.close()
