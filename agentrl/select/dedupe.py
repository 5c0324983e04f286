"""What a data set holds twice, and what of it the test knows.

`distinct` finds texts that are the same but for white space, or nearly the same by the words in
them; `contaminated` and `clean` find a run of words that a test problem has too.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from agentrl.chat import Chat
from agentrl.tree import Tree
from agentrl.types import Attempt, Task

NGRAM = 13
"""Words in a row that a training problem may not share with a test problem (START, section 6)."""
NEAR = 0.9
"""Share of common 5-grams of words above which two texts are duplicates."""
SHINGLE = 5


def prompt_text(task: Task) -> str:
    """What the user says in a task."""
    return " ".join(m.content for m in task.prompt if m.role == "user")


def words(text: str) -> list[str]:
    """The words, numbers and signs of arithmetic in a text, in lower case."""
    return re.findall(r"\w+|[-+*/^%=<>]", text.lower())


def clean(train: Sequence[Task], test: Sequence[Task], n: int = NGRAM) -> tuple[list[Task], int]:
    """The training tasks that share no `n` words in a row with a test task, and how many did.

    A problem shorter than `n` words is compared as a whole.
    """
    marked = contaminated([prompt_text(t) for t in train], [prompt_text(t) for t in test], n)
    kept = [task for task, known in zip(train, marked, strict=True) if not known]
    return kept, len(train) - len(kept)


def contaminated(texts: Iterable[str], test: Iterable[str], n: int = NGRAM) -> list[bool]:
    """For each of `texts` (problems, or what a model wrote) whether it shares `n` words in a row
    with a test text. Shorter texts are compared as a whole."""
    known: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    for found in map(words, test):
        size = min(n, len(found))
        known[size] |= _grams(found, size)
    known.pop(0, None)
    whole = {gram for size, grams in known.items() if size < n for gram in grams}
    marked = []
    for found in map(words, texts):
        own = tuple(found)
        marked.append(own in whole or bool(known[n] & _grams(found, n)))
    return marked


def _grams(found: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def folded(text: str) -> str:
    """A text that is equal for two that differ in white space alone."""
    return " ".join(text.split())


def comparable(tree: Tree, attempt: Attempt, chat: Chat) -> str:
    """A trajectory's text without its hints and with white space folded: equal for duplicates."""
    parts = [chat.decode(n.token_ids) for n in tree.path(attempt.leaf) if n.source != "hint"]
    return folded("".join(parts))


def near_duplicate(a: str, b: str) -> bool:
    """True for equal texts, or for those that share over 90 % of their 5-grams of words."""
    return a == b or _near(_shingles(a), _shingles(b))


def distinct(texts: Sequence[str]) -> list[int]:
    """The indices of texts that are no near duplicate of an earlier one that was kept.

    Exact, and not every pair is compared: of two sets whose common share is above 90 %, the
    rarest tenth of one holds a member of the rarest tenth of the other (prefix filtering,
    Bayardo, Ma and Srikant, 2007).
    """
    sets = [_shingles(text) for text in texts]
    counts = Counter(gram for grams in sets for gram in grams)
    holding: dict[tuple[str, ...], list[int]] = defaultdict(list)
    kept: list[int] = []
    seen: set[str] = set()
    for i, grams in enumerate(sets):
        rarest = sorted(grams, key=lambda gram: (counts[gram], gram))
        rarest = rarest[: len(grams) - math.ceil(NEAR * len(grams)) + 1]
        text = folded(texts[i])
        if text in seen or any(_near(grams, sets[j]) for g in rarest for j in holding[g]):
            continue
        seen.add(text)
        kept.append(i)
        for gram in rarest:
            holding[gram].append(i)
    return kept


def _near(one: set[tuple[str, ...]], two: set[tuple[str, ...]]) -> bool:
    return bool(one and two) and len(one & two) / len(one | two) > NEAR


def _shingles(text: str) -> set[tuple[str, ...]]:
    return _grams(text.split(), SHINGLE)
