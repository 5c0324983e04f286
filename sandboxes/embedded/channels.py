"""What a session's processes say, and the sockets and pipes on which they do."""

from __future__ import annotations

import os
import select
import socket
from dataclasses import dataclass
from typing import Any

from agentrl.errors import SandboxError
from sandboxes.embedded.inside import wire

_SO_PASSRIGHTS = 83  # Linux 6.16: whether a socket takes descriptors


@dataclass(frozen=True, slots=True)
class Claim:
    """A message of the interpreter; None is one that no interpreter of ours sends."""

    message: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Fact:
    """A message of the session's first process."""

    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Gone:
    """The session's first process ended, and all its processes with it."""


Event = Claim | Fact | Gone


def pair() -> tuple[socket.socket, int]:
    """Our end of a new socket pair, and the descriptor of the other. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs.detach()


def refuse_descriptors(sock: socket.socket) -> bool:
    """Have the kernel refuse descriptors sent to this socket; False where it cannot.

    Whoever drops the last reference to a descriptor closes it, and code can send one whose close
    lasts (a TCP connection that lingers): that must not be this process's event loop.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def carries_descriptors(sock: socket.socket) -> bool:
    """Whether the next message does, without taking it. Raises BlockingIOError without one."""
    return bool(sock.recvmsg(1, 0, socket.MSG_PEEK)[2] & socket.MSG_CTRUNC)


def is_connected(sock: socket.socket) -> bool:
    """Whether the other end is open: then what looks like the end is an empty message."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return not poll.poll(0)


def pipe() -> tuple[int, int]:
    """The reading end of a new pipe, which is ours, and the writing end. Raises OSError."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(ours, False)
    return ours, theirs


def pid_of(pidfd: int) -> int:
    """The id that a process has here. Raises SandboxError."""
    fd = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _, found, rest = os.read(fd, 4096).partition(b"\nPid:")
    finally:
        os.close(fd)
    if not found:
        raise SandboxError("the kernel does not say which process a pidfd is of")
    return int(rest.split(None, 1)[0])


def parse(data: bytes) -> dict[str, Any] | None:
    """The message that untrusted code sent; None if it is none."""
    try:
        message = wire.decode(data)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None
