"""The tokenizer of characters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentrl.chat import Chat
from agentrl.engines.characters import CHARACTERS, END, CharTokenizer
from agentrl.interfaces import Tokenizer
from agentrl.types import Message, ToolCall, ToolSpec

TOKENIZER = CharTokenizer(extra=["<|good|>"])


def test_a_short_conversation_has_few_tokens():
    assert isinstance(TOKENIZER, Tokenizer)
    chat = Chat(TOKENIZER)
    assert len(chat.prompt([Message("user", "2+2")])) == 6
    assert chat.prefix_stable
    assert chat.end_text == END
    shown = TOKENIZER.render([Message("user", "2+2"), Message("assistant", "4")])
    assert shown == "<|user|>2+2<|end|><|assistant|>4<|end|>"
    assert len(TOKENIZER.encode(shown)) == 8


@given(st.text(st.sampled_from(CHARACTERS)))
def test_printable_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text, special=False)) == text
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_marks_are_made_only_where_they_are_wanted():
    end = next(iter(TOKENIZER.eos_ids))
    assert TOKENIZER.encode(f"a{END}b").count(end) == 1
    assert end not in TOKENIZER.encode(f"a{END}b", special=False)
    assert TOKENIZER.encode("<|good|>") != TOKENIZER.encode("<|good|>", special=False)
    assert TOKENIZER.decode(TOKENIZER.encode("é")) == "\ufffd"
    assert CharTokenizer().fingerprint != TOKENIZER.fingerprint


def test_calls_stand_between_their_tags():
    tool = ToolSpec("add", "", {"type": "object", "properties": {}})
    call = ToolCall("add", {"a": 1})
    shown = TOKENIZER.render([Message("assistant", "", (call,))], tools=[tool])
    assert "<|tool|>add<|end|>" in shown
    parsed = Chat(TOKENIZER).parse(shown.partition("<|assistant|>")[2].removesuffix(END))
    assert parsed.tool_calls[0].arguments == {"a": 1}
    again = TOKENIZER.render([parsed], tools=[tool])
    assert again == shown
