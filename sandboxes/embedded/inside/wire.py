"""JSON messages with file descriptors over a SEQPACKET socket. Both ends use it."""

from __future__ import annotations

import _socket
import json
from _socket import CMSG_SPACE, MSG_CTRUNC, MSG_TRUNC, SCM_RIGHTS, SOL_SOCKET, socket
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

MESSAGE_BYTES = 192 << 10  # fits the default send buffer of a unix socket
_FDS = 8
_to_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_CLOSE_ON_EXEC = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)


def encode(message: Mapping[str, Any]) -> bytes:
    """The bytes of a message; text may hold lone surrogates."""
    return _to_text(message).encode("utf-8", "surrogatepass")


def decode(data: bytes) -> Any:
    """The value that `encode` wrote. Raises ValueError or RecursionError on anything else."""
    return json.loads(data.decode("utf-8", "surrogatepass"))


def send(sock: socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message; `fds` are duplicated into the receiver. Raises OSError."""
    rights = [(SOL_SOCKET, SCM_RIGHTS, array("i", fds))] if fds else []
    sock.sendmsg([encode(message)], rights)


def receive(sock: socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and its descriptors; None at the end of the stream. Raises OSError."""
    size = MESSAGE_BYTES + 1024
    data, control, flags, _ = sock.recvmsg(size, CMSG_SPACE(4 * _FDS), _CLOSE_ON_EXEC)
    fds = array("i")
    for level, kind, payload in control:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data:
        return None, list(fds)
    if flags & (MSG_TRUNC | MSG_CTRUNC):
        raise OSError("message cut off")
    message = decode(data)
    if not isinstance(message, dict):
        raise OSError("not a message")
    return message, list(fds)
