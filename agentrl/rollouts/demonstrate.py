"""Somebody else's turns in a tree: a solver's in a live environment, or a given conversation.

What stands there was not sampled: its nodes are hints, which SFT may imitate and no policy gradient
reaches. Tool output comes from the environment, with its status, as in any other rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrl.chat import Chat
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import DataError
from agentrl.interfaces import OpenEnv, Rollout, Tokenizer
from agentrl.rollouts.tool_loop import tool_loop
from agentrl.tree import Cursor, Tree
from agentrl.types import Completion, Message, SamplingParams, Task, ToolSpec

Solver = Callable[[Task, Sequence[Sequence[str]]], str]
"""From a task, and the statuses of the calls of each turn so far, to the next turn's text."""

NO_LIMIT = 1 << 20


def demonstrate(solver: Solver, *, max_turns: int = 16) -> Rollout:
    """The tool loop with native calls, in which `solver` speaks instead of the policy."""
    loop = tool_loop(tools="native", max_turns=max_turns, max_tokens=NO_LIMIT)

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        spoken = cursor.fork()
        spoken.policy = _Voice(solver, spoken)
        await loop(spoken, open_env)

    rollout.__name__ = "demonstrate"
    return rollout


class _Voice:
    """`solver` as a policy, at the place of `cursor`."""

    name, version = "solver", 0

    def __init__(self, solver: Solver, cursor: Cursor) -> None:
        self.solver, self.cursor = solver, cursor
        self.tokenizer: Tokenizer = cursor.chat.tokenizer
        self.max_context = NO_LIMIT

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """The next turn, with the token that ends it."""
        tree, chat = self.cursor.tree, self.cursor.chat
        path = tree.path(self.cursor.node)
        infos = [node.info for node in path if "status" in node.info]
        statuses = [info.get("statuses", [info["status"]]) for info in infos]
        ids = chat.encode(self.solver(tree.task, statuses), trusted=True) + _end(chat)
        return Completion(tuple(ids), (), "eos", trainable=False)

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """A solver has no probabilities."""
        raise ValueError("a solver cannot score tokens")

    async def update(self, weights: Mapping[str, Any]) -> None:
        """A solver is not trained."""
        raise ValueError("a solver is not trained")

    async def close(self) -> None:
        """Nothing to free."""


def replayed(
    chat: Chat,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec] = (),
    *,
    task: str = "replayed",
    statuses: Sequence[str] | None = None,
) -> Tree:
    """A conversation from elsewhere as a tree of one attempt, its assistant turns as hints.

    `statuses` gives one for each run of tool messages, where that is known. The attempt has no
    reward. The tools' descriptions stand in `task.data["functions"]`. Raises DataError for a
    conversation without an answer, or without a prompt before it.
    """
    turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not turns or turns[0] == 0:
        raise DataError(f"{task}: a conversation has a prompt and then an answer")
    functions = [tool.to_json()["function"] for tool in tools]
    prompt = tuple(messages[: turns[0]])
    tree = Tree(Task(task, prompt, "replayed", data={"functions": functions}))
    cursor = Cursor(tree, ScriptedPolicy([], tokenizer=chat.tokenizer), chat, SamplingParams())
    cursor.begin(prompt, tools)
    known = iter(statuses or ())
    for at, following in zip(turns, [*turns[1:], len(messages)], strict=True):
        cursor.hint(messages[at].content + chat.end_text)
        after = messages[at + 1 : following]
        if after:
            status = next(known, None) if after[0].role == "tool" else None
            cursor.observe(after, **({} if status is None else {"status": status}))
    cursor.finish("final_answer", answer=messages[turns[-1]].content)
    return tree


def _end(chat: Chat) -> list[int]:
    """The tokens that end a turn."""
    return chat.encode(chat.end_text, trusted=True) or [min(chat.tokenizer.eos_ids)]
