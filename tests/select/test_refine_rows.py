"""AgentRefine's rows (specification, section 6): wrong turns are context, repairs are learnt."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from agentrl.batch import collate  # noqa: E402
from agentrl.engines.models import tiny_model  # noqa: E402
from agentrl.errors import ConfigError  # noqa: E402
from agentrl.losses.sft import sft  # noqa: E402
from agentrl.record import Tree  # noqa: E402
from agentrl.select.refine import refined_samples, select, verdicts  # noqa: E402
from agentrl.types import Attempt, Message, Task  # noqa: E402

PROMPT = (1, 2)
END = 9


def game(oks, *, reward=1.0, first=10, **how) -> tuple[Tree, Attempt]:
    """A game of turns of two tokens and an end token (first, first + 1, END; first + 2, ...)."""
    tree = Tree(Task("t", (Message("user", "?"),), "rooms"))
    at = tree.add(None, "user", "template", PROMPT).id
    for i, ok in enumerate(oks):
        ids = (first + 2 * i, first + 2 * i + 1)
        at = tree.add(at, "assistant", "policy", ids, logprobs=(-0.1, -0.2)).id
        info = {"ok": ok} if ok else {"ok": ok, "error": "no"}
        at = tree.add(at, "assistant", "policy", (END,), logprobs=(-0.3,), info=info).id
        if i < len(oks) - 1:
            at = tree.add(at, "user", "environment", (3, 4)).id
    attempt = Attempt(at, "env_terminated", reward, **how)
    tree.attempts.append(attempt)
    return tree, attempt


def only(tree, attempt, **how):
    (sample,) = refined_samples(tree, attempt, **how)
    return sample


def turn_weights(sample, oks) -> list[list[float]]:
    """The weights of each turn's three tokens; everything else must weigh nothing."""
    at, turns = len(PROMPT), []
    rest = list(sample.weights[:at])
    for _ in oks:
        turns.append(list(sample.weights[at : at + 3]))
        rest += sample.weights[at + 3 : at + 5]
        at += 5
    assert not any(rest), "the prompt and the observations are never trained on"
    return turns


@pytest.mark.parametrize(
    "oks",
    [
        (True, False, True, True, True),
        (True, False, False, True, True),
        (True, True, True, True, True),
    ],
    ids=["one wrong", "two wrong in a row, then the repair", "none wrong"],
)
def test_wrong_turns_have_no_loss_and_stay(oks):
    sample = only(*game(oks))
    assert turn_weights(sample, oks) == [[float(ok)] * 3 for ok in oks]
    assert list(sample.token_ids) == game(oks)[0].ids(game(oks)[1].leaf), "nothing is deleted"
    assert sum(sample.weights) == 3 * sum(oks), "what the loss divides by: the kept tokens"


def test_without_the_mask_every_turn_is_learnt():
    oks = (True, False, True)
    assert turn_weights(only(*game(oks), mask=False), oks) == [[1.0] * 3] * 3


def loss_of(model, sample, ids=None):
    batch = collate([sample], [[0]])
    ids_BT = batch.input_ids_BT if ids is None else torch.tensor([ids])
    logits_BTV = model(input_ids=ids_BT).logits
    logprobs = logits_BTV[:, :-1].log_softmax(-1).gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
    logprobs_BT = torch.cat([torch.zeros(1, 1), logprobs], 1)
    return sft(logprobs_BT, batch, float(sum(sample.weights))).loss, logits_BTV


def test_a_wrong_turn_gives_no_gradient_but_is_read_by_what_follows():
    oks = (True, False, True, True, True)
    sample = only(*game(oks))
    model = tiny_model(32, hidden=16, layers=1, heads=2, kv_heads=2)
    start = len(PROMPT) + 5  # of the wrong turn
    loss, logits_BTV = loss_of(model, sample)
    (gradient_BTV,) = torch.autograd.grad(loss, logits_BTV)
    predicts = slice(start - 1, start + 2)  # the logits that predict its three tokens
    assert not gradient_BTV[0, predicts].any()
    assert gradient_BTV[0, start + 4].any(), "the repair is learnt"

    changed = list(sample.token_ids)
    changed[start] = 30
    _, other_BTV = loss_of(model, sample, changed)
    assert not torch.allclose(other_BTV[0, start + 4], logits_BTV[0, start + 4])


def test_the_loss_divides_by_kept_tokens():
    oks = (True, False, True)
    sample = only(*game(oks))
    model = tiny_model(32, hidden=16, layers=1, heads=2, kv_heads=2)
    loss, logits_BTV = loss_of(model, sample)
    ids = torch.tensor(sample.token_ids)
    logprobs_T = logits_BTV[0, :-1].log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
    kept = [t for t, w in enumerate(sample.weights) if w]
    assert len(kept) == 6
    assert loss.item() == pytest.approx(-sum(logprobs_T[t - 1].item() for t in kept) / 6, rel=1e-5)


CLEAN, ERRED, TWICE = (True, True), (False, True), (False, False, True)


def test_what_is_kept():
    games = [game(CLEAN), game(ERRED), game(TWICE), game(ERRED, reward=0.0)]
    games += [game(ERRED, error="sandbox"), game(ERRED, reward=None)]
    kept = select(games)
    assert [verdicts(*g) for g in kept.kept] == [list(ERRED), list(TWICE)]
    assert kept.dropped == {"too few errors": 1, "goal not reached": 2, "failed in our hands": 1}
    assert [verdicts(*g) for g in select(games, min_errors=2).kept] == [list(TWICE)]
    assert [verdicts(*g) for g in select(games, "clean").kept] == [list(CLEAN)]
    assert len(select(games, "all").kept) == 3
    capped = select(games, "all", cap=2)
    assert (len(capped.kept), capped.dropped["over the cap"]) == (2, 1)
    with pytest.raises(ConfigError, match="refined"):
        select(games, "refine")


def test_truncated_attempts_are_not_kept():
    tree, attempt = game(ERRED)
    attempt.stop_reason = "context_full"
    assert select([(tree, attempt)]).dropped == {"truncated": 1}


def test_turns_that_the_template_rewrote_count_where_they_were_said():
    tree = Tree(Task("t", (Message("user", "?"),), "rooms"))
    root = tree.add(None, "user", "template", PROMPT).id
    first = tree.add(root, "assistant", "policy", (10, END), logprobs=(-0.1, -0.2))
    first.info["ok"] = False
    at = tree.add(first.id, "user", "environment", (3,)).id
    second = tree.add(at, "assistant", "policy", (11, END), logprobs=(-0.1, -0.2))
    second.info["ok"] = True
    at = tree.add(root, "user", "environment", (7, 3, 8, 4)).id  # both without their thoughts
    third = tree.add(at, "assistant", "policy", (12, END), logprobs=(-0.1, -0.2))
    third.info["ok"] = True
    attempt = Attempt(third.id, "env_terminated", 1.0, branches=(second.id,))
    assert verdicts(tree, attempt) == [False, True, True]
    rows = refined_samples(tree, attempt)
    assert [list(r.token_ids) for r in rows] == [[1, 2, 10, 9, 3, 11, 9], [1, 2, 7, 3, 8, 4, 12, 9]]
    assert [list(r.weights) for r in rows] == [[0.0] * 5 + [1.0] * 2, [0.0] * 6 + [1.0] * 2]
    attempt.branches = (first.id, second.id)
    rows = refined_samples(tree, attempt, mask=False)
    assert sum(sum(r.weights) for r in rows) == 6, "each token once"
