"""The cursor: exact ids, rewinds, forks, segments, seeds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.chat import Chat
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.errors import TreeError
from agentrl.tree import Cursor, Tree, derive_seed
from agentrl.types import (
    Completion,
    Message,
    SamplingParams,
    Task,
    TurnReward,
)

BYTES = ByteTokenizer()
EOS = 257
TASK = Task("t", (Message("user", "q"),), "fake", data={"answer": "4", "n": [1, {"x": None}]})
PROMPT = BYTES.encode("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n")


def cursor(replies: Sequence[str], tree: Tree | None = None, seed: int = 0, **kw: int) -> Cursor:
    policy = ScriptedPolicy(replies, max_context=kw.pop("max_context", 1 << 20))
    new = Cursor(tree or Tree(TASK), policy, Chat(BYTES), SamplingParams(**kw), seed)
    new.begin(TASK.prompt)
    return new


class Fixed:
    """A policy that returns the completions given, and keeps the params of each call."""

    name, version, tokenizer, max_context = "fixed", 0, BYTES, 1 << 20

    def __init__(self, *completions: Completion) -> None:
        self.completions, self.params = list(completions), list[SamplingParams]()

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        self.params.append(params)
        return self.completions.pop(0)


def fixed(*completions: Completion, **kw: object) -> Cursor:
    new = Cursor(Tree(TASK), Fixed(*completions), Chat(BYTES), SamplingParams(**kw))
    new.begin(TASK.prompt)
    return new


def test_a_hint_before_the_end_token() -> None:
    """START's test 1: A,EOS; back to A; hint; B,EOS."""
    at = cursor(["A", "B"])
    sampled = asyncio.run(at.sample())
    assert sampled.ended
    assert at.ids == [*PROMPT, *b"A", EOS]
    at.rewind(sampled.body)
    at.hint("wait", id="h")
    asyncio.run(at.sample())
    assert at.ids == [*PROMPT, *b"Await", *b"B", EOS] == at.tree.ids(at.node)
    assert [n.source for n in at.tree.path(at.node)] == [
        "template", "policy", "hint", "policy", "policy",
    ]  # fmt: skip
    assert list(at.turn_segments()) == [("policy", "A"), ("hint", "wait"), ("policy", "B")]
    assert at.turn_text() == "AwaitB"


def test_segments_are_the_ids_of_the_path() -> None:
    """START's test 13, at the cursor: what the trainer gets is what was fed and sampled."""
    at = cursor(["one\x00cut", "two\x00cut", "three"])
    asyncio.run(at.sample())
    at.insert("[out <|im_end|>]", status="ok")
    asyncio.run(at.sample())
    at.hint("hm")
    asyncio.run(at.sample())
    attempt = at.finish("final_answer", reward=1.0, answer="4", calls=1)
    path = at.tree.path(attempt.leaf)
    assert [i for n in path for i in n.token_ids] == at.ids
    assert {n.source for n in path if n.logprobs is not None} == {"policy"}
    assert at.ids.count(EOS) == 2  # the prompt's, and the one sampled
    texts = [("policy", "one"), ("environment", "[out <|im_end|>]"), ("policy", "two")]
    assert list(at.turn_segments()) == [*texts, ("hint", "hm"), ("policy", "three")]
    assert "".join(t for _, t in at.turn_segments()) == at.turn_text() == at.message().content
    assert attempt.metrics == {"calls": 1}
    assert at.tree.attempts == [attempt]


def test_runs_of_one_source_are_one_segment() -> None:
    at = cursor(["a\x00cut", "b\x00cut", "c"])
    for _ in range(3):
        asyncio.run(at.sample())
    assert list(at.turn_segments()) == [("policy", "abc")]


def test_turns_start_where_the_observation_ends() -> None:
    at = cursor(["first", "second"])
    asyncio.run(at.sample())
    node = at.observe([Message("tool", "seen")], status="ok")
    assert at.tree.nodes[node].info == {"status": "ok"}
    assert (at.tree.nodes[node].role, at.tree.nodes[node].source) == ("tool", "environment")
    assert (at.turn_text(), list(at.turn_segments())) == ("", [])
    asyncio.run(at.sample())
    assert at.turn_text() == "second"
    assert [m.role for m in at.messages] == ["user", "assistant", "tool"]
    assert at.messages[1].content == "first"
    text = BYTES.render([*at.messages, Message("assistant", "second")])
    assert BYTES.decode(at.ids) + "\n" == text


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["sample", "insert", "hint", "rewind", "cut", "observe", "fork"])))
def test_any_walk_keeps_ids_and_tree_together(steps: list[str]) -> None:
    at = cursor(["réply 🙂\x00cut"] * 99)
    for step in steps:
        if step == "sample":
            asyncio.run(at.sample())
        elif step in ("insert", "hint"):
            getattr(at, step)("text")
        elif step == "rewind":
            path = [n.id for n in at.tree.path(at.node)]
            at.rewind(path[max(path.index(at._turn_node), len(path) - 2)])
        elif step == "cut":
            at.rewind(at.node, max(at.turn_start, len(at.ids) - 3))
        elif step == "observe":
            at.observe([Message("user", "more")])
        else:
            at = at.fork()
        assert at.ids == at.tree.ids(at.node)
        assert at.turn_text() == BYTES.decode(at.ids[at.turn_start :])
    assert Tree.from_json(at.tree.to_json()) == at.tree


def test_a_rewind_stays_in_the_turn_and_leaves_no_trace_when_refused() -> None:
    at = cursor(["one", "two", "three"])
    first = asyncio.run(at.sample())
    at.observe([Message("user", "more")])
    second = asyncio.run(at.sample())
    size, ids = len(at.tree.nodes), list(at.ids)
    for node, tokens in [(0, None), (first.body, None), (at.node, at.turn_start - 1)]:
        with pytest.raises(TreeError, match="within the current turn"):
            at.rewind(node, tokens)
    with pytest.raises(TreeError, match="fewer than"):
        at.rewind(at.node, len(ids) + 1)
    assert (len(at.tree.nodes), at.ids) == (size, ids)
    at.rewind(second.body)
    assert at.ids == ids[:-1]
    at.rewind(at.node, at.turn_start)
    assert (at.turn_text(), at.ids) == ("", ids[: at.turn_start])


def test_nothing_follows_an_end_token_but_an_observation() -> None:
    at = cursor(["one", "two"])
    asyncio.run(at.sample())
    for step in (lambda: asyncio.run(at.sample()), lambda: at.hint("x"), lambda: at.insert("x")):
        with pytest.raises(TreeError, match=r"rewind to Sampled\.body"):
            step()
    at.observe([Message("user", "more")])
    assert asyncio.run(at.sample()).text == "two"


def test_a_cursor_begins_once_and_first() -> None:
    at = Cursor(Tree(TASK), ScriptedPolicy(["x"]), Chat(BYTES), SamplingParams())
    steps = [lambda: asyncio.run(at.sample()), lambda: at.hint("x"), lambda: at.observe([])]
    for step in [*steps, lambda: at.finish("cancelled")]:
        with pytest.raises(TreeError, match="begin the conversation first"):
            step()
    at.begin(TASK.prompt)
    with pytest.raises(TreeError, match="has begun"):
        at.begin(TASK.prompt)


def test_further_attempts_share_the_prompt() -> None:
    tree = Tree(TASK)
    for reply in ("a", "b"):
        at = cursor([reply], tree)
        asyncio.run(at.sample())
        at.finish("final_answer")
    assert len(tree.children(0)) == 2
    with pytest.raises(TreeError, match="one root"):
        Cursor(tree, at.policy, at.chat, at.params).begin([Message("user", "another")])


def test_a_fork_goes_its_own_way() -> None:
    at = cursor(["one\x00cut", "left", "right"])
    asyncio.run(at.sample())
    other = at.fork()
    assert (other.ids, other.node, other.sampled_tokens) == (at.ids, at.node, at.sampled_tokens)
    asyncio.run(at.sample())
    asyncio.run(other.sample())
    assert (at.turn_text(), other.turn_text()) == ("oneleft", "oneright")
    assert at.tree is other.tree
    other.observe([Message("user", "more")])
    assert len(at.messages) == 1
    assert len({at.seed, other.seed, at.fork().seed, at.fork().seed}) == 4


def test_seeds_are_reproducible_and_differ_from_call_to_call() -> None:
    done = Completion((65,), (-0.5,), "length")

    def seeds(seed: int) -> list[int | None]:
        policy = Fixed(*[done] * 6)
        at = Cursor(Tree(TASK), policy, Chat(BYTES), SamplingParams(), seed)
        at.begin(TASK.prompt)
        for _ in range(2):
            asyncio.run(at.sample())
        other = at.fork()
        for _ in range(2):
            asyncio.run(other.sample())
            asyncio.run(at.sample())
        return [p.seed for p in policy.params]

    assert seeds(1) == seeds(1)
    assert len({*seeds(1), *seeds(2)}) == 12
    assert derive_seed(1, "a", 2) == derive_seed(1, "a", 2) != derive_seed(1, "a2")
    assert derive_seed("x") == 2697552496229297191
    assert 0 <= derive_seed(7) < 1 << 63


def test_what_a_call_changes_of_the_params() -> None:
    done = Completion((65,), (-0.5,), "length")
    at = fixed(*[done] * 3, max_tokens=5, stop=("S",), temperature=0.5)
    asyncio.run(at.sample())
    asyncio.run(at.sample((), 2, temperature=0.0, seed=9))
    asyncio.run(at.sample(["T"]))
    first, second, third = at.policy.params
    assert (first.max_tokens, first.stop, first.temperature) == (5, ("S",), 0.5)
    assert (second.max_tokens, second.stop, second.temperature, second.seed) == (2, (), 0.0, 9)
    assert third.stop == ("T",)


def test_a_full_context_or_a_spent_limit_samples_nothing() -> None:
    at = cursor(["abc"], max_context=len(PROMPT) + 2, max_tokens=9)
    sampled = asyncio.run(at.sample())
    assert (sampled.text, sampled.completion.finish_reason) == ("ab", "length")
    again = asyncio.run(at.sample())
    assert (again.text, again.node, again.completion.finish_reason) == ("", at.node, "length")
    assert not again.ended
    assert at.policy.calls == 1
    assert asyncio.run(cursor(["x"]).sample(max_tokens=0)).completion.token_ids == ()


@pytest.mark.parametrize("finish", ["length", "stop", "eos", "cancelled"])
def test_an_empty_completion_adds_nothing(finish: str) -> None:
    at = fixed(Completion((), (), finish))
    sampled = asyncio.run(at.sample())
    assert (sampled.body, sampled.node, at.ids) == (0, 0, PROMPT)
    at.observe([Message("user", "more")])
    assert BYTES.decode(at.ids).count("<|im_end|>") == 3
    assert at.messages[1].content == ""


def test_an_end_token_alone() -> None:
    at = fixed(Completion((EOS,), (-0.1,), "eos"))
    sampled = asyncio.run(at.sample())
    assert (sampled.text, sampled.body, at.turn_text()) == ("", 0, "")
    assert list(at.turn_segments()) == []
    at.observe([Message("user", "more")])
    assert at.ids.count(EOS) == 3
    assert at.tree.nodes[1].token_ids == (EOS,)


def test_an_engine_that_keeps_the_end_token_to_itself() -> None:
    at = fixed(Completion((65, 66), (-0.1, -0.2), "eos"))
    assert asyncio.run(at.sample()).text == "AB"
    at.observe([Message("user", "more")])
    assert at.ids.count(EOS) == 3
    closing = at.tree.nodes[2]
    assert (closing.source, closing.token_ids) == ("template", (EOS,))


def test_log_probabilities_of_truncated_sampling_are_kept_with_their_tokens() -> None:
    at = fixed(Completion((65, 66, EOS), (-1.0, -2.0, -3.0), "eos", 4, None, (-0.1, -0.2, -0.3)))
    asyncio.run(at.sample())
    body, last = at.tree.nodes[1:]
    assert (body.logprobs, body.info) == ((-1.0, -2.0), {"sampled_logprobs": [-0.1, -0.2]})
    assert (last.logprobs, last.info) == ((-3.0,), {"sampled_logprobs": [-0.3]})
    assert body.policy_version == 4
    at.rewind(body.id, len(PROMPT) + 1)
    assert at.tree.nodes[at.node].info["sampled_logprobs"] == [-0.1]


def test_calls_come_from_the_policy_and_hints_only() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    at = cursor([f"{call}\x00cut", "end"])
    asyncio.run(at.sample())
    at.insert(call.replace('"f"', '"forged"'))
    asyncio.run(at.sample())
    message = at.message()
    assert "forged" in message.content
    assert [c.name for c in message.tool_calls] == ["f"]


def test_attempts_record_branches_rewards_and_errors() -> None:
    at = cursor(["a"])
    asyncio.run(at.sample())
    reward = TurnReward(at.node, 0.5)
    attempt = at.finish("sandbox_error", error="gone", rewards=[reward])
    assert (attempt.leaf, attempt.reward, attempt.error) == (at.node, None, "gone")
    assert attempt.rewards == [reward]
    assert not attempt.truncated


def test_what_the_policy_did_not_sample_itself_is_a_hint_without_logprobs() -> None:
    at = fixed(Completion((65, EOS), (), "eos", trainable=False))
    sampled = asyncio.run(at.sample())
    assert (sampled.text, sampled.ended) == ("A", True)
    nodes = at.tree.path(at.node)[1:]
    assert [(n.source, n.logprobs, n.info) for n in nodes] == [("hint", None, {"by": "fixed"})] * 2


def test_a_recalled_answer_keeps_its_tokens_and_has_no_loss() -> None:
    at = cursor(["a"])
    start = at.fork()
    asyncio.run(at.sample())
    start.recall(at.ids[at.turn_start :])
    assert start.ids == at.ids
    assert start.tree.nodes[start.node].source == "environment"
    with pytest.raises(TreeError, match="ended"):
        start.recall([65])


def test_ids_in_front_of_the_conversation_change_nothing_in_it() -> None:
    """LeTI's verdict: outside of the template, so a later turn is rendered as without it."""
    paths = []
    for before in ([], [7, 8]):
        new = Cursor(Tree(TASK), ScriptedPolicy(["A", "B"]), Chat(BYTES), SamplingParams())
        new.begin(TASK.prompt, before=before)
        assert new.tree.nodes[0].info == ({"before": 2} if before else {})
        asyncio.run(new.sample())
        new.observe([Message("user", "more")])
        asyncio.run(new.sample())
        paths.append(new.tree.ids(new.finish("final_answer").leaf))
    assert paths[1] == [7, 8, *paths[0]]
