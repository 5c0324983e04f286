"""Throw millions of inputs at what reads the words of untrusted code. Any surprise is a failure.

    python benchmarks/fuzz.py                      # ten million inputs over all targets
    python benchmarks/fuzz.py claims --inputs 50000

With atheris installed (`pip install atheris`) the inputs are guided by coverage; without it they
are mutations of valid messages. A target may answer what its docstring says and nothing else: any
other exception, an answer slower than 5 s, or more than 2 GiB is reported and ends the run with
status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from agentrl.errors import ConfigError, SandboxError
from agentrl.types import ExecResult, Limits
from sandboxes.embedded import channels, results
from sandboxes.embedded.inside import wire
from sandboxes.output import OutputBuffer
from sandboxes.rpc import codec, frames

_SLOW_S = 5
_MOST_BYTES = 4096


def feed_frames(data: bytes) -> None:
    """The stream decoder: messages or FrameError, the same ones however the stream is cut."""
    size = data[0] % 7 + 1 if data else 1
    found: list[list[tuple[object, list[bytes]]]] = []
    for step in (len(data) or 1, size):
        decoder, messages, failed = frames.Decoder(most=1 << 16), [], False
        try:
            for at in range(0, len(data), step):
                messages += [(m.body, m.blobs) for m in decoder.feed(data[at : at + step])]
        except frames.FrameError:
            failed = True
        found.append(messages if not failed else [])
        if step == len(data) and failed:
            return  # messages before the broken one may or may not have been given
    assert found[0] == found[1], "the cut of the stream changed the messages"


_WORDS = ("ok", "error", "exit", "sync", "x\ud800", "")
_KEYS = ("id", "status", "value", "cut", "error", "code", "more")


def _build(choices: Iterator[int], depth: int = 0) -> Any:
    """A JSON value chosen by bytes: numbers, words and nests of them."""
    kind, number = next(choices, 0) % (8 if depth < 4 else 6), next(choices, 0)
    if kind == 6:
        return [_build(choices, depth + 1) for _ in range(number % 5)]
    if kind == 7:
        return {_KEYS[next(choices, 0) % 7]: _build(choices, depth + 1) for _ in range(number % 5)}
    return (None, number % 2 == 0, number % 5, -(10**number), _WORDS[number % 6], "a" * 99**2)[kind]


def _claim(choices: Iterator[int]) -> dict[str, Any]:
    """A claim, parts of which are left out or are something else."""
    claim: dict[str, Any] = {"id": 1, "status": _WORDS[next(choices, 0) % 4]}
    if claim["status"] == "error":
        claim["error"] = ["E", "m", "t"]
    for key in _KEYS:
        what = next(choices, 0) % 4
        if what == 1:
            claim.pop(key, None)
        elif what == 2:
            claim[key] = _build(choices)
    return claim


def check_claims(data: bytes) -> None:
    """What the interpreter says: a message that is refused, or one that makes a result.

    Every second input is taken as it is, the others choose the parts of a message."""
    if data and data[0] % 2:
        data = wire.encode(_claim(iter(data[1:])))
    claim = channels.parse(data)
    if results.check_claim(claim, 1, Limits()) is not None:
        return
    assert claim is not None
    text = json.dumps({"value": results._clean(claim.get("value"))}).encode()
    assert len(text) < wire.MESSAGE_BYTES * 8


def read_answers(data: bytes) -> None:
    """What a service answers: a result or SandboxError; limits or ConfigError."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(body, dict):
        return
    try:
        codec.checked(body)
        result = codec.result_from_wire(body, [])
        assert isinstance(result, ExecResult)
    except (SandboxError, ConfigError, ValueError, OSError):
        pass
    try:
        codec.limits_from_wire(body)
    except ConfigError:
        pass


def keep_output(data: bytes) -> None:
    """What code prints: text of bounded size, whatever the bytes, with an exact count."""
    limit = data[0] + 2 if data else 2
    step = data[1] % 9 + 1 if len(data) > 1 else 1
    buffer = OutputBuffer(limit)
    for at in range(0, len(data), step):
        buffer.add(data[at : at + step])
    text = buffer.text()
    text.encode()
    assert buffer.total == len(data)
    assert len(text) <= 4 * limit + 80


@dataclass(frozen=True, slots=True)
class Target:
    """`run` takes bytes; `seeds` are valid inputs to begin from."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


_RESULT, _ = codec.result_to_wire(ExecResult("ok", stdout="x", value="42", isolation="namespaces"))
TARGETS: Mapping[str, Target] = {
    "frames": Target(
        feed_frames,
        (
            frames.encode({"op": "run", "args": {"session": "0" * 32}}, [b"x = 1", b""]),
            frames.encode({}) + frames.encode({"a": ["\u20ac", None]}, [b"\x00" * 9]),
        ),
    ),
    "claims": Target(
        check_claims,
        (
            wire.encode({"id": 1, "status": "ok", "value": "42", "cut": False}),
            wire.encode({"id": 1, "status": "error", "error": ["E", "m\ud800", "trace"]}),
            wire.encode({"id": 1, "status": "exit", "code": 3}),
            wire.encode({"sync": "0123456789abcdef"}),
        ),
    ),
    "answers": Target(
        read_answers,
        (
            json.dumps(_RESULT).encode(),
            json.dumps(codec.limits_to_wire(Limits())).encode(),
            json.dumps({"failed": codec.error_to_wire(FileNotFoundError(2, "no"))}).encode(),
        ),
    ),
    "output": Target(keep_output, (b"\x05\x01" + "a\u20ac\U0001f600".encode() * 4,)),
}


def mutate(seed: bytes, dice: random.Random) -> bytes:
    """A valid message with a few things wrong."""
    data = bytearray(seed)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(data) + 1)
        kind = dice.randrange(5)
        if kind == 0 and data:
            data[at % len(data)] = dice.randrange(256)
        elif kind == 1:
            del data[at : at + dice.randint(1, 8)]
        elif kind == 2:
            data[at:at] = dice.randbytes(dice.randint(1, 8))
        elif kind == 3:
            data[at:at] = dice.choice((b"null", b"-1", b"1e999", b"[", b"{", b'"', b"\\ud800"))
        else:
            data += data[at : at + 64]
    return bytes(data[:_MOST_BYTES])


def plain(target: Target, inputs: int, seed: int) -> int:
    """Run `inputs` mutations; how many were run."""
    dice = random.Random(seed)
    for _ in range(inputs):
        data = mutate(dice.choice(target.seeds), dice)
        if dice.random() < 0.5:
            data = data[:1] + dice.randbytes(dice.randint(1, 64))
        started = time.monotonic()
        try:
            target.run(data)
        except BaseException:
            print(f"failed on {data!r}", file=sys.stderr)
            raise
        assert time.monotonic() - started < _SLOW_S, f"slow on {data!r}"
    return inputs


def guided(name: str, inputs: int, seed: int) -> None:
    """Run a target under atheris in this process, which atheris ends."""
    import atheris

    for module in (frames, codec, results, channels, wire):
        for value in list(vars(module).values()):
            if getattr(value, "__module__", None) == module.__name__ and hasattr(value, "__code__"):
                atheris.instrument_func(value)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(TARGETS[name].seeds):
            Path(folder, str(number)).write_bytes(data)
        for number in range(64):
            noise = random.Random(seed * 64 + number).randbytes(64)
            Path(folder, f"noise{number}").write_bytes(noise)
        options = [f"-runs={inputs}", f"-seed={seed + 1}", f"-timeout={_SLOW_S}"]
        options += ["-rss_limit_mb=2048", f"-max_len={_MOST_BYTES}", "-print_final_stats=1"]
        atheris.Setup(
            [sys.argv[0], *options, f"-artifact_prefix={folder}/", folder], TARGETS[name].run
        )
        atheris.Fuzz()


def run_guided(name: str, inputs: int, seed: int) -> int:
    """Run a target under atheris in a child; how many inputs it took."""
    command = [sys.executable, __file__, name, "--inputs", str(inputs), "--seed", str(seed)]
    done = subprocess.run([*command, "--child"], capture_output=True, text=True, check=False)
    found = re.search(r"Done (\d+) runs|number_of_executed_units: (\d+)", done.stderr)
    if done.returncode or not found:
        sys.stderr.write(done.stderr[-6000:])
        raise SystemExit(1)
    return int(found[1] or found[2])


def main() -> None:
    """Fuzz the targets named, or all of them, and say how many inputs each took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all of them if none")
    parser.add_argument("--inputs", type=int, default=10_000_000, help="over all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if options.child:
        guided(names[0], options.inputs, options.seed)
        return
    try:
        import atheris  # noqa: F401
    except ImportError:
        options.plain = True
    how = "mutations of valid messages" if options.plain else "atheris, guided by coverage"
    each = -(-options.inputs // len(names))
    total = 0
    for name in names:
        started = time.monotonic()
        if options.plain:
            ran = plain(TARGETS[name], each, options.seed)
        else:
            ran = run_guided(name, each, options.seed)
        total += ran
        print(f"{name:<8} {ran:>10,} inputs in {time.monotonic() - started:6.0f} s", flush=True)
    print(f"{total:,} inputs ({how}), no crash, no hang. CPUs: {os.cpu_count()}")


if __name__ == "__main__":
    main()
