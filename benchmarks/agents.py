"""What one turn of somebody else's agent costs (`python benchmarks/agents.py`).

A ReAct graph in LangGraph and an agent behind the proxy, ten turns with a tool call in each but the
last, with a scripted policy: `overhead_per_turn_ms` is all that is not sampling. Beside them the
same turns in agentrl's own tool loop, and the same graph with LangChain's own fake model, which
records nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import aiohttp
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.graph import MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.proxy import Sessions, Settings
from agentrl.proxy.server import serving
from agentrl.rollouts import tool_loop
from agentrl.rollouts.langgraph import ChatModel, langgraph, tools_of
from agentrl.types import SamplingParams
from benchmarks import harness
from benchmarks.harness import CPU, Options, Row, alternate, async_seconds, rows
from benchmarks.work import ADD, AddEnv, native_reply

PACKAGES = ("agentrl", "langgraph", "langchain-core", "aiohttp")
PARAMS = SamplingParams(max_tokens=100_000)
TURNS = 10
REPLIES = [native_reply(turn, TURNS) for turn in range(TURNS)]
CASE, UNIT = "overhead_per_turn_ms", "ms CPU"


def say(text: str) -> str:
    """The scripted policy: the reply of the turn that is open."""
    return REPLIES[text.count("<|im_start|>assistant\n") - 1]


def overhead(options: Options) -> list[Row]:
    """CPU milliseconds a turn of the graph, of the proxy, of our own loop and of the bare graph."""
    n = options.scaled(32, 8)
    sides = {
        "graph": lambda: _collected(n, langgraph(_graph(ChatModel()))),
        "proxy": lambda: _proxied(n),
        "own": lambda: _collected(n, tool_loop(tools="native")),
        "bare": lambda: _bare(n),
    }
    found = alternate("overhead", "ms a turn", sides, options.rounds(5))
    own = {"agentrl tool_loop": found["own"]}
    bare = {"LangGraph, fake model": found["bare"]}
    graph_note = f"{n} ReAct graphs of {TURNS} turns at once"
    proxy_note = f"{n} agents of {TURNS} turns at once, the HTTP client in the same process"
    return [
        *rows(f"langgraph/{CASE}", UNIT, found["graph"], own | bare, note=graph_note),
        *rows(f"proxy/{CASE}", UNIT, found["proxy"], own, note=proxy_note),
    ]


def _graph(model: Any, tools: Any = None) -> Any:
    tools = tools_of([ADD]) if tools is None else tools
    model = model.bind_tools(tools) if isinstance(model, ChatModel) else model

    async def act(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("act", act)
    graph.add_node("tools", ToolNode(tools))
    graph.set_entry_point("act")
    graph.add_conditional_edges("act", tools_condition)
    graph.add_edge("tools", "act")
    return graph.compile()


def _collected(n: int, rollout: Any) -> float:
    """Milliseconds a turn through `collect`."""
    trees: list[Any] = []

    async def work() -> None:
        policy = ScriptedPolicy(say)
        trees.extend(await collect(AddEnv(n), rollout, policy, params=PARAMS, progress=False))

    took = async_seconds(work, CPU)
    calls = {tree.attempts[0].metrics["calls"] for tree in trees}
    if calls != {TURNS - 1}:
        raise RuntimeError(f"{calls} tool calls a rollout instead of {TURNS - 1}")
    return 1e3 * took / (n * TURNS)


def _bare(n: int) -> float:
    """Milliseconds a turn of the same graph, with a model and a tool that do nothing."""
    name = ADD.name
    call = Chat(ScriptedPolicy([]).tokenizer).parse(REPLIES[0]).tool_calls[0]

    async def tool(**arguments: Any) -> str:
        return "1"

    spec = tools_of([ADD])[0]
    same = spec.model_copy(update={"coroutine": tool})

    def replies() -> Any:
        for turn in range(TURNS - 1):
            made = {"name": name, "args": dict(call.arguments), "id": str(turn)}
            yield AIMessage("", tool_calls=[made])
        yield AIMessage("done")

    async def work() -> None:
        graphs = [_graph(GenericFakeChatModel(messages=replies()), [same]) for _ in range(n)]
        given = {"messages": [("user", "add")]}
        ended = await asyncio.gather(*(g.ainvoke(given) for g in graphs))
        if {len(state["messages"]) for state in ended} != {2 * TURNS}:
            raise RuntimeError("the bare graph did not take all its turns")

    return 1e3 * async_seconds(work, CPU) / (n * TURNS)


def _proxied(n: int) -> float:
    """Milliseconds a turn of agents that speak HTTP, client and server together."""
    tools = [ADD.to_json()]

    async def agent(http: aiohttp.ClientSession, url: str, number: int) -> None:
        base, messages = f"{url}/sessions/{number}", [{"role": "user", "content": "add"}]
        for _ in range(TURNS):
            body = {"messages": messages, "tools": tools}
            async with http.post(f"{base}/v1/chat/completions", json=body) as answer:
                made = (await answer.json())["choices"][0]["message"]
            calls = made.get("tool_calls", [])
            messages = [*messages, made]
            messages += [{"role": "tool", "content": "1", "tool_call_id": c["id"]} for c in calls]
        async with http.post(f"{base}/reward", data=json.dumps({"reward": 1})) as answer:
            if (await answer.json())["replies"] != TURNS:
                raise RuntimeError("an agent did not take all its turns")

    async def work() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            Sessions(ScriptedPolicy(say), folder, Settings(PARAMS)) as sessions,
        ):
            async with serving(sessions) as url, aiohttp.ClientSession() as http:
                await asyncio.gather(*(agent(http, url, i) for i in range(n)))

    return 1e3 * async_seconds(work, CPU) / (n * TURNS)


if __name__ == "__main__":
    sys.exit(harness.main("agents", {"overhead": overhead}, PACKAGES))
