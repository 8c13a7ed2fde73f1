"""Run every solution with papermill: the check that a chapter works, and its pictures.

Writes to build/executed/: each notebook with its outputs, an HTML page of it, and timings.json.
"""

from __future__ import annotations

import ast
import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from autograder.authoring.markers import source_notebook
from autograder.nbgrader_config import configure
from autograder.authoring.release import BUILD
from loralab.execution import seconds_for

EXECUTED = BUILD / "executed"


@dataclass(frozen=True)
class Failure:
    """The cell at which a chapter stopped. `index` counts from 0 in the source notebook."""

    cell: str
    index: int
    source: str
    name: str
    message: str
    trace: str = ""


@dataclass(frozen=True)
class CellTime:
    """A code cell that ran: its id, its place in the source notebook, its first line."""

    cell: str
    index: int
    line: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """One chapter's run; `cells` are the code cells that ran."""

    chapter: str
    seconds: float
    parameters: dict[str, object]
    cells: list[CellTime] = field(default_factory=list)
    failure: Failure | None = None

    @property
    def slowest(self) -> CellTime | None:
        return max(self.cells, key=lambda cell: cell.seconds, default=None)


def parameter_names(notebook: NotebookNode) -> set[str]:
    """The names that a notebook's parameters cell sets: those that can be injected."""
    names: set[str] = set()
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    names.add(node.id)
    return names


def parameter_value(text: str) -> object:
    """A value as typed on the command line: Python's literal where it is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def with_parameters(notebook: NotebookNode, parameters: Mapping[str, object]) -> NotebookNode:
    """A copy of `notebook` with papermill's injected-parameters cell.

    Parameters that it does not have are left out.
    """
    known = {k: v for k, v in parameters.items() if k in parameter_names(notebook)}
    return parameterize_notebook(notebook, known) if known else copy.deepcopy(notebook)


def run(
    source: Path,
    parameters: Mapping[str, object] | None = None,
    folder: Path = EXECUTED,
    cwd: Path | None = None,
) -> Outcome:
    """Execute one chapter's solutions; write NN_name.ipynb and NN_name.html to `folder`.

    Runs in `folder`/NN_name (or `cwd`), where a chapter puts its files. Never raises for a cell
    that fails: see `Outcome.failure`.
    """
    notebook = source_notebook(source)
    known = {k: v for k, v in (parameters or {}).items() if k in parameter_names(notebook)}
    name = source.stem
    place = Path(cwd or folder / name)
    place.mkdir(parents=True, exist_ok=True)
    output = folder / f"{name}.ipynb"
    began = monotonic()
    raised: Exception | None = None
    try:
        papermill.execute_notebook(
            notebook, output, known, kernel_name="python3", cwd=place, progress_bar=False,
            timeout_func=seconds_for, config=_config(),
            # The kernel says on the terminal that it listens on this machine; nobody asked.
            extra_arguments=["--log-level=ERROR", "--HistoryManager.enabled=False"],
        )
    except (PapermillExecutionError, CellTimeoutError, DeadKernelError) as error:
        raised = error
    seconds = monotonic() - began
    executed = nbformat.read(output, as_version=4)
    # papermill writes the whole input notebook, and this machine's paths, into the output.
    executed.metadata.papermill.update(input_path=f"solutions/{source.name}",
                                       output_path=output.name)
    nbformat.write(executed, output)
    write_page(executed, folder / f"{name}.html")
    failure = _failure(raised, notebook, executed) if raised else None
    return Outcome(name, seconds, known, _times(notebook, executed), failure)


def _config() -> Config:
    config = Config()
    configure(config)
    return config


def _times(notebook: NotebookNode, executed: NotebookNode) -> list[CellTime]:
    """Cells are matched by id: papermill adds some of its own."""
    index = {cell.id: i for i, cell in enumerate(notebook.cells)}
    return [
        CellTime(cell.id, index[cell.id], cell.source.split("\n")[0],
                 round(cell.metadata.papermill.duration, 3))
        for cell in executed.cells
        if cell.id in index and cell.metadata.get("papermill", {}).get("duration")
        and cell.cell_type == "code"
    ]


def _failure(error: Exception, notebook: NotebookNode, executed: NotebookNode) -> Failure:
    """Where it stopped, by the last cell that was started."""
    ids = [cell.id for cell in notebook.cells]
    ran = [cell for cell in executed.cells if cell.cell_type == "code"
           and cell.metadata.get("papermill", {}).get("start_time")]
    last = ran[-1] if ran else None
    cell = last.id if last is not None else ""
    index = ids.index(cell) if cell in ids else -1
    text = last.source if last is not None else ""
    if isinstance(error, PapermillExecutionError):
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        return Failure(cell, index, text, error.ename, error.evalue, trace)
    if isinstance(error, CellTimeoutError):
        limit = seconds_for(last) if last is not None else 0
        return Failure(cell, index, text, "CellTimeoutError",
                       f"took longer than its {limit} s; give it more with `# %% timeout=…`")
    return Failure(cell, index, text, "DeadKernelError", "the kernel died: out of memory?")


def write_page(executed: NotebookNode, path: Path) -> None:
    """The executed notebook as one HTML file, its figures inside."""
    # Not embed_images: it closes a <details> before its text. Figures are in the outputs anyway.
    exporter = HTMLExporter(require_js_url="")
    page, _ = exporter.from_notebook_node(
        executed, resources={"metadata": {"name": path.stem, "path": ""}})
    path.write_text(page, "utf-8")


def write_timings(outcomes: Iterable[Outcome], path: Path) -> None:
    """timings.json: one record a chapter. Chapters that did not run keep their last one."""
    try:
        records = {record["chapter"]: record for record in json.loads(path.read_text("utf-8"))}
    except (OSError, ValueError, KeyError, TypeError):
        records = {}
    for outcome in outcomes:
        record = asdict(outcome)
        record["seconds"] = round(outcome.seconds, 3)
        records[outcome.chapter] = record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps([records[name] for name in sorted(records)], indent=1, default=str) + "\n",
        "utf-8")


def run_all(
    sources: Iterable[Path],
    parameters: Mapping[str, object],
    folder: Path = EXECUTED,
    started: Callable[[str], None] = lambda chapter: None,
) -> list[Outcome]:
    """Execute chapters one after the other, timings written after each."""
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for source in sources:
        started(source.stem)
        outcomes.append(run(source, parameters, folder))
        write_timings(outcomes[-1:], folder / "timings.json")
    return outcomes
