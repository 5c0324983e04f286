"""Three agents in LangGraph: one solves, one reviews, one refines what the review objects to.

    python examples/solver_reviewer_refiner.py --policy smollm2 -n 8 --trained solver,refiner

All three are the same policy, each with a system message and a conversation of its own. Which of
them learn is said by their nodes' names; what the others say is context. The reviewer does not see
who wrote the answer, the refiner sees the answer and the review.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

import envs
from agentrl.collect import collect
from agentrl.engines import load_policy
from agentrl.rollouts.langgraph import ChatModel, langgraph
from agentrl.types import SamplingParams

ACCEPT = "ACCEPT"
SOLVE = "Solve the problem. End with the answer in \\boxed{}."
REVIEW = f"Check the solution step by step. End with {ACCEPT}, or say what is wrong with it."
REFINE = "Mend the solution as the review says. End with the answer in \\boxed{}."


class State(TypedDict, total=False):
    """What the agents hand to each other."""

    problem: str
    solution: str
    review: str
    rounds: int


def team(rounds: int = 2) -> Any:
    """The compiled graph: at most `rounds` reviews."""
    model = ChatModel()

    async def ask(system: str, *parts: str) -> str:
        messages = [("system", system), ("user", "\n\n".join(parts))]
        return str((await model.ainvoke(messages)).content)

    async def solver(state: State) -> State:
        return {"solution": await ask(SOLVE, state["problem"]), "rounds": 0}

    async def reviewer(state: State) -> State:
        review = await ask(REVIEW, state["problem"], f"Solution:\n{state['solution']}")
        return {"review": review, "rounds": state["rounds"] + 1}

    async def refiner(state: State) -> State:
        shown = f"Solution:\n{state['solution']}", f"Review:\n{state['review']}"
        return {"solution": await ask(REFINE, state["problem"], *shown)}

    def accepted(state: State) -> str:
        return END if state["review"].rstrip().endswith(ACCEPT) else "refiner"

    def enough(state: State) -> str:
        return END if state["rounds"] >= rounds else "reviewer"

    graph = StateGraph(State)
    for node in (solver, reviewer, refiner):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "solver")
    graph.add_edge("solver", "reviewer")
    graph.add_conditional_edges("reviewer", accepted, ["refiner", END])
    graph.add_conditional_edges("refiner", enough, ["reviewer", END])
    return graph.compile(name="team")


def rollout(trained: list[str] | None = None, rounds: int = 2) -> Any:
    """The team as a rollout: the environment grades the last solution."""
    return langgraph(
        team(rounds),
        trained=trained,
        inputs=lambda messages, task: {"problem": messages[-1]["content"]},
        answer=lambda state: state["solution"],
    )


async def main(options: argparse.Namespace) -> None:
    """Collect, and print how often the team is right."""
    env = envs.make(options.env, split="train", seed=0)
    policy = load_policy(options.policy)
    trained = options.trained.split(",") if options.trained else None
    params = SamplingParams(max_tokens=options.max_tokens)
    trees = await collect(env, rollout(trained), policy, n=options.n, params=params)
    await policy.close()
    rewards = [t.attempts[-1].reward or 0.0 for t in trees]
    print(f"{sum(rewards):g} of {len(trees)} right")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="arithmetic")
    parser.add_argument("--policy", default="smollm2")
    parser.add_argument("-n", type=int, default=8)
    parser.add_argument("--trained", help="names of nodes, with commas between (default: all)")
    parser.add_argument("--max-tokens", type=int, default=128)
    asyncio.run(main(parser.parse_args()))
