"""Many submissions: found, graded in processes, kept, resumed; the engine and reader are fakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import psutil
import pytest

from autograder.classes import batch, class_folder, class_grading, classroom, cluster, gradebook, keys, tasks
from autograder.authoring.release import chapters
from autograder.grading.result import Item, Result
from loralab import paths
from loralab.errors import CourseError

NAME = "00_start_here"


# Fakes: module-level functions, which worker processes import by name -----------------------------


def by_size(task: tasks.Task) -> Result:
    """A score that depends on the submission alone."""
    text = Path(task.folder, f"{NAME}.ipynb").read_text() if task.folder else (
        task.files[f"{NAME}.ipynb"].decode())
    return Result("00", task.seed, {"a-check": Item(100.0, float(len(text)), (task.student,))})


def troubled(task: tasks.Task) -> Result:
    """Ends its worker, raises or exits, by the student's name."""
    if task.student == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    if task.student == "raises":
        raise ValueError("a \n hidden value")
    if task.student == "exits":
        sys.exit("enough")
    return by_size(task)


def slow(task: tasks.Task) -> Result:
    time.sleep(0.5)
    return by_size(task)


def never(task: tasks.Task) -> Result:
    raise AssertionError("nothing was to be graded")


# A class with submissions -------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    """A class folder without gradebook: one chapter, a source notebook."""
    classroom.make_secret(tmp_path)
    (tmp_path / "class.toml").write_text(classroom.Settings().to_toml())
    source = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell("check", metadata={"nbgrader": {
            "grade": True, "solution": False, "grade_id": "a-check", "points": 3}}),
        nbformat.v4.new_markdown_cell("why", metadata={"nbgrader": {
            "grade": True, "solution": True, "grade_id": "why", "points": 1}}),
    ])
    folder = tmp_path / "source" / NAME
    folder.mkdir(parents=True)
    nbformat.write(source, folder / f"{NAME}.ipynb")
    return tmp_path


def submit(root: Path, student: str, text: str = "") -> Path:
    folder = root / "submitted" / student / NAME
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.ipynb").write_text(text or f"{{}}{len(student) * ' '}")
    return folder


def to_do(root: Path) -> list[tasks.Task]:
    found, ignored = tasks.submissions(root, [NAME])
    assert ignored == []
    return [tasks.task_of(root, each) for each in found]


def grade(root: Path, by=by_size, **how) -> dict[str, batch.Outcome]:
    outcomes = list(batch.run(root, to_do(root), grade=by, **how))
    assert len({outcome.task.student for outcome in outcomes}) == len(outcomes)
    return {outcome.task.student: outcome for outcome in outcomes}


# What is found ------------------------------------------------------------------------------------


def test_chapters_are_the_classs_own(root):
    assert tasks.chapters(root) == [NAME]
    for name in ("0", "00", NAME):
        assert tasks.chapters(root, [name, name]) == [NAME]
    with pytest.raises(CourseError) as caught:
        tasks.chapters(root, ["01"])
    assert "'01'" in caught.value.message and NAME in caught.value.remedy


def test_hostile_ids_and_links_are_ignored_with_a_message(root, tmp_path_factory):
    submit(root, "ada")
    submit(root, "line\nbreak")
    submit(root, "*")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "submitted" / "link").symlink_to(elsewhere)
    (root / "submitted" / "bob").mkdir()
    (root / "submitted" / "bob" / NAME).symlink_to(elsewhere)
    os.mkfifo(root / "submitted" / "pipe")
    found, ignored = tasks.submissions(root, [NAME])
    assert [each.student for each in found] == ["ada"]
    assert len(ignored) == 3
    assert any("line\\nbreak" in line for line in ignored)
    assert all(line.isprintable() for line in ignored)
    found, ignored = tasks.submissions(root, [NAME], student="../x")
    assert found == [] and ignored == ["submitted/../x does not exist"]


def test_only_the_student_that_is_asked_for(root):
    submit(root, "ada")
    submit(root, "bob")
    found, ignored = tasks.submissions(root, [NAME], student="bob")
    assert [str(each) for each in found] == [f"bob/{NAME}"] and ignored == []


# Keys ---------------------------------------------------------------------------------------------


def test_a_key_changes_with_all_that_a_result_depends_on(root, monkeypatch):
    folder = submit(root, "ada")
    keys_seen = [tasks.key_of(root, NAME, "ada")]
    assert tasks.key_of(root, NAME, "ada") == keys_seen[0]

    def changed():
        keys_seen.append(tasks.key_of(root, NAME, "ada"))
        assert len(set(keys_seen)) == len(keys_seen)

    (folder / "adapter").mkdir()
    (folder / "adapter" / "weights").write_bytes(b"1")
    changed()
    (folder / "adapter" / "weights").write_bytes(b"2")
    changed()
    (folder / "adapter" / "weights").rename(folder / "adapter" / "other")
    changed()
    (root / "class.toml").write_text(classroom.Settings(personal=True).to_toml())
    changed()
    source = root / "source" / NAME / f"{NAME}.ipynb"
    source.write_text(source.read_text() + "\n")
    changed()
    monkeypatch.setattr(keys, "grader", lambda: "another version")
    changed()


def test_two_students_with_the_same_files_have_two_keys(root):
    submit(root, "ada", "same")
    submit(root, "bob", "same")
    assert len({task.key for task in to_do(root)}) == 2


def test_what_is_no_plain_file_is_neither_opened_nor_counted(root, tmp_path):
    folder = submit(root, "ada")
    before = keys.of_folder(folder)
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "loop").symlink_to(folder)
    assert keys.of_folder(folder) == before


def test_a_sparse_file_of_a_terabyte_is_not_read(root):
    folder = submit(root, "ada")
    with open(folder / "huge", "wb") as file:
        file.truncate(2**40)
    began = time.monotonic()
    task = tasks.packed(to_do(root)[0])
    assert time.monotonic() - began < 5
    assert task.too_large == {"huge": 2**40} and set(task.files) == {f"{NAME}.ipynb"}


def test_names_and_contents_cannot_be_shifted_into_each_other(tmp_path):
    for number, (name, text) in enumerate([("ab", "c"), ("a", "bc")]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_text(text)
    assert keys.of_folder(tmp_path / "0") != keys.of_folder(tmp_path / "1")


def test_the_graders_own_files_count(monkeypatch, tmp_path):
    before = keys.grader()
    monkeypatch.setattr(keys, "LIBRARIES", (*keys.LIBRARIES, "no-such-library"))
    keys.grader.cache_clear()
    try:
        assert keys.grader() != before
    finally:
        monkeypatch.undo()
        keys.grader.cache_clear()
    assert keys.grader() == before


# Running ------------------------------------------------------------------------------------------


def test_processes_and_one_worker_give_the_same_results(root):
    for number in range(6):
        submit(root, "s" * (number + 1))
    spread = grade(root, workers=2)
    alone = grade(root, workers=1, force=True)
    assert {name: one.result for name, one in spread.items()} == {
        name: one.result for name, one in alone.items()}
    assert [one.result.score for one in alone.values()] == [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


def test_a_second_run_does_nothing(root):
    submit(root, "ada")
    first = grade(root)["ada"]
    second = grade(root, by=never)["ada"]
    assert not first.cached and second.cached
    assert first.result == second.result
    submit(root, "ada", "changed")
    assert not grade(root)["ada"].cached
    assert not grade(root, force=True)["ada"].cached


def test_a_kept_result_that_is_damaged_is_graded_again(root):
    submit(root, "ada")
    task = grade(root)["ada"].task
    path = root / ".grading" / "results" / f"{task.key}.json"
    for text in ("", "{}", "[1]", '{"items": 3}'):
        path.write_text(text)
        assert batch.stored_result(root, task.key) is None
        assert not grade(root)["ada"].cached
    assert batch.stored_result(root, tasks.key_of(root, NAME, "ada")).score == 5.0


def test_nbgraders_own_commands_get_the_same_result_and_keep_it(root):
    submit(root, "ada")
    submit(root, "bob")
    first = batch.result_of(root, NAME, "ada", grade=by_size)
    outcomes = grade(root)
    assert outcomes["ada"].cached and outcomes["ada"].result == first
    assert batch.result_of(root, NAME, "bob", grade=never) == outcomes["bob"].result


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_fails_stops_nobody_and_is_not_scored(root, workers):
    students = ["ada", "raises", "exits", "bob"] + ["kills"] * (workers > 1)
    for student in students:
        submit(root, student)
    outcomes = grade(root, by=troubled, workers=workers)
    assert outcomes.keys() == set(students)
    for student, outcome in outcomes.items():
        if student in ("ada", "bob"):
            assert outcome.result is not None and outcome.failure == ""
        else:
            assert outcome.result is None and outcome.failure
            assert batch.stored_result(root, outcome.task.key) is None
    assert outcomes["raises"].failure == "ValueError: a \n hidden value"
    if workers > 1:
        assert "worker process died" in outcomes["kills"].failure
    # Mended, only those are graded.
    again = grade(root, workers=1)
    assert {name for name, one in again.items() if one.cached} == {"ada", "bob"}


def test_stopping_keeps_what_is_graded_and_ends_the_workers(root):
    for number in range(6):
        submit(root, f"s{number}")
    steps = batch.run(root, to_do(root), grade=slow, workers=2)
    done = {next(steps).task.student, next(steps).task.student}
    workers = [each for each in psutil.Process().children(recursive=True)
               if "spawn_main" in " ".join(each.cmdline())]
    assert len(workers) == 2
    steps.close()
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert not list((root / ".grading" / "results").glob(".new-*"))
    resumed = grade(root, workers=1)
    assert {name for name, one in resumed.items() if one.cached} >= done


def test_a_scheduler_that_does_not_answer(root, monkeypatch):
    monkeypatch.setattr(cluster, "SECONDS_TO_CONNECT", 1)
    submit(root, "ada")
    with pytest.raises(CourseError) as caught:
        grade(root, scheduler="tcp://127.0.0.1:9")
    assert "tcp://127.0.0.1:9" in caught.value.message


def test_an_address_that_is_none_is_said_at_once(root, monkeypatch):
    monkeypatch.setattr("distributed.Client", None)  # one that never connects holds up the end
    submit(root, "ada")
    with pytest.raises(CourseError, match="no-address"):
        grade(root, scheduler="no-address")


def test_a_real_scheduler_gets_bytes(root):
    from distributed import LocalCluster

    for number in range(3):
        submit(root, f"s{number}")
    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", processes=True,
                      dashboard_address="127.0.0.1:0", silence_logs=50) as there:
        outcomes = grade(root, by=without_folder, scheduler=there.scheduler_address)
    assert [one.result.score for one in outcomes.values()] == [4.0, 4.0, 4.0]


def without_folder(task: tasks.Task) -> Result:
    assert not task.folder and isinstance(task.files[f"{NAME}.ipynb"], bytes)
    return by_size(task)


# One task, with a fake reader and a fake engine ---------------------------------------------------


class SubmissionError(Exception):
    pass


@dataclass(frozen=True)
class Read:
    notebook: object
    files: dict = field(default_factory=dict)


@pytest.fixture
def fakes(monkeypatch):
    """autograder.grading.submission and autograder.grading.engine, until and after they exist."""
    seen = SimpleNamespace(asked=[])

    def read_submission(folder, name):
        text = (Path(folder) / f"{name}.ipynb").read_text()
        if "broken" in text:
            raise SubmissionError("The notebook cannot be read.")
        huge = Path(folder, "huge")
        return Read(text, {"huge": huge} if huge.exists() else {})

    def quarantine(folder, to, name):
        return []

    def grade(notebook, chapter, seed, *, source=None, files=None, personal=None, sandbox=None):
        seen.asked.append((notebook, chapter, seed, source, files, personal))
        sizes = [str(path.stat().st_size) for path in files.values()]
        return Result(chapter, seed, {"a-check": Item(3.0, 2.0)}, notes=("graded", *sizes))

    reader = ModuleType("autograder.grading.submission")
    reader.read_submission, reader.quarantine = read_submission, quarantine
    reader.SubmissionError = SubmissionError
    engine = ModuleType("autograder.grading.engine")
    engine.grade = grade
    import autograder.grading

    for name, module in (("submission", reader), ("engine", engine)):
        monkeypatch.setitem(sys.modules, f"autograder.grading.{name}", module)
        monkeypatch.setattr(autograder.grading, name, module, raising=False)
    return seen


def test_one_task_reads_and_grades(root, fakes):
    folder = submit(root, "ada", "text")
    task = replace(to_do(root)[0], notes=("moved aside",))
    result = tasks.grade_one(task)
    assert result.notes == ("moved aside", "graded")
    notebook, chapter, seed, source, files, personal = fakes.asked[0]
    assert (notebook, chapter, seed) == ("text", "00", classroom.seed(root, "00", "ada"))
    assert source.cells[0].metadata.nbgrader.grade_id == "a-check"
    assert personal.student == "ada"
    with open(folder / "huge", "wb") as file:
        file.truncate(2**38)
    sent = tasks.packed(to_do(root)[0])
    assert tasks.grade_one(tasks.Task.from_dict(sent.to_dict())).notes[-1] == str(2**38)


def test_a_submission_that_cannot_be_read_scores_nothing_and_says_why(root, fakes):
    submit(root, "ada", "broken")
    result = tasks.grade_one(to_do(root)[0])
    assert result.score == 0 and fakes.asked == []
    assert {name: (item.points, item.score) for name, item in result.items.items()} == {
        "a-check": (3.0, 0.0), "why": (1.0, 0.0)}
    assert "cannot be read" in result.items["a-check"].messages[0]


def test_a_worker_with_another_grader_refuses(root, fakes, monkeypatch):
    submit(root, "ada")
    task = replace(to_do(root)[0], grader="older")
    with pytest.raises(RuntimeError, match="another version"):
        tasks.grade_one(task)


def test_a_task_travels_as_texts_and_bytes(root):
    submit(root, "ada")
    task = tasks.packed(to_do(root)[0])

    def leaves(value):
        if isinstance(value, dict):
            for each in value.values():
                yield from leaves(each)
        elif isinstance(value, (list, tuple)):
            for each in value:
                yield from leaves(each)
        else:
            yield value

    assert {type(leaf) for leaf in leaves(task.to_dict())} <= {str, bytes, int, type(None)}
    assert tasks.Task.from_dict(task.to_dict()) == task


# Into the gradebook, with nbgrader's real converter -----------------------------------------------


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A class whose nbgrader runs nothing: SaveAutoGrades on the outputs that are there."""
    root = class_folder.init(tmp_path_factory.mktemp("course") / "class", sources=chapters(["00"]))
    config = root / "nbgrader_config.py"
    config.write_text(config.read_text() + STILL)
    return root


STILL = '''
from nbgrader.preprocessors import OverwriteCells, SaveAutoGrades
c.Autograde.sanitize_preprocessors = [OverwriteCells]
c.Autograde.autograde_preprocessors = [SaveAutoGrades]
c.Autograde.exporter_class = "nbconvert.exporters.NotebookExporter"
'''


def hand_in(root: Path, student: str) -> Path:
    folder = root / "submitted" / student / NAME
    folder.mkdir(parents=True, exist_ok=True)
    text = (root / "release" / NAME / f"{NAME}.ipynb").read_text()
    (folder / f"{NAME}.ipynb").write_text(text)
    return folder


def steps(root: Path, by=by_size, **how) -> list[tuple[str, str]]:
    with gradebook.writing(root) as book:
        work = class_grading.find(root)
        return [(step.what, step.where.partition("/")[0])
                for step in class_grading.grade(root, book, work, by=by, workers=1, **how)]


def test_the_gradebook_follows_the_results(course, fakes):
    hand_in(course, "ada")
    (course / "submitted" / "bob" / NAME).mkdir(parents=True)  # nothing handed in
    result = Result("00", "", {})

    def by(task):
        return result

    assert steps(course, by) == [("graded", "ada"), ("graded", "bob"),
                                 ("recorded", "ada"), ("recorded", "bob")]
    assert (course / "autograded" / "ada" / NAME / f"{NAME}.ipynb").exists()
    with gradebook.writing(course) as book:
        rows = {row.student: row for row in book.rows(NAME)}
    assert rows["bob"].score == 0 and rows["bob"].points > 0 and not rows["bob"].by_hand

    # Nothing new: nothing is graded, nothing is written.
    stamp = (course / "gradebook.db").stat().st_mtime_ns
    assert steps(course, never) == [("cached", "ada"), ("cached", "bob"),
                                    ("unchanged", "ada"), ("unchanged", "bob")]
    assert (course / "gradebook.db").stat().st_mtime_ns == stamp

    # Changed: replaced. --force: all again.
    (course / "submitted" / "ada" / NAME / "more.txt").write_text("more")
    assert steps(course, by)[0:] == [("cached", "bob"), ("graded", "ada"),
                                     ("recorded", "ada"), ("unchanged", "bob")]
    assert (course / "autograded" / "ada" / NAME / "more.txt").exists()
    assert [what for what, _ in steps(course, by, force=True)] == [
        "graded", "graded", "recorded", "recorded"]


def test_a_submission_that_nbgrader_refuses_is_reported_and_the_others_are_recorded(
        course, fakes, monkeypatch):
    for student in ("ada", "eve", "zoe"):
        hand_in(course, student)
    (course / "submitted" / "eve" / NAME / f"{NAME}.ipynb").write_text("no JSON")
    result = Result("00", "", {})

    with gradebook.writing(course) as book:
        work = class_grading.find(course)
        done = list(class_grading.grade(
            course, book, work, by=lambda task: result, workers=1, force=True))
    refused = [step for step in done if step.failure]
    assert [step.where for step in refused] == [f"eve/{NAME}"]
    assert refused[0].failure.startswith("nbgrader refused it: nbformat.reader.NotJSONError: ")
    assert not (course / "autograded" / "eve" / NAME).exists()
    with gradebook.writing(course) as book:
        assert {"ada", "zoe"} <= {row.student for row in book.rows(NAME)}


def test_scores_that_nbgrader_made_up_are_noticed(course, fakes):
    """Without the trusted step, a cell that nobody ran has full marks."""
    hand_in(course, "mia")
    cells = nbformat.read(course / "source" / NAME / f"{NAME}.ipynb", as_version=4).cells
    checks = [cell.metadata.nbgrader.grade_id for cell in cells
              if cell.cell_type == "code" and cell.metadata.get("nbgrader", {}).get("grade")]
    zero = Result("00", "", {name: Item(1.0, 0.0) for name in checks})
    for _ in range(2):  # and it is not forgotten
        with gradebook.writing(course) as book:
            work = class_grading.find(course, student="mia")
            done = list(class_grading.grade(course, book, work, by=lambda task: zero, workers=1))
        assert done[-1].what == "refused" and "other scores than the grader" in done[-1].failure


# Ctrl+C, as a terminal sends it -------------------------------------------------------------------


SCRIPT = '''
import sys
sys.path[:0] = [{project!r}, {tests!r}]
import test_batch
from pathlib import Path
from autograder.classes import batch
if __name__ == "__main__":
    root = Path({root!r})
    try:
        for outcome in batch.run(root, test_batch.to_do(root), grade=test_batch.slow, workers=2):
            print(outcome.task.student, flush=True)
    except KeyboardInterrupt:
        print("stopped", flush=True)
'''


def test_ctrl_c_ends_every_process_in_seconds_and_in_silence(root, tmp_path):
    for number in range(200):
        submit(root, f"s{number}")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(
        project=str(paths.PROJECT), tests=str(Path(__file__).parent), root=str(root)))
    # A shell's background job ignores the signal, and so would its children.
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout.readline().strip() in {f"s{number}" for number in range(200)}
    family = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 20, "it went on"
    assert out.splitlines()[-1] == "stopped"
    assert "Traceback" not in err, err
    psutil.wait_procs(family, timeout=20)
    assert [each for each in family if each.is_running()
            and each.status() != psutil.STATUS_ZOMBIE] == []
    kept = list((root / ".grading" / "results").glob("*.json"))
    assert kept and all(json.loads(path.read_text())["chapter"] == "00" for path in kept)
