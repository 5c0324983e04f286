"""Another policy speaks: a teacher's answer in the student's conversation, in the student's tokens.

What a teacher says was not sampled by the policy that is trained. It stands in the tree as a
`hint` (`info["by"]` names the teacher), so that SFT may imitate it, credit and policy gradients
never reach it, and what the student later reads are the very ids that it is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentrl.chat import Chat
from agentrl.interfaces import Converses, Policy
from agentrl.tree import Cursor
from agentrl.types import Completion, SamplingParams


def taught(cursor: Cursor, teacher: Policy) -> Cursor:
    """A fork of `cursor` at which `teacher` samples.

    A teacher with the student's tokenizer reads and writes the tree's own ids. Any other is shown
    the conversation through its own chat template, and its text is encoded for the student.
    """
    other = cursor.fork()
    other.policy = _Voice(teacher, other)
    return other


class _Voice:
    """`teacher` as a policy of the student's tokens, at the place of `cursor`."""

    def __init__(self, teacher: Policy, cursor: Cursor) -> None:
        self.teacher, self.cursor = teacher, cursor
        self.name, self.version = teacher.name, teacher.version
        self.tokenizer = cursor.chat.tokenizer
        converses = isinstance(teacher, Converses)  # its ids are of no use to it
        self.same = not converses and _fingerprint(teacher) == _fingerprint(cursor.policy)
        self.max_context = teacher.max_context if self.same else cursor.policy.max_context

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """The teacher's completion. Where its context is full, nothing (`length`)."""
        if self.same:
            made = await self.teacher.sample(prompt_ids, params)
            return replace(made, logprobs=(), sampled_logprobs=None, trainable=False)
        own, student = Chat(self.teacher.tokenizer), self.cursor.chat
        made = await self._told(own, params)
        ids = student.encode(own.decode(own.without_end(made.token_ids)))
        cut = len(ids) > params.max_tokens
        ids = ids[: params.max_tokens]
        if made.finish_reason == "eos" and not cut:
            ids += student.encode(student.end_text, trusted=True)
        return Completion(
            tuple(ids),
            (),
            "length" if cut else made.finish_reason,
            made.policy_version,
            None if cut else made.stop,
            trainable=False,
        )

    async def _told(self, own: Chat, params: SamplingParams) -> Completion:
        """What the teacher says to the conversation, in its own tokens."""
        cursor = self.cursor
        if isinstance(self.teacher, Converses):
            turn = list(cursor.turn_segments())
            return await self.teacher.converse(cursor.messages, cursor.tools, turn, params)
        shown = own.prompt(cursor.messages, cursor.tools) + own.encode(cursor.turn_text())
        limit = min(params.max_tokens, self.teacher.max_context - len(shown))
        if limit <= 0:
            return Completion((), (), "length", trainable=False)
        return await self.teacher.sample(shown, replace(params, max_tokens=limit))

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """See `agentrl.interfaces.Policy.score`; a teacher of another tokenizer has no answer."""
        if not self.same:
            raise ValueError(f"{self.name} has another tokenizer and cannot score these tokens")
        return await self.teacher.score(token_ids)

    async def update(self, weights: Mapping[str, Any]) -> None:
        """A teacher is not trained here."""
        raise ValueError(f"{self.name} is a teacher; update the policy that learns")

    async def close(self) -> None:
        """The teacher stays open: it is its owner's."""


def _fingerprint(policy: Policy) -> Any:
    """What says that two tokenizers are the same one: their fingerprint, or that they are."""
    return getattr(policy.tokenizer, "fingerprint", None) or id(policy.tokenizer)
