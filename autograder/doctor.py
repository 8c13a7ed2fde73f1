"""Can this machine grade? The same report as `loralab doctor`, of what grading needs."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from loralab import doctor
from loralab.doctor import Item

DISK_NEEDED_GB = 2
# A warm sandbox and the process that grades with it, each with torch and transformers loaded.
MEMORY_A_WORKER_GIB = 2
KERNEL = Path("/proc/sys")


def checks() -> doctor.Looks:
    """What to look at, by name."""
    return {
        "Linux": _linux,
        "Python": doctor.ITEMS["Python"],
        "packages": doctor.ITEMS["packages"],
        "base model": doctor.ITEMS["base model"],
        "bubblewrap": _bubblewrap,
        "sandbox": _sandbox,
        "alembic": _alembic,
        "memory": _memory,
        "disk": _disk,
    }


def _linux() -> Item:
    if sys.platform == "linux":
        return Item("Linux", True, platform.release())
    return Item("Linux", False,
                f"this is {platform.system()}; the sandbox is made of Linux's namespaces",
                "grade on a Linux machine, in a virtual machine or on a hosted runner")


def _bubblewrap() -> Item:
    from autograder.sandbox import bubblewrap

    try:
        return Item("bubblewrap", True, bubblewrap.executable())
    except bubblewrap.NoSandbox as error:
        return Item("bubblewrap", False, _one_line(error),
                    "sudo apt-get install bubblewrap (other systems have it by that name)")


def _sandbox() -> Item:
    """A sandbox is really made."""
    from autograder.sandbox import bubblewrap

    try:
        bubblewrap.require()
    except bubblewrap.NoSandbox as error:
        return Item("sandbox", False, _one_line(error), how_to_allow(_found_bwrap()))
    return Item("sandbox", True, "student code is isolated here")


def _found_bwrap() -> str:
    from autograder.sandbox import bubblewrap

    try:
        return os.path.realpath(bubblewrap.executable())
    except bubblewrap.NoSandbox:
        return "/usr/bin/bwrap"


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])


def how_to_allow(bwrap: str) -> str:
    """The command that lets ordinary users make namespaces, by what this kernel refuses.

    AppArmor's profile allows them to `bwrap` (its path) alone and lasts; the sysctl is for all
    programs, until the next start.
    """
    if _kernel("kernel/apparmor_restrict_unprivileged_userns") == "1":
        profile = "/etc/apparmor.d/loralab-bwrap"
        return ("on a hosted runner: sudo sysctl -w "
                "kernel.apparmor_restrict_unprivileged_userns=0; on a machine of yours, for bwrap "
                r"alone: printf 'abi <abi/4.0>,\nprofile loralab-bwrap "
                rf"{bwrap} flags=(unconfined) {{\n  userns,\n}}\n' | sudo tee {profile} && "
                f"sudo apparmor_parser -r {profile}")
    if _kernel("kernel/unprivileged_userns_clone") == "0":
        return "sudo sysctl -w kernel.unprivileged_userns_clone=1"
    if _kernel("user/max_user_namespaces") == "0":
        return "sudo sysctl -w user.max_user_namespaces=15000"
    if _in_container():
        return ("start the container with --security-opt seccomp=unconfined --security-opt "
                "apparmor=unconfined --security-opt systempaths=unconfined --cap-add SYS_ADMIN")
    return "ask who runs this machine for unprivileged user namespaces"


def _kernel(setting: str) -> str:
    try:
        return (KERNEL / setting).read_text("ascii").strip()
    except OSError:
        return ""


def _in_container() -> bool:
    return any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))


def _alembic() -> Item:
    """nbgrader starts it by name when it first makes a gradebook."""
    if found := shutil.which("alembic"):
        return Item("alembic", True, found)
    beside = Path(sys.executable).parent
    if (beside / "alembic").exists():
        # No failure: our own commands look there.
        return Item("alembic", True, f"in {beside}; for nbgrader's own commands: "
                    f"source {beside / 'activate'}")
    return Item("alembic", False, "it is not installed", "rm -r .venv && make lab")


def _memory() -> Item:
    import psutil

    from loralab import hardware

    total = hardware.machine_memory_bytes() / hardware.GIB
    free = min(psutil.virtual_memory().available / hardware.GIB, total)
    room = int(free // MEMORY_A_WORKER_GIB)
    detail = f"{free:.1f} of {total:.1f} GiB available"
    if room >= 1:
        return Item("memory", True, f"{detail}: room for {room} worker{'s' * (room > 1)}")
    return Item("memory", False, f"{detail}; a worker takes {MEMORY_A_WORKER_GIB} GiB",
                "close other programs, or grade on another machine (--scheduler)")


def _disk() -> Item:
    folders = (Path(tempfile.gettempdir()), Path.cwd())
    free = min(shutil.disk_usage(folder).free for folder in folders) / 1e9
    if free >= DISK_NEEDED_GB:
        return Item("disk", True, f"{free:.0f} GB free here and in {folders[0]}")
    return Item("disk", False, f"{free:.1f} GB free here or in {folders[0]}; grading needs "
                f"{DISK_NEEDED_GB} GB", "free some space, or set TMPDIR to a larger disk")
