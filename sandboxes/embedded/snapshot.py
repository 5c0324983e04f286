"""Snapshots of sessions: taken from one between two calls, begun in by any number of new ones."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from agentrl.errors import SandboxError, SnapshotRefused
from sandboxes.embedded import outside, trace
from sandboxes.embedded.arguments import close_all, memfd
from sandboxes.embedded.channels import Claim, Gone
from sandboxes.embedded.handle import Handle
from sandboxes.embedded.memory import Odd
from sandboxes.embedded.parcel import Parcel
from sandboxes.embedded.process import MOST_MB, Fresh, State, describe, give, take
from sandboxes.embedded.zygote import Zygote

if TYPE_CHECKING:
    from sandboxes.embedded.session import EmbeddedSession

T = TypeVar("T")

_ORDER_S = 20.0
_AWAKE_S = 5.0  # for a session's first answer in its new state


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state that a session was in, for any number of new sessions: its interpreter's memory,
    its working directory, and its files. See `agentrl.interfaces.Snapshot`.

    `size` is in bytes; what every fresh session has is not counted. `spent_s` are the CPU seconds
    that the state took, which count for the sessions that begin in it.
    """

    zygote: Zygote
    fresh: Fresh
    state: State
    files: Parcel
    size: int
    spent_s: float
    opener: Callable[[Snapshot], EmbeddedSession]

    def session(self) -> EmbeddedSession:
        """A new session, not yet open, that begins in this state."""
        return self.opener(self)


def unfit(zygote: Zygote) -> str | None:
    """Why states of its sessions cannot be carried; None if they might be."""
    if zygote.tier != "namespaces" or zygote.container:
        return "its sandbox does not give it namespaces of its own on this machine"
    return trace.possible()


async def possible(handle: Handle) -> bool:
    """Whether states of sessions like this one can be carried, by stopping it and looking."""
    if unfit(handle.zygote) is not None:
        return False
    traced = handle.traced(kill=True)

    def stop() -> None:
        with traced:
            outside.alone(handle)

    try:
        await _in_thread(stop)
    except SnapshotRefused:
        return False
    return True


async def of(
    handle: Handle,
    acquire: Callable[[], Awaitable[Handle]],
    opener: Callable[[Snapshot], EmbeddedSession],
) -> Snapshot:
    """The state of a session that is between two calls, and goes on after it. `acquire` gives a
    fresh session like it.

    Raises SnapshotRefused where the state cannot be carried; SandboxError.
    """
    reason = unfit(handle.zygote)
    if reason is not None:
        raise SnapshotRefused(f"this session's state cannot be carried: {reason}")
    if (await _ordered(handle, {"op": "objects"})).get("size") != 0:
        raise SnapshotRefused("this session's state cannot be carried: it has System V objects")
    fresh = await _fresh(handle, acquire)
    spent_s = handle.spent_s()
    traced = handle.traced(kill=False)
    state, files, size = await _in_thread(lambda: take(traced, handle, fresh, MOST_MB << 20))
    return Snapshot(handle.zygote, fresh, state, files, size, spent_s, opener)


async def _fresh(handle: Handle, acquire: Callable[[], Awaitable[Handle]]) -> Fresh:
    """What a session of the same zygote with the same limits is before anything ran in it."""
    known = handle.zygote.fresh
    if handle.limits not in known:
        spare = await acquire()
        try:
            _check_zygote(spare, handle.zygote)
            traced = spare.traced(kill=True)
            known[handle.limits] = await _in_thread(lambda: describe(traced, spare))
        finally:
            await spare.close()
    found: Fresh = known[handle.limits]
    return found


def _check_zygote(handle: Handle, zygote: Zygote) -> None:
    if handle.zygote is not zygote:
        raise SnapshotRefused(
            "the process that sessions are copies of was replaced (recycle): states from before "
            "cannot be put into sessions of now"
        )


async def begin(handle: Handle, start: Snapshot) -> None:
    """Put a fresh session into the state of a snapshot. Raises SnapshotRefused if that fails; the
    session is of no use then."""
    _check_zygote(handle, start.zygote)
    try:
        with handle.busy():
            await _unpack(handle, start.files)
            traced = handle.traced(kill=True)
            await _in_thread(lambda: give(traced, handle, start.fresh, start.state))
            async with asyncio.timeout(_AWAKE_S):
                await _awake(handle)
    except (SandboxError, TimeoutError) as error:  # no cell is to blame for it
        reason = str(error) or "no answer in time"
        raise SnapshotRefused(f"no session can begin in this state: {reason}") from error
    handle.earlier_s = start.spent_s


async def _unpack(handle: Handle, files: Parcel) -> None:
    if files.index:
        fds = [memfd(files.message())]
        try:
            answer = await _ordered(handle, {"op": "unpack"}, fds)
        finally:
            close_all(fds)
        if answer.get("size") != len(files.index):
            raise SandboxError(f"its files could not be made again: {answer.get('message')}")


async def _ordered(
    handle: Handle, order: dict[str, Any], fds: Sequence[int] = ()
) -> dict[str, Any]:
    """What the first process answers to an order. Raises SandboxError."""
    handle.send_fact(order | {"id": 0}, fds)
    try:
        async with asyncio.timeout(_ORDER_S):
            return await handle.answer(0)
    except TimeoutError as error:
        handle.kill("it does not answer", by_code=False)
        raise SandboxError(f"no answer to {order['op']!r} within {_ORDER_S:g} s") from error


async def _awake(handle: Handle) -> None:
    """Make sure that the interpreter answers as it would have: what fails here is no cell's
    failure."""
    token = secrets.token_hex(8)
    handle.send_claim({"op": "sync", "token": token})
    while not isinstance(event := await handle.next(), Claim):
        if isinstance(event, Gone) or event.message.get("ended") == 0:
            raise SandboxError("the interpreter did not survive in its new process")
    if event.message != {"sync": token}:
        raise SandboxError("the interpreter does not answer in its new process")


async def _in_thread(work: Callable[[], T]) -> T:
    """The result of `work`, done in a thread that ends with it: the kernel then lets go of what the
    thread traced. That has happened by the time this returns, or is cancelled.

    Raises SnapshotRefused for what cannot be carried.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def target() -> None:
        try:
            result = work()
        except BaseException as error:
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, result)

    threading.Thread(target=target, name="tracer", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait([done])
        done.exception()  # nobody will ask for it
        raise
    except Odd as error:
        raise SnapshotRefused(f"this session's state cannot be carried: {error}") from error
    except OSError as error:  # TraceError, or what /proc no longer shows
        raise SnapshotRefused(f"the session cannot be inspected: {error}") from error
