"""The record: a tree of token runs. Append-only, and without knowledge of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from agentrl.errors import TreeError
from agentrl.types import Attempt, Message, Node, Role, Source, Task, ToolCall, TurnReward


@dataclass(slots=True)
class Tree:
    """Everything one or more attempts at a task produced. Append-only.

    `meta` says where it comes from: attempt number, seed, rollout, policy, tokenizer fingerprint.
    """

    task: Task
    nodes: list[Node] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def add(
        self,
        parent: int | None,
        role: Role,
        source: Source,
        token_ids: Sequence[int],
        *,
        logprobs: Sequence[float] | None = None,
        policy_version: int | None = None,
        info: dict[str, Any] | None = None,
        new_root: bool = False,
    ) -> Node:
        """Append a node under `parent` (None for the root).

        A `new_root` is for a conversation that has not one token in common with those before it.

        Raises TreeError if the parent is unknown, the run is empty, a second root is added, or
        log-probabilities stand where they may not (or are missing where they must be).
        """
        if parent is None and self.nodes and not new_root:
            raise TreeError("a tree has one root; give the parent of the new node")
        if parent is not None and not 0 <= parent < len(self.nodes):
            raise TreeError(f"no node {parent} in a tree of {len(self.nodes)} nodes")
        if not token_ids:
            raise TreeError("a node needs at least one token")
        if source == "policy":
            if logprobs is None or len(logprobs) != len(token_ids):
                raise TreeError("a policy node needs one log-probability a token")
        elif logprobs is not None:
            raise TreeError(f"a {source} node was not sampled: it has no log-probabilities")
        node = Node(
            len(self.nodes),
            parent,
            role,
            source,
            tuple(token_ids),
            None if logprobs is None else tuple(logprobs),
            policy_version,
            dict(info or {}),
        )
        self.nodes.append(node)
        return node

    def path(self, leaf: int) -> list[Node]:
        """The nodes from the root to `leaf`, both included."""
        if not 0 <= leaf < len(self.nodes):
            raise TreeError(f"no node {leaf} in a tree of {len(self.nodes)} nodes")
        nodes: list[Node] = []
        at: int | None = leaf
        while at is not None:
            nodes.append(self.nodes[at])
            at = self.nodes[at].parent
        return nodes[::-1]

    def ids(self, leaf: int) -> list[int]:
        """The token ids from the root to the end of `leaf`."""
        return [i for node in self.path(leaf) for i in node.token_ids]

    def children(self, node: int) -> list[Node]:
        """The nodes directly under `node`."""
        return [n for n in self.nodes if n.parent == node]

    @property
    def leaves(self) -> list[int]:
        """Ids of all nodes without children."""
        parents = {n.parent for n in self.nodes}
        return [n.id for n in self.nodes if n.id not in parents]

    def common(self, ids: Sequence[int]) -> tuple[int, int]:
        """The longest beginning of `ids` that stands in the tree, as (a node, tokens of the path to
        it), which `fork` takes. What was sampled is shared in whole nodes; (-1, 0) is nothing."""
        below: dict[int | None, list[Node]] = {}
        for node in self.nodes:
            below.setdefault(node.parent, []).append(node)
        best, todo = (-1, 0), [(node, 0) for node in below.get(None, [])]
        while todo:
            node, at = todo.pop()
            pairs = zip(node.token_ids, ids[at : at + len(node.token_ids)], strict=False)
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            same = min(len(node.token_ids), len(ids) - at) if same is None else same
            whole = same == len(node.token_ids)
            if same and (whole or node.source == "template"):
                best = max(best, (node.id, at + same), key=lambda b: (b[1], -b[0]))
            if whole:
                todo += [(child, at + same) for child in below.get(node.id, [])]
        return best

    def fork(self, leaf: int, tokens: int) -> int:
        """A node at which exactly the first `tokens` tokens of the path to `leaf` stand.

        A cut inside a node copies that node's beginning into a sibling (same ids, same
        log-probabilities; `info["copy_of"]` names the original, so that nothing is counted twice),
        or finds the sibling where it was copied before. A cut inside the root makes a second
        root. Raises TreeError if the path is shorter, or `tokens` is not positive.
        """
        if tokens <= 0:
            raise TreeError("a fork keeps at least one token")
        at = 0
        for node in self.path(leaf):
            end = at + len(node.token_ids)
            if end == tokens:
                return node.id
            if end > tokens:
                return self._beginning(node, tokens - at)
            at = end
        raise TreeError(f"the path to node {leaf} has {at} tokens, fewer than {tokens}")

    def _beginning(self, node: Node, n: int) -> int:
        """A sibling of `node` with its first `n` tokens."""
        original = node.info.get("copy_of", node.id)
        for other in self.nodes[node.id + 1 :]:
            if other.info.get("copy_of") == original and len(other.token_ids) == n:
                return other.id
        info = {**node.info, "copy_of": original}
        if "sampled_logprobs" in info:
            info["sampled_logprobs"] = info["sampled_logprobs"][:n]
        logprobs = None if node.logprobs is None else node.logprobs[:n]
        ids, version = node.token_ids[:n], node.policy_version
        beginning = Node(
            len(self.nodes), node.parent, node.role, node.source, ids, logprobs, version, info
        )
        self.nodes.append(beginning)
        return beginning.id

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal tree."""
        fields = Node.__slots__  # asdict would visit every token
        return {
            "task": asdict(self.task),
            "nodes": [{f: getattr(n, f) for f in fields} for n in self.nodes],
            "attempts": [asdict(a) for a in self.attempts],
            "meta": self.meta,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tree:
        """The tree that `to_json` wrote. Raises KeyError or TypeError on anything else."""
        task = {**data["task"], "prompt": tuple(map(message_of, data["task"]["prompt"]))}
        nodes = []
        for n in data["nodes"]:
            logprobs = None if n["logprobs"] is None else tuple(n["logprobs"])
            node = {**n, "token_ids": tuple(n["token_ids"]), "logprobs": logprobs}
            nodes.append(Node(**{**node, "info": dict(n["info"])}))
        attempts = []
        for a in data["attempts"]:
            rewards = [TurnReward(**r) for r in a["rewards"]]
            attempts.append(Attempt(**{**a, "branches": tuple(a["branches"]), "rewards": rewards}))
        return cls(Task(**task), nodes, attempts, dict(data["meta"]))


def tokens_said(node: Node) -> int:
    """How many tokens the policy sampled in `node`, or the model that spoke in its place (by that
    one's own count, where it is known); 0 for what was not said by a model."""
    if node.source != "policy" and "by" not in node.info:
        return 0
    return int(node.info.get("tokens", len(node.token_ids)))


def message_of(data: Mapping[str, Any]) -> Message:
    """The message that `asdict` wrote."""
    return Message(**{**data, "tool_calls": tuple(ToolCall(**c) for c in data["tool_calls"])})
