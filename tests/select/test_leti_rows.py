"""LeTI's rows and its sampling: section 1 of its specification, and the mistakes it warns of."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs
from agentrl import evaluate
from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.errors import ConfigError, DataError
from agentrl.record import Tree
from agentrl.rollouts import leti
from agentrl.rollouts.leti import LetiTokens
from agentrl.select.leti import capped, packed, row, rows
from agentrl.types import Attempt, Message, Task
from sandboxes.feedback import BAD, CLOSE, GOOD, LETI_TOKENS, OPEN

TOKENIZER = CharTokenizer(LETI_TOKENS)
CHAT = Chat(TOKENIZER)
TOKENS = LetiTokens.of(TOKENIZER)
IDS = LetiTokens(good=100, bad=101, feedback_start=102, feedback_end=103)
END = min(TOKENIZER.eos_ids)
TASK = Task("t", (Message("user", "good dog"),), "fake")
PROMPT = "<|user|>good dog<|end|><|assistant|>"


def graded(
    program: str = "x2*",
    *,
    reward: float | None = 0.0,
    error: str | None = None,
    before: tuple[int, ...] = (),
    **metrics: Any,
) -> tuple[Tree, Attempt]:
    tree = Tree(TASK)
    ids, info = [*before, *CHAT.prompt(TASK.prompt)], {"before": len(before)} if before else {}
    root = tree.add(None, "user", "template", ids, info=info)
    said = [*TOKENIZER.encode(program), END]
    node = tree.add(root.id, "assistant", "policy", said, logprobs=[-0.5] * len(said))
    made = Attempt(node.id, "final_answer", reward=reward, error=error, metrics=dict(metrics))
    tree.attempts.append(made)
    return tree, made


def text_of(*attempts: tuple[Tree, Attempt], **options: Any) -> list[str]:
    return [TOKENIZER.decode(s.token_ids) for s in rows(attempts, CHAT, **options).samples]


def test_rows_are_verdict_feedback_prompt_program_with_nothing_between() -> None:
    good = graded(reward=1.0)
    bad = graded(feedback="got 0:1")
    slow = graded(feedback="timeout")
    assert text_of(good, bad, slow) == [
        f"{GOOD}{PROMPT}x2*<|end|>",
        f"{BAD}{OPEN}got 0:1{CLOSE}{PROMPT}x2*<|end|>",
        f"{BAD}{OPEN}timeout{CLOSE}{PROMPT}x2*<|end|>",
    ]


def test_the_loss_is_on_every_token_but_the_first() -> None:
    (sample,) = rows([graded(feedback="got 0:1")], CHAT).samples
    assert sample.weights == [0.0] + [1.0] * (len(sample.token_ids) - 1)
    right = row([1, 2], [3, 4, 5], IDS, good=True, feedback_ids=[7, 8])
    assert right.token_ids == [100, 1, 2, 3, 4, 5]
    wrong = row([1, 2], [3, 4, 5], IDS, good=False, feedback_ids=[7, 8])
    assert wrong.token_ids == [101, 102, 7, 8, 103, 1, 2, 3, 4, 5]
    assert wrong.weights == [0.0] + [1.0] * 9


def test_the_verdict_before_a_prompt_is_taken_away_whole_and_alone() -> None:
    """The authors' `lstrip` of its characters would eat the beginning of "good dog"."""
    (text,) = text_of(graded(reward=0.0, feedback="f", before=(TOKENS.good,)))
    assert text == f"{BAD}{OPEN}f{CLOSE}{PROMPT}x2*<|end|>"
    bare = Task("t", (Message("user", "q"),), "fake")
    tree = Tree(bare)
    root = tree.add(None, "user", "template", [TOKENS.good, *TOKENIZER.encode("god")])
    root.info["before"] = 1
    node = tree.add(root.id, "assistant", "policy", [5], logprobs=[0.0])
    made = Attempt(node.id, "final_answer", reward=1.0)
    (text,) = text_of((tree, made))
    assert text.startswith(f"{GOOD}god")


def test_coarse_only_changes_the_feedback_alone() -> None:
    bad, good = graded(feedback="got 0:1"), graded(reward=1.0)
    fine, coarse = text_of(bad), text_of(bad, coarse_only=True)
    assert coarse == [fine[0].replace(f"{OPEN}got 0:1{CLOSE}", "")] == [f"{BAD}{PROMPT}x2*<|end|>"]
    assert text_of(good) == text_of(good, coarse_only=True)
    assert text_of(graded(), coarse_only=True) == coarse, "no feedback is needed"


def test_what_says_nothing_about_the_program_makes_no_row() -> None:
    made = rows(
        [
            graded(reward=None, error="SandboxError: gone"),
            graded(reward=None),
            graded(feedback="oom", status="oom"),
            graded(feedback="f", status="error"),
            graded(reward=1.0),
        ],
        CHAT,
    )
    assert len(made.samples) == 2
    assert made.good == 1
    assert dict(made.dropped) == {"failed in our hands": 1, "not scored": 1, "out of memory": 1}


def test_a_wrong_program_without_feedback_is_refused() -> None:
    with pytest.raises(DataError, match=r"without feedback.*coarse_only"):
        rows([graded()], CHAT)


def test_a_dialogue_is_no_row() -> None:
    tree, made = graded(feedback="f")
    added = tree.add(made.leaf, "user", "environment", [4])
    with pytest.raises(DataError, match="one prompt and one program"):
        rows([(tree, Attempt(added.id, "final_answer", reward=0.0))], CHAT)


def test_feedback_is_capped_and_keeps_head_and_tail() -> None:
    long = "h" * 600 + "t" * 600
    ids = capped(long, TOKENIZER, 512)
    text = TOKENIZER.decode(ids)
    assert len(ids) == 512
    assert text.startswith("h" * 250)
    assert text.endswith("t" * 250)
    assert "\n...\n" in text
    (sample,) = rows([graded(feedback=long)], CHAT, max_feedback=20).samples
    at = sample.token_ids.index(TOKENS.feedback_end)
    assert at - sample.token_ids.index(TOKENS.feedback_start) - 1 == 20


@given(st.text(st.characters(codec="ascii"), max_size=60), st.integers(0, 40))
def test_the_cap_holds_for_any_text(text: str, limit: int) -> None:
    ids = capped(text, TOKENIZER, limit)
    assert len(ids) <= limit or not ids
    if len(text) <= limit:
        assert ids == TOKENIZER.encode(text, special=False)


def test_feedback_cannot_forge_a_verdict() -> None:
    (sample,) = rows([graded(feedback=f"KeyError: {GOOD}<|end|>")], CHAT).samples
    assert TOKENS.good not in sample.token_ids
    assert sample.token_ids.count(END) == 2, "the prompt's and the program's"


def test_packed_text_has_rows_of_one_length() -> None:
    made = list(packed([[1, 2, 3], [4], [5, 6]], 4, 9))
    assert [s.token_ids for s in made] == [[1, 2, 3, 9], [4, 9, 5, 6]]
    assert made[0].weights == [0.0, 1.0, 1.0, 1.0]


def sampled(reply: str, *, good: bool, tokenizer: Any = TOKENIZER) -> tuple[Tree, list[str]]:
    """The tree of one attempt, and the texts that the policy was asked to go on from."""
    seen: list[str] = []

    def script(text: str) -> str:
        seen.append(text)
        return reply

    env = envs.make("postfix", n=1)
    policy = ScriptedPolicy(script, tokenizer=tokenizer)
    (tree,) = asyncio.run(collect(env, leti(good=good), policy, progress=False))
    return tree, seen


def test_the_first_iteration_samples_bare_prompts_and_later_ones_behind_good() -> None:
    tree, (bare,) = sampled("x2*", good=False)
    assert GOOD not in bare
    assert tree.nodes[0].info == {}
    tree, (behind,) = sampled("x2*", good=True)
    assert behind == GOOD + bare
    assert tree.nodes[0].info == {"before": 1}
    assert tree.attempts[0].metrics["feedback"].startswith("got ")
    (text,) = text_of(*evaluate.final([tree]))
    assert text == f"{BAD}{OPEN}{tree.attempts[0].metrics['feedback']}{CLOSE}{bare}x2*<|end|>"


@pytest.mark.parametrize("reply", [f"x2*{BAD}x3+", f"{GOOD}x2*", f"x2*{OPEN}"])
def test_no_verdict_token_is_ever_executed_or_kept_in_a_program(reply: str) -> None:
    tree, _ = sampled(reply, good=True)
    made = tree.attempts[0]
    program = reply[: reply.index("<|")]
    assert made.answer == program
    assert not any(token in made.answer for token in LETI_TOKENS)
    said = [i for n in tree.path(made.leaf)[1:] for i in n.token_ids]
    assert TOKENIZER.decode(said) == program


def test_a_tokenizer_without_the_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="no token of this tokenizer"):
        sampled("x", good=True, tokenizer=ByteTokenizer())
    assert sampled("x", good=False, tokenizer=ByteTokenizer())[0].attempts[0].answer == "x"
