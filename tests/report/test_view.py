"""`agentrl view` serves the report as it stands, to this machine alone."""

from __future__ import annotations

import http.client
import threading
from pathlib import Path

import pytest

from agentrl.cli import main
from agentrl.commands.viewing import server
from agentrl.engines.scripted import ByteTokenizer
from agentrl.errors import ConfigError, DataError
from agentrl.store import TreeStore
from tests.search.test_search import JUDGED, searched


def get(port: int, path: str = "/", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def test_the_page_is_made_anew_at_each_look(tmp_path: Path) -> None:
    (tree,), _ = searched("mcts", outcome=True, **JUDGED)
    tree.meta["tokenizer"] = ByteTokenizer.fingerprint
    with server(tmp_path) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            port = serving.server_port
            status, empty = get(port)
            assert status == 200
            assert "has recorded nothing yet" in empty
            with TreeStore(tmp_path) as store:
                store.append(tree)
            assert '"strategy":"mcts"' in get(port)[1].replace(": ", ":")
            assert get(port, "/etc/passwd")[0] == 404
            assert get(port, host="evil.example:80")[0] == 403
            (tmp_path / "summary.json").write_text("[]")
            status, said = get(port)
            assert status == 500
            assert "should hold a mapping" in said
        finally:
            serving.shutdown()
            thread.join()


def test_what_cannot_be_shown_is_said_before_anything_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        server(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="port 70000"):
        server(tmp_path, 70000)
    with server(tmp_path) as first, pytest.raises(ConfigError, match="cannot be had"):
        server(tmp_path, first.server_port)
    assert main(["view", str(tmp_path / "nothing")]) == 2
    assert "is not a folder" in capsys.readouterr().err
