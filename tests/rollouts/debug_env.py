"""A fake for self-debugging: programs are words, the tests want certain letters in them."""

from __future__ import annotations

from agentrl.types import Message, Step, Task

VISIBLE, HIDDEN = "ab", "cd"


class DebugEpisode:
    """The program is what follows the last `: `. Each letter in it passes one test."""

    tools = ()

    def __init__(self, task: Task, *, mute: bool = False) -> None:
        self.task, self.mute, self.closed = task, mute, False

    async def reset(self) -> tuple[Message, ...]:
        return self.task.prompt

    async def step(self, message: Message) -> Step:
        program = message.content.rpartition(": ")[2].strip()
        if program == "broken":
            return Step(terminated=True)
        missing = [c for c in VISIBLE + HIDDEN if c not in program]
        info = {"answer": program, "passed": 1 - len(missing) / 4}
        if missing and not self.mute:
            seen = [c for c in missing if c in VISIBLE]
            info["feedback"] = f"test {seen[0]} failed" if seen else "a hidden test failed"
        return Step(reward=float(not missing), terminated=True, info=info)

    async def close(self) -> None:
        self.closed = True


class DebugEnv:
    """Tasks `t0`, `t1`, ...; each has a wrong program to repair."""

    name, tools = "debug", ()

    def __init__(self, *, mute: bool = False) -> None:
        self.mute = mute

    def tasks(self, n: int | None = None) -> list[Task]:
        data = {"wrong": "ab"}
        made = [Task(f"t{i}", (Message("user", "Write."),), "debug", data=data) for i in range(3)]
        return made[:n]

    def open(self, task: Task, box: object) -> DebugEpisode:
        return DebugEpisode(task, mute=self.mute)
