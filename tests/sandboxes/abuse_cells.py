# ruff: noqa: E501
"""Hostile and clumsy cells: source, the statuses it may end with, and what becomes of the session.

Ids are families: A resources, B time and signals, C process death and interpreter state, D escape
and reach, E forging. The session must live on with its state (K), must be dead (D), or either.
"""

from __future__ import annotations

K, D, EITHER = True, False, None

CELLS: dict[str, tuple[str, tuple[str, ...], bool | None]] = {
    "A01-fork-for-ever": ("import os\nwhile True: os.fork()", ("error", "timeout"), EITHER),
    "A02-fork-and-spin": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        ("timeout",),
        EITHER,
    ),
    "A03-threads": (
        """
        import threading
        def spin():
            while True: pass
        for _ in range(200): threading.Thread(target=spin, daemon=True).start()
        """,
        ("error", "timeout"),
        EITHER,
    ),
    "A04-one-block": ("bytearray(3 << 30)", ("error", "oom"), K),
    "A05-many-blocks": (
        "kept = []\nwhile True: kept.append(bytearray(10 << 20))",
        ("error", "oom"),
        EITHER,
    ),
    "A06-children-together": (
        """
        import os, time
        for _ in range(6):
            if os.fork() == 0:
                block = bytearray(b'x') * (90 << 20)
                time.sleep(30)
        os.wait()
        """,
        ("oom",),
        EITHER,
    ),
    "A08-fill-work": (
        "with open('f', 'wb') as f:\n    while True: f.write(bytes(1 << 16))",
        ("error",),
        K,
    ),
    "A09-many-files": ("for n in range(10**6): open(f'{n}', 'w').close()", ("error",), K),
    "A08-fill-with-many-files": (
        "for n in range(100): open(f'{n}', 'wb').write(bytes(1 << 20))\nimport time; time.sleep(60)",
        ("error",),
        K,
    ),
    "A08-keep-what-was-removed": (
        """
        import os, time
        kept = []
        for n in range(40):
            kept.append(open('f', 'wb')); os.remove('f'); kept[-1].write(bytes(1 << 20)); kept[-1].flush()
        time.sleep(60)
        """,
        ("error",),
        K,
    ),
    "A09-deep-directories": (
        "import os\nfor n in range(10**5): os.mkdir('d'); os.chdir('d')",
        ("error",),
        K,
    ),
    "A12-memfd": (
        """
        import os, mmap
        fds = []
        for _ in range(40):
            fds.append(os.memfd_create('m'))
            for _ in range(100): os.write(fds[-1], bytes(1 << 20))
        """,
        ("error", "oom", "crashed"),
        EITHER,
    ),
    "A13-descriptors": ("kept = [open('/dev/null') for _ in range(10**5)]", ("error",), K),
    "A15-print-for-ever": ("while True: print('x' * 1000)", ("output_limit",), D),
    "A16-no-newline": ("print('x' * 3_000_000, end='')", ("ok",), K),
    "A17-tiny-writes": (
        "import os\nfor _ in range(50_000): os.write(1, b'o'); os.write(2, b'e')",
        ("ok", "timeout"),
        K,
    ),
    "A19-zombies": (
        """
        import os
        for _ in range(10):
            for _ in range(10):
                pid = os.fork()
                if pid == 0:
                    if os.fork() == 0: os._exit(0)
                    os._exit(0)
                os.waitpid(pid, 0)
        import time; time.sleep(0.1)
        import subprocess; subprocess.run(['true'], check=True)
        """,
        ("ok", "timeout"),
        K,
    ),
    "A20-pool": (
        """
        import os, multiprocessing
        os.nice(1); os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        with multiprocessing.get_context('fork').Pool(2) as pool:
            assert pool.map(abs, [-1, -2]) == [1, 2]
        """,
        ("ok",),
        K,
    ),
    "B01-loop": ("while True: pass", ("timeout",), K),
    "B02-sleep": ("import time; time.sleep(10**6)", ("timeout",), K),
    "B03-swallow-interrupts": (
        "import time\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass",
        ("timeout",),
        D,
    ),
    "B04-ignore-signals": (
        """
        import signal
        for n in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}: signal.signal(n, signal.SIG_IGN)
        while True: pass
        """,
        ("timeout",),
        D,
    ),
    "B05-regular-expression": (
        "import re; re.match('(a+)+$', 'a' * 40 + 'b')",
        ("timeout",),
        K,
    ),
    "B06-big-power": ("9 ** 9 ** 9", ("timeout",), EITHER),
    "B07-stop-itself": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", ("timeout",), D),
    "B08-kill-everybody": ("import os; os.kill(-1, 9)", ("error", "ok"), K),
    "B08-kill-own-group": ("import os; os.killpg(0, 9)", ("crashed",), D),
    "B09-kill-init": ("import os; os.kill(1, 9)", ("error", "ok"), K),
    "B10-orphan-holds-output": (
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0: time.sleep(60)
            os._exit(0)
        print('done')
        """,
        ("ok",),
        K,
    ),
    "B13-set-clock": (
        "import time; time.clock_settime(time.CLOCK_REALTIME, 0)",
        ("error",),
        K,
    ),
    "B13-lie-about-time": (
        "import time\ntime.time = time.monotonic = lambda: 0\nwhile True: pass",
        ("timeout",),
        K,
    ),
    "C01-exit-process": ("import os; os._exit(0)", ("exit",), D),
    "C02-segfault": ("import ctypes; ctypes.string_at(0)", ("crashed",), D),
    "C03-abort": ("import os; os.abort()", ("crashed",), D),
    "C03-quit": ("import os, signal; os.kill(os.getpid(), signal.SIGQUIT)", ("crashed",), D),
    "C04-recursion": (
        "import sys; sys.setrecursionlimit(10**6)\ndef f(): f()\nf()",
        ("error", "crashed", "timeout", "oom"),
        EITHER,
    ),
    "C04-no-recursion": ("import sys; sys.setrecursionlimit(30)", ("ok", "error"), K),
    "C06-exit-3": ("import sys; sys.exit(3)", ("exit",), K),
    "C07-keyboard-interrupt": ("raise KeyboardInterrupt", ("error",), K),
    "C07-generator-exit": ("raise GeneratorExit", ("error",), K),
    "C09-close-streams": ("import os; os.close(1); os.close(2); print('x')", ("ok", "error"), K),
    "C09-close-all": ("import os; os.closerange(0, 64)", ("ok", "error"), K),
    "C10-no-stdout": ("import sys; sys.stdout = None", ("ok",), EITHER),
    "C10-no-import": ("import builtins; del builtins.__import__", ("ok",), K),
    "C10-no-builtins": (
        "import builtins\nfor n in list(vars(builtins)): \n    if n[0] != '_': delattr(builtins, n)",
        ("ok", "error"),
        K,
    ),
    "C10-trace": ("import sys; sys.settrace(lambda *a: 1/0); sys.setprofile(None)", ("ok",), K),
    "C12-long-int": ("str(10 ** 5000)", ("error",), K),
    "C15-surrogate": ("print('\\ud800')", ("ok",), K),
    "C15-all-bytes": ("import os; os.write(1, bytes(range(256)))", ("ok",), K),
    "C15-surrogate-value": ("'\\ud800' + chr(0x10ffff)", ("ok",), K),
    "C15-surrogate-error": ("raise ValueError('\\ud800')", ("error",), K),
    "C15-bad-repr": (
        "class R:\n    def __repr__(self): raise SystemError\nR()",
        ("error",),
        K,
    ),
    "C15-bad-str": (
        "class E(Exception):\n    def __str__(self): raise SystemError\nraise E",
        ("error",),
        K,
    ),
    "C15-bad-name": ("raise type('N' * 10**5, (Exception,), {})", ("error",), K),
    "C18-input": ("input()", ("error",), K),
    "C19-event-loops": (
        "import asyncio\nasyncio.run(asyncio.sleep(0))\nasyncio.set_event_loop(asyncio.new_event_loop())",
        ("ok",),
        K,
    ),
    "C20-spawn": (
        """
        import multiprocessing, subprocess
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            assert pool.map(abs, [-1]) == [1]
        """,
        ("ok", "timeout"),
        K,
    ),
    "C21-child-raises": ("import os\nif os.fork() == 0: 1/0\nos.wait()[1]", ("ok",), K),
    "C21-child-of-libc-fork": (
        "import ctypes\nif ctypes.CDLL(None).fork() == 0: raise ValueError",
        ("ok",),
        K,
    ),
    "D01-network": (
        """
        import socket
        for address in [('1.1.1.1', 80), ('169.254.169.254', 80), ('10.0.0.1', 22)]:
            try: socket.create_connection(address, 0.2); raise SystemExit('reached')
            except OSError: pass
        try: socket.getaddrinfo('example.com', 80); raise SystemExit('resolved')
        except OSError: pass
        try: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); raise SystemExit('raw')
        except OSError: pass
        """,
        ("ok",),
        K,
    ),
    "D02-socket-families": (
        """
        import socket
        for family in [40, 16, 38, 17, 31, 44, 15]:
            try: socket.socket(family, socket.SOCK_DGRAM); raise SystemExit(f'family {family}')
            except PermissionError: pass
        """,
        ("ok",),
        K,
    ),
    "D03-host-sockets": (
        """
        import os
        found = [p for p in ('/run/docker.sock', '/var/run/docker.sock', '/run/containerd', '/sys',
                             '/root', '/home', '/etc/shadow', '/run', '/var') if os.path.exists(p)]
        assert not [p for p in found if not os.path.isdir(p) or os.listdir(p)], found
        """,
        ("ok",),
        K,
    ),
    "D04-mounts-and-namespaces": (
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        calls = {'mount': (b'none', b'/tmp', b'tmpfs', 0, None), 'umount2': (b'/work', 2),
                 'unshare': (0x10000000,), 'setns': (0, 0), 'chroot': (b'/tmp',), 'pivot_root': (b'.', b'.')}
        for name, args in calls.items():
            assert getattr(libc, name)(*args) == -1, name
            assert ctypes.get_errno() == 1, (name, ctypes.get_errno())
        assert libc.clone(None, None, 0x10000000, None) == -1
        for number, args in [(56, (0x10000011, 0, 0, 0, 0)), (435, (0, 0)), (304, (-1, 0, 0))]:
            if os.uname().machine == 'x86_64': assert libc.syscall(number, *args) == -1, number
        """,
        ("ok",),
        K,
    ),
    "D05-other-processes": (
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.ptrace(16, 1, 0, 0) == -1 and ctypes.get_errno() == 1
        for name in ('mem', 'environ', 'maps', 'fd', 'root', 'cwd'):
            try:
                os.listdir(f'/proc/1/{name}') if name in ('fd', 'root', 'cwd') else open(f'/proc/1/{name}', 'rb').read(1)
                raise SystemExit(name)
            except OSError: pass
        """,
        ("ok",),
        K,
    ),
    "D06-proc": (
        """
        import os
        pids = [p for p in os.listdir('/proc') if p.isdigit()]
        assert set(pids) == {'1', str(os.getpid())}, pids
        lines = [open(f'/proc/{p}/cmdline').read() for p in pids]
        assert not any('token' in l.lower() or 'key' in l.lower() for l in lines), lines
        """,
        ("ok",),
        K,
    ),
    "D07-setuid": (
        """
        import os, subprocess
        status = dict(l.split(':', 1) for l in open('/proc/self/status'))
        assert int(status['NoNewPrivs']) == 1 and int(status['Seccomp']) == 2
        for name in ('CapEff', 'CapPrm', 'CapBnd', 'CapInh', 'CapAmb'): assert int(status[name], 16) == 0
        assert subprocess.run(['mount', '-t', 'tmpfs', 'x', '/tmp'], capture_output=True).returncode
        try: os.setuid(0); raise SystemExit('setuid')
        except OSError: pass
        """,
        ("ok",),
        K,
    ),
    "D08-write-system": (
        """
        import json, os, sys
        for path in (json.__file__, sys.executable, '/usr/x', '/etc/passwd', '/x', '/dev/x', '/opt/x'):
            try: open(path, 'ab'); raise SystemExit(path)
            except OSError: pass
        """,
        ("ok",),
        K,
    ),
    "D10-rare-calls": (
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        if os.uname().machine == 'x86_64':
            for number in (425, 426, 427, 321, 323, 298, 246, 320, 175, 313, 250, 248, 249, 310, 311, 438, 440, 312):
                ctypes.set_errno(0)
                assert libc.syscall(number, 0, 0, 0, 0, 0) == -1, number
                assert ctypes.get_errno() in (1, 38), (number, ctypes.get_errno())
        """,
        ("ok",),
        K,
    ),
    "D11-terminal": (
        """
        import fcntl, os, pty
        try: os.open('/dev/tty', os.O_RDWR); raise SystemExit('terminal')
        except OSError: pass
        leader, follower = pty.openpty()
        try: fcntl.ioctl(follower, 0x5412, b'x'); raise SystemExit('TIOCSTI')
        except PermissionError: pass
        assert os.listdir('/dev/pts') and len(os.listdir('/dev/pts')) == 2
        """,
        ("ok",),
        K,
    ),
    "D12-raise-limits": (
        """
        import ctypes, resource
        for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
            try: resource.setrlimit(kind, (1 << 30, 1 << 30)); raise SystemExit(str(kind))
            except (ValueError, OSError): pass
        try: resource.prlimit(1, resource.RLIMIT_NOFILE, (1, 1)); raise SystemExit('prlimit')
        except PermissionError: pass
        assert ctypes.CDLL(None).personality(0x0040000) == -1
        """,
        ("ok",),
        K,
    ),
    "D13-kernel-files": (
        """
        for path in ('/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/proc/sys/vm/drop_caches',
                     '/sys/fs/cgroup/x', '/proc/self/uid_map', '/proc/1/oom_score_adj'):
            try:
                with open(path, 'w') as f: f.write('0')
                raise SystemExit(path)
            except OSError: pass
        """,
        ("ok",),
        K,
    ),
    "D18-environment": (
        """
        import os
        allowed = {'PATH', 'HOME', 'TMPDIR', 'LANG', 'TZ', 'TERM', 'PYTHONPATH', 'PYTHONHASHSEED', 'PWD',
                   'PYTHONDONTWRITEBYTECODE', 'MPLBACKEND', 'LD_LIBRARY_PATH', 'LC_CTYPE', 'OMP_NUM_THREADS',
                   'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS', 'NUMEXPR_NUM_THREADS'}
        assert set(os.environ) <= allowed, set(os.environ) - allowed
        """,
        ("ok",),
        K,
    ),
    "D19-pickle-bait": (
        "class B:\n    def __reduce__(self): return (__import__('os')._exit, (1,))\nB()",
        ("ok",),
        K,
    ),
    "D20-terminal-escapes": ("print('\\x1b[2J\\x1b]0;owned\\x07')", ("ok",), K),
    "E01-forge-on-every-descriptor": (
        """
        import json, os
        for fd in map(int, os.listdir('/proc/self/fd')):
            if fd > 2:
                try: os.write(fd, json.dumps({'ok': True, 'id': 2, 'status': 'ok', 'value': 'FORGED'}).encode())
                except OSError: pass
        """,
        ("tampered",),
        D,
    ),
    "E01-forge-through-gc": (
        """
        import gc, _socket
        for one in gc.get_objects():
            if isinstance(one, _socket.socket):
                try: one.send(b'{"status": "ok"}')
                except OSError: pass
        """,
        ("tampered", "ok"),
        EITHER,
    ),
    "E01-garbage": (
        "import os\nfor fd in range(900, 910):\n    try: os.write(fd, b'[' * 100_000)\n    except OSError: pass",
        ("tampered",),
        D,
    ),
    "E01-perfect-forgery-then-return": (
        """
        import json, os, sys
        frame = sys._getframe()
        while frame and 'order' not in frame.f_locals: frame = frame.f_back
        answer = json.dumps({'id': frame.f_locals['order']['id'], 'status': 'ok', 'value': 'FORGED'})
        for fd in range(900, 910):
            try: os.write(fd, answer.encode())
            except OSError: pass
        """,
        ("tampered",),
        D,
    ),
    "E01-forge-and-stay": (
        """
        import json, os, sys
        frame = sys._getframe()
        while frame and 'order' not in frame.f_locals: frame = frame.f_back
        answer = json.dumps({'id': frame.f_locals['order']['id'], 'status': 'ok', 'value': 'FORGED'})
        for fd in range(900, 910):
            try: os.write(fd, answer.encode())
            except OSError: pass
        import time
        while True:
            try: time.sleep(60)
            except KeyboardInterrupt: pass
        """,
        ("timeout",),
        D,
    ),
}  # fmt: skip

# What differs where sessions are users of their own, without namespaces. The disk has no limit by
# the kernel but for the size of a file: a session that has too much is ended. What cannot be hidden
# cannot be read. There are no terminals, no addresses to listen at, and no /dev/shm: the locks and
# pools of multiprocessing work between forked processes only.
UID: dict[str, tuple[str, tuple[str, ...], bool | None]] = {
    "A08-fill-with-many-files": (CELLS["A08-fill-with-many-files"][0], ("output_limit",), D),
    "A08-keep-what-was-removed": (CELLS["A08-keep-what-was-removed"][0], ("output_limit",), D),
    "A09-many-files": (CELLS["A09-many-files"][0], ("output_limit",), D),
    "A09-deep-directories": (CELLS["A09-deep-directories"][0], ("output_limit",), D),
    "A10-shared-memory": (
        """
        import os
        for folder in ('/dev/shm', '/tmp', '/var/tmp'):
            for act in (os.listdir, lambda path: open(path + '/agentrl-test', 'w')):
                try: act(folder); raise SystemExit(folder)
                except (FileNotFoundError, PermissionError): pass
        """,
        ("ok",),
        K,
    ),
    "C20-spawn": (
        """
        import multiprocessing
        child = multiprocessing.get_context('spawn').Process(target=print)
        child.start(); child.join()
        assert child.exitcode == 0
        try: multiprocessing.get_context('spawn').Lock(); raise SystemExit('lock')
        except PermissionError: pass
        """,
        ("ok", "timeout"),
        K,
    ),
    "D01-sockets": (
        """
        import socket
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                try: socket.socket(family, kind); raise SystemExit(str((family, kind)))
                except PermissionError: pass
        try: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); raise SystemExit('datagrams')
        except PermissionError: pass
        one, other = socket.socketpair(); one.send(b'x'); assert other.recv(9) == b'x'
        """,
        ("ok",),
        K,
    ),
    "D03-host-sockets": (
        """
        import os
        for path in ('/run', '/var', '/root', '/home', '/sys', '/etc', '/proc', '/tmp', '/dev', '/',
                     os.path.dirname(os.getcwd())):
            try: os.listdir(path); raise SystemExit(path)
            except OSError: pass
        for path in ('/etc/passwd', '/etc/shadow', '/etc/hosts', '/proc/mounts', '/proc/net/tcp'):
            try: open(path).read(1); raise SystemExit(path)
            except OSError: pass
        """,
        ("ok",),
        K,
    ),
    "D06-proc": (
        """
        import os
        for pid in (1, os.getppid(), 'self', os.getpid()):
            for name in ('cmdline', 'environ', 'mountinfo', 'cgroup', 'net/tcp', 'root/etc/passwd'):
                try: open(f'/proc/{pid}/{name}').read(1); raise SystemExit(name)
                except OSError: pass
        assert os.listdir('/proc/self/fd')
        """,
        ("ok",),
        K,
    ),
    "D11-terminal": (
        """
        import os, pty
        for path in ('/dev/tty', '/dev/ptmx', '/dev/console'):
            try: os.open(path, os.O_RDWR); raise SystemExit(path)
            except OSError: pass
        """,
        ("ok",),
        K,
    ),
    "D12-kernel-objects": (
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        for name, args in {'shmget': (1, 4096, 0o1666), 'semget': (1, 1, 0o1666), 'msgget': (1, 0o1666),
                           'mq_open': (b'/m', 66, 0o666, None), 'inotify_init': ()}.items():
            assert getattr(libc, name)(*args) == -1, name
            assert ctypes.get_errno() in (1, 13), (name, ctypes.get_errno())
        """,
        ("ok",),
        K,
    ),
}  # fmt: skip


def cell(name: str, tier: str) -> tuple[str, tuple[str, ...], bool | None]:
    """The case of that name, as it is in a tier."""
    return UID[name] if tier == "uid" and name in UID else CELLS[name]
