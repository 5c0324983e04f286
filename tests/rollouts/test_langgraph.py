"""LangGraph graphs as rollouts: what they leave in the tree, and what they may not hide."""

from __future__ import annotations

import asyncio
from typing import Any, TypedDict

import pytest

pytest.importorskip("langgraph", reason="needs the extra 'langgraph'")

from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from pydantic import BaseModel

from agentrl.collect import collect
from agentrl.credit import credited, episode_of
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import ConfigError, EngineError, SandboxError
from agentrl.rollouts.langgraph import ChatModel, langgraph, tools_of
from agentrl.testing import check_rollout
from agentrl.types import SamplingParams, Step
from tests.fakes import PYTHON, FakeEnv, FakeEpisode, task

CALL = '<tool_call>{"name": "python", "arguments": {"code": "print(6*7)"}}</tool_call>'


def say(text: str) -> str:
    """Calls the interpreter once, then answers."""
    return "It is 42" if "tool\n42" in text else f"Compute. {CALL}"


def react(*, tools: Any = None, sync: bool = False, **compiled: Any) -> Any:
    tools = tools_of([PYTHON]) if tools is None else tools
    model = ChatModel().bind_tools(tools)

    def act_in_thread(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    async def act(state: MessagesState) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("act", act_in_thread if sync else act)
    graph.add_node("tools", ToolNode(tools, handle_tool_errors=True))
    graph.add_edge(START, "act")
    graph.add_conditional_edges("act", tools_condition)
    graph.add_edge("tools", "act")
    return graph.compile(**compiled)


def one(rollout: Any, script: Any = say, env: Any = None, **options: Any):
    """The tree and the only attempt of one rollout."""
    policy = script if hasattr(script, "sample") else ScriptedPolicy(script)
    options = {"params": SamplingParams(4000), "progress": False, "retries": 0} | options
    (tree,) = asyncio.run(collect(env or FakeEnv(), rollout, policy, n=1, **options))
    return tree, tree.attempts[-1]


def spoken(tree, attempt, source="policy") -> list[str]:
    chat = ScriptedPolicy([]).tokenizer
    return [chat.decode(n.token_ids) for n in tree.path(attempt.leaf) if n.source == source]


@pytest.mark.parametrize("sync", [False, True], ids=["async", "threads"])
def test_react_is_one_path_of_sampled_tokens(sync):
    tree, attempt = one(langgraph(react(sync=sync)))
    assert attempt.error is None
    assert (attempt.reward, attempt.stop_reason, attempt.answer) == (1.0, "final_answer", "42")
    assert spoken(tree, attempt) == [f"Compute. {CALL}", "<|im_end|>", "It is 42", "<|im_end|>"]
    assert (attempt.branches, attempt.metrics["statuses"]) == ((), ["ok"])
    assert tree.meta["tools"][0]["function"]["name"] == "python"
    assert tree.nodes[1].info == {"agent": "act"}


def test_it_keeps_the_contract_of_rollouts():
    check_rollout(langgraph(react()), script=say)


def test_a_graph_runs_in_many_rollouts_at_once():
    env = FakeEnv([task(f"t{i}") for i in range(8)])
    policy = ScriptedPolicy(say, latency=0.002)
    trees = asyncio.run(
        collect(env, langgraph(react()), policy, params=SamplingParams(4000), progress=False)
    )
    assert [t.attempts[-1].reward for t in trees] == [1.0] * 8
    assert all(len(t.nodes) == 6 for t in trees)


class Chat(TypedDict, total=False):
    problem: str
    solution: str
    review: str


def duo() -> Any:
    """A solver and a reviewer, each with a conversation of its own."""
    model = ChatModel()

    async def solver(state: Chat) -> Chat:
        told = [("system", "Solve."), ("user", state["problem"])]
        return {"solution": (await model.ainvoke(told)).content}

    async def reviewer(state: Chat) -> Chat:
        told = [("system", "Review."), ("user", state["solution"])]
        return {"review": (await model.ainvoke(told)).content}

    graph = StateGraph(Chat)
    graph.add_node(solver)
    graph.add_node(reviewer)
    graph.add_edge(START, "solver")
    graph.add_edge("solver", "reviewer")
    graph.add_edge("reviewer", END)
    return graph.compile()


DUO: dict[str, Any] = {
    "inputs": lambda messages, task: {"problem": messages[-1]["content"]},
    "grade": lambda state, task: float(state["review"] == "fine"),
}


def speak(text: str) -> str:
    return "fine" if "Review." in text else "42"


def trained_text(tree, attempt) -> list[str]:
    episode = episode_of(tree, attempt)
    chat = ScriptedPolicy([]).tokenizer
    rows = credited(tree, attempt, [1.0] * len(episode.turns))
    return [
        chat.decode([i for i, w in zip(r.token_ids, r.weights, strict=True) if w]) for r in rows
    ]


def test_agents_with_their_own_conversations_are_branches_of_one_attempt():
    tree, attempt = one(langgraph(duo(), **DUO), speak)
    assert attempt.reward == 1.0
    assert trained_text(tree, attempt) == ["42<|im_end|>", "fine<|im_end|>"]


@pytest.mark.parametrize(("node", "text"), [("solver", "42"), ("reviewer", "fine")])
def test_only_the_nodes_in_training_are_learnt_from(node, text):
    tree, attempt = one(langgraph(duo(), trained=[node], **DUO), speak)
    assert trained_text(tree, attempt) == [f"{text}<|im_end|>"]
    agents = {n.info["agent"]: n.source for n in tree.nodes if "agent" in n.info}
    assert agents[node] == "policy"
    assert set(agents.values()) == {"policy", "environment"}


def test_a_subgraphs_nodes_have_names_too():
    outer = StateGraph(MessagesState)
    outer.add_node("worker", react())
    outer.add_edge(START, "worker")
    outer.add_edge("worker", END)
    graph = outer.compile()
    tree, _ = one(langgraph(graph, trained=["act"]))
    assert tree.nodes[1].info == {"agent": "worker/act"}
    assert tree.nodes[1].source == "policy"
    with pytest.raises(ConfigError, match=r"unknown node 'actor'. Did you mean 'act'"):
        langgraph(graph, trained=["actor"])


def asking(**compiled: Any) -> Any:
    """A graph that asks a person what to do before it answers."""
    model = ChatModel()

    async def act(state: MessagesState) -> Any:
        told = interrupt("May I?")
        said = await model.ainvoke([*state["messages"], HumanMessage(told)])
        return {"messages": [HumanMessage(told), said]}

    graph = StateGraph(MessagesState)
    graph.add_node(act)
    graph.add_edge(START, "act")
    return graph.compile(**compiled)


@pytest.mark.parametrize("watched", [False, True])
def test_interrupts_are_answered(watched):
    seen: list[Any] = []
    options = {"watch": seen.append} if watched else {}

    async def person(value, task):
        return f"{value} Yes, {task.id}."

    rollout = langgraph(asking(), interrupts=person, **options)
    _, attempt = one(rollout, lambda text: "42" if "May I? Yes, t0." in text else "no")
    assert attempt.reward == 1.0
    assert bool(seen) == watched
    with pytest.raises(ConfigError, match="interrupts="):
        one(langgraph(asking(checkpointer=InMemorySaver())), say)


def test_a_checkpointer_goes_on_with_an_episode():
    told = iter(["And twice that?", None])

    def then(state, task):
        more = next(told)
        return more and {"messages": [("user", more)]}

    tree, attempt = one(langgraph(react(), then=then), lambda t: "84" if "twice" in t else "41")
    assert spoken(tree, attempt) == ["41", "<|im_end|>", "84", "<|im_end|>"]
    assert attempt.branches == ()

    saver = InMemorySaver()
    rollout = langgraph(react(checkpointer=saver), thread=lambda task: f"thread of {task.id}")
    one(rollout, lambda text: "first")
    tree, attempt = one(rollout, lambda text: "42")
    assert spoken(tree, attempt) == ["42", "<|im_end|>"]  # what was said before is context
    assert "first" in "".join(spoken(tree, attempt, "template"))


def test_a_thread_is_as_it_was_after_an_attempt_that_failed():
    """It is tried again, and finds what was said before, once."""
    saver, replies = InMemorySaver(), iter(["first", None, "second"])

    def flaky(text):
        reply = next(replies)
        if reply is None:
            raise EngineError("gone")
        return reply

    graph = react(checkpointer=saver)
    rollout = langgraph(graph, thread=lambda task: "t")
    one(rollout, flaky)
    tree, attempt = one(rollout, flaky, retries=1)
    assert (len(tree.meta["failures"]), attempt.error) == (1, None)
    state = graph.get_state({"configurable": {"thread_id": "t"}}).values["messages"]
    question = state[0].content
    assert [m.content for m in state] == [question, "first", question, "second"]

    def broken(text):
        raise EngineError("gone")

    fresh = langgraph(graph, thread=lambda task: "new")
    one(fresh, broken)
    assert graph.get_state({"configurable": {"thread_id": "new"}}).values == {}


def test_a_thread_is_one_attempts_at_a_time():
    rollout = langgraph(react(checkpointer=InMemorySaver()), thread=lambda task: "t")
    policy, env = ScriptedPolicy(say, latency=0.01), FakeEnv([task("a"), task("b")])
    with pytest.raises(ConfigError, match="two attempts at once"):
        asyncio.run(collect(env, rollout, policy, progress=False))
    with pytest.raises(ConfigError, match="checkpointer"):
        langgraph(react(), thread=lambda task: "t")


class Failing(FakeEpisode):
    async def step(self, message):
        raise SandboxError("the sandbox is gone")


class Ending(FakeEpisode):
    async def step(self, message):
        return Step(reward=0.25, terminated=True, info={"answer": "game over"})


def env_of(episode: type[FakeEpisode]) -> FakeEnv:
    env = FakeEnv()
    env.open = lambda of, box: episode(of)
    return env


def test_a_failure_of_ours_is_never_hidden_by_the_graph():
    _, attempt = one(langgraph(react()), env=env_of(Failing))
    assert attempt.stop_reason == "sandbox_error"
    assert attempt.reward is None

    def broken(text):
        raise EngineError("gone")

    _, attempt = one(langgraph(react()), broken)
    assert (attempt.stop_reason, attempt.reward) == ("engine_error", None)


def test_the_environment_may_end_the_episode():
    _, attempt = one(langgraph(react()), env=env_of(Ending))
    assert (attempt.stop_reason, attempt.reward) == ("env_terminated", 0.25)
    assert attempt.answer == "game over"
    assert attempt.metrics["replies"] == 1


def test_limits():
    _, attempt = one(langgraph(react(), max_turns=3), lambda text: CALL)
    assert (attempt.stop_reason, attempt.reward) == ("max_turns", None)
    assert attempt.metrics["replies"] == 3
    _, attempt = one(langgraph(react(), config={"recursion_limit": 4}), lambda text: CALL)
    assert attempt.stop_reason == "max_turns"
    _, attempt = one(langgraph(react(), max_tokens=20), lambda text: CALL)
    assert (attempt.stop_reason, attempt.metrics["calls"]) == ("max_tokens", 0)
    assert attempt.truncated


def test_a_deadline_ends_a_graph_that_hangs():
    _, attempt = one(langgraph(react()), ScriptedPolicy(say, latency=30), deadline_s=0.3)
    assert attempt.stop_reason == "timeout"


def test_mistakes_are_told():
    with pytest.raises(ConfigError, match="inside of a rollout"):
        asyncio.run(ChatModel().ainvoke("hello"))
    with pytest.raises(ConfigError, match="tool_choice"):
        ChatModel().bind_tools([], tool_choice="any")

    def never(state: MessagesState) -> Any:
        return {"messages": []}

    graph = StateGraph(MessagesState)
    graph.add_node(never)
    graph.add_edge(START, "never")
    with pytest.raises(ConfigError, match="never asked the policy"):
        one(langgraph(graph.compile()))


def test_an_async_node_that_blocks_is_told_how_not_to():
    model = ChatModel()

    async def act(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node(act)
    graph.add_edge(START, "act")
    with pytest.raises(ConfigError, match="await model"):
        one(langgraph(graph.compile()))


def calling(call: Any, **compiled: Any) -> Any:
    """A graph of one node, which does what `call` does with the messages."""

    async def act(state: MessagesState) -> Any:
        return {"messages": [await call(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node(act)
    graph.add_edge(START, "act")
    return graph.compile(**compiled)


def test_a_graph_that_fails_has_no_reward_and_is_tried_again():
    async def broken(messages):
        said = await ChatModel().ainvoke(messages)
        return said.content["no such key"]

    tree, attempt = one(langgraph(calling(broken)), retries=1)
    assert (attempt.stop_reason, attempt.reward) == ("cancelled", None)
    assert attempt.error.startswith("AgentError: the graph failed: TypeError: ")
    assert len(tree.meta["failures"]) == 2


def test_what_a_call_names_is_done_or_refused():
    short = ChatModel(max_tokens=9).bind(max_tokens=3, parallel_tool_calls=True)
    tree, attempt = one(langgraph(calling(short.ainvoke)), lambda text: "long words")
    assert (attempt.stop_reason, tree.nodes[1].token_ids) == ("max_tokens", tuple(b"lon"))
    for asked in ({"top_p": 0.5}, {"parallel_tool_calls": False}, {"tool_choice": "any"}):
        with pytest.raises(ConfigError, match=rf"{next(iter(asked))}=.*leave it out"):
            one(langgraph(calling(ChatModel().bind(**asked).ainvoke)))


def test_a_cache_of_langchain_answers_nothing():
    set_llm_cache(InMemoryCache())
    try:
        rollout = langgraph(calling(ChatModel().ainvoke))
        for _ in range(2):
            tree, attempt = one(rollout, lambda text: "42")
            assert spoken(tree, attempt) == ["42", "<|im_end|>"]
    finally:
        set_llm_cache(None)


class Route(BaseModel):
    """Who is next."""

    next: str


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ('<tool_call>{"name": "Route", "arguments": {"next": "42"}}</tool_call>', "42"),
        ("The solver, I would say.", "nobody"),
    ],
)
def test_structured_output_is_a_call_of_the_schema_or_none(said, answer):
    model = ChatModel().with_structured_output(Route)

    async def act(messages):
        route = await model.ainvoke(messages)
        return HumanMessage("nobody" if route is None else route.next)

    rollout = langgraph(calling(act), answer=lambda state: state["messages"][-1].content)
    tree, attempt = one(rollout, lambda text: said)
    assert (attempt.reward, attempt.answer) == (float(answer == "42"), answer)
    assert tree.meta["tools"][0]["function"]["name"] == "Route"


def test_a_graph_that_pauses_by_itself_is_refused():
    for how in ({"interrupt_before": ["act"]}, {"interrupt_after": ["act"]}):
        with pytest.raises(ConfigError, match="interrupt_before or interrupt_after"):
            langgraph(calling(ChatModel().ainvoke, checkpointer=InMemorySaver(), **how))


@pytest.mark.parametrize("watched", [False, True])
def test_a_graph_gets_its_context_and_config(watched):
    model = ChatModel()

    async def act(state: MessagesState, runtime: Runtime, config: RunnableConfig) -> Any:
        told = f"{runtime.context['mood']}, {config['metadata']['place']}"
        return {"messages": [await model.ainvoke([*state["messages"], HumanMessage(told)])]}

    graph = StateGraph(MessagesState, context_schema=dict)
    graph.add_node(act)
    graph.add_edge(START, "act")
    options: dict[str, Any] = {"watch": [].append} if watched else {}
    options |= {"context": {"mood": "Kindly"}, "config": {"metadata": {"place": "here"}}}
    rollout = langgraph(graph.compile(), **options)
    _, attempt = one(rollout, lambda text: "42" if "Kindly, here" in text else "no")
    assert attempt.reward == 1.0


@pytest.mark.parametrize("watched", [False, True])
def test_a_function_as_a_graph_may_ask_before_it_has_a_state(watched):
    model = ChatModel()

    @entrypoint(checkpointer=InMemorySaver())
    async def work(messages):
        told = interrupt("May I?")
        return {"messages": [await model.ainvoke([*messages, HumanMessage(told)])]}

    options = {"watch": [].append} if watched else {}
    rollout = langgraph(
        work,
        inputs=lambda messages, task: messages,
        interrupts=lambda value, task: f"{value} Yes.",
        **options,
    )
    _, attempt = one(rollout, lambda text: "42" if "May I? Yes." in text else "no")
    assert attempt.reward == 1.0
