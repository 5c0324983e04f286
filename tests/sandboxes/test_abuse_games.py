# ruff: noqa: E501
"""Games with the interpreter: nobody else notices, and the session lives where it can."""

from __future__ import annotations

import textwrap

import pytest
from abuse_games import GAMES
from sandbox_arena import Arena, Go


@pytest.mark.parametrize("name", GAMES)
def test_game(go: Go, arena: Arena, name: str) -> None:
    source, statuses, kept = GAMES[name]
    wall = 0.4 if statuses == ("timeout",) else 4.0
    result = go(
        arena.attack(lambda s: s.run(textwrap.dedent(source), timeout=wall), statuses, kept)
    )
    assert "FORGED" not in (result.value or "")
    assert sum(map(len, result.artifacts.values())) <= arena.box.limits.download_bytes


PROGRAMS = {
    "C05-exit-handler-loops": ("import atexit\n@atexit.register\ndef f():\n    while True: pass", ("timeout",)),
    "C05-exit-handler-exits": ("import atexit, os; atexit.register(os._exit, 0)", ("exit",)),
    "C05-exit-handler-raises": ("import atexit; atexit.register(lambda: 1/0)", ("ok",)),
    "C05-thread-without-end": (
        "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()",
        ("timeout",),
    ),
    "C06-exit-with-a-bad-message": (
        "class S:\n    def __str__(self): raise KeyError\nraise SystemExit(S())",
        ("exit", "error"),
    ),
    "C06-exit-with-a-bad-number": (
        "class N(int):\n    def __and__(self, o): return 'x'\nraise SystemExit(N(3))",
        ("exit", "error"),
    ),
    "C11-error-that-loops": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
        ("timeout",),
    ),
    "C14-nul": ("x = 1\0", ("error",)),
    "C14-surrogate": ("x = '\ud800'", ("error",)),
    "C14-mark-and-returns": ("\ufeffx = 1\r\nassert x\r\n", ("ok",)),
    "C14-mixed-tabs": ("if 1:\n\tx = 1\n        y = 2\n", ("error",)),
    "C14-unknown-encoding": ("# coding: nonsense\nx = 1", ("error",)),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_game(go: Go, arena: Arena, name: str) -> None:
    source, statuses = PROGRAMS[name]

    async def play():
        result = await arena.box.run(source)
        assert result.status in statuses, result
        await arena.check_bystander()

    go(play())
