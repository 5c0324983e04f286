"""Conversations that an agent leads by itself, in one token tree.

An agent in any framework sends whole histories, one a turn, and gets messages back. Here each
history becomes a place in the tree:

- one that goes on from a reply given before continues at that reply's tokens, as they were sampled;
- one that was asked before is asked again from the same place;
- anything else begins a conversation of its own, which shares the longest beginning that its tokens
  have with those in the tree (or none: then it has a root of its own).

What an agent shows of its history is compared as messages, so that tokens never pass through text.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from agentrl.toolcalls import first_call, said_with_calls
from agentrl.tree import Cursor, derive_seed
from agentrl.types import Attempt, Message, StopReason, ToolSpec

Finish = Literal["stop", "tool_calls", "length", "context"]


@dataclass(frozen=True, slots=True)
class Said:
    """A reply. `message` is what the agent is shown: its content ends where its calls begin, and
    their ids are unique in the tree. `finish` says why it ended: `length` is a token limit,
    `context` a context that was full before it began (then nothing was sampled)."""

    message: Message
    cursor: Cursor
    finish: Finish
    prompt_tokens: int
    sampled_tokens: int
    trained: bool = True

    @property
    def node(self) -> int:
        """The reply's last node."""
        return self.cursor.node


class Conversations:
    """The conversations of one attempt. `start` is a cursor whose conversation has not begun.

    `max_tokens` limits what is sampled in all of them together. `said` are the replies in order.
    """

    def __init__(self, start: Cursor, max_tokens: int | None = None) -> None:
        self.start, self.max_tokens = start, max_tokens
        self.said: list[Said] = []
        self.sampled_tokens = 0
        self._after: dict[str, Said] = {}  # by the history that ends with it
        self._asked: dict[str, Cursor] = {}  # open turns, by the history before them
        self._whole: dict[str, Message] = {}  # replies as they were sampled, by what was shown
        self._call_ids: dict[str, str] = {}  # from those shown to those sampled
        self._turns: Counter[str] = Counter()

    async def reply(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        *,
        agent: str = "",
        trained: bool = True,
        max_tokens: int | None = None,
        stop: Sequence[str] | None = None,
        **changes: Any,
    ) -> Said:
        """The policy's next message after `messages`.

        `agent` is written down with the tokens. What is not `trained` is context, without loss.
        `max_tokens`, `stop` and `changes` replace fields of the sampling parameters. Raises
        EngineError; ChatError where the template refuses the messages or shows no tools.
        """
        history = _histories(messages, tools)
        cursor = self._open(messages, tools, history).fork()
        place = history[-1]
        cursor.seed = derive_seed(self.start.seed, place, self._turns[place])
        self._turns[place] += 1
        if self.max_tokens is not None:
            most = cursor.params.max_tokens if max_tokens is None else max_tokens
            max_tokens = max(0, min(most, self.max_tokens - self.sampled_tokens))
        before, opened = len(cursor.ids), cursor.node
        sampled = await cursor.sample(stop, max_tokens, frozen=not trained, **changes)
        for node in {sampled.body, sampled.node} - {opened} if agent else ():
            cursor.tree.nodes[node].info["agent"] = agent
        completion = sampled.completion
        took = len(completion.token_ids) if completion.tokens is None else completion.tokens
        self.sampled_tokens += took
        cut = completion.finish_reason == "length"
        whole = Message("assistant", sampled.text) if cut else cursor.message()
        finish: Finish = "tool_calls" if whole.tool_calls else "stop"
        if cut:  # what was to be a call does not run
            finish = "length" if completion.token_ids or max_tokens == 0 else "context"
        shown = self._shown(whole, cursor.node)
        if sampled.stop is not None:  # its tokens are kept, and nobody is shown them
            shown = replace(shown, content=shown.content.partition(sampled.stop)[0])
        said = Said(shown, cursor, finish, before, took, trained)
        self.said.append(said)
        self._after[_grown(place, shown)] = said
        self._whole[_key(shown)] = whole
        return said

    def _open(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], history: Sequence[str]
    ) -> Cursor:
        """The place after `messages`, where a turn is open."""
        if history[-1] in self._asked:
            return self._asked[history[-1]]
        known = (n for n in range(len(messages), 0, -1) if history[n] in self._after)
        n = next(known, 0)
        new = [self._recalled(m) for m in messages[n:]]
        if n:
            cursor = self._after[history[n]].cursor.fork()
            cursor.branches = ()
            cursor.observe(new)
        else:
            cursor = self.start.fork()
            cursor.begin(new, tools, beside=True)
        self._asked[history[-1]] = cursor
        return cursor

    def _recalled(self, message: Message) -> Message:
        """A message as it goes into the tree: our own replies as they were sampled, calls that
        others made as text, answers with the ids that the policy knows."""
        if message.role == "assistant":
            whole = self._whole.get(_key(message))
            return whole if whole is not None else _with_calls(message)
        return replace(
            message, tool_call_id=self._call_ids.get(message.tool_call_id, message.tool_call_id)
        )

    def _shown(self, whole: Message, node: int) -> Message:
        if not whole.tool_calls:
            return whole
        calls = []
        for i, call in enumerate(whole.tool_calls):
            shown_id = f"{node}-{i}-{call.id}"  # two replies may use the same
            self._call_ids[shown_id] = call.id
            calls.append(replace(call, id=shown_id))
        return replace(
            whole,
            content=whole.content[: first_call(whole.content)].strip(),
            tool_calls=tuple(calls),
        )

    def last(self, final: Message | None = None) -> Said | None:
        """The reply that the attempt ends with: the newest that was shown as `final`, else the
        newest one in training, else the newest."""
        wanted = None if final is None else _key(final)
        for said in reversed(self.said):
            if wanted is not None and _key(said.message) == wanted:
                return said
        own = [s for s in self.said if s.trained] or self.said
        return own[-1] if own else None

    def finish(
        self,
        end: Said,
        stop_reason: StopReason,
        *,
        reward: float | None = None,
        answer: str = "",
        **more: Any,
    ) -> Attempt:
        """Record all conversations as one attempt, which ends with the reply `end`.

        The other paths on which the policy in training spoke are its `branches`.
        """
        tree, leaf = self.start.tree, end.node
        path = {n.id for n in tree.path(leaf)}
        ends = dict.fromkeys(s.node for s in self.said if s.trained and s.node not in path)
        inner = {n.id for node in ends for n in tree.path(node)[:-1]}
        end.cursor.branches = tuple(node for node in ends if node not in inner)
        return end.cursor.finish(
            stop_reason,
            reward=reward,
            answer=answer,
            replies=len(self.said),
            calls=sum(len(s.message.tool_calls) for s in self.said),
            sampled_tokens=self.sampled_tokens,
            **more,
        )


def cut_reason(said: Said) -> StopReason | None:
    """The stop reason of an attempt that ends with a reply that was cut off; None if it was not."""
    cut: Mapping[str, StopReason] = {"length": "max_tokens", "context": "context_full"}
    return cut.get(said.finish)


def _with_calls(message: Message) -> Message:
    """An assistant's message from elsewhere, its calls written as most templates write them."""
    return replace(message, content=said_with_calls(message.content, message.tool_calls))


def _histories(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[str]:
    """A digest of the tools and the first n messages, for every n from 0."""
    digests = [_digest([tool.to_json() for tool in tools])]
    for message in messages:
        digests.append(_grown(digests[-1], message))
    return digests


def _grown(history: str, message: Message) -> str:
    return _digest([history, _key(message)])


def _key(message: Message) -> str:
    """What makes two messages the same. White space around them does not, nor the name that an
    agent gives to itself."""
    name = "" if message.role == "assistant" else message.name
    calls = [[call.name, _whole(dict(call.arguments)), call.id] for call in message.tool_calls]
    said = [message.role, message.content.strip(), calls, message.tool_call_id, name]
    return json.dumps(said, sort_keys=True, ensure_ascii=False)


def _whole(data: Any) -> Any:
    """JSON with 1.0 as 1, as JavaScript writes it."""
    if isinstance(data, dict):
        return {key: _whole(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_whole(value) for value in data]
    return int(data) if isinstance(data, float) and data.is_integer() else data


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
