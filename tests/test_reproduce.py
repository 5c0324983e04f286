"""Claims: estimates over seeds, verdicts, and the runner that keeps every finished seed."""

from __future__ import annotations

import json
import math

import pytest

from agentrl import claims, reproduce
from agentrl.claims import Claim, Effect
from agentrl.cli import main
from agentrl.errors import ConfigError, DataError


def test_the_interval_is_students():
    found = claims.estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.303 / math.sqrt(3))
    assert claims.estimate([1.0]).half is None
    assert str(claims.estimate([0.5])) == "0.500"


def runs(*pairs):
    return [{"a": {"x": a}, "b": {"x": b}} for a, b in pairs]


@pytest.mark.parametrize(
    ("pairs", "effect", "expected"),
    [
        ([(0.9, 0.1), (0.8, 0.1), (0.9, 0.2)], Effect("", "a.x", "b.x"), "shown"),
        ([(0.9, 0.1), (0.1, 0.2)], Effect("", "a.x", "b.x"), "sign only"),
        ([(0.1, 0.9), (0.2, 0.9)], Effect("", "a.x", "b.x"), "not shown"),
        ([(0.1, 0.9), (0.1, 0.8), (0.2, 0.9)], Effect("", "a.x", "b.x", sign=-1), "shown"),
        ([(0.50, 0.51), (0.51, 0.51)], Effect("", "a.x", "b.x", margin=0.2), "shown"),
        ([(0.9, 0.1)], Effect("", "a.x", "b.x"), "one seed"),
        ([(0.9, 0.1), (0.8, 0.1)], Effect("", "a.x"), "shown"),
    ],
)
def test_verdicts(pairs, effect, expected):
    assert claims.verdict(effect, runs(*pairs))[1] == expected


def test_a_metric_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"'c\.x'.*a\.x, b\.x"):
        claims.verdict(Effect("", "c.x"), runs((1, 2)))


@pytest.fixture
def made(monkeypatch):
    """A claim whose seeds are counted; seed 13 fails."""
    ran = []

    def run(seed, folder):
        assert folder.is_dir()
        if seed == 13:
            raise RuntimeError("no luck")
        ran.append(seed)
        return {"base": {"x": 0.1 * seed}, "ours": {"x": 0.1 * seed + 0.5, "y": 1.0}}

    effects = (Effect("ours is above", "ours.x", "base.x"),)
    claim = Claim("made", "arXiv 0000.00000", "It works.", "A toy.", effects, run)
    monkeypatch.setattr(claims, "get", lambda name: claim)
    return ran


def test_finished_seeds_are_kept(made, tmp_path):
    with pytest.raises(RuntimeError):
        reproduce.reproduce("made", tmp_path, seeds=[0, 1, 13], progress=False)
    found = reproduce.reproduce("made", tmp_path, seeds=[0, 1, 2], progress=False)
    assert made == [0, 1, 2]
    effect, difference, verdict = found.verdicts[0]
    assert (effect.left, verdict) == ("ours.x", "shown")
    assert difference.mean == pytest.approx(0.5)
    text = reproduce.markdown(found)
    assert "| ours | 0.600 ± 0.248 | 1.000 ± 0.000 |" in text
    assert "**shown**" in text
    assert "agentrl reproduce made --seeds 3" in text


def test_a_seed_of_other_code_is_made_again(made, tmp_path):
    reproduce.reproduce("made", tmp_path, seeds=[0], progress=False)
    file = tmp_path / "made" / "seed_0.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"code": "older"}))
    reproduce.reproduce("made", tmp_path, seeds=[0], progress=False)
    assert made == [0, 0]


def test_the_command(made, tmp_path, capsys):
    page = tmp_path / "CLAIMS.md"
    page.write_text("<!-- made -->\n<!-- /made -->\n")
    options = ["--seeds", "2", "--out", str(tmp_path / "out"), "--markdown", str(page), "--json"]
    assert main(["reproduce", "made", *options]) == 0
    assert json.loads(capsys.readouterr().out)["effects"][0]["verdict"] == "shown"
    assert "It works." in page.read_text()


def test_bad_requests_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="no_such"):
        claims.get("no_such")
    assert main(["reproduce", "no_such", "--out", str(tmp_path)]) == 2


def test_every_claim_compares_what_it_runs():
    for name in claims.names():
        claim = claims.get(name)
        assert claim.name == name
        assert claim.effects
        assert claim.says.endswith(".")
