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
import inspect
import uuid
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from agentrl.engines.endpoint.wire import read_messages, read_tools
from agentrl.errors import ConfigError, InfraError, missing_extra, unknown
from agentrl.interfaces import Env, Episode, OpenEnv, Rollout
from agentrl.rollouts.blocks import result_statuses
from agentrl.rollouts.conversations import Conversations, Said, cut_reason
from agentrl.tree import Cursor
from agentrl.types import Message, Step, StopReason, Task, ToolCall, ToolSpec

try:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.outputs import ChatGeneration, ChatResult
    from langchain_core.tools import BaseTool, StructuredTool
    from langchain_core.utils.function_calling import convert_to_openai_tool
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.errors import GraphRecursionError
    from langgraph.types import Command
except ImportError as error:
    raise missing_extra("langgraph", "langgraph") from error

State = Any
T = TypeVar("T")
Grade = Callable[[State, Task], float | Awaitable[float | None] | None]
_RUNNING: ContextVar[_Running] = ContextVar("agentrl_langgraph")


class ChatModel(BaseChatModel):
    """The policy as a LangChain chat model. Works where `langgraph` runs the graph around it.

    `agent` names the speaker, where the name of the graph's node is not to be it. `max_tokens` and
    `temperature` replace those of the rollout's sampling parameters. It answers in one piece, so
    that a graph which streams samples no slower.
    """

    agent: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    disable_streaming: bool = True

    @property
    def _llm_type(self) -> str:
        return "agentrl"

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> Any:
        """The model with tools to call. Raises ConfigError where it should be made to call one."""
        if tool_choice not in (None, "auto"):
            raise ConfigError(
                f"tool_choice={tool_choice!r}: a policy chooses by itself whether to call a tool. "
                "Leave it out, and let the reward say what you want."
            )
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        path = _path(getattr(run_manager, "metadata", None) or {})
        return await _running().answer(self, messages, stop, path, kwargs.get("tools"))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        path = _path(getattr(run_manager, "metadata", None) or {})
        running = _running()
        asked = running.answer(self, messages, stop, path, kwargs.get("tools"))
        return running.from_thread(asked)


def tools_of(env: Env | Sequence[ToolSpec]) -> list[BaseTool]:
    """The tools of an environment as LangChain tools: a call is a step of the rollout's episode.

    One rollout's calls run one after another, in the order in which they were made.
    """
    specs = env if isinstance(env, Sequence) else env.tools
    return [_tool(spec) for spec in specs]


def _tool(spec: ToolSpec) -> BaseTool:
    async def call(**arguments: Any) -> str:
        return await _running().use(ToolCall(spec.name, arguments))

    def call_in_thread(**arguments: Any) -> str:
        running = _running()
        return running.from_thread(running.use(ToolCall(spec.name, arguments)))

    return StructuredTool(
        name=spec.name,
        description=spec.description,
        args_schema=dict(spec.parameters),
        func=call_in_thread,
        coroutine=call,
    )


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
    thread is gone on with: what was said there before this attempt is context. `watch` is told the
    updates of the graph while it runs. `grade`, `interrupts` and `then` may be asynchronous.

    `max_turns` limits the calls of the model, `max_tokens` what is sampled in all of them; `config`
    is passed to the graph. Raises ConfigError for a node that the graph does not have.
    """
    if trained is not None:
        names = _nodes(graph)
        for name in trained:
            if name not in names:
                raise unknown("node", name, names)
    if graph.checkpointer is None and (interrupts or then):
        graph = graph.copy(update={"checkpointer": InMemorySaver()})
    begin = inputs or (lambda messages, task: {"messages": messages})

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        episode, task = await open_env(), cursor.tree.task
        shown = [{"role": m.role, "content": m.content} for m in await episode.reset()]
        conversations = Conversations(cursor, max_tokens)
        running = _Running(conversations, episode, trained, max_turns)
        name = thread(task) if thread else uuid.uuid4().hex
        configured = {**dict((config or {}).get("configurable", {})), "thread_id": name}
        settings = {**(config or {}), "configurable": configured}
        token = _RUNNING.set(running)
        state: State = None
        try:
            given = begin(shown, task)
            while given is not None:
                state = await _run(graph, given, settings, watch)
                if waiting := state.get("__interrupt__") if isinstance(state, Mapping) else None:
                    given = await _resume(waiting, interrupts, task)
                else:
                    given = await _value(then(state, task)) if then else None
        except (GraphRecursionError, _Over):
            running.raise_failure()
            running.reason = running.reason or "max_turns"
        except Exception:
            running.raise_failure()
            raise
        finally:
            _RUNNING.reset(token)
            running.close()
        running.raise_failure()
        await _finish(running, state, task, grade, answer)

    rollout.__name__ = f"langgraph_{graph.name}"
    return rollout


async def _run(
    graph: Any, given: Any, settings: Any, watch: Callable[[Any], object] | None
) -> State:
    """The graph's state at its end, or where it waits."""
    if watch is None:
        return await graph.ainvoke(given, settings)
    state: State = None
    waiting: Sequence[Any] = ()
    loop = asyncio.get_running_loop()
    async for mode, data in graph.astream(given, settings, stream_mode=["updates", "values"]):
        if mode == "values":
            state = data
        else:
            waiting = data.get("__interrupt__", waiting)
            loop.call_soon(watch, data)
    return {**state, "__interrupt__": waiting} if waiting else state


async def _resume(
    waiting: Sequence[Any], interrupts: Callable[[Any, Task], Any] | None, task: Task
) -> Any:
    if interrupts is None:
        raise ConfigError(
            f"the graph interrupts ({waiting[0].value!r}) and nobody answers: give "
            "langgraph(graph, interrupts=...) a function from the value and the task to the answer"
        )
    return Command(resume={i.id: await _value(interrupts(i.value, task)) for i in waiting})


async def _finish(
    running: _Running,
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


class _Over(Exception):
    """The attempt is over, whatever the graph still wants."""


@dataclass(slots=True)
class _Running:
    """One rollout, as the graph's model and tools see it."""

    conversations: Conversations
    episode: Episode
    trained: Collection[str] | None
    max_turns: int
    statuses: list[str] = field(default_factory=list)
    reason: StopReason | None = None
    ended: Step | None = None
    failure: InfraError | None = None
    turns: int = 0
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _order: asyncio.Lock = field(default_factory=asyncio.Lock)
    _waiting: set[Future[Any]] = field(default_factory=set)

    async def answer(
        self,
        model: ChatModel,
        messages: list[BaseMessage],
        stop: list[str] | None,
        path: Sequence[str],
        tools: Any,
    ) -> ChatResult:
        """The policy's answer to `messages`. Remembers a failure of ours, which graphs may hide."""
        self.raise_failure()
        if self.ended is not None or self.turns >= self.max_turns:
            raise _Over
        self.turns += 1
        trained = self.trained is None or not set(self.trained).isdisjoint(path)
        changes = {} if model.temperature is None else {"temperature": model.temperature}
        try:
            said = await self.conversations.reply(
                read_messages(convert_to_openai_messages(messages)),
                read_tools(tools),
                agent=model.agent or "/".join(path),
                trained=trained,
                max_tokens=model.max_tokens,
                stop=stop,
                **changes,
            )
        except InfraError as error:
            self.failure = error
            raise
        return ChatResult(generations=[ChatGeneration(message=_as_langchain(said))])

    async def use(self, call: ToolCall) -> str:
        """A call of one of the episode's tools."""
        async with self._order:
            self.raise_failure()
            if self.ended is not None:
                raise _Over
            try:
                step = await self.episode.step(Message("assistant", "", (replace(call, id="0"),)))
            except InfraError as error:
                self.failure = error
                raise
        self.statuses += result_statuses(step)
        if step.terminated or step.truncated:
            self.ended = step
        return "\n".join(m.content for m in step.observation)

    def from_thread(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns, for a node that runs in a thread of its own."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            waiting = asyncio.run_coroutine_threadsafe(work, self.loop)
            self._waiting.add(waiting)
            return waiting.result()
        work.close()
        raise ConfigError(
            "an asynchronous node waits for its model: write await model.ainvoke(...)"
        )

    def raise_failure(self) -> None:
        """Raise what failed in our hands, if something did."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Let no thread wait for an answer any more."""
        for waiting in self._waiting:
            waiting.cancel()


def _running() -> _Running:
    try:
        return _RUNNING.get()
    except LookupError:
        raise ConfigError(
            "agentrl's ChatModel and tools work inside of a rollout: run the graph with "
            "collect(env, langgraph(graph), policy)"
        ) from None


def _path(metadata: Mapping[str, Any]) -> list[str]:
    """The names of the nodes that a call is made in, from the outermost graph's inwards."""
    place = str(metadata.get("langgraph_checkpoint_ns") or metadata.get("langgraph_node") or "")
    return [part.partition(":")[0] for part in place.split("|") if part]


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


def _as_langchain(said: Said) -> AIMessage:
    calls = said.message.tool_calls
    usage = UsageMetadata(
        input_tokens=said.prompt_tokens,
        output_tokens=said.sampled_tokens,
        total_tokens=said.prompt_tokens + said.sampled_tokens,
    )
    return AIMessage(
        content=said.message.content,
        tool_calls=[{"name": c.name, "args": dict(c.arguments), "id": c.id} for c in calls],
        response_metadata={"finish_reason": said.finish, "node": said.node},
        usage_metadata=usage,
    )


async def _value(made: Any) -> Any:
    return await made if inspect.isawaitable(made) else made
