"""LeTI's rows: verdict, feedback, prompt, program, with loss on every token.

arXiv 2305.10314, and its authors' code. A row reads `<|good|>` prompt program, or `<|bad|>`
`<|lang_feedback|>` text `<|/lang_feedback|>` prompt program, with nothing between: the model learns
p(program | verdict, error, task), and what failed is no repair dialogue. The loss is on all tokens,
the feedback's and the prompt's, too: masking them is another method. The text of a failing test
may show what the test expects; at inference there is no feedback, so nothing leaks there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from agentrl.chat import Chat
from agentrl.errors import DataError
from agentrl.evaluate import Graded, right
from agentrl.interfaces import Tokenizer
from agentrl.rollouts.leti import LetiTokens
from agentrl.select.rows import path_sample
from agentrl.types import Attempt, Sample

MAX_FEEDBACK = 512
"""Tokens of a row's feedback, unless told otherwise; the paper's code has no limit."""
LEFT_OUT = "\n...\n"


@dataclass(slots=True)
class LetiRows:
    """The rows, and why there is none of other attempts (`dropped` counts reasons)."""

    samples: list[Sample] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def good(self) -> int:
        """How many rows have the good verdict."""
        return sum(bool(s.meta["good"]) for s in self.samples)


def rows(
    graded: Iterable[Graded],
    chat: Chat,
    *,
    coarse_only: bool = False,
    max_feedback: int = MAX_FEEDBACK,
) -> LetiRows:
    """A row for each attempt that the environment scored, right or wrong; none is balanced away.

    What failed in our hands, was not scored or ran out of memory says nothing about the program
    and makes no row (the paper's optional filter, always on). `coarse_only` leaves feedback and its
    marks out and keeps the verdict (the paper's ablation). Raises DataError for a wrong program
    without feedback, and for a path that is not a prompt and what the policy wrote.
    """
    made, tokens = LetiRows(), LetiTokens.of(chat.tokenizer)
    for tree, attempt in graded:
        reason = reject(attempt)
        if reason is not None:
            made.dropped[reason] += 1
            continue
        root, *rest = tree.path(attempt.leaf)
        if root.source != "template" or any(n.source != "policy" for n in rest):
            raise DataError(
                f"task {tree.task.id!r}: a LeTI row is one prompt and one program; collect with "
                "the rollout leti"
            )
        good, text = right(attempt), str(attempt.metrics.get("feedback", ""))
        if not (good or text or coarse_only):
            raise DataError(
                f"task {tree.task.id!r}: a wrong program without feedback. The environment must "
                "give Step.info['feedback'], or train with coarse_only=True"
            )
        sample = row(
            root.token_ids[root.info.get("before", 0) :],
            [i for node in rest for i in node.token_ids],
            tokens,
            good=good,
            feedback_ids=[] if coarse_only else capped(text, chat.tokenizer, max_feedback),
        )
        sample.meta = path_sample(tree, attempt).meta | sample.meta
        made.samples.append(sample)
    return made


def reject(attempt: Attempt) -> str | None:
    """Why an attempt says nothing about its program, or None."""
    if attempt.error is not None:
        return "failed in our hands"
    if attempt.reward is None:
        return "not scored"
    return "out of memory" if attempt.metrics.get("status") == "oom" else None


def row(
    prompt_ids: Sequence[int],
    program_ids: Sequence[int],
    tokens: LetiTokens,
    *,
    good: bool,
    feedback_ids: Sequence[int] = (),
) -> Sample:
    """One row. A right program has no feedback, whatever is passed.

    Without any feedback its marks are left out, too. The first token, never predicted, has weight
    0: the authors' code counts it in the loss's denominator, here it is counted nowhere.
    """
    verdict = [tokens.good if good else tokens.bad]
    if feedback_ids and not good:
        verdict += [tokens.feedback_start, *feedback_ids, tokens.feedback_end]
    ids = [*verdict, *prompt_ids, *program_ids]
    return Sample(ids, [0.0] + [1.0] * (len(ids) - 1), meta={"good": good})


def capped(text: str, tokenizer: Tokenizer, limit: int) -> list[int]:
    """The ids of a feedback, at most `limit`: its head and its tail with a mark between.

    The text of a special token in it stays text: a traceback cannot forge a verdict.
    """
    ids, mark = tokenizer.encode(text, special=False), tokenizer.encode(LEFT_OUT, special=False)
    if len(ids) <= limit:
        return ids
    room = max(0, limit - len(mark))
    head = room - room // 2
    return [*ids[:head], *mark, *ids[len(ids) - room // 2 :]][:limit]


def packed(documents: Iterable[Sequence[int]], length: int, end: int) -> Iterator[Sample]:
    """Pre-training text as rows of `length` tokens: documents one after the other, each closed by
    the token `end`, cut where a row is full. The rest that fills no row is left out."""
    waiting: list[int] = []
    for document in documents:
        waiting += [*document, end]
        while len(waiting) >= length:
            ids, waiting = waiting[:length], waiting[length:]
            yield Sample(ids, [0.0] + [1.0] * (length - 1), meta={"kind": "regulariser"})
