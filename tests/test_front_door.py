"""`make`, the making of `.venv`, and what JupyterLab is started with. No package is installed here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from loralab import base_model, environment, lab, paths, workspace
from loralab.cli import app
from loralab.errors import CourseError

SCRIPT = paths.PACKAGE / "environment.py"


@pytest.fixture
def calls() -> list:
    """What was done to the environment: "created", or the arguments of pip."""
    return []


@pytest.fixture
def project(tmp_path, monkeypatch, calls) -> Path:
    """A project with locks, in a folder with a space in its name, and a pip that only notes."""
    folder = tmp_path / "lora lab"
    (folder / "tests").mkdir(parents=True)
    for name in ("requirements.lock", "tests/requirements.lock", "pyproject.toml"):
        (folder / name).write_text(name)
    monkeypatch.setattr(environment, "PROJECT", folder)
    monkeypatch.setattr(environment, "ENVIRONMENT", folder / ".venv")
    monkeypatch.setattr(environment, "pip", lambda python, arguments: calls.append(arguments))

    def create():
        shutil.rmtree(folder / ".venv", ignore_errors=True)
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "python").touch()
        calls.append("created")
        environment.write_note({})

    monkeypatch.setattr(environment, "create", create)
    return folder


EDITABLE = ["--quiet", "--no-deps", "--no-build-isolation", "--editable", "."]
LOCKED = ["-r", "requirements.lock"]


# make ---------------------------------------------------------------------------------------------


def make(*arguments, **environ):
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS")}
    return subprocess.run(["make", *arguments], cwd=paths.PROJECT, env=given | environ,
                          capture_output=True, text=True)


def test_plain_make_says_what_there_is():
    done = make()
    assert done.returncode == 0
    assert all(f"make {target}" in done.stdout for target in ("lab", "test", "notebooks"))


def test_make_passes_arguments_on():
    assert ".venv/bin/loralab lab --no-browser" in make("-n", "lab", "ARGS=--no-browser").stdout
    assert ".venv/bin/autograder release --check" in make("-n", "notebooks", "ARGS=--check").stdout
    assert "tests/requirements.lock" in make("-n", "test").stdout


def test_make_tells_a_chosen_python_from_a_found_one():
    assert "--chosen" not in make("-n", "lab").stdout
    line = make("-n", "lab", "PYTHON=/opt/my python/bin/python3").stdout
    assert '"/opt/my python/bin/python3" -I loralab/environment.py --chosen' in line


def test_ci_calls_make_test():
    script = paths.PROJECT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("exec make test")
    subprocess.run(["bash", "-n", script], check=True)


# .venv --------------------------------------------------------------------------------------------


def test_an_old_python_says_so_in_two_lines(tmp_path):
    # The same file, as a Python 3.9 would read it.
    text = SCRIPT.read_text().replace("import sys\n", "import sys\nsys.version_info = (3, 9, 1)\n", 1)
    (tmp_path / "environment.py").write_text(text)
    done = subprocess.run([sys.executable, "-I", tmp_path / "environment.py"],
                          capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert "3.11 or newer; this one is 3.9" in first and "PYTHON=" in second


def test_the_first_time_installs_and_the_second_does_nothing(project, calls):
    environment.prepare(["requirements.lock"])
    assert calls == ["created", LOCKED, EDITABLE]
    calls.clear()
    environment.prepare(["requirements.lock"])
    assert calls == []


def test_the_tests_lock_is_added_to_what_is_there(project, calls):
    environment.prepare(["requirements.lock"])
    calls.clear()
    environment.prepare(["requirements.lock", "tests/requirements.lock"])
    assert calls == [["-r", "tests/requirements.lock"], EDITABLE]
    calls.clear()
    environment.prepare(["requirements.lock"])
    assert calls == []


def test_a_changed_lock_is_installed_and_a_changed_project_needs_no_lock(project, calls):
    environment.prepare(["requirements.lock"])
    calls.clear()
    (project / "requirements.lock").write_text("new")
    environment.prepare(["requirements.lock"])
    assert calls == [LOCKED, EDITABLE]
    calls.clear()
    (project / "pyproject.toml").write_text("new")
    environment.prepare(["requirements.lock"])
    assert calls == [EDITABLE]


def test_an_interrupted_installation_is_taken_up_again(project, calls, monkeypatch):
    def stopped(python, arguments):
        raise environment.Stop("no network", "later")

    with monkeypatch.context() as patch:
        patch.setattr(environment, "pip", stopped)
        with pytest.raises(environment.Stop):
            environment.prepare(["requirements.lock"])
    calls.clear()
    environment.prepare(["requirements.lock"])
    assert calls == [LOCKED, EDITABLE]


def test_a_moved_folder_gets_a_new_environment(project, monkeypatch, tmp_path):
    environment.prepare(["requirements.lock"])
    moved = tmp_path / "elsewhere"
    project.rename(moved)
    monkeypatch.setattr(environment, "PROJECT", moved)
    monkeypatch.setattr(environment, "ENVIRONMENT", moved / ".venv")
    note = json.loads((moved / ".venv" / "loralab.json").read_text())
    assert not environment.is_sound(note, chosen=False)


def test_only_a_chosen_python_replaces_another(project, calls):
    environment.prepare(["requirements.lock"])
    note = environment.read_note()
    note["python"] = "3.99"
    assert environment.is_sound(note, chosen=False)
    assert not environment.is_sound(note, chosen=True)


def test_a_nearly_full_disk_is_said_before_anything_is_made(project, calls, monkeypatch):
    nearly = SimpleNamespace(free=10**8)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: nearly)
    with pytest.raises(environment.Stop, match="nearly full: 0.1 GB"):
        environment.prepare(["requirements.lock"])
    assert calls == []


@pytest.mark.parametrize(("pip_says", "message"), [
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
     "disk is full"),
    ("WARNING: Retrying ... NewConnectionError('...: [Errno -3] Temporary failure in name "
     "resolution')\nERROR: No matching distribution found for torch==2.13.0", "does not answer"),
    ("ERROR: No matching distribution found for torch==2.13.0", "does not exist for this computer"),
    ("ERROR: something new", "see its words above"),
])
def test_what_pip_says_becomes_one_message(pip_says, message):
    stop = environment.explain(pip_says)
    assert message in stop.args[0] and stop.args[1]


def test_no_network_for_real(tmp_path, monkeypatch, capsys):
    """pip itself, sent to a port of this machine where nothing answers."""
    monkeypatch.setattr(environment, "PROJECT", tmp_path)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(environment.Stop, match="does not answer"):
        environment.pip(sys.executable, ["--dry-run", "no-such-package-of-the-course==1"])


# What JupyterLab is started with ------------------------------------------------------------------


def test_jupyter_writes_to_the_cache_only(tmp_path):
    ours = lab.environment({"HOME": "/home/ada", "PATH": "/usr/bin"}, tmp_path)
    written = {name: value for name, value in ours.items()
               if name.startswith(("JUPYTER", "IPYTHON", "MPL", "HF_", "TORCH", "TRITON", "CUDA"))
               and value.startswith("/") and name != "JUPYTER_CONFIG_PATH"}
    assert len(written) >= 11
    assert all(Path(value).is_relative_to(tmp_path) for value in written.values()), written
    assert Path(ours["JUPYTER_CONFIG_PATH"]).is_dir()
    assert ours["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]


def test_another_jupyter_of_the_users_is_not_read(tmp_path):
    given = {"PATH": "", "JUPYTER_PATH": "/opt/kernels", "JUPYTERLAB_DIR": "/opt/lab",
             "JUPYTER_DATA_DIR": "/opt/data", "HF_HOME": "/big/models"}
    ours = lab.environment(given, tmp_path)
    assert "JUPYTER_PATH" not in ours and "JUPYTERLAB_DIR" not in ours
    assert ours["JUPYTER_DATA_DIR"].startswith(str(tmp_path))
    assert ours["HF_HOME"] == "/big/models"  # large downloads stay where the user wants them


def test_a_login_to_the_hub_is_kept(tmp_path):
    token = tmp_path / "home" / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.touch()
    ours = lab.environment({"HOME": str(tmp_path / "home")}, tmp_path / "cache")
    assert ours["HF_TOKEN_PATH"] == str(token)


def test_the_users_arguments_come_last():
    line = lab.command(["--port=9000"], "/bin/sh")
    assert line[:3] == [sys.executable, "-m", "jupyterlab"] and line[-1] == "--port=9000"


def test_without_the_model_the_lab_opens_all_the_same(monkeypatch):
    def no_network():
        raise CourseError("The base model could not be fetched.", "Check the network.")

    started = []
    monkeypatch.setattr(workspace, "copy_missing", lambda: ["00_start_here"])
    monkeypatch.setattr(base_model, "ensure", no_network)
    monkeypatch.setattr(lab, "start", started.append)
    done = CliRunner().invoke(app, ["lab", "--no-browser", "--port=9000"])
    assert done.exit_code == 0 and started == [["--no-browser", "--port=9000"]]
    assert "→ Check the network." in done.output and "the others work now" in done.output


def test_jupyters_configuration_is_quiet_and_local():
    config = json.loads((lab.CONFIG / "jupyter_server_config.json").read_text())
    assert config["ServerApp"]["ip"] == "127.0.0.1"
    assert config["KernelSpecManager"]["allowed_kernelspecs"] == ["python3"]
    news = json.loads((lab.CONFIG / "jupyter_lab_config.json").read_text())["LabApp"]
    assert news["news_url"] is None
    assert news["check_for_updates_class"] == "jupyterlab.NeverCheckForUpdate"
