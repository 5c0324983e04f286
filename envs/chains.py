"""Chains of operations on digits: small arithmetic of graded difficulty, for tiny models.

`7+5*3-2` is worked out from the left, modulo 10: 7+5 is 2, 2*3 is 6, 6-2 is 4. The policy may write
down the results on the way, `2,6;4`, each after a comma or a semicolon; the last digit is the
answer. The more operations, the harder; the more steps are left out, too. One problem so has many
right texts, as one in words has. What rejection tuning lives on is here in little: problems from
easy to hard, answers right by luck or by care, demonstrations that skip what they should say.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random

from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import Sandbox
from agentrl.types import Message, Task, ToolSpec
from envs.base import QuestionEpisode
from envs.grading import Grade

SPLITS = ("train", "test")

TEST_SHARE = 4
"""One chain in this many belongs to the test, by its hash: whatever the seed."""


OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def results(chain: str, modulus: int = 10) -> list[int]:
    """The results of a chain's operations, from the left; the last is its value."""
    value, found = int(chain[0]), []
    for sign, digit in zip(chain[1::2], map(int, chain[2::2]), strict=True):
        value = OPERATIONS[sign](value, digit) % modulus
        found.append(value)
    return found


@dataclass(frozen=True)
class Chains:
    """The environment. `make("chains", ...)` takes these fields as options.

    `lengths` are numbers of operations; tasks of each take turns, and its kind is `ops3` and so on.
    `signs` are the operations there are, digits are below `modulus`.
    `skip` is the share of demonstrations that say the answer alone. `n` is the size of the split.
    """

    split: str = "train"
    seed: int = 0
    lengths: Sequence[int] = (2, 4, 6)
    signs: str = "+-*"
    modulus: int = 10
    skip: float = 0.0
    n: int = 1024
    name: str = field(default="chains", init=False)
    tools: tuple[ToolSpec, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split of chains", self.split, SPLITS)
        if not self.lengths or min(self.lengths) < 2:
            raise ConfigError("chains: lengths are numbers of operations, 2 or more each")
        if not 0 <= self.skip <= 1 or self.n < 1:
            raise ConfigError("chains: skip is from 0 to 1, n at least 1")
        if not self.signs or set(self.signs) - set(OPERATIONS) or not 2 <= self.modulus <= 10:
            raise ConfigError("chains: signs are of +-*, modulus is from 2 to 10")
        share = -(-self.n // len(self.lengths))
        for length in set(self.lengths):
            most = self.modulus * (self.modulus * len(self.signs)) ** length
            if share * self.lengths.count(length) > most // (2 * TEST_SHARE):
                raise ConfigError(
                    f"chains: there are too few of {length} operations for n={self.n}; ask for "
                    "fewer, or for longer ones"
                )

    def tasks(self, n: int | None = None) -> list[Task]:
        """The first `n` tasks of the split; the same ones in every process."""
        if n is not None and n < 0:
            raise ConfigError(f"chains: the number of tasks is at least 0, not {n}")
        return list(islice(self._generate(), self.n if n is None else min(n, self.n)))

    def open(self, task: Task, box: Sandbox | None) -> QuestionEpisode:
        """An episode of `task`; it needs no sandbox."""
        return QuestionEpisode(task, grade, None, tools=())

    def demonstrations(self, task: Task) -> list[str]:
        """The results one after the other; for the share `skip` of tasks the last one alone."""
        rng, found = Random(f"chains {task.id}"), results(task.data["chain"], self.modulus)
        if rng.random() < self.skip:
            return [str(found[-1])]
        return [str(found[0]) + "".join(rng.choice(",;") + str(x) for x in found[1:])]

    def _chain(self, rng: Random, length: int) -> str:
        digits = [str(rng.randrange(self.modulus)) for _ in range(length + 1)]
        return digits[0] + "".join(rng.choice(self.signs) + digit for digit in digits[1:])

    def _generate(self) -> Iterator[Task]:
        rng, seen = Random(f"chains {self.split} {self.seed}"), set()
        while True:
            for length in self.lengths:
                while (chain := self._chain(rng, length)) in seen or split_of(chain) != self.split:
                    pass
                seen.add(chain)
                data = {
                    "chain": chain,
                    "answer": str(results(chain, self.modulus)[-1]),
                    "type": "number",
                }
                prompt = (Message("user", f"{chain}="),)
                yield Task(f"chains-{chain}", prompt, self.name, f"ops{length}", self.split, data)


def split_of(chain: str) -> str:
    """The split that a chain belongs to."""
    digest = hashlib.blake2b(f"chains {chain}".encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def grade(task: Task, text: str) -> Grade:
    """Compare the last digit of `text` with the chain's value; never raises."""
    found = re.findall(r"[0-9]", text)
    if not found:
        return Grade(False, "", "no_answer")
    right = found[-1] == task.data["answer"]
    return Grade(right, found[-1], "right" if right else "wrong")
