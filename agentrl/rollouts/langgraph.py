"""Any compiled LangGraph graph as a rollout. Needs the extra `langgraph`; see docs/agents.md.

    model = ChatModel()
    graph = create_react_agent(model, tools_of(env))
    trees = await collect(env, langgraph(graph), policy, n=64)

The graph is compiled once and runs in any number of rollouts at a time: the model and the tools
find the rollout that they are called in. Tokens stay as they were sampled, whatever the graph does
with its messages (`agentrl.rollouts.conversations`).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrl.engines.endpoint.wire import read_messages
from agentrl.errors import AgentError, AgentRLError, ConfigError, missing_extra, unknown
from agentrl.interfaces import OpenEnv, Rollout
from agentrl.rollouts.conversations import Conversations, cut_reason
from agentrl.rollouts.langchain import RUNNING, ChatModel, Over, Running, tools_of
from agentrl.tree import Cursor
from agentrl.types import Message, StopReason, Task

try:
    from langchain_core.messages import AIMessage, convert_to_openai_messages
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.errors import GraphRecursionError
    from langgraph.types import Command
except ImportError as error:
    raise missing_extra("langgraph", "langgraph") from error

__all__ = ["ChatModel", "langgraph", "tools_of"]

State = Any
Grade = Callable[[State, Task], float | Awaitable[float | None] | None]


def langgraph(
    graph: Any,
    *,
    trained: Collection[str] | None = None,
    grade: Grade | None = None,
    answer: Callable[[State], str] | None = None,
    inputs: Callable[[list[dict[str, Any]], Task], Any] | None = None,
    interrupts: Callable[[Any, Task], Any] | None = None,
    then: Callable[[State, Task], Any] | None = None,
    thread: Callable[[Task], str] | None = None,
    watch: Callable[[Any], object] | None = None,
    config: Mapping[str, Any] | None = None,
    context: Any = None,
    max_turns: int = 32,
    max_tokens: int | None = None,
) -> Rollout:
    """The rollout that a compiled graph is. Its model must be a `ChatModel`.

    The graph begins with what `inputs` makes of the task's messages (as dictionaries; by default
    the state's `messages`). The environment grades `answer(state)`, by default the text of the last
    message; or `grade` says the reward, from the final state and the task.

    `trained` names the nodes whose turns are learnt from, subgraphs' nodes included (by default
    all). What other nodes say is context, token for token.

    Where the graph interrupts, `interrupts` is asked for the answer, with the value and the task.
    `then` is asked at each end for further input, until it returns None; the graph's checkpointer
    (one in memory, where it has none) keeps the state in between. With `thread` a checkpointer's
    thread is gone on with: what was said there before this attempt is context, and an attempt that
    fails leaves the thread as it was. `watch` is told the updates of the graph while it runs.
    `grade`, `interrupts` and `then` may be asynchronous.

    `max_turns` limits the calls of the model, `max_tokens` what is sampled in all of them; `config`
    and `context` (of its `context_schema`) are passed to the graph. A graph that raises is an
    AgentError: tried again, then without a reward. Raises ConfigError for a node that the graph
    does not have, or a graph that pauses by itself.
    """
    if graph.checkpointer is None and (interrupts or then):
        graph = graph.copy(update={"checkpointer": InMemorySaver()})
    _check(graph, trained, thread)
    player = _Player(graph, interrupts, then, watch, context)
    begin = inputs or (lambda messages, task: {"messages": messages})

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        episode, task = await open_env(), cursor.tree.task
        shown = [{"role": m.role, "content": m.content} for m in await episode.reset()]
        conversations = Conversations(cursor, max_tokens)
        running = Running(conversations, episode, trained, max_turns)
        name = thread(task) if thread else uuid.uuid4().hex
        configured = {**dict((config or {}).get("configurable", {})), "thread_id": name}
        settings = {**(config or {}), "configurable": configured}
        token = RUNNING.set(running)
        kept = player.hold(name, settings) if thread else contextlib.nullcontext()
        try:
            async with kept:
                state = await player.play(running, begin(shown, task), settings, task)
        finally:
            RUNNING.reset(token)
            running.close()
        await _finish(running, state, task, grade, answer)

    rollout.__name__ = f"langgraph_{graph.name}"
    return rollout


def _check(graph: Any, trained: Collection[str] | None, thread: object) -> None:
    """Raise ConfigError for what cannot be."""
    if graph.interrupt_before_nodes or graph.interrupt_after_nodes:
        raise ConfigError(
            "the graph was compiled with interrupt_before or interrupt_after, and would be taken "
            "for ended where it pauses: leave them out, or call interrupt(...) in a node"
        )
    names = _nodes(graph) if trained else ()
    for name in trained or ():
        if name not in names:
            raise unknown("node", name, names)
    if thread and graph.checkpointer is None:
        raise ConfigError("a thread is kept by a checkpointer: graph.compile(checkpointer=...)")


@dataclass(slots=True)
class _Player:
    """A graph, and who answers it. `held` are the threads that attempts go on with now."""

    graph: Any
    interrupts: Callable[[Any, Task], Any] | None
    then: Callable[[State, Task], Any] | None
    watch: Callable[[Any], object] | None
    context: Any
    held: set[str] = field(default_factory=set)

    async def play(self, running: Running, given: Any, settings: Any, task: Task) -> State:
        """The graph's state at the end of the attempt."""
        state: State = None
        try:
            while given is not None:
                state = await self._run(given, settings)
                if waiting := _waiting(state):
                    given = await self._resume(waiting, task)
                else:
                    given = await _value(self.then(state, task)) if self.then else None
        except (GraphRecursionError, Over):
            running.reason = running.reason or "max_turns"
        except Exception as error:
            running.raise_failure()
            if isinstance(error, AgentRLError):
                raise
            raise AgentError(f"the graph failed: {type(error).__name__}: {error}") from error
        running.raise_failure()
        return state

    async def _run(self, given: Any, settings: Any) -> State:
        """The graph's state at its end, or where it waits."""
        if self.watch is None:
            return await self.graph.ainvoke(given, settings, context=self.context)
        state: State = None
        waiting: Sequence[Any] = ()
        loop, modes = asyncio.get_running_loop(), ["updates", "values"]
        async for mode, data in self.graph.astream(
            given, settings, context=self.context, stream_mode=modes
        ):
            if mode == "values":
                state = data
            else:
                waiting = data.get("__interrupt__", waiting)
                loop.call_soon(self.watch, data)
        if not waiting:
            return state
        return {**(state if isinstance(state, Mapping) else {}), "__interrupt__": waiting}

    async def _resume(self, waiting: Sequence[Any], task: Task) -> Any:
        """What the graph goes on with: the answers to what it asked."""
        if self.interrupts is None:
            raise ConfigError(
                f"the graph interrupts ({waiting[0].value!r}) and nobody answers: give "
                "langgraph(graph, interrupts=...) a function from the value and the task to the "
                "answer"
            )
        answers = {i.id: await _value(self.interrupts(i.value, task)) for i in waiting}
        return Command(resume=answers)

    @contextlib.asynccontextmanager
    async def hold(self, name: str, settings: Any) -> AsyncIterator[None]:
        """A checkpointer's thread while one attempt goes on with it; as it was, where that fails:
        it is tried again. Raises ConfigError while another attempt has it."""
        if name in self.held:
            raise ConfigError(
                f"two attempts at once would go on with the thread {name!r}: attempt a task once "
                "(samples=1), and give every task a thread of its own"
            )
        self.held.add(name)
        before = await self.graph.aget_state(settings)
        try:
            yield
        except BaseException:
            if "checkpoint_id" in before.config["configurable"]:
                await self.graph.aupdate_state(before.config, None, as_node="__copy__")
            else:
                await self.graph.checkpointer.adelete_thread(name)
            raise
        finally:
            self.held.discard(name)


def _waiting(state: State) -> Sequence[Any]:
    """What a graph's state says that it was asked."""
    return state.get("__interrupt__", ()) if isinstance(state, Mapping) else ()


async def _finish(
    running: Running,
    state: State,
    task: Task,
    grade: Grade | None,
    answer: Callable[[State], str] | None,
) -> None:
    """Grade what came out and record the attempt."""
    conversations = running.conversations
    final = _final(state)
    end = conversations.last(final)
    if end is None:
        raise ConfigError(
            "the graph never asked the policy: build it with agentrl.rollouts.langgraph.ChatModel()"
        )
    reason: StopReason = running.reason or cut_reason(end) or "final_answer"
    reward, text, told = None, "", {}
    if running.ended is not None:
        reward, text = running.ended.reward, str(running.ended.info.get("answer", ""))
        reason = "env_terminated"
    elif reason != "max_turns":
        text = answer(state) if answer else (final or end.message).content
        if grade is not None:
            reward = await _value(grade(state, task))
        else:
            step = await running.episode.step(Message("assistant", text))
            reward, text = step.reward, str(step.info.get("answer", text))
            told = {k: step.info[k] for k in ("feedback", "status") if step.info.get(k)}
    conversations.finish(
        end, reason, reward=reward, answer=text, statuses=list(running.statuses), **told
    )


def _nodes(graph: Any) -> set[str]:
    """The names of a graph's nodes, those of its subgraphs included."""
    graphs = [graph, *(inner for _, inner in graph.get_subgraphs(recurse=True))]
    return {name for g in graphs for name in g.nodes if not name.startswith("__")}


def _final(state: State) -> Message | None:
    """The last message of a state, if it has messages and the last is the assistant's."""
    messages = state.get("messages") if isinstance(state, Mapping) else None
    if not messages or not isinstance(messages[-1], AIMessage):
        return None
    return read_messages(convert_to_openai_messages(messages[-1:]))[0]


async def _value(made: Any) -> Any:
    return await made if inspect.isawaitable(made) else made
