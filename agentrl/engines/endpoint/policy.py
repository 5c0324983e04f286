"""A model behind an endpoint as a policy: it can be evaluated and can teach, not be trained.

It is shown the conversation, not token ids, and gives text back without log-probabilities. The text
is encoded with a local tokenizer to stand in the tree, as a hint: what reads log-probabilities
refuses it.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from agentrl.chat import Chat
from agentrl.engines.endpoint.budget import Prices
from agentrl.engines.endpoint.client import KEY_ENV, Endpoint
from agentrl.engines.scripted import ByteTokenizer
from agentrl.errors import ConfigError, ContextFullError
from agentrl.toolcalls import said_with_calls
from agentrl.types import (
    Completion,
    FinishReason,
    Message,
    Role,
    SamplingParams,
    Source,
    ToolSpec,
)

CACHE_ENV = "AGENTRL_ANSWERS"
PREFILL = {"continue_final_message": True, "add_generation_prompt": False}
"""What vLLM and SGLang want to go on with the last message instead of answering it."""


_MOST_RESTS = 4096


@dataclass(frozen=True, slots=True)
class _Said:
    """What the model said, or the rest of it; its tokens count once."""

    text: str
    finish: FinishReason
    tokens: int | None


class EndpointPolicy:
    """`openai:MODEL@URL`. See `agentrl.interfaces.Converses`.

    Stop strings are not sent: servers take them out of the text and do not say whether one ended
    it. The text is cut here, behind the first of them; if the turn then goes on as it stands, the
    rest of what was said follows. With `prefill`, the server can go on with an assistant turn that
    a hint or a limit interrupted; without, only tool output may stand between two calls in one turn
    (it is sent as a user's message).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        tokenizer: Any = None,
        prefill: bool = False,
        max_context: int = 1 << 20,
    ) -> None:
        self.endpoint, self.prefill, self.max_context = endpoint, prefill, max_context
        self.tokenizer = tokenizer or ByteTokenizer()
        self.name, self.version = f"openai:{endpoint.model}@{endpoint.url}", 0
        self._chat = Chat(self.tokenizer)
        self._rests: OrderedDict[str, list[_Said]] = OrderedDict()  # by what stood before the cut

    async def converse(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        turn: Sequence[tuple[Source, str]],
        params: SamplingParams,
    ) -> Completion:
        """The assistant's next words. See `agentrl.interfaces.Converses.converse`."""
        said = _messages(turn)
        if rests := self._rests.get(_place(messages, said)):  # several attempts may be there
            return self._cut(rests.pop(0), params.stop, messages, turn)
        fields: dict[str, Any] = {}
        if said and said[-1].role == "assistant":
            if not self.prefill:
                raise ConfigError(
                    f"{self.name}: this rollout goes on with an assistant turn that it "
                    "interrupted, which a chat endpoint cannot do. Use another rollout, or "
                    "policy.prefill=true where the server can (vLLM, SGLang)."
                )
            fields = PREFILL
        try:
            reply = await self.endpoint.chat(
                [*messages, *said],
                replace(params, stop=()),
                tools=tools,
                sample=params.seed or 0,
                **fields,
            )
        except ContextFullError:
            return Completion((), (), "length", trainable=False)
        text = said_with_calls(reply.text, reply.tool_calls, with_id=True)
        heard = _Said(text, "length" if reply.truncated else "eos", reply.completion_tokens)
        return self._cut(heard, params.stop, messages, turn)

    def _cut(
        self,
        heard: _Said,
        stops: Sequence[str],
        messages: Sequence[Message],
        turn: Sequence[tuple[Source, str]],
    ) -> Completion:
        """What was said up to the first stop string, as a completion; the rest is kept."""
        text, finish, stop = heard.text, heard.finish, None
        found = [(text.find(s) + len(s), s) for s in stops if s in text]
        if found:
            end, stop = min(found)
            place = _place(messages, _messages([*turn, ("policy", text[:end])]))
            self._rests.setdefault(place, []).append(_Said(text[end:], finish, 0))
            if len(self._rests) > _MOST_RESTS:
                self._rests.popitem(last=False)
            text, finish = text[:end], "stop"
        ids = self._chat.encode(text)
        if finish == "eos":
            ids += self._chat.encode(self._chat.end_text, trusted=True)
        return Completion(tuple(ids), (), finish, stop=stop, trainable=False, tokens=heard.tokens)

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """Raises ConfigError: an endpoint takes no token ids. A `Cursor` calls `converse`."""
        self._refuse("continues conversations, not token ids: sample through a Cursor")

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Raises ConfigError: an endpoint gives no log-probabilities."""
        self._refuse("gives no log-probabilities, so nothing it says can be scored or trained on")

    async def update(self, weights: Mapping[str, Any]) -> None:
        """Raises ConfigError: an endpoint takes no weights."""
        self._refuse("takes no weights; train a model that runs here")

    async def close(self) -> None:
        """Close the connections."""
        await self.endpoint.close()

    def _refuse(self, why: str) -> NoReturn:
        raise ConfigError(f"{self.name} {why}")


def _messages(turn: Sequence[tuple[Source, str]]) -> list[Message]:
    """The turn so far as messages: its own words, and what the environment put in between."""
    said: list[Message] = []
    for source, text in turn:
        role: Role = "user" if source == "environment" else "assistant"
        if said and said[-1].role == role:
            said[-1] = replace(said[-1], content=said[-1].content + text)
        else:
            said.append(Message(role, text))
    return said


def _place(messages: Sequence[Message], said: Sequence[Message]) -> str:
    """What tells one place in a conversation from another."""
    text = "\x1f".join(f"{m.role}\x1e{m.content}" for m in (*messages, *said))
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


def endpoint_policy(
    place: str,
    *,
    key_env: str = KEY_ENV,
    cache: str | None = None,
    tokenizer: str = "bytes",
    prefill: bool = False,
    max_context: int = 1 << 20,
    concurrency: int = 16,
    timeout_s: float = 120.0,
    deadline_s: float = 300.0,
    retries: int = 6,
    input_price: float | None = None,
    output_price: float | None = None,
    limit_name: str = "max_tokens",
) -> EndpointPolicy:
    """The policy `openai:PLACE`, where PLACE is MODEL@URL (MODEL alone: at OPENAI_BASE_URL).

    `tokenizer` is whose tokens stand in the tree: `bytes`, or a name that transformers knows.
    Prices are money for a million tokens. Where a policy is only named (a recipe's teacher), cache
    and prices come from AGENTRL_ANSWERS and AGENTRL_PRICES of the environment. For other options
    see `Endpoint` and `EndpointPolicy`; what may be spent is `process_budget`'s. Raises ConfigError
    for a place or an option that cannot be.
    """
    model, _, url = place.rpartition("@") if "@" in place else (place, "", "")
    if (input_price is None) != (output_price is None):
        raise ConfigError(f"openai:{model}: give both input_price and output_price, or neither")
    priced = Prices.of_environment()
    if input_price is not None and output_price is not None:
        priced = Prices(float(input_price), float(output_price))
    if limit_name not in ("max_tokens", "max_completion_tokens"):
        raise ConfigError(
            f"openai:{model}: limit_name is max_tokens or max_completion_tokens, not {limit_name!r}"
        )
    endpoint = Endpoint(
        model,
        url,
        key_env=key_env,
        cache=cache or os.environ.get(CACHE_ENV),
        prices=priced,
        concurrency=concurrency,
        timeout_s=timeout_s,
        deadline_s=deadline_s,
        retries=retries,
        limit_name=limit_name,
    )
    return EndpointPolicy(
        endpoint, tokenizer=_tokenizer(tokenizer), prefill=prefill, max_context=max_context
    )


def _tokenizer(name: str) -> Any:
    if name == "bytes":
        return ByteTokenizer()
    from agentrl.chat import HFTokenizer
    from agentrl.engines.models import load_tokenizer

    return HFTokenizer(load_tokenizer(name))
