"""Messages on a stream of bytes: two lengths, a JSON object, and bytes as they are."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_BYTES = 256 << 20
_LENGTHS = struct.Struct("!II")  # of the JSON and of all blobs together


class FrameError(ValueError):
    """Bytes that are no message; the stream cannot be used any longer."""


@dataclass(slots=True)
class Message:
    """`body` is a JSON object, `blobs` are bytes that need no encoding."""

    body: dict[str, Any]
    blobs: list[bytes] = field(default_factory=list)


def encode(body: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """The bytes of a message. Raises FrameError if it is above `MOST_BYTES`."""
    return b"".join(pieces(body, blobs))


def pieces(body: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> list[bytes]:
    """The bytes of a message in order, the blobs as they are. Raises FrameError like `encode`."""
    head = dict(body)
    if blobs:
        head["blobs"] = [len(blob) for blob in blobs]
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":"))
    data = text.encode("utf-8", "surrogatepass")
    size = sum(len(blob) for blob in blobs)
    if len(data) + size > MOST_BYTES:
        raise FrameError(f"a message of {len(data) + size} bytes; at most {MOST_BYTES}")
    return [_LENGTHS.pack(len(data), size) + data, *blobs]


class Decoder:
    """Takes bytes as they come, gives messages. `most` bounds a message's size in bytes."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._data = bytearray()

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished message were fed."""
        return len(self._data)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """The messages that `data` completes. Raises FrameError; feed nothing more after that."""
        self._data += data
        found = []
        start = 0
        while len(self._data) - start >= _LENGTHS.size:
            size, extra = _LENGTHS.unpack_from(self._data, start)
            if size + extra > self._most:
                raise FrameError(f"a message of {size + extra} bytes; at most {self._most}")
            first = start + _LENGTHS.size
            end = first + size + extra
            if len(self._data) < end:
                break
            body = bytes(self._data[first : first + size])
            found.append(_message(body, memoryview(self._data)[first + size : end]))
            start = end
        del self._data[:start]
        return found


def _message(text: bytes, rest: memoryview) -> Message:
    with rest:
        try:
            body = json.loads(text.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError) as error:
            raise FrameError("a message that is not JSON") from error
        if not isinstance(body, dict):
            raise FrameError("a message that is no JSON object")
        sizes = body.pop("blobs", [])
        if not isinstance(sizes, list) or not all(type(n) is int and n >= 0 for n in sizes):
            raise FrameError("blob sizes that are none")
        if sum(sizes) != len(rest):
            raise FrameError("blob sizes that do not add up")
        blobs = []
        at = 0
        for size in sizes:
            blobs.append(bytes(rest[at : at + size]))
            at += size
        return Message(body, blobs)
