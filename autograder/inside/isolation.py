"""Linux's means of isolation, by their C functions: namespaces, mounts, capabilities, limits.

Only what the warm process needs. Every function raises OSError where the kernel refuses.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct

NEW_NAMESPACES = 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # ns pid net ipc uts
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 1, 4, 38, 24
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

_libc = ctypes.CDLL(None, use_errno=True)


def _succeed(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def unshare(flags: int = NEW_NAMESPACES) -> None:
    """Move this process into new namespaces (a new pid namespace holds its children only)."""
    _succeed(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    _succeed(
        _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags),
                    options.encode()),
        f"mount {target}",
    )


def unmount(target: str) -> None:
    _succeed(_libc.umount2(target.encode(), MNT_DETACH), f"unmount {target}")


def tmpfs(target: str, size: int, owner: int) -> None:
    """An empty, private, bounded file system: `size` in bytes."""
    mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV,
          f"size={size},nr_inodes=20000,mode=0755,uid={owner},gid={owner}")


def prctl(option: int, *arguments: int) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    _succeed(_libc.prctl(option, *(ctypes.c_ulong(a) for a in padded)), f"prctl {option}")


def drop_privileges(uid: int) -> None:
    """Become `uid` for good, without capabilities. Call it while there is one thread only."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # no CAP_SETPCAP, or no such capability: no_new_privs covers it
            break
    if os.getuid() != uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("Ii", 0x20080522, 0)
    none = bytes(24)
    _succeed(_libc.capset(header, none), "capset")
    prctl(PR_SET_NO_NEW_PRIVS, 1)


# System calls that no notebook needs: memory that no limit sees, new namespaces, other processes.
_FORBIDDEN = {
    "x86_64": (0xC000003E, {
        "memfd_create": 319, "memfd_secret": 447, "shmget": 29, "ptrace": 101, "unshare": 272,
        "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "bpf": 321,
        "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250, "add_key": 248,
        "request_key": 249, "io_uring_setup": 425, "process_vm_readv": 310,
        "process_vm_writev": 311, "open_by_handle_at": 304, "kexec_load": 246, "msgget": 68,
        "semget": 64, "fsopen": 430, "open_tree": 428, "move_mount": 429, "mq_open": 240,
    }),
    "aarch64": (0xC00000B7, {
        "memfd_create": 279, "memfd_secret": 447, "shmget": 194, "ptrace": 117, "unshare": 97,
        "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "bpf": 280,
        "perf_event_open": 241, "userfaultfd": 282, "keyctl": 219, "add_key": 217,
        "request_key": 218, "io_uring_setup": 425, "process_vm_readv": 270,
        "process_vm_writev": 271, "open_by_handle_at": 265, "kexec_load": 104, "msgget": 186,
        "semget": 190, "fsopen": 430, "open_tree": 428, "move_mount": 429, "mq_open": 180,
    }),
}  # fmt: skip
_CLONE = {"x86_64": 56, "aarch64": 220}
_SOCKET = {"x86_64": 41, "aarch64": 198}
_FAMILIES = (1, 2, 10, 16)  # Unix, IPv4, IPv6, netlink: each in its namespace
_CLONE3 = 435
_NEW_ANY = 0x7E020000 | 0x00000080  # every CLONE_NEW* flag


def forbid_system_calls() -> None:
    """Make the calls above fail with EPERM, for this process and all that it starts.

    clone3 fails with ENOSYS, so that C libraries fall back to clone, whose flags can be seen.
    Needs no_new_privs.
    """
    machine = os.uname().machine
    if machine not in _FORBIDDEN:
        raise OSError(f"no list of system calls for {machine}")
    arch, calls = _FORBIDDEN[machine]
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, kill, eperm, enosys = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    program: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4), (equal, 1, 0, arch), (give, 0, 0, kill),
        (load, 0, 0, 0),
    ]  # fmt: skip
    if machine == "x86_64":  # the x32 numbers, which start there
        program += [(0x35, 0, 1, 0x40000000), (give, 0, 0, eperm)]
    for number in sorted(set(calls.values())):
        program += [(equal, 0, 1, number), (give, 0, 0, eperm)]
    program += [(equal, 0, 1, _CLONE3), (give, 0, 0, enosys)]
    # Sockets of other families (vsock among them) have no namespace.
    program += [(equal, 0, 2 + len(_FAMILIES), _SOCKET[machine]), (load, 0, 0, 16)]
    program += [(equal, len(_FAMILIES) - i, 0, family) for i, family in enumerate(_FAMILIES)]
    program += [(give, 0, 0, eperm), (load, 0, 0, 0)]
    # Flags are clone's first argument; their lower half is at offset 16 of seccomp_data.
    program += [(equal, 0, 3, _CLONE[machine]), (load, 0, 0, 16), (any_bit, 0, 1, _NEW_ANY),
                (give, 0, 0, eperm), (give, 0, 0, allow)]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    filter_program = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    pointer = ctypes.create_string_buffer(filter_program)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(pointer))


def limit(*, cpu_seconds: int, data_bytes: int, file_bytes: int, processes: int) -> None:
    """Resource limits of this process and of each that it starts."""
    for which, value in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, 512),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 1 << 16),
    ):
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
