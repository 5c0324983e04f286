"""Taking the state out of a session's stopped interpreter, and putting one into another's.

All sessions of one zygote are copies of it, so what one has in its memory can be put into another,
address by address. The other was made as any session is, and stays jailed as it was: nothing of the
jail is in what is carried. What the kernel keeps for a process besides (descriptors, threads,
timers) is not carried; a session that has any of it is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from sandboxes.embedded import memory, outside
from sandboxes.embedded.handle import Handle
from sandboxes.embedded.memory import Area, Layout, Odd, Run
from sandboxes.embedded.parcel import Parcel, collect
from sandboxes.embedded.trace import PAGE, Traced

MOST_MB = 256
"""The most that one snapshot may hold beyond what every fresh session has, MiB."""

_MMAP, _MPROTECT, _MUNMAP, _BRK, _MADVISE = 9, 10, 11, 12, 28
_CLOCK_GETTIME, _UMASK, _CHDIR, _OPENAT, _CLOSE = 228, 95, 80, 257, 3
_FIXED, _PRIVATE, _SHARED, _ANONYMOUS, _NORESERVE = 0x10, 0x02, 0x01, 0x20, 0x4000
_DONTNEED = 4
_AT_FDCWD = -100
_SCRATCH = 16 << 10  # below the stack pointer of a process at rest


@dataclass(frozen=True, slots=True)
class State:
    """What is carried of one process."""

    layout: Layout
    pages: memory.Pages
    registers: dict[str, int]
    floats: bytes
    blocked: bytes
    cwd: str
    umask: int


@dataclass(frozen=True, slots=True)
class Fresh:
    """A session of the zygote in which nothing ran yet: what others are compared with."""

    traits: outside.Traits
    state: State


def _state(process: Traced, handle: Handle, known: memory.Pages, most: int) -> tuple[State, int]:
    """The state of a stopped session, and its bytes that `known` does not have."""
    layout = memory.layout(process.pid)
    private = [a for a in layout.areas if a.mode[3] == "p"]
    runs = memory.own_pages(process, private, most // PAGE + len(known))
    pages, own = memory.contents(process, runs, known)
    cwd, umask = outside.place(handle)
    floats, blocked = process.floats(), process.blocked_signals()
    return State(layout, pages, process.rest, floats, blocked, cwd, umask), own


def describe(traced: Traced, handle: Handle) -> Fresh:
    """What a fresh session is. Raises TraceError, Odd."""
    with traced as process:
        state, _ = _state(process, handle, {}, MOST_MB << 20)
        return Fresh(outside.traits(handle), state)


def take(traced: Traced, handle: Handle, fresh: Fresh, most: int) -> tuple[State, Parcel, int]:
    """The state of a session that is between two calls, its files, and their size in bytes.

    Raises Odd where it cannot be carried, TraceError.
    """
    with traced as process:
        outside.alone(handle)
        outside.compare(outside.traits(handle), fresh.traits)
        usual = fresh.state
        state, own = _state(process, handle, usual.pages, most)
        if state.layout.kernels != usual.layout.kernels:
            raise Odd("it moved what the kernel shows to every process")
        if any(state.registers[n] != usual.registers[n] for n in ("cs", "ss", "fs_base")):
            raise Odd("its segments are not a fresh session's")
        files = collect(handle.pid, most - own)
        return state, files, own + len(files.data)


def give(traced: Traced, handle: Handle, fresh: Fresh, state: State) -> None:
    """Put a state into a fresh session, which is killed if that fails. Raises TraceError, Odd."""
    with traced as process:
        outside.compare(outside.traits(handle), fresh.traits)
        _lay_out(process, state.layout)
        _place(process, state, outside.place(handle))  # before the pages: it writes to the stack
        private = [a for a in state.layout.areas if a.mode[3] == "p"]
        runs = memory.own_pages(process, private, len(state.pages) + (MOST_MB << 20) // PAGE)
        pages, _ = memory.contents(process, runs, state.pages)
        for page in _surplus(runs, pages, state.pages):
            del pages[page]
            process.call(_MADVISE, page, PAGE, _DONTNEED)
        for start, data in memory.writes(state.pages, pages):
            process.write(start, data)
        process.set_floats(state.floats)
        process.block_signals(state.blocked)
        process.set_registers(state.registers)
        if outside.place(handle) != (state.cwd, state.umask):
            raise Odd("its working directory could not be entered")


def _lay_out(process: Traced, wanted: Layout) -> None:
    """Make the mappings of a stopped process those that are wanted."""
    now = memory.layout(process.pid)
    if now.kernels != wanted.kernels:
        raise Odd("the kernel shows it other things than a fresh session")
    if now == wanted:
        return
    if now.heap_end != wanted.heap_end and wanted.heap_end:
        process.call(_BRK, wanted.heap_end)
    if wanted.stack_start and wanted.stack_start < now.stack_start:
        process.call(_CLOCK_GETTIME, 0, wanted.stack_start)  # the kernel grows it to there
    files: dict[str, int] = {}
    for start, end, old, new in _changes(memory.layout(process.pid).areas, wanted.areas):
        if new is None:
            process.call(_MUNMAP, start, end - start)
        elif old is not None and (old.file, old.offset, old.mode[3]) == (
            new.file, new.offset, new.mode[3],
        ):  # fmt: skip
            process.call(_MPROTECT, start, end - start, _protection(new))
        else:
            _map(process, new, files)
    for fd in files.values():
        process.call(_CLOSE, fd)
    if memory.layout(process.pid).areas != wanted.areas:
        raise Odd("its mappings could not be made again")


def _changes(
    old: tuple[Area, ...], new: tuple[Area, ...]
) -> Iterator[tuple[int, int, Area | None, Area | None]]:
    """Addresses at which two lists of areas differ, each with what they have there; what is to go
    before what is to come."""
    marks = sorted({n for area in (*old, *new) for n in (area.start, area.end)})
    found = []
    before, after = iter(old), iter(new)
    one, two = next(before, None), next(after, None)
    for start, end in itertools.pairwise(marks):
        while one is not None and one.end <= start:
            one = next(before, None)
        while two is not None and two.end <= start:
            two = next(after, None)
        here = one.cut(start, end) if one is not None and one.start <= start else None
        there = two.cut(start, end) if two is not None and two.start <= start else None
        if here != there:
            found.append((start, end, here, there))
    yield from sorted(found, key=lambda change: change[3] is not None)


def _protection(area: Area) -> int:
    return sum(bit for bit, flag in zip((1, 2, 4), area.mode, strict=False) if flag != "-")


def _map(process: Traced, area: Area, files: dict[str, int]) -> None:
    """`files` are open in the process, by what areas call them."""
    flags, fd = _FIXED | (_SHARED if area.mode[3] == "s" else _PRIVATE), -1
    if not area.file:
        flags |= _ANONYMOUS | _NORESERVE
    elif area.file in files:
        fd = files[area.file]
    else:
        path = _text(process, area.file.partition(" ")[2])
        fd = files[area.file] = process.call(_OPENAT, _AT_FDCWD, path, 0)
    size = area.end - area.start
    process.call(_MMAP, area.start, size, _protection(area), flags, fd, area.offset)


def _text(process: Traced, text: str) -> int:
    """The address of a text, for a call of the process."""
    address = (process.rest["rsp"] - _SCRATCH) & -PAGE
    process.poke(address, text.encode("utf-8", "surrogateescape") + b"\0")
    return address


def _surplus(runs: list[Run], pages: memory.Pages, wanted: memory.Pages) -> list[int]:
    """Pages in place of a file's where the wanted state has the file's."""
    there = {a for r in runs if not r.anonymous for a in range(r.start, r.end, PAGE)}
    return [address for address in there & pages.keys() if address not in wanted]


def _place(process: Traced, state: State, now: tuple[str, int]) -> None:
    if state.cwd != now[0]:
        process.call(_CHDIR, _text(process, state.cwd))
    if state.umask != now[1]:
        process.call(_UMASK, state.umask)
