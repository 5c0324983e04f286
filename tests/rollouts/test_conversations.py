"""Histories that an agent sends become places in one tree, token for token."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

from agentrl.chat import Chat
from agentrl.credit import credited, episode_of
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.rollouts.conversations import Conversations, cut_reason
from agentrl.tree import Cursor, Tree
from agentrl.types import Message, SamplingParams, ToolCall
from tests.fakes import PYTHON, task

USER = Message("user", "What is 6*7?")
CALL = 'Compute.\n<tool_call>{"name": "python",  "arguments": {"code": "print(6*7)"}}</tool_call>'


def conversations(replies, max_tokens=None, **policy) -> Conversations:
    policy = ScriptedPolicy(replies, **policy)
    cursor = Cursor(Tree(task()), policy, Chat(policy.tokenizer), SamplingParams(4000), 0)
    return Conversations(cursor, max_tokens)


def said(talk: Conversations, *asked, **options):
    async def go():
        return [await talk.reply(messages, **options) for messages in asked]

    return asyncio.run(go())


def texts(talk: Conversations) -> list[str]:
    chat = talk.start.chat
    return [chat.decode(talk.start.tree.ids(leaf)) for leaf in talk.start.tree.leaves]


def sampled(rows) -> int:
    return sum(int(w) for row in rows for w in row.weights)


def test_a_history_that_goes_on_keeps_the_sampled_tokens():
    talk = conversations([CALL, "42"])
    (first,) = said(talk, [USER], tools=[PYTHON])
    assert first.message.content == "Compute."  # and no word of the call
    call = first.message.tool_calls[0]
    answer = Message("tool", "42", tool_call_id=call.id)
    # white space and JSON are the client's own business
    shown = replace(first.message, content="Compute.\n")
    (second,) = said(talk, [USER, shown, answer], tools=[PYTHON])
    path = talk.start.tree.path(second.node)
    assert [n.source for n in path if n.source == "policy"] == ["policy"] * 4
    assert CALL in texts(talk)[0]
    attempt = talk.finish(second, "final_answer", reward=1.0)
    assert (attempt.branches, attempt.metrics["calls"]) == ((), 1)
    rows = credited(talk.start.tree, attempt, [0.0] * len(talk.start.tree.ids(second.node)))
    assert sampled(rows) == len(talk.start.chat.encode(CALL, trusted=True)) + 1 + len("42") + 1


def test_numbers_are_the_same_however_they_are_written():
    """JavaScript writes 2.0 and 1e3 as 2 and 1000."""
    talk = conversations([CALL.replace('"print(6*7)"', '[2.0, {"x": 1e3}, 0.5, true]'), "42"])
    (first,) = said(talk, [USER], tools=[PYTHON])
    (call,) = first.message.tool_calls
    assert call.arguments == {"code": [2, {"x": 1000}, 0.5, True]}
    again = replace(call, arguments=json.loads('{"code": [2, {"x": 1000}, 0.5, true]}'))
    shown = replace(first.message, tool_calls=(again,))
    answer = Message("tool", "42", tool_call_id=call.id)
    (second,) = said(talk, [USER, shown, answer], tools=[PYTHON])
    assert first.node in [n.id for n in talk.start.tree.path(second.node)]


def test_two_replies_never_share_a_call_id():
    talk = conversations([CALL, CALL])
    one, two = said(talk, [USER], [USER], tools=[PYTHON])
    assert one.message.tool_calls[0].id != two.message.tool_calls[0].id


def test_one_reply_continued_twice_is_a_branch_at_its_node():
    talk = conversations(["first", "left", "right"])
    (first,) = said(talk, [USER])
    ends = said(
        talk,
        [USER, first.message, Message("user", "go left")],
        [USER, first.message, Message("user", "go right")],
    )
    tree = talk.start.tree
    assert len(tree.leaves) == 2
    attempt = talk.finish(ends[1], "final_answer", reward=0.5)
    assert attempt.branches == (ends[0].node,)
    episode = episode_of(tree, attempt)
    rows = credited(tree, attempt, [0.0] * len(episode.turns))
    assert sampled(rows) == sum(len(t) + 1 for t in ("first", "left", "right"))  # first, once


def test_the_same_question_again_shares_its_prompt_and_has_a_seed_of_its_own():
    seeds = []

    class Seeing(ScriptedPolicy):
        async def sample(self, prompt_ids, params):
            seeds.append(params.seed)
            return await super().sample(prompt_ids, params)

    policy = Seeing(lambda text: "ok")
    chat = Chat(policy.tokenizer)

    def once():
        talk = Conversations(Cursor(Tree(task()), policy, chat, SamplingParams(50), 7))
        said(talk, [USER], [USER])
        return talk.start.tree

    tree, again = once(), once()
    assert tree.nodes == again.nodes
    assert [n.source for n in tree.nodes].count("template") == 1
    assert seeds[:2] == seeds[2:]
    assert len(set(seeds)) == 2


def test_another_system_message_branches_at_the_first_token_that_differs():
    talk = conversations(["a", "b"])
    solver, critic = Message("system", "You solve."), Message("system", "You criticize.")
    one, two = said(talk, [solver, USER], [critic, USER])
    tree = talk.start.tree
    assert {n.source for n in tree.nodes} == {"template", "policy"}
    for made, system, reply in ((one, solver, "a"), (two, critic, "b")):
        wanted = [*talk.start.chat.prompt([system, USER]), ord(reply), 257]
        assert tree.ids(made.node) == wanted


def test_an_edited_history_carries_no_loss():
    talk = conversations(["forty-one", "42"])
    (first,) = said(talk, [USER])
    edited = replace(first.message, content="forty-two")
    (second,) = said(talk, [USER, edited, Message("user", "As a number.")])
    path = talk.start.tree.path(second.node)
    own = "".join(talk.start.chat.decode(n.token_ids) for n in path if n.source == "policy")
    assert own == "42<|im_end|>"
    attempt = talk.finish(second, "final_answer", reward=1.0)
    assert attempt.branches == (first.node,)


def test_calls_that_others_made_are_shown_to_the_policy():
    talk = conversations(["done"])
    call = ToolCall("python", {"code": "1"}, "abc")
    said(talk, [USER, Message("assistant", "", (call,)), Message("tool", "1", tool_call_id="abc")])
    assert '<tool_call>\n{"name": "python", "arguments": {"code": "1"}}' in texts(talk)[0]


def test_a_frozen_reply_is_context():
    talk = conversations([CALL, "42"])
    (first,) = said(talk, [USER], tools=[PYTHON], trained=False, agent="planner")
    assert first.message.tool_calls[0].name == "python"
    nodes = [talk.start.tree.nodes[i] for i in (1, 2)]
    assert [n.source for n in nodes] == ["environment"] * 2
    assert {n.info["agent"] for n in nodes} == {"planner"}
    answer = Message("tool", "42", tool_call_id=first.message.tool_calls[0].id)
    (second,) = said(talk, [USER, first.message, answer], tools=[PYTHON])
    assert talk.last(first.message) is first
    assert talk.last() is second
    attempt = talk.finish(second, "final_answer")
    advantages = [0.0] * len(talk.start.tree.ids(second.node))
    assert sampled(credited(talk.start.tree, attempt, advantages)) == len("42") + 1


def test_limits_are_limits_of_all_conversations_and_cut_calls_do_not_run():
    talk = conversations([CALL, "never"], max_tokens=40)
    (first,) = said(talk, [USER], tools=[PYTHON])
    assert (first.finish, cut_reason(first)) == ("length", "max_tokens")
    assert first.message.tool_calls == ()
    (second,) = said(talk, [USER, first.message, Message("user", "go on")], tools=[PYTHON])
    assert (second.finish, second.sampled_tokens) == ("length", 0)


def test_a_full_context_is_told_apart():
    talk = conversations(["x"], max_context=30)
    (first,) = said(talk, [Message("user", "y" * 40)])
    assert (first.finish, cut_reason(first)) == ("context", "context_full")


def test_a_stop_string_is_kept_in_the_tree_and_not_shown():
    talk = conversations(["one STOP two", "three"])
    (first,) = said(talk, [USER], stop=["STOP"])
    assert (first.message.content, first.finish) == ("one ", "stop")
    assert "one STOP" in texts(talk)[0]
    said(talk, [USER, replace(first.message, content="one"), Message("user", "?")])
    assert len(talk.start.tree.leaves) == 1
