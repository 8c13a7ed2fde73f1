"""Make or mend `.venv`, the course's environment. `make` runs this file before anything else.

Standard library only, because it runs before any package is there, and without annotations or
f-strings before the version check, so that an old Python can still say that it is too old.

    python3 -I loralab/environment.py [--chosen] [MORE_LOCKS ...]

installs requirements.lock, MORE_LOCKS and the course itself. `.venv/loralab.json` notes what was
installed, from which locks and for which folder; where it still holds, nothing is done.
"""

import sys

if sys.version_info < (3, 11):
    sys.stderr.write(
        "The course needs Python 3.11 or newer; this one is %d.%d (%s).\n"
        "-> Name a newer one: make lab PYTHON=/path/to/python3.12\n"
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )
    sys.exit(1)

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
ENVIRONMENT = PROJECT / ".venv"
LOCK = "requirements.lock"
# The smallest that an installation can do with; a CUDA build of torch takes more.
SPACE_NEEDED_BYTES = 3_000_000_000

# What pip says → what to tell. The first that matches.
DISK_FULL = ("No space left on device", "Disk quota exceeded")
NO_NETWORK = (
    "Temporary failure in name resolution", "Name or service not known", "nodename nor servname",
    "Network is unreachable", "Connection refused", "Failed to establish a new connection",
    "NewConnectionError", "Read timed out", "ConnectTimeoutError", "Connection to", "ProxyError",
)
NO_VERSION = ("No matching distribution found", "Could not find a version")


class Stop(Exception):
    """What happened, and what to do."""


def main(arguments):
    chosen = "--chosen" in arguments
    locks = [LOCK] + [argument for argument in arguments if argument != "--chosen"]
    try:
        prepare(locks, chosen)
    except Stop as stop:
        message, remedy = stop.args
        sys.stderr.write("\n%s\n-> %s\n" % (message, remedy))
        return 1
    except OSError as error:
        sys.stderr.write("\n%s could not be made: %s.\n-> %s\n" % (
            ENVIRONMENT, error, "Free some space or mend the permissions, and run it again."))
        return 1
    return 0


def prepare(locks, chosen=False):
    """Bring `.venv` up to date with `locks`. Raises Stop when that cannot be done."""
    for lock in locks:
        if not (PROJECT / lock).is_file():
            raise Stop("%s is not in this folder." % lock,
                       "Testing needs the whole repository, not the archive for students.")
    wanted = digests(locks)
    noted = read_note()
    sound = is_sound(noted, chosen)
    if sound and wanted.items() <= noted["installed"].items():
        return
    need_space()
    if not sound:
        create()
        noted = {"installed": {}}
    python = str(python_of(ENVIRONMENT))
    stale = [lock for lock in locks if noted["installed"].get(lock) != wanted[lock]]
    if stale:
        print("Installing the locked packages into .venv; pip shows how far it is. "
              "The first time takes minutes.", flush=True)
        files = [part for lock in stale for part in ("-r", lock)]
        pip(python, files)
    # The locked setuptools builds it, so this step needs no network.
    pip(python, ["--quiet", "--no-deps", "--no-build-isolation", "--editable", "."])
    write_note({**noted["installed"], **wanted})


def digests(locks):
    """What is installed, by content. pyproject.toml makes the commands `loralab`, `autograder`."""
    return {
        name: hashlib.sha256((PROJECT / name).read_bytes()).hexdigest()
        for name in [*locks, "pyproject.toml"]
    }


def python_of(environment):
    return environment / "bin" / "python"


def note_path():
    return ENVIRONMENT / "loralab.json"


def read_note():
    try:
        note = json.loads(note_path().read_text("utf-8"))
        return note if isinstance(note["installed"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_note(installed):
    note = {"folder": str(PROJECT), "python": "%d.%d" % sys.version_info[:2], "installed": installed}
    old = read_note()
    if old:
        note["python"] = old.get("python", note["python"])
    scratch = note_path().with_suffix(".tmp")
    scratch.write_text(json.dumps(note, indent=1) + "\n", "utf-8")
    os.replace(scratch, note_path())


def is_sound(note, chosen):
    """Whether the environment can be used: not moved, its Python still there and the chosen one.

    Scripts and the editable install carry the folder's name, so a moved one is made again.
    """
    if note is None or note.get("folder") != str(PROJECT) or not python_of(ENVIRONMENT).exists():
        return False
    return not chosen or note.get("python") == "%d.%d" % sys.version_info[:2]


def need_space():
    free = shutil.disk_usage(PROJECT).free
    if free < SPACE_NEEDED_BYTES:
        raise Stop("The disk is nearly full: %.1f GB are free, and the course's packages need %.0f GB."
                   % (free / 1e9, SPACE_NEEDED_BYTES / 1e9),
                   "Free some space, or move this folder to a disk that has it; then run it again.")


def create():
    version = "%d.%d.%d" % sys.version_info[:3]
    print("Making .venv with Python %s (%s)" % (version, sys.executable), flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    if done.returncode == 0:
        write_note({})
        return
    if any(sign in done.stdout for sign in DISK_FULL):
        raise full_disk()
    if "ensurepip" in done.stdout:
        raise Stop("This Python cannot make environments: its module ensurepip is missing.",
                   "On Debian and Ubuntu: sudo apt install python3-venv; then run it again. "
                   "Or name another: make lab PYTHON=/path/to/python3.12")
    raise Stop("`python -m venv` failed:\n%s" % done.stdout.strip(),
               "Try another Python: make lab PYTHON=/path/to/python3.12")


def pip(python, arguments):
    """`pip install`; its progress goes to the screen as it comes. Raises Stop in two lines."""
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", *arguments]
    # Settings that send packages elsewhere than into this environment.
    moving = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONHOME", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in moving}
    environment["PIP_USER"] = "0"
    said = []
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stderr=subprocess.PIPE,
                          text=True, errors="replace") as process:
        for line in process.stderr:
            said.append(line)
            sys.stderr.write(line)
    if process.returncode != 0:
        raise explain("".join(said))


def explain(said):
    """pip's words as one message with a remedy."""
    if any(sign in said for sign in DISK_FULL):
        return full_disk()
    if any(sign in said for sign in NO_NETWORK):
        return Stop("The packages could not be fetched: the package registry does not answer.",
                    "Check the network (or the proxy that pip is to use) and run it again: "
                    "what was fetched so far is kept.")
    if any(sign in said for sign in NO_VERSION):
        return Stop("A locked package does not exist for this computer: see pip's words above.",
                    "Linux (x86-64) and macOS 14 or newer (arm64) with Python 3.11 to 3.13 are "
                    "tested; choose one with make lab PYTHON=python3.12")
    return Stop("pip could not install the course's packages: see its words above.",
                "Run it again; if that does not help, delete the folder .venv and run it again.")


def full_disk():
    return Stop("The disk is full: the course's packages did not fit.",
                "Free some space and run it again; your work is untouched.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
