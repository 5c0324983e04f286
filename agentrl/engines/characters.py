"""A tokenizer of characters for tiny models: short prompts, nothing to download.

Each printable ASCII character and the newline is one token, each role's mark is one, and so is the
end of a message; `<|user|>2+2<|end|><|assistant|>4<|end|>` has nine. With bytes and ChatML it would
have forty, and a model of 0.1 million parameters learns on a laptop's CPU in seconds because its
sequences are short.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from agentrl.toolcalls import first_call
from agentrl.types import Message, ToolSpec

CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
UNKNOWN = "\ufffd"
ROLES = ("system", "user", "assistant", "tool")
END = "<|end|>"
OPEN, CLOSE = "<tool_call>", "</tool_call>"


class CharTokenizer:
    """Printable ASCII, a mark for each role, `<|end|>`, the tool-call tags, and `extra` specials.

    Any other character is encoded as U+FFFD, which is one more token. Tools are listed by name in
    a first message of their own; calls stand between their tags as JSON.
    """

    def __init__(self, extra: Sequence[str] = ()) -> None:
        marks = [f"<|{role}|>" for role in ROLES]
        self.specials: tuple[str, ...] = (*marks, END, OPEN, CLOSE, *extra)
        self._tokens = [*CHARACTERS, UNKNOWN, *self.specials]
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        self._split = re.compile("(" + "|".join(map(re.escape, self.specials)) + ")")
        self.vocab_size = len(self._tokens)
        self.eos_ids = frozenset({self._ids[END]})
        self.fingerprint = "characters-1" + "".join(f" {token}" for token in extra)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """See `agentrl.interfaces.Tokenizer.encode`."""
        unknown = self._ids[UNKNOWN]
        if not special:
            return [self._ids.get(c, unknown) for c in text]
        ids: list[int] = []
        for i, piece in enumerate(self._split.split(text)):
            ids += [self._ids[piece]] if i % 2 else [self._ids.get(c, unknown) for c in piece]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `agentrl.interfaces.Tokenizer.decode`."""
        return "".join([self._tokens[i] for i in ids])

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = False,
    ) -> str:
        """The conversation; see the class."""
        parts = [f"<|tool|>{','.join(t.name for t in tools)}{END}"] if tools else []
        for message in messages:
            calls = [
                OPEN + json.dumps({"name": c.name, "arguments": dict(c.arguments)}) + CLOSE
                for c in message.tool_calls
                if first_call(message.content) == len(message.content)
            ]
            parts.append(f"<|{message.role}|>{message.content}{''.join(calls)}{END}")
        return "".join(parts) + ("<|assistant|>" if add_generation_prompt else "")
