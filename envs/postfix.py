"""A tiny programming language for tiny models: postfix programs over the digits.

A task shows what a program leaves on the stack for some inputs, and asks for the program:

    0:300 6:928 9:281        x3+x2*0x-

A program is a line of words of one character, spaces ignored. `x` (the input, a digit) and the
digits push themselves on a stack; `+`, `-`, `*`, `<` (the smaller) and `>` (the larger) take two
numbers from it and push one, all modulo 10. What is left at the end, bottom first, is the output.
A program is run for all ten digits: those of the prompt are the visible tests, the others the
hidden ones. Judging takes microseconds and needs no sandbox.

What the environment says of a wrong program (`Step.info["feedback"]`) holds more than the verdict:
what it left in the visible tests (`got 0:300 6:948 9:271`, in the prompt's notation), that these
are right and a hidden one is not (`hidden`), or where it broke (`err stack 2`: its second word
found too few numbers; `err word 2`: there is no such word; `err long`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any, Literal

from agentrl.errors import AgentRLError, ConfigError, unknown
from agentrl.interfaces import Sandbox
from agentrl.types import Message, Step, Task, ToolSpec
from envs.base import EpisodeOver

SPLITS = ("train", "test")
REWARDS = ("all", "fraction")
INPUTS = (0, 6, 9, 3, 1, 2, 4, 5, 7, 8)
"""The tests' inputs. The first three tell all functions of one operator apart."""
MAX_WORDS = 32
TEST_SHARE = 5
"""One function in this many belongs to the test, whatever program the prompt came from."""
TRIES = 10_000

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: (a + b) % 10,
    "-": lambda a, b: (a - b) % 10,
    "*": lambda a, b: a * b % 10,
    "<": min,
    ">": max,
}
NUMBERS = "x0123456789"

RULES = (
    "Write a program in a tiny postfix language. Its words are single characters: x pushes the "
    "input, a digit pushes itself, and + - * < > take two numbers from the stack and push their "
    "sum, difference, product, minimum or maximum, modulo 10. The numbers that are left at the end "
    "are the output. For example, x2*3x- gives 27 for 6. Answer with the program alone, on the "
    "last line. It must give these outputs (input:output), and go on in the same way for the other "
    "digits:\n"
)


class ProgramError(AgentRLError, ValueError):
    """A postfix program that cannot run; the text is the feedback, such as `err stack 2`."""


def run(program: str, x: int) -> str:
    """What `program` leaves for the digit `x`, a digit a number. Raises ProgramError."""
    words = "".join(program.split())
    if len(words) > MAX_WORDS:
        raise ProgramError("err long")
    stack: list[int] = []
    for place, word in enumerate(words, 1):
        if word in NUMBERS:
            stack.append(x if word == "x" else int(word))
        elif word not in OPERATORS:
            raise ProgramError(f"err word {place}")
        elif len(stack) < 2:
            raise ProgramError(f"err stack {place}")
        else:
            b, a = stack.pop(), stack.pop()
            stack.append(OPERATORS[word](a, b))
    return "".join(map(str, stack))


def outputs(program: str) -> tuple[str, ...]:
    """What `program` leaves for each of `INPUTS`. Raises ProgramError."""
    return tuple(run(program, x) for x in INPUTS)


def examples(results: Sequence[str], shown: int) -> str:
    """The visible tests, `0:30 6:92`."""
    return " ".join(f"{x}:{y}" for x, y in zip(INPUTS[:shown], results, strict=False))


@dataclass(frozen=True, slots=True)
class Judged:
    """How a program did: the share of all ten tests that it passed, and the feedback on it (empty
    for a right one)."""

    passed: float
    feedback: str = ""


def judge(program: str, expected: Sequence[str], shown: int) -> Judged:
    """Judge a program by its `expected` outputs, of which the first `shown` are visible."""
    try:
        found = outputs(program)
    except ProgramError as error:
        return Judged(0.0, str(error))
    right = [a == b for a, b in zip(found, expected, strict=True)]
    if all(right):
        return Judged(1.0)
    feedback = "hidden" if all(right[:shown]) else f"got {examples(found, shown)}"
    return Judged(sum(right) / len(right), feedback)


def answer_of(text: str) -> str:
    """The program in an answer: its last line that is not blank, fences left out."""
    lines = (line.strip().strip("`") for line in reversed(text.splitlines()))
    return next(filter(None, lines), "")


@dataclass(frozen=True)
class Postfix:
    """The environment. `make("postfix", ...)` takes these fields as options.

    The programs behind the prompts leave `terms` numbers, each made with `operators` operators;
    `shown` of the ten tests are visible. `repair` adds a wrong program, and what is wrong with it,
    to the prompt. `reward` is 1 for a program that passes `all` tests, or the `fraction` that it
    passes. `brief` leaves out the rules of the language, which a model that was trained on it does
    not need. `n` is the size of the split, None for no end.

    `Task.data`: `expected` (ten outputs), `solution`, `wrong` (a program of which a visible test
    fails) and `feedback` (on that one).
    """

    split: str = "train"
    seed: int = 0
    terms: int = 3
    operators: int = 1
    shown: int = 3
    repair: bool = False
    reward: Literal["all", "fraction"] = "all"
    brief: bool = True
    n: int | None = 512
    name: str = field(default="postfix", init=False)
    tools: tuple[ToolSpec, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split of postfix", self.split, SPLITS)
        if self.reward not in REWARDS:
            raise unknown("reward of postfix", self.reward, REWARDS)
        if not (self.terms >= 1 and self.operators >= 1 and 1 <= self.shown <= len(INPUTS)):
            raise ConfigError("postfix: terms and operators are at least 1, shown is 1 to 10")
        if self.terms * (2 * self.operators + 1) > MAX_WORDS:
            raise ConfigError(
                f"postfix: programs have at most {MAX_WORDS} words; take fewer terms or operators"
            )
        if self.n is not None and self.n < 1:
            raise ConfigError(f"postfix: n is at least 1 (or None for no end), not {self.n}")

    def tasks(self, n: int | None = None) -> list[Task]:
        """The first `n` tasks of the split, each another function; the same in every process.

        Raises ConfigError if there is no end to them and `n` is None, or if there are no more.
        """
        if n is not None and n < 0:
            raise ConfigError(f"postfix: the number of tasks is at least 0, not {n}")
        sizes = [size for size in (n, self.n) if size is not None]
        if not sizes:
            raise ConfigError("postfix without n has no end of tasks: say tasks(n) or n=...")
        return list(islice(self._generate(), min(sizes)))

    def open(self, task: Task, box: Sandbox | None) -> PostfixEpisode:
        """An episode of `task`; no sandbox is needed."""
        return PostfixEpisode(task, self.shown, self.reward)

    def demonstrations(self, task: Task) -> Sequence[str]:
        """The program that the task was made from."""
        return [str(task.data["solution"])]

    def _generate(self) -> Iterator[Task]:
        rng = Random(f"postfix {self.split} {self.seed} {self.terms} {self.operators}")
        seen: set[tuple[str, ...]] = set()
        while True:
            for _ in range(TRIES):
                program = "".join(term(rng, self.operators) for _ in range(self.terms))
                expected = outputs(program)
                if expected not in seen and is_test(expected) == (self.split == "test"):
                    break
            else:
                raise ConfigError(
                    f"postfix: only {len(seen)} functions with terms={self.terms} and operators="
                    f"{self.operators} are in split {self.split!r}; ask for fewer, or more terms"
                )
            yield self._task(len(seen), program, expected, rng)
            seen.add(expected)

    def _task(self, index: int, program: str, expected: Sequence[str], rng: Random) -> Task:
        wrong, feedback = spoilt(program, expected, self.shown, rng)
        text = examples(expected, self.shown)
        if self.repair:
            text = f"{text}\n{wrong}\n{feedback}"
        data: dict[str, Any] = {
            "expected": list(expected),
            "solution": program,
            "wrong": wrong,
            "feedback": feedback,
        }
        kind = "repair" if self.repair else "write"
        shape = f"t{self.terms}o{self.operators}-s{self.seed}"
        prompt = Message("user", text if self.brief else RULES + text)
        name = f"postfix-{self.split}-{shape}-{kind}-{index:05d}"
        return Task(name, (prompt,), self.name, kind, self.split, data)


class PostfixEpisode:
    """One attempt: the last line of the answer is the program."""

    tools: tuple[ToolSpec, ...] = ()
    fenced = True

    def __init__(self, task: Task, shown: int, reward: str = "all") -> None:
        self.task, self._shown, self._reward, self._over = task, shown, reward, ""

    async def reset(self) -> tuple[Message, ...]:
        """The task's prompt. Raises EpisodeOver once the episode has ended."""
        self._require_open()
        return self.task.prompt

    async def step(self, message: Message) -> Step:
        """Grade the answer. `info`: `answer`, `feedback` and `passed`, the share of the tests."""
        self._require_open()
        if message.tool_calls:
            told = [
                Message("tool", "Error: there are no tools.", tool_call_id=c.id, name=c.name)
                for c in message.tool_calls
            ]
            return Step(tuple(told))
        self._over = "the answer was given"
        program = answer_of(message.content)
        judged = judge(program, self.task.data["expected"], self._shown)
        reward = judged.passed if self._reward == "fraction" else float(judged.passed == 1.0)
        info = {"answer": program, "feedback": judged.feedback, "passed": judged.passed}
        return Step(reward=reward, terminated=True, info=info)

    async def close(self) -> None:
        """Nothing to free. Calling it twice is fine."""
        self._over = self._over or "it was closed"

    def _require_open(self) -> None:
        if self._over:
            raise EpisodeOver(
                f"this episode of task {self.task.id!r} is over: {self._over}. "
                "Open another with env.open(task, box)."
            )


def term(rng: Random, operators: int) -> str:
    """Random words that leave one number, which is not the same for all inputs."""
    while True:
        numbers = [rng.choice("xxxx0123456789") for _ in range(operators + 1)]
        numbers[rng.randrange(len(numbers))] = "x"
        words, depth = "", 0
        while numbers or depth > 1:
            if depth < 2 or (numbers and rng.random() < 0.5):
                words, depth = words + numbers.pop(), depth + 1
            else:
                words, depth = words + rng.choice("".join(OPERATORS)), depth - 1
        if len(set(outputs(words))) > 1:
            return words


def spoilt(program: str, expected: Sequence[str], shown: int, rng: Random) -> tuple[str, str]:
    """`program` with one word changed so that a visible test tells it, and the feedback on it."""
    changes = [
        program[:place] + other + program[place + 1 :]
        for place, word in enumerate(program)
        for other in (OPERATORS if word in OPERATORS else NUMBERS)
        if other != word
    ]
    for wrong in rng.sample(changes, len(changes)):
        feedback = judge(wrong, expected, shown).feedback
        if feedback not in ("", "hidden"):
            return wrong, feedback
    raise ConfigError(f"postfix: no change of {program!r} fails a visible test; raise shown")


def is_test(expected: Sequence[str]) -> bool:
    """True if the function with these outputs belongs to the test."""
    digest = hashlib.blake2b(f"postfix {' '.join(expected)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % TEST_SHARE == 0
