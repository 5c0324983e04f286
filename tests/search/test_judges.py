"""Judges: reward models, grades against the reference, and what a prompt is filled with."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from agentrl.chat import Chat
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.errors import ConfigError
from agentrl.rewards.classifier import SequenceClassifier
from agentrl.rewards.options import option_masses
from agentrl.search import Place, Table
from agentrl.search.evaluators import ByModel, GradeEvaluation, SelfEvaluation
from agentrl.tree import Cursor, Tree
from agentrl.types import Message, SamplingParams, Task


class Graded(ScriptedPolicy):
    """Says a text, and gives the options their probabilities; keeps what it was asked."""

    def __init__(self, said, masses):
        super().__init__([said])
        self.masses, self.asked = masses, []

    async def score(self, ids):
        text = self.tokenizer.decode(ids)
        self.asked.append(text)
        return [0.0] * (len(ids) - 2) + [math.log(self.masses[text[-1]])]


def place(policy, *, ahead="", data=None, question="q"):
    task = Task("t", (Message("user", question),), "fake", data=data or {})
    cursor = Cursor(Tree(task), policy, Chat(policy.tokenizer), SamplingParams())
    cursor.begin(task.prompt)
    asyncio.run(cursor.sample())
    return Place(cursor, Table().add(cursor.node, None), ahead)


def classifier(labels=1):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ByteTokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=labels,
        pad_token_id=0,
    )
    return LlamaForSequenceClassification(config)


def test_a_sequence_classifier_scores_the_path_and_the_look_ahead():
    model = classifier()
    at = place(ScriptedPolicy(["yes"]), ahead=" and no")
    ids = [*at.cursor.ids, *at.cursor.chat.encode(" and no")]
    with torch.inference_mode():
        expected = float(model(input_ids=torch.tensor([ids])).logits[0, 0])
    raw = asyncio.run(ByModel(SequenceClassifier(model), raw=True)(at))
    assert raw == pytest.approx(expected)
    squeezed = asyncio.run(ByModel(SequenceClassifier(model))(at))
    assert squeezed == pytest.approx(1 / (1 + math.exp(-expected)))
    with pytest.raises(ConfigError, match="not 3"):
        SequenceClassifier(classifier(3))


def test_grades_weigh_the_options_and_show_the_reference():
    policy = Graded("f(a=1)", {"A": 0.5, "B": 0.25, "C": 0.125, "D": 0.0625})
    judge = GradeEvaluation()
    value = asyncio.run(judge(place(policy, data={"answer": "f(a=2)"})))
    assert value == pytest.approx((0.5 + 0.025 - 0.125 - 0.125) / 4)
    assert judge.reference
    assert all("Reference answer: f(a=2)" in text for text in policy.asked)
    with pytest.raises(ConfigError, match="no reference answer"):
        asyncio.run(judge(place(Graded("x", policy.masses))))


def test_a_state_is_asked_about_once():
    policy = Graded("so", {"A": 0.5, "B": 0.25})
    judge, at = SelfEvaluation(), place(policy)
    assert asyncio.run(judge(at)) == asyncio.run(judge(at)) == pytest.approx(0.375)
    assert len(policy.asked) == 4  # two options, in two orders


def test_what_is_put_into_the_prompt_is_not_filled_itself():
    policy = Graded("{task} {b}", {"A": 0.5, "B": 0.25})
    asyncio.run(SelfEvaluation()(place(policy, question="write {text}")))
    assert all("Question: write {text}\n" in text for text in policy.asked)
    assert all("Solution so far: {task} {b}" in text for text in policy.asked)


def test_an_option_of_several_tokens_is_their_product():
    class Halves(ScriptedPolicy):
        async def score(self, ids):
            return [math.log(0.5)] * (len(ids) - 1)

    policy = Halves(["x"])
    found = asyncio.run(option_masses(policy, Chat(policy.tokenizer), [1, 2], ["A", "yes"]))
    assert found == pytest.approx([0.5, 0.125])
