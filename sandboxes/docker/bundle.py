"""What runs in the container, and how it gets there: over its standard input, into its memory.

An image needs nothing but a Python. It always runs the code of the machine that started it.
"""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path

_ROOT = Path(__file__).parent.parent.parent
_EMPTY = (
    "agentrl/__init__.py",
    "sandboxes/__init__.py",
    "sandboxes/docker/__init__.py",
    "sandboxes/judge/__init__.py",  # the judge itself stays outside, with its expected answers
)
_CODE = (
    "agentrl/errors.py",
    "agentrl/interfaces.py",
    "agentrl/types.py",
    "sandboxes/docker/inside.py",
    "sandboxes/embedded/**/*.py",
    "sandboxes/judge/codec.py",
    "sandboxes/judge/inside/*.py",
    "sandboxes/languages.py",
    "sandboxes/metrics.py",
    "sandboxes/output.py",
    "sandboxes/pool.py",
    "sandboxes/rpc/*.py",
)

# The container's first process only reaps. The second takes the archive and never runs foreign
# code; the archive has no name that a session could open.
_BOOT = """
import os, signal, sys
if sys.version_info < (3, 11):
    sys.exit("the image's python3 is %d.%d; 3.11 or newer is needed" % sys.version_info[:2])
server = os.fork()
if server:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    os.close(0); os.close(1)
    while True:
        pid, status = os.wait()
        if pid == server:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
size, archive = int(sys.argv[1]), os.memfd_create("agentrl")
while size:
    data = os.read(0, min(size, 1 << 16))
    if not data:
        os._exit(0)
    os.write(archive, data)
    size -= len(data)
sys.path.insert(0, "/proc/%d/fd/%d" % (os.getpid(), archive))  # a path for its children, too
from sandboxes.docker import inside
inside.main()
"""


@functools.cache
def archive() -> bytes:
    """The code as a zip archive that Python can import from."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in _EMPTY:
            bundle.writestr(name, "")
        for pattern in _CODE:
            for path in sorted(_ROOT.glob(pattern)):
                bundle.write(path, path.relative_to(_ROOT))
    return data.getvalue()


def command() -> list[str]:
    """What the container runs; it then waits for `archive` on its standard input."""
    return ["python3", "-I", "-c", _BOOT, str(len(archive()))]
