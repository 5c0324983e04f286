"""Synthesis: what the verifier refuses is taken back, what it verified is shown again."""

from __future__ import annotations

import asyncio
import json

from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.rollouts import synthesize
from agentrl.select import refine
from agentrl.types import SamplingParams
from envs.scenarios import Scenarios
from tests.envs.test_scenarios import SCRIPT, game, turn

TOKENIZER = CharTokenizer()
CHAT = Chat(TOKENIZER)


def made(*answers):
    seen = []
    waiting = iter(a if isinstance(a, str) else json.dumps(a) for a in answers)

    def script(text):
        seen.append(text)
        return next(waiting)

    policy = ScriptedPolicy(script, tokenizer=TOKENIZER)
    params = SamplingParams(max_tokens=9999)
    trees = asyncio.run(
        collect(Scenarios(), synthesize(), policy, n=1, params=params, progress=False)
    )
    return trees[0], trees[0].attempts[-1], seen


def test_a_script_and_a_game():
    tree, attempt, _ = made(SCRIPT, game(False, False, True))
    assert (attempt.reward, attempt.stop_reason) == (1.0, "env_terminated")
    assert attempt.metrics["scenario"] == {"script": SCRIPT, "turns": game(False, False, True)}
    assert (attempt.metrics["errors"], attempt.metrics["played"]) == (2, 2)
    assert [n.info["ok"] for n in tree.path(attempt.leaf) if "ok" in n.info] == [True, True]


def test_a_refused_script_is_forgotten():
    tree, attempt, seen = made("no idea", SCRIPT, game(False, False, True))
    assert seen[0] == seen[1], "asked anew, as if for the first time"
    assert attempt.reward == 1.0
    assert "no idea" not in CHAT.decode(tree.ids(attempt.leaf))
    assert attempt.metrics["faults"] == ["the answer is not JSON"]


def test_after_a_fault_the_verified_turns_are_shown_and_the_rest_is_asked_for():
    broken = [*game(False, True, done=False), turn("fly"), turn(done=True)]
    tree, attempt, seen = made(SCRIPT, broken, game(False, True))
    assert "These turns are verified:" not in seen[1]
    assert json.dumps(game(False, True, done=False)) in seen[2]
    assert "turn 3: there is no action 'fly'" in seen[2]
    assert '"fly"' not in seen[2], "the fault's own text is all that is left of it"
    assert attempt.metrics["scenario"]["turns"] == game(False, True, done=False) + game(False, True)
    assert len([n for n in tree.nodes if n.info.get("ok") is False]) == 1, "the tree keeps the try"


def test_a_game_with_too_few_mistakes_is_made_from_scratch():
    _, attempt, seen = made(SCRIPT, game(False, True), game(False, False, True))
    assert seen[1] == seen[2]
    assert attempt.metrics["faults"] == ["there were 1 mistakes, and 2 are wanted"]
    assert attempt.reward == 1.0


def test_after_the_fourth_retry_it_is_given_up():
    _, attempt, seen = made(SCRIPT, *["no"] * 5)
    assert len(seen) == 6
    assert (attempt.reward, attempt.stop_reason) == (0.0, "max_turns")
    assert attempt.metrics["scenario"] is None


def test_rows_of_scenarios():
    graded = [made(SCRIPT, game(True, False, False, True))[:2] for _ in range(2)]
    graded.append(made(SCRIPT, *["no"] * 5)[:2])
    found, dropped = refine.scenarios(graded)
    assert len(found) == 1
    assert dropped == {"duplicate": 1, "never accepted": 1}
    sample = refine.scenario_sample(found[0], CHAT)
    trained = [i for i, w in zip(sample.token_ids, sample.weights, strict=True) if w]
    said = "Thought: t\nAction: take key<|end|>"
    assert CHAT.decode(trained) == said * 2
    assert CHAT.decode(sample.token_ids).count(said) == 4, "wrong turns stay as context"
    whole = refine.scenario_sample(found[0], CHAT, mask=False)
    assert list(whole.token_ids) == list(sample.token_ids)
    assert sum(whole.weights) == 2 * sum(sample.weights)
