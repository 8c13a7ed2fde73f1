"""Every attack against three graders: what it scores, and what it damages.

In each run `ada` has been graded before, `mallory` attacks, and `zoe` comes after. The attack's
notebook earns HONEST_POINTS honestly.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nbgrader.api import Gradebook, MissingEntry

from tests.attacks import hostile
from tests.bench import canaries, otter, walls
from tests.bench.class_folders import BIN, Ours, Stock, environment, quiet_sql
from tests.bench.handed_in import Chapter, Work, chapter, full

OURS_SECONDS = 300  # for each submission of this engine's batch
VICTIM, ATTACKER, NEXT = "ada", "mallory", "zoe"
CELL_SECONDS = 45  # stock nbgrader's limit; its own 30 s are short for imports on a busy machine


@dataclass(frozen=True)
class Outcome:
    """score: of the attacking submission; None where the grader gave it none."""

    attack: str
    engine: str
    score: float | None
    damage: list[str]
    seconds: float

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def write(path: Path, outcomes: Sequence[Outcome], missing: dict[str, str]) -> None:
    path.write_text(json.dumps({"outcomes": [one.to_dict() for one in outcomes],
                                "missing": missing}, indent=1) + "\n", "utf-8")


def read(path: Path) -> tuple[list[Outcome], dict[str, str]]:
    record = json.loads(path.read_text("utf-8"))
    return [Outcome(**one) for one in record["outcomes"]], record["missing"]


def work_of(subject: Chapter, attack: hostile.Attack) -> Work:
    """The attack's submission."""
    aimed = replace(attack, code=canaries.aimed(attack.code))
    return Work(hostile.notebook(subject.release, subject.source, aimed))


def harmless(subject: Chapter) -> Work:
    """The next student's: no code at all, so 0 points, and quick to grade."""
    made = copy.deepcopy(subject.release)
    made.cells = [cell for cell in made.cells if cell.cell_type != "code"]
    return Work(made)


def write_notes(root: Path) -> None:
    (root / canaries.NOTES).write_text("".join(canaries.SECRET.values()))


# A grader behind walls ---------------------------------------------------------------------------


class Walled(ABC):
    """A grader that is attacked in a copy of a prepared folder."""

    name: str
    seconds: float  # for a run
    in_one_run = True  # whether the next submission is graded by the same process

    def __init__(self, place: Path):
        place = place.resolve()
        self.template, self.place = place / f"{self.name}-before", place / self.name
        self.chapter = chapter(hostile.CHAPTER[:2])
        shutil.rmtree(self.template, ignore_errors=True)
        self.template.mkdir(parents=True)

    def prepared(self) -> None:
        """To be called once: grade the victim. Raises RuntimeError where it is not graded."""
        ended = self._run(self.template, [VICTIM])
        if self._scores(self.template).get(VICTIM) != self.chapter.points:
            raise RuntimeError(f"{self.name} does not give full marks for the solution:\n"
                               f"{ended.said[-2000:]}")

    def attack(self, attack: hostile.Attack) -> Outcome:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.template, self.place)
        self._put(self.place, ATTACKER, work_of(self.chapter, attack))
        if self.in_one_run:
            self._put(self.place, NEXT, harmless(self.chapter))
        before = canaries.Before(self._others(), {VICTIM: self.chapter.points})
        ended = self._run(self.place, [ATTACKER])
        scores = self._scores(self.place)
        found = canaries.damage(
            before, self._others(), scores, {NEXT: 0.0} if self.in_one_run else {},
            self.place / "heard",
            [self.place / name for name in ("home", "tmp", "shm")], ended.status is not None)
        return Outcome(attack.name, self.name, scores.get(ATTACKER), found,
                       round(ended.seconds, 1))

    def _run(self, place: Path, students: Sequence[str]) -> walls.Ended:
        line = canaries.listening(place / "heard", self._commands(place, students),
                                  self._folder(place))
        return walls.run(line, place, canaries.SECRET | self._environment(), self.seconds,
                         self._show())

    def _others(self) -> dict[str, str]:
        submitted = self._folder(self.place) / "submitted"
        return {f"{student}/{name}": value for student in (VICTIM, NEXT)
                for name, value in canaries.hashes(submitted / student).items()}

    def _folder(self, place: Path) -> Path:
        return place / "class"

    def _put(self, place: Path, student: str, work: Work) -> None:
        work.write(self._folder(place) / "submitted" / student / self.chapter.name)

    def _environment(self) -> dict[str, str]:
        return {}

    def _show(self) -> list[Path]:
        return []

    @abstractmethod
    def _commands(self, place: Path, students: Sequence[str]) -> list[list[str]]:
        """What an instructor types."""

    @abstractmethod
    def _scores(self, place: Path) -> dict[str, float]:
        """Student → score, of those who have one."""


class StockNbgrader(Walled):
    name = "nbgrader"
    seconds = 10 * CELL_SECONDS  # six checks, each of which may reach its limit

    def __init__(self, place: Path):
        super().__init__(place)
        folder = Stock(self._folder(self.template), [self.chapter])
        config = folder.root / "nbgrader_config.py"
        config.write_text(config.read_text()
                          + f"c.Execute.timeout_func = None\nc.Execute.timeout = {CELL_SECONDS}\n")
        write_notes(folder.root)
        self._put(self.template, VICTIM, full(self.chapter))
        self.prepared()

    def _commands(self, place: Path, students: Sequence[str]) -> list[list[str]]:
        # Without --force those who are graded already are left alone.
        return [[str(BIN / "nbgrader"), "autograde", self.chapter.name]]

    def _environment(self) -> dict[str, str]:
        return {"PYTHONPATH": environment()["PYTHONPATH"]}

    def _scores(self, place: Path) -> dict[str, float]:
        return gradebook_scores(self._folder(place), self.chapter)


class Otter(Walled):
    name = "otter"
    seconds = 180  # it has no limits of its own
    in_one_run = False

    def __init__(self, place: Path):
        super().__init__(place)
        otter.install()
        self._folder(self.template).mkdir()
        write_notes(self._folder(self.template))
        otter.write_autograder(self.chapter, self._folder(self.template) / "autograder.zip")
        self._put(self.template, VICTIM, full(self.chapter))
        self.prepared()

    def _commands(self, place: Path, students: Sequence[str]) -> list[list[str]]:
        folder, name = self._folder(place), self.chapter.name
        made = []
        for student in students:
            (folder / "results" / student).mkdir(parents=True, exist_ok=True)
            made.append(otter.command(folder / "submitted" / student / name / f"{name}.ipynb",
                                      folder / "autograder.zip", folder / "results" / student))
        return made

    def _show(self) -> list[Path]:
        return [otter.FOLDER]

    def _scores(self, place: Path) -> dict[str, float]:
        found = {student: otter.score(self._folder(place) / "results" / student)
                 for student in (VICTIM, ATTACKER, NEXT)}
        return {student: score for student, score in found.items() if score is not None}


def gradebook_scores(root: Path, subject: Chapter) -> dict[str, float]:
    """As the gradebook has them, with what a person may have set."""
    with quiet_sql(), Gradebook(f"sqlite:///{root / 'gradebook.db'}") as book:
        try:
            return {one.student_id: round(one.score, 6)
                    for one in book.assignment_submissions(subject.name)
                    if (root / "autograded" / one.student_id / subject.name).exists()}
        except MissingEntry:
            return {}


# This engine -------------------------------------------------------------------------------------


def ours(place: Path, attacks: Sequence[hostile.Attack]) -> list[Outcome]:
    """All attacks in one batch, with nothing around them but this engine's own sandbox.

    Damage is that of the whole batch: it is put down to every attack.
    """
    shutil.rmtree(place / "ours", ignore_errors=True)
    subject = chapter(hostile.CHAPTER[:2])
    folder = Ours(place / "ours" / "class", [subject])
    write_notes(folder.root)
    folder.put(VICTIM, subject, full(subject))
    folder.grade(subject)
    names = [f"mallory{number:02}" for number in range(len(attacks))]
    for name, attack in zip(names, attacks, strict=True):
        folder.put(name, subject, work_of(subject, attack))
    folder.put(NEXT, subject, harmless(subject))
    submitted = folder.root / "submitted"
    home = place / "ours" / "home"
    home.mkdir()
    outside = [home, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]
    for left in (path / canaries.LEFT for path in outside):
        left.unlink(missing_ok=True)
    before = canaries.Before(canaries.hashes(submitted), {VICTIM: subject.points})
    heard = place / "ours" / "heard"
    try:
        done = subprocess.run(
            canaries.listening(heard, [folder.command(subject)], folder.root),
            env={**environment(), **canaries.SECRET, "HOME": str(home),
                 "LORALAB_CACHE": str(_cache())},
            capture_output=True, text=True, timeout=OURS_SECONDS * (len(attacks) + 1))
        ended, said = True, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        ended, said = False, ""
    scores = gradebook_scores(folder.root, subject)
    found = canaries.damage(before, canaries.hashes(submitted), scores,
                            {NEXT: 0.0}, heard, outside, ended)
    if not scores:
        raise RuntimeError(f"nothing was graded:\n{said[-2000:]}")
    return [Outcome(attack.name, "ours", scores.get(name), found, 0.0)
            for name, attack in zip(names, attacks, strict=True)]


def _cache() -> Path:
    from loralab import paths

    return paths.cache()


# All ---------------------------------------------------------------------------------------------


def matrix(
    place: Path, attacks: Sequence[hostile.Attack], engines: Sequence[str],
    said: Callable[[str], None],
) -> tuple[list[Outcome], dict[str, str]]:
    """The outcomes, and the engines that could not be tried, each with the reason."""
    found: list[Outcome] = []
    missing: dict[str, str] = {}
    if "ours" in engines:
        said(f"this engine: {len(attacks)} attacks in one batch")
        found += ours(place, attacks)
    for kind in (StockNbgrader, Otter):
        if kind.name not in engines:
            continue
        try:
            grader = kind(place)
        except (RuntimeError, OSError) as error:
            missing[kind.name] = str(error)
            said(f"{kind.name} could not be tried: {error}")
            continue
        for attack in attacks:
            try:
                found.append(grader.attack(attack))
            except (OSError, subprocess.SubprocessError) as error:
                missing[f"{kind.name}: {attack.name}"] = str(error)
                continue
            said(f"{kind.name}: {attack.name}: {found[-1].score}, {found[-1].damage}")
    return found, missing
