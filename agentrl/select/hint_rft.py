"""START's Hint-RFT: score, select, filter, modify, de-duplicate, cap.

Section 5 of the specification (arXiv 2503.04625): keep a hinted attempt if it is right and the
greedy one without a hint was wrong, so that what is learned is what the tool fixed. The RFT round
that follows keeps right attempts without that condition.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from agentrl.chat import Chat
from agentrl.evaluate import Graded, right
from agentrl.select import rows
from agentrl.select.dedupe import comparable, near_duplicate
from agentrl.tree import Tree
from agentrl.types import Attempt, Node, Sample, Source

NGRAM, REPEATS = 20, 5
"""A trajectory in which any 20-gram of tokens occurs more than 5 times is repetition."""


class Selection(rows.Selection):
    """A selection whose rows may be normalised."""

    def samples(
        self, chat: Chat, *, train_on_hints: bool = True, modify: bool = True
    ) -> list[Sample]:
        """Rows for SFT: loss on what the policy wrote, on hints by switch, never on tool output."""
        sources: set[Source] = {"policy", "hint"} if train_on_hints else {"policy"}
        paths = [modified(t, a, chat) if modify else (t, a) for t, a in self.kept]
        return [rows.path_sample(t, a, sources) for t, a in paths]


def select(
    hinted: Sequence[Graded],
    chat: Chat,
    *,
    greedy_right: Mapping[str, bool] | None = None,
    max_tokens: int | None = None,
    cap: int | None = 1,
) -> Selection:
    """Choose among graded attempts.

    `greedy_right` gives, by task id, whether the greedy attempt without a hint was right: with it
    only problems where it was wrong are kept (D_seed; one that is missing was not measured),
    without it all right attempts (the RFT round). `max_tokens` drops longer paths; `cap` limits how
    many are kept per problem.
    """
    result = Selection()
    kept_of: dict[str, list[str]] = {}
    for tree, attempt in hinted:
        reason = reject(tree, attempt, max_tokens)
        if reason is None and greedy_right is not None:
            found = greedy_right.get(tree.task.id)
            reason = {None: "greedy was not measured", True: "greedy was right"}.get(found)
        texts = kept_of.setdefault(tree.task.id, [])
        if reason is None:
            text = comparable(tree, attempt, chat)
            if any(near_duplicate(text, other) for other in texts):
                reason = "duplicate"
            elif cap is not None and len(texts) >= cap:
                reason = "over the cap"
            else:
                texts.append(text)
        if reason is None:
            result.kept.append((tree, attempt))
        else:
            result.dropped[reason] += 1
    return result


def reject(tree: Tree, attempt: Attempt, max_tokens: int | None = None) -> str | None:
    """Why an attempt may not be trained on, or None: first of our failures, truncation, a wrong
    answer, no executed block, only failing blocks, invented output, length, repetition."""
    statuses = attempt.metrics.get("statuses", [])
    path = tree.path(attempt.leaf)
    ids = [i for n in path if n.source in ("policy", "hint") for i in n.token_ids]
    if (reason := rows.unusable(attempt)) is not None:
        return reason
    checks = {
        "wrong": not right(attempt),
        "no executed call": not statuses,
        "only failing calls": bool(statuses) and "ok" not in statuses,
        "invented output": bool(attempt.metrics.get("hallucinated_output")),
        "too long": max_tokens is not None and sum(len(n.token_ids) for n in path) > max_tokens,
        "repetition": _repeats(ids),
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def _repeats(ids: Sequence[int]) -> bool:
    grams = Counter(tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1))
    return any(count > REPEATS for count in grams.values())


def modified(tree: Tree, attempt: Attempt, chat: Chat) -> Graded:
    """The attempt as it is trained on, in a tree of its own (the collected one is not touched).

    Normalised: a hint that stands in the turn already is dropped (unless it opens a block), a `py`
    or `python3` fence of the policy's is written `python`, and what follows the line of the last
    boxed answer is cut off. Only runs that change are encoded anew; they were not sampled like
    that, so their source becomes `hint` (loss by the same switch).
    """
    path = tree.path(attempt.leaf)
    texts = [chat.decode(n.token_ids) for n in path]
    ends = {n.token_ids for n in path if not chat.without_end(n.token_ids)}
    new_texts: list[str | None] = list(texts)
    seen: set[str] = set()
    for i, (node, text) in enumerate(zip(path, texts, strict=True)):
        if node.source == "hint" and "```" not in text and text.strip() in seen:
            new_texts[i] = None
        elif node.source == "policy" and node.token_ids not in ends:
            new_texts[i] = re.sub(r"```(?:py|python3)(?=[ \t]*\n)", "```python", text)
        seen.add(text.strip())
    last = max((i for i, n in enumerate(path) if n.token_ids not in ends), default=0)
    shown = new_texts[last]
    if path[last].source == "policy" and shown is not None:
        new_texts[last] = _to_last_answer(shown)
    if new_texts == texts:
        return tree, attempt
    return _rebuilt(tree, attempt, chat, list(zip(path, texts, new_texts, strict=True)))


def _to_last_answer(text: str) -> str:
    at = text.rfind("\\boxed{")
    end = text.find("\n", at) if at >= 0 else -1
    return text[:end] if end >= 0 else text


def _rebuilt(
    tree: Tree, attempt: Attempt, chat: Chat, runs: Sequence[tuple[Node, str, str | None]]
) -> Graded:
    """A tree of one path: runs without a new text left out, unchanged ones kept token for token."""
    new = Tree(tree.task, meta=dict(tree.meta))
    parent: int | None = None
    for node, old, text in runs:
        if text == old:
            ids, logprobs = node.token_ids, node.logprobs
            source, info = node.source, node.info
        elif text:
            ids, logprobs = tuple(chat.encode(text)), None
            source, info = "hint", {"modified": True}
        else:
            continue
        version = node.policy_version if source == "policy" else None
        added = new.add(
            parent, node.role, source, ids, logprobs=logprobs, policy_version=version, info=info
        )
        parent = added.id
    leaf = len(new.nodes) - 1
    copy = replace(attempt, leaf=leaf, branches=(), rewards=[])
    new.attempts.append(copy)
    return new, copy
