"""Reward models as they are served: batches, places, pairs, and whose tokenizer it is."""

from __future__ import annotations

import asyncio
import math
import re

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.chat import Chat
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.models import load_classifier, load_model
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.errors import ConfigError, DataError
from agentrl.rewards import PairwiseJudge, check_tokenizer, heard, load_reward, scored
from agentrl.rewards.batched import Batched
from agentrl.rewards.classifier import SequenceClassifier
from agentrl.rewards.preference import wins
from tests.fakes import attempt_at

VOCAB = 31
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.5,
}


def decoder(labels=1, tokens=False, pad=0):
    torch.manual_seed(labels)
    config = transformers.LlamaConfig(**SHAPE, num_labels=labels, pad_token_id=pad)
    kind = "Token" if tokens else "Sequence"
    return getattr(transformers, f"LlamaFor{kind}Classification")(config).eval()


def encoder(tokens=False):
    torch.manual_seed(0)
    config = transformers.BertConfig(**SHAPE, num_labels=1)
    kind = "Token" if tokens else "Sequence"
    return getattr(transformers, f"BertFor{kind}Classification")(config).eval()


def alone(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0]


MODELS = [decoder(), encoder()]
SEQUENCES = st.lists(
    st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=7
)


@settings(max_examples=12, deadline=None)
@given(SEQUENCES, st.sampled_from([1, 12, 4096]))
def test_a_batch_says_what_each_sequence_alone_says(sequences, budget):
    for model in MODELS:
        found = SequenceClassifier(model, batch_tokens=budget).scores(sequences)
        assert found == pytest.approx([float(alone(model, ids)[0]) for ids in sequences], abs=1e-4)


def test_requests_of_one_time_are_one_forward_pass():
    model, passes, sequences = decoder(), [], [[1] * n for n in (3, 9, 1, 5)]
    expected = [float(alone(model, ids)[0]) for ids in sequences]
    model.base_model.register_forward_hook(
        lambda module, args, kwargs, out: passes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    scorer = SequenceClassifier(model)

    async def ask():
        return await asyncio.gather(*map(scorer.reward, sequences))

    found = asyncio.run(ask())
    assert passes == [(4, 9)]
    assert found == pytest.approx(expected, abs=1e-4)
    assert asyncio.run(ask()) == found  # in a loop of its own again


def test_an_end_token_that_is_used_as_fill_is_read():
    model = decoder(pad=7)
    with torch.inference_mode():
        hidden_TD = model.model(torch.tensor([[3, 4, 7]]))[0][0]
        expected = float(model.score(hidden_TD[2])[0])
    assert SequenceClassifier(model).scores([[3, 4, 7]])[0] == pytest.approx(expected)
    assert float(alone(model, [3, 4, 7])[0]) != pytest.approx(expected)  # transformers' own: at 4


@pytest.mark.parametrize("model", [decoder(2, tokens=True), encoder(tokens=True), decoder()])
def test_steps_are_scored_at_their_last_tokens(model):
    ids, ends = [3, 4, 5, 6, 8], [1, 3, 4]
    if isinstance(model, transformers.LlamaForSequenceClassification):
        expected = [float(alone(model, ids[: end + 1])[0]) for end in ends]
    elif model.num_labels == 2:  # the log-odds of good
        logits_TL = alone(model, ids)
        expected = [float(logits_TL[end, 1] - logits_TL[end, 0]) for end in ends]
    else:
        expected = [float(alone(model, ids)[end, 0]) for end in ends]
    scorer = SequenceClassifier(model)

    async def ask():
        return await asyncio.gather(scorer.steps(ids, ends), scorer.steps([9, 9], [1]))

    assert asyncio.run(ask())[0] == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_scored_is_refused():
    scorer = SequenceClassifier(decoder())
    for ids, says in (([], "no token"), ([VOCAB], "vocabulary of 31"), ([1] * 33, "context of 32")):
        with pytest.raises(DataError, match=says):
            scorer.scores([ids])
    with pytest.raises(DataError, match="steps end at tokens 0 to 1"):
        asyncio.run(scorer.steps([1, 2], [2]))
    with pytest.raises(ConfigError, match="scores whole sequences alone"):
        asyncio.run(SequenceClassifier(encoder()).steps([1, 2, 3], [0, 2]))
    with pytest.raises(ConfigError, match="is no classifier"):
        SequenceClassifier(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)))


def test_a_failure_reaches_all_who_asked_and_no_one_later():
    def compute(requests):
        if "bad" in requests:
            raise DataError("no")
        return [r.upper() for r in requests]

    batched = Batched(compute)

    async def ask():
        first = await asyncio.gather(batched("a"), batched("bad"), return_exceptions=True)
        return first, await batched("b")

    (a, bad), b = asyncio.run(ask())
    assert isinstance(a, DataError)
    assert isinstance(bad, DataError)
    assert b == "B"


def test_who_stops_waiting_holds_up_no_one():
    batched = Batched(lambda requests: [r * 2 for r in requests])

    async def ask():
        gone = asyncio.create_task(batched(1))
        stays = asyncio.create_task(batched(2))
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert asyncio.run(ask()) == 4


class Prefers(ScriptedPolicy):
    """Finds the longer answer better, and A better than B; keeps what it was asked."""

    def __init__(self):
        super().__init__([])
        self.asked = []

    async def score(self, ids):
        text = self.tokenizer.decode(ids)
        self.asked.append(text)
        a, b = re.search(r"\[RESPONSE A\] (.*) \[RESPONSE B\] (.*) \n", text, re.S).groups()
        odds = {"A": 2.0 * len(a), "B": float(len(b))}
        return [0.0] * (len(ids) - 2) + [math.log(odds[text[-1]] / (odds["A"] + odds["B"]))]


def test_a_pair_is_judged_in_both_orders():
    judge = PairwiseJudge(Prefers())
    found = asyncio.run(judge.prefers("q {b}", "xx", "y"))
    assert found == pytest.approx((4 / 5 + 1 - 2 / 4) / 2)
    assert found + asyncio.run(judge.prefers("q {b}", "y", "xx")) == pytest.approx(1)
    assert "[CONTEXT] q {b} [RESPONSE A] xx [RESPONSE B] y \n" in judge.policy.asked[0]


def test_answers_are_ranked_by_their_wins():
    class Longer:
        async def prefers(self, context, a, b):
            return len(a) / (len(a) + len(b))

    found = asyncio.run(wins(Longer(), "q", ["xxx", "x", "xx"]))
    assert found == pytest.approx([(3 / 4 + 3 / 5) / 2, (1 / 4 + 1 / 3) / 2, (2 / 3 + 2 / 5) / 2])
    assert asyncio.run(wins(Longer(), "q", ["x"])) == [0.5]


def test_answers_to_one_prompt_are_scored_by_any_model():
    judge = PairwiseJudge(Prefers())
    chat = Chat(judge.policy.tokenizer)
    places = [
        (tree, a.leaf) for tree, a in (attempt_at("t", i, 1.0, t) for i, t in enumerate("ab"))
    ]
    places[0][0].nodes[1].token_ids = (*chat.encode("long"), min(chat.tokenizer.eos_ids))
    found = asyncio.run(scored(judge, chat, places))
    assert found[0] > 0.5 > found[1]
    assert any(
        "6*7?" in text and "[RESPONSE A] long [RESPONSE B] b \n" in text
        for text in judge.policy.asked
    )

    class Length:
        async def reward(self, ids):
            return float(len(ids))

    prompt = len(places[0][0].nodes[0].token_ids)
    assert asyncio.run(scored(Length(), chat, places)) == [prompt + 5.0, prompt + 2.0]
    other = attempt_at("t", 0, 1.0, "c")
    other[0].nodes[0].token_ids = (65, *places[0][0].nodes[0].token_ids)
    with pytest.raises(DataError, match="different prompts"):
        asyncio.run(scored(judge, chat, [*places, (other[0], other[1].leaf)]))


def test_a_reward_model_with_another_tokenizer_is_told_the_conversation_anew():
    model, ours = SequenceClassifier(decoder(), chat=Chat(CharTokenizer())), Chat(ByteTokenizer())
    own = model.chat
    tree, attempt = attempt_at("t", 0, 1.0, "so <|end|> 42")
    expected = [*own.prompt(tree.task.prompt), *own.encode("so <|end|> 42")]
    end = own.encode(own.end_text, trusted=True)
    assert heard(model, ours, (tree, attempt.leaf)) == [*expected, *end]
    assert heard(model, ours, (tree, attempt.leaf), "!") == [*expected, *own.encode("!")]
    assert heard(model, ours, (tree, 0)) == own.prompt(tree.task.prompt)
    assert heard(SequenceClassifier(decoder()), ours, (tree, attempt.leaf)) == tree.ids(
        attempt.leaf
    )
    same = SequenceClassifier(decoder(), chat=Chat(ByteTokenizer()))
    assert heard(same, ours, (tree, attempt.leaf)) == tree.ids(attempt.leaf)
    check_tokenizer(same, ours.tokenizer)
    with pytest.raises(ConfigError, match="is not the policy's"):
        check_tokenizer(model, ours.tokenizer)
    again = tree.add(attempt.leaf, "user", "template", ours.encode("and?"))
    with pytest.raises(ConfigError, match="one turn alone"):
        heard(model, ours, (tree, again.id))


def test_heads_are_not_taken_for_each_other(tmp_path):
    decoder(2, tokens=True).save_pretrained(tmp_path / "steps")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).save_pretrained(
        tmp_path / "lm"
    )
    with pytest.raises(ConfigError, match="has no language head"):
        load_model(str(tmp_path / "steps"))
    with pytest.raises(ConfigError, match="is no reward model but LlamaForCausalLM"):
        load_classifier(str(tmp_path / "lm"))
    assert load_classifier(str(tmp_path / "steps"), device="cpu").config.num_labels == 2
    with pytest.raises(ConfigError, match="tokenizer"):
        load_reward(str(tmp_path / "steps"))
