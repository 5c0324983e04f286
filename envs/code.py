"""Programs for tasks in words, judged by tests: MBPP, HumanEval, and a small set of our own.

Programs are judged in fresh sandbox sessions (docs/judge.md). Visible tests stand in the prompt and
may be told of in the feedback; hidden ones decide with them and are never shown. The answer is the
last fenced block of a message, or the message itself from its first line of code on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any, Literal

from agentrl.errors import ConfigError, SandboxError, unknown
from agentrl.interfaces import Sandbox
from agentrl.types import Message, Step, Task, ToolSpec, Verdict
from envs.base import PYTHON, QuestionEpisode
from envs.code_sets import SETS, Problem, read, wrong_programs
from sandboxes.feedback import HIDDEN, verdict_text
from sandboxes.judge.suites import Suite

FEEDBACK = ("visible", "all")
REWARDS = ("all", "fraction")
NO_PROGRAM = "no program: answer with one ```python block"
ASK = "\n\nAnswer with one ```python block that holds the whole program."
TESTS = "\n\nYour program should pass this:\n"
REPAIR = "\n\nThis program is wrong:\n```python\n{program}\n```\nMend it."

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.S | re.M)
_CODE = re.compile(r"^(?:def|class|import|from|async def) |^@\w", re.M)
PYTHON_FENCES = ("python", "py", "python3", "")


@dataclass(frozen=True)
class Code:
    """The environment. `make("code", ...)` takes these fields as options.

    `source` is `builtin` (40 small problems, 24 to train on), `mbpp` or `humaneval` (test only);
    these come from `mbpp/mbpp.jsonl` and `humaneval/HumanEval.jsonl` in the folder that the
    environment variable AGENTRL_DATA names, or from the file `path`. `visible` is how many of a
    problem's tests the prompt shows; HumanEval's are the examples of its prompt. `feedback` on a
    wrong program tells of `visible` tests only, or of `all`: for training alone, as LeTI has it.
    `reward` is 1 if all tests pass, or the `fraction` that does. `repair` puts a wrong program into
    the prompt, that of the problem or of the JSONL file `wrong` (`task_id`, `program`); problems
    without one are left out. `timeout` is the seconds for one test, and for one call of the tool.

    `Task.data` has `solution` and, where there is one, `wrong`.
    """

    split: str = "train"
    source: Literal["builtin", "mbpp", "humaneval"] = "builtin"
    path: str | os.PathLike[str] | None = None
    visible: int = 1
    feedback: Literal["visible", "all"] = "visible"
    reward: Literal["all", "fraction"] = "all"
    repair: bool = False
    wrong: str | os.PathLike[str] | None = None
    seed: int | None = None
    n: int | None = None
    system: str | None = None
    timeout: float = 5.0
    name: str = field(default="code", init=False)
    tools: tuple[ToolSpec, ...] = field(default=(PYTHON,), init=False)

    def __post_init__(self) -> None:
        if self.source not in SETS:
            raise unknown("source of code", self.source, SETS)
        if self.split not in SETS[self.source].splits:
            raise unknown(f"split of {self.source}", self.split, SETS[self.source].splits)
        if self.feedback not in FEEDBACK:
            raise unknown("feedback of code", self.feedback, FEEDBACK)
        if self.reward not in REWARDS:
            raise unknown("reward of code", self.reward, REWARDS)
        if self.visible < 0 or self.timeout <= 0:
            raise ConfigError("code: visible is at least 0, timeout above 0")
        if self.n is not None and self.n < 1:
            raise ConfigError(f"code: n is at least 1 (or None for all), not {self.n}")

    def tasks(self, n: int | None = None) -> list[Task]:
        """The first `n` problems. Raises DataError for a file or line that cannot be read."""
        if n is not None and n < 0:
            raise ConfigError(f"code: the number of problems is at least 0, not {n}")
        return self._tasks[: self.n][:n]

    def open(self, task: Task, box: Sandbox | None) -> QuestionEpisode:
        """An episode of `task`. Sessions are opened at the first tool call, and for judging."""

        async def grader(task: Task, text: str) -> Step:
            return await self._grade(task, text, box)

        return QuestionEpisode(task, grader, box, timeout=self.timeout, fenced=True)

    def demonstrations(self, task: Task) -> Sequence[str]:
        """The reference solution, in a block."""
        return [f"```python\n{task.data['solution']}\n```"]

    @cached_property
    def _tasks(self) -> list[Task]:
        problems = read(self.source, self.split, self.path, self.visible)
        given = wrong_programs(self.wrong)
        tasks = [self._task(problem, given) for problem in problems]
        if self.repair:
            tasks = [task for task in tasks if task.data["wrong"]]
            if not tasks:
                raise ConfigError(
                    f"code: no problem of {self.source} has a wrong program to repair; give "
                    "wrong=FILE.jsonl with 'task_id' and 'program'"
                )
        if self.seed is not None:
            Random(f"code {self.seed}").shuffle(tasks)
        return tasks

    def _task(self, problem: Problem, given: dict[str, str]) -> Task:
        wrong = given.get(problem.id, problem.wrong)
        text = problem.text
        if problem.visible and SETS[self.source].shows_tests:
            text += TESTS + "\n".join(problem.visible)
        if self.repair:
            text += REPAIR.format(program=wrong)
        prompt = [Message("user", text + ASK)]
        if self.system:
            prompt.insert(0, Message("system", self.system))
        data: dict[str, Any] = {
            "solution": problem.solution,
            "wrong": wrong,
            "visible": list(problem.visible),
            **problem.tests,
        }
        kind = "repair" if self.repair else "write"
        name = f"code-{self.source}-{kind}-{problem.id}"
        return Task(name, tuple(prompt), self.name, self.source, self.split, data)

    async def _grade(self, task: Task, text: str, box: Sandbox | None) -> Step:
        program = program_of(text)
        if program is None:
            info = {"answer": "", "status": "no_answer", "passed": 0.0, "feedback": NO_PROGRAM}
            return Step(reward=0.0, terminated=True, info=info)
        if box is None:
            raise ConfigError(
                "judging a program needs a sandbox: env.open(task, box) got None. "
                'Open one with sandboxes.open("embedded").'
            )
        tests = SETS[self.source].tests(task.data, self.feedback == "all")
        verdict = await self._judge(tests.graded, program, box)
        feedback = verdict_text(verdict, tests.shown)
        if feedback == HIDDEN and tests.examples is not None:
            shown = await self._judge(tests.examples, program, box)
            feedback = verdict_text(shown, tests.examples_shown) or HIDDEN
        fraction = verdict.passed_fraction or 0.0
        info = {
            "answer": program,
            "status": verdict.status,
            "passed": fraction,
            "feedback": feedback,
            "verdict": verdict,
        }
        reward = fraction if self.reward == "fraction" else float(verdict.passed)
        return Step(reward=reward, terminated=True, info=info)

    async def _judge(self, suite: Suite, program: str, box: Sandbox) -> Verdict:
        """Raises SandboxError where there is no verdict: that is never a wrong program."""
        verdict = await suite.judge(box, program, timeout=self.timeout)
        if verdict.infra:
            raise SandboxError(f"the judge failed: {verdict.detail}")
        return verdict


def program_of(text: str) -> str | None:
    """The program in an answer: its last block of Python (one that a limit cut off, too); where
    there is no block, what follows from the first line of code on. None if there is neither."""
    blocks = [m[2] for m in _FENCE.finditer(text) if m[1].lower() in PYTHON_FENCES]
    if blocks:
        return blocks[-1]
    start = None if "```" in text else _CODE.search(text)
    return text[start.start() :] if start else None
