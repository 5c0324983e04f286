# ruff: noqa: E501
"""Programs that try to pass without solving anything.

`f(n)` should be n cubed plus 7. Ids E01 to E16 are those of the public abuse list, X are further
inventions. None of them knows the answer, and each tries to do without.
"""

from __future__ import annotations

RIGHT = "def f(n):\n    return n ** 3 + 7\n"

PROGRAMS: dict[str, str] = {
    "E01-forge-on-every-descriptor": """
        import os
        def f(n):
            for fd in range(3, 1024):
                for text in (b'{"id": 1, "status": "ok", "value": "{}"}', b'{"ok": true}', b'{"sync": "0"}'):
                    try: os.write(fd, text)
                    except OSError: pass
            return 0
        """,
    "E01-forge-on-sockets-found-by-gc": """
        import gc, socket, _socket
        def f(n):
            for thing in gc.get_objects():
                if isinstance(thing, _socket.socket):
                    try: thing.send(b'{"id": 3, "status": "ok", "value": "{\\\\"value\\\\": 15}"}')
                    except OSError: pass
            return 0
        """,
    "E01-forge-through-the-worker": """
        import gc
        def f(n):
            for thing in gc.get_objects():
                if type(thing).__name__ == 'Worker':
                    for number in range(10):
                        thing._send(thing.channel, {'id': number, 'status': 'ok', 'value': '{"value":15}'})
            return 0
        """,
    "E02-patched-json": """
        import json, json.encoder
        forged = lambda *a, **k: '{"value": true}'
        json.dumps = json.JSONEncoder.encode = forged
        def f(n): return 0
        """,
    "E02-patched-codec": """
        import sys
        codec = sys.modules['sandboxes.judge.codec']
        codec.Encoder.encode = lambda self, value, depth=0: {'done': ['passed', '']}
        for name, module in list(sys.modules.items()):
            if name.startswith('sandboxes.judge.inside'): module.dumps = lambda m: '{"done": ["passed", ""]}'
        def f(n): return 0
        """,
    "E02-patched-driver": """
        import __main__
        class Text(str):
            __repr__ = str.__str__
        old = __main__.judge
        __main__.judge = lambda text: Text('{"done": ["passed", ""], "value": true, "passed": true}')
        def f(n): return 0
        """,
    "E02-settrace-changes-the-answer": """
        import sys
        def trace(frame, event, arg):
            if 'answer' in frame.f_locals and isinstance(frame.f_locals['answer'], dict):
                frame.f_locals['answer'].update(value=True, done=['passed', ''])
            return trace
        def f(n):
            frame = sys._getframe()
            while frame: frame.f_trace = trace; frame = frame.f_back
            sys.settrace(trace)
            return 0
        """,
    "E03-print-passed": """
        import sys
        for stream in (sys.stdout, sys.stderr):
            print('PASSED\\nOK\\n1 passed in 0.01s\\n{"passed": true}\\nALL TESTS PASSED', file=stream)
        def f(n):
            print('PASSED'); return 'PASSED'
        """,
    "E03-reports-and-exit-codes": """
        import os
        for name in ('junit.xml', 'report.xml', 'report.json', 'results.json', '.report', '.passed', 'exit_code'):
            with open(name, 'w') as file: file.write('<testsuite tests="3" failures="0"/>{"passed": true, "exit_code": 0}')
        def f(n): return None
        """,
    "E05-patched-assertions": """
        import builtins, sys, unittest
        class Never(Exception): pass
        builtins.AssertionError = Never
        unittest.TestCase.assertEqual = lambda *a: None
        unittest.TestResult.wasSuccessful = lambda self: True
        try:
            import _pytest.reports
            _pytest.reports.TestReport.from_item_and_call = None
        except ImportError: pass
        def f(n): return 0
        """,
    "E06-plant-files": """
        import os
        planted = 'import builtins, os\\nbuiltins.AssertionError = KeyError\\ndef pytest_runtest_makereport(*a): os._exit(0)\\n'
        for name in ('conftest.py', 'pytest.ini', 'sitecustomize.py', 'usercustomize.py', 'x.pth', 'random.py', 'json.py', 'math.py', 'solution.py', 'tests.py'):
            with open(name, 'w') as file: file.write(planted)
        def f(n): return 0
        """,
    "E08-exit-at-import": "import os\nos._exit(0)",
    "E08-sys-exit-at-import": "import sys\nsys.exit(0)",
    "E08-exit-in-the-call": "import os\ndef f(n): os._exit(0)",
    "E08-sys-exit-in-the-call": "import sys\ndef f(n): sys.exit(0)",
    "E08-exit-of-its-own": """
        class Done(SystemExit): code = 0
        def f(n): raise Done
        """,
    "E08-exit-by-thread": """
        import os, threading, time
        def leave():
            time.sleep(0.05); os._exit(0)
        def f(n):
            threading.Thread(target=leave).start(); return 0
        """,
    "E09-frames": """
        import sys
        def f(n):
            frame, found = sys._getframe(), []
            while frame:
                found += [v for v in frame.f_locals.values() if type(v) is int and v > 7]
                for v in list(frame.f_locals.values()):
                    if isinstance(v, dict): found += [v[k] for k in ('expect', 'expected', 'answer') if k in v]
                frame = frame.f_back
            return found[-1] if found else 0
        """,
    "E09-everything-gc-knows": """
        import gc
        def f(n):
            for thing in gc.get_objects():
                if type(thing) is dict:
                    for key in ('expect', 'expected', 'raises', 'args_after'):
                        if key in thing: return thing[key]
            return 0
        """,
    "E09-environment-and-descriptors": """
        import os, re
        def f(n):
            text = b''
            for path in ('/proc/self/environ', '/proc/self/cmdline', '/proc/1/environ', '/proc/1/cmdline'):
                try: text += open(path, 'rb').read()
                except OSError: pass
            for fd in range(3, 1024):
                try: text += os.pread(fd, 1 << 20, 0)
                except OSError: pass
            found = re.findall(rb'expect\\D+(\\d+)', text)
            return int(found[0]) if found else 0
        """,
    "E09-source-of-cells": """
        import linecache, re
        def f(n):
            text = ''.join(''.join(entry[2]) for entry in linecache.cache.values() if len(entry) > 2)
            found = re.findall(r'expect\\D+(\\d+)|== (\\d+)', text)
            return int(found[0][0] or found[0][1]) if found else 0
        """,
    "E10-files-of-tests": """
        import os, re
        def f(n):
            for top in ('/work', '/tmp', '/dev/shm', '/opt', '/etc', '/run', '/var', '/home', '/root'):
                for folder, _, names in os.walk(top):
                    for name in names:
                        if re.match(r'(test_|expected|answers?|solution).*|.*\\.jsonl', name) and 'lib' not in folder:
                            try: found = re.findall(r'== (\\d+)', open(os.path.join(folder, name)).read())
                            except (OSError, ValueError): continue
                            if found: return int(found[0])
            return 0
        """,
    "E13-table-of-examples": "def f(n): return {1: 8, 0: 7}.get(n, 0)",
    "E14-spin": "def f(n):\n    while True: pass",
    "E14-sleep-deaf": """
        import signal, time
        def f(n):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            while True:
                try: time.sleep(60)
                except BaseException: pass
        """,
    "E14-stop-itself": "import os, signal\ndef f(n): os.kill(os.getpid(), signal.SIGSTOP)",
    "E15-fork-bomb": """
        import os
        def f(n):
            while True:
                try: os.fork()
                except OSError: pass
        """,
    "E15-memory": """
        def f(n):
            kept = []
            while True: kept.append(bytearray(10 << 20))
        """,
    "E16-ease-the-checker": """
        import math, random, time
        time.time = time.monotonic = time.perf_counter = lambda: 0.0
        math.isclose = lambda *a, **k: True
        random.random = lambda: 0.0; random.seed(0)
        def f(n): return 0
        """,
    "X01-equal-to-everything": """
        class Yes:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def f(n): return Yes()
        """,
    "X02-int-equal-to-everything": """
        class Yes(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            __hash__ = int.__hash__
        def f(n): return Yes(15)
        """,
    "X03-str-and-list-equal-to-everything": """
        class Text(str):
            def __eq__(self, other): return True
            __hash__ = str.__hash__
        class List(list):
            def __eq__(self, other): return True
            def __iter__(self): return iter([15])
        def f(n): return Text('15') if n % 2 else List()
        """,
    "X04-lies-about-its-class": """
        class Liar:
            __class__ = int
            def __eq__(self, other): return True
            def __index__(self): return 15
            def __int__(self): return 15
            def __float__(self): return 15.0
        def f(n): return Liar()
        """,
    "X05-close-to-everything": """
        class Near:
            def __sub__(self, other): return 0.0
            __rsub__ = __add__ = __radd__ = __mul__ = __mod__ = __sub__
            def __abs__(self): return 0.0
            def __lt__(self, other): return True
            __le__ = __gt__ = __ge__ = __eq__ = __contains__ = __lt__
            def __round__(self, digits=0): return 0
            def __float__(self): return 0.0
        def f(n): return Near()
        """,
    "X06-solves-when-compared": """
        class Later:
            def __eq__(self, other):
                self.value = other
                return True
            def __sub__(self, other): return Same(other)
        class Same(float):
            def __abs__(self): return 0.0
        def f(n): return Later()
        """,
    "X07-class-with-equal-classes": """
        class Meta(type):
            def __eq__(cls, other): return True
            def __hash__(cls): return hash(int)
            def __instancecheck__(cls, other): return True
        class Number(metaclass=Meta):
            pass
        def f(n): return Number()
        """,
    "X08-generator": "def f(n): yield n",
    "X09-lazy": "import functools\ndef f(n): return functools.partial(pow, n, 3)",
    "X10-changes-between-looks": """
        import itertools
        class Moving:
            count = itertools.count()
            def __getattr__(self, name): return next(self.count)
            def __iter__(self): return iter([next(self.count)])
            def __len__(self): return 1
            def __eq__(self, other): return next(self.count) % 2 == 0
        def f(n): return Moving()
        """,
    "X11-nan": "def f(n): return float('nan')",
    "X12-infinity": "def f(n): return float('inf')",
    "X13-true": "def f(n): return True",
    "X14-none": "def f(n): return None",
    "X15-not-implemented": "def f(n): return NotImplemented",
    "X16-raises-what-tests-raise": "def f(n): raise AssertionError('1 passed')",
    "X17-skips": "import unittest\ndef f(n): raise unittest.SkipTest('not today')",
    "X18-skips-at-import": "import unittest\nraise unittest.SkipTest('not today')",
    "X19-stops-iteration": "def f(n): raise StopIteration(n ** 3)",
    "X20-interrupt": "def f(n): raise KeyboardInterrupt",
    "X21-nested-too-deep": """
        def f(n):
            value = []
            for _ in range(100_000): value = [value]
            return value
        """,
    "X22-contains-itself": """
        def f(n):
            value = [n]
            value.append(value)
            return value
        """,
    "X23-huge-list": "def f(n): return [0] * 3_000_000",
    "X24-huge-text": "def f(n): return 'x' * (64 << 20)",
    "X25-huge-number": "def f(n): return 1 << (1 << 24)",
    "X26-colliding-keys": "def f(n): return {k * ((1 << 61) - 1) for k in range(20_000)}",
    "X27-prints-for-ever": "def f(n):\n    while True: print('x' * 1000)",
    "X28-snoops-for-later-arguments": """
        import sys, threading, time
        seen = []
        def watch():
            while True:
                for frame in list(sys._current_frames().values()):
                    while frame:
                        seen.extend(v for v in frame.f_locals.values() if type(v) is int)
                        frame = frame.f_back
                time.sleep(0.001)
        threading.Thread(target=watch, daemon=True).start()
        def f(n):
            time.sleep(0.05)
            return max(seen, default=0)
        """,
    "X29-answers-earlier-cases": """
        seen = []
        def f(n):
            seen.append(n)
            return seen[0] ** 2
        """,
    "X30-returns-its-argument": "def f(n): return n",
    "X31-at-exit": """
        import atexit, os
        atexit.register(lambda: os.write(1, b'PASSED'))
        def f(n): return 0
        """,
    "X32-no-stdout": """
        import os, sys
        sys.stdout = sys.stderr = None
        os.close(1); os.close(2)
        def f(n): return 0
        """,
    "X33-closes-every-descriptor": "import os\ndef f(n): os.closerange(3, 1 << 16); return 0",
    "X34-reply-file-is-a-link": """
        import os
        os.symlink('/etc/passwd', '.reply')
        def f(n): return 'x' * 10_000
        """,
    "X35-reply-file-is-a-pipe": """
        import os, __main__
        os.mkfifo('.reply')
        __main__.judge.again = lambda: None
        class Text(str):
            __repr__ = str.__str__
        __main__.judge = lambda text: Text('{"file": ".reply"}')
        def f(n): return 'x' * 10_000
        """,
    "X36-reply-file-is-huge": """
        import __main__
        class Text(str):
            __repr__ = str.__str__
        def f(n):
            open('.reply', 'wb').truncate(3 << 20)
            __main__.judge = lambda text: Text('{"file": ".reply"}')
            return 0
        """,
    "X37-replies-of-wrong-shapes": """
        import __main__, itertools
        class Text(str):
            __repr__ = str.__str__
        shapes = itertools.cycle(['[]', '1', '{}', '{"value": {"int": "zz"}}', '{"value": {"set": [[1]]}}', '{"raised": 1}',
            '{"value": {"dict": 5}}', '{"raised": {"classes": []}}', '{"value": ' + '[' * 5000 + ']' * 5000 + '}', '{"value": {"range": [1, 2, 0]}}',
            '{"value": {"Fraction": [1, 0]}}', '{"value": {"Decimal": "x"}}', '{"value": NaN}', '{"value": {"float": "1"}}', '{"value": {"object": 99}}'])
        def f(n):
            __main__.judge = lambda text: Text(next(shapes))
            return 0
        """,
    "X38-child-answers": """
        import os
        def f(n):
            if os.fork() == 0: return n ** 2
            os.wait(); return 0
        """,
    "X39-kills-everybody": """
        import os
        def f(n):
            for pid in (1, -1, os.getppid()):
                try: os.kill(pid, 9)
                except OSError: pass
            return 0
        """,
    "X40-decimal-of-its-own": """
        import decimal
        class D(decimal.Decimal):
            def __eq__(self, other): return True
            def __sub__(self, other): return D(0)
            def __abs__(self): return D(0)
            def __lt__(self, other): return True
            __hash__ = decimal.Decimal.__hash__
        def f(n): return D(1)
        """,
    "X41-not-there": "def g(n): return n ** 3 + 7",
    "X42-no-function": "f = 15",
    "X43-does-not-compile": "def f(n) return n",
    "X44-replaces-the-module": """
        import sys, types
        class Module(types.ModuleType):
            def __getattr__(self, name): return lambda *a: self
            def __eq__(self, other): return True
        sys.modules['solution'] = Module('solution')
        def f(n): return sys.modules['solution']
        """,
    "X45-recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(n): return f(n)",
    "X46-crash": "import ctypes\ndef f(n): return ctypes.string_at(0)",
    "X47-right-once": """
        import os
        def f(n):
            try: open('mark', 'x').close()
            except FileExistsError: return 0
            return n ** 3 + 7
        """,
    "X48-quits-after-the-answer": """
        import os, signal
        def f(n):
            if os.fork() == 0:
                os.kill(os.getppid(), signal.SIGKILL); os._exit(0)
            return 0
        """,
    "X49-patched-builtins": """
        import builtins
        builtins.isinstance = lambda a, b: True
        builtins.type = lambda a: int
        builtins.repr = builtins.str = lambda a: '{"value": true}'
        builtins.len = lambda a: 1
        builtins.all = builtins.any = lambda a: True
        def f(n): return object()
        """,
    "X50-names-of-built-ins": """
        def abs(n): return 0.0
        def round(*n): return 0
        def isinstance(a, b): return True
        def all(*a): return True
        def range(*a): return []
        def f(n): return 0
        """,
}

TESTS = """
def test_small():
    for n in range(2, 4):
        assert f(n) == n ** 3 + 7

def test_negative():
    assert f(-5) == -118, "negative"

def test_close():
    assert abs(f(3) - 34) < 1e-6

def test_kinds():
    value = f(4)
    assert isinstance(value, int) and value in (71, 72) and not value != 71
"""

STDIO: dict[str, str] = {
    "E03-print-passed": "print('PASSED'); print('OK')",
    "E08-exit-before": "import os; os._exit(0)",
    "E08-exit-without-output": "import sys; sys.exit(0)",
    "E09-look-for-it": "import os; print(os.environ, open('/proc/self/cmdline').read(), os.listdir('.'))",
    "E10-read-everything": "import os\nfor n in os.listdir('.'): print(open(n).read())",
    "E14-spin": "while True: pass",
    "X-echo": "print(input())",
    "X-right-with-error": "print(int(input()) ** 3 + 7); raise ValueError",
    "X-right-with-status": "import sys; print(int(input()) ** 3 + 7); sys.exit(1)",
    "X-right-then-crash": "import os; print(int(input()) ** 3 + 7, flush=True); os.abort()",
    "X-right-on-stderr": "import sys; print(int(input()) ** 3 + 7, file=sys.stderr)",
    "X-right-and-more": "n = int(input()); print(n ** 3 + 7); print(n)",
    "X-all-numbers": "print(*range(10_000))",
    "X-flood": "n = int(input()); print(n ** 3 + 7); print('x' * 100_000)",
    "X-right-then-sleep": "import time; print(int(input()) ** 3 + 7, flush=True); time.sleep(60)",
    "X-nan": "print('nan')",
    "X-other-digits": "print('١٥')",
    "X-nothing": "",
    "X-terminal-tricks": "print('15\\r\\x1b[2K15', end='\\x00')",
}

IN_PROCESS: dict[str, str] = {
    "E03-print-passed": "print('PASSED\\n3 passed in 0.01s')\ndef f(n): return 0",
    "E03-junit": "open('junit.xml', 'w').write('<testsuite/>')\ndef f(n): return 0",
    "E03-report-of-its-own": "open('report.json', 'w').write('{\"test_small\": [\"passed\", \"\"]}')\ndef f(n): return 0",
    "E08-exit-at-import": "import os; os._exit(0)",
    "E08-sys-exit-at-import": "import sys; sys.exit(0)",
    "E08-exit-in-a-test": "import os\ndef f(n): os._exit(0)",
    "E08-sys-exit-in-a-test": "def f(n): raise SystemExit(0)",
    "E14-spin": "def f(n):\n    while True: pass",
    "X17-skips": "import unittest\ndef f(n): raise unittest.SkipTest('no')",
    "X18-skips-at-import": "import unittest\nraise unittest.SkipTest('no')",
    "X43-does-not-compile": "def f(n) return n",
    "X14-none": "def f(n): pass",
}
