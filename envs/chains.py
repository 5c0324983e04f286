"""Chains of operations on digits: small arithmetic of graded difficulty, for tiny models.

`7-5*3+2` is worked out from the left: 7-5 is 2, 2*3 is 6, 6+2 is 8; no result leaves 0 to 9. The
policy may write down the results on the way, `:2,6;8`, each after a comma or a semicolon; the last
digit is the answer. The more operations the harder, and the more steps are left out. One problem so
has many right texts, as one in words has. What rejection tuning lives on is here in little:
problems from easy to hard, answers right by luck or by care, demonstrations that skip what they
should say.
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

TRIES = 10_000

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def results(chain: str) -> list[int]:
    """The results of a chain's operations, from the left; the last is its value."""
    value, found = int(chain[0]), []
    for sign, digit in zip(chain[1::2], map(int, chain[2::2]), strict=True):
        value = OPERATIONS[sign](value, digit)
        found.append(value)
    return found


@dataclass(frozen=True)
class Chains:
    """The environment. `make("chains", ...)` takes these fields as options.

    Each of `kinds` says how many operations a task has, and which there are: `4+-` has four sums or
    differences. Tasks of each kind take turns. `skip` is the share of demonstrations that say the
    answer alone. Prompts shorter than `width` are filled up with dots: then a result stands as far
    from its operation in short chains as in long ones, which a tiny model need not learn twice.
    With `strict` every result must be there and right, so that no wrong step is made good by luck.
    `n` is the size of the split.
    """

    split: str = "train"
    seed: int = 0
    kinds: Sequence[str] = ("2+-", "4+-", "6+-*")
    skip: float = 0.0
    width: int = 0
    strict: bool = False
    n: int = 1024
    name: str = field(default="chains", init=False)
    tools: tuple[ToolSpec, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split of chains", self.split, SPLITS)
        if not 0 <= self.skip <= 1 or self.n < 1:
            raise ConfigError("chains: skip is from 0 to 1, n at least 1")
        if not self.kinds or isinstance(self.kinds, str):
            raise ConfigError("chains: kinds is a list, such as ['2+-', '4+-']")
        for kind in self.kinds:
            _parsed(kind)

    def tasks(self, n: int | None = None) -> list[Task]:
        """The first `n` tasks of the split; the same ones in every process.

        Raises ConfigError if a kind has no further ones.
        """
        if n is not None and n < 0:
            raise ConfigError(f"chains: the number of tasks is at least 0, not {n}")
        return list(islice(self._generate(), self.n if n is None else min(n, self.n)))

    def open(self, task: Task, box: Sandbox | None) -> QuestionEpisode:
        """An episode of `task`; it needs no sandbox."""
        return QuestionEpisode(task, grade_all if self.strict else grade, None, tools=())

    def demonstrations(self, task: Task) -> list[str]:
        """The results one after the other; for the share `skip` of tasks the last one alone."""
        rng, found = Random(f"chains {task.id}"), results(task.data["chain"])
        if rng.random() < self.skip:
            return [str(found[-1])]
        return [f":{found[0]}" + "".join(rng.choice(",;") + str(x) for x in found[1:])]

    def _generate(self) -> Iterator[Task]:
        rng, seen = Random(f"chains {self.split} {self.seed}"), set()
        while True:
            for kind in self.kinds:
                for _ in range(TRIES):
                    chain = _chain(rng, *_parsed(kind))
                    if chain and chain not in seen and split_of(chain) == self.split:
                        break
                else:
                    raise ConfigError(f"chains: there are no more of kind {kind!r}; ask for fewer")
                seen.add(chain)
                found = [str(x) for x in results(chain)]
                answer = ",".join(found) if self.strict else found[-1]
                form = "text" if self.strict else "number"
                data = {"chain": chain, "answer": answer, "type": form}
                prompt = (Message("user", f"{chain}=".ljust(self.width, ".")),)
                yield Task(f"chains-{chain}", prompt, self.name, kind, self.split, data)


def _parsed(kind: str) -> tuple[int, str]:
    """How many operations, and their signs. Raises ConfigError for another notation."""
    found = re.fullmatch(r"([1-9][0-9]*)([-+*]+)", kind)
    if found is None or int(found[1]) < 2:
        raise ConfigError(f"chains: kind {kind!r} is not a number from 2 with signs of +-*: '4+-'")
    return int(found[1]), found[2]


def _chain(rng: Random, length: int, signs: str) -> str:
    """A random chain; empty where its results would leave the digits."""
    value = rng.randrange(10)
    chain = str(value)
    for _ in range(length):
        steps = [
            (sign, digit)
            for sign in signs
            for digit in range(1, 10)
            if 0 <= OPERATIONS[sign](value, digit) <= 9
        ]
        if not steps:
            return ""
        sign, digit = rng.choice(steps)
        chain, value = f"{chain}{sign}{digit}", OPERATIONS[sign](value, digit)
    return chain


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


def grade_all(task: Task, text: str) -> Grade:
    """Compare all digits of `text` with those of the answer; never raises."""
    found = re.findall(r"[0-9]", text)
    if not found:
        return Grade(False, "", "no_answer")
    right = found == re.findall(r"[0-9]", task.data["answer"])
    return Grade(right, "".join(found), "right" if right else "wrong")
