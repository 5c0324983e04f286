"""New special tokens: in the tokenizer, in the embeddings, and never out of other people's text."""

from __future__ import annotations

import asyncio
import copy

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from agentrl.chat import Chat, HFTokenizer  # noqa: E402
from agentrl.engines.characters import CharTokenizer  # noqa: E402
from agentrl.engines.hf import HFPolicy  # noqa: E402
from agentrl.engines.models import tiny_model  # noqa: E402
from agentrl.engines.vocabulary import with_tokens  # noqa: E402
from agentrl.errors import ConfigError  # noqa: E402
from agentrl.rollouts.leti import LetiTokens  # noqa: E402
from agentrl.types import Message, SamplingParams  # noqa: E402
from sandboxes.feedback import GOOD, LETI_TOKENS  # noqa: E402
from tests.fixtures.families import hf  # noqa: E402


def policy(tokenizer) -> HFPolicy:
    return HFPolicy(tiny_model(tokenizer.vocab_size, hidden=32, layers=1), tokenizer)


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma"])
def test_tokens_are_added_and_embeddings_grow(family):
    tokenizer = HFTokenizer(copy.deepcopy(hf(family)))
    old = policy(tokenizer)
    n, before = tokenizer.vocab_size, old.model.get_input_embeddings().weight.detach().clone()

    async def go():
        new = await with_tokens(old, LETI_TOKENS, seed=3)
        tokens = LetiTokens.of(new.tokenizer)
        assert {tokens.good, tokens.bad, tokens.feedback_start, tokens.feedback_end} == set(
            range(n, n + 4)
        )
        weight = new.model.get_input_embeddings().weight
        assert weight.shape[0] == n + 4 == new.tokenizer.vocab_size
        assert torch.equal(weight[:n], before)
        assert new.model.get_output_embeddings().weight is weight
        done = await new.sample([tokens.good, 1, 2], SamplingParams(max_tokens=3, seed=1))
        assert len(done.token_ids) <= 3
        assert await with_tokens(new, LETI_TOKENS) is new
        await new.close()
        return Chat(new.tokenizer), weight.detach().clone()

    chat, first = asyncio.run(go())
    ids = chat.prompt([Message("user", f"what is {GOOD}?")])
    assert n not in ids, "a message cannot forge a verdict"
    assert chat.encode(f"{GOOD}def", trusted=True)[0] == n
    again = asyncio.run(
        with_tokens(policy(HFTokenizer(copy.deepcopy(hf(family)))), LETI_TOKENS, seed=3)
    )
    assert torch.equal(again.model.get_input_embeddings().weight, first), "the same seed, the same"


def test_a_tokenizer_of_our_own_is_made_with_them():
    ready = policy(CharTokenizer(LETI_TOKENS))
    assert asyncio.run(with_tokens(ready, LETI_TOKENS)) is ready
    with pytest.raises(ConfigError, match="make it with them"):
        asyncio.run(with_tokens(policy(CharTokenizer()), LETI_TOKENS))
