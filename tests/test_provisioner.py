"""The sandboxed kernel as other programs start it: nbclient, papermill, a plain kernel manager."""

from __future__ import annotations

import os
import time

import nbformat
import papermill
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from autograder.sandbox import provisioner

NAME = "sandbox-on-trial"


@pytest.fixture(scope="module")
def kernel_name(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("prefix")
    folder = provisioner.install(NAME, prefix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder.parent.parent))
        yield NAME


def texts(notebook) -> list[str]:
    return [output.get("text") or output.get("data", {}).get("text/plain", "")
            for cell in notebook.cells for output in cell.outputs]


def test_nbclient_runs_a_notebook_in_it(kernel_name, tmp_path):
    (tmp_path / "data.txt").write_text("beside the notebook")
    (tmp_path / "link.txt").symlink_to("/etc/passwd")
    notebook = new_notebook(cells=[new_code_cell(code) for code in (
        "print(open('data.txt').read())",
        "import os\nsorted(os.listdir('.')), os.listdir(os.environ['HOME'])",
        "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 2)\n"
        "except OSError as error:\n    print(type(error).__name__)",
        "open('made.txt', 'w').write('inside')",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    )])
    NotebookClient(notebook, kernel_name=kernel_name, timeout=60,
                   resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = texts(notebook)
    assert said[0] == "beside the notebook\n"
    assert said[1] == "(['data.txt'], ['.ipython'])"
    assert said[2] in ("OSError\n", "ConnectionRefusedError\n")
    assert "image/png" in notebook.cells[-1].outputs[-1].data
    assert not (tmp_path / "made.txt").exists()


def test_papermill_runs_a_notebook_in_it(kernel_name, tmp_path):
    cell = new_code_cell("x = 1", metadata={"tags": ["parameters"]})
    spec = {"kernelspec": {"name": kernel_name, "language": "python", "display_name": "sandbox"}}
    nbformat.write(new_notebook(cells=[cell, new_code_cell("print(x)")], metadata=spec),
                   tmp_path / "in.ipynb")
    papermill.execute_notebook(str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), {"x": 5},
                               kernel_name=kernel_name, progress_bar=False)
    assert texts(nbformat.read(tmp_path / "out.ipynb", 4)) == ["5\n"]


def test_interrupt_restart_and_end(kernel_name, tmp_path):
    manager = KernelManager(kernel_name=kernel_name)
    manager.start_kernel(cwd=str(tmp_path))
    exchange = manager.provisioner._sandbox._exchange
    try:
        client = manager.blocking_client()
        client.start_channels()
        client.wait_for_ready(60)
        client.execute("while True: pass")
        time.sleep(0.5)
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=30)["content"]["ename"] == "KeyboardInterrupt"
        client.execute_interactive("x = 1", timeout=30)
        client.stop_channels()

        manager.restart_kernel(now=True)
        client = manager.blocking_client()
        client.start_channels()
        client.wait_for_ready(60)
        reply = client.execute_interactive("x", timeout=30, output_hook=lambda message: None)
        assert reply["content"]["ename"] == "NameError"
        client.stop_channels()
        assert not exchange.exists()
        exchange = manager.provisioner._sandbox._exchange
    finally:
        manager.shutdown_kernel(now=True)
    assert not os.path.exists(exchange)
    assert not manager.is_alive()


def test_a_folder_that_is_no_assignment_stays_outside(tmp_path):
    for number in range(provisioner.MAX_FILES + 1):
        (tmp_path / str(number)).touch()
    assert provisioner.beside(tmp_path) == {}
