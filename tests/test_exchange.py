"""Data in TRL's formats and back: lossless through our own column, and TRL trains on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl import exchange, store
from agentrl.chat import Chat
from agentrl.cli import main
from agentrl.commands.exchanging import FORMATS
from agentrl.engines.scripted import ByteTokenizer
from agentrl.errors import ConfigError, DataError, MissingExtraError
from agentrl.record import Tree
from agentrl.rollouts import tool_loop
from agentrl.select import rows
from agentrl.types import Attempt, Message, Pair, Sample, Task
from tests.fakes import run

sys.path.insert(0, str(Path(__file__).parent / "train"))

CHAT = Chat(ByteTokenizer())
FLOATS = st.floats(0, 4, width=32)


@st.composite
def samples(draw, prompt=()):
    ids = [*prompt, *draw(st.lists(st.integers(0, 255), min_size=2, max_size=12))]
    n = len(ids)
    some = st.none() | st.lists(st.floats(-9, 9), min_size=n, max_size=n)
    weights = [0.0] * len(prompt) + draw(
        st.lists(FLOATS, min_size=n - len(prompt), max_size=n - len(prompt))
    )
    meta = draw(st.dictionaries(st.text(max_size=4), st.integers() | st.text(), max_size=2))
    return Sample(ids, weights, draw(some), draw(some), draw(some), meta)


@st.composite
def pairs(draw):
    prompt = draw(st.lists(st.integers(97, 122), min_size=1, max_size=5))
    sides = [draw(samples(prompt=tuple(prompt))) for _ in range(3)]
    gold = sides[2] if draw(st.booleans()) else None
    return Pair(sides[0], sides[1], draw(st.floats(-3, 3)), {"flip": 0.25}, gold)


@given(st.lists(samples(), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_samples_come_back_whole(made) -> None:
    for form in ("sft", "parquet", "prompt_completion"):
        columns = json.loads(json.dumps(exchange.to_trl(made, form, CHAT)))
        assert [exchange.from_trl(row) for row in columns] == made


@given(pairs())
@settings(max_examples=40, deadline=None)
def test_pairs_come_back_whole(pair) -> None:
    for form in ("preference", "parquet"):
        try:
            [row] = exchange.to_trl([pair], form, CHAT)
        except DataError:
            first = min(map(exchange._first_trained, (pair.chosen, pair.rejected)))
            assert pair.chosen.token_ids[:first] != pair.rejected.token_ids[:first]
            continue
        assert exchange.from_trl(json.loads(json.dumps(row))) == pair


@given(samples())
@settings(max_examples=40, deadline=None)
def test_trl_s_own_columns_hold_the_mask(sample) -> None:
    """Without our column what is lost is the size of weights, and what TRL has no name for."""
    [row] = exchange.to_trl([sample], "sft")
    del row[exchange.OWN]
    back = exchange.from_trl(row)
    assert back.token_ids == sample.token_ids
    assert back.weights == [float(i > 0 and w != 0) for i, w in enumerate(sample.weights)]


def conversation() -> tuple[Tree, list[Message]]:
    """A tree of two turns with an observation between them, as a cursor writes it."""
    prompt = [Message("user", "2*3?")]
    said = [
        *prompt,
        Message("assistant", "a tool"),
        Message("tool", "6"),
        Message("assistant", "6!"),
    ]
    tree = Tree(Task("t", tuple(prompt), "none"))
    ids = CHAT.prompt(prompt)
    node = tree.add(None, "user", "template", ids)
    turn = [*CHAT.encode("a tool"), *rows.turn_end(CHAT)]
    node = tree.add(node.id, "assistant", "policy", turn, logprobs=[-1.0] * len(turn))
    suffix = CHAT.suffix(said[:2], said[2:3], [*ids, *turn])
    assert suffix.keep == len(ids) + len(turn)
    node = tree.add(node.id, "tool", "environment", suffix.ids)
    turn = [*CHAT.encode("6!"), *rows.turn_end(CHAT)]
    node = tree.add(node.id, "assistant", "policy", turn, logprobs=[-0.5] * len(turn))
    tree.attempts.append(Attempt(node.id, "final_answer", 1.0))
    tree.attempts.append(Attempt(node.id, "engine_error", None, "lost"))
    return tree, said


def test_a_tree_is_told_as_messages_and_comes_back_whole() -> None:
    tree, said = conversation()
    [row] = exchange.to_trl([tree], "messages", CHAT)
    assert row["messages"] == [{"role": m.role, "content": m.content} for m in said]
    assert exchange.from_trl(row) == tree
    own = rows.path_sample(tree, tree.attempts[0])
    encoded = exchange.from_trl({"messages": row["messages"]}, CHAT)
    assert (encoded.token_ids, encoded.weights) == (own.token_ids, own.weights)


def with_tools() -> Tree:
    """A tree in which two tools are called at once, made by a rollout."""
    replies = iter(
        [
            '<tool_call>\n{"name": "python", "arguments": {"code": "print(6)"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "python", "arguments": {"code": "print(7)"}}\n</tool_call>',
            "It is 42",
        ]
    )
    tree, _, _ = run(tool_loop(tools="native"), lambda text: next(replies))
    return tree


def test_calls_and_tools_are_structure() -> None:
    tree = with_tools()
    [row] = exchange.to_trl([tree], "messages", CHAT)
    [tool] = json.loads(row["tools"])
    assert tool["function"]["name"] == "python"
    _, asked, six, seven, answer = row["messages"]
    assert [c["function"]["arguments"] for c in asked["tool_calls"]] == [
        {"code": "print(6)"},
        {"code": "print(7)"},
    ]
    assert (asked["content"], answer) == ("", {"role": "assistant", "content": "It is 42"})
    assert (six, seven) == ({"role": "tool", "content": "6"}, {"role": "tool", "content": "7"})
    own = rows.path_sample(tree, tree.attempts[0])
    del row[exchange.OWN]
    assert exchange.from_trl(row, CHAT).token_ids == own.token_ids


def test_arguments_that_fit_no_table(tmp_path: Path) -> None:
    calls = [{"messages": [{"role": "assistant", "arguments": {"a": a}}]} for a in (1, "x")]
    with pytest.raises(DataError, match="jsonl"):
        exchange.save(tmp_path / "rows.parquet", calls)
    exchange.save(tmp_path / "rows.jsonl", calls)
    assert exchange.load(tmp_path / "rows.jsonl") == calls


def test_trl_s_texts_are_encoded_with_the_loss_on_answers() -> None:
    ends = rows.turn_end(CHAT)
    made = exchange.from_trl({"prompt": "1+1=", "completion": "2"}, CHAT)
    assert made.token_ids == [*CHAT.encode("1+1=2"), *ends]
    assert made.weights == [0, 0, 0, 0] + [1] * (1 + len(ends))
    pair = exchange.from_trl({"prompt": "1+1=", "chosen": "2", "rejected": "11"}, CHAT)
    assert pair.chosen == made
    question, answer = {"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}
    one = exchange.from_trl({"prompt": [question], "completion": [answer]}, CHAT)
    other = exchange.from_trl({"messages": [question, answer]}, CHAT)
    implicit = exchange.from_trl(
        {"chosen": [question, answer], "rejected": [question, answer]}, CHAT
    )
    assert one == other == implicit.chosen == implicit.rejected
    call = {"function": {"name": "add", "arguments": {"a": 1, "b": None}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    said = exchange.from_trl({"messages": [question, calling]}, CHAT)
    text = CHAT.decode(said.token_ids)
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in text


def test_what_has_no_such_form() -> None:
    assert set(FORMATS) == set(exchange.FORMS)
    with pytest.raises(DataError, match="of no known format"):
        exchange.from_trl({"text": "x"}, CHAT)
    with pytest.raises(ConfigError, match="Did you mean 'messages'"):
        exchange.to_trl([], "message", CHAT)
    with pytest.raises(ConfigError, match="is text"):
        exchange.to_trl([Sample([1], [1])], "messages")
    with pytest.raises(DataError, match="export trees"):
        exchange.to_trl([Sample([1], [1])], "messages", CHAT)
    with pytest.raises(DataError, match="begins with a prompt and ends with an answer"):
        exchange.from_trl({"messages": [{"role": "user", "content": "a"}]}, CHAT)


@pytest.mark.parametrize("target", ["folder", "file.parquet", "file.jsonl"])
def test_the_commands_there_and_back(tmp_path, target, capsys) -> None:
    pytest.importorskip("datasets")
    made = [Sample([1, 2, 3], [0, 0.5, 1], meta={"task": "a"}), Sample([4, 5], [0, 1])]
    rows.write(tmp_path / "rows.jsonl", made)
    assert main(["export", str(tmp_path / "rows.jsonl"), str(tmp_path / target)]) == 0
    assert main(["import", str(tmp_path / target), str(tmp_path / "back.jsonl")]) == 0
    assert rows.read(tmp_path / "back.jsonl") == made
    assert capsys.readouterr().out.startswith("2 rows in ")


def test_trees_there_and_back(tmp_path) -> None:
    pytest.importorskip("datasets")
    tree, _ = conversation()
    with store.TreeStore(tmp_path / "trees") as folder:
        folder.append(tree)
    words = ["export", str(tmp_path / "trees"), str(tmp_path / "data"), "--format", "messages"]
    assert main([*words, "--policy", "scripted"]) == 0
    assert main(["import", str(tmp_path / "data"), str(tmp_path / "back")]) == 0
    assert store.load(tmp_path / "back") == [tree]


def test_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"agentrl\[train\]"):
        exchange.save(Path("x"), [])


@pytest.mark.parametrize("form", ["sft", "preference"])
def test_trl_trains_on_it(tmp_path, form) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    import datasets
    from ranks_tokenizer import hf_bytes
    from train_toys import tiny

    from agentrl.chat import HFTokenizer
    from agentrl.train import export

    tokenizer = hf_bytes()
    chat = Chat(HFTokenizer(tokenizer))
    prompt = chat.encode("1+1=")

    def answer(text: str) -> Sample:
        ids = [*chat.encode(text), *rows.turn_end(chat)]
        return Sample([*prompt, *ids], [0.0] * len(prompt) + [1.0] * len(ids))

    good, bad = answer("2"), answer("11")
    made = [good, bad] if form == "sft" else [Pair(good, bad), Pair(good, bad)]
    exchange.save(tmp_path / "data", exchange.to_trl(made, form, chat))
    dataset = datasets.Dataset.from_parquet(str(tmp_path / "data" / "train.parquet"))
    kind, config = (
        (trl.SFTTrainer, trl.SFTConfig) if form == "sft" else (trl.DPOTrainer, trl.DPOConfig)
    )
    options = {"max_steps": 1, "report_to": [], "use_cpu": True, "bf16": False}
    trainer = kind(
        model=str(export(tiny(vocab_size=300), tmp_path / "model")),
        args=config(output_dir=str(tmp_path / "out"), per_device_train_batch_size=2, **options),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    if form == "sft":
        for row, sample in zip(trainer.train_dataset, made, strict=True):
            assert list(row["input_ids"]) == list(sample.token_ids)
            assert [label != -100 for label in row["labels"]] == [w > 0 for w in sample.weights]
    else:
        [row, _] = trainer.train_dataset
        assert [*row["prompt_ids"], *row["chosen_ids"]] == list(good.token_ids)
        assert [*row["prompt_ids"], *row["rejected_ids"]] == list(bad.token_ids)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", "{}\nnot json\n", "a.jsonl, line 2: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: a row is an object"),
        ("a.parquet", "not parquet", "a.parquet as parquet"),
    ],
)
def test_what_cannot_be_imported_is_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        exchange.load(tmp_path / name)


def test_a_format_that_is_not_written_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.parquet or \.jsonl"):
        exchange.save(tmp_path / "a.csv", [])
    assert not (tmp_path / "a.csv").exists()
