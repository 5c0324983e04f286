"""How alike two texts are, by the words that they share. Replace it where meaning should count.

Whoever takes an `Embed` takes any function from texts to rows of numbers; LeDex's own is RoBERTa:

    model = SentenceTransformer("all-roberta-large-v1")
    embed = lambda texts: model.encode(list(texts))
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Embed = Callable[[Sequence[str]], Any]
"""From texts to numbers, [texts, dimensions]; rows need no unit length."""


def words(text: str) -> list[str]:
    """Words, numbers and signs of a text, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


class TfIdf:
    """Term frequency times inverse document frequency, `log((1 + N) / (1 + n)) + 1`, over the
    words of `texts`. What they never say shares one last coordinate, so that it counts against a
    text that says it. Deterministic, and blind to synonyms and to the order of words."""

    def __init__(self, texts: Sequence[str]) -> None:
        seen = Counter(word for text in texts for word in set(words(text)))
        self.places = {word: i for i, word in enumerate(sorted(seen))}
        total = 1 + len(texts)
        self.weights = {word: math.log(total / (1 + n)) + 1 for word, n in seen.items()}
        self.unknown = math.log(total) + 1

    def __call__(self, texts: Sequence[str]) -> Any:
        """The texts' rows, [texts, words + 1]."""
        rows = np.zeros((len(texts), len(self.places) + 1))
        for row, text in zip(rows, texts, strict=True):
            strange = 0.0
            for word, count in Counter(words(text)).items():
                if word in self.places:
                    row[self.places[word]] = count * self.weights[word]
                else:
                    strange += (count * self.unknown) ** 2
            row[-1] = math.sqrt(strange)
        return rows


def mean_cosine(text: str, others: Sequence[str], embed: Embed) -> float:
    """The mean cosine of a text with each of `others`; one without any length has 0 with all.

    Raises ValueError without others.
    """
    if not others:
        raise ValueError("there is nothing to compare with")
    rows = np.asarray(embed([text, *others]), dtype=float)
    lengths = np.linalg.norm(rows, axis=1)
    cosines = rows[1:] @ rows[0] / np.maximum(lengths[1:] * lengths[0], 1e-12)
    return float(cosines.mean())
