"""Making a class folder: what `autograder init` does. What exists is kept as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from autograder.classes import classroom, gradebook
from autograder.authoring.markers import source_notebook
from autograder.authoring.release import chapters, to_text
from loralab.errors import CourseError

NBGRADER_CONFIG = '''\
"""How nbgrader works in this class folder. Settings of the class are in class.toml."""

from autograder.classes.classroom import configure

c = get_config()  # noqa: F821
configure(c, __file__)
'''

README = """\
# A class of LoRA Lab

`class.toml` has this class's settings. Work in this folder, with the course's environment active.

1. **Hand out.** `autograder release --bundle` (in the course's repository) makes the archive that
   students install and work in. `release/` holds the same notebooks for nbgrader's exchange.
2. **Personal languages**, where `personal = true`: `autograder languages --csv languages.csv`
   lists every student's LANGUAGE. Give each student only their own, before chapter 05.
3. **Collect.** Put what students hand in (`loralab submit 01` packs it) into
   `submitted/STUDENT/CHAPTER/`, for example `submitted/ada/01_memory_math/01_memory_math.ipynb`;
   or use `nbgrader collect` or `nbgrader zip_collect`.
4. **Grade.** `autograder grade`, or `autograder grade 01 --student ada`. It can be stopped at any
   point and started again. `nbgrader autograde CHAPTER` and formgrader give the same scores.
5. **Read and return.** `jupyter lab` here, Nbgrader ▸ Formgrader, for answers in words; then
   `nbgrader generate_feedback CHAPTER` and `nbgrader export`.
6. **Show the capstone's results.** `autograder leaderboard` writes `leaderboard.html`, with
   pseudonyms unless you ask for `--names`.

`autograder doctor` says whether this machine can grade.

## Never give away

- `.grading/`: the secret from which hidden inputs and personal languages derive, and the results.
  Keep a copy of `.grading/secret` in a safe place: without it nothing can be graded again alike.
- `source/`: the solutions.
- `gradebook.db`, `submitted/`, `autograded/` and `feedback/`: other people's work and grades.

Do not put this folder into a public repository, or where students' accounts can read it.
"""

# In the class folder's own .gitignore: a class that is versioned all the same keeps its secret.
IGNORED = ".grading/\n"


def init(
    folder: Path,
    personal: bool = False,
    *,
    sources: Iterable[Path] | None = None,
    said: Callable[[str], None] = lambda line: None,
) -> Path:
    """Make a class folder, or complete one: what is there is never overwritten.

    `sources`: the chapters' sources, all by default. `said` gets a line for each thing made.
    Returns the folder. Raises CourseError, SourceError.
    """
    root = Path(folder).resolve()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        # The solutions will be in it, and it may be on a machine where students have accounts.
        root.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise CourseError(f"{root} cannot be made: {error.strerror}.",
                          "name a folder, of yours or a new one") from None
    _settings(root, personal, said)
    for name, text in (("nbgrader_config.py", NBGRADER_CONFIG), ("README.md", README),
                       (".gitignore", IGNORED)):
        _write_missing(root / name, text, said)
    (root / "submitted").mkdir(exist_ok=True)
    with gradebook.writing(root) as book:
        known = book.assignments()
        for path in sources if sources is not None else chapters():
            name = path.stem
            target = root / "source" / name / f"{name}.ipynb"
            _write_missing(target, to_text(source_notebook(path)), said)
            if name not in known or not (root / "release" / name / f"{name}.ipynb").exists():
                book.release(name)
                said(f"release/{name}, and the assignment in the gradebook")
    return root


def _settings(root: Path, personal: bool, said: Callable[[str], None]) -> None:
    path = root / classroom.SETTINGS
    if path.exists():
        classroom.secret(root)  # a class that lost its secret is not given another in silence
        if personal and not classroom.settings(root).personal:
            raise CourseError(f"{root} is a class already, without personal languages.",
                              f"set personal = true in {path}")
        return
    if classroom.make_secret(root):
        said(f"{classroom.PRIVATE}/secret")
    _write_missing(path, classroom.Settings(personal=personal).to_toml(), said)


def _write_missing(path: Path, text: str, said: Callable[[str], None]) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    said(path.name if path.parent.parent.name != "source" else f"source/{path.parent.name}")
