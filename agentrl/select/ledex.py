"""LeDex's data: wrong programs, their verified explanations and refinements, rows and rewards.

arXiv 2405.18649. In the order in which a recipe calls it:

    split         first programs into right and wrong
    repair_tasks  each wrong one as a task for the teacher: explain it and refine it
    pool          what the teacher wrote, executed: an explanation is as right as its refinement
    sft_rows      right first programs, refinements, and explanations with refinements
    rl_tasks      the programs to refine by reinforcement: wrong ones, and failed refinements
    program_tasks the tasks whose first programs are trained so, too
    rewarded      a reward for the explanation and one for the program, each in its place

Whether a program is right is the environment's grade, over all tests and not only those that the
prompt shows. Truncated answers and failures of ours are in none of the sets, and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agentrl.chat import Chat
from agentrl.credit.separate_sites import explanation_reward, refinement_reward
from agentrl.errors import ConfigError, DataError
from agentrl.evaluate import Graded, final, right
from agentrl.rollouts.self_debug import EXPLAIN, MARK, REFINE, explanation_of
from agentrl.select.codebleu import code_bleu
from agentrl.select.rows import conversation_sample, path_sample
from agentrl.select.similarity import Embed, mean_cosine
from agentrl.tree import Tree
from agentrl.types import Attempt, Message, Sample, Task, TurnReward

Likeness = Callable[[str, str], float]
"""How alike a program is to a reference, from 0 to 1."""


@dataclass(slots=True)
class Programs:
    """First programs: `right` attempts, and each task's different wrong programs."""

    right: list[Graded] = field(default_factory=list)
    wrong: list[tuple[Task, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Refinement:
    """An answer to a wrong program: the whole `text`, its `explanation` and what follows that, the
    `program` (`explanation_of`), with the `code` that the environment read in it."""

    text: str
    explanation: str
    program: str
    code: str


@dataclass(slots=True)
class Repair:
    """A wrong program with the tests' words on it, and what was written to mend it."""

    task: Task
    feedback: str
    right: list[Refinement] = field(default_factory=list)
    failed: list[Refinement] = field(default_factory=list)

    @property
    def wrong(self) -> str:
        """The wrong program."""
        return str(self.task.data["wrong"])


def split(trees: Iterable[Tree]) -> Programs:
    """First programs by their grade. A task's programs that read alike count once."""
    made, seen = Programs(), set()
    for tree, attempt in final(trees):
        reason = _unusable(attempt)
        key = (tree.task.id, attempt.answer.strip())
        if reason is None and not key[1]:
            reason = "no program"
        elif reason is None and key in seen:
            reason = "duplicate"
        seen.add(key)
        if reason is not None:
            made.dropped[reason] += 1
        elif right(attempt):
            made.right.append((tree, attempt))
        else:
            made.wrong.append((tree.task, attempt.metrics["turns"][0]["text"]))
    return made


def repair_tasks(wrong: Iterable[tuple[Task, str]], limit: int | None = None) -> list[Task]:
    """A task for each wrong program (at most `limit` of an original task): the same tests, and the
    program as `data["wrong"]`, where `self_debug(given=True)` reads it."""
    made: list[Task] = []
    counts: Counter[str] = Counter()
    for task, program in wrong:
        counts[task.id] += 1
        if limit is None or counts[task.id] <= limit:
            name = f"{task.id}#{counts[task.id]}"
            made.append(replace(task, id=name, data={**task.data, "wrong": program}))
    return made


def pool(trees: Iterable[Tree], mark: str = MARK) -> tuple[dict[str, Repair], Counter[str]]:
    """The repairs by their task's id, and how many answers were dropped, by reason.

    `trees` are attempts of `self_debug(given=True, rounds=1)`. An answer with the same program as
    before is refused whatever its grade: if it passed, the tests are not reliable. Equal answers
    count once. Raises DataError for attempts of another rollout, ConfigError for an empty `mark`.
    """
    if not mark:
        raise ConfigError("ledex: mark is the text that a program begins with; it is empty")
    made: dict[str, Repair] = {}
    dropped: Counter[str] = Counter()
    for tree, attempt in final(trees):
        reason = _unusable(attempt)
        if reason is None and not attempt.metrics.get("given"):
            raise DataError(
                f"the attempt at task {tree.task.id!r} does not refine a given program; collect "
                "with the rollout self_debug and given=True"
            )
        turns = attempt.metrics.get("turns", [])
        if reason is None and len(turns) < 2:
            reason = "the given program was right"
        elif reason is None and turns[0]["answer"].strip() == turns[1]["answer"].strip():
            reason = "the same program again"
        if reason is None:
            repair = made.setdefault(
                tree.task.id, Repair(tree.task, attempt.metrics["feedback"][0])
            )
            text = turns[1]["text"]
            one = Refinement(text, *explanation_of(text, mark), turns[1]["answer"])
            kept = repair.right if right(attempt) else repair.failed
            if one not in kept:
                kept.append(one)
                continue
            reason = "duplicate"
        dropped[reason] += 1
    return made, dropped


def _unusable(attempt: Attempt) -> str | None:
    if attempt.error is not None or attempt.reward is None:
        return "failed in our hands or not scored"
    return "truncated" if attempt.truncated else None


def sft_rows(
    programs: Sequence[Graded],
    repairs: Iterable[Repair],
    chat: Chat,
    *,
    explain: bool = True,
    cap: int | None = None,
    asks: tuple[str, str] = (REFINE, EXPLAIN),
) -> dict[str, list[Sample]]:
    """Rows of three kinds: `plain` first programs, `refine`, and (with `explain`) `explain`.

    The wrong program, what the tests said and the instruction are context: loss is on the
    refinement alone, after its explanation or not, and on the token that ends the turn. A teacher's
    text is encoded for the student. `cap` limits how many refinements of one wrong program make
    rows. One without an explanation makes no row of the third kind.
    """
    rows: dict[str, list[Sample]] = {"plain": [path_sample(t, a, {"policy"}) for t, a in programs]}
    rows |= {"refine": [], "explain": []}
    for repair in repairs:
        for one in repair.right[:cap]:
            rows["refine"].append(_row(repair, asks[0], one.program, chat))
            if explain and one.explanation:
                rows["explain"].append(_row(repair, asks[1], one.text, chat))
    return rows


def _row(repair: Repair, ask: str, reply: str, chat: Chat) -> Sample:
    prompt, asked = repair.task.prompt, ask.replace("{feedback}", repair.feedback)
    wrong, told = Message("assistant", repair.wrong), Message("user", asked)
    said = [*prompt, wrong, told, Message("assistant", reply)]
    row = conversation_sample(chat, said, untrained={len(prompt)})
    row.meta = {"task": repair.task.id, "kind": repair.task.kind}
    return row


def rl_tasks(repairs: Mapping[str, Repair]) -> tuple[list[Task], dict[str, Repair]]:
    """The programs to refine by reinforcement, and the repair that each one's answers are compared
    with: the wrong programs, and the refinements of them that failed.

    Without a right refinement to compare with, similarity is not defined: such are left out.
    """
    tasks: list[Task] = []
    compared: dict[str, Repair] = {}
    for repair in repairs.values():
        if repair.right:
            programs = [repair.wrong, *dict.fromkeys(one.program for one in repair.failed)]
            for i, program in enumerate(programs):
                name = f"{repair.task.id}.{i}" if i else repair.task.id
                data = {**repair.task.data, "wrong": program}
                tasks.append(replace(repair.task, id=name, data=data))
                compared[name] = repair
    return tasks, compared


def program_tasks(
    programs: Sequence[Graded], repairs: Iterable[Repair]
) -> tuple[list[Task], dict[str, Repair]]:
    """The tasks whose first programs can be trained by reinforcement: those of which a right
    program is known, and what theirs are compared with (right first programs and refinements)."""
    compared: dict[str, Repair] = {}
    for tree, attempt in programs:
        text = attempt.metrics["turns"][0]["text"]
        known = compared.setdefault(tree.task.id, Repair(tree.task, ""))
        known.right.append(Refinement(text, "", text, attempt.answer))
    for repair in repairs:
        if repair.right:
            origin = replace(repair.task, id=repair.task.id.rpartition("#")[0])
            known = compared.setdefault(origin.id, Repair(origin, ""))
            known.right += [replace(one, explanation="") for one in repair.right]
    return [known.task for known in compared.values()], compared


def explanations(repairs: Iterable[Repair]) -> list[str]:
    """The right explanations of all repairs."""
    return [one.explanation for r in repairs for one in r.right if one.explanation]


def rewarded(
    graded: Sequence[Graded],
    compared: Mapping[str, Repair],
    embed: Embed,
    *,
    alike: Likeness = code_bleu,
    mark: str = MARK,
) -> list[Graded]:
    """The attempts with LeDex's rewards in place of their grades (`reward` None: the list is all).

    The program gets `R(r) = 5 * (S_cb + S_ut) - 5` at its last token: S_cb is the mean of `alike`
    with the right refinements of the same wrong program (one that says the very same is one of
    them, and counts), S_ut the share of all tests passed. The explanation, where a node ends it,
    gets `R(e) = (50 * S_ex - 35) / 3` there: S_ex is the mean cosine of its `embed`ding with
    those of the right explanations. The scale is made for RoBERTa, whose cosines are seldom below
    0.4; those of `TfIdf(explanations(...))` go down to 0, a reward of -11.7.

    Attempts that were not scored get no reward, which is not 0. Raises KeyError for an attempt at a
    task that is not in `compared`.
    """
    return [(t, _rewarded(a, compared[t.task.id], embed, alike, mark)) for t, a in graded]


def _rewarded(
    attempt: Attempt, repair: Repair, embed: Embed, alike: Likeness, mark: str
) -> Attempt:
    if attempt.error is not None or attempt.reward is None:
        return replace(attempt, reward=None, rewards=[])
    rewards, answer = [], attempt.metrics["turns"][-1]
    known, node = explanations([repair]), attempt.metrics["marks"][-1]
    if known and node is not None:
        explanation, _ = explanation_of(answer["text"], mark)
        value = explanation_reward(mean_cosine(explanation, known, embed))
        rewards.append(TurnReward(node, value, "explanation"))
    likeness = math.fsum(alike(answer["answer"], one.code) for one in repair.right)
    value = refinement_reward(likeness / len(repair.right), attempt.metrics["passed"][-1])
    rewards.append(TurnReward(attempt.leaf, value, "refinement"))
    return replace(attempt, reward=None, rewards=rewards)
