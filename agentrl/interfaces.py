"""The protocols that parts of agentrl meet each other through. Imports types and errors only.

Write a class with these methods and it works everywhere; there is nothing to inherit from.
`agentrl.testing` has a conformance check for each (`check_policy`, `check_env`, `check_sandbox`,
`check_rollout`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from agentrl.types import (
    Completion,
    ExecResult,
    Limits,
    Message,
    SamplingParams,
    Source,
    Step,
    Task,
    ToolSpec,
    Verdict,
)

if TYPE_CHECKING:
    from agentrl.tree import Cursor


@runtime_checkable
class Tokenizer(Protocol):
    """What `agentrl.chat` needs of a tokenizer (`agentrl.chat.HFTokenizer` wraps transformers')."""

    vocab_size: int
    eos_ids: frozenset[int]
    """Ids that end an assistant turn."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`, nothing added. With `special=False` the text of a special token is
        encoded as ordinary characters, so that outside text cannot forge one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens shown, nothing cleaned up."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = False,
    ) -> str:
        """The conversation through the model's own chat template."""
        ...


@runtime_checkable
class Policy(Protocol):
    """A model that samples. Token ids in, token ids out."""

    name: str
    tokenizer: Tokenizer
    max_context: int

    @property
    def version(self) -> int:
        """Counts weight updates; every sampled node carries it."""
        ...

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """Sample one completion. Many calls at once are batched by the engine.

        Raises EngineError if the engine fails; ValueError if the prompt is empty or too long.
        """
        ...

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities (nats) of `token_ids[1:]` given what stands before each; length T-1."""
        ...

    async def update(self, weights: Mapping[str, Any]) -> None:
        """Take new weights, drop every cache that the old ones made, and count the version up."""
        ...

    async def close(self) -> None:
        """Free what the engine holds. Calling it twice is fine."""
        ...


class TrainedPolicy(Policy, Protocol):
    """A policy whose weights are trained in this process: what recipes take.

    (`agentrl.engines.hf.HFPolicy`, `agentrl.engines.vllm.mirrored.MirroredPolicy`.)
    """

    @property
    def model(self) -> Any:
        """The transformers or peft model that is trained."""
        ...

    def refresh(self, version: int | None = None) -> None:
        """The weights of `model` were changed: sample from the new ones, and count the version up
        (or to `version`, where a resumed run goes on)."""
        ...

    async def over(self, model: Any) -> TrainedPolicy:
        """This policy over another model (trained, or adapted); this one is used no more."""
        ...


@runtime_checkable
class Converses(Protocol):
    """What a policy has beside `Policy` that is shown the conversation instead of token ids (a chat
    endpoint). A `Cursor` then calls `converse` and never `sample`."""

    async def converse(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        turn: Sequence[tuple[Source, str]],
        params: SamplingParams,
    ) -> Completion:
        """The assistant's next words after `messages` and what stands in its `turn` already (texts
        with their sources: `policy` its own, `hint`, `environment`).

        The completion is not trainable: its text, encoded by the policy's `tokenizer`, without
        log-probabilities. Raises EngineError if the engine fails, ConfigError for a turn that it
        cannot go on with.
        """
        ...


@runtime_checkable
class Ranks(Protocol):
    """What a policy has beside `Policy` that tells its likeliest next tokens."""

    async def top(self, token_ids: Sequence[int], k: int) -> list[tuple[int, float]]:
        """The `k` likeliest tokens after `token_ids` with their log-probabilities (nats, at
        temperature 1), the likeliest first; all there are if there are fewer."""
        ...


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a sandbox can do on this machine."""

    backend: str
    isolation: str
    """The tier in force: `namespaces`, `uid`, `none`; behind `container/` what is inside one."""
    cgroup: bool
    """True if memory, processes and CPU are limited per session by the kernel's control groups."""
    network: bool
    languages: tuple[str, ...]
    detail: str = ""
    snapshots: bool = False
    """True if the state of a session can be taken, for new sessions to begin in (`Snapshots`)."""


@runtime_checkable
class Session(Protocol):
    """One isolated, stateful interpreter. `async with box.session() as s:` opens and closes it."""

    async def open(self) -> Self: ...

    async def run(self, code: str, *, timeout: float | None = None) -> ExecResult:
        """Run a cell; names it defines are there in the next one.

        Never raises for what the code does. Raises SessionDead if the session had ended before.
        """
        ...

    async def exec(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float | None = None
    ) -> ExecResult:
        """Run a command inside the session's jail, in /work."""
        ...

    async def write_file(self, path: str, data: bytes) -> None: ...

    async def read_file(self, path: str) -> bytes: ...

    async def interrupt(self) -> None:
        """Stop the running cell; its result comes back with status `timeout`, the state is kept."""
        ...

    async def reset(self) -> None:
        """A fresh interpreter and empty files, without leaving the session."""
        ...

    async def close(self) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


class Snapshot(Protocol):
    """The state that a session was in: its interpreter with all names, its files. Any number of
    sessions can begin in it, one after the other or at once, also after the one it is of ended."""

    size: int
    """The bytes that it holds."""

    def session(self) -> Session:
        """A new session that begins in this state, with the limits of the one it is of: what that
        one has used of its CPU time counts for this one. `open` raises SnapshotRefused where the
        state cannot be had any more. After `reset` it is as any session."""
        ...


@runtime_checkable
class Snapshots(Session, Protocol):
    """A session whose state can be taken, where `Capabilities.snapshots` says so."""

    async def snapshot(self) -> Snapshot:
        """The state that it is in now; it goes on, and its successors and it do not see each other.

        Raises SnapshotRefused where that state cannot be carried (threads, child processes, open
        files, ...): the message says why, and the session is as it was.
        """
        ...


@runtime_checkable
class Sandbox(Protocol):
    """A place to run untrusted code."""

    capabilities: Capabilities

    def session(self, limits: Limits | None = None, *, profile: str | None = None) -> Session:
        """A new session, opened by `async with` or `await session.open()`."""
        ...

    async def run(
        self,
        program: str,
        *,
        language: str = "python",
        args: Sequence[str] = (),
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        limits: Limits | None = None,
        profile: str | None = None,
    ) -> ExecResult:
        """Run a whole program once, in a session of its own, and end everything it started."""
        ...

    async def judge(self, program: str, cases: Any, **options: Any) -> Verdict:
        """Whether a program does what `cases` want; see `sandboxes.judge.judge`, which does it for
        any sandbox."""
        ...

    async def close(self) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


@runtime_checkable
class Episode(Protocol):
    """One attempt at one task. A second attempt opens a second episode.

    An episode with an attribute `fenced` that is true wants answers whole, with their fenced blocks
    (programs); others get the prose alone.
    """

    tools: tuple[ToolSpec, ...]

    async def reset(self) -> tuple[Message, ...]:
        """The messages that the policy sees first."""
        ...

    async def step(self, message: Message) -> Step:
        """Answer the policy's message.

        With tool calls in it: run them, and return one `tool` message a call (in order), with
        `info["results"]` the list of ExecResult where a sandbox ran them. Without: it is the
        answer; return the reward and `terminated=True`.

        Raises SandboxError if the sandbox failed (never a reward).
        """
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Forks(Episode, Protocol):
    """An episode that a search can copy where it stands, instead of playing its calls again.

    Without `fork`, and where there is no `save` or it is refused, the calls are played again in a
    new episode, so their answers must depend on the task and the calls alone.
    """

    async def fork(self) -> Episode:
        """An independent episode in the same state. The caller closes it."""
        ...


class Saved(Protocol):
    """The state of an episode, from which any number of others go on."""

    size: int
    """The bytes that it holds."""

    async def open(self) -> Episode:
        """An independent episode in this state, which the caller closes. Raises SnapshotRefused if
        it cannot be had any more."""
        ...


@runtime_checkable
class Saves(Episode, Protocol):
    """An episode with a state that a search can put aside, where that takes more than a copy of
    plain data: a sandbox session's."""

    async def save(self) -> Saved:
        """The state that it is in; it goes on. Raises SnapshotRefused where that is not possible,
        with the reason."""
        ...


@runtime_checkable
class Env(Protocol):
    """A family of tasks and how to attempt them; made by `envs.make(name, split=..., seed=...)`."""

    name: str
    tools: tuple[ToolSpec, ...]

    def tasks(self, n: int | None = None) -> list[Task]:
        """The first `n` tasks of the split (all of them where that is finite)."""
        ...

    def open(self, task: Task, box: Sandbox | None) -> Episode:
        """An episode of `task`. A sandbox session, where one is needed, is opened at first use."""
        ...


@runtime_checkable
class Demonstrated(Env, Protocol):
    """An environment that knows how its tasks are solved."""

    def demonstrations(self, task: Task) -> Sequence[str]:
        """Right answers to `task`, each as the policy should write it; none where none is known.

        Python blocks stand in it without their output: they run when it is played
        (`agentrl.rollouts.replay`).
        """
        ...


OpenEnv = Callable[[], Awaitable[Episode]]

Rollout = Callable[["Cursor", OpenEnv], Awaitable[None]]
"""A strategy: grows the cursor's tree by sampling, observing and hinting, and records attempts with
`cursor.finish`. Episodes opened through the second argument are closed by the collector."""
