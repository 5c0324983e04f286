"""Emulated fine-tuning: its specification's values, and what the engine makes of three models."""

from __future__ import annotations

import asyncio
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tokenizers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from agentrl.engines import eft, load_policy  # noqa: E402
from agentrl.engines.characters import CharTokenizer  # noqa: E402
from agentrl.engines.eft import EFT, EXCLUDED, emulated  # noqa: E402
from agentrl.engines.hf import HFPolicy  # noqa: E402
from agentrl.engines.models import tiny_model  # noqa: E402
from agentrl.errors import ConfigError  # noqa: E402
from agentrl.types import SamplingParams  # noqa: E402

BASE, TUNED, UNTUNED = torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 0, 0]])


def probabilities(base, tuned, untuned, **options):
    return emulated(base, [tuned], untuned, **options).exp().tolist()


def test_the_values_of_the_specification():
    assert probabilities(BASE, TUNED, UNTUNED) == pytest.approx([0.4683, 0.4683, 0.0634], abs=5e-5)
    base, tuned = BASE.softmax(-1).tolist(), TUNED.softmax(-1).tolist()
    assert probabilities(BASE, TUNED, TUNED) == pytest.approx(base)
    assert probabilities(UNTUNED, TUNED, UNTUNED) == pytest.approx(tuned)
    assert probabilities(BASE, TUNED, UNTUNED, beta=0.0) == pytest.approx(base)


def test_constants_in_logits_change_nothing():
    moved = probabilities(BASE + 3, TUNED - 7, UNTUNED + 1)
    assert moved == pytest.approx(probabilities(BASE, TUNED, UNTUNED))


@pytest.mark.parametrize(("top_p", "left"), [(0.6, 1), (0.7, 2), (0.95, 3), (1.0, 3)])
def test_the_stabiliser_keeps_the_likeliest_of_the_base(top_p, left):
    # the base: .6652, .2447, .0900
    made = emulated(BASE, [TUNED], UNTUNED, top_p=top_p)
    assert float(made.exp().sum()) == pytest.approx(1)
    assert (made > EXCLUDED).tolist() == [True] * left + [False] * (3 - left)


def test_two_tuned_models_are_blended():
    other = torch.tensor([0.0, 0, 2])
    made = emulated(UNTUNED, [TUNED, other], UNTUNED, weights=(0.25, 0.75))
    expected = 0.25 * TUNED.log_softmax(-1) + 0.75 * other.log_softmax(-1)
    assert made.tolist() == pytest.approx(expected.log_softmax(-1).tolist())
    alone = emulated(BASE, [TUNED, other], UNTUNED, weights=(1.0, 0.0))
    assert alone.exp().tolist() == pytest.approx(probabilities(BASE, TUNED, UNTUNED))


def test_filled_up_columns_are_no_nan():
    fill = torch.tensor([-math.inf])
    made = probabilities(*(torch.cat([x, fill]) for x in (BASE, TUNED, UNTUNED)))
    assert made == pytest.approx([0.4683, 0.4683, 0.0634, 0], abs=5e-5)


TOKENIZER = CharTokenizer()


def tiny(seed, **options):
    size = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 2, "max_positions": 128} | options
    return tiny_model(TOKENIZER.vocab_size, init_std=0.2, seed=seed, **size)


def test_the_engine_serves_it_exactly_with_all_keys_and_values():
    """Different depths, widths and heads; scores and samples are those of a plain forward."""
    models = [tiny(0, hidden=64, layers=2, heads=4, max_positions=64), tiny(1), tiny(2)]
    model = EFT(*models, beta=0.7)
    policy = HFPolicy(model, TOKENIZER)  # which compares itself with a plain forward
    assert policy.max_context == 64
    prompt, params = TOKENIZER.encode("1+2="), SamplingParams(max_tokens=12, seed=3)

    async def go():
        both = [policy.sample(prompt, params), policy.sample(TOKENIZER.encode("7*8=?"), params)]
        made = (await asyncio.gather(*both))[0]
        again = await policy.sample([*prompt, *made.token_ids[:4]], SamplingParams(1, 0.0))
        scored = await policy.score([*prompt, *made.token_ids])
        await policy.close()
        return made, again, scored

    made, again, scored = asyncio.run(go())
    assert policy.stats.tokens_reused > 0
    ids = torch.tensor([[*prompt, *made.token_ids]])
    with torch.no_grad():
        plain = [m(ids).logits[0, len(prompt) - 1 :] for m in models]
        wanted = emulated(plain[0], plain[1:2], plain[2], beta=0.7, top_p=0.95)
    own = wanted[:-1].gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()
    assert list(made.logprobs) == pytest.approx(own, abs=1e-4)
    assert scored[len(prompt) - 1 :] == pytest.approx(own, abs=1e-4)
    assert again.token_ids[0] == int(wanted[4].argmax())


def test_the_base_alone_and_the_tuned_alone():
    base, tuned, untuned = tiny(0, layers=2), tiny(1), tiny(2)
    ids = torch.tensor([TOKENIZER.encode("what is 6*7?")])
    with torch.no_grad():
        for model, wanted in (
            (EFT(base, untuned, untuned, top_p=1.0), base),
            (EFT(untuned, tuned, untuned, top_p=1.0), tuned),
            (EFT(base, tuned, untuned, beta=0.0, top_p=1.0), base),
        ):
            torch.testing.assert_close(model(ids).logits, wanted(ids).logits.log_softmax(-1))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"weights": (0.4,)}, "their sum is 1"),
        ({"top_p": 0.0}, "top_p is above 0"),
        ({"untuned": tiny(2).half()}, "one dtype"),
    ],
)
def test_what_does_not_go_together(change, error):
    models = {"base": tiny(0), "tuned": tiny(1), "untuned": tiny(2)}
    with pytest.raises(ConfigError, match=error):
        EFT(**{**models, **change})


@pytest.fixture
def named(monkeypatch):
    """Models and tokenizers by name, where a hub or a disk would be."""
    models = {"large": tiny(0, layers=2), "tuned": tiny(1), "small": tiny(2)}
    known = {name: vocabulary() for name in models} | {"other": vocabulary("<|more|>")}
    monkeypatch.setattr(eft, "load_model", lambda name, dtype, device: models[name])
    monkeypatch.setattr(eft, "load_tokenizer", lambda name, chat=True: known[name])


def vocabulary(*extra):
    """A transformers tokenizer of bytes, with a chat template."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    made.add_tokens([*"0123456789+=", *extra])
    made.chat_template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    return made


def test_by_name(named):
    policy = load_policy("eft:large", tuned="tuned", untuned="small", beta=0.5, max_batch=2)
    assert (policy.model.beta, policy.name) == (0.5, "eft:large+tuned-small")
    made = asyncio.run(policy.sample(policy.tokenizer.encode("1+2="), SamplingParams(3)))
    assert len(made.token_ids) == 3
    asyncio.run(policy.close())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tuned": "tuned"}, "policy.untuned=NAME"),
        ({"tuned": "tuned", "untuned": "other"}, "'other' has another vocabulary than 'tuned'"),
        ({"tuned": "tuned", "untuned": "small", "gamma": 1}, "unknown option.*'gamma'"),
    ],
)
def test_names_that_do_not_go_together(named, options, error):
    with pytest.raises(ConfigError, match=error):
        load_policy("eft:large", **options)
