"""The nouns of agentrl. Standard library only; imports nothing else of the project.

Everything a policy does on a task is one token tree (`agentrl.tree.Tree`), whose nodes hold token
ids. The types here are what flows between the parts: what people and templates see (`Message`),
what is solved (`Task`), what a tree is made of (`Node`, `Attempt`), what a policy, an environment
and a sandbox answer (`Completion`, `Step`, `ExecResult`), and what a loss reads (`Sample`, `Pair`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]

Source = Literal["template", "policy", "hint", "environment"]
"""Where tokens come from. Only `policy` tokens were sampled and carry log-probabilities."""

StopReason = Literal[
    "final_answer",  # the policy ended its turn with an answer
    "max_turns",  # the rollout's turn or call limit
    "max_tokens",  # the rollout's token limit: truncation, reported apart from wrong answers
    "context_full",  # the model's context is full: truncation as well
    "env_terminated",  # the environment ended the episode
    "timeout",  # the rollout's deadline: an infrastructure failure
    "sandbox_error",  # the sandbox failed, not the code in it: an infrastructure failure
    "engine_error",  # the policy's engine failed: an infrastructure failure
    "cancelled",  # the run was interrupted
]

TRUNCATED: frozenset[str] = frozenset({"max_tokens", "context_full"})
"""Stop reasons that mean truncation: neither a wrong answer nor an infrastructure failure."""

FinishReason = Literal["eos", "stop", "length", "cancelled"]

ExecStatus = Literal[
    "ok",  # ran to its end
    "error",  # an exception in the code (see `ExecResult.error`)
    "exit",  # sys.exit, os._exit or a non-zero exit status
    "timeout",  # the wall or CPU limit
    "oom",  # the memory limit
    "output_limit",  # more output than the hard limit
    "crashed",  # died by a signal
    "tampered",  # tried to speak for the interpreter; the session is dead
    "infra",  # our fault, never the code's: to be retried or masked, never scored
]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the chat template shows it: `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The function-calling form that chat templates and OpenAI-compatible endpoints take."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": dict(self.parameters),
            },
        }


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool. `id` ties the answer to it, where the template has ids."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """What people and chat templates see. Never the source of truth for tokens: the tree is."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """One problem. `data` (answers, tests) is for the environment, never shown to the policy."""

    id: str
    prompt: tuple[Message, ...]
    env: str
    kind: str = ""
    split: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Node:
    """A run of tokens with one source. `logprobs` (nats, one a token) exist only for `policy`.

    A node is never changed after its children exist. `info` holds what the report shows and
    selectors read (the hint's id, the status of an execution); it must be JSON.
    """

    id: int
    parent: int | None
    role: Role
    source: Source
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    policy_version: int | None = None
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TurnReward:
    """A reward at a place: it belongs to the tokens up to and including `node`."""

    node: int
    value: float
    source: str = "env"


@dataclass(slots=True)
class Attempt:
    """A root-to-leaf path with its outcome.

    `reward` is None where nothing scored it (that is not 0). `error` says what of ours failed; an
    attempt with an error is never scored and never enters a baseline. `branches` are leaves of
    earlier turns that the chat template rewrote (the policy sampled them in this same attempt).
    """

    leaf: int
    stop_reason: StopReason
    reward: float | None = None
    error: str | None = None
    answer: str = ""
    rewards: list[TurnReward] = field(default_factory=list)
    branches: tuple[int, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def truncated(self) -> bool:
        """True if a token limit cut the attempt off."""
        return self.stop_reason in TRUNCATED


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample one completion. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 are off.

    `stop` strings are matched on decoded text; the tokens that complete one are kept.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What a policy returns: exactly the ids that it sampled, end token included if there was one.

    `logprobs` (nats, one a token) are of the distribution at temperature 1 without truncation;
    `sampled_logprobs` of the distribution really sampled from (temperature, top-p, top-k applied),
    None where the two are the same. `stop` is the stop string that ended it, if one did.

    With `trainable` False the ids are not this policy's own samples (a teacher's, an endpoint's):
    they stand in the tree as a `hint`, which SFT may imitate and no policy gradient reaches.
    `tokens` is then how many tokens it took in the engine's own count, where that is known.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int = 0
    stop: str | None = None
    sampled_logprobs: tuple[float, ...] | None = None
    trainable: bool = True
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """The environment's answer, in Gymnasium's words. `reward` None means: not scored yet."""

    observation: tuple[Message, ...] = ()
    reward: float | None = None
    terminated: bool = False
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox session may use."""

    wall_s: float = 10.0  # one cell, one command
    cpu_s: float = 120.0  # the whole session
    memory_mb: int = 1024
    pids: int = 64
    files: int = 256  # open file descriptors
    disk_mb: int = 64  # each of /work, /tmp, /dev/shm
    inodes: int = 4096  # each of /work, /tmp, /dev/shm
    output_bytes: int = 1 << 20  # kept of stdout and of stderr, head and tail
    output_kill_bytes: int = 20 << 20  # produced: more ends the session
    value_chars: int = 10_000  # of the last expression's repr
    source_bytes: int = 1_000_000
    download_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True)
class ExecError:
    """An exception in executed code: its class name, text, and the candidate's own frames."""

    name: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True)
class ExecResult:
    """The sandbox's answer. `duration` and `cpu` are seconds, counted from the start of execution.

    `value` is the repr of a cell's last expression (None if there was none). `artifacts` are what a
    cell displayed, as in `display-1.png` -> bytes: never decode them outside a sandbox. `isolation`
    names the tier that was really in force. A reply is a claim of untrusted code; only `status`,
    `exit_code`, `signal`, `duration`, `cpu` and `peak_memory_mb` come from the supervisor.
    """

    status: ExecStatus
    stdout: str = ""
    stderr: str = ""
    value: str | None = None
    error: ExecError | None = None
    exit_code: int | None = None
    signal: int | None = None
    duration: float = 0.0
    cpu: float | None = None
    peak_memory_mb: float | None = None
    truncated: bool = False
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    artifacts: Mapping[str, bytes] = field(default_factory=dict)
    isolation: str = ""
    detail: str = ""  # why, for infra, tampered and limits

    @property
    def ok(self) -> bool:
        """True if the code ran to its end without an exception."""
        return self.status == "ok"


CaseStatus = Literal[
    "passed",
    "wrong",  # another answer than the expected one
    "error",  # an exception where none was expected, or another one
    "malformed",  # no plain value, or nothing that can be read
    "missing",  # a required test that did not report
    "skipped",  # a test that was skipped: not passed
    "not_run",  # the time for all cases was up, or an earlier case ended the judging
    "exit",  # these as in `ExecStatus`
    "timeout",
    "oom",
    "output_limit",
    "crashed",
    "tampered",
    "infra",
]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How one case of a judged program ended.

    `got` is the repr of what came back, cut; `error` the exception of the code, if there was one.
    `duration` is seconds.
    """

    id: str
    passed: bool
    status: CaseStatus
    detail: str = ""
    duration: float = 0.0
    got: str = ""
    error: ExecError | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a program does what it should.

    `passed` means that every case passed, and that there was one. `status` is "passed", else that
    of the first case that ran and did not pass ("tampered" goes before all). With `infra` there is
    no verdict: a failure of ours, to be retried or left out, never counted as failed. `integrity`
    is "weak" where the program could have spoken for the tests: it shared their process, or the
    tests trusted its operators.
    """

    passed: bool
    status: CaseStatus
    cases: tuple[CaseResult, ...] = ()
    integrity: Literal["strong", "weak"] = "strong"
    infra: bool = False
    detail: str = ""
    duration: float = 0.0

    @property
    def passed_fraction(self) -> float | None:
        """The share of cases that passed, 0 without any; None for `infra`."""
        if self.infra:
            return None
        return sum(c.passed for c in self.cases) / len(self.cases) if self.cases else 0.0


@dataclass(slots=True)
class Sample:
    """One row for a loss: a path with a weight per token. All lists have the path's length T.

    `weights[t]` multiplies the loss of predicting `token_ids[t]` (0: no loss there; token 0 is
    never predicted). The remaining lists are None where the loss does not need them.
    """

    token_ids: Sequence[int]
    weights: Sequence[float]
    advantages: Sequence[float] | None = None
    logprobs: Sequence[float] | None = None
    ref_logprobs: Sequence[float] | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        for name in ("weights", "advantages", "logprobs", "ref_logprobs"):
            row = getattr(self, name)
            if row is not None and len(row) != n:
                raise ValueError(f"Sample.{name} has {len(row)} entries for {n} tokens")


@dataclass(slots=True)
class Pair:
    """A preference: two paths that may share a beginning.

    `margin` is by how much the chosen one must be better, in nats of the loss. `gold` is a third
    answer that some losses imitate (TPO).
    """

    chosen: Sample
    rejected: Sample
    margin: float = 0.0
    meta: dict[str, Any] = field(default_factory=dict)
    gold: Sample | None = None
