"""Credit, losses and weights end to end on policies that are tables (SCoRe 10, RISE 15).

An attempt is three tokens after a prompt: a first answer, an instruction, a second answer that may
depend on the first.
"""

from __future__ import annotations

import torch

from agentrl.batch import collate
from agentrl.credit import Episode, Site, assign, credited, episode_of, score_shaping
from agentrl.losses import denominator, make
from agentrl.record import Tree
from agentrl.select.weights import normalised, reward_weights, scaled
from agentrl.types import Attempt, Sample, Task, TurnReward

RIGHT = 1
PROMPT, AGAIN = 10, 11


class Table:
    """Logits of the first answer, and of the second given the first."""

    def __init__(self, first: list[float], second: list[list[float]]) -> None:
        self.first = torch.tensor(first, requires_grad=True)
        self.second = torch.tensor(second, requires_grad=True)

    @torch.no_grad()
    def sample(self, draw: torch.Generator) -> tuple[int, int]:
        y1 = int(torch.multinomial(self.first.softmax(-1), 1, generator=draw))
        return y1, int(torch.multinomial(self.second[y1].softmax(-1), 1, generator=draw))

    def logprobs(self, samples: list[Sample]) -> torch.Tensor:
        """`[B, T]`, as a scorer gives them."""
        rows = []
        for s in samples:
            y1, y2 = s.token_ids[1], s.token_ids[3]
            one, two = self.first.log_softmax(-1)[y1], self.second[y1].log_softmax(-1)[y2]
            zero = torch.zeros(())
            rows.append(torch.stack([zero, one, zero, two]))
        weights = torch.tensor([list(s.weights) for s in samples])
        return torch.where(weights > 0, torch.stack(rows), 0.0)

    def flips(self) -> tuple[float, float]:
        """Probabilities that a wrong answer becomes right, and a right one wrong."""
        p = self.second.detach().softmax(-1)
        return p[0, RIGHT].item(), 1 - p[RIGHT, RIGHT].item()

    def step(self, loss: torch.Tensor, lr: float) -> None:
        for table, grad in zip(
            (self.first, self.second),
            torch.autograd.grad(loss, (self.first, self.second), allow_unused=True),
            strict=True,
        ):
            if grad is not None:
                table.data -= lr * grad


def attempt_tree(policy: Table, draw: torch.Generator) -> Tree:
    y1, y2 = policy.sample(draw)
    tree = Tree(Task("t", (), "toy"))
    tree.add(None, "user", "template", [PROMPT])
    tree.add(0, "assistant", "policy", [y1], logprobs=[0.0])
    tree.add(1, "user", "environment", [AGAIN])
    tree.add(2, "assistant", "policy", [y2], logprobs=[0.0])
    rewards = [TurnReward(1, float(y1 == RIGHT)), TurnReward(3, float(y2 == RIGHT))]
    tree.attempts.append(Attempt(3, "final_answer", float(y2 == RIGHT), rewards=rewards))
    return tree


def test_score_stage_two_learns_to_correct() -> None:
    """From an undecided policy: more wrong answers are corrected, fewer right ones spoilt."""
    policy, draw = Table([0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]]), torch.Generator().manual_seed(0)
    before = policy.flips()
    loss = make("reinforce")
    for _ in range(40):
        trees = [attempt_tree(policy, draw) for _ in range(8)]
        group = [episode_of(t, t.attempts[0], outcome=False) for t in trees]
        found = assign([group], score_shaping).advantages[0]
        rows = [
            row
            for tree, a in zip(trees, found, strict=True)
            if a is not None
            for row in credited(tree, tree.attempts[0], a)
        ]
        if rows:
            batch = collate(rows, [[i] for i in range(len(rows))])
            out = loss(policy.logprobs(rows), batch, denominator("reinforce", rows))
            policy.step(out.loss, lr=0.1)
    corrected, spoilt = policy.flips()
    assert corrected > before[0] + 0.2
    assert spoilt < before[1] - 0.2


def test_score_credits_the_second_turn_to_the_second_turn() -> None:
    """One group by hand: the gradient of each table row is that of its own turn's advantages."""
    policy = Table([0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]])
    answers = [(0, 1), (1, 1), (0, 0), (1, 0)]
    group = [Episode([-1, 0, -1, 1], [Site(1, float(a)), Site(3, float(b))]) for a, b in answers]
    advantages = assign([group], score_shaping).advantages[0]
    rows = [
        Sample([PROMPT, a, AGAIN, b], [0, 1, 0, 1], adv)
        for (a, b), adv in zip(answers, advantages, strict=True)
        if adv is not None
    ]
    batch = collate(rows, [[i] for i in range(4)])
    make("reinforce")(policy.logprobs(rows), batch, 4).loss.backward()
    # turn 1: right +2/3, wrong -2/3, two of each; d log p(right) is 1/2 for right, -1/2 for wrong
    torch.testing.assert_close(policy.first.grad, torch.tensor([1 / 3, -1 / 3]))
    # turn 2 after a wrong answer: +14 for right, -2/3 for wrong
    expected = (14 * 0.5 + 2 / 3 * 0.5) / 4
    torch.testing.assert_close(policy.second.grad[0], torch.tensor([expected, -expected]))


def test_rise_one_iteration_improves_the_second_answer() -> None:
    """Best of N at the wrong first answer, weighted by reward: right second answers rise."""
    policy = Table([1.0, 0.0, 0.5], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    draw = torch.Generator().manual_seed(1)
    before = policy.second.detach().softmax(-1)[:, RIGHT]
    rows, rewards = [], []
    for _ in range(60):
        y1, y2 = policy.sample(draw)
        if y1 == RIGHT:
            continue
        candidates = [y2] + [
            int(torch.multinomial(policy.second[y1].detach().softmax(-1), 1, generator=draw))
            for _ in range(15)
        ]
        best = max(candidates, key=lambda y: y == RIGHT)
        rows.append(Sample([PROMPT, y1, AGAIN, best], [0, 0, 0, 1]))
        rewards.append(float(best == RIGHT))
    weights = reward_weights(rewards, groups=[0] * len(rows))
    weighted = [scaled(s, w) for s, w in zip(normalised(rows, "rows"), weights, strict=True)]
    batch = collate(weighted, [[i] for i in range(len(rows))])
    for _ in range(20):
        out = make("sft")(policy.logprobs(weighted), batch, denominator("sft", weighted))
        policy.step(out.loss, lr=0.5)
    after = policy.second.detach().softmax(-1)[:, RIGHT]
    assert (after - before)[[0, 2]].min() > 0.2
    assert torch.equal(before[RIGHT], after[RIGHT])  # never a target there
