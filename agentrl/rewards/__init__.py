"""Reward models: of outcomes, of steps, of pairs; batched, and loaded by name.

`SequenceClassifier` (`classifier`, needs torch) scores token ids, `PairwiseJudge` (`preference`)
says which of two answers is better. Searches use one as a judge (`agentrl.search.evaluators`), the
recipe `online_dpo` to make pairs, `agentrl eval --reward` for RM@k and weighted votes. They are
trained by `agentrl.train.reward`.
"""

from __future__ import annotations

from typing import Any

from agentrl.chat import Chat, HFTokenizer
from agentrl.errors import ConfigError, missing_extra, unknown
from agentrl.rewards.answers import check_tokenizer, heard, heard_steps, path_score, scored
from agentrl.rewards.base import PairModel, ProcessModel, RewardModel
from agentrl.rewards.preference import PairwiseJudge

PAIRWISE = "pairwise:"
"""What stands before the name of a policy that judges pairs."""


SETTINGS = ("step_token", "good", "bad", "combine", "dtype", "device")
"""What may be set behind the name of a reward model."""

PLAIN = "{{ bos_token or '' }}{% for m in messages %}{{ m['content'] }} {% endfor %}"
"""What a process reward model without a chat template reads: the task, a blank, and the steps."""


def load_reward(name: str, **options: Any) -> Any:
    """The reward model called `name`: a `SequenceClassifier`, or a `PairwiseJudge`.

    `name` is a folder or a hub id of a sequence or token classifier, or `pairwise:POLICY` with a
    policy as `agentrl.engines.load_policy` names it. `options` are `dtype` and `device`.

    A process reward model that is read at a token of its own is named with it, as in
    `Qwen/Qwen2.5-Math-PRM-7B?step_token=<extra_0>`; one that is a language model with what it says
    of good and bad steps, too: `peiyi9979/math-shepherd-mistral-7b-prm?step_token=ки&good=+&bad=-`.
    `&combine=min` says how the steps' scores become one (`agentrl.rewards.steps.COMBINED`).

    Raises ConfigError if it cannot be loaded, has no tokenizer, or for another setting;
    MissingExtraError without torch.
    """
    if name.startswith(PAIRWISE):
        from agentrl.engines import load_policy

        return PairwiseJudge(load_policy(name.removeprefix(PAIRWISE), **options))
    try:
        import torch  # noqa: F401
    except ImportError:
        raise missing_extra("torch", "train") from None
    from agentrl.engines.models import load_classifier, load_model, load_tokenizer
    from agentrl.rewards.classifier import SequenceClassifier

    name, _, query = name.partition("?")
    given = dict(part.partition("=")[::2] for part in query.split("&") if part)
    for setting in given:
        if setting not in SETTINGS:
            raise unknown("setting of a reward model", setting, SETTINGS)
    options |= {k: given.pop(k) for k in ("dtype", "device") if k in given}
    labels = [given.pop(k) for k in ("bad", "good") if k in given]
    if len(labels) == 1:
        raise ConfigError(f"{name!r}: name both tokens, good=... and bad=..., or neither")
    tokenizer = load_tokenizer(name, chat="step_token" not in given)
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN
    how: dict[str, Any] = {**given, "labels": tuple(labels)} if labels else dict(given)
    model = (load_model if labels else load_classifier)(name, **options)
    return SequenceClassifier(model, chat=Chat(HFTokenizer(tokenizer)), **how)


__all__ = [
    "PairModel",
    "PairwiseJudge",
    "ProcessModel",
    "RewardModel",
    "check_tokenizer",
    "heard",
    "heard_steps",
    "load_reward",
    "path_score",
    "scored",
]
