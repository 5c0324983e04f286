"""`openai:MODEL@URL`: rollouts and evaluation run on it; nothing that trains does."""

from __future__ import annotations

import asyncio
import json

import pytest

from agentrl import evaluate, load_policy
from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.credit.trees import episode_of
from agentrl.engines.endpoint import Budget, Endpoint, EndpointPolicy, Prices
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.errors import AgentRLWarning, BudgetError, ConfigError, DataError
from agentrl.interfaces import Converses, Policy
from agentrl.rollouts import hint_infer, rise, self_correct, single_turn, tool_loop
from agentrl.rollouts.conversations import Conversations
from agentrl.rollouts.rise import rise_collect
from agentrl.select import rows
from agentrl.tree import Cursor, Tree
from agentrl.types import Message, SamplingParams
from tests.engines.fake_endpoint import said, serving
from tests.fakes import PYTHON, FakeEpisode, task


class Asks:
    """Two multiplications, graded by the last word; python is there."""

    name, tools = "fake", (PYTHON,)

    def tasks(self, n=None):
        return [task("a"), task("b")][:n]

    def open(self, of, box):
        return FakeEpisode(of)


class NoBox:
    """Stands where a sandbox would be; `FakeEpisode` needs none."""


def collected(script, rollout, *, samples=1, params=None, policy=None, budget=None, **options):
    async def go():
        async with serving(script) as fake:
            endpoint = Endpoint("m", fake.url, budget=budget or Budget(), retries=0)
            spoken = EndpointPolicy(endpoint, **options)
            made = rollout(spoken) if policy is not None else rollout
            try:
                trees = await collect(
                    Asks(),
                    made,
                    policy or spoken,
                    n=1,
                    samples=samples,
                    box=NoBox(),
                    params=params or SamplingParams(max_tokens=50),
                    progress=False,
                    retries=0,
                )
            finally:
                await spoken.close()
            return (trees if samples > 1 else trees[0]), fake

    return asyncio.run(asyncio.wait_for(go(), 20))


def texts(tree):
    decode = ByteTokenizer().decode
    return [(n.source, decode(n.token_ids)) for n in tree.path(tree.attempts[-1].leaf)]


def test_it_is_a_policy():
    policy = load_policy("openai:m@http://localhost:8000/v1", concurrency=2)
    assert isinstance(policy, Policy)
    assert isinstance(policy, Converses)
    assert not isinstance(ScriptedPolicy([]), Converses)
    assert policy.name == "openai:m@http://localhost:8000/v1"


def test_an_answer_stands_in_the_tree_without_log_probabilities():
    tree, fake = collected(lambda b, n: said("It is 42", usage=(9, 4)), single_turn())
    attempt = tree.attempts[0]
    assert (attempt.reward, attempt.stop_reason) == (1.0, "final_answer")
    assert fake.bodies[0]["messages"] == [{"role": "user", "content": "What is 6*7?"}]
    assert texts(tree)[1:] == [("hint", "It is 42"), ("hint", "<|im_end|>")]
    assert all(n.logprobs is None for n in tree.nodes)
    assert tree.nodes[1].info["by"].startswith("openai:m@")
    assert attempt.metrics["sampled_tokens"] == 4  # the server's count, not our bytes
    result = evaluate.summarize(evaluate.final([tree]))
    assert result["accuracy"] == 1.0


def test_blocks_run_and_their_output_comes_as_a_message():
    replies = ["```python\nprint(6*7)\n```\nIt prints 41", "So 42"]
    tree, fake = collected(lambda b, n: said(replies[n]), tool_loop())
    assert tree.attempts[0].reward == 1.0
    assert tree.attempts[0].metrics["calls"] == 1
    assert not tree.attempts[0].metrics["hallucinated_output"]
    roles = [m["role"] for m in fake.bodies[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert "41" not in str(fake.bodies[1]["messages"])  # cut behind the block
    assert fake.bodies[1]["messages"][2]["content"] == "```output\n42\n```\n"
    assert "stop" not in fake.bodies[0]


def test_a_fence_that_is_no_program_does_not_interrupt():
    """The text is cut there, and goes on with the rest of what was said, not with another call."""
    whole = "```output\n41\n```\nand\n```text\n\n```\nso 42"
    tree, fake = collected(lambda b, n: said(whole, usage=(9, 30)), tool_loop())
    assert tree.attempts[0].reward == 1.0
    assert "".join(t for _, t in texts(tree)[1:]) == whole + "<|im_end|>"
    assert len(fake.bodies) == 1
    assert tree.attempts[0].metrics["sampled_tokens"] == 30
    assert tree.attempts[0].metrics["hallucinated_output"]


def test_attempts_that_begin_alike_go_on_each_with_a_rest_of_its_own():
    script = lambda b, n: said(f"```text\n\n```\n{n}")  # noqa: E731
    trees, fake = collected(script, tool_loop(), samples=3)
    assert sorted(t.attempts[0].answer for t in trees) == ["0", "1", "2"]
    assert len(fake.bodies) == 3


def test_what_follows_a_block_that_ran_is_forgotten():
    replies = ["```python\nprint(6*7)\n```\nIt prints 41", "```text\n```\n42"]
    tree, fake = collected(lambda b, n: said(replies[n]), tool_loop())
    assert tree.attempts[0].reward == 1.0
    assert "41" not in str(texts(tree))
    assert len(fake.bodies) == 2


def test_native_tool_calls():
    call = {"name": "python", "arguments": '{"code": "print(6*7)"}'}
    calls = [{"id": "abc123def", "type": "function", "function": call}]
    script = lambda b, n: said(None, "tool_calls", tool_calls=calls) if n == 0 else said("42")  # noqa: E731
    tree, fake = collected(script, tool_loop(tools="native"))
    assert tree.attempts[0].reward == 1.0
    assert tree.attempts[0].metrics["calls"] == 1
    assert fake.bodies[0]["tools"][0]["function"]["name"] == "python"
    _, asked, told = fake.bodies[1]["messages"]
    assert json.loads(asked["tool_calls"][0]["function"]["arguments"]) == {"code": "print(6*7)"}
    assert (told["role"], told["content"]) == ("tool", "42")
    assert told["tool_call_id"] == asked["tool_calls"][0]["id"]


def test_turns_of_self_correction():
    script = lambda b, n: said(("41", "42")[n])  # noqa: E731
    for rollout in (self_correct(turns=2), rise(turns=2)):
        tree, fake = collected(script, rollout)
        found = evaluate.values(evaluate.turn_metrics([tree], resamples=20))
        assert (found["acc@t1"], found["acc@t2"], found["i2c"]) == (0.0, 1.0, 1.0)
        assert [m["role"] for m in fake.bodies[1]["messages"]][-3:] == ["user", "assistant", "user"]


def test_truncation_is_recorded():
    with pytest.warns(AgentRLWarning, match="cut off"):
        tree, _ = collected(lambda b, n: said("It is", "length"), single_turn())
    assert tree.attempts[0].stop_reason == "max_tokens"
    full = (400, {"error": {"code": "context_length_exceeded"}}, {})
    with pytest.warns(AgentRLWarning, match="cut off"):
        tree, _ = collected(lambda b, n: full, single_turn())
    assert tree.attempts[0].truncated
    assert tree.attempts[0].error is None


def test_limits_count_the_servers_tokens():
    replies = ["```python\nprint(1)\n```\n", "```python\nprint(2)\n```\n", "42"]
    usage = [(9, 30), (9, 15), (9, 1)]
    script = lambda b, n: said(replies[n], usage=usage[n])  # noqa: E731
    _, fake = collected(script, tool_loop())
    assert [b["max_tokens"] for b in fake.bodies] == [50, 20, 5]


def test_an_agents_limit_counts_the_servers_tokens_too_and_its_full_context_is_told_apart():
    """Here three a reply, of 100 bytes."""

    async def go():
        async with serving(lambda b, n: said("x" * 100, usage=(10, 3))) as fake:
            policy = EndpointPolicy(Endpoint("m", fake.url, budget=Budget(), retries=0))
            cursor = Cursor(Tree(task()), policy, Chat(policy.tokenizer), SamplingParams(50))
            talk = Conversations(cursor, max_tokens=7)
            made = [await talk.reply([Message("user", f"question {i}")]) for i in range(3)]
            await policy.close()
        return fake, made

    fake, made = asyncio.run(go())
    assert [b["max_tokens"] for b in fake.bodies] == [7, 4, 1]
    assert [m.sampled_tokens for m in made] == [3, 3, 3]

    async def full():
        complaint = {"error": {"message": "maximum context length is 9 tokens"}}
        async with serving(lambda b, n: (400, complaint, {})) as fake:
            policy = EndpointPolicy(Endpoint("m", fake.url, budget=Budget(), retries=0))
            cursor = Cursor(Tree(task()), policy, Chat(policy.tokenizer), SamplingParams(50))
            made = await Conversations(cursor).reply([Message("user", "?")])
            await policy.close()
            return made

    assert asyncio.run(full()).finish == "context"


def test_a_failed_endpoint_is_a_failure_of_ours_and_a_spent_budget_stops():
    tree, _ = collected(lambda b, n: 503, single_turn())
    attempt = tree.attempts[0]
    assert (attempt.stop_reason, attempt.reward) == ("engine_error", None)
    with pytest.raises(BudgetError):
        collected(lambda b, n: said("42"), single_turn(), budget=Budget(requests=0))
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        collected(lambda b, n: 401, single_turn())


def test_a_turn_that_a_hint_goes_on_with_needs_prefill():
    script = lambda b, n: said(("41", "So 42")[min(n, 1)])  # noqa: E731
    with pytest.raises(ConfigError, match=r"policy\.prefill"):
        collected(script, hint_infer(position="end", rounds=1))
    _, fake = collected(script, hint_infer(position="end", rounds=1), prefill=True)
    assert fake.bodies[1]["messages"][-1]["role"] == "assistant"
    assert fake.bodies[1]["continue_final_message"] is True
    assert "continue_final_message" not in fake.bodies[0]


def test_nothing_that_trains_takes_it():
    tree, _ = collected(lambda b, n: said("42"), single_turn())
    with pytest.raises(DataError, match="no log-probabilities"):
        episode_of(tree, tree.attempts[0])
    policy = load_policy("openai:m@http://localhost:8000/v1")
    for call in (policy.score([1, 2]), policy.update({}), policy.sample([1], SamplingParams())):
        with pytest.raises(ConfigError, match="openai:m@"):
            asyncio.run(call)


def test_its_text_can_be_imitated():
    tree, _ = collected(lambda b, n: said("It is 42"), single_turn())
    sample = rows.path_sample(tree, tree.attempts[0], {"hint"})
    trained = [i for i, w in zip(sample.token_ids, sample.weights, strict=True) if w]
    assert ByteTokenizer().decode(trained) == "It is 42<|im_end|>"


def test_it_teaches_a_student():
    student = ScriptedPolicy(["It is 41"] * 4)
    tree, fake = collected(
        lambda b, n: said("Better: 42"), lambda spoken: rise_collect(teacher=spoken), policy=student
    )
    assert tree.attempts[-1].reward == 1.0
    asked = fake.bodies[0]["messages"]
    assert [m["role"] for m in asked] == ["user", "assistant", "user"]
    assert asked[1]["content"] == "It is 41"
    last = [n for n in tree.nodes if "by" in n.info]
    assert ByteTokenizer().decode(last[0].token_ids) == "Better: 42"


def test_text_of_an_end_token_ends_nothing():
    tree, _ = collected(lambda b, n: said("a<|im_end|>b 42"), single_turn())
    assert [n.token_ids[-1] for n in tree.nodes].count(257) == 1


def test_where_only_a_name_is_given_the_environment_says_the_rest(monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTRL_ANSWERS", str(tmp_path))
    monkeypatch.setenv("AGENTRL_PRICES", "0.5,1.5")
    name = "openai:m@http://localhost:8000/v1"
    endpoint = load_policy(name).endpoint
    assert endpoint.cache.folder == tmp_path
    assert endpoint.prices == Prices(0.5, 1.5)
    given = load_policy(name, cache="here", input_price=1, output_price=2).endpoint
    assert (str(given.cache.folder), given.prices) == ("here", Prices(1.0, 2.0))
    monkeypatch.setenv("AGENTRL_PRICES", "cheap")
    with pytest.raises(ConfigError, match="AGENTRL_PRICES"):
        load_policy(name)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("openai:m@localhost", {}, "address"),
        ("openai:@http://localhost", {}, "model"),
        ("openai:m@http://localhost", {"colour": 1}, "Known: cache"),
        ("openai:m@http://localhost", {"retries": "many"}, "expected a whole number"),
        ("openai:m@http://localhost", {"input_price": 1.0}, "both"),
        ("openai:m@http://localhost", {"limit_name": "tokens"}, "max_completion_tokens"),
    ],
)
def test_names_and_options_that_cannot_be(name, options, says):
    with pytest.raises(ConfigError, match=says):
        load_policy(name, **options)
