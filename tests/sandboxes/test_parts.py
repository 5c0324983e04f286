"""The parts that can be looked at without a session: output, the filter, the code inside."""

from __future__ import annotations

import ast
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.errors import IsolationError
from sandboxes.embedded import seccomp
from sandboxes.embedded.inside import wire
from sandboxes.output import OutputBuffer

INSIDE = Path(seccomp.__file__).parent / "inside"
ALLOW, EPERM, EACCES, ENOSYS, ERRNO = 0x7FFF0000, 0x50001, 0x5000D, 0x50026, 0x50000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def decide(program: bytes, machine: str, number: int, *args: int) -> int:
    """Run the filter as the kernel does."""
    data = struct.pack("iIQ6Q", number, ARCH[machine], 0, *args, *[0] * (6 - len(args)))
    code = [struct.unpack_from("HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        if op == 0x20:
            (accumulator,) = struct.unpack_from("I", data, k)
        elif op == 0x06:
            return k
        else:
            taken = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[
                op
            ]
            at += yes if taken else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_decides_every_call(machine: str) -> None:
    program = seccomp.build(unmapped_memory=False, machine=machine)
    arch = list(ARCH).index(machine)
    denied = {c[arch] for c in (*seccomp._DENIED.values(), *seccomp._UNMAPPED.values())} - {None}
    absent = {c[arch] for c in seccomp._ABSENT.values()}
    by_argument = {
        one[arch]
        for one in (
            seccomp._CLONE,
            seccomp._FCNTL,
            seccomp._IOCTL,
            seccomp._PERSONALITY,
            seccomp._PRLIMIT,
            seccomp._PRIORITY,
            *seccomp._SCHEDULERS,
        )
    } | {c[arch] for c in seccomp._SOCKETS}
    idle = {c[arch] for c in seccomp._IDLE.values()}
    special = dict.fromkeys(denied, EPERM) | dict.fromkeys(absent, ENOSYS)
    special |= dict.fromkeys(idle, ERRNO)
    for number in set(range(500)) - by_argument:
        wanted = special.get(number, ALLOW)
        assert decide(program, machine, number) == wanted, number


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_decides_by_arguments(machine: str) -> None:
    program = seccomp.build(unmapped_memory=True, machine=machine)
    arch = list(ARCH).index(machine)
    for family in range(50):
        for call in seccomp._SOCKETS:
            wanted = ALLOW if family in (1, 2, 10) else EACCES
            assert decide(program, machine, call[arch], family) == wanted
    assert decide(program, machine, seccomp._CLONE[arch], 0x01200011) == ALLOW  # fork
    assert decide(program, machine, seccomp._CLONE[arch], 0x003D0F00) == ALLOW  # a thread
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(program, machine, seccomp._CLONE[arch], flag | 17) == EPERM
    assert decide(program, machine, seccomp._IOCTL[arch], 0, 0x5401) == ALLOW
    assert decide(program, machine, seccomp._IOCTL[arch], 0, 0x5412) == EPERM
    for command in range(2000):  # of fcntl
        wanted = EPERM if command in (1024, 1026, 1031) else ALLOW
        assert decide(program, machine, seccomp._FCNTL[arch], 3, command) == wanted
    assert decide(program, machine, seccomp._PERSONALITY[arch], 0xFFFFFFFF) == ALLOW
    assert decide(program, machine, seccomp._PERSONALITY[arch], 0x0040000) == EPERM
    for which, who in ((0, 0), (0, 1), (1, 0), (2, 0)):
        wanted = EPERM if which or who else ALLOW
        assert decide(program, machine, seccomp._PRIORITY[arch], which, who) == wanted
    for call in seccomp._SCHEDULERS:
        assert decide(program, machine, call[arch], 0) == ALLOW
        assert decide(program, machine, call[arch], 1) == EPERM
    assert decide(program, machine, seccomp._PRLIMIT[arch], 0) == ALLOW
    assert decide(program, machine, seccomp._PRLIMIT[arch], 1) == EPERM
    assert decide(program, machine, seccomp._UNMAPPED["memfd_create"][arch]) == ALLOW


def test_filter_refuses_other_tables() -> None:
    program = seccomp.build(unmapped_memory=True, machine="x86_64")
    assert decide(program, "aarch64", 0) == ENOSYS
    assert decide(program, "x86_64", 0x40000000 | 41, 40) == ENOSYS
    with pytest.raises(IsolationError, match="riscv64"):
        seccomp.build(unmapped_memory=True, machine="riscv64")


@pytest.mark.parametrize("path", sorted(INSIDE.glob("*.py")), ids=lambda p: p.stem)
def test_code_inside_needs_the_standard_library_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            assert name.partition(".")[0] in sys.stdlib_module_names, f"{path.name}: {name}"


def test_output_keeps_head_and_tail() -> None:
    buffer = OutputBuffer(10)
    for byte in b"0123456789":
        buffer.add(bytes([byte]))
    assert buffer.text() == "0123456789"
    assert not buffer.truncated
    buffer.add(b"abc")
    assert buffer.truncated
    assert buffer.total == 13
    assert buffer.text() == "01234\n[... 3 bytes left out ...]\n89abc"


def test_output_is_bounded() -> None:
    buffer = OutputBuffer(1000)
    for _ in range(1000):
        buffer.add(bytes(10_000))
    assert buffer.total == 10_000_000
    assert len(buffer._head) + len(buffer._tail) < 200_000
    assert len(buffer.text()) < 1100


@pytest.mark.parametrize("limit", range(8, 24))
def test_output_does_not_cut_characters(limit: int) -> None:
    buffer = OutputBuffer(limit)
    buffer.add("aé€😀".encode() * 10)
    head, note, tail = buffer.text().split("\n")
    assert "\\x" not in head + tail
    assert "aé€😀".startswith(head[:4])
    assert int(note.split()[1]) + len((head + tail).encode()) == 100


def test_output_shows_bytes_that_are_no_text() -> None:
    buffer = OutputBuffer(100)
    buffer.add(b"\xff\xfeok\xe2")
    assert buffer.text() == "\\xff\\xfeok\\xe2"


def test_messages_carry_any_text() -> None:
    message = {"text": "\ud800 \0 😀", "number": 1}
    assert wire.decode(wire.encode(message)) == message
    with pytest.raises(ValueError, match="decode"):
        wire.decode(b"\xff{")


def test_the_backend_needs_the_standard_library_and_our_foundation_only() -> None:
    """It runs in containers with little more than an interpreter; `-S`: without site packages."""
    program = (
        "import sys, types\n"
        "package = types.ModuleType('agentrl'); package.__path__ = ['agentrl']\n"
        "sys.modules['agentrl'] = package\n"
        "sys.path.insert(0, '.')\n"
        "import sandboxes.embedded.backend\n"
        "print(*(m for m in sys.modules if m.partition('.')[0] == 'agentrl'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        cwd=Path(seccomp.__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {
        "agentrl",
        "agentrl.errors",
        "agentrl.interfaces",
        "agentrl.types",
    }
