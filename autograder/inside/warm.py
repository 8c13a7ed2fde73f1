"""The warm process: imports once, then forks one isolated kernel for each request.

It runs inside bubblewrap, holds no check, no answer and no submission, and never runs a student's
code. Each kernel gets a keeper: a fork of this process that makes new namespaces, forks the kernel
into them, and watches its limits from outside.

    grader ⇄ warm process → keeper → kernel (pid 1 of its own namespace)

Standard input is a SOCK_SEQPACKET socket; a message is one JSON object.
in: {"start": id, "connection": {}, "limits": {}, "private": [], "uid": n, "files": bool},
    {"stop": id}
out: {"warm": true}, {"id": id, "ready": true}, {"id": id, "ended": reason}
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
import warnings
from typing import Any

import bridge
import isolation

EXCHANGE = "/sandbox/exchange"  # all kernels' folders
SOCKETS = "/sandbox/sockets"  # this kernel's folder, once it is alone
WATCH_SECONDS = 0.05
# What ipykernel imports only when it starts.
KERNEL_PARTS = (
    "IPython.core.completerlib", "IPython.core.debugger", "IPython.core.logger",
    "IPython.extensions.storemagic", "ipykernel.debugger", "tornado.platform.asyncio",
)


def warm_up(modules: list[str]) -> None:
    """Import what notebooks import, and work out what every notebook works out first."""
    # A kernel would load it, for no one: a third of its start.
    sys.modules["debugpy"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules:
            importlib.import_module(name)
        if "ipykernel.kernelapp" in modules:
            for name in KERNEL_PARTS:
                importlib.import_module(name)
    if "torch" in sys.modules:
        # A fork after work on several threads hangs.
        sys.modules["torch"].set_num_threads(1)
    if memory := sys.modules.get("loralab.memory"):
        for name in memory.ARCHITECTURES:
            memory.describe(name)
    for package in bridge.OFTEN_MASKED:
        bridge.functions(package)
    # A collection in a fork would write to, and so copy, every page that it shares with this one.
    gc.collect()
    gc.freeze()


def serve(control: socket.socket, modules: list[str]) -> None:
    """Fork keepers until the grader closes its end."""
    # Ended keepers wake the loop; the handler itself has nothing to do.
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    warm_up(modules)
    _say(control, warm=True)
    keepers: dict[int, str] = {}
    while True:
        readable, _, _ = select.select([control, woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
            _reap(keepers, control)
        if control not in readable:
            continue
        message = control.recv(1 << 16)
        if not message:
            return
        request = json.loads(message)
        if "stop" in request:
            for keeper in [pid for pid, name in keepers.items() if name == request["stop"]]:
                os.kill(keeper, signal.SIGTERM)
            continue
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                reason = keep(request, control)
            except BaseException as error:
                reason = f"failed: {type(error).__name__}: {error}"[:300]
            _say(control, id=request["start"], ended=reason)
            os._exit(0)
        keepers[pid] = request["start"]


def _reap(keepers: dict[int, str], control: socket.socket) -> None:
    while keepers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        name = keepers.pop(pid, "")
        if status != 0:  # it could not say so itself
            _say(control, id=name, ended="died")


def _say(control: socket.socket, **message: Any) -> None:
    control.send(json.dumps(message).encode())


# The keeper ------------------------------------------------------------------------------------


def keep(request: dict[str, Any], control: socket.socket) -> str:
    """Start a kernel in namespaces of its own, watch it to its end; why it ended."""
    limits = request["limits"]
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    processes = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    isolation.unshare()
    isolation.mount("none", "/", flags=isolation.MS_REC | isolation.MS_PRIVATE)
    isolation.mount(f"{EXCHANGE}/{request['start']}", SOCKETS, flags=isolation.MS_BIND)
    isolation.mount("tmpfs", EXCHANGE, "tmpfs", isolation.MS_RDONLY, "size=4k")
    for folder in request["private"]:
        isolation.tmpfs(folder, limits["disk_bytes"], request["uid"])
    ours, theirs = socket.socketpair()
    kernel = os.fork()
    if kernel == 0:
        run_kernel(request, theirs)
    theirs.close()
    said = ours.recv(300).decode("utf-8", "replace")
    if said == "ready":  # its sockets are there
        # From here on the folder that the grader sees as well holds what it holds.
        isolation.mount("none", SOCKETS, flags=isolation.MS_REMOUNT | isolation.MS_BIND
                        | isolation.MS_RDONLY | isolation.MS_NOSUID | isolation.MS_NODEV)
        _say(control, id=request["start"], ready=True)
        ours.send(b"go")
    ours.close()
    if said != "ready":
        return _end(kernel, f"failed: {said}")
    watch = Watch(kernel, processes, limits)
    while True:
        pid, status, used = os.wait4(kernel, os.WNOHANG)
        if pid:
            return watch.words(status, used.ru_utime + used.ru_stime)
        if stopped:
            return _end(kernel, "stopped")
        if reason := watch.exceeded():
            return _end(kernel, reason)
        time.sleep(WATCH_SECONDS)


def _end(kernel: int, reason: str) -> str:
    # The kernel is pid 1 of its namespace: all that it started ends with it.
    os.kill(kernel, signal.SIGKILL)
    os.waitpid(kernel, 0)
    return reason


class Watch:
    """Counts what a kernel and its descendants use, through the outer /proc."""

    def __init__(self, kernel: int, processes: int, limits: dict[str, int]):
        self.kernel, self.processes, self.limits = kernel, processes, limits
        self.until = time.monotonic() + limits["wall_seconds"]
        # What it shares with the warm process is no use of its own.
        self.shared = self._resident(kernel)

    def exceeded(self) -> str | None:
        """The limit that is exceeded, in a word, or None."""
        if time.monotonic() > self.until:
            return "time"
        tree = self._tree()
        if sum(tree.values()) > self.limits["processes"]:
            return "processes"
        memory = sum(self._resident(pid) for pid in tree) - self.shared
        if memory > self.limits["memory_bytes"]:
            # Resident pages may be shared; the proportional count takes longer and is right.
            if sum(self._proportional(pid) for pid in tree) > self.limits["memory_bytes"]:
                return "memory"
        return None

    def words(self, status: int, cpu_seconds: float) -> str:
        """Why a kernel that ended by itself did, having used so much CPU time."""
        if not os.WIFSIGNALED(status):
            return "exited"
        return "time" if cpu_seconds >= self.limits["cpu_seconds"] - 1 else "killed"

    def _tree(self) -> dict[int, int]:
        """pid → threads of the kernel and everything below it."""
        parents: dict[int, int] = {}
        threads: dict[int, int] = {}
        for name in os.listdir(self.processes):
            if name.isdigit() and (stat := self._read(f"{name}/stat")):
                # The command's name is in brackets and may hold anything.
                fields = stat.rpartition(")")[2].split()
                parents[int(name)], threads[int(name)] = int(fields[1]), int(fields[17])
        found = {self.kernel}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return {pid: threads[pid] for pid in found if pid in threads}

    def _resident(self, pid: int) -> int:
        fields = self._read(f"{pid}/statm").split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0

    def _proportional(self, pid: int) -> int:
        for line in self._read(f"{pid}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        return self._resident(pid)

    def _read(self, path: str) -> str:
        try:
            descriptor = os.open(path, os.O_RDONLY, dir_fd=self.processes)
        except OSError:
            return ""
        try:
            return os.read(descriptor, 8192).decode("utf-8", "replace")
        except OSError:
            return ""
        finally:
            os.close(descriptor)


# The kernel ------------------------------------------------------------------------------------


def run_kernel(request: dict[str, Any], keeper: socket.socket) -> None:
    """Give up every right, open the kernel's sockets, wait for the keeper, serve. Never returns."""
    try:
        limits = request["limits"]
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        isolation.mount("proc", "/proc", "proc",
                        isolation.MS_NOSUID | isolation.MS_NODEV | isolation.MS_NOEXEC)
        quiet = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(quiet, descriptor)
        os.dup2(keeper.detach(), 3, inheritable=False)
        keeper = socket.socket(fileno=3)
        os.closerange(4, 65536)
        alone = request["uid"] != os.getuid()
        isolation.drop_privileges(request["uid"])
        isolation.prctl(isolation.PR_SET_PDEATHSIG, signal.SIGKILL)
        isolation.limit(
            cpu_seconds=limits["cpu_seconds"],
            data_bytes=_data_now() + limits["memory_bytes"],
            file_bytes=limits["disk_bytes"],
            # Only a brake: the keeper counts. Kernels that share a user share this limit too.
            processes=(limits["processes"] + 16) * (1 if alone else 8),
        )  # fmt: skip
        isolation.forbid_system_calls()
        os.nice(10)  # a keeper has to get its turn among as many processes as are allowed
        os.environ["IPYTHONDIR"] = f"{os.environ['HOME']}/.ipython"
        os.chdir(os.getcwd())  # another folder of that name lies over it now
        if request.get("files"):
            shutil.copytree(f"{SOCKETS}/files", ".", dirs_exist_ok=True)
        kernel = application(request["connection"])
        keeper.send(b"ready")
        if keeper.recv(2) != b"go":
            os._exit(1)
        keeper.close()
    except BaseException as error:
        keeper.send(f"{type(error).__name__}: {error}"[:300].encode())
        os._exit(1)
    try:
        kernel.start()
    finally:
        os._exit(0)


def _data_now() -> int:
    for line in open("/proc/self/status"):
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def application(connection: dict[str, Any]) -> Any:
    """ipykernel, its sockets bound, on the main thread."""
    from ipykernel.kernelapp import IPKernelApp
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    config.IPCompleter.use_jedi = False
    config.IPKernelApp.capture_fd_output = False
    config.Session.key = connection["key"].encode()
    names = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
    application = IPKernelApp.instance(
        config=config, transport="ipc", ip=connection["ip"], log_level=50,
        connection_file=f"{os.environ['TMPDIR']}/kernel.json", **{name: connection[name] for name in names},
    )  # fmt: skip
    application.initialize([])
    return application

