"""What a process has in its memory, as the kernel describes it: mappings, and pages of its own.

Nothing is read from the process but whole pages, which are never interpreted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sandboxes.embedded.trace import PAGE, Traced

MOST_MAPPINGS = 4096
_LINE_BYTES = 8192  # a path has 4096 at most
_MOST_ADDRESSES = 32 << 30
_CHUNK = 1 << 14  # pages looked at together
_READ_PAGES = 64
_OWN, _GUARD, _OTHER = b"o", b"g", b"-"
_OWN_RUN = re.compile(rb"o+")


def _kind_of(flags: int) -> bytes:
    """Of a page, from the highest byte of its entry in /proc/PID/pagemap: present, swapped, of a
    file or shared, guard."""
    if flags & 0x04:
        return _GUARD
    return _OWN if flags & 0xC0 and not flags & 0x20 else _OTHER


_KIND_OF = b"".join(map(_kind_of, range(256)))
_KERNELS = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")
_ANONYMOUS = ("", "[heap]", "[stack]")
_ZERO = bytes(PAGE)

Pages = Mapping[int, bytes]
"""Address -> the page there."""


class Odd(Exception):
    """Memory that cannot be carried; the message says why."""


@dataclass(frozen=True, slots=True)
class Area:
    """Addresses from `start` up to `end` with one protection (`rwxp`) and one backing: `file` is
    the device, inode and path, "" for anonymous memory; `offset` that of `start` in it."""

    start: int
    end: int
    mode: str
    file: str
    offset: int

    def cut(self, start: int, end: int) -> Area:
        """The part of it from `start` to `end`."""
        offset = self.offset + start - self.start if self.file else 0
        return Area(start, end, self.mode, self.file, offset)

    def follows(self, other: Area) -> bool:
        """Whether the two are one area for whoever uses them."""
        same = (self.mode, self.file, self.start) == (other.mode, other.file, other.end)
        return same and (not self.file or self.offset == other.offset + other.end - other.start)


@dataclass(frozen=True, slots=True)
class Run:
    """`count` pages from address `start`, of anonymous memory or in place of a file's."""

    start: int
    count: int
    anonymous: bool

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.count * PAGE


@dataclass(frozen=True, slots=True)
class Layout:
    """A process's areas in order, those next to each other that are alike as one. `kernels` are
    the kernel's own, `heap_end` and `stack_start` where those are, 0 without."""

    areas: tuple[Area, ...]
    kernels: tuple[Area, ...]
    heap_end: int
    stack_start: int


def layout(pid: int) -> Layout:
    """The mappings of a process. Raises Odd for more than can be carried."""
    areas: list[Area] = []
    kernels: list[Area] = []
    heap_end = stack_start = 0
    for number, line in enumerate(_lines(pid)):
        if number >= MOST_MAPPINGS:
            raise Odd(f"it has more than {MOST_MAPPINGS} mappings")
        span, mode, offset, device, inode, name = _fields(line)
        start, _, end = span.partition("-")
        area = Area(int(start, 16), int(end, 16), mode, "", 0)
        if name in _KERNELS:
            kernels.append(Area(area.start, area.end, mode, name, 0))
            continue
        if name.startswith("/"):
            area = Area(area.start, area.end, mode, f"{device}:{inode} {name}", int(offset, 16))
        elif name not in _ANONYMOUS and not name.startswith("[anon:"):
            raise Odd(f"it has a mapping of an unknown kind, {name[:40]!r}")
        _check(area)
        heap_end = area.end if name == "[heap]" else heap_end
        stack_start = stack_start or (area.start if name == "[stack]" else 0)
        if areas and area.follows(areas[-1]):
            area = Area(areas[-1].start, area.end, area.mode, area.file, areas.pop().offset)
        areas.append(area)
    if sum(area.end - area.start for area in areas) > _MOST_ADDRESSES:
        raise Odd(f"it has mapped more than {_MOST_ADDRESSES >> 30} GiB of addresses")
    return Layout(tuple(areas), tuple(kernels), heap_end, stack_start)


def _check(area: Area) -> None:
    if area.mode[3] == "s" and (not area.file or "w" in area.mode):
        raise Odd("it shares memory that can be written")
    if area.file.endswith(" (deleted)"):
        raise Odd("it has mapped a file that has no name any more")
    path = area.file.partition(" ")[2]
    if path.startswith(("/work/", "/tmp/", "/dev/")):
        raise Odd(f"it has mapped a file of its own, {path[:80]!r}")


def _lines(pid: int) -> Iterator[str]:
    with open(
        f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape", newline="\n"
    ) as file:
        while line := file.readline(_LINE_BYTES):
            yield line.removesuffix("\n")


def _fields(line: str) -> tuple[str, str, str, str, str, str]:
    span, mode, offset, device, inode, *name = line.split(" ", 5)
    return span, mode, offset, device, inode, name[0].strip(" ") if name else ""


def own_pages(process: Traced, areas: Sequence[Area], most: int) -> list[Run]:
    """The pages in private `areas` that are the process's and no file's: what it wrote.

    Raises Odd if there are more than `most` pages.
    """
    runs: list[Run] = []
    found = 0
    fd = os.open(f"/proc/{process.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for area in areas:
            for address, kinds in _kinds(fd, area):
                if _GUARD in kinds:
                    raise Odd("it has guard pages")
                for match in _OWN_RUN.finditer(kinds):
                    count = match.end() - match.start()
                    runs.append(Run(address + match.start() * PAGE, count, not area.file))
                    found += count
                if found > most:
                    raise Odd(f"it uses more than {most * PAGE >> 20} MiB of memory")
    finally:
        os.close(fd)
    return runs


def _kinds(fd: int, area: Area) -> Iterator[tuple[int, bytes]]:
    """A letter for each page of an area, in chunks; chunks without any page are left out."""
    pages = (area.end - area.start) // PAGE
    for at in range(0, pages, _CHUNK):
        count = min(_CHUNK, pages - at)
        address = area.start + at * PAGE
        data = os.pread(fd, 8 * count, address // PAGE * 8)
        if len(data) != 8 * count:
            raise Odd("the kernel does not say what its pages are")
        yield address, data[7::8].translate(_KIND_OF)  # the highest byte of each entry has all


def contents(process: Traced, runs: Sequence[Run], known: Pages) -> tuple[dict[int, bytes], int]:
    """The pages of `runs`, and how many bytes of them are not those of `known`, which are shared.
    Anonymous pages of zeros are left out: they are what no page is."""
    pages: dict[int, bytes] = {}
    own = 0
    buffer = bytearray(_READ_PAGES * PAGE)  # one for all: new memory is slower than reading
    for run in runs:
        for at in range(0, run.count, _READ_PAGES):
            base, count = run.start + at * PAGE, min(_READ_PAGES, run.count - at)
            process.read(base, memoryview(buffer)[: count * PAGE])
            for offset in range(0, count * PAGE, PAGE):
                same = known.get(base + offset)
                if same is not None and buffer.startswith(same, offset):
                    pages[base + offset] = same
                elif not run.anonymous or not buffer.startswith(_ZERO, offset):
                    pages[base + offset] = bytes(buffer[offset : offset + PAGE])
                    own += PAGE
    return pages, own


def writes(wanted: Pages, now: Pages) -> Iterator[tuple[int, list[bytes]]]:
    """What to write where, so that memory with the pages `now` has those that are wanted; pages
    that are not are of zeros."""
    begin, run = 0, list[bytes]()
    for address in sorted(wanted.keys() | now.keys()):
        page = wanted.get(address, _ZERO)
        if now.get(address) == page:
            continue
        if run and begin + len(run) * PAGE == address:
            run.append(page)
        else:
            if run:
                yield begin, run
            begin, run = address, [page]
    if run:
        yield begin, run
