"""`autograder init`, `grade`, `languages` and `doctor`, as an instructor types them."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from typer.testing import CliRunner

import autograder.grading
from autograder import doctor
from autograder.classes import class_folder, classroom, gradebook
from autograder.cli import app
from autograder.authoring.release import chapters
from autograder.grading.result import Item, Result
from autograder.sandbox import bubblewrap
from loralab.doctor import Item as Look

NAME = "00_start_here"


def type_in(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class NoSandbox(RuntimeError):
    pass


@pytest.fixture
def engine(monkeypatch):
    """Fakes of the reader, the engine and the sandbox: a score by what the notebook says."""
    seen = SimpleNamespace(graded=[], sandbox=True, interrupt=False)

    class SubmissionError(Exception):
        pass

    def grade(notebook, chapter, seed, *, source=None, files=None, personal=None, sandbox=None):
        if seen.interrupt:
            raise KeyboardInterrupt
        seen.graded.append(personal.student)
        if personal.student == "crash":
            raise MemoryError("of [red]the engine[/]")
        return Result(chapter, seed, {"a-check": Item(1.0, 1.0)})

    def require():
        if not seen.sandbox:
            raise NoSandbox("bubblewrap could not make a sandbox:\n  No permissions")

    def read_submission(folder, name):
        notebook = nbformat.read(Path(folder) / f"{name}.ipynb", as_version=4)
        return SimpleNamespace(notebook=notebook, files={})

    fakes = {
        "autograder.grading.submission": dict(
            SubmissionError=SubmissionError, read_submission=read_submission,
            quarantine=lambda folder, to, name: []),
        "autograder.grading.engine": dict(grade=grade),
    }
    for name, content in fakes.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("submission", "engine"):
        monkeypatch.setattr(autograder.grading, name, sys.modules[f"autograder.grading.{name}"],
                            raising=False)
    for name, fake in (("require", require), ("NoSandbox", NoSandbox),
                       ("executable", lambda: "/usr/bin/bwrap")):
        monkeypatch.setattr(bubblewrap, name, fake)
    return seen


@pytest.fixture
def root(tmp_path):
    root = class_folder.init(tmp_path / "class", sources=chapters(["00"]))
    config = root / "nbgrader_config.py"
    config.write_text(config.read_text() + '''
from nbgrader.preprocessors import OverwriteCells, SaveAutoGrades
c.Autograde.sanitize_preprocessors = [OverwriteCells]
c.Autograde.autograde_preprocessors = [SaveAutoGrades]
''')
    return root


def hand_in(root: Path, *students: str) -> None:
    text = (root / "release" / NAME / f"{NAME}.ipynb").read_text()
    for student in students:
        folder = root / "submitted" / student / NAME
        folder.mkdir(parents=True)
        (folder / f"{NAME}.ipynb").write_text(text)


# init ---------------------------------------------------------------------------------------------


def test_init_makes_a_class_with_every_chapter_and_says_what_comes_next(tmp_path):
    done = type_in("init", tmp_path / "class", "--personal")
    assert done.exit_code == 0, done.output
    for path in chapters():
        assert f"release/{path.stem}" in done.output
    assert "README.md" in done.output and "autograder languages" in done.output
    assert classroom.settings(tmp_path / "class").personal
    again = type_in("init", tmp_path / "class")
    assert again.exit_code == 0 and "made" not in again.output


def test_a_lost_secret_is_two_lines_and_no_traceback(root):
    (root / ".grading" / "secret").unlink()
    done = type_in("init", root)
    assert done.exit_code == 1
    assert "secret" in done.output and "→" in done.output and "Traceback" not in done.output


def test_a_folder_that_cannot_be_made_is_two_lines(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "class"):
        done = type_in("init", folder)
        assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
        assert "cannot be made" in done.output and "→" in done.output


# grade --------------------------------------------------------------------------------------------


def test_grade_shows_scores_and_what_comes_next_and_a_second_run_does_nothing(root, engine):
    hand_in(root, "ada", "bob")
    done = type_in("grade", "--class", root, "--workers", 1)
    assert done.exit_code == 0, done.output
    assert "2 graded" in done.output and "2 recorded" in done.output
    assert "ada" in done.output and "mean" in done.output
    assert f"nbgrader generate_feedback {NAME}" in done.output
    assert "nbgrader export" in done.output
    again = type_in("grade", "--class", root, "--workers", 1)
    assert "2 cached" in again.output and "2 unchanged" in again.output
    assert sorted(engine.graded) == ["ada", "bob"]
    forced = type_in("grade", "00", "--class", root, "--student", "bob", "--force")
    assert forced.exit_code == 0 and engine.graded.count("bob") == 2


def test_what_cannot_be_graded_is_named_and_the_exit_code_says_so(root, engine):
    hand_in(root, "ada", "crash", "no\nid")
    done = type_in("grade", "--class", root, "--workers", 1)
    assert done.exit_code == 1
    assert f"crash/{NAME}: MemoryError: of [red]the engine[/]" in done.output
    assert "no\\nid" in done.output
    assert "1 graded, 1 failed" in done.output
    with gradebook.writing(root) as book:
        assert [row.student for row in book.rows(NAME)] == ["ada"]


def test_ctrl_c_says_that_what_is_graded_is_kept(root, engine):
    hand_in(root, "ada")
    engine.interrupt = True
    done = type_in("grade", "--class", root, "--workers", 1)
    assert done.exit_code == 130
    assert "goes on from here" in done.output and "Traceback" not in done.output
    engine.interrupt = False
    assert type_in("grade", "--class", root, "--workers", 1).exit_code == 0


def test_nothing_to_grade(root, engine):
    done = type_in("grade", "--class", root)
    assert done.exit_code == 0 and "submitted/STUDENT/CHAPTER" in done.output


def test_without_a_sandbox_nothing_is_graded(root, engine):
    hand_in(root, "ada")
    engine.sandbox = False
    done = type_in("grade", "--class", root)
    assert done.exit_code == 1
    assert "No permissions" in done.output and "autograder doctor" in done.output
    assert engine.graded == []


def test_grade_outside_a_class_folder(tmp_path, engine):
    done = type_in("grade", "--class", tmp_path)
    assert done.exit_code == 1 and "autograder init" in done.output
    assert not (tmp_path / ".grading").exists()


# languages ----------------------------------------------------------------------------------------


def test_languages_are_for_personal_classes(root):
    done = type_in("languages", "--class", root)
    assert done.exit_code == 1 and "personal = true" in done.output


def test_languages_of_those_who_handed_in_and_of_those_in_the_gradebook(root, engine):
    hand_in(root, "ada", "=cmd()")
    type_in("grade", "--class", root, "--student", "ada", "--workers", 1)
    (root / "class.toml").write_text(classroom.Settings(personal=True).to_toml())
    given = type_in("languages", "--class", root)
    assert f'ada  LANGUAGE = "{classroom.language(root, "ada")}"' in given.output
    table = root / "languages.csv"
    assert type_in("languages", "--class", root, "--csv", table).exit_code == 0
    with table.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["student", "LANGUAGE"]
    assert [name for name, _ in rows[1:]] == ["'=cmd()", "ada"]
    named = type_in("languages", "zoe", "--class", root)
    assert named.output.startswith("zoe  LANGUAGE")
    assert type_in("languages", "../x", "--class", root).exit_code == 1
    nowhere = type_in("languages", "--class", root, "--csv", root / "nowhere" / "languages.csv")
    assert nowhere.exit_code == 1 and "cannot be written" in nowhere.output


# doctor -------------------------------------------------------------------------------------------


def test_doctor_says_whether_this_machine_can_grade(engine, monkeypatch):
    done = type_in("doctor")
    assert "sandbox: student code is isolated here" in done.output
    assert "bubblewrap: /usr/bin/bwrap" in done.output
    engine.sandbox = False
    monkeypatch.setattr(doctor, "_kernel", lambda name: "1" if "apparmor" in name else "")
    done = type_in("doctor")
    assert done.exit_code == 1
    line = next(line for line in done.output.splitlines() if "] sandbox" in line)
    assert line.startswith("[FAIL]") and "No permissions" in line
    assert "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0" in line
    assert "apparmor_parser -r" in line


@pytest.mark.parametrize(("setting", "value", "fix"), [
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "/etc/apparmor.d/loralab-bwrap"),
    ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "user.max_user_namespaces="),
])
def test_what_a_kernel_refuses_has_its_own_fix(monkeypatch, tmp_path, setting, value, fix):
    monkeypatch.setattr(doctor, "KERNEL", tmp_path)
    (tmp_path / setting).parent.mkdir()
    (tmp_path / setting).write_text(value + "\n")
    assert fix in doctor.how_to_allow("/usr/bin/bwrap")


def test_containers_are_told_how_to_be_started(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "KERNEL", tmp_path)
    monkeypatch.setattr(doctor, "_in_container", lambda: True)
    assert "seccomp=unconfined" in doctor.how_to_allow("bwrap")
    monkeypatch.setattr(doctor, "_in_container", lambda: False)
    assert "ask who runs this machine" in doctor.how_to_allow("bwrap")


def test_every_failure_has_a_fix_and_one_line(engine, monkeypatch, tmp_path):
    engine.sandbox = False
    monkeypatch.setattr(doctor, "_kernel", lambda name: "")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._alembic().ok, "it is beside this Python"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(doctor, "DISK_NEEDED_GB", 10**9)
    monkeypatch.setattr(doctor, "MEMORY_A_WORKER_GIB", 10**9)
    for look in (doctor._linux, doctor._sandbox, doctor._alembic, doctor._disk, doctor._memory):
        item = look()
        assert isinstance(item, Look) and not item.ok and item.fix, item
        assert "\n" not in str(item)
    monkeypatch.setattr(bubblewrap, "executable", missing)
    assert "apt-get install bubblewrap" in doctor._bubblewrap().fix
    assert doctor._found_bwrap() == "/usr/bin/bwrap"


def missing():
    raise NoSandbox("bubblewrap (bwrap) is not installed.\n  words")


# install-kernel -----------------------------------------------------------------------------------


def test_the_kernel_is_installed_where_it_is_said_and_can_be_used_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(bubblewrap, "require", lambda: None)
    done = type_in("install-kernel", "--name", "walled", "--prefix", tmp_path)
    assert done.exit_code == 0 and "kernel_name = 'walled'" in done.output
    folder = tmp_path / "share" / "jupyter" / "kernels" / "walled"
    monkeypatch.setenv("JUPYTER_PATH", str(folder.parent.parent))
    spec = KernelSpecManager().get_kernel_spec("walled")
    assert spec.metadata["kernel_provisioner"]["provisioner_name"] == "loralab-sandbox"
    for wrong in (("--name", "a/b"), ("--prefix", folder / "kernel.json")):
        done = type_in("install-kernel", *wrong)
        assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
        assert "cannot be installed" in done.output


def test_no_kernel_is_installed_where_there_is_no_sandbox(tmp_path, monkeypatch):
    def refuse():
        raise bubblewrap.NoSandbox("bubblewrap (bwrap) is not installed.")

    monkeypatch.setattr(bubblewrap, "require", refuse)
    done = type_in("install-kernel", "--prefix", tmp_path)
    assert done.exit_code == 1 and "not installed" in done.output
    assert not list(tmp_path.iterdir())
