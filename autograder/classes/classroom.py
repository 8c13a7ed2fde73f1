"""A class folder: one course with one group of students, and the secret that its grading uses.

    class.toml           settings
    .grading/secret      32 random bytes, in hex; made once
    source/ release/ submitted/ autograded/ feedback/ gradebook.db     nbgrader's own

Everything that grading draws (inputs of hidden checks, test sets, personal languages) derives from
the secret, the chapter and the student's id by HMAC-SHA256: the same submission is graded alike
each time, and an open repository gives nothing away.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autograder.checks import Personal
from loralab.errors import CourseError

SETTINGS = "class.toml"
PRIVATE = ".grading"
COURSE_ID = "lora-lab"
SECRET_BYTES = 32
LONGEST_ID_BYTES = 120


@dataclass(frozen=True)
class Settings:
    """class.toml. `db_url` is nbgrader's: None for gradebook.db in the folder."""

    course_id: str = COURSE_ID
    personal: bool = False
    db_url: str | None = None

    def to_toml(self) -> str:
        return (
            "# This class. The secret that its grading uses is in .grading/secret.\n"
            f'course_id = "{self.course_id}"\n'
            "# true: every student gets a language of their own (`autograder languages`).\n"
            f"personal = {str(self.personal).lower()}\n"
            "# Where the grades are, if not in gradebook.db; nbgrader gets it as it is. Untested.\n"
            '# db_url = "postgresql://user@host/lora_lab"\n'
        )


def settings(root: Path) -> Settings:
    """What class.toml says. Raises CourseError where there is none, or a wrong one."""
    path = Path(root) / SETTINGS
    try:
        record = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CourseError(f"{root} is no class folder: it has no {SETTINGS}.",
                          f"make one: autograder init {root}") from None
    except (OSError, ValueError) as error:
        raise CourseError(f"{path} cannot be read: {error}", "mend it and try again") from None
    wanted = {"course_id": str, "personal": bool, "db_url": str}
    if wrong := [name for name, value in record.items()
                 if type(value) is not wanted.get(name)]:
        raise CourseError(
            f"{path}: {', '.join(wrong)} cannot be used.",
            'it may hold course_id = "text", personal = true or false, db_url = "text"')
    return Settings(**record)


def private(root: Path) -> Path:
    """The folder of what no student may see."""
    return Path(root) / PRIVATE


def make_secret(root: Path) -> bool:
    """Draw the class's secret, readable by its owner alone; whether it was drawn now."""
    folder = private(root)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(folder / "secret", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(SECRET_BYTES) + "\n")
    return True


def secret(root: Path) -> str:
    """The class's secret, in hex. Raises CourseError where it is missing or damaged."""
    path = private(root) / "secret"
    settings(root)  # says it better where this is no class folder
    try:
        text = path.read_text("ascii").strip()
    except (OSError, ValueError):
        text = ""
    if not re.fullmatch(rf"[0-9a-f]{{{2 * SECRET_BYTES}}}", text):
        raise CourseError(
            f"{path} is missing or damaged: it is this class's secret.",
            "put it back from a copy; a new one changes hidden inputs and personal languages "
            f"(to draw one all the same, delete {SETTINGS} and run `autograder init` again)")
    return text


def number(chapter: str) -> str:
    """"01" for "01_memory_math"; the whole name of an assignment that has no number."""
    found = re.match(r"(\d\d)(_|$)", chapter)
    return found.group(1) if found else chapter


def _derive(root: Path, *parts: str) -> str:
    return hmac.new(bytes.fromhex(secret(root)), "\n".join(parts).encode(),
                    hashlib.sha256).hexdigest()


def seed(root: Path, chapter: str, student: str) -> str:
    """The seed of a submission: "01" and "01_memory_math" give the same one."""
    return _derive(root, number(chapter), student)


def language(root: Path, student: str) -> str:
    """The seed of a student's own language, as it is handed out: short, and readable."""
    return f"class-{_derive(root, 'language', student)[:8]}"


ADJECTIVES = (
    "amber", "bold", "brisk", "calm", "clear", "cosy", "deft", "eager", "fair", "fleet", "frank",
    "gentle", "glad", "golden", "green", "hardy", "keen", "kind", "light", "lucid", "mellow",
    "merry", "neat", "noble", "plain", "quick", "quiet", "ready", "silver", "steady", "sunny",
    "swift",
)  # fmt: skip
ANIMALS = (
    "badger", "beaver", "bison", "crane", "dolphin", "eagle", "falcon", "finch", "fox", "gecko",
    "hare", "heron", "ibis", "jackdaw", "kestrel", "lark", "lynx", "marten", "newt", "otter",
    "owl", "plover", "quail", "raven", "robin", "seal", "starling", "swan", "tern", "trout",
    "vole", "wren",
)  # fmt: skip


def pseudonym(root: Path, student: str) -> str:
    """A name for a student that only this class's secret leads to: "quiet heron 4170".

    The same one every time; two students of three hundred share one in about 1 of 200 classes.
    """
    drawn = int(_derive(root, "pseudonym", student), 16)
    drawn, adjective = divmod(drawn, len(ADJECTIVES))
    drawn, animal = divmod(drawn, len(ANIMALS))
    return f"{ADJECTIVES[adjective]} {ANIMALS[animal]} {drawn % 10_000:04}"


def personal(root: Path, chapter: str, student: str) -> Personal:
    """What a submission is graded with besides its seed.

    `secret` is not the class's own but derived for the chapter: it leaves the folder with the task.
    """
    return Personal(
        secret=_derive(root, "chapter", number(chapter)),
        student=student,
        language=language(root, student) if settings(root).personal else None,
    )


def unusable(student: str) -> str:
    """Why a name cannot be a student's id; "" where it can.

    nbgrader makes paths and glob patterns of ids, and people read them in a terminal.
    """
    if not student or student.startswith(".") or "/" in student or "\\" in student:
        return "it is no plain name"
    if not student.isprintable() or student != student.strip():
        return "it holds invisible characters"
    if set(student) & set("*?[]{}"):
        return "it holds * ? [ ] { or }"
    if len(student.encode("utf-8", "surrogateescape")) > LONGEST_ID_BYTES:
        return f"it is longer than {LONGEST_ID_BYTES} bytes"
    return ""


def configure(c: Any, config_file: str | Path) -> None:
    """Set nbgrader's configuration `c` for the class in which `config_file` lies."""
    from autograder import nbgrader_config

    root = Path(config_file).resolve().parent
    here = settings(root)
    nbgrader_config.configure(c)
    c.CourseDirectory.root = str(root)
    c.CourseDirectory.course_id = here.course_id
    if here.db_url:
        c.CourseDirectory.db_url = here.db_url
