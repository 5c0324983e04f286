"""Run many rollouts at once and keep what they produce.

Every rollout has a deadline; an infrastructure failure is retried and then recorded as an attempt
with an error, never as a reward; every episode that was opened is closed; finished trees are on
disk before the next one starts in their place, and a second run with the same folder goes on
where the first one stopped, by task and attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from agentrl.chat import Chat
from agentrl.errors import (
    AgentError,
    AgentRLWarning,
    ConfigError,
    DeadlineError,
    InfraError,
    SandboxError,
)
from agentrl.interfaces import Env, Episode, OpenEnv, Policy, Rollout, Sandbox
from agentrl.progress import Report
from agentrl.progress import progress as shown
from agentrl.store import Key, TreeStore, key, load
from agentrl.tree import Cursor, Tree, derive_seed
from agentrl.types import SamplingParams, StopReason, Task

BREAKER = 8
"""After this many rollouts, collecting stops if too many of all failed in our hands."""


@dataclass(slots=True)
class _Run:
    """What the workers of one `collect` call share."""

    env: Env
    rollout: Rollout
    policy: Policy
    chat: Chat
    box: Sandbox | None
    params: SamplingParams
    seed: int
    deadline_s: float
    retries: int
    max_failed: float
    store: TreeStore | None
    trees: dict[Key, Tree] = field(default_factory=dict)
    failed: int = 0
    done: int = 0


async def collect(
    env: Env,
    rollout: Rollout,
    policy: Policy,
    *,
    n: int | None = None,
    tasks: Sequence[Task] | None = None,
    samples: int = 1,
    enough: Callable[[Tree], bool] | None = None,
    box: Sandbox | None = None,
    params: SamplingParams | None = None,
    seed: int = 0,
    concurrency: int = 64,
    deadline_s: float = 600.0,
    retries: int = 2,
    max_failed: float = 0.5,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    label: str = "rollouts",
) -> list[Tree]:
    """Run `rollout` `samples` times on each task and return one tree a run, in task order.

    `tasks` or the first `n` of `env` are attempted, at most `concurrency` at once. `box` is the
    sandbox; without one the embedded sandbox is opened if the environment has tools. With `out`,
    trees are stored there, and those already stored (without an infrastructure failure) are
    taken from there instead of run again.

    With `enough`, how often a task is attempted depends on what came (`samples` is the most): tasks
    take turns, `enough` is shown each task's trees once and in order of attempt, and when it
    returns True that task is over. Trees after that one were under way at the time: they are
    stored but not returned, so that what is returned does not depend on who was faster.

    `max_failed` is the share of rollouts that may fail in our hands (each after `retries` more
    tries) before it gives up, looked at from the eighth on; with 1 it never does.

    Raises ConfigError for a number that cannot be, or if `out` was collected with another
    tokenizer, policy, rollout, seed or sampling, or for other tasks; InfraError if more than
    `max_failed` failed in our hands; StoreFullError on a full disk.
    """
    params = params or SamplingParams()
    _check(n, samples, concurrency, retries, max_failed, deadline_s, params)
    tasks = env.tasks(n) if tasks is None else tasks
    if len({t.id for t in tasks}) != len(tasks):
        raise ConfigError("two tasks have the same id; ids must be unique")
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(TreeStore(out)) if out is not None else None
        box = box if box is not None or not env.tools else await _default_box(stack)
        chat = Chat(policy.tokenizer)
        run = _Run(
            env, rollout, policy, chat, box, params, seed, deadline_s, retries, max_failed, store
        )
        if out is not None:
            run.trees = _finished(out, run, tasks)
        todo = _Todo(tasks, samples, run.trees, enough, ahead=concurrency)
        total = None if enough else len(tasks) * samples
        report = stack.enter_context(shown(label, total, todo.done(), progress))
        try:
            await _run_all(run, todo, report, concurrency)
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        trees = todo.result()
    _warn_if_cut(trees, label)
    return trees


@dataclass(slots=True)
class _Todo:
    """Which attempts to make: all of each task, or in turns, until `enough` says so.

    `ahead` is how many attempts at a task may be made beyond those that `enough` has seen: it sees
    them in order, and one that takes long must not let the others run on for ever.
    """

    tasks: Sequence[Task]
    samples: int
    trees: dict[Key, Tree]
    enough: Callable[[Tree], bool] | None
    ahead: int
    begun: Counter[str] = field(default_factory=Counter)  # attempts at each task
    shown: Counter[str] = field(default_factory=Counter)  # of these to `enough`
    over: set[str] = field(default_factory=set)
    open: deque[Task] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.open.extend(self.tasks)

    def next(self) -> tuple[Task, int] | None:
        """An attempt to make now; None where there is none, or none until others are done."""
        for _ in range(len(self.open)):
            task = self.open.popleft()
            n = self.begun[task.id]
            while (task.id, n) in self.trees:
                n += 1
            self.begun[task.id] = n
            if n >= self.samples or self._over(task.id):
                continue
            if self.enough is None:
                self.open.appendleft(task)  # attempts at one task share its prompt
            else:
                self.open.append(task)
                if n - self.shown[task.id] >= self.ahead:
                    continue
            self.begun[task.id] += 1
            return task, n
        return None

    def _over(self, task: str) -> bool:
        """True if the task has enough; shows what came since this was asked."""
        if self.enough is None or task in self.over:
            return self.enough is not None
        while (tree := self.trees.get((task, self.shown[task]))) is not None:
            self.shown[task] += 1
            if self.enough(tree):
                self.over.add(task)
                return True
        return False

    def done(self) -> int:
        """How many of the attempts are there already."""
        ids = {t.id for t in self.tasks}
        return sum(task in ids and attempt < self.samples for task, attempt in self.trees)

    def result(self) -> list[Tree]:
        """The trees in task order, of each task as many as were wanted."""
        for task in self.tasks:
            self._over(task.id)
        wanted = self.shown if self.enough else {t.id: self.samples for t in self.tasks}
        return [self.trees[t.id, a] for t in self.tasks for a in range(wanted[t.id])]


def _warn_if_cut(trees: Sequence[Tree], label: str) -> None:
    cut = sum(t.attempts[-1].truncated for t in trees)
    if cut * 2 > len(trees):
        warnings.warn(
            f"{label}: {cut} of {len(trees)} attempts were cut off by a token limit. Their answers "
            "count as they stand; raise max_tokens to let them end.",
            category=AgentRLWarning,
            stacklevel=3,
        )


def _check(
    n: int | None,
    samples: int,
    concurrency: int,
    retries: int,
    max_failed: float,
    deadline_s: float,
    params: SamplingParams,
) -> None:
    rules = {
        "n is at least 0": n is None or n >= 0,
        "samples is at least 1": samples >= 1,
        "concurrency is at least 1": concurrency >= 1,
        "retries is at least 0": retries >= 0,
        "max_failed is a share from 0 to 1": 0 <= max_failed <= 1,
        "deadline_s is above 0": deadline_s > 0,
        "max_tokens is at least 1": params.max_tokens >= 1,
        "temperature is at least 0": params.temperature >= 0,
        "top_p is above 0 and at most 1": 0 < params.top_p <= 1,
        "top_k is at least 0": params.top_k >= 0,
    }
    broken = [rule for rule, kept in rules.items() if not kept]
    if broken:
        raise ConfigError(f"collect: {'; '.join(broken)}")


async def _default_box(stack: contextlib.AsyncExitStack) -> Sandbox:
    import sandboxes

    box: Sandbox = await stack.enter_async_context(sandboxes.open("embedded"))
    return box


def _finished(out: str | os.PathLike[str], run: _Run, tasks: Sequence[Task]) -> dict[Key, Tree]:
    """What an earlier run has left in `out`, infrastructure failures apart (those run again)."""
    asked = {t.id: t for t in tasks}
    names = {t.env for t in tasks}
    trees = {key(t): t for t in load(out) if not any(a.error for a in t.attempts)}
    ours = _meta(run, 0, [])
    for tree in trees.values():
        theirs = tree.meta
        if theirs.get("tokenizer") != ours["tokenizer"]:
            raise ConfigError(
                f"{os.fspath(out)} holds trees of another tokenizer "
                f"({theirs.get('tokenizer')}, the policy's is {ours['tokenizer']}). Their token "
                "ids mean something else: give another folder, or the model they were made with."
            )
        for name in ("rollout", "policy", "seed", "sampling"):
            if theirs.get(name, ours[name]) != ours[name]:
                raise ConfigError(
                    f"{os.fspath(out)} holds trees of another collection ({name}: "
                    f"{theirs[name]!r} then, {ours[name]!r} now). Give the same to go on with it, "
                    "or another folder."
                )
        task = asked.get(tree.task.id, tree.task)
        if tasks and (tree.task.env not in names or task.prompt != tree.task.prompt):
            what = f"task {task.id!r} of the environment {tree.task.env!r}"
            raise ConfigError(
                f"{os.fspath(out)} holds trees of other tasks ({what} is not among these, or was "
                "asked in other words). Give the same environment and options to go on with it, "
                "or another folder."
            )
    return trees


async def _run_all(run: _Run, todo: _Todo, report: Report, concurrency: int) -> None:
    """Make what is to do, at most `concurrency` attempts at once."""
    running = 0

    def start() -> None:
        nonlocal running
        while running < concurrency and (job := todo.next()) is not None:
            running += 1
            group.create_task(one(*job))

    async def one(task: Task, attempt: int) -> None:
        nonlocal running
        try:
            await _keep(run, task, attempt, report)
        except Exception as error:
            error.add_note(f"in task {task.id!r}, attempt {attempt}")
            raise
        running -= 1
        start()

    async with asyncio.TaskGroup() as group:
        start()


async def _keep(run: _Run, task: Task, attempt: int, report: Report) -> None:
    """Make one attempt and store it. Raises InfraError if too many have failed in our hands."""
    tree = await _attempt(run, task, attempt)
    if run.store is not None:
        run.store.append(tree)
    run.trees[key(tree)] = tree
    run.done += 1
    run.failed += any(a.error for a in tree.attempts)
    report.finished(tree)
    if run.done >= BREAKER and run.failed > run.max_failed * run.done:
        reasons = {a.error for t in run.trees.values() for a in t.attempts if a.error}
        raise InfraError(
            f"{run.failed} of {run.done} rollouts failed in our hands, not the policy's: "
            f"{'; '.join(sorted(reasons)[:3])}. {_kept(run)} Mend that and run it again (agentrl "
            f"run: with --resume), or let more fail: max_failed is {run.max_failed:g}, and with 1 "
            "(agentrl rollout and eval: --max-failed 1) collecting goes on whatever fails."
        )


def _kept(run: _Run) -> str:
    """What becomes of the rollouts that are done."""
    if run.store is None:
        return "No folder was given to keep the others in."
    return f"The others are kept in {run.store.folder}, and are not run again."


async def _attempt(run: _Run, task: Task, attempt: int) -> Tree:
    """One rollout, retried while infrastructure fails."""
    failures: list[str] = []
    while True:
        tree = Tree(task, meta=_meta(run, attempt, failures))
        seed = derive_seed(run.seed, task.id, attempt)
        cursor = Cursor(tree, run.policy, run.chat, run.params, seed)
        started = time.perf_counter()
        deadline = asyncio.timeout(run.deadline_s)
        try:
            async with _episodes(run, task) as open_env, deadline:
                await run.rollout(cursor, open_env)
            if not tree.attempts:
                raise ConfigError("the rollout recorded no attempt; it must call cursor.finish")
            tree.meta["seconds"] = round(time.perf_counter() - started, 4)
            return tree
        except (InfraError, TimeoutError) as caught:
            error: Exception = caught
            if deadline.expired():
                error = DeadlineError(f"the rollout took over {run.deadline_s:g} s")
            failures.append(f"{type(error).__name__}: {error}")
            if len(failures) > run.retries:
                tree.meta["failures"] = failures
                tree.meta["seconds"] = round(time.perf_counter() - started, 4)
                _record_failure(run, cursor, error, failures[-1])
                return tree


def _record_failure(run: _Run, cursor: Cursor, error: Exception, text: str) -> None:
    """The attempt that failed in our hands: no reward, whatever was graded before."""
    if cursor.node < 0:
        cursor.begin(cursor.tree.task.prompt, beside=True)
    reason: StopReason = "engine_error"
    if isinstance(error, DeadlineError | TimeoutError):
        reason = "timeout"
    elif isinstance(error, SandboxError):
        reason = "sandbox_error"
    elif isinstance(error, AgentError):
        reason = "cancelled"
    cursor.tree.attempts.clear()
    cursor.finish(reason, error=text)


def _meta(run: _Run, attempt: int, failures: list[str]) -> dict[str, object]:
    return {
        "attempt": attempt,
        "seed": run.seed,
        "rollout": getattr(run.rollout, "__name__", type(run.rollout).__name__),
        "policy": run.policy.name,
        "sampling": {name: getattr(run.params, name) for name in ("temperature", "top_p", "top_k")},
        "policy_version": run.policy.version,
        "tokenizer": getattr(run.policy.tokenizer, "fingerprint", None),
        "failures": list(failures),
    }


@contextlib.asynccontextmanager
async def _episodes(run: _Run, task: Task) -> AsyncIterator[OpenEnv]:
    """Gives the function that opens episodes, and closes every one of them at the end."""
    opened: list[Episode] = []

    async def open_env() -> Episode:
        episode = run.env.open(task, run.box)
        opened.append(episode)
        return episode

    try:
        yield open_env
    finally:
        for episode in opened:
            with contextlib.suppress(InfraError):  # a session that died is closed already
                await asyncio.shield(episode.close())


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
