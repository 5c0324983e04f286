# ruff: noqa: E501
"""Games with the interpreter: hooks, patches, objects that bite, descriptors, floods of displays.

As in `abuse_cells`: source, the statuses it may end with, and what becomes of the session.
"""

from __future__ import annotations

from abuse_cells import EITHER, D, K

ANY = ("ok", "error", "exit", "crashed", "timeout", "oom", "tampered")

RICH = "class R:\n    def __repr__(self): return 'R'\n    def _repr_png_(self): "

GAMES: dict[str, tuple[str, tuple[str, ...], bool | None]] = {
    "A12-shared-memory": (
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        libc.shmat.restype = ctypes.c_void_p
        for _ in range(40):
            one = libc.shmget(0, 32 << 20, 0o1600)
            if one < 0: break
            at = libc.shmat(one, None, 0)
            if at in (None, ctypes.c_void_p(-1).value): break
            ctypes.memset(at, 1, 32 << 20)
        """,
        ("ok", "error", "oom", "crashed"),
        EITHER,
    ),
    "A12-message-queues": (
        """
        import ctypes
        rt = ctypes.CDLL('librt.so.1', use_errno=True)
        for n in range(5000):
            if rt.mq_open(b'/q%d' % n, 0o102, 0o600, None) < 0: break
        """,
        ("ok", "error"),
        K,
    ),
    "A14-pipes-full": (
        """
        import os
        kept = []
        try:
            while True:
                r, w = os.pipe(); os.set_blocking(w, False); kept += [r, w]
                try:
                    while True: os.write(w, bytes(65536))
                except BlockingIOError: pass
        except OSError: pass
        for fd in kept: os.close(fd)
        """,
        ("ok",),
        K,
    ),
    "A18-display-flood": (
        RICH + "return b'x' * (1 << 18)\nfor _ in range(2000): display(R())",
        ("ok", "timeout"),
        K,
    ),
    "A18-giant-display": (RICH + "return b'x' * (1 << 29)\nR()", ("ok", "error", "oom"), EITHER),
    "A18-giant-repr": (
        "class R:\n    def __repr__(self): return 'x' * (1 << 29)\nR()",
        ("error", "oom"),
        EITHER,
    ),
    "A18-giant-error": ("raise ValueError('x' * (1 << 26))", ("error", "oom"), EITHER),
    "A18-many-shell-lines": ("!true\n" * 3000, ("timeout",), K),
    "A18-chain-of-errors": (
        """
        error = None
        for n in range(20_000):
            new = ValueError(n); new.__cause__ = error; error = new
        raise error
        """,
        ANY,
        EITHER,
    ),
    "A18-tree-of-groups": (
        """
        group = ValueError()
        for n in range(500): group = ExceptionGroup('g', [group, ValueError(n)])
        raise group
        """,
        ANY,
        EITHER,
    ),
    "B05-interrupt-in-shell": ("!sleep 100", ("timeout",), K),
    "B05-await-for-ever": ("import asyncio\nawait asyncio.sleep(10**6)", ("timeout",), K),
    "B05-task-without-end": (
        """
        import asyncio
        async def stay():
            while True:
                try: await asyncio.sleep(60)
                except BaseException: pass
        await stay()
        """,
        ("timeout",),
        EITHER,
    ),
    "B05-repr-loops": ("class R:\n    def __repr__(self):\n        while True: pass\nR()", ("timeout",), K),
    "B05-display-loops": (RICH + "\n        while True: pass\nR()", ("timeout",), K),
    "B05-finalizer-loops": (
        "class F:\n    def __del__(self):\n        while True: pass\nx = F(); del x",
        ("timeout",),
        K,
    ),
    "B05-flush-loops": (
        """
        import sys
        class S:
            def write(self, text): pass
            def flush(self):
                while True: pass
        sys.stdout = S()
        """,
        ("timeout",),
        D,
    ),
    "B12-greedy-thread": (
        """
        import sys, threading
        sys.setswitchinterval(10**6)
        def spin():
            while True: pass
        threading.Thread(target=spin, daemon=True).start()
        """,
        ("timeout", "ok"),
        EITHER,
    ),
    "B12-thread-prints-on": (
        """
        import threading, time
        def talk():
            while True: print('later'); time.sleep(0.001)
        threading.Thread(target=talk, daemon=True).start()
        """,
        ("ok",),
        K,
    ),
    "B12-forgotten-alarm": (
        "import signal; signal.signal(signal.SIGALRM, lambda *a: 1/0); signal.setitimer(0, 0.001, 0.001)",
        ("ok", "error"),
        K,
    ),
    "B12-dump-later": (
        "import faulthandler; faulthandler.dump_traceback_later(0.01, exit=True)\nimport time; time.sleep(0.5)",
        ("exit",),
        D,
    ),
    "B12-dump-on-signals": (
        "import faulthandler, signal; faulthandler.register(signal.SIGINT, chain=False)\nwhile True: pass",
        ("timeout",),
        D,
    ),
    "C06-exit-with-a-bad-message": (
        "class S:\n    def __str__(self): raise KeyError\nraise SystemExit(S())",
        ("exit", "error"),
        K,
    ),
    "C06-exit-with-a-bad-number": (
        "class N(int):\n    def __and__(self, o): return 'x'\n    __int__ = __index__ = None\nraise SystemExit(N(3))",
        ("exit", "error"),
        K,
    ),
    "C06-exit-in-repr": ("class R:\n    def __repr__(self): raise SystemExit(3)\nR()", ("exit",), K),
    "C06-exit-in-display": (RICH + "raise SystemExit(3)\nR()", ("exit",), K),
    "C06-process-exit-in-repr": (
        "import os\nclass R:\n    def __repr__(self): os._exit(0)\nR()",
        ("exit",),
        D,
    ),
    "C09-close-every-descriptor": ("import os; os.closerange(0, 5000)", ("exit",), D),
    "C09-stdout-over-every-descriptor": (
        "import os\nfor fd in range(900, 910):\n    try: os.fstat(fd); os.dup2(1, fd)\n    except OSError: pass",
        ("ok",),  # no descriptor can be put above the limit
        K,
    ),
    "C09-channel-over-stdout": (
        """
        import os, stat
        for fd in range(900, 910):
            try:
                if stat.S_ISSOCK(os.fstat(fd).st_mode): os.dup2(fd, 1); os.dup2(fd, 2)
            except OSError: pass
        print('{"id": 2, "status": "ok", "value": "FORGED"}')
        """,
        ("tampered", "error", "ok"),
        EITHER,
    ),
    "C09-no-descriptors-left": (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))",
        ("ok",),
        K,
    ),
    "C10-hooks": (
        """
        import sys, gc, threading
        def boom(*a, **k): raise RuntimeError('hook')
        sys.displayhook = sys.excepthook = sys.unraisablehook = threading.excepthook = boom
        sys.breakpointhook = boom
        gc.callbacks.append(boom); gc.set_threshold(1)
        threading.settrace(boom); threading.setprofile(boom)
        sys.setprofile(boom)
        """,
        ("ok", "error"),
        K,
    ),
    "C10-audit-hook": (
        "import sys\nsys.addaudithook(lambda *a: 1/0)",
        ("ok", "error", "exit", "timeout"),
        EITHER,
    ),
    "C10-gc-callback-loops": (
        "import gc\ndef spin(*_):\n    while True: pass\ngc.set_threshold(1); gc.callbacks.append(spin)\nx = [[] for _ in range(100)]",
        ("timeout",),
        EITHER,
    ),
    "C10-import-hooks": (
        "import sys; sys.path = sys.meta_path = sys.path_hooks = sys.path_importer_cache = None",
        ("ok",),
        K,
    ),
    "C10-patched-tracebacks": (
        "import traceback, linecache\ntraceback.TracebackException = traceback.StackSummary = None\nlinecache.cache = linecache.getline = linecache.checkcache = None\n1/0",
        ("error",),
        K,
    ),
    "C10-patched-compiler": (
        """
        import ast, builtins
        builtins.compile = builtins.eval = builtins.exec = builtins.repr = builtins.isinstance = None
        del ast.Expr, ast.Expression, ast.PyCF_ONLY_AST
        """,
        ("ok", "error"),
        K,
    ),
    "C10-builtins-that-raise": (
        """
        import builtins
        def boom(*a, **k): raise RuntimeError('patched')
        for name in dir(builtins):
            if name[0].islower() and name not in ('setattr', 'dir'): setattr(builtins, name, boom)
        """,
        ("ok", "error"),
        EITHER,
    ),
    "C10-no-modules": ("import sys; sys.modules.clear()", ("ok", "error"), K),
    "C10-modules-that-are-none": (
        "import sys\nfor name in list(sys.modules): sys.modules[name] = None",
        ("ok", "error"),
        K,
    ),
    "C10-no-main": ("import sys; del sys.modules['__main__']; sys.modules['sys'] = None", ("ok",), K),
    "C10-empty-names": ("globals().clear(); state = 'kept'", ("ok",), K),
    "C10-bad-underscore": (
        "class U:\n    def __eq__(self, o): 1/0\n    __bool__ = __hash__ = None\n    def __repr__(self): return 'U'\n_ = U()\n_",
        ("ok",),
        K,
    ),
    "C10-reach-our-modules": (
        """
        import sys
        for name, module in list(sys.modules.items()):
            if name.startswith('inside'): vars(module).clear()
        """,
        ANY,
        EITHER,
    ),
    "C11-bytes-that-lie": (
        RICH
        + "\n        class B(bytes):\n            def __len__(self): return 1 << 40\n            def __bytes__(self): raise KeyError\n        return B(b'xy')\nR()",
        ("ok", "error"),
        K,
    ),
    "C11-text-that-lies": (
        "class S(str):\n    def __len__(self): return -1\n    def __getitem__(self, k): return {1, 2}\nclass R:\n    def __repr__(self): return S('x')\nR()",
        ("ok", "error"),
        K,
    ),
    "C11-error-that-lies": (
        """
        class M(type):
            __name__ = property(lambda c: 1/0)
            __module__ = property(lambda c: 1/0)
        class S(str):
            def __len__(self): return 10**9
            def __getitem__(self, k): return {1}
        class E(Exception, metaclass=M):
            def __str__(self): return S('x')
        raise E
        """,
        ("error",),
        K,
    ),
    "C11-error-that-loops": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
        ("timeout",),
        EITHER,
    ),
    "C11-error-of-errors": ("e = ValueError(); e.__context__ = e\nraise e from e", ("error",), K),
    "C11-class-that-lies": (
        "class L:\n    __class__ = property(lambda s: 1/0)\n    def __getattr__(self, n): raise SystemError\n    def __repr__(self): return 'L'\nL()",
        ("ok", "error"),
        K,
    ),
    "C17-deep-source": ("x = " + "(" * 3000 + ")" * 3000, ("error",), K),
    "C17-long-sum": ("x = " + "1+" * 60_000 + "1", ("ok", "error", "crashed"), EITHER),
    "C17-long-attribute": ("x = 1" + ".real" * 60_000, ("ok", "error", "crashed"), EITHER),
    "C21-fork-in-repr": (
        "import os\nclass R:\n    def __repr__(self): os.fork(); return 'R'\nR()",
        ("ok",),
        K,
    ),
    "C21-fork-in-display": (RICH + "__import__('os').fork(); return b'P'\nR()", ("ok",), K),
    "C21-fork-at-exit-of-thread": (
        "import os, threading\nt = threading.Thread(target=os.fork); t.start(); t.join()",
        ("ok",),
        K,
    ),
    "C22-write-into-memory": (
        """
        import ctypes
        for one in (None, 0, '', (), int, str, dict):
            ctypes.memset(id(one) + 8, 0xFF, 16)
        """,
        ANY,
        EITHER,
    ),
    "C22-free-our-objects": (
        """
        import ctypes, gc
        for one in gc.get_objects():
            if type(one).__name__ in ('Worker', 'Cells', 'socket'):
                ctypes.c_ssize_t.from_address(id(one)).value = 1
        """,
        ANY,
        EITHER,
    ),
    "E01-forge-displays": (
        """
        import json, os, sys
        frame = sys._getframe()
        while frame and 'order' not in frame.f_locals: frame = frame.f_back
        answer = {'id': frame.f_locals['order']['id'], 'status': 'ok', 'displays': [[1, 'png', 1 << 20]]}
        for fd in range(900, 910):
            try: os.write(fd, json.dumps(answer).encode())
            except OSError: pass
        """,
        ("tampered",),
        D,
    ),
}  # fmt: skip
