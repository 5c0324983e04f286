"""MAgICoRe in LangGraph: hard problems go on to a reviewer and a refiner, easy ones to the vote.

    python examples/magicore_graph.py --policy smollm2 -n 8 --trained solver,refiner

The solver writes several solutions, which are scored as wholes and step by step. If they are good
or agree, their weighted vote is the answer. If not, the reviewer says what is wrong in the steps
with low scores, the refiner mends each solution, and the best of the old and the new ones vote. The
gate, the prompts and the vote are those of the rollout `magicore` (`agentrl.rollouts.chains`); here
the agents are nodes, of which any may be trained, and edges may be drawn in another way.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

import envs
from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.engines import load_policy
from agentrl.rollouts.chains import (
    Chain,
    chosen,
    difficulty,
    kept,
    majority,
    refinement_of,
    review_of,
)
from agentrl.rollouts.langgraph import ChatModel, langgraph
from agentrl.rollouts.magicore import MIDDLE, scores
from agentrl.search.evaluators import SelfEvaluation
from agentrl.tree import Cursor, Tree
from agentrl.types import Message, SamplingParams, Task
from envs.grading import extract

SOLVE = "Solve the problem in steps (Step 1: ...). End with the answer in \\boxed{}."

Score = Callable[[str, str], Awaitable[tuple[float, tuple[float, ...]]]]
"""From a problem and a solution to the scores of the whole and of its steps, from 0 to 1."""


class State(TypedDict, total=False):
    """What the agents hand to each other; `first` is the answer of the first round's majority."""

    problem: str
    chains: list[Chain]
    pool: list[Chain]
    reviews: list[str]
    first: str
    round: int


def team(score: Score, candidates: int = 4, rounds: int = 1) -> Any:
    """The compiled graph: `candidates` solutions, and at most `rounds` rounds of refinement."""
    model = ChatModel()

    async def ask(*messages: tuple[str, str]) -> str:
        return str((await model.ainvoke(list(messages))).content)

    async def scored(problem: str, text: str) -> Chain:
        return Chain(text, extract(text) or "", *await score(problem, text))

    async def solver(state: State) -> State:
        asked = ("system", SOLVE), ("user", state["problem"])
        texts = await asyncio.gather(*(ask(*asked) for _ in range(candidates)))
        chains = await asyncio.gather(*(scored(state["problem"], t) for t in texts))
        return {"chains": chains, "pool": chains, "first": majority(chains), "round": 0}

    async def reviewer(state: State) -> State:
        asked = (("user", review_of(state["problem"], c)) for c in state["chains"])
        return {"reviews": await asyncio.gather(*map(ask, asked))}

    async def refiner(state: State) -> State:
        both = zip(state["chains"], state["reviews"], strict=True)
        asked = (("user", refinement_of(state["problem"], *one)) for one in both)
        texts = await asyncio.gather(*map(ask, asked))
        chains = await asyncio.gather(*(scored(state["problem"], t) for t in texts))
        pool = [*state["pool"], *chains]
        best = [pool[i] for i in kept(pool, candidates)]
        return {"chains": chains, "pool": best, "round": state["round"] + 1}

    def gate(state: State) -> str:
        hard = difficulty(state["chains"], state["first"], MIDDLE).hard
        return "reviewer" if hard and state["round"] < rounds else END

    graph = StateGraph(State)
    for node in (solver, reviewer, refiner):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "solver")
    graph.add_conditional_edges("solver", gate, ["reviewer", END])
    graph.add_edge("reviewer", "refiner")
    graph.add_conditional_edges("refiner", gate, ["reviewer", END])
    return graph.compile(name="magicore")


def self_scored(policy: Any) -> Score:
    """The policy's own word on solutions. A reward model's is better: `ByModel` instead."""
    judge, chat = SelfEvaluation(), Chat(policy.tokenizer)

    async def score(problem: str, text: str) -> tuple[float, tuple[float, ...]]:
        task = Task(problem, (Message("user", problem),), "")
        cursor = Cursor(Tree(task), policy, chat, SamplingParams())
        cursor.begin(task.prompt)
        return await scores(cursor, text, judge, judge)

    return score


def rollout(
    score: Score, trained: list[str] | None = None, candidates: int = 4, rounds: int = 1
) -> Any:
    """The team as a rollout: the environment grades the solution that the vote takes."""
    return langgraph(
        team(score, candidates, rounds),
        trained=trained,
        inputs=lambda messages, task: {"problem": messages[-1]["content"]},
        answer=lambda state: state["pool"][chosen(state["pool"])].text,
        max_turns=candidates * (1 + 2 * rounds),
    )


async def main(options: argparse.Namespace) -> None:
    """Collect, and print how often the team is right."""
    env = envs.make(options.env, split="train", seed=0)
    policy = load_policy(options.policy)
    trained = options.trained.split(",") if options.trained else None
    params = SamplingParams(max_tokens=options.max_tokens, temperature=0.8, top_p=0.95)
    made = rollout(self_scored(policy), trained)
    trees = await collect(env, made, policy, n=options.n, params=params)
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
