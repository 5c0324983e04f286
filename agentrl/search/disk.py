"""A search on disk: where one that was stopped goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from agentrl.errors import StoreError
from agentrl.search.table import Table
from agentrl.tree import Cursor, Tree, derive_seed


def file_of(folder: Path, cursor: Cursor) -> Path:
    """The file of the search that `cursor` began: by task, attempt and seed."""
    tree = cursor.tree
    name = derive_seed(tree.task.id, tree.meta.get("attempt", 0), cursor.seed)
    return folder / f"{name:016x}.json"


def write(path: Path, cursor: Cursor) -> None:
    """Keep the tree, whose meta holds the search's table. A crash leaves the old file or this."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump({"seed": cursor.seed, "tree": cursor.tree.to_json()}, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read(path: Path, cursor: Cursor) -> Table | None:
    """The table of the search that stopped there, whose nodes go into the cursor's tree; None
    without one. Raises StoreError for what is no search, or one of another prompt."""
    if not path.exists():
        return None
    try:
        saved = Tree.from_json(json.loads(path.read_text(encoding="utf-8"))["tree"])
        table = Table.from_json(saved.meta["search"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is no stopped search ({error!r}); remove it to search that task anew"
        ) from error
    tree = cursor.tree
    if [n.token_ids for n in saved.nodes[: len(tree.nodes)]] != [n.token_ids for n in tree.nodes]:
        raise StoreError(f"{path} is of another prompt; remove it or give another folder")
    tree.nodes[:] = saved.nodes
    return table
