# ruff: noqa: E501
"""Games with processes, signals, descriptors and what the kernel counts for a user.

As in `abuse_cells`: source, the statuses it may end with, and what becomes of the session.
"""

from __future__ import annotations

from abuse_cells import EITHER, D, K

ALL_SOCKETS = """
import json, os, socket, stat, sys, time
found = [fd for fd in range(900, 910) if os.path.exists(f'/proc/self/fd/{fd}') and stat.S_ISSOCK(os.fstat(fd).st_mode)]
claims = socket.socket(fileno=os.dup(found[0]))
frame = sys._getframe()
while frame and 'order' not in frame.f_locals: frame = frame.f_back
number = frame.f_locals['order']['id']
"""

KERNEL: dict[str, tuple[str, tuple[str, ...], bool | None]] = {
    "A01-processes-asleep": (
        """
        import os, time
        try:
            while True:
                if os.fork() == 0: time.sleep(1000)
        except BlockingIOError: pass
        """,
        ("ok",),
        K,
    ),
    "A02-first-process-made-idle": (
        """
        import os
        try: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)); os.setpriority(os.PRIO_PROCESS, 1, 19)
        except PermissionError: pass
        for _ in range(20):
            if os.fork() == 0:
                while True: pass
        while True: pass
        """,
        ("timeout",),
        EITHER,
    ),
    "A12-shared-memory-without-owner": (
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True); libc.shmat.restype = ctypes.c_void_p
        for _ in range(100):
            if os.fork() == 0:
                open('/proc/self/oom_score_adj', 'w').write('1000')
                one = libc.shmget(0, 4 << 20, 0o1600)
                if one >= 0: ctypes.memset(libc.shmat(one, None, 0), 1, 4 << 20)
                os._exit(0)
            os.wait()
        """,
        ("ok", "oom", "timeout"),
        EITHER,
    ),
    "A13-descriptors-in-flight": (
        """
        import array, socket
        try:
            while True:
                a, b = socket.socketpair()
                a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [a.fileno(), b.fileno()]))])
                a.close(); b.close()
        except OSError: pass
        """,
        ("ok",),
        K,
    ),
    "A14-limits-of-nothing": (
        """
        import resource
        for kind in range(16):
            if kind == resource.RLIMIT_CPU: continue
            try: resource.setrlimit(kind, (0, 0))
            except ValueError: pass
        """,
        ("ok", "error", "exit", "crashed"),
        EITHER,
    ),
    "B04-signals-blocked": (
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        ("timeout",),
        D,
    ),
    "B07-stopped-later": (
        """
        import os, signal, time
        me = os.getpid()
        if os.fork() == 0:
            for _ in range(2000): os.kill(me, signal.SIGSTOP); os.kill(me, signal.SIGCONT)
            os._exit(0)
        time.sleep(0.1)
        """,
        ("ok",),
        K,
    ),
    "B08-storm-of-interrupts": (
        """
        import os, signal
        me = os.getpid()
        if os.fork() == 0:
            for _ in range(5000): os.kill(me, signal.SIGINT)
            os._exit(0)
        while True:
            try: os.wait()
            except KeyboardInterrupt: pass
            except ChildProcessError: break
        """,
        ("ok", "error"),
        K,
    ),
    "B09-every-signal-to-init": (
        """
        import os, signal, time
        for number in {*signal.Signals} - {signal.SIGCHLD}:
            try: os.kill(os.getppid(), number)
            except PermissionError: pass
        time.sleep(0.05)
        """,
        ("ok",),
        K,
    ),
    "B11-replaced-by-another-program": ("import os; os.execv('/bin/sleep', ['sleep', '100'])", ("timeout",), D),
    "B11-replaced-and-ended": ("import os; os.execv('/bin/true', ['true'])", ("exit",), D),
    "B11-first-thread-ends": (
        "import ctypes, os, threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()\nctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)",
        ("timeout",),
        D,
    ),
    "B11-children-of-init": (
        """
        import ctypes, os, time
        if os.uname().machine == 'x86_64':
            for n in range(20):
                if ctypes.CDLL(None).syscall(56, 0x8000 | 17, 0, 0, 0, 0) == 0:  # CLONE_PARENT
                    if n % 2: time.sleep(30)
                    os._exit(7)
        """,
        ("ok",),
        K,
    ),
    "B12-timer-of-the-kernel": (
        """
        import ctypes
        libc = ctypes.CDLL(None); timer = ctypes.c_void_p()
        libc.timer_create(0, None, ctypes.byref(timer))
        libc.timer_settime(timer, 0, (ctypes.c_long * 4)(0, 0, 0, 1_000_000), None)
        import time; time.sleep(0.1)
        """,
        ("crashed",),
        D,
    ),
    "C08-filter-that-kills": (
        """
        import ctypes, struct
        class Program(ctypes.Structure): _fields_ = [('n', ctypes.c_ushort), ('f', ctypes.c_char_p)]
        code = struct.pack('HBBI', 6, 0, 0, 0x80000000)
        ctypes.CDLL(None).prctl(22, 2, ctypes.byref(Program(1, code)), 0, 0)
        """,
        ("crashed",),
        D,
    ),
    "C08-filter-that-refuses": (
        """
        import ctypes, struct
        class Program(ctypes.Structure): _fields_ = [('n', ctypes.c_ushort), ('f', ctypes.c_char_p)]
        code = struct.pack('HBBI', 6, 0, 0, 0x50001)
        ctypes.CDLL(None).prctl(22, 2, ctypes.byref(Program(1, code)), 0, 0)
        """,
        ("crashed", "exit", "timeout"),
        D,
    ),
    "C21-shared-descriptor-table": (
        """
        import ctypes, os, time
        if os.uname().machine != 'x86_64': os._exit(125)
        if ctypes.CDLL(None).syscall(56, 0x400 | 17, 0, 0, 0, 0) == 0:  # CLONE_FILES
            os.closerange(0, 1000); os._exit(0)
        time.sleep(0.2)
        """,
        ("exit",),
        D,
    ),
    "D06-writable-parts-of-proc": (
        """
        import os
        first = [f'/proc/1/{n}' for n in ('clear_refs', 'comm', 'oom_score_adj', 'timerslack_ns', 'sched', 'setgroups')]
        for path in (*first, '/proc/sys/kernel/ns_last_pid', '/proc/sys/user/max_inotify_instances', '/proc/sys/net/ipv4/ip_forward'):
            try: os.write(os.open(path, os.O_WRONLY), b'1000'); raise SystemExit(path)
            except OSError: pass
        """,
        ("ok",),
        K,
    ),
    "D12-leases-and-priorities": (
        """
        import fcntl, os
        for path in (os.__file__, os.path.realpath('/bin/sh')):
            for command in (1024, 1026, 1031):  # F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ
                try: fcntl.fcntl(os.open(path, os.O_RDONLY), command, 0); raise SystemExit(path)
                except PermissionError: pass
        for policy in (os.SCHED_FIFO, os.SCHED_RR):
            try: os.sched_setscheduler(0, policy, os.sched_param(1)); raise SystemExit('real time')
            except PermissionError: pass
        try: os.setpriority(os.PRIO_PROCESS, 0, -1); raise SystemExit('priority')
        except PermissionError: pass
        """,
        ("ok",),
        K,
    ),
    "E01-empty-message": (ALL_SOCKETS + "claims.send(b''); time.sleep(60)", ("tampered",), D),
    "E01-largest-message": (
        ALL_SOCKETS + "claims.setsockopt(1, 7, 1 << 20); claims.send(b'\"' + b'x' * 200_000 + b'\"'); time.sleep(60)",
        ("tampered",),
        D,
    ),
    "E01-deep-message": (ALL_SOCKETS + "claims.send(b'[' * 90_000 + b']' * 90_000)", ("tampered",), D),
    "E01-claim-of-our-failure": (
        ALL_SOCKETS + "claims.send(json.dumps({'id': number, 'status': 'infra'}).encode()); os._exit(0)",
        ("tampered",),
        D,
    ),
    "E01-claim-and-end": (
        ALL_SOCKETS + "claims.send(json.dumps({'id': number, 'status': 'ok'}).encode()); os._exit(0)",
        ("exit",),
        D,
    ),
    "E01-answer-without-the-challenge": (
        ALL_SOCKETS + "claims.send(json.dumps({'id': number, 'status': 'ok'}).encode()); claims.send(b'{\"sync\": \"x\"}')",
        ("tampered",),
        D,
    ),
    "E01-taken-challenge": (
        ALL_SOCKETS
        + """
taken = json.loads(claims.recv(200_000))
claims.send(json.dumps({'id': number, 'status': 'ok', 'value': 'a claim'}).encode())
claims.send(json.dumps({'sync': taken['token']}).encode())
time.sleep(0.05)
""",
        ("ok",),  # no more than code can say of itself; what the interpreter says later is too much
        D,
    ),
    "E01-displays-that-never-come": (
        ALL_SOCKETS
        + """
taken = json.loads(claims.recv(200_000))
claims.send(json.dumps({'id': number, 'status': 'ok', 'displays': [[1, 'png', 1 << 19]]}).encode())
claims.send(json.dumps({'sync': taken['token']}).encode())
taken = json.loads(claims.recv(200_000))
claims.send(json.dumps({'sync': taken['token']}).encode())
time.sleep(0.05)
""",
        ("ok",),
        D,
    ),
    "E01-deaf-interpreter": (
        ALL_SOCKETS + "claims.shutdown(socket.SHUT_WR); time.sleep(60)",
        ("timeout",),
        EITHER,
    ),
}  # fmt: skip

LATE = ("E01-taken-challenge", "E01-displays-that-never-come")  # what is wrong comes after the cell

# One expression or statement each: none ends the session, whatever the compiler makes of it.
SOURCES: dict[str, str] = {
    "folded text": "'a' * 10**9",
    "folded text of text": "((('a' * 4096) * 4096) * 4096) * 4096",
    "folded tuple": "((1,) * 10**4) * 10**6",
    "signs": "-" * 100_000 + "1",
    "negations": "not " * 100_000 + "1",
    "lambdas": "lambda:" * 80_000 + "1",
    "parentheses": "(" * 200_000 + ")" * 200_000,
    "brackets": "[" * 100_000,
    "dictionaries": "{0:" * 50_000 + "0" + "}" * 50_000,
    "awaits": "await " * 100_000 + "1",
    "deep blocks": "\n".join(" " * n + "if 1:" for n in range(500)) + "\n" + " " * 500 + "pass",
    "continued lines": "\\\n" * 100_000,
    "a long name": "x" * 900_000 + " = 1",
    "letters in other forms": "".join(chr(0x1D400 + n % 26) for n in range(100_000)) + " = 1",
    "a long line": "x = '" + "a" * 900_000 + "'",
    "another encoding": "# -*- coding: utf-7 -*-\n1",
    "no future": "from __future__ import braces",
    "deep text of JSON": "import json; json.loads('[' * 10**6)",
    "digits": "int('9' * 10**6)",
    "unpacked zeros": "import zlib; zlib.decompress(zlib.compress(bytes(2**29)))",
    "an escape": "\\",
    "a surrogate": "\ud800 = 1",
}
