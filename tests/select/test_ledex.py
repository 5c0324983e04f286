"""LeDex's pipeline: what becomes a row, what becomes a task for RL, and what is rewarded where."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.credit import episode_of, separate_sites
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import ConfigError, DataError
from agentrl.evaluate import final
from agentrl.rollouts import self_debug
from agentrl.rollouts.self_debug import EXPLAIN, REFINE
from agentrl.select import ledex
from agentrl.select.rows import conversation_sample
from agentrl.select.similarity import TfIdf
from agentrl.types import Message, Sample, SamplingParams
from tests.rollouts.debug_env import DebugEnv

CHAT = Chat(ScriptedPolicy([]).tokenizer)
ENV = DebugEnv()
MARK = "=>"
RIGHT = "c and d are missing => p: abcd"
HIDDEN = "c is missing => p: abc"  # every visible test passes, a hidden one fails


def trees_of(rollout, replies, tasks, samples=1, max_tokens=200):
    """Each task is answered `samples` times; `replies` are handed out task by task."""
    waiting = iter(replies)
    pending: dict[str, str] = {}

    def script(text):
        if text.endswith("=>"):  # asked to go on after the mark
            return pending.pop("rest")
        reply = next(waiting)
        pending["rest"] = reply.partition("=>")[2]
        return reply

    return asyncio.run(
        collect(
            ENV,
            rollout,
            ScriptedPolicy(script),
            tasks=tasks,
            samples=samples,
            concurrency=1,
            progress=False,
            params=SamplingParams(max_tokens=max_tokens),
        )
    )


def refined(*replies, n=1):
    """The repairs of the program `p: ab`, each task answered by all of `replies`, and the drops."""
    tasks = ledex.repair_tasks([(task, "p: ab") for task in ENV.tasks(n)])
    rollout = self_debug(given=True, explain=True, mark=MARK)
    return ledex.pool(trees_of(rollout, replies * n, tasks, samples=len(replies)), MARK)


def trained(row: Sample) -> str:
    return CHAT.decode([i for i, w in zip(row.token_ids, row.weights, strict=True) if w])


def test_programs_are_split_by_all_tests_and_counted_once():
    tasks = ENV.tasks(2)
    replies = ["p: abcd", "p: abc", "p: broken", "x p: abc", "p: ab", "p: abcd"]
    made = ledex.split(trees_of(self_debug(rounds=0), replies, tasks, samples=3))
    assert [(t.task.id, a.answer) for t, a in made.right] == [("t0", "abcd"), ("t1", "abcd")]
    assert [(task.id, text) for task, text in made.wrong] == [
        ("t0", "p: abc"),
        ("t1", "x p: abc"),
        ("t1", "p: ab"),
    ]
    assert made.dropped == {"failed in our hands or not scored": 1}


def test_cut_programs_are_nobodys_and_equal_ones_count_once():
    replies = ["p: abcd", "p: abcd ", "so p: ab", "but p: ab", "p: " + "a" * 300]
    made = ledex.split(trees_of(self_debug(rounds=0), replies, ENV.tasks(1), 5))
    assert (len(made.right), len(made.wrong)) == (1, 1)
    assert made.dropped == {"duplicate": 2, "truncated": 1}


def test_a_repair_task_has_the_same_tests_and_the_wrong_program():
    wrong = [(task, text) for task in ENV.tasks(2) for text in ("p: a", "p: b", "p: c")]
    tasks = ledex.repair_tasks(wrong, limit=2)
    assert [(t.id, t.data["wrong"]) for t in tasks] == [
        ("t0#1", "p: a"),
        ("t0#2", "p: b"),
        ("t1#1", "p: a"),
        ("t1#2", "p: b"),
    ]


def test_one_failing_hidden_test_keeps_it_out_of_sft_and_in_the_pool_of_rl():
    repairs, dropped = refined(RIGHT, HIDDEN)
    assert not dropped
    repair = repairs["t0#1"]
    assert [one.code for one in repair.right] == ["abcd"]
    assert [one.code for one in repair.failed] == ["abc"]
    assert repair.feedback == "a hidden test failed"
    rows = ledex.sft_rows([], repairs.values(), CHAT)
    assert all("abcd" in trained(row) for kind in rows for row in rows[kind])
    tasks, compared = ledex.rl_tasks(repairs)
    assert [(t.id, t.data["wrong"]) for t in tasks] == [
        ("t0#1", "p: ab"),
        ("t0#1.1", "=> p: abc"),
    ]
    assert compared["t0#1.1"] is repair


def test_the_same_program_again_is_refused_even_if_it_passes():
    class Flaky(DebugEnv):
        opened = 0

        def open(self, task, box):
            self.opened += 1
            episode = super().open(task, box)
            if self.opened == 2:  # the second grading of one and the same program
                step = episode.step

                async def lucky(message):
                    return replace(await step(message), reward=1.0)

                episode.step = lucky
            return episode

    tasks = ledex.repair_tasks([(ENV.tasks(1)[0], "p: ab")])
    policy = ScriptedPolicy(["why => p: ab", "\np: ab"])
    rollout = self_debug(given=True, explain=True, mark=MARK)
    trees = asyncio.run(collect(Flaky(), rollout, policy, tasks=tasks, progress=False))
    assert final(trees)[0][1].reward == 1.0, "it passed the second time"
    repairs, dropped = ledex.pool(trees, MARK)
    assert repairs == {}
    assert dropped == {"the same program again": 1}


def test_rows_of_three_kinds_have_loss_on_the_refinement_alone():
    first = ledex.split(trees_of(self_debug(rounds=0), ["so p: abcd"], ENV.tasks(1)))
    repairs, _ = refined(RIGHT)
    rows = ledex.sft_rows(first.right, repairs.values(), CHAT)
    assert {kind: [trained(r) for r in rows[kind]] for kind in rows} == {
        "plain": ["so p: abcd<|im_end|>"],
        "refine": ["=> p: abcd<|im_end|>"],
        "explain": ["c and d are missing => p: abcd<|im_end|>"],
    }
    whole = CHAT.decode(rows["refine"][0].token_ids)
    assert whole.index("p: ab<|im_end|>") < whole.index("a hidden test failed")
    assert REFINE.partition("\n")[0] in whole
    assert "First explain" not in whole
    assert "First explain" in CHAT.decode(rows["explain"][0].token_ids)


def test_without_explanations_there_are_refinements_alone():
    repairs, _ = refined(RIGHT, "=> p: abcde")
    rows = ledex.sft_rows([], repairs.values(), CHAT)
    assert (len(rows["refine"]), len(rows["explain"])) == (2, 1), "one has no explanation"
    rows = ledex.sft_rows([], repairs.values(), CHAT, explain=False, cap=1)
    assert (len(rows["refine"]), len(rows["explain"])) == (1, 0)


def test_a_teachers_row_is_what_the_student_sees_when_it_debugs():
    seen = []

    def script(text):
        seen.append(text)
        return RIGHT.partition("=>")[2] if text.endswith("=>") else RIGHT

    task = ENV.tasks(1)[0]
    rollout = self_debug(given=True, explain=True, mark=MARK)
    trees = asyncio.run(collect(ENV, rollout, ScriptedPolicy(script), tasks=[task], progress=False))
    asked = EXPLAIN.replace("{feedback}", "a hidden test failed")
    said = [*task.prompt, Message("assistant", "ab"), Message("user", asked)]
    row = conversation_sample(CHAT, [*said, Message("assistant", RIGHT)], untrained={1})
    assert list(row.token_ids) == trees[0].ids(trees[0].attempts[0].leaf)
    assert trained(row) == f"{RIGHT}<|im_end|>"


def rewards_of(reply, repairs, **how):
    rollout = self_debug(given=True, explain=how.pop("explain", True), mark=MARK)
    graded = final(trees_of(rollout, [reply], ledex.rl_tasks(repairs)[0][:1]))
    embed = TfIdf(ledex.explanations(repairs.values()))
    made = ledex.rewarded(graded, ledex.rl_tasks(repairs)[1], embed, mark=MARK, **how)
    return made[0]


def test_each_reward_stands_where_it_was_earned():
    repairs, _ = refined(RIGHT)
    tree, attempt = rewards_of(HIDDEN, repairs, alike=lambda a, b: 0.25)
    explained, program = attempt.rewards
    assert (explained.source, program.source) == ("explanation", "refinement")
    assert program.value == 5 * (0.25 + 0.75) - 5
    assert explained.value < 5
    assert attempt.reward is None, "or it would count twice"
    episode = episode_of(tree, attempt)
    assert [s.source for s in episode.rewards] == ["explanation", "refinement"]
    ends = [episode.place(site) for site in episode.rewards]
    ids = tree.ids(attempt.leaf)
    assert CHAT.decode(ids[: ends[0] + 1]).endswith("c is missing =>")
    assert ends[1] == len(ids) - 1
    advantages = separate_sites([episode], gamma=1.0)[0]
    assert advantages[ends[0]] == pytest.approx(explained.value)
    assert advantages[ends[0] + 1] == pytest.approx(program.value)


def test_a_right_answer_that_reads_like_the_right_ones_gets_the_most():
    repairs, _ = refined(RIGHT)
    _, attempt = rewards_of(RIGHT, repairs, alike=lambda a, b: float(a == b))
    assert [r.value for r in attempt.rewards] == pytest.approx([5.0, 5.0])


def test_refinement_alone_has_one_reward():
    repairs, _ = refined(RIGHT)
    _, attempt = rewards_of("p: abcd", repairs, explain=False, alike=lambda a, b: float(a == b))
    assert [(r.source, r.value) for r in attempt.rewards] == [("refinement", 5.0)]


def test_likeness_is_with_the_verified_refinements_of_the_same_program():
    repairs, _ = refined(RIGHT, "it => p: dcba")
    compared = []

    def alike(code, reference):
        compared.append((code, reference))
        return 1.0

    rewards_of(HIDDEN, repairs, alike=alike)
    assert compared == [("abc", "abcd"), ("abc", "dcba")]


def test_without_a_right_refinement_there_is_nothing_to_compare_with():
    repairs, _ = refined(HIDDEN)
    assert repairs["t0#1"].failed
    assert ledex.rl_tasks(repairs) == ([], {})


def test_first_programs_are_compared_with_all_right_ones_of_their_task():
    first = ledex.split(trees_of(self_debug(rounds=0), ["so p: abcd", "p: ab"], ENV.tasks(2)))
    repairs, _ = refined(RIGHT, HIDDEN, n=3)
    tasks, compared = ledex.program_tasks(first.right, repairs.values())
    assert [task.id for task in tasks] == ["t0", "t1", "t2"]
    assert [one.code for one in compared["t0"].right] == ["abcd", "abcd"]
    assert [one.code for one in compared["t1"].right] == ["abcd"]
    graded = final(trees_of(self_debug(rounds=0), ["p: abc"], tasks[1:2]))
    made = ledex.rewarded(graded, compared, TfIdf(["a"]), alike=lambda a, b: 0.5, mark=MARK)
    assert [(r.source, r.value) for r in made[0][1].rewards] == [("refinement", 1.25)]


def test_trees_of_another_rollout_are_refused():
    with pytest.raises(DataError, match="given=True"):
        ledex.pool(trees_of(self_debug(rounds=0), ["p: a"], ENV.tasks(1)))
    with pytest.raises(ConfigError, match="mark"):
        ledex.pool([], "")


def test_what_was_not_scored_gets_no_reward():
    repairs, _ = refined(RIGHT)
    tree, attempt = rewards_of("why => p: broken", repairs)
    assert attempt.rewards == []
    assert not episode_of(tree, attempt).valid
