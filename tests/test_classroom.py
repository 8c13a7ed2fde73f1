"""A class folder: made once, completed and never overwritten; what derives from its secret."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from autograder.classes import class_folder, classroom, gradebook
from autograder.checks import Personal
from autograder.authoring.release import chapters
from loralab import paths
from loralab.errors import CourseError

FIRST = chapters(["00"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes") / "autumn"
    class_folder.init(root, sources=FIRST)
    return root


@pytest.fixture
def bare(tmp_path):
    """A class with a secret and settings, and nothing else."""
    classroom.make_secret(tmp_path)
    (tmp_path / "class.toml").write_text(classroom.Settings().to_toml())
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*") if path.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# The folder ---------------------------------------------------------------------------------------


def test_a_class_has_everything_that_grading_needs(made):
    assert {"class.toml", "nbgrader_config.py", "README.md", "gradebook.db",
            "source/00_start_here/00_start_here.ipynb",
            "release/00_start_here/00_start_here.ipynb"} <= contents(made).keys()
    assert "BEGIN SOLUTION" in (made / "source/00_start_here/00_start_here.ipynb").read_text()
    assert "BEGIN SOLUTION" not in (made / "release/00_start_here/00_start_here.ipynb").read_text()
    with gradebook.writing(made) as book:
        assert book.assignments() == {"00_start_here"}


def test_others_on_this_machine_see_neither_secret_nor_solutions(made):
    assert mode(made) == 0o700
    assert mode(made / ".grading") == 0o700
    assert mode(made / ".grading" / "secret") == 0o600


def test_making_it_again_changes_nothing(made):
    before = contents(made)
    said = []
    class_folder.init(made, sources=FIRST, said=said.append)
    assert said == []
    assert contents(made) == before


def test_making_it_again_completes_what_is_missing_and_keeps_what_was_edited(tmp_path):
    root = class_folder.init(tmp_path / "class", sources=FIRST)
    (root / "README.md").unlink()
    (root / "release/00_start_here/00_start_here.ipynb").unlink()
    (root / "class.toml").write_text('course_id = "mine"\n')
    secret = classroom.secret(root)
    said = []
    class_folder.init(root, sources=FIRST, said=said.append)
    assert (root / "README.md").exists()
    assert (root / "release/00_start_here/00_start_here.ipynb").exists()
    assert (root / "class.toml").read_text() == 'course_id = "mine"\n'
    assert classroom.secret(root) == secret
    assert len(said) == 2


def test_nbgrader_itself_works_in_the_folder(made):
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", "db", "assignment", "list"], cwd=made,
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(paths.PROJECT)})
    assert "00_start_here" in done.stdout, done.stdout + done.stderr


def test_nbgraders_configuration_is_the_courses_and_the_classs(bare):
    (bare / "nbgrader_config.py").write_text(class_folder.NBGRADER_CONFIG)
    config = gradebook.load_config(bare)
    assert config.CourseDirectory.course_id == "lora-lab"
    assert config.CourseDirectory.root == str(bare)
    assert "db_url" not in config.CourseDirectory
    assert config.GenerateAssignment.preprocessors
    with (bare / "class.toml").open("a") as file:
        file.write('db_url = "postgresql://somebody@host/grades"\n')
    assert gradebook.load_config(bare).CourseDirectory.db_url == (
        "postgresql://somebody@host/grades")


def test_a_class_cannot_be_made_personal_by_making_it_again(made):
    with pytest.raises(CourseError) as caught:
        class_folder.init(made, personal=True, sources=FIRST)
    assert "personal = true" in caught.value.remedy


def test_one_writer_at_a_time(bare):
    (bare / "nbgrader_config.py").write_text(class_folder.NBGRADER_CONFIG)
    with FileLock(bare / ".grading" / "lock"), pytest.raises(CourseError) as caught:
        with gradebook.writing(bare):
            pass
    assert "Another autograder is at work" in caught.value.message
    with gradebook.writing(bare):
        pass


# Settings and secret ------------------------------------------------------------------------------


def test_settings_come_back_as_written(tmp_path):
    for given in (classroom.Settings(), classroom.Settings("other", True)):
        (tmp_path / "class.toml").write_text(given.to_toml())
        assert classroom.settings(tmp_path) == given


@pytest.mark.parametrize("text", ["personal = 1", "secret = 'x'", "course_id = 3", "= ="])
def test_wrong_settings_are_named(tmp_path, text):
    (tmp_path / "class.toml").write_text(text)
    with pytest.raises(CourseError) as caught:
        classroom.settings(tmp_path)
    assert "class.toml" in caught.value.message


def test_a_folder_that_is_no_class_says_how_to_make_one(tmp_path):
    for ask in (classroom.settings, classroom.secret):
        with pytest.raises(CourseError) as caught:
            ask(tmp_path)
        assert "autograder init" in caught.value.remedy


@pytest.mark.parametrize("text", [None, "", "abcd", "Z" * 64])
def test_a_lost_secret_is_never_replaced_in_silence(bare, text):
    path = bare / ".grading" / "secret"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(CourseError) as caught:
        class_folder.init(bare, sources=[])
    assert "from a copy" in caught.value.remedy
    assert path.exists() == (text is not None)


def test_every_class_has_a_secret_of_its_own(tmp_path):
    drawn = set()
    for name in "ab":
        classroom.make_secret(tmp_path / name)
        assert not classroom.make_secret(tmp_path / name), "never a second time"
        drawn.add((tmp_path / name / ".grading" / "secret").read_text())
    assert len(drawn) == 2


# What derives from it -----------------------------------------------------------------------------


def test_a_seed_is_an_hmac_of_chapter_and_student(bare):
    key = bytes.fromhex(classroom.secret(bare))
    expected = hmac.new(key, b"01\nada", hashlib.sha256).hexdigest()
    assert classroom.seed(bare, "01", "ada") == expected
    assert classroom.seed(bare, "01_memory_math", "ada") == expected
    assert classroom.seed(bare, "01", "bob") != expected
    assert classroom.seed(bare, "05", "ada") != expected


def test_an_assignment_without_a_number_has_its_whole_name():
    assert classroom.number("05_qlora_training") == classroom.number("05") == "05"
    assert classroom.number("homework_1") == "homework_1"


def test_personal_languages_are_short_and_each_students_own(bare):
    plain = classroom.personal(bare, "05_qlora_training", "ada")
    assert plain.student == "ada" and plain.language is None
    (bare / "class.toml").write_text(classroom.Settings(personal=True).to_toml())
    given = {name: classroom.personal(bare, "05", name) for name in ("ada", "bob")}
    assert len({each.language for each in given.values()}) == 2
    assert given["ada"] == Personal(plain.secret, "ada", classroom.language(bare, "ada"))
    assert classroom.personal(bare, "01", "ada").language == given["ada"].language
    assert given["ada"].language.startswith("class-") and len(given["ada"].language) == 14


def test_what_leaves_the_folder_is_not_the_secret_itself(bare):
    one, other = (classroom.personal(bare, chapter, "ada").secret for chapter in ("01", "05"))
    assert one != other and classroom.secret(bare) not in (one, other)
    assert one == classroom.personal(bare, "01_memory_math", "bob").secret
    bytes.fromhex(one)


@pytest.mark.parametrize("name", ["ada", "ada.b@uni.example", "müller-2", "o'neil", "12 34"])
def test_ids_that_people_have(name):
    assert classroom.unusable(name) == ""


@pytest.mark.parametrize("name", [
    "", ".", "..", "../x", "a/b", "a\\b", "a\nb", " a", "a ", "*", "a?", "[ab]", "{x}", "a\x1b[2J",
    "a\u202eb", "a\udcff", ".hidden", "x" * 200])
def test_ids_that_would_be_paths_patterns_or_terminal_codes(name):
    assert classroom.unusable(name)
