"""TL-Training's rows: which turns are trained on (MAE), and which tokens count more (PKT)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

import envs
from agentrl import evaluate
from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.rollouts import tool_loop
from agentrl.rollouts.demonstrate import demonstrate, replayed
from agentrl.select.tl_training import key_weighted, says_error, select, turns
from agentrl.types import Message, Sample, ToolSpec
from envs.functions.demonstrations import reference
from tests.fixtures.families import chat as family

START, END = "<|tool_call_start|>", "<|tool_call_end|>"
CHAT = Chat(CharTokenizer((START, END)))
TOOLS = [ToolSpec(n, "", {"type": "object", "properties": {}}) for n in ("get", "gap", "set")]

FOUR = [
    Message("user", "q"),
    Message("assistant", f"{START}[get(a=1)]{END}"),
    Message("tool", "1"),
    Message("assistant", f"{START}[gte(a=1)]{END}"),
    Message("tool", "NameError: name 'gte' is not defined"),
    Message("assistant", f"{START}[get(a=2)]{END}"),
    Message("tool", "2"),
    Message("assistant", "The answer is 2."),
]


def trained(row: Sample) -> str:
    ids = [i for i, w in zip(row.token_ids, row.weights, strict=True) if w]
    return CHAT.decode(ids)


def chosen(statuses: Sequence[str] | None, **options: Any) -> Any:
    tree = replayed(CHAT, FOUR, TOOLS, statuses=statuses)
    return select([(tree, tree.attempts[0])], CHAT, **options)


def test_the_turn_whose_call_failed_is_no_row_but_stays_in_the_history() -> None:
    made = chosen(["ok", "error", "ok"])
    assert [row.meta["turn"] for row in made.rows] == [0, 2, 3]
    assert [trained(row) for row in made.rows] == [FOUR[i].content + "<|end|>" for i in (1, 5, 7)]
    assert "gte(a=1)" in CHAT.decode(made.rows[1].token_ids)
    assert made.dropped == {"its call failed": 1}
    assert all(row.weights[0] == 0 for row in made.rows)


def test_without_mae_every_turn_is_a_row() -> None:
    assert len(chosen(["ok", "error", "ok"], mae=False).rows) == 4


def test_without_a_status_patterns_are_asked_for() -> None:
    assert len(chosen(None).rows) == 4
    assert [row.meta["turn"] for row in chosen(None, patterns=True).rows] == [0, 2, 3]


def test_a_status_goes_before_what_the_text_looks_like() -> None:
    made = chosen(["ok", "ok", "error"], patterns=True)
    assert [row.meta["turn"] for row in made.rows] == [0, 1, 3]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("NameError: name 'x' is not defined", True),
        ("f() got an unexpected keyword argument 'y'", True),
        ("f() missing 1 required positional argument: 'x'", True),
        ("f() takes 1 positional argument but 2 were given", True),
        ("Connection error.", True),
        ("400 Client Error: Bad Request", True),
        ("Invalid API call", True),
        ('{"error": "no such city"}', True),
        ('{"error": null, "rows": 3}', False),
        ("no error found", False),
        ("The error rate is 400 of 10000", False),
        ('{"text": "an \\"error\\": is mentioned"}', False),
    ],
)
def test_what_reads_like_an_error(text: str, error: bool) -> None:
    """`error` alone, as in the authors' patterns, would fire on `no error found`."""
    assert says_error(text) is error


def test_a_turn_that_no_tool_answers_is_left_out_unless_replies_are_asked_for() -> None:
    said = [
        Message("user", "q"),
        Message("assistant", "which city?"),
        Message("user", "Rome"),
        Message("assistant", "thanks"),
    ]
    tree = replayed(CHAT, said)
    rows = select([(tree, tree.attempts[0])], CHAT).rows
    assert [trained(row) for row in rows] == ["thanks<|end|>"]
    assert len(select([(tree, tree.attempts[0])], CHAT, replies=True).rows) == 2


def test_attempts_that_failed_in_our_hands_give_no_rows() -> None:
    tree = replayed(CHAT, FOUR)
    tree.attempts[0].error = "the sandbox died"
    made = select([(tree, tree.attempts[0])], CHAT)
    assert (made.rows, made.dropped) == ([], {"failed in our hands": 1})


def test_a_turn_that_a_limit_cut_off_is_no_row() -> None:
    tree = replayed(CHAT, FOUR, statuses=["ok", "error", "ok"])
    tree.attempts[0].stop_reason = "max_tokens"
    made = select([(tree, tree.attempts[0])], CHAT)
    assert [row.meta["turn"] for row in made.rows] == [0, 2]
    assert made.dropped == {"its call failed": 1, "cut off": 1}


# PKT


def weights(text: str, tools: Sequence[str], chat: Chat = CHAT, cap: float = 9.0) -> list[Any]:
    """(token, weight) of a turn that says `text`, where the weight is not 1."""
    prompt = chat.encode("q")
    ids = [*prompt, *chat.encode(text, trusted=True)]
    row = Sample(ids, [0.0] * len(prompt) + [1.0] * (len(ids) - len(prompt)))
    made = key_weighted(row, len(prompt), tools, chat, cap)
    assert made.weights[: len(prompt)] == [0.0] * len(prompt)
    pairs = zip(ids, made.weights, strict=True)
    return [(chat.decode([i]), w) for i, w in list(pairs)[len(prompt) :] if w != 1.0]


def test_keys_are_where_the_name_could_still_become_another() -> None:
    """min among max, mid, set: m, then i (max parts), then n (mid parts)."""
    text = f"{START}[min(x=1, y=2)]{END}"
    # of 17 tokens 3 are keys, the ends of the two values are counted nowhere: (17 - 3 - 2) / 3
    assert weights(text, ["min", "max", "mid", "set"]) == [("m", 4.0), ("i", 4.0), ("n", 4.0)]
    assert weights(text, ["min", "set"]) == [("m", 9.0)]  # 14 / 1, capped
    assert weights(text, ["min", "set"], cap=3.0) == [("m", 3.0)]
    assert weights(text, ["min", "minx"])[-1] == ("(", 6.5), "told apart after the name"


def test_the_key_is_the_token_itself_not_the_one_after_it() -> None:
    """A sample's weight multiplies the loss of predicting the token at its own place."""
    text = f"{START}[set()]{END}"
    ids = CHAT.encode(text, trusted=True)
    row = key_weighted(Sample(ids, [1.0] * len(ids)), 0, ["set"], CHAT)
    assert row.weights[ids.index(CHAT.encode("s")[0])] > 1
    assert [i for i, w in enumerate(row.weights) if w > 1] == [2]


def test_keys_in_json_and_in_several_calls() -> None:
    text = (
        '<tool_call>{"name": "get", "arguments": {"a": 1}}</tool_call>'
        '<tool_call>{"arguments": {}, "name": "set"}</tool_call>'
    )
    found = weights(text, ["get", "gap", "set"])
    assert [token for token, _ in found] == ["g", "e", "s"]


def test_a_turn_without_a_call_keeps_its_weights() -> None:
    assert weights("get it", ["get", "gap"]) == []


def test_keys_are_tokens_of_the_models_own_tokenizer() -> None:
    chat = family("smollm2")
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    found = [token for token, _ in weights(text, ["get_weather", "get_news", "search"], chat)]
    assert len(found) == 2
    assert found[0].strip('" ') == "get"
    assert found[1].lstrip("_") in ("weather", "_")


def test_a_turn_in_other_tokens_than_the_tokenizers_own() -> None:
    """A policy may sample `g` and `et` where the tokenizer writes `get`."""
    chat = family("smollm2")
    text = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
    ids = [i for character in text for i in chat.encode(character)]
    row = key_weighted(Sample(ids, [1.0] * len(ids)), 0, ["get_weather", "get_news"], chat)
    at = [i for i, w in enumerate(row.weights) if w > 1]
    assert [chat.decode([ids[i]]) for i in at] == ["g", "w"]


def test_each_row_of_a_batch_has_its_own_keys() -> None:
    """The authors' loss reads row 0 alone."""
    pytest.importorskip("torch")
    from agentrl import losses
    from tests.losses.loss_toys import one_batch

    rows, values = [], []
    for text, nll in ((f"{START}[set()]{END}", 2.0), (f"{START}[get(a=1)]{END}", 1.0)):
        ids = [0, *CHAT.encode(text, trusted=True)]
        row = Sample(ids, [0.0] + [1.0] * (len(ids) - 1))
        rows.append(key_weighted(row, 1, ["set", "get", "gap"], CHAT))
        keys = [w > 1 for w in rows[-1].weights[1:]]
        values.append([-nll if key else -0.1 for key in keys])
    # 9 tokens, of which the key is s: w = 8; 12 tokens, keys g and e, the value's end 1: w = 9 / 2
    assert [max(row.weights) for row in rows] == [8.0, 4.5]
    denominator = losses.denominator("sft", rows)
    out = losses.make("sft")(*one_batch(rows, values), denominator)
    assert denominator == pytest.approx((8 + 8) + (2 * 4.5 + 10))
    assert float(out.loss) == pytest.approx((8 * 2 + 0.8 + 9 * 1 + 1.0) / 35)


# From live tools


def test_a_teachers_conversations() -> None:
    env = envs.make("functions", source="toy", mode="conversation", kinds=["chain", "parallel"])
    policy = ScriptedPolicy([], tokenizer=CharTokenizer((START, END)))
    rollout = demonstrate(reference("python", wrong=0.4))
    trees = asyncio.run(collect(env, rollout, policy, n=20, progress=False))
    graded = evaluate.final(trees)
    assert all(evaluate.right(attempt) for _, attempt in graded), "mistakes are mended"
    assert all(node.source != "policy" for tree in trees for node in tree.nodes)
    statuses = [s for _, attempt in graded for s in attempt.metrics["statuses"]]
    made = select(graded, CHAT)
    assert made.dropped == {"its call failed": statuses.count("error")}
    assert 0 < statuses.count("error") < len(statuses)
    assert len(made.rows) == statuses.count("ok") + len(graded)
    assert all("<|end|>" in trained(row) for row in made.rows)


def test_a_turn_that_the_template_rewrites_is_trained_on_as_it_was_said() -> None:
    chat = family("qwen3")
    call = '<tool_call>\n{"name": "max", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    said = iter([f"<think>\nhm\n</think>\n\n{call}", "<think>\nso\n</think>\n\nThe answer is 2."])
    env = envs.make("functions", source="toy", mode="conversation", kinds=["simple"])
    policy = ScriptedPolicy(lambda text: next(said), tokenizer=chat.tokenizer)
    loop = tool_loop(tools="native", max_tokens=500)
    (tree,) = asyncio.run(collect(env, loop, policy, n=1, progress=False))
    found = turns(tree, tree.attempts[0], chat)
    assert [(t.role, t.status) for t in found] == [("tool", "error"), (None, None)]
    texts = [chat.decode(t.ids[t.start :]) for t in found]
    assert "hm" in texts[0]
    assert "so" in texts[1]
    assert "hm" not in texts[1]


def test_bytes_will_do() -> None:
    chat = Chat(ByteTokenizer())
    text = '<tool_call>{"name": "get", "arguments": {"é": "é"}}</tool_call>'
    assert [t for t, _ in weights(text, ["get", "gap"], chat)] == ["g", "e"]
