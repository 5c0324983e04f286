"""Programs that are compiled once and run often: each run in a fresh session."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.errors import EndedByCode, SandboxError
from agentrl.types import ExecResult
from sandboxes import languages
from sandboxes.judge.setting import Setting
from sandboxes.languages import Language

_RUN = 'chmod +x "$0" && exec "$0" "$@"'


async def build(setting: Setting, how: Language, program: str) -> bytes | ExecResult:
    """The program's binary, or how compiling failed. Raises SandboxError."""
    async with setting.box.session(setting.limits, profile=setting.profile) as session:
        await session.write_file(how.file, program.encode("utf-8", "surrogatepass"))
        result = await session.exec(how.compiler, timeout=languages.COMPILE_S)
        if result.status == "infra":
            raise SandboxError(f"the sandbox failed: {result.detail}")
        if result.status != "ok":
            return languages.not_compiled(result)
        try:
            return await session.read_file(how.command[0])
        except (EndedByCode, OSError, ValueError) as error:  # too large a binary, for one
            return ExecResult("error", detail=str(error))


async def run(
    setting: Setting, how: Language, binary: bytes, args: Sequence[str], stdin: bytes
) -> ExecResult:
    """Run a binary that `build` made."""
    async with setting.box.session(setting.limits, profile=setting.profile) as session:
        for name, data in setting.files.items():
            await session.write_file(name, data)
        await session.write_file(how.command[0], binary)
        argv = ["sh", "-c", _RUN, *how.command, *args]
        return await session.exec(argv, stdin=stdin, timeout=setting.timeout)
