"""`agentrl view`: a run's report in a browser, made anew at each look."""

from __future__ import annotations

import argparse
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from agentrl.commands.common import command_of, port
from agentrl.errors import AgentRLError, ConfigError

HOST = "127.0.0.1"
HOSTS = frozenset({HOST, "localhost"})


def add_view(commands: Any) -> None:
    c = command_of(
        commands,
        "view",
        "show a run, or a folder of trees, in the browser",
        "agentrl view runs/demo --port 8080",
    )
    c.add_argument("folder", type=Path, metavar="DIR")
    c.add_argument("--port", type=port, default=0, help="on this machine only (default: any)")
    c.set_defaults(run=run_view)


def run_view(options: argparse.Namespace) -> int:
    """`agentrl view`: serve until interrupted."""
    with server(options.folder, options.port) as serving:
        print(f"http://{HOST}:{serving.server_port}/ (Ctrl-C ends it)", flush=True)
        serving.serve_forever()
    return 0


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of the report of `folder`, for this machine alone.

    Raises ConfigError for a port that cannot be, DataError or StoreError for a folder that no
    report can be made of.
    """
    from agentrl import report

    if not 0 <= port < 65536:
        raise ConfigError(f"port {port}: there are ports 1 to 65535, and 0 for any")
    report.html(folder)
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Page, folder))
    except OSError as error:
        raise ConfigError(f"port {port} cannot be had ({error.strerror}); give another") from error


class _Page(BaseHTTPRequestHandler):
    """Answers with the page; a run that goes on is seen as far as it is."""

    def __init__(self, folder: Path, *args: Any) -> None:
        self.folder = folder
        super().__init__(*args)

    def do_GET(self) -> None:
        """The page at `/`, and nothing else; other sites' names for this machine are refused."""
        from agentrl import report

        if self.headers.get("Host", "").rpartition(":")[0] not in HOSTS:
            self._answer(HTTPStatus.FORBIDDEN, "this page is for its own machine", "text/plain")
        elif self.path != "/":
            self._answer(HTTPStatus.NOT_FOUND, "there is one page: /", "text/plain")
        else:
            try:
                self._answer(HTTPStatus.OK, report.html(self.folder), "text/html")
            except AgentRLError as error:
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), "text/plain")

    def _answer(self, status: HTTPStatus, text: str, kind: str) -> None:
        data = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: a look at a page is no news."""
