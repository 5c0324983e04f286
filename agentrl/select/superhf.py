"""SuperHF: fine-tune on the best of a superbatch, held to the start (arXiv 2310.16763).

One answer a prompt; the `keep` best of all are kept (16 prompts and 1 in the paper). The loss is
`sft` plus `beta` times KL(policy || start), exact over the vocabulary, at the kept answers' tokens.
The authors' early trainer has no KL term, trains on the prompt and on padding, and makes a new
optimizer for every superbatch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from agentrl.evaluate import Graded
from agentrl.select import raft
from agentrl.select.dedupe import words
from agentrl.select.rows import Selection


def select(graded: Sequence[Graded], keep: int = 1, *, seed: int = 0) -> Selection:
    """The `keep` best of a superbatch: RAFT's global ranking, with another number."""
    return raft.select(graded, ranking="global", keep=keep, seed=seed)


def similarity(texts: Sequence[str]) -> float:
    """How alike answers to different prompts are: the mean over pairs of the F1 of their words.

    From 0 to 1; 0 for fewer than two texts. Rising over the iterations means collapse. (The paper
    has METEOR, which adds stems and synonyms.)
    """
    bags = [set(words(text)) for text in texts]
    pairs = list(itertools.combinations(bags, 2))
    found = [2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0 for a, b in pairs]
    return sum(found) / len(found) if found else 0.0
