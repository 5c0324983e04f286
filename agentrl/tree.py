"""The record (`Tree`), and the cursor, the only way in which tokens enter it.

A rollout is a path, a group shares its prompt node, a search branches at every step, and a chat
template that rewrites history forks at the first token that differs. Nothing is ever decoded and
encoded again: what a loss reads are the ids that the policy saw and the ids that it sampled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from agentrl.chat import Chat
from agentrl.errors import TreeError
from agentrl.interfaces import Policy
from agentrl.record import Tree, tokens_said
from agentrl.types import (
    Attempt,
    Completion,
    Message,
    Node,
    Role,
    SamplingParams,
    Source,
    StopReason,
    ToolSpec,
    TurnReward,
)

__all__ = ["Cursor", "Sampled", "Tree", "derive_seed"]


@dataclass(frozen=True, slots=True)
class Sampled:
    """What one `Cursor.sample` call produced.

    `body` is the node before the end token (rewind there to take the end token away), `node` the
    last one. `text` is the decoded body of this call, without the end token.
    """

    text: str
    body: int
    node: int
    completion: Completion

    @property
    def ended(self) -> bool:
        """True if the policy ended its turn itself."""
        return self.completion.finish_reason == "eos"

    @property
    def stop(self) -> str | None:
        """The stop string that ended it, if one did."""
        return self.completion.stop


class Cursor:
    """A place in a tree, and the only way in which tokens enter it.

    `params` is the default for sampling; `seed` makes every call reproducible: each call's own
    seed is derived from it and the call's number. `messages` is the conversation as people see
    it, up to the current assistant turn, which `turn_start` (a token position) begins.
    `sampled_tokens` counts what was sampled on the way here, what was rewound included.
    """

    def __init__(
        self, tree: Tree, policy: Policy, chat: Chat, params: SamplingParams, seed: int = 0
    ) -> None:
        self.tree, self.policy, self.chat, self.params, self.seed = tree, policy, chat, params, seed
        self.node = -1
        self.ids: list[int] = []
        self.messages: list[Message] = []
        self.tools: tuple[ToolSpec, ...] = ()
        self.turn_start = 0
        self.branches: tuple[int, ...] = ()
        self.sampled_tokens = 0
        self._calls = 0
        self._before = 0  # ids in front of the conversation
        self._turn_node = -1  # where the turn starts
        self._shown = ""  # the conversation up to there, as the template renders it
        self._text = (-1, "")  # a node of this turn, and the turn's text up to it

    def begin(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        *,
        before: Sequence[int] = (),
        beside: bool = False,
    ) -> None:
        """Render the first prompt through the chat template and open the assistant's turn.

        The ids `before` stand in front of it, outside of the conversation (LeTI's verdict); the
        node's `info["before"]` counts them. With `beside`, the conversation may be another than
        those in the tree already, and shares the longest beginning that it has with one of them.
        Raises ChatError where the template refuses the messages or does not show the tools.
        """
        if self.node >= 0:
            raise TreeError("the conversation has begun; use observe for further messages")
        opening = self.chat.opening(messages, tools)
        ids, info = [*before, *opening.ids], {"before": len(before)} if before else {}
        if self.tree.nodes and self.tree.nodes[0].token_ids == tuple(ids):
            node = 0  # a further attempt of the same task shares the prompt
        elif beside and self.tree.nodes:
            node = self._beside(ids)
        else:
            node = self.tree.add(None, "user", "template", ids, info=info).id
        self.messages, self.tools, self.ids = list(messages), tuple(tools), ids
        self._before = len(before)
        if tools:  # what the template showed belongs to the record
            known = {t["function"]["name"]: t for t in self.tree.meta.get("tools", ())}
            known |= {tool.name: tool.to_json() for tool in tools}
            self.tree.meta["tools"] = list(known.values())
        self._start_turn(node, opening.shown)

    def _beside(self, ids: Sequence[int]) -> int:
        """The node at which `ids` stand, shared with what is there as far as that goes."""
        leaf, shared = self.tree.common(ids)
        node = self.tree.fork(leaf, shared) if shared else None
        if node is not None and shared == len(ids):
            return node
        return self.tree.add(node, "user", "template", ids[shared:], new_root=True).id

    def enter(self, node: int, messages: Sequence[Message], branches: Sequence[int] = ()) -> None:
        """Stand at the beginning of a later turn of this conversation, which is in the tree: it
        opens behind `node`, and `messages` are all that was said before. `branches` are the leaves
        that rewritten history left behind. Raises ChatError where the template refuses."""
        self._require_begun()
        self.ids = self.tree.ids(node)
        self.messages, self.branches = list(messages), tuple(branches)
        self._text = (-1, "")
        self._start_turn(node, self.chat.opening(messages, self.tools).shown)

    def _start_turn(self, node: int, shown: str) -> None:
        self.node = self._turn_node = node
        self.turn_start, self._shown = len(self.ids), shown

    async def sample(
        self,
        stop: Sequence[str] | None = None,
        max_tokens: int | None = None,
        *,
        frozen: bool = False,
        **changes: Any,
    ) -> Sampled:
        """Sample until the end of the turn, a stop string or a limit, and append what came.

        `stop`, `max_tokens` and `changes` replace fields of `params` for this call. The end token
        becomes a node of its own, so that a rewind to `Sampled.body` takes it away. Where the
        context is full, nothing is sampled (`finish_reason` is `length`). What a `frozen` speaker
        says (an agent beside the one in training) is `environment`: context, without loss. Raises
        EngineError, and TreeError if the turn has ended.
        """
        self._require_open()
        limit = self.params.max_tokens if max_tokens is None else max_tokens
        limit = min(limit, self.policy.max_context - len(self.ids))
        if limit <= 0:
            return Sampled("", self.node, self.node, Completion((), (), "length"))
        stops = self.params.stop if stop is None else tuple(stop)
        seed = derive_seed(self.seed, self._calls)
        own = {"max_tokens": limit, "stop": stops, "seed": seed, **changes}
        self._calls += 1
        return self.take(await self._asked(replace(self.params, **own)), frozen=frozen)

    def take(self, completion: Completion, *, frozen: bool = False) -> Sampled:
        """Append what the policy said to the ids so far, where it was asked in another way than by
        `sample` (as one of its likeliest tokens). Raises TreeError if the turn has ended."""
        self._require_open()
        ids = completion.token_ids
        self.sampled_tokens += len(ids) if completion.tokens is None else completion.tokens
        n = len(self.chat.without_end(ids))
        text, first = self.chat.decode(ids[:n]), self.node == self._turn_node
        body = self._append_sampled(completion, 0, n, frozen)
        last = self._append_sampled(completion, n, len(ids), frozen)
        if first:
            self._text = (last, text)
        return Sampled(text, body, last, completion)

    async def _asked(self, params: SamplingParams) -> Completion:
        """The policy's completion of the ids so far, or of the conversation if it takes that."""
        converse = getattr(self.policy, "converse", None)
        if converse is None:
            return await self.policy.sample(self.ids, params)
        turn = list(self.turn_segments())
        completion: Completion = await converse(self.messages, self.tools, turn, params)
        return completion

    def _append_sampled(self, completion: Completion, start: int, end: int, frozen: bool) -> int:
        if frozen:
            ids = completion.token_ids[start:end]
            return self._append("assistant", "environment", ids, {"frozen": True})
        if not completion.trainable:
            by: dict[str, Any] = {"by": self.policy.name}
            if completion.tokens is not None:
                by["tokens"] = 0 if start else completion.tokens
            return self._append("assistant", "hint", completion.token_ids[start:end], by)
        if end > start:
            info: dict[str, Any] = {}
            if completion.sampled_logprobs is not None:
                info["sampled_logprobs"] = list(completion.sampled_logprobs[start:end])
            self._append(
                "assistant",
                "policy",
                completion.token_ids[start:end],
                info,
                logprobs=completion.logprobs[start:end],
                policy_version=completion.policy_version,
            )
        return self.node

    def _append(
        self, role: Role, source: Source, ids: Sequence[int], info: dict[str, Any], **sampled: Any
    ) -> int:
        if ids:
            self.node = self.tree.add(self.node, role, source, ids, info=info, **sampled).id
            self.ids.extend(ids)
        return self.node

    def hint(self, text: str, **info: Any) -> int:
        """Append a hint inside the assistant's turn. Returns the node."""
        self._require_open()
        return self._append("assistant", "hint", self.chat.encode(text, trusted=True), info)

    def recall(self, ids: Sequence[int], **info: Any) -> int:
        """Append an answer that stands elsewhere in the tree, as history of another conversation.

        It was not sampled here, so its source is `environment`: no loss. Returns the node.
        """
        self._require_open()
        return self._append("assistant", "environment", ids, info)

    def insert(self, text: str, **info: Any) -> int:
        """Append environment text (a block of tool output) inside the assistant's turn.

        Text of special tokens in it is encoded as ordinary characters. Returns the node.
        """
        self._require_open()
        return self._append("tool", "environment", self.chat.encode(text), info)

    def observe(self, messages: Sequence[Message], **info: Any) -> int:
        """Close the assistant's turn, append `messages`, and open the next turn.

        Only the suffix is encoded. An end token that the policy did not sample (a limit cut it
        off) is a template node. Where the template rewrites history, the tree forks at the first
        token that differs, and the old leaf is kept in `branches`. Returns the node.
        """
        self._require_begun()
        history = [*self.messages, self.message()]
        rendered = self.ids[self._before :]
        suffix = self.chat.suffix(history, messages, rendered, self.tools, shown=self._shown)
        ids, keep = suffix.ids, self._before + suffix.keep
        if keep < len(self.ids):
            self.branches = (*self.branches, self.node)
            self.node = self.tree.fork(self.node, keep)
            self.ids = self.ids[:keep]
            info = {**info, "rewritten": True}
        elif not self._ended and ids and not self.chat.without_end(ids[:1]):
            self._append("assistant", "template", ids[:1], {})
            ids = ids[1:]
        self._append(messages[-1].role if messages else "user", "environment", ids, info)
        self.messages = [*history, *messages]
        self._start_turn(self.node, suffix.shown)
        return self.node

    @property
    def turn_tokens(self) -> int:
        """How many tokens of the turn so far the policy sampled (or who speaks in its place)."""
        return sum(map(tokens_said, self._turn()))

    def turn_text(self) -> str:
        """The assistant's turn so far as text, hints and tool output included."""
        if self._text[0] != self.node:
            ids = self.chat.without_end(self.ids[self.turn_start :])
            self._text = (self.node, self.chat.decode(ids))
        return self._text[1]

    def turn_segments(self) -> Iterator[tuple[Source, str]]:
        """The turn's runs of one source, with their texts (the end token that closes it left out).

        What another model said in the policy's place is `policy` here, and so is what it said
        itself while it was frozen. Together
        they are `turn_text`, but where a character's bytes lie in two runs.
        """
        runs: list[tuple[Source, list[int]]] = []
        for node in self._turn():
            own = "by" in node.info or "frozen" in node.info
            source: Source = "policy" if own else node.source
            if not runs or runs[-1][0] != source:
                runs.append((source, []))
            runs[-1][1].extend(node.token_ids)
        for i, (source, ids) in enumerate(runs):
            text = self.chat.decode(self.chat.without_end(ids) if i == len(runs) - 1 else ids)
            if text:
                yield source, text

    def _turn(self) -> list[Node]:
        """The turn's nodes."""
        nodes, at = [], self.tree.nodes[self.node]
        while at.id != self._turn_node and at.parent is not None:
            nodes.append(at)
            at = self.tree.nodes[at.parent]
        return nodes[::-1]

    def message(self) -> Message:
        """The assistant's turn as a message. What the environment inserted makes no tool call."""
        if all(n.source != "environment" or "frozen" in n.info for n in self._turn()):
            return self.chat.parse(self.turn_text())
        own = ("\n" if s == "environment" else text for s, text in self.turn_segments())
        return self.chat.parse(self.turn_text(), "".join(own))

    def fork(self) -> Cursor:
        """A second cursor at the same place of the same tree, with a seed of its own."""
        self._calls += 1
        other = copy(self)
        other.seed, other._calls = derive_seed(self.seed, -self._calls), 0
        other.ids, other.messages = list(self.ids), list(self.messages)
        return other

    def rewind(self, node: int, tokens: int | None = None) -> None:
        """Go back to the end of `node`, or to the first `tokens` tokens of the path to it.

        The way back stays within the current assistant turn (TreeError otherwise).
        """
        path = self.tree.path(node)
        if self._turn_node not in [n.id for n in path] or not (
            tokens is None or tokens >= self.turn_start
        ):
            raise TreeError("a rewind stays within the current turn; fork the cursor before it")
        if tokens is not None:
            path = self.tree.path(self.tree.fork(node, tokens))
        self.node = path[-1].id
        self.ids = [i for n in path for i in n.token_ids]

    def finish(
        self,
        stop_reason: StopReason,
        *,
        reward: float | None = None,
        answer: str = "",
        error: str | None = None,
        rewards: Sequence[TurnReward] = (),
        **metrics: Any,
    ) -> Attempt:
        """Record the path to here as an attempt. A rollout may record several."""
        self._require_begun()
        attempt = Attempt(
            leaf=self.node,
            stop_reason=stop_reason,
            reward=reward,
            error=error,
            answer=answer,
            rewards=list(rewards),
            branches=self.branches,
            metrics=metrics,
        )
        self.tree.attempts.append(attempt)
        return attempt

    @property
    def _ended(self) -> bool:
        """True if an end token closes the turn."""
        return len(self.ids) > self.turn_start and not self.chat.without_end(self.ids[-1:])

    def _require_begun(self) -> None:
        if self.node < 0:
            raise TreeError("begin the conversation first: cursor.begin(messages)")

    def _require_open(self) -> None:
        self._require_begun()
        if self._ended:
            raise TreeError(
                "the turn has ended: observe messages, or rewind to Sampled.body (which takes the "
                "end token away) to go on in it"
            )


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part, the same on every machine and run."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
