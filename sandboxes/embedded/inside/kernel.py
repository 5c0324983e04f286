"""Linux calls that Python does not offer, through ctypes. Every failure is an OSError."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found,unused-ignore]
import ctypes
import errno
import fcntl
import os
import signal
import struct
from _socket import AF_INET, SOCK_DGRAM, socket
from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP_MODE_FILTER = 2
# NOROOT, NO_SETUID_FIXUP off, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE; each locked
_SECUREBITS = 0b11_00_00_00 | 0b11 | 0b1000 | 0b100000

_SIGCHLD, _SIGKILL = int(signal.SIGCHLD), int(signal.SIGKILL)  # an enum's members are slow

_SYS_CLONE = {"x86_64": 56, "aarch64": 220}
_CAPABILITY_VERSION = 0x20080522
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 0, 1, 5, 6, 7, 8
CAP_SYS_ADMIN = 21

_libc = ctypes.CDLL(None, use_errno=True)
_locked = ctypes.PyDLL(None, use_errno=True)  # calls keep the interpreter lock
_locked.syscall.restype = ctypes.c_long
_libc.syscall.restype = ctypes.c_long
for _name in ("prctl", "mount", "capset", "fflush"):
    getattr(_libc, _name)  # ctypes looks a function up at first use: here, not in every clone


# Without the enums that Python puts around them.
handle_signal, IGNORE, DEFAULT = _signal.signal, _signal.SIG_IGN, _signal.SIG_DFL


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(what: str, option: int, *args: Any) -> int:
    padded = (*args, 0, 0, 0, 0)[:4]
    return _check(_libc.prctl(option, *padded), what)


def clone(flags: int) -> int:
    """Fork into new namespaces: 0 in the child, its process id in the parent.

    Python's own preparations for a fork are left out, which is only right because the caller has a
    single thread and holds no lock; the child makes up for them when it forks the interpreter.
    """
    number = _SYS_CLONE[os.uname().machine]
    args = [ctypes.c_long(a) for a in (number, flags | _SIGCHLD, 0, 0, 0, 0)]
    return _check(_locked.syscall(*args), "clone")


def unshare(flags: int) -> None:
    """Move this process into new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(result, f"mount {kind or source} on {target}")


def loopback_up() -> None:
    """Bring up `lo` in this network namespace, which has nothing else."""
    sock = socket(AF_INET, SOCK_DGRAM, 0)
    try:
        request = struct.pack("16sh22x", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(sock.fileno(), 0x8914, request)  # SIOCSIFFLAGS
    finally:
        sock.close()


def die_with_parent(number: int = _SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that made it ends."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, int(number))


def adopt_orphans() -> None:
    """Become the parent of every orphan below this process."""
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(value: bool) -> None:
    """Whether processes of the same user may inspect this one."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, int(value))


def lock_capabilities() -> None:
    """Make sure that this process can never gain a capability. Needs CAP_SETPCAP."""
    _prctl("PR_SET_SECUREBITS", _PR_SET_SECUREBITS, _SECUREBITS)
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # past the last one this kernel knows
    _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def limit_capabilities(*kept: int) -> None:
    """Have the next executed program start with no capability but these, where the kernel lets
    this process decide that (CAP_SETPCAP)."""
    if capabilities() & 1 << CAP_SETPCAP:
        for capability in range(64):
            if capability not in kept:
                _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def keep_capabilities(*kept: int) -> None:
    """Give up every capability but these, for good."""
    bits = sum(1 << number for number in kept)
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    # effective, permitted, inheritable: the low halves, then the high ones
    _check(_libc.capset(header, struct.pack("6I", bits, bits, 0, 0, 0, 0)), "capset")


def capabilities() -> int:
    """The effective capabilities of this process, as bits."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


def set_file_user(uid: int) -> None:
    """Use the rights of this user and group on files, and no capability about files (0: all that
    this process has). It also stops signals on the parent's death, and inspection by others."""
    _libc.setfsgid(uid)
    _libc.setfsuid(uid)
    if _libc.setfsuid(-1) != uid:
        raise OSError(errno.EPERM, f"setfsuid {uid}: {os.strerror(errno.EPERM)}")


def no_new_privileges() -> None:
    """execve never grants anything from here on."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install_seccomp(program: bytes) -> None:
    """Filter this thread's system calls, and its children's, by a classic BPF program."""
    loaded = _FilterProgram(len(program) // 8, program)
    _prctl("PR_SET_SECCOMP", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(loaded))


def flush_c_streams() -> None:
    """Write out what C code left in stdio buffers."""
    _libc.fflush(None)
