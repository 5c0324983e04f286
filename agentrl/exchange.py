"""Data from and for others: HF datasets in TRL's formats, lossless through a column of our own.

A dataset has the columns that TRL reads, and `agentrl`, the whole record as JSON: token ids,
weights, log-probabilities, where each came from. On the way back that column is all that is read.
Without it a text is encoded through the model's chat template, and the loss is on for the
assistant's turns (messages) or the answer (prompt and completion, preference).

| format | from | columns |
|---|---|---|
| sft | samples, trees | input_ids, labels (-100: no loss) |
| prompt_completion | samples, trees | prompt, completion |
| messages | trees | messages, tools |
| preference | pairs | prompt, chosen, rejected |
| parquet | any | our own only, in one file |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl import store
from agentrl.chat import Chat
from agentrl.config import write_atomic
from agentrl.errors import ConfigError, DataError, missing_extra, unknown
from agentrl.record import Tree
from agentrl.select import rows
from agentrl.toolcalls import said_with_calls, structured
from agentrl.types import Attempt, Message, Pair, Sample, ToolCall, ToolSpec

Record = Sample | Pair | Tree
Columns = dict[str, Any]

OWN = "agentrl"
"""The column that holds a whole record."""
NO_LOSS = -100
_MARK = "\x02"


def to_trl(records: Sequence[Record], form: str, chat: Chat | None = None) -> list[Columns]:
    """The records as rows of TRL's format `form`. `chat` is needed where there is text.

    An attempt of a tree is a row; attempts that failed in our hands are left out. Raises
    ConfigError for an unknown format; DataError for records that have no such form.
    """
    if form not in FORMS:
        raise unknown("format", form, FORMS)
    if chat is None and form not in ("sft", "parquet"):
        raise ConfigError(
            f"format {form!r} is text: name the model whose tokenizer made the ids (--policy MODEL)"
        )
    made: list[Columns] = []
    for record in records:
        made += FORMS[form](record, chat)
    return made


def from_trl(columns: Mapping[str, Any], chat: Chat | None = None) -> Record:
    """The record of one row: exactly what was exported, or what TRL's columns say.

    Raises DataError for columns of no known format, or text that the template does not take.
    """
    have = {name for name, value in columns.items() if value is not None}
    if OWN in have:
        return _whole(json.loads(columns[OWN]))
    if {"input_ids", "labels"} <= have:
        labels = columns["labels"]
        weights = [float(i > 0 and label != NO_LOSS) for i, label in enumerate(labels)]
        return Sample(list(columns["input_ids"]), weights)
    if chat is None:
        raise ConfigError(
            "the rows are text: name the model whose tokenizer is to encode them (--policy MODEL)"
        )
    tools = tools_of(columns.get("tools"))
    if "messages" in have:
        return _conversation(chat, columns["messages"], tools)
    if {"prompt", "completion"} <= have:
        return _answered(chat, columns["prompt"], columns["completion"], tools)
    if {"chosen", "rejected"} <= have:
        prompt = columns.get("prompt")
        chosen, rejected = (
            _answered(chat, prompt, columns[side], tools) for side in ("chosen", "rejected")
        )
        return Pair(chosen, rejected)
    raise DataError(
        f"the columns {', '.join(sorted(columns))} are of no known format: messages, prompt and "
        "completion, chosen and rejected, input_ids and labels"
    )


def _whole(data: Any) -> Record:
    if "tree" in data:
        return Tree.from_json(data["tree"])
    return rows.pair_of(data) if "chosen" in data else rows.sample_of(data)


def _own(record: Record) -> Columns:
    if isinstance(record, Tree):
        return {OWN: json.dumps({"tree": record.to_json()})}
    row = rows.pair_row(record) if isinstance(record, Pair) else rows.sample_row(record)
    return {OWN: json.dumps(row)}


def _attempts(tree: Tree) -> list[Attempt]:
    return [a for a in tree.attempts if a.error is None]


def _samples(record: Record, form: str) -> list[Sample]:
    if isinstance(record, Pair):
        raise DataError(f"a pair has no form {form!r}; export it as preference")
    if isinstance(record, Tree):
        return [rows.path_sample(record, a) for a in _attempts(record)]
    return [record]


def _as_sft(record: Record, chat: Chat | None) -> list[Columns]:
    made = []
    for sample in _samples(record, "sft"):
        on = [i > 0 and w != 0 for i, w in enumerate(sample.weights)]
        labels = [t if o else NO_LOSS for t, o in zip(sample.token_ids, on, strict=True)]
        made.append({"input_ids": list(sample.token_ids), "labels": labels, **_own(sample)})
    return made


def _as_completion(record: Record, chat: Any) -> list[Columns]:
    made = []
    for sample in _samples(record, "prompt_completion"):
        at = _first_trained(sample)
        prompt, answer = (chat.decode(ids) for ids in _cut(chat, sample, at))
        made.append({"prompt": prompt, "completion": answer, **_own(sample)})
    return made


def _as_preference(record: Record, chat: Any) -> list[Columns]:
    if not isinstance(record, Pair):
        raise DataError(
            f"a {type(record).__name__} is no pair: make pairs of trees by `agentrl select pairs`, "
            "and export these"
        )
    sides = record.chosen, record.rejected
    at = min(map(_first_trained, sides))
    if list(sides[0].token_ids[:at]) != list(sides[1].token_ids[:at]):
        raise DataError("the answers of a pair have different prompts: TRL has no form for that")
    (prompt, chosen), (_, rejected) = (_cut(chat, side, at) for side in sides)
    texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return [{name: chat.decode(ids) for name, ids in texts.items()} | _own(record)]


def _first_trained(sample: Sample) -> int:
    return next((i for i, w in enumerate(sample.weights) if i and w), len(sample.weights))


def _cut(chat: Chat, sample: Sample, at: int) -> tuple[Sequence[int], Sequence[int]]:
    """Prompt and answer; without the end token, which TRL adds to a text by itself."""
    return sample.token_ids[:at], chat.without_end(sample.token_ids[at:])


def _as_messages(record: Record, chat: Any) -> list[Columns]:
    if not isinstance(record, Tree):
        raise DataError(f"a {type(record).__name__} has no messages: export trees")
    tools = record.meta.get("tools")
    own = _own(record) | ({"tools": json.dumps(tools)} if tools else {})
    said = (messages_of(record, attempt, chat) for attempt in _attempts(record))
    return [{"messages": [_shown(m) for m in structured(s)], **own} for s in said]


def _shown(data: dict[str, Any]) -> dict[str, Any]:
    """A message with TRL's columns: its calls have no ids there."""
    calls = [{k: v for k, v in c.items() if k != "id"} for c in data.get("tool_calls", ())]
    kept = {k: data[k] for k in ("role", "content", "name") if k in data}
    return kept | ({"tool_calls": calls} if calls else {})


def messages_of(tree: Tree, attempt: Attempt, chat: Chat) -> list[Message]:
    """The conversation of an attempt: the task's prompt, and what the nodes of its path say.

    Where the policy was shown tools, its calls are parsed. Raises DataError where what the
    environment said cannot be told from the template's text.
    """
    said: list[Message] = list(tree.task.prompt)
    turn: list[int] = []

    def spoken() -> Message:
        text = chat.decode(chat.without_end(turn))
        return chat.parse(text) if tree.meta.get("tools") else Message("assistant", text)

    for node in tree.path(attempt.leaf)[1:]:
        between = _between(chat, node.role) if node.source == "environment" else None
        text = chat.decode(node.token_ids) if between else ""
        if between is None or not text.endswith(between.after):
            turn += node.token_ids  # the assistant's own turn, blocks of tool output included
            continue
        said.append(spoken())
        turn = []
        known = (between.before, between.before.removeprefix(chat.end_text))  # where it ended
        start = next((b for b in known if text.startswith(b)), None)
        if start is None:
            raise DataError(
                f"task {tree.task.id}: what the {node.role} said stands otherwise in this model's "
                "template. Name the model that made the trees, or export them as sft"
            )
        text = text[len(start) : len(text) - len(between.after)]
        several = len(said[-1].tool_calls) > 1 and between.next
        said += [Message(node.role, t) for t in (text.split(between.next) if several else [text])]
    return [*said, spoken()] if turn else said


@dataclass(frozen=True, slots=True)
class _Between:
    """What the template puts around a message between two assistant turns, and between two such
    messages."""

    before: str
    after: str
    next: str


def _between(chat: Chat, role: Any) -> _Between | None:
    """For messages of `role`; None if the template does not show them."""
    said = [Message("user", "question"), Message("assistant", "Reply"), Message(role, _MARK)]
    text = chat.tokenizer.render(said, add_generation_prompt=True)
    _, found, tail = text.partition("Reply")
    before, marked, after = tail.partition(_MARK)
    if not (found and marked and after):
        return None
    parts: list[str] = []
    if role == "tool":  # only tools answer several calls at once
        parts = chat.tokenizer.render([*said, said[-1]], add_generation_prompt=True).split(_MARK)
    return _Between(before, after, parts[1] if len(parts) == 3 else "")


def tools_of(given: Any) -> list[ToolSpec]:
    """TRL's tools column: a list of JSON schemas, or that as text."""
    listed = json.loads(given) if isinstance(given, str) else given or []
    functions = [tool.get("function", tool) for tool in listed]
    return [ToolSpec(f["name"], f.get("description") or "", f["parameters"]) for f in functions]


def message_of(data: Mapping[str, Any]) -> Message:
    """A message with its calls as text, in the notation that most templates and we read."""
    calls = []
    for call in data.get("tool_calls") or []:
        function = call.get("function", call)
        given = function["arguments"]
        given = json.loads(given) if isinstance(given, str) else given
        calls.append(ToolCall(function["name"], {k: v for k, v in given.items() if v is not None}))
    said = said_with_calls(data.get("content") or "", calls)
    return Message(data["role"], said, tuple(calls), name=data.get("name") or "")


def _conversation(
    chat: Chat,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[ToolSpec],
    train_from: int = 0,
) -> Sample:
    """A conversation with the loss on the assistant's turns (from message `train_from` on)."""
    said = [message_of(m) for m in messages]
    return rows.conversation_sample(chat, said, tools, untrained=range(train_from))


def _answered(chat: Chat, prompt: Any, answer: Any, tools: Sequence[ToolSpec]) -> Sample:
    """A prompt and its answer, both text or both messages (the prompt may stand in the answer)."""
    if isinstance(answer, str):
        before = chat.encode(prompt or "", trusted=True)
        after = [*chat.encode(answer, trusted=True), *rows.turn_end(chat)]
        return Sample([*before, *after], [0.0] * len(before) + [1.0] * len(after))
    if prompt is None:
        return _conversation(chat, answer, tools, train_from=len(answer) - 1)
    return _conversation(chat, [*prompt, *answer], tools, train_from=len(prompt))


FORMS: dict[str, Callable[[Record, Any], list[Columns]]] = {
    "sft": _as_sft,
    "prompt_completion": _as_completion,
    "messages": _as_messages,
    "preference": _as_preference,
    "parquet": lambda record, chat: [_own(record)],
}


def read(path: Path) -> list[Record]:
    """Our own records: a folder of trees, or JSON lines of samples or pairs."""
    if path.is_dir():
        return list(store.load(path))
    return list(rows.read_pairs(path) if rows.are_pairs(path) else rows.read(path))


def write(path: Path, records: Iterable[Record]) -> int:
    """Write our own records: trees into a folder, samples or pairs as JSON lines. How many."""
    found: dict[store.Key | int, Record] = {}
    for n, record in enumerate(records):
        found[store.key(record) if isinstance(record, Tree) else n] = record
    if len({type(r) for r in found.values()}) > 1:
        raise DataError("the rows are records of different kinds; import them one kind at a time")
    trees = [r for r in found.values() if isinstance(r, Tree)]
    if trees:
        with store.TreeStore(path) as folder:
            for tree in trees:
                folder.append(tree)
    elif pairs := [r for r in found.values() if isinstance(r, Pair)]:
        rows.write(path, pairs)
    else:
        rows.write(path, [r for r in found.values() if isinstance(r, Sample)])
    return len(found)


OTHER_FILES = (".csv", ".tsv", ".txt", ".json", ".yaml", ".arrow")
"""What people may take for formats of `save`; each would become the name of a folder."""


def save(path: Path, columns: Sequence[Columns]) -> None:
    """Write a dataset: `.parquet` or `.jsonl` is a file, anything else a folder with a parquet
    file, as `datasets.load_dataset` reads it. Raises MissingExtraError without datasets; DataError
    for columns that fit no table; ConfigError for the name of another kind of file."""
    if path.suffix in OTHER_FILES:
        raise ConfigError(f"{path}: give a folder, or a file that ends in .parquet or .jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in columns))
        return
    kit = _datasets()
    try:
        made = kit.Dataset.from_list(list(columns))
    except (TypeError, ValueError) as error:  # pyarrow's
        raise DataError(
            f"the rows do not fit one table ({error}): tool calls whose arguments have another "
            "type from row to row. Write them as .jsonl, or in another format"
        ) from error
    if path.suffix == ".parquet":
        made.to_parquet(path)
    else:
        path.mkdir(exist_ok=True)
        made.to_parquet(path / "train.parquet")


def load(path: Path) -> list[Columns]:
    """The rows of a dataset: what `save` wrote, or `Dataset.save_to_disk`."""
    kit = _datasets()
    if not path.exists():
        raise DataError(f"cannot read {path}: there is no such file or folder")
    if (path / "state.json").exists():
        return list(kit.load_from_disk(str(path)))
    if path.suffix in (".json", ".jsonl"):
        return _json_lines(path)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no dataset: no parquet file, and nothing saved to disk")
    try:
        return [row for file in files for row in kit.Dataset.from_parquet(str(file))]
    except Exception as error:  # pyarrow's and datasets' own, of many kinds
        raise DataError(f"cannot read {path} as parquet: {error}") from error


def _json_lines(path: Path) -> list[Columns]:
    made = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); mend it") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a row is an object, one a line")
        made.append(row)
    return made


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "train") from error
    return datasets
