"""A sandbox as messages: frames, the service, and the client beside the sandbox itself."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_arena import Go, open_box

from agentrl.errors import ConfigError, EndedByCode, IsolationError, SandboxError, SessionDead
from agentrl.testing import check_sandbox
from agentrl.types import ExecError, ExecResult, Limits
from sandboxes.rpc import codec, frames
from sandboxes.rpc.client import ServedSandbox, ServedSession
from sandboxes.rpc.service import Service


class Near:
    """A channel and a fleet in one: a service in this process, behind encoded messages."""

    def __init__(self, service: Service, owner: str = "me") -> None:
        self.service = service
        self.owner = owner
        self.cut = False  # as if the service had gone away
        self.held = 0

    async def open(self):
        body, _ = await self.call("hello", {})
        return codec.capabilities_from_wire(body["capabilities"])

    async def acquire(self):
        self.held += 1
        return self

    async def release(self, channel):
        self.held -= 1

    async def call(self, op, args, blobs=()):
        if self.cut:
            raise SandboxError("the service is gone")
        (request,) = frames.Decoder().feed(frames.encode({"op": op, "args": args}, blobs))
        body, out = await self.service.call(request.body, request.blobs, owner=self.owner)
        (answer,) = frames.Decoder().feed(frames.encode(body, out))
        return codec.checked(answer.body), answer.blobs

    async def close(self):
        await self.service.close()


@contextlib.asynccontextmanager
async def near(**options):
    box = await open_box()
    try:
        yield Near(Service(box, **options)), box
    finally:
        await box.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner),
    max_leaves=5,
)


@given(
    st.lists(st.tuples(st.dictionaries(st.text(), JSON), st.lists(st.binary(), max_size=3))),
    st.integers(1, 7),
)
def test_frames_survive_any_cut_of_the_stream(messages, size):
    for body, _ in messages:
        body.pop("blobs", None)
    stream = b"".join(frames.encode(body, blobs) for body, blobs in messages)
    decoder, found = frames.Decoder(), []
    for at in range(0, len(stream), size):
        found += decoder.feed(stream[at : at + size])
    assert [(m.body, m.blobs) for m in found] == [(b, list(x)) for b, x in messages]


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_a_frame_error(data):
    with contextlib.suppress(frames.FrameError):
        frames.Decoder(most=1000).feed(data)


@pytest.mark.parametrize(
    "body", ['{"blobs": [1]}', '{"blobs": [-1]}', '{"blobs": 3}', "[]", "{", "[" * 100_000]
)
def test_a_frame_that_lies_is_refused(body):
    data = len(body).to_bytes(4, "big") + (0).to_bytes(4, "big") + body.encode()
    with pytest.raises(frames.FrameError):
        frames.Decoder().feed(data)


def test_results_come_back_as_they_were():
    result = ExecResult(
        "error",
        stdout="a\ud800",
        error=ExecError("E", "m", "t"),
        artifacts={"a.png": b"\x89PNG", "b": b""},
        cpu=None,
        isolation="namespaces",
    )
    assert codec.result_from_wire(*codec.result_to_wire(result)) == result
    with pytest.raises(SandboxError, match="no result"):
        codec.result_from_wire({"status": "passed"}, [])
    assert codec.limits_from_wire(codec.limits_to_wire(Limits(pids=3))) == Limits(pids=3)
    with pytest.raises(ConfigError):
        codec.limits_from_wire({"memory": 3})


def test_errors_come_back_as_they_were():
    errors = [
        ConfigError("a"),
        IsolationError("b"),
        SessionDead("c"),
        EndedByCode("c"),
        SandboxError("d"),
        ValueError("e"),
    ]
    for error in errors:
        back = codec.error_from_wire(json.loads(json.dumps(codec.error_to_wire(error))))
        assert (type(back), str(back)) == (type(error), str(error))
    back = codec.error_from_wire(codec.error_to_wire(FileNotFoundError(2, "No such file", "x")))
    assert isinstance(back, FileNotFoundError)
    assert back.filename == "x"
    assert "KeyError" in str(codec.error_from_wire(codec.error_to_wire(KeyError("k"))))


def test_a_served_sandbox_keeps_the_contract():
    @contextlib.asynccontextmanager
    async def box():
        async with near() as (fleet, _), ServedSandbox(fleet, Limits()) as served:
            yield served
            assert fleet.held == 0

    check_sandbox(box())


def test_sessions_answer_to_their_owner_only(go: Go):
    async def play():
        async with near() as (fleet, _):
            other = Near(fleet.service, "somebody else")
            async with ServedSession(fleet, Limits()) as session:
                with pytest.raises(SessionDead, match="not known"):
                    await other.call("run", {"session": session._name}, [b"1"])
                await other.call("close", {"session": session._name})
                assert (await session.run("1")).value == "1"
            assert fleet.service.sessions == 0

    go(play())


def test_opening_again_what_was_not_answered(go: Go):
    async def play():
        async with near() as (fleet, _), ServedSession(fleet, Limits()) as session:
            await fleet.call("open", {"session": session._name})
            assert fleet.service.sessions == 1
            with pytest.raises(ConfigError, match="random"):
                await Near(fleet.service, "somebody else").call("open", {"session": session._name})
            assert (await session.run("1")).value == "1"

    go(play())


def test_a_service_that_went_away_is_infra(go: Go):
    async def play():
        async with near() as (fleet, _), ServedSession(fleet, Limits()) as session:
            fleet.cut = True
            result = await session.run("1")
            assert (result.status, result.detail) == ("infra", "the service is gone")
            with pytest.raises(SessionDead, match="cut short"):
                await session.run("1")
            fleet.cut = False
            await session.reset()
            assert (await session.run("2")).value == "2"

    go(play())


def test_a_cancelled_call_ends_its_session(go: Go):
    async def play():
        async with near() as (fleet, _):
            session = await ServedSession(fleet, Limits(wall_s=30)).open()
            task = asyncio.create_task(session.run("while True: pass"))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert fleet.service.sessions == 0
            with pytest.raises(SessionDead):
                await session.run("1")

    go(play())


def test_opening_that_is_cancelled_leaves_nothing(go: Go):
    async def play():
        async with near() as (fleet, _):
            task = asyncio.create_task(ServedSession(fleet, Limits()).open())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.2)
            assert (fleet.service.sessions, fleet.held) == (0, 0)

    go(play())


def test_closing_stops_a_running_call(go: Go):
    async def play():
        async with near() as (fleet, _):
            session = await ServedSession(fleet, Limits(wall_s=30)).open()
            task = asyncio.create_task(session.run("while True: pass"))
            await asyncio.sleep(0.2)
            await asyncio.wait_for(session.close(), 5)
            assert (await task).status == "infra"

    go(play())


def test_sessions_without_a_client_are_closed(go: Go):
    async def play():
        async with near(idle_s=0.2) as (fleet, _):
            lost = await ServedSession(fleet, Limits()).open()
            kept = await ServedSession(fleet, Limits()).open()
            for _ in range(10):
                await fleet.call("touch", {"sessions": [kept._name]})
                await asyncio.sleep(0.05)
            assert fleet.service.sessions == 1
            answer, _ = await fleet.call("touch", {"sessions": [lost._name, kept._name]})
            assert answer == {"gone": [lost._name]}
            with pytest.raises(SessionDead, match="idle"):
                await lost.run("1")
            await kept.close()

    go(play())


def test_a_full_service_says_so(go: Go):
    async def play():
        async with near(most_sessions=1) as (fleet, _), ServedSession(fleet, Limits()):
            with pytest.raises(SandboxError, match="1 sessions are open"):
                await ServedSession(fleet, Limits()).open()

    go(play())


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"op": 3},
        {"op": "__init__"},
        {"op": "open", "args": {"session": "../x"}},
        {"op": "open", "args": {"session": "0" * 32, "limits": {"pids": -1}}},
        {"op": "open", "args": {"session": "0" * 32, "profile": "none"}},
        {"op": "run", "args": {"session": "0" * 32, "timeout": 1}},
        {"op": "run", "args": {"no": 1}},
        {"op": "run", "args": []},
    ],
)
def test_bad_requests_are_answered(go: Go, request_):
    async def play():
        async with near() as (fleet, _):
            body, _ = await fleet.service.call(request_)
            assert body["failed"]["message"]
            assert fleet.service.sessions == 0

    go(play())
