"""Messages as bodies of HTTP requests and answers, large ones in chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import aiohttp

from sandboxes.rpc import frames

TYPE = "application/octet-stream"
WHOLE_BYTES = 256 << 10  # a body up to this size is sent at once
_CHUNK = 64 << 10


async def chunks(parts: Sequence[bytes]) -> AsyncIterator[memoryview]:
    """The parts in pieces, none copied."""
    for part in parts:
        view = memoryview(part)
        for at in range(0, len(view), _CHUNK):
            yield view[at : at + _CHUNK]


async def message(content: aiohttp.StreamReader, most: int) -> frames.Message:
    """The one message of a body, of at most `most` bytes. Raises FrameError if it is none."""
    decoder = frames.Decoder(most)
    found: list[frames.Message] = []
    async for data in content.iter_any():
        if found:
            raise frames.FrameError("bytes behind the message")
        found += decoder.feed(data)
    if len(found) != 1 or decoder.pending:
        raise frames.FrameError(f"a body of {len(found)} messages: there must be one")
    return found[0]
