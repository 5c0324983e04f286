"""Another process of this machine, stopped: its registers, its memory, and system calls made in it.

By ptrace(2), on x86-64 Linux. All requests about a process come from the thread that stopped it,
and the kernel lets it go, or kills it (`kill`), when that thread ends: use a thread for
each.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

_CONT, _SINGLESTEP, _DETACH, _SETOPTIONS = 7, 9, 17, 0x4200
_GETREGSET, _SETREGSET = 0x4204, 0x4205
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_EXITKILL = 0x00100000
_WALL = 0x40000000
_PRSTATUS, _XSTATE = 1, 0x202
_XSTATE_BYTES = 64 << 10
_TRAP = 5
_WAIT_S = 2.0
_SPINS = 200  # looks at a process that is about to stop, before sleeping between two
_NAP_S = 0.0001
_MAX_VECTORS = 512
PAGE = 4096

REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx",
    "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base",
    "ds", "es", "fs", "gs",
)  # fmt: skip
"""The fields of `struct user_regs_struct`, 64 bits each."""

_ALL_REGISTERS = struct.Struct(f"{len(REGISTERS)}Q")
_NO_CALL = (1 << 64) - 1
_SYSCALL = b"\x0f\x05"
_RECVMSG = 47
_RESTARTS = tuple((1 << 64) - n for n in (512, 513, 514, 516))  # what a stopped call has in rax


class TraceError(OSError):
    """The process could not be stopped, read or changed."""


def possible() -> str | None:
    """Why this machine cannot; None if it might."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return "it is done on x86-64 Linux only"
    if os.sysconf("SC_PAGESIZE") != PAGE:
        return "pages are not of 4096 bytes"
    return None


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ptrace(request: int, pid: int, address: int, data: object) -> None:
    ctypes.set_errno(0)
    if _libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise TraceError(number, f"ptrace: {os.strerror(number)}")


class Traced:
    """A process that waits for a message, stopped while the block runs. `rest` are its registers,
    which have whoever is given them wait, too. Raises TraceError, at its start, too.

    `pidfd`, which it closes, is the process's, too: should that one have ended, no other is stopped
    in its place.
    With `kill` the process is killed unless the block ends without an error.
    """

    def __init__(self, pid: int, pidfd: int, *, kill: bool) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._kill = kill
        self._memory = -1
        self.rest: dict[str, int]

    def __enter__(self) -> Self:
        try:
            _ptrace(_SEIZE, self.pid, 0, 0)
            signal.pidfd_send_signal(self._pidfd, 0)  # it lives: the number is still its own
        except OSError as error:  # this thread's end lets go of whoever has the number now
            os.close(self._pidfd)
            raise TraceError(error.errno, f"it cannot be stopped ({error.strerror})") from error
        try:
            _ptrace(_INTERRUPT, self.pid, 0, 0)
            self._wait()
            _ptrace(_SETOPTIONS, self.pid, 0, _EXITKILL if self._kill else 0)
            self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
            self.rest = self._settle()
        except BaseException:
            self._release(failed=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release(failed=error is not None)

    def _release(self, *, failed: bool) -> None:
        if self._memory >= 0:
            os.close(self._memory)
        try:
            if failed and self._kill:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            _ptrace(_DETACH, self.pid, 0, 0)
        except OSError:  # it ended, or is still on its way to a stop: the thread's end lets it go
            pass
        finally:
            os.close(self._pidfd)

    def _wait(self, stop: int = _TRAP) -> None:
        """Wait until it has stopped."""
        end = time.monotonic() + _WAIT_S
        spins = 0
        while True:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG | _WALL)
            except ChildProcessError as error:
                raise TraceError(errno.ESRCH, "it ended") from error
            if pid == 0:
                spins += 1
                if time.monotonic() > end:
                    raise TraceError(errno.ETIMEDOUT, "it did not stop in time")
                time.sleep(0 if spins < _SPINS else _NAP_S)
            elif not os.WIFSTOPPED(status):
                raise TraceError(errno.ESRCH, "it ended")
            elif os.WSTOPSIG(status) != stop:
                raise TraceError(errno.EINTR, f"it got signal {os.WSTOPSIG(status)}")
            else:
                return

    def _set(self, kind: int, data: bytes) -> None:
        vector = _Vector(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data))
        _ptrace(_SETREGSET, self.pid, kind, ctypes.addressof(vector))

    def _get(self, kind: int, most: int) -> bytes:
        buffer = ctypes.create_string_buffer(most)
        vector = _Vector(ctypes.addressof(buffer), most)
        _ptrace(_GETREGSET, self.pid, kind, ctypes.addressof(vector))
        return buffer.raw[: vector.size]

    def registers(self) -> dict[str, int]:
        """The general registers. Raises TraceError for a process in 32-bit mode."""
        data = self._get(_PRSTATUS, 2 * _ALL_REGISTERS.size)
        if len(data) != _ALL_REGISTERS.size:
            raise TraceError(errno.EINVAL, "it is not in 64-bit mode")
        return dict(zip(REGISTERS, _ALL_REGISTERS.unpack(data), strict=True))

    def set_registers(self, values: Mapping[str, int]) -> None:
        """Set all general registers; the kernel refuses values that no process may have."""
        self._set(_PRSTATUS, _ALL_REGISTERS.pack(*(values[name] for name in REGISTERS)))

    def floats(self) -> bytes:
        """The floating-point and vector registers, as the kernel writes them."""
        return self._get(_XSTATE, _XSTATE_BYTES)

    def set_floats(self, data: bytes) -> None:
        """Set what `floats` gave."""
        self._set(_XSTATE, data)

    def blocked_signals(self) -> bytes:
        """The signal mask."""
        mask = ctypes.create_string_buffer(8)
        _ptrace(_GETSIGMASK, self.pid, 8, ctypes.addressof(mask))
        return mask.raw

    def block_signals(self, mask: bytes) -> None:
        """Set the signal mask."""
        held = ctypes.create_string_buffer(mask, 8)
        _ptrace(_SETSIGMASK, self.pid, 8, ctypes.addressof(held))

    def read(self, start: int, target: memoryview) -> None:
        """Fill `target` with memory, whatever its protection. Raises TraceError where there is
        none."""
        done = 0
        while done < len(target):
            count = os.preadv(self._memory, [target[done:]], start + done)
            if count <= 0:
                raise TraceError(errno.EIO, "its memory cannot be read")
            done += count

    def write(self, start: int, pages: Sequence[bytes]) -> None:
        """Write whole pages one after the other, whatever their protection."""
        for at in range(0, len(pages), _MAX_VECTORS):
            part = pages[at : at + _MAX_VECTORS]
            if os.pwritev(self._memory, part, start + at * PAGE) != len(part) * PAGE:
                raise TraceError(errno.EIO, "its memory cannot be written")

    def poke(self, start: int, data: bytes) -> None:
        """Write some bytes."""
        if os.pwrite(self._memory, data, start) != len(data):
            raise TraceError(errno.EIO, "its memory cannot be written")

    def _settle(self) -> dict[str, int]:
        """Let it go on until it waits. Raises TraceError if it does not."""
        end = time.monotonic() + _WAIT_S
        while (found := self._resting()) is None:
            if time.monotonic() > end:
                raise TraceError(errno.EBUSY, "it does not wait for an order")
            _ptrace(_CONT, self.pid, 0, 0)
            time.sleep(_NAP_S)
            _ptrace(_INTERRUPT, self.pid, 0, 0)
            self._wait()
        return found

    def _resting(self) -> dict[str, int] | None:
        found = self.registers()
        if found["orig_rax"] != _RECVMSG or found["rax"] not in _RESTARTS:
            return None
        again = {"rax": _RECVMSG, "rip": found["rip"] - 2, "orig_rax": _NO_CALL}
        code = bytearray(2)
        self.read(again["rip"], memoryview(code))
        return found | again if code == _SYSCALL else None

    def call(self, number: int, *args: int) -> int:
        """Have the process make a system call; what it returns. Raises TraceError if it fails."""
        names = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
        padded = (*args, 0, 0, 0, 0, 0, 0)[:6]
        values = dict(zip(names, (value % (1 << 64) for value in padded), strict=True))
        self.set_registers({**self.rest, **values, "rax": number, "orig_rax": _NO_CALL})
        _ptrace(_SINGLESTEP, self.pid, 0, 0)
        self._wait()
        result = self.registers()["rax"]
        if result > (1 << 64) - 4096:
            number = (1 << 64) - result
            raise TraceError(number, f"a call in it failed: {os.strerror(number)}")
        return result
