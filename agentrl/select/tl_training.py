"""TL-Training (arXiv 2412.15495): what of a conversation with tools is trained on, and how much.

MAE leaves out the turns whose call failed, which stay as context of what follows. PKT weighs the
tokens that decide which tool is called. (The third part, the graded reward, is the environment's:
`envs.functions.rewards`.)
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from agentrl.callsyntax import Written
from agentrl.chat import Chat
from agentrl.record import Tree
from agentrl.select.rows import TRAINABLE
from agentrl.select.weights import key_positions, key_weights
from agentrl.toolcalls import written_calls
from agentrl.types import Attempt, Node, Sample

PATTERNS = (
    "isnotdefined",
    "unexpectedkeywordargument",
    "requiredpositionalargument",
    "missingrequiredargument",
    "positionalargumentbut",
    "multiplevaluesforargument",
    "connectionerror",
    "connectionrefused",
    "connectiontimedout",
    "400clienterror",
    "401clienterror",
    "404clienterror",
    "500servererror",
    "invalidapicall",
)
"""What failed calls say, in small letters and digits alone. The authors' code has 14 patterns too,
for the same failures; none of these is a plain `error`, which stands in "no error found" as well.
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant's turn: tokens `start` to the end of `ids`, after the whole history.

    `role` and `status` are those of what came next, `text` what it said (None: nothing came).
    """

    ids: tuple[int, ...]
    start: int
    role: str | None = None
    status: str | None = None
    text: str = ""


@dataclass(slots=True)
class Chosen:
    """Rows for SFT, and how many turns were left out for which reason."""

    rows: list[Sample] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def select(
    graded: Sequence[tuple[Tree, Attempt]],
    chat: Chat,
    *,
    mae: bool = True,
    pkt: bool = True,
    patterns: bool = False,
    replies: bool = False,
    cap: float = 9.0,
) -> Chosen:
    """A row for each assistant turn, with the whole history as context.

    With `mae`, turns whose call failed are no rows: by the status of the tool's answer, or, where
    there is none and with `patterns`, by what it says (data from elsewhere). As in the authors'
    code a turn that something else than a tool's answer follows is left out too, unless `replies`.
    With `pkt`, key tokens are weighted, at most by `cap`; the tools are those in the task's
    `data["functions"]`. Attempts that failed in our hands give no rows, nor does a turn that a
    token limit cut off.
    """
    made = Chosen()
    for tree, attempt in graded:
        if attempt.error is not None:
            made.dropped["failed in our hands"] += 1
            continue
        tools = [f["name"] for f in tree.task.data.get("functions", ())]
        for number, turn in enumerate(turns(tree, attempt, chat)):
            reason = reject(turn, patterns=patterns, replies=replies) if mae else None
            if attempt.truncated and turn.role is None:
                reason = "cut off"
            if reason is not None:
                made.dropped[reason] += 1
                continue
            row = _row(tree, attempt, turn, number)
            made.rows.append(key_weighted(row, turn.start, tools, chat, cap) if pkt else row)
    return made


def turns(tree: Tree, attempt: Attempt, chat: Chat) -> list[Turn]:
    """The attempt's turns in order, each with what came next.

    A turn that the chat template rewrote later stands here as it was said.
    """
    found: list[Turn] = []
    for ids, start, shown in _events(tree, attempt):
        if shown is None:
            found.append(Turn(tuple(ids), start))
        elif found and found[-1].role is None:
            last, text = found[-1], chat.decode(shown.token_ids)
            found[-1] = Turn(last.ids, last.start, shown.role, shown.info.get("status"), text)
    return found


def _events(tree: Tree, attempt: Attempt) -> Iterator[tuple[list[int], int, Node | None]]:
    """What was said (the path up to its end, and where it starts) and what was shown (the node), in
    order, each once."""
    seen: set[int] = set()
    for leaf in (*attempt.branches, attempt.leaf):
        ids: list[int] = []
        start: int | None = None
        for node in tree.path(leaf):
            original = node.info.get("copy_of", node.id)
            said = node.source in TRAINABLE and original not in seen
            if start is not None and not said:
                yield ids[:], start, None
                start = None
            if node.source == "environment" and original not in seen:
                yield [], 0, node
            if said and start is None:
                start = len(ids)
            seen.add(original)
            ids.extend(node.token_ids)
        if start is not None:
            yield ids, start, None


def reject(turn: Turn, *, patterns: bool = False, replies: bool = False) -> str | None:
    """Why a turn is not trained on, or None."""
    if turn.role is None:
        return None
    if turn.role != "tool":
        return None if replies else "no tool answered"
    if turn.status is not None:
        return None if turn.status == "ok" else "its call failed"
    return "its call failed" if patterns and says_error(turn.text) else None


def says_error(text: str) -> bool:
    """True if a tool's answer reads like an error: one of `PATTERNS`, or an object whose `error` is
    something. A guess, for data without a status; a status is better."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    if any(pattern in plain for pattern in PATTERNS):
        return True
    found = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        value = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value.get("error"))


def _row(tree: Tree, attempt: Attempt, turn: Turn, number: int) -> Sample:
    weights = [float(t >= turn.start) for t in range(len(turn.ids))]
    meta: dict[str, Any] = {
        "task": tree.task.id,
        "kind": tree.task.kind,
        "attempt": tree.meta.get("attempt", 0),
        "tokenizer": tree.meta.get("tokenizer"),
        "turn": number,
    }
    return Sample(list(turn.ids), weights, meta=meta)


def key_weighted(
    row: Sample, start: int, tools: Sequence[str], chat: Chat, cap: float = 9.0
) -> Sample:
    """The row with the key tokens of its turn's calls weighted (`weights.key_weights`).

    Keys are the first token of each call's name (in the paper's notation that of the answer), and
    for each other tool the first token at which its name would have been another one. A turn
    without a call keeps its weights.
    """
    text = chat.decode(row.token_ids[start:])
    calls = written_calls(text)
    if not calls:
        return row
    keys: set[int] = set()
    ends: set[int] = set()
    for call in calls:
        keys |= _keys(row, start, text, call, [t for t in tools if t != call.name], chat)
        ends |= {_token_at(row, start, end - 1, chat) for end in call.ends}
    return key_weights(row, keys, ends - keys, cap)


def _token_at(row: Sample, start: int, character: int, chat: Chat) -> int:
    """The token of the row that holds a character of the turn's text."""
    n = len(row.token_ids) - start
    lengths = range(1, n + 1)
    at = bisect_right(
        lengths, character, key=lambda k: len(chat.decode(row.token_ids[start : start + k]))
    )
    return start + min(at, n - 1)


def _keys(
    row: Sample, start: int, text: str, call: Written, others: Sequence[str], chat: Chat
) -> set[int]:
    """The positions of a call's key tokens, in a turn that says `text`.

    The other names are encoded in the place of this one, and compared with the tokens that stand
    there. Where these are not the tokenizer's own way to write the text, the tokens that hold the
    first character that differs are taken instead.
    """
    name, at = call.name, call.start
    first = _token_at(row, start, at, chat)
    head = text[len(chat.decode(row.token_ids[start:first])) : at]
    tail = text[at + len(name) :][:8]
    own = chat.encode(head + name + tail, trusted=True)
    whole = len(chat.encode(head + name, trusted=True))
    if list(row.token_ids[first : first + whole]) == own[:whole]:
        swapped = [chat.encode(head + other + tail, trusted=True) for other in others]
        return {first + k for k in key_positions(own, swapped, len(row.token_ids) - first)}
    shared = {_shared(name, other) for other in others} - {0}
    return {first, *(_token_at(row, start, at + n, chat) for n in shared)}


def _shared(a: str, b: str) -> int:
    """How many characters two names begin with alike."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return sum(1 for _ in alike)
