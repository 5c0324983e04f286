"""The system-call filter of sessions, as classic BPF made in Python.

Everything is allowed but what escapes, spies or speaks to rarely tested corners of the kernel:
tracing, namespaces, mounts, io_uring, BPF, keyrings, modules, clocks, sockets other than unix and
internet ones, and other system-call tables (32-bit, x32). Sessions that share the machine's
network and kernel objects (tier `uid`) are denied all sockets but pairs, and what others could
open by a name.
"""

from __future__ import annotations

import errno
import platform
import struct

from agentrl.errors import IsolationError

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000

_LOAD = 0x20  # A = seccomp_data[k]
_JUMP = 0x05
_EQUAL = 0x15
_GREATER_EQUAL = 0x35
_ANY_BIT = 0x45
_AND = 0x54  # A &= k
_RETURN = 0x06

_NR, _ARCH = 0, 4
_ARGS = 16  # 64 bits each, the low half first on both architectures here

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* that clone(2) takes
_SOCKET_FAMILIES = (1, 2, 10)  # unix, IPv4, IPv6
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
# fcntl(2): a lease on a file makes others wait who open it; watches and large pipes are counted
# for the user of all sessions.
_SHARED = (1024, 1026, 1031)  # F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ

# name: (x86_64, aarch64); None where the architecture has no such call
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "init_module": (175, 105),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysctl": (156, None),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
}
_ABSENT: dict[str, tuple[int, int]] = {  # callers have a fallback for "no such call"
    "clone3": (435, 435),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
}
# Done at once: they would have every disk of the machine write.
_IDLE: dict[str, tuple[int, int]] = {
    "sync": (162, 81),
    "syncfs": (306, 267),
}
# Memory that no process maps: only control groups see it.
_UNMAPPED: dict[str, tuple[int, int]] = {
    "memfd_create": (319, 279),
    "msgget": (68, 186),
    "shmget": (29, 194),
}
# What sessions without namespaces of their own could meet through.
_NAMED: dict[str, tuple[int, int | None]] = {
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "semget": (64, 190),
    "shmget": (29, 194),
    "socket": (41, 198),
}
_CLONE = (56, 220)
_FCNTL = (72, 25)
_IOCTL = (16, 29)
_PERSONALITY = (135, 92)
_PRIORITY = (141, 140)
_SCHEDULERS = ((142, 118), (144, 119), (314, 274))  # setparam, setscheduler, setattr
_PRLIMIT = (302, 261)
_SOCKETS = ((41, 198), (53, 199))  # socket, socketpair
_SOCKET_TYPE = 0xF  # the rest are flags
_DATAGRAM = 2  # a pair of these can still send to any address


def _op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, k)


def _deny(number: int) -> bytes:
    return _op(_RETURN, _ERRNO | number)


def _argument(index: int) -> bytes:
    """Load the low half of an argument."""
    return _op(_LOAD, _ARGS + 8 * index)


_ALLOWED = _op(_RETURN, _ALLOW)


def _by_argument(arch: int) -> dict[int, bytes]:
    """The calls whose arguments decide, with the code that decides."""
    eperm = _deny(errno.EPERM)
    namespaces = _argument(0) + _op(_ANY_BIT, _NEW_NAMESPACES, 0, 1) + eperm + _ALLOWED
    current = _op(_EQUAL, 0, 2, 0) + _op(_EQUAL, 0xFFFFFFFF, 1, 0)
    terminal, shared = (
        b"".join(_op(_EQUAL, code, 0, 1) + eperm for code in codes)
        for codes in (_TERMINAL_INPUT, _SHARED)
    )
    families = _argument(0)
    for left, family in zip((3, 2, 1), _SOCKET_FAMILIES, strict=True):
        families += _op(_EQUAL, family, left, 0)
    families += _deny(errno.EACCES) + _ALLOWED
    # Of its own only: a first process that only runs where nothing else does would not even die.
    zero = _op(_EQUAL, 0, 1, 0) + eperm
    myself = _argument(0) + zero + _ALLOWED
    return {
        **{call[arch]: myself for call in _SCHEDULERS},
        _PRIORITY[arch]: _argument(0) + zero + _argument(1) + zero + _ALLOWED,
        _CLONE[arch]: namespaces,
        _PERSONALITY[arch]: _argument(0) + current + eperm + _ALLOWED,
        _PRLIMIT[arch]: _argument(0) + _op(_EQUAL, 0, 1, 0) + eperm + _ALLOWED,
        _FCNTL[arch]: _argument(1) + shared + _ALLOWED,
        _IOCTL[arch]: _argument(1) + terminal + _ALLOWED,
        **{call[arch]: families for call in _SOCKETS},
    }


def _search(steps: list[tuple[int, bytes]]) -> bytes:
    """Code that runs the last of `steps` (number, code) whose number the call's is not below: a
    binary search, which the kernel tries for every call when the filter is installed."""
    if len(steps) == 1:
        return steps[0][1]
    middle = len(steps) // 2
    below, above = _search(steps[:middle]), _search(steps[middle:])
    return _op(_GREATER_EQUAL, steps[middle][0], len(below) // 8, 0) + below + above


def _pairs() -> bytes:
    """Unix pairs only, of the types that cannot send elsewhere."""
    deny = _deny(errno.EACCES)
    code = _argument(0) + _op(_EQUAL, _SOCKET_FAMILIES[0], 1, 0) + deny
    return code + _argument(1) + _op(_AND, _SOCKET_TYPE) + _op(_EQUAL, _DATAGRAM, 0, 1) + deny


def build(*, unmapped_memory: bool, shared: bool = False, machine: str = "") -> bytes:
    """The filter as bytes of `struct sock_filter`.

    `unmapped_memory` allows kinds of memory that only control groups can limit. `shared`: sessions
    have no namespaces of their own. Raises IsolationError on a machine whose system calls are not
    in the table.
    """
    machine = machine or platform.machine()
    if machine not in _AUDIT_ARCH:
        raise IsolationError(
            f"no system-call filter for {machine!r}; isolation='none' (--isolation none) runs "
            "code WITHOUT isolation"
        )
    arch = list(_AUDIT_ARCH).index(machine)
    special = {c[arch]: _deny(errno.ENOSYS) for c in _ABSENT.values()}
    special |= {c[arch]: _deny(0) for c in _IDLE.values()}
    special |= {n: _deny(errno.EPERM) for c in _DENIED.values() if (n := c[arch]) is not None}
    if not unmapped_memory:
        special |= {c[arch]: _deny(errno.EPERM) for c in _UNMAPPED.values()}
    special |= _by_argument(arch)
    if shared:
        special |= {n: _deny(errno.EACCES) for c in _NAMED.values() if (n := c[arch]) is not None}
        special[_SOCKETS[1][arch]] = _pairs() + _ALLOWED
    steps = [(0, _ALLOWED)]
    for number in sorted(special):
        if steps[-1][0] == number:  # begins where the last one ends
            steps.pop()
        if not steps or steps[-1][1] != special[number]:
            steps.append((number, special[number]))
        steps.append((number + 1, _ALLOWED))
    if machine == "x86_64":
        steps.append((_X32_BIT, _deny(errno.ENOSYS)))
    code = _op(_LOAD, _ARCH)
    code += _op(_EQUAL, _AUDIT_ARCH[machine], 1, 0) + _deny(errno.ENOSYS)
    return code + _op(_LOAD, _NR) + _search(steps)
