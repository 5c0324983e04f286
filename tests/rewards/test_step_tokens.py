"""Process reward models that are read at a token behind each step."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer

from agentrl.chat import Chat
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.errors import ConfigError, DataError
from agentrl.rewards import heard_steps, load_reward, path_score, scored
from agentrl.rewards.classifier import SequenceClassifier
from agentrl.rewards.steps import COMBINED, log_odds
from agentrl.rollouts.magicore import scores
from agentrl.search.evaluators import ByModel, judge_of
from agentrl.search.parts import Place
from agentrl.search.table import Table
from agentrl.tree import Cursor, Tree
from agentrl.types import SamplingParams
from tests.fakes import attempt_at
from tests.fixtures.families import base

MARK = "<extra_0>"
ANSWER = "Step 1: six\n\nStep 2: seven\n"
POLICY = Chat(ByteTokenizer())
OWN = Chat(CharTokenizer(extra=(MARK,)))
"""The reward model's tokenizer and template, which are not the policy's."""


def config(vocab, labels=2):
    torch.manual_seed(3)
    return transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.5,
        num_labels=labels,
        pad_token_id=0,
    )


def headed(vocab=OWN.tokenizer.vocab_size):
    return transformers.LlamaForTokenClassification(config(vocab)).eval()


def spoken(vocab=OWN.tokenizer.vocab_size):
    return transformers.LlamaForCausalLM(config(vocab)).eval()


def read(model, ids, labels=(0, 1)):
    """The log-odds of good, at each token, as transformers itself computes them."""
    with torch.inference_mode():
        logits_TL = model(input_ids=torch.tensor([ids])).logits[0]
    return (logits_TL[:, labels[1]] - logits_TL[:, labels[0]]).tolist()


def published(text):
    """A path as such models are shown it: the marker behind each step, blanks after it."""
    marked = text.replace("six\n", f"six{MARK}\n").replace("seven\n", f"seven{MARK}")
    tree = attempt_at("t", 0, 1.0, text)[0]
    ids = [*OWN.prompt(tree.task.prompt), *OWN.encode(marked, trusted=True)]
    (mark,) = OWN.encode(MARK, trusted=True)
    return ids, [i for i, token in enumerate(ids) if token == mark]


@pytest.mark.parametrize("kind", ["head", "words"])
def test_every_step_is_read_at_its_marker_in_one_pass(kind):
    good, bad = OWN.encode("+")[0], OWN.encode("-")[0]
    model = headed() if kind == "head" else spoken()
    labels = {} if kind == "head" else {"labels": ("-", "+")}
    scorer = SequenceClassifier(model, chat=OWN, step_token=MARK, **labels)
    tree, attempt = attempt_at("t", 0, 1.0, ANSWER)
    ids, places = published(ANSWER)
    said = read(model, ids, (0, 1) if kind == "head" else (bad, good))
    passes = []
    model.base_model.register_forward_hook(
        lambda module, args, kwargs, out: passes.append(kwargs["input_ids"].tolist()),
        with_kwargs=True,
    )
    asked = heard_steps(scorer, POLICY, (tree, attempt.leaf))
    found = asyncio.run(scorer.steps(*asked))
    assert passes == [[ids]], "the model reads what it was trained on, once"
    assert found == pytest.approx([said[i] for i in places], abs=1e-4)


def test_steps_asked_for_at_one_time_are_one_batch():
    model = headed()
    scorer = SequenceClassifier(model, chat=OWN, step_token=MARK)
    (mark,) = OWN.encode(MARK, trusted=True)
    alone, passes = read(model, [5, 6, mark, 7, 8, mark]), []
    model.base_model.register_forward_hook(
        lambda module, args, kwargs, out: passes.append(kwargs["input_ids"].shape), with_kwargs=True
    )

    async def ask():
        return await asyncio.gather(scorer.steps([5, 6, 7, 8], [1, 3]), scorer.reward([5, 6]))

    steps, first = asyncio.run(ask())
    assert passes == [(2, 6)]
    assert steps == pytest.approx([alone[2], alone[5]], abs=1e-4)
    assert first == pytest.approx(alone[2], abs=1e-4), "a whole path is read behind its end"
    assert scorer.scores([[5, 6]]) == pytest.approx([alone[2]], abs=1e-4)


@pytest.mark.parametrize("combine", COMBINED)
def test_an_answers_score_is_its_steps_combined(combine):
    scorer = SequenceClassifier(headed(), chat=OWN, step_token=MARK, combine=combine)
    tree, attempt = attempt_at("t", 0, 1.0, ANSWER)
    ids, places = published(ANSWER)
    said = read(scorer.model, ids)
    parts = [1 / (1 + math.exp(-said[i])) for i in places]
    p = {"product": parts[0] * parts[1], "min": min(parts), "mean": sum(parts) / 2}
    expected = p.get(combine, parts[1])
    score = asyncio.run(path_score(scorer, POLICY, (tree, attempt.leaf)))
    assert 1 / (1 + math.exp(-score)) == pytest.approx(expected, abs=1e-5)
    place = (tree, attempt.leaf)
    assert asyncio.run(scored(scorer, POLICY, [place, place])) == pytest.approx([score, score])


def test_log_odds_are_finite():
    assert log_odds(0.5) == 0
    assert log_odds(1 / (1 + math.exp(-3))) == pytest.approx(3)
    assert -700 < log_odds(0.0) < -600
    assert 30 < log_odds(1.0) < 40


def test_a_model_with_the_policys_tokenizer_reads_the_prompts_own_ids():
    scorer = SequenceClassifier(headed(ByteTokenizer.vocab_size), chat=POLICY, step_token="#")
    tree, attempt = attempt_at("t", 0, 1.0, ANSWER)
    ids, ends = heard_steps(scorer, POLICY, (tree, attempt.leaf))
    assert ids[: len(tree.nodes[0].token_ids)] == list(tree.nodes[0].token_ids)
    assert POLICY.decode(ids[: ends[0] + 1]).endswith("six")
    assert POLICY.decode(ids).endswith("six\n\nStep 2: seven")
    blank, leaf = attempt_at("t", 1, 0.0, "\n")
    ids, ends = heard_steps(scorer, POLICY, (blank, leaf.leaf))
    assert ends == [len(ids) - 1], "an answer that says nothing is one step"
    more = tree.add(attempt.leaf, "user", "template", POLICY.encode("and?"))
    with pytest.raises(ConfigError, match="answers of one turn alone"):
        heard_steps(scorer, POLICY, (tree, more.id))


def test_searches_and_magicore_judge_by_it():
    scorer = SequenceClassifier(headed(), chat=OWN, step_token=MARK)
    tree = Tree(attempt_at("t", 0, 1.0)[0].task)
    cursor = Cursor(tree, ScriptedPolicy([ANSWER]), POLICY, SamplingParams())
    cursor.begin(tree.task.prompt)
    problem = cursor.fork()
    asyncio.run(cursor.sample())
    ids, places = published(ANSWER)
    said = read(scorer.model, ids)
    parts = [1 / (1 + math.exp(-said[i])) for i in places]
    place = Place(cursor, Table().add(cursor.node, None))
    judge = ByModel(scorer)
    assert asyncio.run(judge(place)) == pytest.approx(parts[0] * parts[1], abs=1e-5)
    whole, steps = asyncio.run(scores(problem, ANSWER, judge, judge))
    assert steps == pytest.approx(parts, abs=1e-5)
    assert whole == pytest.approx(parts[0] * parts[1], abs=1e-5)


def test_what_cannot_be_is_refused():
    for model, options, says in (
        (headed(), {"step_token": MARK}, "give its chat"),
        (headed(), {"step_token": "", "chat": OWN}, "is no token"),
        (spoken(), {"step_token": MARK, "chat": OWN}, r"\(labels\)"),
        (spoken(), {"labels": ("-", "+"), "chat": OWN}, "give step_token"),
        (headed(), {"step_token": MARK, "chat": OWN, "labels": ("-", "+")}, "language head"),
        (spoken(), {"step_token": MARK, "chat": OWN, "labels": ("+", "+")}, "two different"),
        (headed(), {"step_token": MARK, "chat": OWN, "combine": "max"}, "max"),
    ):
        with pytest.raises(ConfigError, match=says):
            SequenceClassifier(model, **options)
    scorer = SequenceClassifier(headed(), chat=OWN, step_token=MARK)
    with pytest.raises(DataError, match="257 tokens are more"):
        asyncio.run(scorer.steps([5] * 255, [1, 254]))
    with pytest.raises(DataError, match="one after the other"):
        asyncio.run(scorer.steps([5] * 9, [8, 1]))


class Process(transformers.LlamaForTokenClassification):
    """With the head of Qwen2.5-Math-PRM, and the end of its name."""

    def __init__(self, config):
        super().__init__(config)
        d = config.hidden_size
        self.score = torch.nn.Sequential(
            torch.nn.Linear(d, d), torch.nn.ReLU(), torch.nn.Linear(d, 2)
        )


Process.__name__ = "LlamaForProcessRewardModel"


def saved(folder, model, template=None):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(base()), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_tokens([AddedToken(MARK, special=True, normalized=False)])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return tokenizer


def test_it_is_loaded_by_name(tmp_path):
    vocab = 420
    model = Process(config(vocab)).eval()
    tokenizer = saved(tmp_path / "headed", model)
    scorer = load_reward(f"{tmp_path / 'headed'}?step_token={MARK}&combine=min", device="cpu")
    tree, attempt = attempt_at("t", 0, 1.0, ANSWER)
    question = tree.task.prompt[-1].content
    text = f"<s>{question} Step 1: six{MARK}\n\nStep 2: seven{MARK}"
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = read(model, ids)
    mark = tokenizer.convert_tokens_to_ids(MARK)
    worst = min(found[i] for i, token in enumerate(ids) if token == mark)
    score = asyncio.run(path_score(scorer, POLICY, (tree, attempt.leaf)))
    assert score == pytest.approx(worst, abs=1e-4)
    saved(tmp_path / "spoken", spoken(vocab))
    judge = judge_of(f"reward:{tmp_path / 'spoken'}?step_token={MARK}&good=+&bad=-")
    assert judge.model.step_token == MARK
    good, bad = (tokenizer.encode(x, add_special_tokens=False)[-1] for x in "+-")
    found = read(spoken(vocab), ids, (bad, good))
    expected = [found[i] for i, token in enumerate(ids) if token == mark]
    asked = heard_steps(judge.model, POLICY, (tree, attempt.leaf))
    assert asyncio.run(judge.model.steps(*asked)) == pytest.approx(expected, abs=1e-4)
    for name, says in (
        ("headed?token=x", "setting of a reward model"),
        ("spoken?step_token=x&good=+", "name both tokens"),
        ("spoken?step_token=x", "is no reward model but LlamaForCausalLM"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_reward(str(tmp_path / name), device="cpu")
