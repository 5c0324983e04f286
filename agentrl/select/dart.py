"""DART: answer a problem until it has its quota of right answers, more where it is harder.

arXiv 2407.13690. Plain rejection sampling has most right answers for the easiest problems and none
for the hardest. Two allocations: `uniform`, as many for each; `prop2diff`, in proportion to how
often the problem is failed. Measure that on enough samples (a problem failed four times of four
is not an impossible one), and mind that a checker's false negatives look like difficulty.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from agentrl.chat import Chat
from agentrl.errors import ConfigError, unknown
from agentrl.evaluate import Graded, final, right
from agentrl.select.dedupe import comparable
from agentrl.select.rows import Selection, unusable
from agentrl.tree import Tree
from agentrl.types import Attempt

Quota = Literal["uniform", "prop2diff"]


def difficulty(graded: Sequence[Graded]) -> dict[str, float]:
    """The share of attempts at each task that were not right, by task id.

    Attempts that failed in our hands or were not scored do not count; a task without any other is
    left out.
    """
    tried, failed = Counter[str](), Counter[str]()
    for tree, attempt in graded:
        if attempt.error is None and attempt.reward is not None:
            tried[tree.task.id] += 1
            failed[tree.task.id] += not right(attempt)
    return {task: failed[task] / n for task, n in tried.items()}


def uniform(tasks: Sequence[str], k: int) -> dict[str, int]:
    """DART-Uniform: `k` right answers for each task (40 in the paper)."""
    return dict.fromkeys(tasks, _positive(k))


def prop2diff(difficulties: Mapping[str, float], k: int) -> dict[str, int]:
    """DART-Prop2Diff: `ceil(k * d / largest d)` right answers, at least 1 (k: 192 in the paper).

    The hardest task gets `k`. (Dividing by the sum would make quotas depend on how many tasks
    there are.)
    """
    top = max(difficulties.values(), default=0.0)
    share = {task: d / top if top > 0 else 0.0 for task, d in difficulties.items()}
    # rounding: 0.3 / 0.1 must not become one more than 3
    return {task: max(1, math.ceil(_positive(k) * s - 1e-9)) for task, s in share.items()}


def quotas(
    difficulties: Mapping[str, float], quota: Quota = "prop2diff", k: int = 4
) -> dict[str, int]:
    """The allocation called `quota`. Raises ConfigError for another name."""
    if quota not in ("uniform", "prop2diff"):
        raise unknown("quota", quota, ("uniform", "prop2diff"))
    return uniform(list(difficulties), k) if quota == "uniform" else prop2diff(difficulties, k)


def matched(difficulties: Mapping[str, float], rows: int) -> int:
    """The largest `k` for which `prop2diff` asks for no more than `rows` answers in all (at least
    1): so that two allocations can be compared at equal size."""
    k = 1
    while k < rows and sum(prop2diff(difficulties, k + 1).values()) <= rows:
        k += 1
    return k


def _positive(k: int) -> int:
    if k < 1:
        raise ConfigError(f"a quota is at least 1, not {k}")
    return k


def finished(trials: int, corrects: int, max_trials: int = 2048, min_corrects: int = 0) -> bool:
    """The authors' stop rule; a limit that is not positive is none."""
    return (0 < max_trials <= trials) or (0 < min_corrects <= corrects)


def until(quota: Mapping[str, int], chat: Chat) -> Callable[[Tree], bool]:
    """For `collect(..., enough=...)`: True when a tree fills its task's quota.

    Right answers count once each: one that only repeats an earlier text is no further answer.
    """
    found: dict[str, set[str]] = {task: set() for task in quota}

    def enough(tree: Tree) -> bool:
        texts = found[tree.task.id]
        texts.update(comparable(t, a, chat) for t, a in final([tree]) if _counts(a))
        return finished(0, len(texts), 0, quota[tree.task.id])

    return enough


def select(graded: Sequence[Graded], quota: Mapping[str, int], chat: Chat) -> Selection:
    """The first right answers to each task, as many as its quota, all different."""
    result = Selection()
    found: dict[str, set[str]] = {task: set() for task in quota}
    for tree, attempt in graded:
        texts, text = found[tree.task.id], comparable(tree, attempt, chat)
        reason = unusable(attempt) or (None if right(attempt) else "wrong")
        if reason is None and text in texts:
            reason = "duplicate"
        elif reason is None and len(texts) >= quota[tree.task.id]:
            reason = "over the quota"
        if reason is None:
            texts.add(text)
            result.kept.append((tree, attempt))
        else:
            result.dropped[reason] += 1
    return result


def _counts(attempt: Attempt) -> bool:
    return unusable(attempt) is None and right(attempt)
