"""From a path of a tree to a row for a loss, its mask given by where each token came from."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from agentrl.chat import Chat
from agentrl.config import write_atomic
from agentrl.errors import ConfigError, DataError
from agentrl.evaluate import Graded, right
from agentrl.tree import Tree
from agentrl.types import Attempt, Message, Pair, Sample, Source, ToolSpec

T = TypeVar("T")

TRAINABLE: frozenset[Source] = frozenset({"policy", "hint"})
"""What an SFT mask may switch on: tool output and template tokens never carry loss."""


@dataclass(slots=True)
class Selection:
    """What was kept, and why the rest was not (`dropped` counts reasons)."""

    kept: list[Graded] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def rows(self, train_on: Collection[Source] = TRAINABLE) -> list[Sample]:
        """A row for each attempt that was kept; see `path_sample`."""
        return [path_sample(tree, attempt, train_on) for tree, attempt in self.kept]


def unusable(attempt: Attempt) -> str | None:
    """Why an attempt says nothing about its task, or was not ended; None for all others."""
    if attempt.error is not None:
        return "failed in our hands"
    if attempt.truncated:
        return "truncated"
    return "not scored" if attempt.reward is None else None


def played(graded: Iterable[Graded]) -> Selection:
    """Of given answers that were played in their environment, those that are right."""
    chosen = Selection()
    for tree, attempt in graded:
        wrong = unusable(attempt) or (None if right(attempt) else "wrong when played")
        if wrong is None:
            chosen.kept.append((tree, attempt))
        else:
            chosen.dropped[wrong] += 1
    return chosen


def path_sample(tree: Tree, attempt: Attempt, train_on: Collection[Source] = TRAINABLE) -> Sample:
    """The whole path of `attempt` as a row; the loss is on for tokens of `train_on` sources only.

    Raises ConfigError if `train_on` names a source that must never be trained on.
    """
    if not set(train_on) <= TRAINABLE:
        raise ConfigError(
            f"loss can be on for {', '.join(sorted(TRAINABLE))} only, not for "
            f"{', '.join(sorted(set(train_on) - TRAINABLE))}"
        )
    ids: list[int] = []
    weights: list[float] = []
    for node in tree.path(attempt.leaf):
        ids.extend(node.token_ids)
        weights.extend([float(node.source in train_on)] * len(node.token_ids))
    meta = {
        "task": tree.task.id,
        "kind": tree.task.kind,
        "attempt": tree.meta.get("attempt", 0),
        "tokenizer": tree.meta.get("tokenizer"),
        "stop_reason": attempt.stop_reason,
    }
    return Sample(ids, weights, meta=meta)


def conversation_sample(
    chat: Chat,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec] = (),
    *,
    untrained: Container[int] = (),
) -> Sample:
    """A conversation that is known as text, through the model's own template.

    The loss is on for the assistant's turns with their end tokens, but not for the messages whose
    indices are `untrained`. Raises DataError if it does not begin with a prompt and end with an
    answer.
    """
    turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not turns or turns[0] == 0 or turns[-1] != len(messages) - 1:
        raise DataError("a conversation to train on begins with a prompt and ends with an answer")
    ids = list(chat.prompt(messages[: turns[0]], tools))
    weights = [0.0] * len(ids)
    for n, at in enumerate(turns):
        if n:
            before = turns[n - 1] + 1
            suffix = chat.suffix(messages[:before], messages[before:at], ids, tools)
            ids, weights = ids[: suffix.keep] + suffix.ids, weights[: suffix.keep]
            weights += [0.0] * (len(ids) - len(weights))
        turn = [*chat.encode(messages[at].content, trusted=True), *turn_end(chat)]
        ids += turn
        weights += [float(at not in untrained)] * len(turn)
    return Sample(ids, weights)


def turn_end(chat: Chat) -> list[int]:
    """The tokens that end a turn."""
    return chat.tokenizer.encode(chat.end_text) if chat.end_text else [min(chat.tokenizer.eos_ids)]


def write(path: str | os.PathLike[str], rows: Sequence[Sample] | Sequence[Pair]) -> None:
    """Write rows as JSON lines, the file whole or not at all.

    A sample has `token_ids`, `weights`, `meta` and those of `advantages`, `logprobs` and
    `ref_logprobs` that it has; a pair has `chosen`, `rejected` (and `gold`) of that form, `margin`
    and `meta`. Raises DataError if the path is a folder.
    """
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder; name a file in it, such as rows.jsonl")
    lines = [pair_row(row) if isinstance(row, Pair) else sample_row(row) for row in rows]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(Path(path), "".join(json.dumps(line) + "\n" for line in lines))


def read(path: str | os.PathLike[str]) -> list[Sample]:
    """The samples that `write` wrote. Raises DataError naming file and line for a broken one."""
    return _read(path, sample_of, "token_ids", "a sample (token_ids, weights)")


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """The pairs that `write` wrote. Raises DataError naming file and line for a broken one."""
    return _read(path, pair_of, "chosen", "a preference pair (chosen, rejected)")


def are_pairs(path: str | os.PathLike[str]) -> bool:
    """True if the file's first row is a pair. Raises DataError if it cannot be read."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            return '"chosen"' in file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


EXTRA = ("advantages", "logprobs", "ref_logprobs")


def sample_row(sample: Sample) -> dict[str, Any]:
    lists = {name: getattr(sample, name) for name in EXTRA if getattr(sample, name) is not None}
    row = {"token_ids": sample.token_ids, "weights": sample.weights, **lists}
    return {name: list(values) for name, values in row.items()} | {"meta": sample.meta}


def sample_of(row: dict[str, Any]) -> Sample:
    lists = {name: row[name] for name in EXTRA if name in row}
    return Sample(row["token_ids"], row["weights"], meta=row["meta"], **lists)


def pair_row(pair: Pair) -> dict[str, Any]:
    sides = {"chosen": pair.chosen, "rejected": pair.rejected, "gold": pair.gold}
    rows: dict[str, Any] = {name: sample_row(s) for name, s in sides.items() if s is not None}
    return rows | {"margin": pair.margin, "meta": pair.meta}


def pair_of(row: dict[str, Any]) -> Pair:
    gold = sample_of(row["gold"]) if "gold" in row else None
    chosen, rejected = sample_of(row["chosen"]), sample_of(row["rejected"])
    return Pair(chosen, rejected, row["margin"], row["meta"], gold)


def _read(
    path: str | os.PathLike[str], make: Callable[[dict[str, Any]], T], key: str, wanted: str
) -> list[T]:
    """The rows of a file, each with `key`; `wanted` is how a message calls them."""
    made: list[T] = []
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict) or key not in row:
                        raise DataError(f"{where}: {wanted} is needed here, {_kind(row)} is there")
                    made.append(make(row))
                except DataError:
                    raise
                except KeyError as error:
                    raise DataError(f"{where}: a row without the field {error}; add it") from error
                except (ValueError, TypeError) as error:
                    raise DataError(
                        f"{where}: not a training row ({error}); mend or remove it"
                    ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return made


def _kind(row: Any) -> str:
    if not isinstance(row, dict):
        return f"a {type(row).__name__}"
    if "chosen" in row:
        return "a preference pair (for a loss of pairs such as dpo)"
    if "tree" in row:
        return "a tree (make rows of it by `agentrl select`)"
    if "token_ids" in row:
        return "a single sample (for a loss of samples such as sft)"
    fields = ", ".join(map(str, row)) or "none"
    return f"a row with the fields {fields} (`agentrl import` reads TRL's formats)"
