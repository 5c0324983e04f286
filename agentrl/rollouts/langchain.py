"""The policy as a LangChain chat model, and an environment's tools as LangChain tools.

Both find the rollout that they are called in, so that a graph is compiled once and runs in any
number of rollouts at a time (`agentrl.rollouts.langgraph`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from agentrl.engines.endpoint.wire import read_messages, read_tools
from agentrl.errors import ConfigError, InfraError, missing_extra
from agentrl.interfaces import Env, Episode
from agentrl.rollouts.blocks import result_statuses
from agentrl.rollouts.conversations import Conversations, Said
from agentrl.types import Message, Step, StopReason, ToolCall, ToolSpec

try:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.outputs import ChatGeneration, ChatResult
    from langchain_core.tools import BaseTool, StructuredTool
    from langchain_core.utils.function_calling import convert_to_openai_tool
except ImportError as error:
    raise missing_extra("langchain-core", "langgraph") from error

T = TypeVar("T")
RUNNING: ContextVar[Running] = ContextVar("agentrl_langgraph")
"""The rollout that runs."""
_OFF: dict[str, tuple[Any, ...]] = {"tool_choice": ("auto",), "parallel_tool_calls": (True,)}
"""What a call may say that changes nothing."""


class ChatModel(BaseChatModel):
    """The policy as a LangChain chat model. Works where `langgraph` runs the graph around it.

    `agent` names the speaker, where the name of the graph's node is not to be it. `max_tokens` and
    `temperature` replace those of the rollout's sampling parameters; so do those that a call or
    `bind` names, and ConfigError is raised for what else they name. It answers in one piece, so
    that a graph which streams samples no slower. No cache of LangChain answers in its place.
    """

    agent: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    disable_streaming: bool = True
    cache: bool | None = False  # a reply from elsewhere would be one that nobody sampled

    @property
    def _llm_type(self) -> str:
        return "agentrl"

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> Any:
        """The model with tools to call. Raises ConfigError where it should be made to call one.

        For `with_structured_output` the schema is such a tool; what comes out is None where the
        policy did not call it.
        """
        structured = "ls_structured_output_format" in kwargs
        if tool_choice not in (None, "auto") and not structured:
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
        return await _running().answer(self, messages, stop, path, kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        path = _path(getattr(run_manager, "metadata", None) or {})
        running = _running()
        asked = running.answer(self, messages, stop, path, kwargs)
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


class Over(Exception):
    """The attempt is over, whatever the graph still wants."""


@dataclass(slots=True)
class Running:
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
        asked: Mapping[str, Any],
    ) -> ChatResult:
        """The policy's answer to `messages`. Remembers a failure of ours, which graphs may hide."""
        self.raise_failure()
        if self.ended is not None or self.turns >= self.max_turns:
            raise Over
        self.turns += 1
        trained = self.trained is None or not set(self.trained).isdisjoint(path)
        changes = _changes(model, asked)
        try:
            said = await self.conversations.reply(
                read_messages(convert_to_openai_messages(messages)),
                read_tools(asked.get("tools")),
                agent=model.agent or "/".join(path),
                trained=trained,
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
                raise Over
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


def _running() -> Running:
    try:
        return RUNNING.get()
    except LookupError:
        raise ConfigError(
            "agentrl's ChatModel and tools work inside of a rollout: run the graph with "
            "collect(env, langgraph(graph), policy)"
        ) from None


def _changes(model: ChatModel, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters that the model, or what a call of it `asked`, names. Raises ConfigError
    for what would change the answer and is not done here."""
    given = {k: v for k, v in asked.items() if v is not None and k != "tools"}
    given = {k: v for k, v in given.items() if v not in _OFF.get(k, ())}
    named = {"temperature": model.temperature, "max_tokens": model.max_tokens}
    named = {k: given.pop(k, v) for k, v in named.items()}
    named["max_tokens"] = given.pop("max_completion_tokens", named["max_tokens"])
    if given:
        name, value = next(iter(given.items()))
        raise ConfigError(
            f"{name}={value!r}: the policy takes tools, stop, temperature and max_tokens; leave it "
            "out"
        )
    return {k: v for k, v in named.items() if v is not None}


def _path(metadata: Mapping[str, Any]) -> list[str]:
    """The names of the nodes that a call is made in, from the outermost graph's inwards."""
    place = str(metadata.get("langgraph_checkpoint_ns") or metadata.get("langgraph_node") or "")
    return [part.partition(":")[0] for part in place.split("|") if part]


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
