"""A ReAct agent in LangGraph, with the environment's Python interpreter, trained by GRPO.

    python examples/react_grpo.py model=smollm2 steps=100 --out runs/react

The graph is an ordinary one: a node that asks the model, a node that runs its tools, and an edge
back. Everything after `agent()` is agentrl's own.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from langgraph.graph import MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

import envs
import sandboxes
from agentrl.config import RunFolder, build, pairs, settings
from agentrl.engines import load_policy
from agentrl.interfaces import Env
from agentrl.recipes import grpo
from agentrl.rollouts.langgraph import ChatModel, langgraph, tools_of


def agent(env: Env) -> Any:
    """The compiled graph: model, tools, model, ..., until the model calls no tool."""
    tools = tools_of(env)
    model = ChatModel().bind_tools(tools)

    async def act(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("act", act)
    graph.add_node("tools", ToolNode(tools))
    graph.set_entry_point("act")
    graph.add_conditional_edges("act", tools_condition)
    graph.add_edge("tools", "act")
    return graph.compile(name="react")


async def main(config: grpo.Config, out: Path) -> dict[str, Any]:
    """Train, and return the run's summary: accuracy before and after, with intervals."""
    train_env, test_env = (
        envs.make(config.env, split=split, seed=config.seed) for split in ("train", "test")
    )
    policy = load_policy(config.model, dtype="float32", device=config.device)
    rollout = langgraph(agent(train_env), max_turns=config.max_calls, max_tokens=config.max_tokens)
    folder = RunFolder(out, settings(config), resume=True)
    async with sandboxes.open("embedded") as box:
        return await grpo.learn(
            config, policy, train_env, test_env, folder, box=box, rollout=rollout
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="grpo's settings")
    parser.add_argument("--out", type=Path, default=Path("runs/react"))
    options = parser.parse_args()
    made = asyncio.run(main(build(grpo.Config, pairs(options.settings)), options.out))
    print(made["baseline"]["accuracy"], "->", made["tuned"]["accuracy"])
