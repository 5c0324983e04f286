"""Answers of endpoints on disk, so that nothing is asked (and paid for) twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrl.errors import AgentRLWarning


class AnswerCache:
    """A folder with one file an answer, named by a hash of the request.

    Any number of processes may share it: files appear whole or not at all, and two that ask the
    same write the same. Requests hold no keys (those travel in headers), so neither does the cache.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()

    def get(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer to an equal request; None if there is none, or its file is damaged."""
        path = self._path(request)
        try:
            entry = json.loads(path.read_text("utf-8"))
            if _text(entry["request"]) == _text(request) and isinstance(entry["answer"], dict):
                return dict(entry["answer"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self._warn(f"{path} cannot be read; the request is sent again")
        return None

    def put(self, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Keep an answer. A disk that does not take it is a warning: the answer itself is there."""
        path = self._path(request)
        temporary = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump({"request": request, "answer": answer}, file, ensure_ascii=True)
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            self._warn(f"an answer could not be kept in {self.folder}: {error.strerror}")

    def _path(self, request: Mapping[str, Any]) -> Path:
        name = hashlib.sha256(_text(request).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"

    def _warn(self, text: str) -> None:
        warnings.warn(f"cache of answers: {text}", category=AgentRLWarning, stacklevel=3)


def _text(request: Mapping[str, Any]) -> str:
    """A request as JSON, which knows no tuples and no keys that are numbers."""
    return json.dumps(request, sort_keys=True, separators=(",", ":"))
