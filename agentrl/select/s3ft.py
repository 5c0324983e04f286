"""S3FT: train on the model's own right answer, else its paraphrase of the gold one, else on that.

Selective self-to-supervised fine-tuning, arXiv 2502.08130: what is close to the model's own words
changes least of what it can do already. The environment is the judge; what was cut off, not scored
or failed in our hands is not right, so it falls through to gold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from agentrl.chat import Chat
from agentrl.evaluate import Graded, right
from agentrl.select.rows import path_sample, unusable
from agentrl.types import Message, Sample, Task

PARAPHRASE = """Here is a problem with its solution. Write the solution again in your own words. \
Keep every step and the final answer.

Problem:
{problem}

Solution:
{solution}"""


def paraphrase_task(task: Task, solution: str) -> Task:
    """The task of writing a right answer to `task` again; it is graded like the task itself."""
    *before, last = task.prompt
    text = PARAPHRASE.format(problem=last.content, solution=solution)
    return replace(task, prompt=(*before, Message(last.role, text)))


def accepted(graded: Sequence[Graded]) -> dict[str, Graded]:
    """The first right answer to each task."""
    found: dict[str, Graded] = {}
    for tree, attempt in graded:
        if unusable(attempt) is None and right(attempt):
            found.setdefault(tree.task.id, (tree, attempt))
    return found


def targets(
    tasks: Mapping[str, Task],
    own: Sequence[Graded],
    paraphrases: Sequence[Graded],
    gold: Sequence[Graded],
    chat: Chat,
) -> tuple[list[Sample], Counter[str]]:
    """A row for each of `tasks` (by id) that has a right answer, and how many came from where.

    Watch the share of `own`: alone it would teach nothing new. `meta["origin"]` says it of a row.
    """
    sources = {"own": accepted(own), "paraphrase": accepted(paraphrases), "gold": accepted(gold)}
    made: list[Sample] = []
    counts: Counter[str] = Counter()
    for id, task in tasks.items():
        origin = next((name for name, found in sources.items() if id in found), None)
        counts[origin or "no right answer"] += 1
        if origin is None:
            continue
        tree, attempt = sources[origin][id]
        row = path_sample(tree, attempt)
        if origin == "paraphrase":  # it is trained on as an answer to the problem alone
            row = _under(chat.prompt(task.prompt), row, len(tree.path(attempt.leaf)[0].token_ids))
        made.append(replace(row, meta={**row.meta, "origin": origin}))
    return made, counts


def _under(prompt_ids: Sequence[int], row: Sample, prompt: int) -> Sample:
    """The row with its first `prompt` tokens replaced by another prompt."""
    ids = [*prompt_ids, *row.token_ids[prompt:]]
    return replace(row, token_ids=ids, weights=[0.0] * len(prompt_ids) + [*row.weights[prompt:]])
