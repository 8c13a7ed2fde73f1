"""Open JupyterLab on the students' work, and leave nothing outside the course and its cache.

The configuration that never changes is in `jupyter_config/`; Jupyter reads it first, because
JUPYTER_CONFIG_PATH names it. What depends on this computer is set here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from loralab import paths
from loralab.errors import CourseError

CONFIG = paths.PACKAGE / "jupyter_config"
FIRST = "00_start_here/00_start_here.ipynb"


def environment(given: Mapping[str, str], cache: Path) -> dict[str, str]:
    """`given` (the user's environment) with every place that Jupyter and the libraries write to.

    A user's own Jupyter has its kernels, settings and extensions elsewhere: none is read, so that
    a kernel of the same name cannot stand in for the course's.
    """
    bin_folder = Path(sys.executable).parent
    # Two clones of the course have two sets of open tabs.
    project = hashlib.sha256(str(paths.PROJECT).encode()).hexdigest()[:8]
    jupyter = cache / "jupyter"
    places = {
        "JUPYTER_CONFIG_DIR": jupyter / "config",
        "JUPYTER_CONFIG_PATH": CONFIG,
        "JUPYTER_DATA_DIR": jupyter / "data",
        "JUPYTER_RUNTIME_DIR": jupyter / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": jupyter / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": jupyter / f"workspaces-{project}",
        "IPYTHONDIR": cache / "ipython",
        "MPLCONFIGDIR": cache / "matplotlib",
    }
    # Large, and useful to share: a place that the user has chosen stays.
    shared = {
        "HF_HOME": cache / "huggingface",
        "TORCH_HOME": cache / "torch",
        "TRITON_CACHE_DIR": cache / "triton",
        "CUDA_CACHE_PATH": cache / "cuda",
    }
    dropped = {"JUPYTER_PATH", "JUPYTERLAB_DIR", "JUPYTER_NO_CONFIG", "PYTHONHOME"}
    ours = {name: value for name, value in given.items() if name not in dropped}
    ours |= {name: str(place) for name, place in places.items()}
    for name, place in shared.items():
        ours.setdefault(name, str(place))
    # Someone who has logged in to the hub before stays logged in.
    token = Path(given.get("HOME", "/"), ".cache", "huggingface", "token")
    if "HF_HOME" not in given and token.is_file():
        ours.setdefault("HF_TOKEN_PATH", str(token))
    ours["JUPYTER_PREFER_ENV_PATH"] = "1"
    ours["PYTHONNOUSERSITE"] = "1"
    # Jupyter's terminal and the cells find `loralab` and this environment's python.
    ours["PATH"] = os.pathsep.join([str(bin_folder), given.get("PATH", os.defpath)])
    if sys.prefix != sys.base_prefix:
        ours["VIRTUAL_ENV"] = sys.prefix
    return ours


def command(arguments: Sequence[str], shell: str) -> list[str]:
    """JupyterLab in `work/`, at chapter 00. The user's `arguments` come last and win."""
    first = f"/lab/tree/{FIRST}" if (paths.WORK / FIRST).is_file() else "/lab"
    return [
        sys.executable, "-m", "jupyterlab",
        f"--ServerApp.root_dir={paths.WORK}",
        f"--LabApp.default_url={first}",
        # Not a login shell, which would put the system's folders before ours again.
        f"--ServerApp.terminado_settings=shell_command={[shell]!r}",
        *arguments,
    ]


def start(arguments: Sequence[str]) -> NoReturn:
    """Become JupyterLab. Raises `CourseError` where its folders cannot be made."""
    ours = environment(os.environ, paths.cache())
    try:
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR", "IPYTHONDIR"):
            Path(ours[name]).mkdir(parents=True, exist_ok=True)
        # A kernel says on the terminal that it listens on this machine; nobody asked.
        profile = Path(ours["IPYTHONDIR"], "profile_default")
        profile.mkdir(exist_ok=True)
        (profile / "ipython_kernel_config.json").write_text(
            '{"IPKernelApp": {"log_level": 40}}\n', "utf-8")
        os.chdir(paths.WORK)
    except OSError as error:
        raise CourseError(
            f"JupyterLab's own files could not be stored in {paths.cache()}: {error.strerror}.",
            "Free some space there, or set LORALAB_CACHE to another folder; then run this again.",
        ) from error
    shell = ours.get("SHELL") or shutil.which("bash") or "/bin/sh"
    line = command(arguments, shell)
    sys.stdout.flush()
    os.execve(line[0], line, ours)
