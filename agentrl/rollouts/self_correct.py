"""Intrinsic self-correction (SCoRe, arXiv 2409.12917): answer, then look again and answer anew.

Every answer gets a second one, right or wrong, and the instruction between them is always the same:
what the environment thinks of an answer reaches rewards only, never the policy.
"""

from __future__ import annotations

from random import Random
from typing import Literal

from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import OpenEnv, Policy, Rollout
from agentrl.rollouts.turns import Turns
from agentrl.tree import Cursor
from agentrl.types import Message

_AGAIN = "because of lack of understanding of the question. Please correct the error, if any, and"
_MARKER = (
    "At the end of the Solution, when you give your final answer, write it in the form "
    '"Final Answer: The final answer is $answer$. I hope it is correct."'
)

INSTRUCTIONS = {
    "maths": f"There might be an error in the solution above {_AGAIN} rewrite the solution. Only "
    "output the final solution, and end it with the final answer in the form that was asked for.",
    "code": f"# There might be an error in the code above {_AGAIN} rewrite the solution. Only "
    "output the final correct Python program!",
    "paper": f"There might be an error in the solution above {_AGAIN} rewrite the solution. Only "
    f"output the final solution! {_MARKER}",
}
"""What is said after an answer. `paper` is the paper's for MATH (appendix), with its answer marker;
`maths` leaves the form of the answer to the environment's own prompt."""

SYSTEM = (
    "You are a math expert. When you respond, respond only with the Solution of the final Problem, "
    f"thinking step by step. {_MARKER}"
)
"""The system message of `paper`."""


def self_correct(
    *,
    turns: int = 2,
    kind: Literal["maths", "code", "paper"] = "maths",
    instruction: str | None = None,
    system: str | None = None,
    max_calls: int = 0,
    max_tokens: int | None = None,
    first: Policy | None = None,
    first_ratio: float = 0.0,
) -> Rollout:
    """`turns` answers to the task, the same instruction between any two.

    `instruction` replaces the text of `kind`, `system` its system message (only `paper` has one).
    Up to `max_calls` python blocks run in an answer, of which at most `max_tokens` are sampled.

    With `first`, the share `first_ratio` of attempts takes its first answer from that policy
    (SCoRe's offline first attempts, section 5.3) and says so in `metrics["offline"]`: it is another
    policy's and not to be trained on. Both policies must have one tokenizer. Raises ConfigError for
    numbers that cannot be.
    """
    if kind not in INSTRUCTIONS:
        raise unknown("kind of instruction", kind, INSTRUCTIONS)
    if turns < 1 or not 0 <= first_ratio <= 1:
        raise ConfigError("self_correct: turns is at least 1, first_ratio from 0 to 1")
    said = INSTRUCTIONS[kind] if instruction is None else instruction
    opening = (SYSTEM if kind == "paper" else "") if system is None else system

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        attempt = Turns(cursor, open_env, max_calls=max_calls, max_tokens=max_tokens)
        await attempt.begin(*([Message("system", opening)] if opening else []))
        own = cursor.policy
        offline = first is not None and Random(cursor.seed).random() < first_ratio
        if first is not None and offline:
            cursor.policy = first
        await attempt.answer()
        cursor.policy = own
        for _ in range(turns - 1):
            attempt.ask(said)
            await attempt.answer()
        attempt.finish(**({"offline": [0]} if offline else {}))

    rollout.__name__ = "self_correct"
    return rollout
