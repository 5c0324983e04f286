"""What the host talks to in a session of the judge: messages in, one answer each, as text."""

from __future__ import annotations

import os
from typing import Any

from sandboxes.judge.codec import NotAValue, dumps, loads

_VALUE_CHARS = 8000  # longer answers go through a file


class Shown(str):
    """Text that a cell shows as it is."""

    def __repr__(self) -> str:
        return str(self)


class Driver:
    """Hands each message `{"do": NAME, ...}` to the method `do_NAME` of `handler`."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler
        self.folder = os.getcwd()
        self.last = ""

    def __call__(self, text: str) -> Shown:
        message = loads(text)
        try:
            answer = getattr(self.handler, "do_" + message.pop("do"))(**message)
        except NotAValue as error:
            answer = {"foreign": str(error)}
        self.last = dumps(answer)
        return self.again() if len(self.last) > _VALUE_CHARS else Shown(self.last)

    def again(self) -> Shown:
        """Put the last answer into a file, as it is too long for a value."""
        with open(os.path.join(self.folder, ".reply"), "w", encoding="ascii") as file:
            file.write(self.last)
        return Shown('{"file":".reply"}')

    def from_file(self, name: str) -> Shown:
        """Answer the message in a file, as it is too long for a cell."""
        path = os.path.join(self.folder, name)
        with open(path, encoding="ascii") as file:
            text = file.read()
        os.unlink(path)
        return self(text)
