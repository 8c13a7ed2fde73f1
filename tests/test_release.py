"""From one source to what students get: the same bytes everywhere, and nothing that leaks."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbgrader.preprocessors import Execute
from traitlets.config import Config

from autograder import nbgrader_config
from autograder.authoring import release
from autograder.authoring.markers import SourceError, expand
from autograder.authoring.stubs import exercise_after, stub
from loralab import paths
from loralab.execution import DEFAULT_SECONDS, AttentiveKernelClient

REGION = re.compile(
    r"^([ \t]*)### BEGIN SOLUTION[^\n]*\n(.*?)^[ \t]*### END SOLUTION[^\n]*$", re.S | re.M)


# The committed notebooks ------------------------------------------------------------------------

def test_the_committed_notebook_is_what_its_source_gives(chapter):
    built = release.build(chapter.path)
    assert built.same, f"{built.path}: run `autograder release`\n{built.difference()}"


def test_nothing_else_is_in_notebooks():
    assert release.orphans() == []


def test_another_process_gives_the_same_bytes(chapter):
    code = ("import sys; from pathlib import Path; from autograder.authoring import release; "
            "sys.stdout.write(release.build(Path(sys.argv[1])).text)")
    again = subprocess.run(
        [sys.executable, "-c", code, str(chapter.path)], capture_output=True, check=True,
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONIOENCODING": "utf-8", "TZ": "Asia/Tokyo"})
    assert again.stdout.decode("utf-8") == release.to_text(chapter.release)


def test_only_meant_metadata_is_there(chapter):
    for notebook in (chapter.source, chapter.release):
        assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
        assert set(notebook.metadata) == {"kernelspec", "language_info"}
        assert notebook.metadata.kernelspec.name == "python3"
        assert "version" not in notebook.metadata.language_info
        for cell in notebook.cells:
            assert set(cell.metadata) <= {
                "tags", "jupyter", "loralab", "nbgrader", "deletable", "editable"}
            assert not cell.get("outputs") and cell.get("execution_count") is None
        ids = [cell.id for cell in notebook.cells]
        assert len(set(ids)) == len(ids)
        for cell in notebook.cells:
            if "nbgrader" in cell.metadata:
                assert cell.id == cell.metadata.nbgrader.grade_id
    nbformat.validate(chapter.release)


# A stub is derived from its solution ------------------------------------------------------------

def test_the_student_copy_differs_in_stub_regions_alone(chapter):
    assert [c.id for c in chapter.source.cells] == [c.id for c in chapter.release.cells]
    exercise = None
    for ours, theirs in zip(chapter.source.cells, chapter.release.cells, strict=True):
        assert ours.cell_type == theirs.cell_type
        assert stable(ours.metadata) == stable(theirs.metadata)
        if ours.cell_type == "markdown":
            exercise = exercise_after(ours.source, exercise)
        meta = ours.metadata.get("nbgrader", {})
        if not meta.get("solution"):
            assert ours.source == theirs.source
        elif ours.cell_type == "markdown":
            assert theirs.source == expected_stub(ours.source, "YOUR ANSWER HERE")
        else:
            assert exercise
            assert theirs.source == expected_stub(ours.source, stub(exercise))
            ast.parse(theirs.source)


def stable(metadata: dict) -> dict:
    """Metadata without what generate_assignment adds."""
    kept = {k: v for k, v in metadata.items() if k not in ("deletable", "editable", "nbgrader")}
    mine = metadata.get("nbgrader", {})
    return kept | {k: v for k, v in mine.items() if k not in ("checksum", "cell_type")}


def expected_stub(source: str, line: str) -> str:
    replaced, count = REGION.subn(lambda found: found.group(1) + line, source)
    return replaced if count else line


# Nothing leaks ----------------------------------------------------------------------------------

def student_text() -> str:
    """All that is in notebooks/: the files as they are, and the strings that their JSON holds."""
    parts = []
    for path in sorted(paths.NOTEBOOKS.rglob("*.ipynb")):
        raw = path.read_text("utf-8")
        parts += [raw, "\n".join(strings(json.loads(raw)))]
    return "\n".join(parts)


def strings(node):
    """Every string in a JSON value; a list of lines is also joined, as readers of it do."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        if node and all(isinstance(item, str) for item in node):
            yield "".join(node)
        for item in node:
            yield from strings(item)
    elif isinstance(node, dict):
        for item in node.values():
            yield from strings(item)


def secrets(chapter) -> list[str]:
    """What of a chapter's solutions must not be seen: each region, and each line of its own."""
    hidden = []
    for cell in chapter.source.cells:
        if not cell.metadata.get("nbgrader", {}).get("solution"):
            continue
        regions = [found.group(2) for found in REGION.finditer(cell.source)] or [cell.source]
        hidden += [region.strip() for region in regions]
        hidden += [line.strip() for region in regions for line in region.splitlines()]
    given = "\n".join(REGION.sub("", cell.source) for cell in chapter.source.cells
                      if REGION.search(cell.source)
                      or not cell.metadata.get("nbgrader", {}).get("solution"))
    # A line such as `return total` says nothing where the chapter shows the same line anyway.
    return [text for text in dict.fromkeys(hidden) if len(text) >= 12 and text not in given]


def test_no_solution_is_in_notebooks(chapter):
    found = secrets(chapter)
    assert found, "this test would find nothing"
    text = student_text()
    assert [secret for secret in found if secret in text] == []


def test_no_quiz_answer_is_in_notebooks():
    text = student_text()
    assert '"correct"' not in text
    for path in (paths.PACKAGE / "quizzes").glob("*.json"):
        for question in json.loads(path.read_text("utf-8")).values():
            assert [a["feedback"] for a in question["answers"] if a["feedback"] in text] == []


def test_no_hidden_check_or_instructor_mark_is_in_notebooks():
    text = student_text()
    for mark in ("BEGIN SOLUTION", "END SOLUTION", "HIDDEN TESTS", "MARK SCHEME",
                 "import autograder", "from autograder"):
        assert mark not in text
    for path in (paths.PROJECT / "autograder" / "checks").glob("*.py"):
        lines = {line.strip() for line in path.read_text("utf-8").splitlines()}
        assert [line for line in lines if len(line) >= 30 and line in text] == []


def test_the_package_never_imports_the_autograder():
    for path in paths.PACKAGE.rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (autograder|tests)\b", path.read_text("utf-8"),
                             re.MULTILINE), path


# Markers ----------------------------------------------------------------------------------------

SMALL = '''\
# %% [markdown]
# # Small
# ### Exercise 9.1 — write "`f`"

# %% tags=["parameters"]
STEPS = 3

# %% exercise="f"
def f():
    ### BEGIN SOLUTION
    return 42 + 0 * STEPS
    ### END SOLUTION

# %% check="f" points=2.5 timeout=900
check.f(f)

# %% [markdown] help="f"

# %% [markdown] manual="why" points=1
# ### BEGIN SOLUTION
# Because of the one reason that is written here.
# ### END SOLUTION

# %%
print(1)

# %%
print(1)
'''


def test_markers_become_nbgraders_metadata():
    notebook = expand(SMALL, lambda grade_id: f"help for {grade_id}")
    by_id = {cell.id: cell for cell in notebook.cells}
    common = {"schema_version": 3, "task": False}
    assert by_id["f"].metadata == {"nbgrader": common | {
        "grade": False, "solution": True, "locked": False, "grade_id": "f"}}
    assert by_id["f-check"].metadata == {"loralab": {"timeout": 900}, "nbgrader": common | {
        "grade": True, "solution": False, "locked": True, "grade_id": "f-check", "points": 2.5}}
    assert by_id["why"].metadata["nbgrader"] == common | {
        "grade": True, "solution": True, "locked": False, "grade_id": "why", "points": 1}
    assert notebook.cells[1].metadata == {"tags": ["parameters"]}
    assert notebook.cells[4].source == "help for f"
    assert notebook.cells[7].id == notebook.cells[6].id + "-2"


def test_the_stub_names_its_exercise():
    student = release.release_notebook(expand(SMALL, lambda grade_id: "help"), "09_small")
    assert student.cells[2].source == (
        'def f():\n    raise NotImplementedError("Exercise 9.1: write \\"f\\"")')
    assert student.cells[5].source == "YOUR ANSWER HERE"


def test_a_new_section_ends_an_exercise():
    assert exercise_after("### Exercise 1.2 — write `a`\ntext", None) == "Exercise 1.2: write a"
    assert exercise_after("text", "Exercise 1.2: write a") == "Exercise 1.2: write a"
    assert exercise_after("## 3. Next", "Exercise 1.2: write a") is None


@pytest.mark.parametrize("old, new, said", [
    ('exercise="f"', 'exersise="f"', "unknown marker ['exersise']"),
    (' points=2.5', '', "points="),
    ('exercise="f"', 'exercise="f" points=1', "points="),
    ('exercise="f"', 'exercise="f" check="g" points=1', "not several"),
    ('exercise="f"', 'exercise="1 f"', "use a letter"),
    ('manual="why"', 'manual="f"', "two cells have the grade_id 'f'"),
    ('[markdown] manual="why"', '[markdown] check="why"', "marks a code cell"),
    ('help="f"\n', 'help="f"\n# text\n', "marks an empty [markdown] cell"),
])
def test_a_wrong_marker_is_named(old, new, said):
    assert old in SMALL
    with pytest.raises(SourceError) as caught:
        expand(SMALL.replace(old, new), lambda grade_id: "help")
    assert said in str(caught.value)


@pytest.mark.parametrize("old, new, said", [
    ("    ### END SOLUTION\n\n# %% check", "\n# %% check", "no end solution"),
    ('### Exercise 9.1 — write "`f`"', "No heading", "has no heading"),
    ('# %% exercise="f"', "# %%", "non-solution cell"),
])
def test_what_nbgrader_refuses_is_said_in_its_words(old, new, said):
    notebook = expand(SMALL.replace(old, new), lambda grade_id: "help")
    with pytest.raises(SourceError) as caught:
        release.release_notebook(notebook, "09_small")
    assert said in str(caught.value).lower() + str(caught.value.__cause__).lower()


def test_chapters_are_found_by_number_and_by_name(tmp_path):
    for name in ("01_one", "12_twelve"):
        (tmp_path / f"{name}.py").touch()
    assert [p.stem for p in release.chapters(folder=tmp_path)] == ["01_one", "12_twelve"]
    for name in ("1", "01", "01_one", "solutions/01_one.py"):
        assert [p.stem for p in release.chapters([name], tmp_path)] == ["01_one"]
    with pytest.raises(SourceError, match="no chapter '2'.*01_one, 12_twelve"):
        release.chapters(["2"], tmp_path)


def test_nbgrader_gives_each_cell_its_own_time_and_uses_our_client():
    config = Config()
    nbgrader_config.configure(config)
    execute = Execute(config=config, kernel_name="python3")
    assert issubclass(execute.kernel_manager_class(config=execute.config).client_factory,
                      AttentiveKernelClient)
    cell = nbformat.v4.new_code_cell("train()", metadata={"loralab": {"timeout": 900}})
    assert execute._get_timeout(cell) == 900
    assert execute._get_timeout(nbformat.v4.new_code_cell("1")) == DEFAULT_SECONDS


# The command, as an instructor types it ---------------------------------------------------------

@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, to break."""
    root = tmp_path_factory.mktemp("project")
    for name in ("loralab", "autograder", "solutions", "notebooks"):
        shutil.copytree(paths.PROJECT / name, root / name,
                        ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(paths.PROJECT / "pyproject.toml", root)
    for name in release.BUNDLED_FILES:
        (root / name).write_text(f"a {name}\n")
    (root / "loralab" / ".secrets.json").write_text("{}")
    (root / "loralab" / "notes.docx").write_text("an instructor's")
    return root


def autograder(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", "from autograder.cli import app; app()", *arguments],
        cwd=project, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})


def test_check_names_the_file_and_shows_the_difference_and_release_mends_it(project):
    path = sorted(project.glob("notebooks/*/*.ipynb"))[0]
    good = path.read_text("utf-8")
    path.write_text(good.replace("notebook.start", "notebook.begin"), "utf-8")
    stray = project / "notebooks" / "notes.txt"
    stray.write_text("mine")

    checked = autograder(project, "release", "--check")
    assert checked.returncode == 1
    assert f"differs  {path.relative_to(project)}" in checked.stdout
    assert re.search(r'^-.*notebook\.begin', checked.stdout, re.MULTILINE)
    assert re.search(r'^\+.*notebook\.start', checked.stdout, re.MULTILINE)
    assert "notebooks/notes.txt" in checked.stdout
    assert "autograder release" in checked.stdout
    assert "notebook.begin" in path.read_text("utf-8"), "--check writes nothing"

    stray.unlink()
    written = autograder(project, "release", "--bundle")
    assert written.returncode == 0, written.stdout + written.stderr
    assert f"written  {path.relative_to(project)}" in written.stdout
    assert path.read_text("utf-8") == good


def test_an_unknown_chapter_is_named(project):
    asked = autograder(project, "release", "77")
    assert asked.returncode == 1
    assert "no chapter '77'" in asked.stdout and "Traceback" not in asked.stderr


# The bundle -------------------------------------------------------------------------------------

def test_the_bundle_has_what_students_need_and_nothing_else(project):
    files = release.bundle_files(project)
    names = set(files)
    assert {"pyproject.toml", "loralab/__init__.py", *release.BUNDLED_FILES} <= names
    assert "loralab/checks/ch00.py" in names and "loralab/quizzes/ch00.json" in names
    assert {f"notebooks/{p.parent.name}/{p.name}"
            for p in (project / "notebooks").glob("*/*.ipynb")} <= names
    assert not [name for name in names if name.startswith(("solutions", "autograder", "tests"))]
    assert not [name for name in names if "secrets" in name or "notes" in name
                or "__pycache__" in name]
    assert b"BEGIN SOLUTION" not in b"".join(files.values())


def test_a_bundle_without_its_makefile_is_refused(project, tmp_path):
    shutil.copytree(project, tmp_path / "p")
    (tmp_path / "p" / "Makefile").unlink()
    with pytest.raises(SourceError, match="the bundle needs Makefile"):
        release.bundle_files(tmp_path / "p")


def test_the_bundled_pyproject_installs_without_the_autograder(project):
    text = release.student_pyproject((paths.PROJECT / "pyproject.toml").read_text("utf-8"))
    given = tomllib.loads(text)
    ours = tomllib.loads((paths.PROJECT / "pyproject.toml").read_text("utf-8"))
    assert given["project"]["scripts"] == {"loralab": "loralab.cli:app"}
    assert given["project"]["dependencies"] == ours["project"]["dependencies"]
    assert given["tool"]["setuptools"]["packages"]["find"]["include"] == ["loralab*"]
    assert not given["project"].keys() & {"optional-dependencies", "entry-points"}
    assert "autograder" not in text


def test_the_bundle_is_the_same_bytes_again(project, tmp_path):
    files = release.bundle_files(project)
    one = release.write_bundle(files, tmp_path / "a" / "lora-lab.zip")
    two = release.write_bundle(dict(reversed(files.items())), tmp_path / "b" / "lora-lab.zip")
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {name.split("/")[0] for name in archive.namelist()} == {"lora-lab"}
