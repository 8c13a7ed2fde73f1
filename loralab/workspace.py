"""The students' work: copied from notebooks/, never written over, packed for handing in."""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from loralab import paths
from loralab.errors import CourseError

# What a chapter's work leaves beside its notebook and is handed in with it.
ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
ARTIFACTS = {"05": ADAPTER, "08": ADAPTER}
SAVED_IN = {"05": "5.6", "08": "8.3"}  # the exercise that saves them


def chapters() -> list[str]:
    """The names of all chapters ("01_memory_math"), in order."""
    return sorted(
        path.parent.name
        for path in paths.NOTEBOOKS.glob("[0-9][0-9]_*/*.ipynb")
        if path.stem == path.parent.name
    )


def find(chapter: str) -> str:
    """The full name of a chapter given as "1", "01", "01_memory_math", or its file.

    Raises `CourseError` with the nearest names.
    """
    have = chapters()
    if not have:
        raise CourseError(
            f"There are no chapters in {paths.NOTEBOOKS}.",
            "Run this in the course's own environment: its folder with `make lab` done once.",
        )
    wanted = Path(chapter.strip().rstrip("/")).name.removesuffix(".ipynb")
    number = wanted.zfill(2) if wanted.isdigit() else None
    for name in have:
        if wanted == name or number == name[:2] or wanted == name[3:]:
            return name
    stems = {name[3:]: name for name in have} | {name: name for name in have}
    near = [stems[match] for match in difflib.get_close_matches(wanted, stems, n=3, cutoff=0.5)]
    if number:
        near = sorted(have, key=lambda name: abs(int(name[:2]) - int(number)))[:2]
    near = list(dict.fromkeys(near))
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    raise CourseError(
        f"There is no chapter {chapter!r}.", f"{meant}The chapters are: {', '.join(have)}."
    )


def notebook_of(name: str) -> Path:
    """A student's notebook of the chapter with that full name."""
    return paths.WORK / name / f"{name}.ipynb"


def copy_missing() -> list[str]:
    """Copy to work/ what is not there yet; the names of the chapters that were copied.

    Nothing that exists is touched. A chapter appears whole or not at all. Raises `CourseError`
    where the disk is full or work/ cannot be written.
    """
    copied = []
    for name in chapters():
        if notebook_of(name).exists():
            continue
        with _in_work(), _fresh(name) as fresh:
            folder = paths.WORK / name
            if not folder.exists():
                os.rename(fresh, folder)
            else:
                # The folder holds other work; only the notebook was missing.
                os.rename(fresh / f"{name}.ipynb", notebook_of(name))
        copied.append(name)
    return copied


def reset(chapter: str) -> Path:
    """Give `chapter` a fresh copy; the old folder stays beside it. Returns the fresh notebook.

    `kept(chapter)` lists what was put aside.
    """
    name = find(chapter)
    folder = paths.WORK / name
    with _in_work(), _fresh(name) as fresh:
        aside = _free_name(name) if folder.exists() else None
        if aside:
            os.rename(folder, aside)
        try:
            os.rename(fresh, folder)
        except OSError:
            if aside:
                os.rename(aside, folder)
            raise
    return notebook_of(name)


def kept(chapter: str) -> list[Path]:
    """The folders that `reset` has put aside for this chapter, oldest first."""
    return sorted(paths.WORK.glob(f"{find(chapter)}.kept-*"))


def _free_name(name: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path, count = paths.WORK / f"{name}.kept-{stamp}", 1
    while path.exists():
        count += 1
        path = paths.WORK / f"{name}.kept-{stamp}-{count}"
    return path


@contextlib.contextmanager
def _in_work() -> Iterator[None]:
    """Turns a full disk or a folder that cannot be written into one message."""
    try:
        paths.WORK.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CourseError(
                f"The disk is full: nothing more could be written to {paths.WORK}.",
                "Free some space and run this again. Your work is untouched.",
            ) from error
        raise CourseError(
            f"{error.filename or paths.WORK} could not be written: {error.strerror}.",
            "Make the folder writable (is it yours?) and run this again. Your work is untouched.",
        ) from error


@contextlib.contextmanager
def _fresh(name: str) -> Iterator[Path]:
    """A whole copy of the chapter as handed out, under a name of its own inside work/."""
    with tempfile.TemporaryDirectory(dir=paths.WORK, prefix=".copying-",
                                     ignore_cleanup_errors=True) as scratch:
        fresh = Path(scratch, name)
        try:
            shutil.copytree(paths.NOTEBOOKS / name, fresh, copy_function=shutil.copyfile,
                            ignore=shutil.ignore_patterns(".*", "__pycache__"))
        except shutil.Error as error:
            # copytree gathers what went wrong in words; the first failure tells which it was.
            words = str(error)
            full = "No space left" in words or "quota" in words.lower()
            raise OSError(errno.ENOSPC if full else errno.EIO, words[:200]) from error
        yield fresh


# Handing in -------------------------------------------------------------------------------------


@dataclass
class Submission:
    """What is handed in for a chapter, and what is open about it.

    `files`: name in the archive → content's path. `exercises`: grade_id → one of the states below.
    `notes`: (what is wrong, what to do), none of which stops the grading.
    """

    chapter: str
    notebook: Path
    content: bytes
    files: dict[str, Path] = field(default_factory=dict)
    exercises: dict[str, str] = field(default_factory=dict)
    missing_files: list[str] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        done = all(state in DONE for state in self.exercises.values())
        return done and not self.missing_files and not self.notes


WRITTEN = "written"  # a person reads it: there is no check
PASSED = "its check passed"
FAILED = "written, but its check failed when it last ran"
NOT_RUN = "written, but its check has not been run since"
DONE = (WRITTEN, PASSED)
NOT_WRITTEN = "not written yet"
NOT_ANSWERED = "not answered yet"
DELETED = "its cell was deleted"


def look_over(chapter: str) -> Submission:
    """What `submit` would pack. Raises `CourseError` where it could not be graded at all."""
    name = find(chapter)
    path = notebook_of(name)
    if not path.is_file():
        raise CourseError(
            f"There is no notebook {path}.",
            f"Was it renamed? Give it this name back, or get a fresh one: loralab reset {name[:2]}",
        )
    content = path.read_bytes()
    cells, metadata = _read(content, path)
    out, _ = _read((paths.NOTEBOOKS / name / path.name).read_bytes(), path)
    mine, theirs = _graded(cells), _graded(out)

    again = [grade_id for grade_id, count in Counter(g for g, _ in mine).items() if count > 1]
    if again:
        raise CourseError(
            f"A graded cell is there more than once: {', '.join(again)}.",
            "It cannot be graded like that. Delete the copies (keep the one with your answer), "
            "save, and submit again.",
        )
    own = dict(mine)
    if theirs and not own.keys() & {grade_id for grade_id, _ in theirs}:
        raise CourseError(
            f"None of the chapter's graded cells is in {path.name}: is it another notebook?",
            f"Put your answers into a fresh copy; this keeps the old one: loralab reset {name[:2]}",
        )
    found = Submission(name, path, content, {f"{name}/{path.name}": path})
    for grade_id, cell in theirs:
        _look_at(grade_id, cell, own.get(grade_id), found)
        if found.exercises.get(grade_id) == WRITTEN and (check := own.get(f"{grade_id}-check")):
            found.exercises[grade_id] = _checked(own[grade_id], check)
    _check_kernel(metadata, found)
    _add_artifacts(name, found)
    return found


def submit(chapter: str) -> Path:
    """Pack the chapter into work/submissions/NN_name.zip and return that file.

    The archive holds NN_name/NN_name.ipynb and the chapter's artifacts: unpacked into nbgrader's
    submitted/STUDENT/ it is where nbgrader looks for it. An older one is replaced in one step.
    """
    return pack(look_over(chapter))


def pack(found: Submission) -> Path:
    """Write the archive of a chapter that was looked over."""
    target = paths.WORK / "submissions" / f"{found.chapter}.zip"
    with _in_work():
        target.parent.mkdir(exist_ok=True)
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED,
                                 strict_timestamps=False) as archive:
                for name, path in found.files.items():
                    if path == found.notebook:
                        # What was looked over, even if it was saved again since.
                        archive.writestr(name, found.content)
                    else:
                        archive.write(path, name)
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)
    return target


def _read(content: bytes, path: Path) -> tuple[list[dict], dict]:
    """A notebook's cells and metadata."""
    try:
        notebook = json.loads(content)
        cells = notebook["cells"]
        assert all(isinstance(cell["source"], str | list) and "cell_type" in cell for cell in cells)
        return cells, notebook.get("metadata", {})
    except (ValueError, KeyError, TypeError, AssertionError):
        raise CourseError(
            f"{path} is not a notebook that can be read: its file is damaged.",
            "Open it in JupyterLab and save it again, or take an older copy: loralab reset "
            f"{path.name[:2]} gives a fresh one and keeps this.",
        ) from None


def _graded(cells: list[dict]) -> list[tuple[str, dict]]:
    """(grade_id, cell) of the cells that nbgrader grades or takes answers from."""
    marked = [(cell.get("metadata", {}).get("nbgrader") or {}, cell) for cell in cells]
    return [
        (mark["grade_id"], cell) for mark, cell in marked
        if mark.get("grade_id") and (mark.get("grade") or mark.get("solution"))
    ]


def _mark(cell: dict) -> dict:
    return cell["metadata"]["nbgrader"]


def _source(cell: dict) -> str:
    return "".join(cell["source"]).strip()


def _look_at(grade_id: str, handed_out: dict, mine: dict | None, found: Submission) -> None:
    """Note the state of one graded cell: `handed_out` as it was given, `mine` as it is now."""
    answer = bool(_mark(handed_out).get("solution"))
    by_hand = answer and bool(_mark(handed_out).get("grade"))
    if mine is None:
        if answer:
            found.exercises[grade_id] = DELETED
        found.notes.append((
            f"the cell {grade_id} is missing",
            "Edit ▸ Undo Cell Operation brings it back; or copy your answers into a fresh copy "
            f"(loralab reset {found.chapter[:2]})",
        ))
        return
    flags = ("grade", "solution", "locked", "points", "cell_type")
    if any(_mark(mine).get(flag) != _mark(handed_out).get(flag) for flag in flags) or (
        mine["cell_type"] != handed_out["cell_type"]
    ):
        found.notes.append((
            f"the kind of the cell {grade_id} was changed",
            "copy its text into a fresh copy of the chapter "
            f"(loralab reset {found.chapter[:2]})",
        ))
    if answer:
        text = _source(mine)
        stub = text == _source(handed_out) or "raise NotImplementedError(\"Exercise" in text
        open_state = NOT_ANSWERED if by_hand else NOT_WRITTEN
        found.exercises[grade_id] = open_state if stub or not text else WRITTEN


def _checked(answer: dict, check: dict) -> str:
    """What the saved notebook tells of an answer's check: PASSED, FAILED or NOT_RUN."""
    kinds = [out.get("output_type") for out in check.get("outputs") or () if isinstance(out, dict)]
    ran, checked = answer.get("execution_count"), check.get("execution_count")
    again = isinstance(ran, int) and isinstance(checked, int) and ran > checked
    if not kinds or again:
        return NOT_RUN
    return FAILED if "error" in kinds else PASSED


def _check_kernel(metadata: dict, found: Submission) -> None:
    kernel = metadata.get("kernelspec", {}).get("name", "python3")
    if kernel != "python3":
        found.notes.append((
            f"the notebook is set to the kernel {kernel!r}",
            "Kernel ▸ Change Kernel ▸ Python 3 (ipykernel), run it all, save",
        ))


def _add_artifacts(name: str, found: Submission) -> None:
    for artifact in ARTIFACTS.get(name[:2], ()):
        path = paths.WORK / name / artifact
        if not path.is_file():
            found.missing_files.append(artifact)
            continue
        found.files[f"{name}/{artifact}"] = path
        if damage := _damage(path):
            found.notes.append((f"{artifact} {damage}", "train and save the adapter again"))


def _damage(path: Path) -> str:
    """What is wrong with an artifact's file, if something is."""
    if path.suffix == ".json":
        try:
            json.loads(path.read_text("utf-8"))
        except ValueError:
            return "is not readable JSON"
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                if not list(file.keys()):
                    return "holds no tensors"
        except (SafetensorError, OSError):
            return "is damaged: its tensors cannot be read"
    return ""
